"""What an engine must know to make a queue pair of a connection: a QpSpec, as a message of plain
values between host and control plane. `from_message` trusts nothing: whatever is missing, of
another type or out of range is a ValueError that names it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from shm.verbs import SGES_MAX

DEPTH_MAX: Final = 16384  # work requests of one queue
READS_MAX: Final = 255  # IRD and ORD: what rdma_cm's fields can say
MULPDU_MIN: Final = 128
MULPDU_MAX: Final = 65535  # what a ULPDU_Length can say; markers leave less
MULPDU: Final = (32 << 10) + 18  # 32 KiB of payload behind either header
# How the active side says "ready to receive" in peer-to-peer mode: by a message of no bytes
# (RFC 6581 §9). MPA's start-up offers several of them.
RTR_NONE: Final = 0
RTR_SEND: Final = 1
RTR_WRITE: Final = 2
RTR_READ: Final = 4
RTR_KINDS: Final = (RTR_NONE, RTR_SEND, RTR_WRITE, RTR_READ)


@dataclass(frozen=True, slots=True)
class QpSpec:
    """A connection as its MPA start-up left it, and how large its queues are. `domain` and `srq`
    are ids of the protection domain and of the shared receive queue (0: it has its own receives).
    `extensions`: the peer knows RFC 7306 (atomics, immediate data).
    """

    domain: int = 0
    srq: int = 0
    active: bool = True
    crc: bool = True
    markers_rx: bool = False
    markers_tx: bool = False
    ird: int = 16
    ord: int = 16
    rtr: int = 0
    mulpdu: int = MULPDU
    sq_depth: int = 128
    rq_depth: int = 128
    extensions: bool = False

    def __post_init__(self) -> None:
        _range("domain", self.domain, 0, 0x7FFF_FFFF)
        _range("srq", self.srq, 0, 0x7FFF_FFFF)
        _range("ird", self.ird, 0, READS_MAX)
        _range("ord", self.ord, 0, READS_MAX)
        _range("mulpdu", self.mulpdu, MULPDU_MIN, MULPDU_MAX)
        _range("sq_depth", self.sq_depth, 1, DEPTH_MAX)
        _range("rq_depth", self.rq_depth, 1, DEPTH_MAX)
        if self.rtr not in RTR_KINDS:
            raise ValueError(f"rtr {self.rtr} is none of {RTR_KINDS}")

    def to_message(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: Any) -> "QpSpec":
        """Raises ValueError for anything that cannot be."""
        if not isinstance(message, Mapping) or set(message) != {each.name for each in fields(cls)}:
            raise ValueError("the description of the queue pair is incomplete or has other fields")
        for each in fields(cls):
            given = message[each.name]
            if type(given) is not type(each.default):
                raise ValueError(f"{each.name} is {given!r}, which is of another type")
        return cls(**message)


def _range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is outside {low}..{high}")


__all__ = ["DEPTH_MAX", "MULPDU", "MULPDU_MAX", "READS_MAX", "SGES_MAX", "QpSpec"]
