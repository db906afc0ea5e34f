"""What a session waits for, as values: procedures are generators of steps, so that one text of
login, discovery, inquiry and recovery serves a blocking session and an asyncio one. A step is
performed by whoever runs the generator and its result is sent back in.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from host.channel import Completion
from iscsi.session.replay import Turn

if TYPE_CHECKING:
    from host.verbs import CompletionQueue

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect to a host and port, which begins a login and its time: the endpoint."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a shared array: its completion."""

    endpoint: int
    data: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Receive:
    """Fill a shared array exactly: its completion, checked."""

    endpoint: int
    into: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Complete:
    """Wait for a work request of a login: its work completion, or None when `seconds` are over."""

    queue: "CompletionQueue"
    wr_id: int
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """Work until the job at this address has ended."""

    job: int


@dataclass(frozen=True, slots=True)
class AwaitControl:
    """Work until the answer to the control request with this tag has come."""

    tag: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let so many seconds pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AwaitTurn:
    """Wait until no earlier change of the same blocks is under way."""

    turn: Turn


Step = Connect | Send | Receive | Complete | Finish | AwaitControl | Sleep | AwaitTurn
Steps = Generator[Step, Any, R]

__all__ = [
    "AwaitControl",
    "AwaitTurn",
    "Complete",
    "Completion",
    "Connect",
    "Finish",
    "Receive",
    "Send",
    "Sleep",
    "Step",
    "Steps",
]
