"""How a session works: what the user may set, before it opens and (the timeouts) while it runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from host import pump
from iscsi.session.credentials import Credentials
from iscsi.wire.iser.registration import REGISTRATIONS
from iscsi.wire.keys import Proposal, SessionParams

DEFAULT_INITIATOR: Final = "iqn.2026-01.org.ppe-runtime:initiator"
DEPTH_MAX: Final = 256
PLACEMENTS: Final = ("auto", "stream", "datamover")
AUTO_REGISTRATION: Final = "per-io"  # the same: docs/decisions/0018
RECEIVE_MODES: Final = ("auto", *pump.MODE_NAMES)
# We can relogin at once, so only the target's wish for a pause counts (the larger one is agreed).
DEFAULT_PROPOSAL: Final = Proposal(
    SessionParams(initial_r2t=False, first_burst_length=262144, default_time2wait=0)
)


LONGEST_S: Final = 1e9  # as good as for ever, and still a number of nanoseconds


def nanoseconds(seconds: float) -> int:
    """A time limit in nanoseconds; an infinite one is thirty years."""
    return int(min(seconds, LONGEST_S) * 1e9)


@dataclass(frozen=True, slots=True)
class Recovery:
    """When a lost connection is made again, and for how long that is tried.

    The first pause is `initial_s`, each further one twice as long up to `maximum_s`, varied by
    `jitter` (a share of it), and never shorter than the target's Time2Wait. It is given up
    `limit_s` after the loss, or after `tries` logins (0: any number); an attempt that is under way
    then ends with it, but gets a second at least. `limit_s` 0: never try.
    """

    initial_s: float = 0.1
    maximum_s: float = 10.0
    jitter: float = 0.25
    limit_s: float = 120.0
    tries: int = 0

    def __post_init__(self) -> None:
        # In this form a time that is no number is refused too.
        if not (0 <= self.initial_s <= self.maximum_s and self.limit_s >= 0):
            raise ValueError("recovery: 0 <= initial_s <= maximum_s, and limit_s >= 0")
        if not 0 <= self.jitter <= 1 or self.tries < 0:
            raise ValueError("recovery: jitter is a share of 1, tries a count")

    @property
    def is_on(self) -> bool:
        """Whether a lost connection is made again at all."""
        return self.limit_s > 0

    def pauses(self, random: Random) -> Iterator[float]:
        """Seconds to wait before each login, without end (or `tries` of them)."""
        pause, done = self.initial_s, 0
        while not self.tries or done < self.tries:
            yield pause * (1 + self.jitter * (2 * random.random() - 1))
            pause = min(max(pause, 0.01) * 2, self.maximum_s)
            done += 1


NEVER: Final = Recovery(limit_s=0)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds; assign another one to a session or device to change them while it runs.

    A command gets `command_s`, then ABORT TASK and LOGICAL UNIT RESET get `task_management_s` each,
    then the connection is given up. A connection silent for `ping_interval_s` is asked by a
    NOP-Out; one that then stays silent for `ping_count` times `ping_timeout_s` is lost. Every PDU
    that comes counts as life. `ping_interval_s` 0: never ask.
    """

    command_s: float = 30.0
    login_s: float = 10.0
    task_management_s: float = 5.0
    ping_interval_s: float = 5.0
    ping_timeout_s: float = 5.0
    ping_count: int = 3

    def __post_init__(self) -> None:
        limits = (self.command_s, self.login_s, self.task_management_s, self.ping_timeout_s)
        if not all(limit > 0 for limit in limits):
            raise ValueError("timeouts are positive numbers of seconds")
        if not self.ping_interval_s >= 0 or self.ping_count < 1:
            raise ValueError("ping_interval_s is a number from 0 on, ping_count at least 1")


def auto_placement(is_inline: bool) -> str:
    """Who frames PDUs where nobody says so: docs/decisions/0019."""
    return "stream" if is_inline else "datamover"


