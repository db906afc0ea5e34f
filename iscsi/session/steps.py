"""What a session waits for, as values: procedures are generators of steps, so that one text of
login, discovery and inquiry serves a blocking session and an asyncio one. A step is performed by
whoever runs the generator and its result is sent back in.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray

from host.channel import Completion

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect to a host and port: the endpoint."""

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
class Finish:
    """Work until the job at this address has ended."""

    job: int


@dataclass(frozen=True, slots=True)
class AwaitControl:
    """Work until a control PDU has come for which the session waits."""


Step = Connect | Send | Receive | Finish | AwaitControl
Steps = Generator[Step, Any, R]

__all__ = ["AwaitControl", "Completion", "Connect", "Finish", "Receive", "Send", "Step", "Steps"]
