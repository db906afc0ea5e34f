"""LOG SENSE and LOG SELECT (SPC-4 §6.7, §6.8, §7.3): the counts of reads and writes, and how much
room a thin unit takes. Nothing is saved, and nothing but the counts can be reset. There is no page
for what nobody measures here: no temperature, no error counters, no self-tests.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

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
)
from iscsi.target.scsi.mode_page import SUBPAGE
from iscsi.target.thresholds import AVAILABLE, COUNT_MAX, USED
from iscsi.target.units import LogicalUnit
from iscsi.wire.sense import Asc

SUPPORTED: Final = 0x00
PROVISIONING: Final = 0x0C
PERFORMANCE: Final = 0x19
SUBPAGES: Final = 0xFF
_PCR: Final = 0x02
_SP: Final = 0x01
_CODE: Final = 0x3F
_DS: Final = 0x80  # nothing in the page is saved
# PAGE CONTROL of the CDB.
_CURRENT: Final = 1
_DEFAULTS: Final = 3
# Parameter control bytes: TSD, since nothing is saved, and the kind of the value.
_COUNTER: Final = 0x22
_LIST: Final = 0x23
_DEDICATED: Final = 1
_SHARED: Final = 2
_HEADER: Final = 4


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A log parameter (SPC-4 §7.3.2.2)."""

    code: int
    control: int
    value: bytes

    def encode(self) -> bytes:
        head = self.code.to_bytes(2, "big") + bytes((self.control, len(self.value)))
        return head + self.value


@dataclass(frozen=True, slots=True)
class _Page:
    """A log page without subpages: its parameters in order, for a unit and a PC field; what LOG
    SELECT resets, if anything; and whether a unit has it.
    """

    parameters: Callable[[LogicalUnit, int], list[_Parameter]]
    reset: Callable[[LogicalUnit], None] | None = None
    offered: Callable[[LogicalUnit], bool] = lambda unit: True


def _numbers(*values: int) -> bytes:
    return b"".join((value % (1 << 64)).to_bytes(8, "big") for value in values)


def _performance(unit: LogicalUnit, control: int) -> list[_Parameter]:
    """Page 19h (SPC-4 §7.3.6): commands and blocks. Nobody takes the time of each command: the
    interval in which times would be given is 0, and so are the times. No counter has a threshold.
    """
    numbers = [0] * 8
    if control == _CURRENT:
        found = unit.counts
        numbers[:4] = (
            found.reads,
            found.writes,
            found.written_bytes // unit.block_size,
            found.read_bytes // unit.block_size,
        )
    return [
        _Parameter(1, _COUNTER, _numbers(*numbers)),
        _Parameter(2, _COUNTER, _numbers(0)),
        _Parameter(3, _LIST, _numbers(0)),
    ]


def _provisioning(unit: LogicalUnit, control: int) -> list[_Parameter]:
    """Page 0Ch (SBC-3 §6.4.5): threshold sets available and used. Whatever the PC field says."""
    usage = unit.backend.usage()
    if usage is None:
        return []
    scope = _SHARED if usage.shared else _DEDICATED
    return [
        _Parameter(AVAILABLE, _LIST, _resource(unit, usage.available, scope)),
        _Parameter(USED, _LIST, _resource(unit, usage.used, _DEDICATED)),
    ]