@dataclass(frozen=True, slots=True)
class Options:
    """How a session works. `placement` says who frames PDUs: this side over a byte stream
    (`stream`; inline, and with `receive=`, the default), or the engine, with one event per SCSI
    command (`datamover`; the default through an engine of another process). `receive` chooses how
    bytes come in over a stream (`host.pump`). Over a datamover a wait is for `coalesce` completions
    (0: half the queue depth, or 1 inline), or for one after `coalesce_us`. `command_bytes` is the
    most one SCSI command moves; `timeouts` and `recovery` are described there, `timeout_s` and
    `login_timeout_s` are short for two of the former. `portals` (`host[:port]`) are others of the
    same target, tried in turn when the connection is lost.

    Over RDMA: `mpa_crc` wants a CRC over every FPDU (there is one, too, where the target wants it);
    `iser_hello` begins with iSER's Hello, which no deployed target answers (iSERHelloRequired);
    `registration` says how buffers are opened to the target: by a tag for each command (`per-io`)
    or a memory window for each (`window`), which end with it, by one for each buffer (`cache`) or
    for all memory from `alloc` (`pool`), which stay open as long as the connection.
    """

    initiator_name: str = DEFAULT_INITIATOR
    queue_depth: int = 32
    placement: str = "auto"
    receive: str = "auto"
    coalesce: int = 0
    coalesce_us: int = 100
    command_bytes: int = 256 << 10
    timeout_s: float = 0
    login_timeout_s: float = 0
    timeouts: Timeouts = field(default_factory=Timeouts)
    recovery: Recovery = field(default_factory=Recovery)
    portals: Sequence[str] = ()
    mpa_crc: bool = True
    iser_hello: bool = False
    registration: str = "auto"
    proposal: Proposal = DEFAULT_PROPOSAL
    credentials: Credentials | None = None  # None: what the URL and the environment say
    isid: int | None = None  # None: a random one; another session with the same one ends this

    def __post_init__(self) -> None:
        if not 1 <= self.queue_depth <= DEPTH_MAX:
            raise ValueError(f"queue_depth {self.queue_depth} is outside 1..{DEPTH_MAX}")
        if self.receive not in RECEIVE_MODES:
            raise ValueError(f"receive={self.receive!r}: choose from {', '.join(RECEIVE_MODES)}")
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement={self.placement!r}: choose from {', '.join(PLACEMENTS)}")
        if self.registration not in ("auto", *REGISTRATIONS):
            choices = ", ".join(("auto", *REGISTRATIONS))
            raise ValueError(f"registration={self.registration!r}: choose from {choices}")
        if self.receive == "coalesced" and self.queue_depth != 1:
            raise ValueError("receive='coalesced' is for queue_depth=1")
        if not 512 <= self.command_bytes <= 64 << 20:
            raise ValueError(f"command_bytes {self.command_bytes} is outside 512..64 MiB")
        if not 0 <= self.coalesce <= self.queue_depth or not 0 <= self.coalesce_us <= 1_000_000:
            raise ValueError("coalesce is at most the queue depth, coalesce_us at most a second")
        if self.timeout_s < 0 or self.login_timeout_s < 0:
            raise ValueError("timeouts are positive numbers of seconds")
        if self.isid is not None and not 0 <= self.isid < 1 << 48:
            raise ValueError("an ISID has 48 bits")

    def mode(self, is_inline: bool) -> int:
        """The pump's mode with an engine in this thread, or in a process of its own. Of a stream
        `auto` is staged above depth 1: docs/decisions/0002.
        """
        placement = self.placement
        if placement == "auto":
            placement = "stream" if self.receive != "auto" else auto_placement(is_inline)
        if placement == "datamover":
            return pump.MOVER
        if self.receive != "auto":
            return pump.MODE_NAMES.index(self.receive)
        return pump.COALESCED if self.queue_depth == 1 else pump.STAGED

    @property
    def first_timeouts(self) -> Timeouts:
        """The timeouts a session begins with."""
        given = self.timeouts
        return Timeouts(
            self.timeout_s or given.command_s,
            self.login_timeout_s or given.login_s,
            given.task_management_s,
            given.ping_interval_s,
            given.ping_timeout_s,
            given.ping_count,
        )
