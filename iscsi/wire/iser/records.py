"""What a datamover's lower half keeps beside its INITIATOR or TARGET when the connection is a queue
pair: an ISER. The PDUs it makes stay in the port's ring; each has a SEND here, which says what work
request it becomes. A tag of 0 is none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from iscsi.wire.bhs import BHS_LENGTH, MAX_AHS_LENGTH
from iscsi.wire.iser.header import ISER_HEADER_LENGTH
from iscsi.wire.iser.registration import REGISTRATIONS
from iscsi.wire.port import QUEUE, build_queue, plan, port_at, queue_at, round_up
from shm.layout import Field, offset, record
from shm.view import opener, window

ISER: Final = record(
    Field("conn", "<i8"),  # address of the INITIATOR or TARGET
    Field("hello", "<i8"),  # a stage of the Hello exchange
    Field("depth", "<i8"),  # RDMA Reads: an initiator serves so many at once, a target has open
    Field("reads", "<i8"),  # a target's RDMA Reads under way
    Field("remote_invalidate", "<i8"),  # 1: a Response may invalidate its command's tag
    Field("receives", "<i8"),  # address of buffers for the peer's Sends
    Field("receive_size", "<i8"),
    Field("receive_count", "<i8"),
    Field("sends", "<i8"),  # address of SEND[entries of the port's ring]
    Field("tasks", "<i8"),  # address of ISER_TASK[tasks]
    Field("task_count", "<i8"),
    # How many unexpected PDUs the peer has receives for, and PDUs of every kind (0: no limit), and
    # how many of ours it may not have given back the receives of.
    Field("unexpected_limit", "<i8"),
    Field("pdu_limit", "<i8"),
    Field("unexpected", "<i8"),
    Field("pdus", "<i8"),
    # Unexpected PDUs without an answer: those that `mark` covers, and those sent after it was set.
    Field("marked", "<i8"),
    Field("unmarked", "<i8"),
    Field("mark", "<i8"),
    Field("pings", "<i8"),  # a target's, without an answer
    # What the peer may send of the kind, as we declared it, and tags of immediate requests of its
    # that are open: address of int64[own_limit], -1 for none.
    Field("own_limit", "<i8"),
    Field("immediates", "<i8"),
    Field("writes_made", "<i8"),
    Field("reads_made", "<i8"),
    Field("invalidated", "<i8"),  # tags by the peer's Responses
    Field("released", "<i8"),  # tags by ourselves
    Field("unposted", QUEUE),  # numbers of receive buffers
    Field("released_next", QUEUE),  # addresses of tasks whose tags are to be invalidated here
    Field("blocked", QUEUE),  # unexpected PDUs that have to wait for the peer's receives
    Field("waiting", QUEUE),  # tasks that wait for an RDMA Read to end
    size=25 * 8 + 4 * QUEUE.itemsize,
)
# One entry of the port's ring.
SEND: Final = record(
    Field("kind", "<i8"),
    Field("remote", "<i8"),  # of an RDMA operation
    Field("stag", "<i8"),  # the peer's for an RDMA operation; the one to invalidate else
    Field("header", ("<u1", ISER_HEADER_LENGTH)),
    size=64,
)
ISER_TASK: Final = record(
    # An initiator's own tag, or the peer's two as its command named them.
    Field("tag_state", "<i8"),
    Field("write_stag", "<i8"),
    Field("write_base", "<i8"),
    Field("read_stag", "<i8"),
    Field("read_base", "<i8"),
    Field("unsolicited", "<i8"),  # bytes that come without being read
    Field("data_outs", "<i8"),  # unsolicited Data-Outs that wait for its Response
    Field("is_sent", "<i8"),  # 1: an initiator's request counts in `pdus`
    Field("is_unexpected", "<i8"),  # 1: and in `unexpected`; a target's: it was immediate
    Field("is_waiting", "<i8"),  # 1: it is in `waiting`
    size=96,
)
iser_at = opener(ISER)
send_at = opener(SEND)
iser_task_at = opener(ISER_TASK)

SEND_SIZE: Final = SEND.itemsize
SEND_HEADER: Final = offset(SEND, "header")
ISER_TASK_SIZE: Final = ISER_TASK.itemsize
UNPOSTED: Final = offset(ISER, "unposted")
RELEASED_NEXT: Final = offset(ISER, "released_next")
BLOCKED: Final = offset(ISER, "blocked")
WAITING: Final = offset(ISER, "waiting")

# `kind` of a SEND.
KIND_SEND: Final = 0
KIND_HELLO: Final = 1  # a header without a PDU
KIND_WRITE: Final = 2
KIND_READ: Final = 3
KIND_RELEASE: Final = 4

# `tag_state` of an initiator's ISER_TASK.
TAG_NONE: Final = 0
TAG_LIVE: Final = 1  # made for this command, and to be invalidated when that is over
TAG_KEPT: Final = 2  # of memory that stays open to the peer
TAG_RELEASED: Final = 3  # its invalidation is under way

# `hello` of an ISER.
HELLO_NONE: Final = 0
HELLO_DUE: Final = 1  # an initiator has to say it
HELLO_SAID: Final = 2  # and waits for the answer
HELLO_AWAITED: Final = 3  # a target waits for it
HELLO_REPLY_DUE: Final = 4

HEADERS_LENGTH: Final = ISER_HEADER_LENGTH + BHS_LENGTH  # what every Send begins with
OWN_LIMIT_MAX: Final = 256
PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class IserLimits:
    """What bounds an ISER, and what both ends agreed on. `receives` buffers for Sends with up to
    `data_length` bytes of data; `depth`: an initiator's IRD, a target's ORD; `unexpected_limit` and
    `pdu_limit`: what the peer has receives for (0: no limit); `own_limit`: what it may send of
    the first kind; `hello`: the connection begins with one; `registration`: how an initiator opens
    its buffers.
    """

    receives: int = 128
    data_length: int = 8192
    depth: int = 16
    unexpected_limit: int = 0
    pdu_limit: int = 0
    own_limit: int = 0
    remote_invalidate: bool = False
    hello: bool = False
    registration: str = REGISTRATIONS[0]

    def __post_init__(self) -> None:
        if self.receives < 2 or self.data_length < BHS_LENGTH:
            raise ValueError("a queue pair needs two receives that hold a header each")
        if not 1 <= self.depth <= 0xFFFF:
            raise ValueError(f"depth {self.depth} is outside 1..65535")
        if not 0 <= self.own_limit <= OWN_LIMIT_MAX:
            raise ValueError(f"own_limit {self.own_limit} is outside 0..{OWN_LIMIT_MAX}")
        if self.registration not in REGISTRATIONS:
            raise ValueError(
                f"registration {self.registration!r}: choose from {', '.join(REGISTRATIONS)}"
            )
        if self.unexpected_limit < 0 or self.pdu_limit < 0:
            raise ValueError("a limit is 0 for none, or positive")

    @property
    def receive_size(self) -> int:
        """Bytes of one receive buffer."""
        return (HEADERS_LENGTH + MAX_AHS_LENGTH + self.data_length + 63) & ~63


def _parts(limits: IserLimits, tx_entries: int, task_count: int, slots: int) -> dict[str, int]:
    return {
        "iser": ISER.itemsize,
        "sends": tx_entries * SEND_SIZE,
        "tasks": task_count * ISER_TASK_SIZE,
        "immediates": 8 * limits.own_limit,
        "unposted": 8 * round_up(limits.receives),
        "released_next": 8 * round_up(task_count),
        "blocked": 8 * round_up(slots),
        "waiting": 8 * round_up(task_count),
        "receives": limits.receives * limits.receive_size,
    }


def iser_size(limits: IserLimits, tx_entries: int, task_count: int, slots: int) -> int:
    """Bytes of zeroed memory that `build_iser` needs, from a multiple of 64 on. The numbers are
    those of the connection's port and table.
    """
    return plan(_parts(limits, tx_entries, task_count, slots)).size


def build_iser(iser: int, conn: int, limits: IserLimits, task_count: int, hello: int) -> None:
    """Make the ISER of a new connection with `task_count` tasks. `hello`: its first stage."""
    port = port_at(conn)[0]
    entries, slots = int(port["tx_capacity"]), int(port["control_count"])
    layout = plan(_parts(limits, entries, task_count, slots))
    at = {name: iser + start for name, start in layout.offsets.items()}
    mine = iser_at(iser)[0]
    mine["conn"], mine["hello"], mine["depth"] = conn, hello, limits.depth
    mine["remote_invalidate"] = limits.remote_invalidate
    mine["receive_size"], mine["receive_count"] = limits.receive_size, limits.receives
    mine["task_count"] = task_count
    for name in ("receives", "sends", "tasks", "immediates"):
        mine[name] = at[name]
    for name in ("unexpected_limit", "pdu_limit", "own_limit"):
        mine[name] = getattr(limits, name)
    window(at["immediates"], limits.own_limit, np.int64)[:] = -1
    _build_queues(iser, at, limits.receives, task_count, slots)


def _build_queues(
    iser: int, at: Mapping[str, int], receives: int, task_count: int, slots: int
) -> None:
    build_queue(iser + UNPOSTED, at["unposted"], receives)
    # Not by the compiled stores: an engine's control plane builds, too, and compiles nothing.
    window(at["unposted"], receives, np.int64)[:] = np.arange(receives)
    queue_at(iser + UNPOSTED)[0]["tail"] = receives
    build_queue(iser + RELEASED_NEXT, at["released_next"], task_count)
    build_queue(iser + BLOCKED, at["blocked"], slots)
    build_queue(iser + WAITING, at["waiting"], task_count)
