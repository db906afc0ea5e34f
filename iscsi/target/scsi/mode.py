"""MODE SENSE and MODE SELECT, 6 and 10 bytes (SPC-4 §6.11 to §6.14, §7.5): the caching, control and
informational exceptions pages, and what `mode_thresholds` adds for thin units. Pages are shared by
all nexuses and cannot be saved.
"""

from collections.abc import Mapping
from typing import Final

from iscsi.target.scsi import mode_thresholds
from iscsi.target.scsi.command import (
    GOOD,
    INVALID_FIELD,
    INVALID_PARAMETER,
    PARAMETER_LIST_LENGTH_ERROR,
    Answer,
    Command,
    Reservation,
    Row,
    Rows,
    refuse,
)
from iscsi.target.scsi.mode_page import Page, PageKey, key_of, length_of
from iscsi.target.units import LogicalUnit
from iscsi.wire.scsi_data import ModePage
from iscsi.wire.sense import Asc

MODE_SELECT_10: Final = 0x55
MODE_SENSE_10: Final = 0x5A
_CHANGEABLE: Final = 1
_DEFAULT: Final = 2
_SAVED: Final = 3
_ALL_SUBPAGES: Final = 0xFF
_DBD: Final = 0x08
_LLBAA: Final = 0x10
_PF: Final = 0x10
_RTD: Final = 0x02
_SP: Final = 0x01
_DPO_FUA: Final = 0x10
_WRITE_PROTECT: Final = 0x80
_WCE: Final = 0x04
_D_SENSE: Final = 0x04
_SWP: Final = 0x08
_TAS: Final = 0x40
_GLTSD: Final = 0x02
_TST_PER_NEXUS: Final = 0x20


def _caching(write_cache: bool) -> bytes:
    return bytes((ModePage.CACHING, 0x12, _WCE * write_cache)).ljust(20, b"\0")


def _set_caching(unit: LogicalUnit, page: bytes) -> None:
    wanted = bool(page[2] & _WCE)
    if wanted != unit.backend.write_cache:
        unit.backend.set_write_cache(wanted)


def _control(descriptor_sense: bool, write_protect: bool, task_aborted: bool) -> bytes:
    """A task set for each I_T nexus; GLTSD; commands may be reordered; busy timeout unlimited."""
    first = _TST_PER_NEXUS | _GLTSD | _D_SENSE * descriptor_sense
    head = bytes((ModePage.CONTROL, 0x0A, first, 0x10, _SWP * write_protect, _TAS * task_aborted))
    return (head + bytes((0, 0, 0xFF, 0xFF))).ljust(12, b"\0")


def _set_control(unit: LogicalUnit, page: bytes) -> None:
    unit.descriptor_sense = bool(page[2] & _D_SENSE)
    unit.software_write_protect = bool(page[4] & _SWP)
    unit.task_aborted_status = bool(page[5] & _TAS)
    unit.refresh_gate()
    unit.settle()


def _exceptions() -> bytes:
    """Informational exceptions: nothing is ever reported (MRIE 0)."""
    return bytes((ModePage.INFORMATIONAL_EXCEPTIONS, 0x0A)).ljust(12, b"\0")


_PAGES: Final[Mapping[PageKey, Page]] = {
    (ModePage.CACHING, 0): Page(
        lambda unit: _caching(unit.backend.write_cache),
        lambda unit: _caching(unit.backend.write_cache),
        lambda unit: _caching(unit.backend.write_cache_changeable),
        _set_caching,
    ),
    (ModePage.CONTROL, 0): Page(
        lambda unit: _control(
            unit.descriptor_sense, unit.software_write_protect, unit.task_aborted_status
        ),
        lambda unit: _control(descriptor_sense=False, write_protect=False, task_aborted=False),
        lambda unit: bytes((ModePage.CONTROL, 0x0A, _D_SENSE, 0, _SWP, _TAS)).ljust(12, b"\0"),
        _set_control,
    ),
    (ModePage.INFORMATIONAL_EXCEPTIONS, 0): Page(
        lambda unit: _exceptions(),
        lambda unit: _exceptions(),
        lambda unit: _exceptions(),
        lambda unit, page: None,
    ),
    **mode_thresholds.PAGES,
}


def _pages_of(unit: LogicalUnit) -> dict[PageKey, Page]:
    """The pages this unit has, in order."""
    return {key: _PAGES[key] for key in sorted(_PAGES) if _PAGES[key].offered(unit)}


# --- MODE SENSE ----------------------------------------------------------------------------------


def _mode_sense(command: Command) -> Answer:
    control, page, subpage = command.cdb[2] >> 6, command.cdb[2] & 0x3F, command.cdb[3]
    if control == _SAVED:
        return refuse(Asc.SAVING_NOT_SUPPORTED)
    unit = command.present
    found = [
        each
        for (code, sub), each in _pages_of(unit).items()
        if page in (code, ModePage.ALL) and subpage in (sub, _ALL_SUBPAGES)
    ]
    if not found:
        return INVALID_FIELD
    pages = b"".join(_values(each, unit, control) for each in found)
    ten = command.cdb[0] == MODE_SENSE_10
    descriptor = b""
    if not command.cdb[1] & _DBD and unit.medium_present:
        descriptor = _block_descriptor(unit, long=ten and bool(command.cdb[1] & _LLBAA))
    return Answer(data=_mode_data(command, descriptor, pages, ten=ten))


