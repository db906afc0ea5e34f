"""From a cold command to its answer: the table of commands and the checks they share, in the order
an initiator may rely on (SAM-5 §5.14, SPC-4 §5.12, SBC-3 §4.12). Modules export `ROWS`; a command
that two of them serve is an error at import.
"""

import logging
from dataclasses import replace
from typing import Final

from iscsi.target.activity import Counts
from iscsi.target.nexus import RESETS
from iscsi.target.scsi import (
    atomic,
    blocks,
    capacity,
    compare_and_write,
    copy,
    defects,
    inquiry,
    logs,
    luns,
    mode,
    opcodes,
    orwrite,
    ports,
    power,
    prefetch,
    reservations,
    reserve6,
    sanitize,
    sync,
    unmap,
    verify,
    write_same,
)
from iscsi.target.scsi.command import (
    INVALID_FIELD,
    INVALID_OPCODE,
    RESERVATION_CONFLICT,
    Access,
    Answer,
    Command,
    Reservation,
    Row,
    Rows,
    refuse,
)
from iscsi.target.scsi.medium import medium_error
from iscsi.wire.scsi import SERVICE_ACTION_MASK
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey

log: Final = logging.getLogger(__name__)

INQUIRY: Final = 0x12
REQUEST_SENSE: Final = 0x03
REPORT_LUNS: Final = 0xA0
# A unit attention does not stop these (SPC-4 §5.13); they also work where there is no unit.
ALWAYS_SERVED: Final = frozenset((INQUIRY, REPORT_LUNS, REQUEST_SENSE))
_MODULES: Final = (
    inquiry,
    luns,
    logs,
    mode,
    capacity,
    power,
    ports,
    blocks,
    verify,
    sync,
    reservations,
    reserve6,
    atomic,
    compare_and_write,
    copy,
    defects,
    orwrite,
    prefetch,
    sanitize,
    unmap,
    write_same,
    opcodes,
)
_NACA: Final = 0x04
_VARIABLE_LENGTH: Final = 0x7F


def _merge() -> Rows:
    found: dict[tuple[int, int | None], Row] = {}
    for module in _MODULES:
        for key, row in module.ROWS.items():
            if key in found:
                raise RuntimeError(f"{key} is served twice: {module.__name__}")
            found[key] = row
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or 0)))


ROWS: Final = _merge()
_WITH_SERVICE_ACTION: Final = frozenset(code for code, action in ROWS if action is not None)
opcodes.serve(ROWS)


def row_of(cdb: bytes) -> Row | Answer:
    """The row that serves a CDB, or the refusal of one that nobody serves."""
    operation = cdb[0]
    action: int | None = None
    if operation in _WITH_SERVICE_ACTION:
        action = cdb[1] & SERVICE_ACTION_MASK
    row = ROWS.get((operation, action))
    if row is not None:
        return row
    return INVALID_OPCODE if action is None else INVALID_FIELD


def is_slow(command: Command) -> bool:
    """Whether a worker thread may execute it (`finish` of an `admit` that let it pass)."""
    row = row_of(command.cdb)
    return isinstance(row, Row) and row.is_slow(command)


def execute(command: Command) -> Answer:
    """Do a command; its data is cut to its allocation length. Never raises for what a peer sent."""
    refusal = admit(command)
    return finish(command) if refusal is None else refusal


def admit(command: Command) -> Answer | None:
    """What keeps a command from being done, or None. In the server's thread only."""
    try:
        return _admit(command)
    except Exception as error:
        return _failed(command, error)


def _failed(command: Command, error: Exception) -> Answer:
    """An error of this program ends the command, not the server and every other session."""
    log.error("command %s failed", bytes(command.cdb).hex(), exc_info=error)
    return refuse(Asc.INTERNAL_TARGET_FAILURE, SenseKey.HARDWARE_ERROR)


def _admit(command: Command) -> Answer | None:
    row = row_of(command.cdb)
    operation = command.cdb[0]
    unit = command.unit
    if unit is None:
        if operation not in ALWAYS_SERVED:
            return refuse(Asc.LUN_NOT_SUPPORTED)
    elif operation not in ALWAYS_SERVED:
        code = command.nexus.pending(command.lun)
        if code is not None:
            # Of all unit attentions only a reset's comes before a conflict (SAM-5 §5.3.3).
            if code not in RESETS and isinstance(row, Row) and _conflicts(command, row):
                return RESERVATION_CONFLICT
            command.nexus.take_attention(command.lun)
            return refuse(code, SenseKey.UNIT_ATTENTION, information=code.information)
    if isinstance(row, Answer):
        return row
    if control_byte(command.cdb) & _NACA:
        return INVALID_FIELD
    if unit is None:
        return None
    if not row.is_offered(unit):
        return INVALID_FIELD if operation in _WITH_SERVICE_ACTION else INVALID_OPCODE
    refusal = _admit_at_unit(command, row)
    if refusal is None and row.prepare is not None:
        refusal = row.prepare(command)
    if refusal is None and row.moves is not None:
        _count(command, row)
    return refusal


def _count(command: Command, row: Row) -> None:
    length = None if row.moves is None else row.moves(command)
    if length is not None and command.lun is not None:
        is_write = row.access is Access.WRITE
        command.present.count(command.target, command.lun, Counts.one(length, is_write=is_write))


def _conflicts(command: Command, row: Row) -> bool:
    kind = row.reservation_of(command)
    if kind is Reservation.ALWAYS_ALLOWED:
        return False
    return command.present.reservations.conflicts(command, kind)


def _admit_at_unit(command: Command, row: Row) -> Answer | None:
    unit = command.present
    if command.nexus.read_only and row.needs_writer(command):
        return refuse(Asc.ACCESS_DENIED)
    if _conflicts(command, row):
        return RESERVATION_CONFLICT
    condition = None if unit.condition is None else unit.condition()
    if condition is not None and not row.during_sanitize:
        return Answer(ScsiStatus.CHECK_CONDITION, sense=condition)
    if row.needs_medium and not unit.medium_present:
        return refuse(Asc.MEDIUM_NOT_PRESENT, SenseKey.NOT_READY)
    if row.access is Access.WRITE and (unit.write_protected or command.nexus.read_only):
        is_soft = unit.software_write_protect and not unit.read_only
        code = Asc.SOFTWARE_WRITE_PROTECTED if is_soft else Asc.WRITE_PROTECTED
        return refuse(code, SenseKey.DATA_PROTECT)
    return None


def finish(command: Command) -> Answer:
    """Run a command's row. A `slow` one may run in any thread."""
    row = row_of(command.cdb)
    if isinstance(row, Answer):
        return row
    try:
        answer = row.run(command)
    except OSError as error:
        return medium_error(error, None, writing=row.access is Access.WRITE)
    except Exception as error:
        return _failed(command, error)
    if row.allocation is None:
        return answer
    return replace(answer, data=answer.data[: command.number(*row.allocation)])


def control_byte(cdb: bytes) -> int:
    """The CONTROL byte of a CDB, wherever its length puts it (SAM-5 §5.2)."""
    if cdb[0] == _VARIABLE_LENGTH:
        return cdb[1]
    lengths = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
    return cdb[lengths.get(cdb[0] >> 5, 16) - 1]
