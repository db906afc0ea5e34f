"""Whether a unit is ready, and what makes it so: TEST UNIT READY, REQUEST SENSE, START STOP UNIT,
PREVENT ALLOW MEDIUM REMOVAL (SPC-4 §6.47, §6.39, SBC-3 §5.25, SPC-4 §6.17).
"""

from typing import Final

from iscsi.target.scsi.command import (
    GOOD,
    INVALID_FIELD,
    Answer,
    Command,
    Reservation,
    Row,
    Rows,
    refuse,
)
from iscsi.wire.sense import Asc, Sense, SenseKey, encode_sense

_DESC: Final = 0x01
_START: Final = 0x01
_LOEJ: Final = 0x02
_NO_FLUSH: Final = 0x04
_PREVENT: Final = 0x03


def _test_unit_ready(command: Command) -> Answer:
    return GOOD


def _request_sense(command: Command) -> Answer:
    """What keeps the unit from work: a unit attention, which is then gone, or its condition."""
    descriptor = bool(command.cdb[1] & _DESC)
    found = _current(command)
    raw = encode_sense(
        found.key,
        found.code,
        information=found.information,
        specific=found.specific,
        descriptor=descriptor,
    )
    return Answer(data=raw)


def _current(command: Command) -> Sense:
    unit = command.unit
    if unit is None:
        return _sense(SenseKey.ILLEGAL_REQUEST, Asc.LUN_NOT_SUPPORTED)
    code = command.nexus.take_attention(command.lun)
    if code is not None:
        asc, ascq = code >> 8, code & 0xFF
        return Sense(SenseKey.UNIT_ATTENTION, asc, ascq, code.information)
    condition = None if unit.condition is None else unit.condition()
    if condition is not None:
        return condition
    if not unit.medium_present:
        return _sense(SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)
    return _sense(SenseKey.NO_SENSE, 0)


def _sense(key: int, code: int) -> Sense:
    return Sense(key, code >> 8, code & 0xFF)


def _load_or_eject(command: Command) -> Answer | None:
    """The part of START STOP UNIT that changes a unit: its medium goes and comes."""
    unit, power, bits = command.present, command.cdb[4] >> 4, command.cdb[4]
    if power or not bits & _LOEJ:
        return None
    if not unit.removable:
        return INVALID_FIELD
    if unit.prevented_by:
        return refuse(Asc.MEDIUM_REMOVAL_PREVENTED)
    if bits & _START:
        unit.load(command.nexus)
    else:
        unit.eject()
    return None


def _start_stop(command: Command) -> Answer:
    """No power condition changes what an initiator sees: nothing here spins. Stopping flushes."""
    power, bits = command.cdb[4] >> 4, command.cdb[4]
    if not power and not bits & (_START | _NO_FLUSH):
        command.present.backend.flush()
    is_eject = not power and bits & (_LOEJ | _START) == _LOEJ
    return Answer(is_over=command.present.settled) if is_eject else GOOD


def _start_stop_reservation(command: Command) -> Reservation:
    is_start = command.cdb[4] & 0xF1 == _START
    return Reservation.PERSISTENT_ALLOWED if is_start else Reservation.CONFLICTS


def _prevent_allow(command: Command) -> Answer:
    """Each nexus prevents for itself; the medium can go when none does."""
    unit, prevent = command.present, command.cdb[4] & _PREVENT
    if prevent > 1 or (prevent and not unit.removable):
        return INVALID_FIELD
    if prevent:
        unit.prevented_by.add(command.nexus)
    else:
        unit.prevented_by.discard(command.nexus)
    return GOOD


def _prevent_reservation(command: Command) -> Reservation:
    allows = not command.cdb[4] & _PREVENT
    return Reservation.PERSISTENT_ALLOWED if allows else Reservation.CONFLICTS


def _changes_state(command: Command) -> bool:
    """Whether it does more than to start a unit, without its medium and power conditions."""
    return command.cdb[4] & ~_NO_FLUSH != _START


ROWS: Final[Rows] = {
    (0x00, None): Row(_test_unit_ready, "0000000000", reservation=Reservation.PERSISTENT_ALLOWED),
    (0x03, None): Row(
        _request_sense,
        "010000ff00",
        (4, 1),
        needs_medium=False,
        reservation=Reservation.ALWAYS_ALLOWED,
        during_sanitize=True,
    ),
    (0x1B, None): Row(
        _start_stop,
        "010000f700",
        needs_medium=False,
        reservation=_start_stop_reservation,
        slow=True,
        is_for_writers=_changes_state,
        prepare=_load_or_eject,
    ),
    (0x1E, None): Row(
        _prevent_allow, "0000000300", needs_medium=False, reservation=_prevent_reservation
    ),
}
