"""What the core must know to run a queue pair in full operation, after the start-up of MPA, and the
block of memory that is made of it.
"""

from dataclasses import dataclass
from typing import Final

from ppe.cycle.rnic.iwarp.records import (
    IRQ_ENTRY,
    MARKERS_OFFSET,
    QP,
    RTS,
    RX_ROOM,
    SQ_ENTRY,
    TX_ENTRY,
    qp_at,
)
from ppe.cycle.rnic.iwarp.rx import START_SIZE
from ppe.cycle.rnic.iwarp.wire import (
    MARKER_GAP,
    MARKER_SIZE,
    TERMINATE_MAX,
    ULPDU_MAX,
    ULPDU_MAX_WITH_MARKERS,
)
from ppe.cycle.rnic.records import SGES_MAX
from shm.crc32c import ONES
from shm.qp_spec import RTR_KINDS, RTR_NONE, RTR_READ

MULPDU_MIN: Final = 128  # RFC 5041 §5.1: the LLP offers at least so much
# A payload of 32 KiB in a segment of either kind.
MULPDU_DEFAULT: Final = (32 << 10) + 18
DEPTH_MAX: Final = 1 << 14
REQUESTS_MAX: Final = 0x3FFE  # 14 bits, all ones being no number (RFC 6581 §9)
INLINE_MAX: Final = 1024
TX_ENTRIES: Final = 32  # FPDUs made ahead of the transport
NUMBER_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class QpSpec:
    """A queue pair as MPA's start-up left it (RFC 5044 §7.1, RFC 6581). `mulpdu`: the longest
    ULPDU we send; `rtr`: what the active side sends first, RTR_*.
    """

    active: bool = True
    crc: bool = True
    markers_rx: bool = False
    markers_tx: bool = False
    extensions: bool = False
    rtr: int = RTR_NONE
    ird: int = 16
    ord: int = 16
    mulpdu: int = MULPDU_DEFAULT
    sq_depth: int = 128
    sges_max: int = SGES_MAX
    inline_size: int = 64

    def check(self) -> None:
        """Raise ValueError for what would be too large or nonsense."""
        top = ULPDU_MAX_WITH_MARKERS if self.markers_tx else ULPDU_MAX
        _range("mulpdu", self.mulpdu, MULPDU_MIN, top)
        if self.rtr not in RTR_KINDS:
            raise ValueError(f"RTR {self.rtr} is none of {RTR_KINDS}")
        _range("ird", self.ird, 0, REQUESTS_MAX)
        _range("ord", self.ord, 0, REQUESTS_MAX)
        _range("sq_depth", self.sq_depth, 1, DEPTH_MAX)
        _range("sges_max", self.sges_max, 1, SGES_MAX)
        _range("inline_size", self.inline_size, 0, INLINE_MAX)
        if self.rtr == RTR_READ and (self.ord if self.active else self.ird) == 0:
            raise ValueError("a Read as RTR needs the active side's ORD and the other's IRD")

    @property
    def size(self) -> int:
        """Bytes of the queue pair's block."""
        return sum(self._parts().values())

    @property
    def room_size(self) -> int:
        """Bytes of the room of one FPDU."""
        markers = 0
        if self.markers_tx:
            markers = MARKER_SIZE * (2 + (self.mulpdu + 12) // MARKER_GAP)
        return _whole(MARKERS_OFFSET + markers)

    def _parts(self) -> dict[str, int]:
        depth, orders = _power(self.sq_depth), _power(self.ord + 1)
        return {
            "record": _whole(QP.itemsize),
            "rx_header": RX_ROOM,
            "terminate": _whole(TERMINATE_MAX),
            "sq_entries": _whole(SQ_ENTRY.itemsize * depth),
            "sq_inlines": _whole(self.inline_size * depth),
            "orq": _whole(8 * orders),
            "irq": IRQ_ENTRY.itemsize * _power(max(self.ird, 1)),
            "tx_entries": _whole(TX_ENTRY.itemsize * TX_ENTRIES),
            "tx_rooms": self.room_size * TX_ENTRIES,
        }

    def build(self, address: int, *, number: int, pd: int, table: int, rq: int) -> None:
        """Make the queue pair in `size` zeroed bytes. `number` is its own, from 1 on; `table` an
        MR_TABLE, `rq` a receive queue of the same domain, its own or shared.
        """
        self.check()
        _range("number", number, 1, NUMBER_MAX)
        qp = qp_at(address)[0]
        at = address
        for name, size in self._parts().items():
            if name != "record":
                qp[name] = at
            at += size
        qp["number"], qp["pd"], qp["table"], qp["rq"] = number, pd, table, rq
        for name in ("crc", "markers_rx", "markers_tx", "extensions", "active"):
            qp[name] = int(getattr(self, name))
        for name in ("rtr", "ird", "ord", "mulpdu", "sq_depth", "sges_max", "inline_size"):
            qp[name] = getattr(self, name)
        qp["sq_capacity"], qp["orq_capacity"] = _power(self.sq_depth), _power(self.ord + 1)
        qp["irq_capacity"], qp["tx_capacity"] = _power(max(self.ird, 1)), TX_ENTRIES
        qp["tx_room_size"] = self.room_size
        qp["started"] = int(self.active)
        qp["rtr_due"] = int(self.active and self.rtr != RTR_NONE)
        qp["rx_need"], qp["rx_target"], qp["rx_crc"] = START_SIZE, qp["rx_header"], ONES
        for name in ("rx_entry", "rx_send", "rx_tagged", "done_first", "done_last", "failed"):
            qp[name] = -1
        qp["rx_msn"], qp["tx_msn"] = (1, 1, 1, 1), (1, 1, 1, 1)
        qp["state"] = RTS


def _range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is outside {low}..{high}")


def _power(count: int) -> int:
    """The power of two that is no less."""
    return 1 << max(0, count - 1).bit_length()


def _whole(size: int) -> int:
    return (size + 63) & ~63