def _values(page: Page, unit: LogicalUnit, control: int) -> bytes:
    if control == _CHANGEABLE:
        return page.changeable(unit)
    return page.default(unit) if control == _DEFAULT else page.current(unit)


def _block_descriptor(unit: LogicalUnit, *, long: bool) -> bytes:
    """SBC-3 §6.4.2: number of blocks (all ones if it does not fit) and block length."""
    if long:
        return unit.blocks.to_bytes(8, "big") + bytes(4) + unit.block_size.to_bytes(4, "big")
    blocks = min(unit.blocks, 0xFFFFFFFF)
    return blocks.to_bytes(4, "big") + unit.block_size.to_bytes(4, "big")


def _mode_data(command: Command, descriptor: bytes, pages: bytes, *, ten: bool) -> bytes:
    body = descriptor + pages
    is_protected = command.present.write_protected or command.nexus.read_only
    device_specific = _DPO_FUA | _WRITE_PROTECT * is_protected
    if ten:
        long = int(len(descriptor) == 16)
        head = bytes((0, device_specific, long, 0)) + len(descriptor).to_bytes(2, "big")
        return (len(body) + 6).to_bytes(2, "big") + head + body
    return bytes((len(body) + 3, 0, device_specific, len(descriptor))) + body


# --- MODE SELECT ---------------------------------------------------------------------------------


def _mode_select(command: Command) -> Answer:
    """All pages are checked before the first is changed (SPC-4 §6.11)."""
    ten = command.cdb[0] == MODE_SELECT_10
    length = command.number(7, 2) if ten else command.cdb[4]
    if command.cdb[1] & (_SP | _RTD) or not command.cdb[1] & _PF:
        return INVALID_FIELD
    if length == 0:
        return GOOD
    header = 8 if ten else 4
    data = bytes(command.data[:length])
    if length < header or len(data) < length:
        return PARAMETER_LIST_LENGTH_ERROR
    descriptors = int.from_bytes(data[6:8], "big") if ten else data[3]
    if header + descriptors > length:
        return PARAMETER_LIST_LENGTH_ERROR
    unit = command.present
    long = ten and bool(data[4] & 1)
    refusal = _check_descriptor(unit, data[header : header + descriptors], long=long)
    if refusal is not None:
        return refusal
    return _set_pages(command, unit, data[header + descriptors :])


def _check_descriptor(unit: LogicalUnit, raw: bytes, *, long: bool) -> Answer | None:
    """The block length cannot be changed, and the number of blocks stays (SBC-3 §6.4.2)."""
    if not raw:
        return None
    size = 16 if long else 8
    if len(raw) != size:
        return INVALID_PARAMETER
    blocks = int.from_bytes(raw[:8] if long else raw[:4], "big")
    block_size = int.from_bytes(raw[12:] if long else raw[5:], "big")
    all_ones = (1 << (64 if long else 32)) - 1
    known = (0, all_ones, min(unit.blocks, all_ones))
    return None if blocks in known and block_size == unit.block_size else INVALID_PARAMETER


def _set_pages(command: Command, unit: LogicalUnit, data: bytes) -> Answer:
    pages = _pages_of(unit)
    found: list[tuple[Page, bytes]] = []
    at = 0
    while at < len(data):
        end = at + length_of(data[at:])
        if end > len(data):
            return PARAMETER_LIST_LENGTH_ERROR
        raw = data[at:end]
        page = pages.get(key_of(raw))
        if page is None or not _may_set(unit, page, raw):
            return INVALID_PARAMETER
        found.append((page, raw))
        at = end
    before = [page.current(unit) for page in pages.values()]
    for page, raw in found:
        page.set(unit, raw)
    if before != [page.current(unit) for page in pages.values()]:
        unit.broadcast(Asc.MODE_PARAMETERS_CHANGED, command.nexus)
    return Answer(is_over=unit.settled)


def _may_set(unit: LogicalUnit, page: Page, raw: bytes) -> bool:
    """Whether only changeable bits differ from what is, and the values can be together."""
    current, mask = page.current(unit), page.changeable(unit)
    if len(raw) != len(current):
        return False
    pairs = zip(raw[2:], current[2:], mask[2:], strict=True)
    return all((new ^ old) & ~can == 0 for new, old, can in pairs) and page.is_possible(raw)


ROWS: Final[Rows] = {
    (0x15, None): Row(_mode_select, "110000ff00", needs_medium=False, is_for_writers=True),
    (0x1A, None): Row(
        _mode_sense,
        "08ffffff00",
        (4, 1),
        needs_medium=False,
        reservation=Reservation.READ_LIKE,
    ),
    (MODE_SELECT_10, None): Row(
        _mode_select, "110000000000ffff00", needs_medium=False, is_for_writers=True
    ),
    (MODE_SENSE_10, None): Row(
        _mode_sense,
        "18ffff000000ffff00",
        (7, 2),
        needs_medium=False,
        reservation=Reservation.READ_LIKE,
    ),
}