def _resource(unit: LogicalUnit, size: int, scope: int) -> bytes:
    """A count, rounded to whole sets, and whether others draw on the same."""
    count = min((size + unit.threshold_set // 2) // unit.threshold_set, COUNT_MAX)
    return count.to_bytes(4, "big") + bytes((scope, 0, 0, 0))


_PAGES: Final[Mapping[int, _Page]] = {
    PROVISIONING: _Page(_provisioning, offered=lambda unit: unit.thresholds is not None),
    PERFORMANCE: _Page(_performance, LogicalUnit.forget_counts),
}


def _pages_of(unit: LogicalUnit) -> dict[int, _Page]:
    return {code: page for code, page in _PAGES.items() if page.offered(unit)}


def _with_header(page: int, subpage: int, body: bytes, *, saves: bool = False) -> bytes:
    """DS is 0 in the pages that list pages, as their tables want it."""
    flags = (SUBPAGE if subpage else 0) | (0 if saves else _DS)
    return bytes((flags | page, subpage)) + len(body).to_bytes(2, "big") + body


# --- LOG SENSE -----------------------------------------------------------------------------------


def _log_sense(command: Command) -> Answer:
    unit, subpage, first = command.present, command.cdb[3], command.number(5, 2)
    code, control = command.cdb[2] & _CODE, command.cdb[2] >> 6
    pages = _pages_of(unit)
    if command.cdb[1] & _SP or (code != SUPPORTED and code not in pages):
        return INVALID_FIELD
    if code == SUPPORTED or subpage == SUBPAGES:
        return INVALID_FIELD if first else _list_pages(pages, code, subpage)
    if subpage:
        return INVALID_FIELD
    found = [each for each in pages[code].parameters(unit, control) if each.code >= first]
    if not found:
        return INVALID_FIELD
    return Answer(data=_with_header(code, 0, b"".join(each.encode() for each in found)))


def _list_pages(pages: dict[int, _Page], code: int, subpage: int) -> Answer:
    """The pages there are; with subpage FFh in pairs, of one page or of all (SPC-4 §7.3.18 to 20).

    Each page but the first has itself alone and the list of its subpages.
    """
    if subpage not in (0, SUBPAGES):
        return INVALID_FIELD
    known = [SUPPORTED, *sorted(pages)]
    if not subpage:
        return Answer(data=_with_header(code, 0, bytes(known), saves=True))
    wanted = known if code == SUPPORTED else [code]
    pairs = b"".join(bytes((each, 0, each, SUBPAGES)) for each in wanted)
    return Answer(data=_with_header(code, SUBPAGES, pairs, saves=True))


# --- LOG SELECT ----------------------------------------------------------------------------------


def _log_select(command: Command) -> Answer:
    length, resets = command.number(7, 2), bool(command.cdb[1] & _PCR)
    if length == 0:
        return _reset(command, resets=resets)
    if resets or command.cdb[2] & _CODE or command.cdb[3]:
        return INVALID_FIELD
    data = bytes(command.data[:length])
    if len(data) < length:
        return PARAMETER_LIST_LENGTH_ERROR
    return GOOD if _is_as_it_is(command, data) else INVALID_PARAMETER


def _reset(command: Command, *, resets: bool) -> Answer:
    """Without a list: counts are set to zero, of a page or of all (SPC-4 §6.7.2)."""
    saves, control = command.cdb[1] & _SP, command.cdb[2] >> 6
    if saves and control <= _CURRENT:
        return INVALID_FIELD
    code, subpage = command.cdb[2] & _CODE, command.cdb[3]
    pages = _pages_of(command.present)
    if code not in (SUPPORTED, *pages) or subpage not in (0, SUBPAGES):
        return INVALID_FIELD
    if not resets and control != _DEFAULTS:
        return GOOD
    changed = False
    for page in pages.values() if code == SUPPORTED else [pages[code]]:
        if page.reset is not None:
            page.reset(command.present)
            changed = True
    if changed:
        command.present.broadcast(Asc.LOG_PARAMETERS_CHANGED, command.nexus)
    return GOOD


def _is_as_it_is(command: Command, data: bytes) -> bool:
    """Whether a list asks for nothing but what is: no parameter can be set to another value, and of
    page 0Ch none can be set at all.
    """
    control, at, before = command.cdb[2] >> 6, 0, -1
    while at < len(data):
        end = at + _HEADER + int.from_bytes(data[at + 2 : at + 4], "big")
        code = data[at] & _CODE
        page = _pages_of(command.present).get(code)
        if page is None or page.reset is None or data[at] & SUBPAGE or data[at + 1]:
            return False
        if end > len(data) or code <= before:
            return False
        known = {each.code: each for each in page.parameters(command.present, control)}
        if not _has_only(data[at + _HEADER : end], known):
            return False
        at, before = end, code
    return True


def _has_only(raw: bytes, known: dict[int, _Parameter]) -> bool:
    """Whether all parameters of a page are there, in order, with the values they have."""
    at, before = 0, -1
    while at < len(raw):
        code = int.from_bytes(raw[at : at + 2], "big")
        if code <= before or code not in known:
            return False
        is_now = known[code].encode()
        if raw[at : at + len(is_now)] != is_now:
            return False
        at, before = at + len(is_now), code
    return True


def _may_wait(command: Command) -> bool:
    """Whether a file system has to be asked, which may keep whoever asks waiting."""
    about_room = command.cdb[2] & _CODE == PROVISIONING
    return about_room and command.unit is not None and not command.unit.backend.memory


ROWS: Final[Rows] = {
    (0x4C, None): Row(
        _log_select,
        "03ffff000000ffff00",
        needs_medium=False,
        is_for_writers=True,
    ),
    (0x4D, None): Row(
        _log_sense,
        "01ffff00ffffffff00",
        (7, 2),
        needs_medium=False,
        reservation=Reservation.PERSISTENT_ALLOWED,
        slow=_may_wait,
    ),
}
