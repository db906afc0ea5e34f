"""REPORT LUNS (SPC-4 §6.33): the units of the target, the same list whichever unit is asked."""

from typing import Final

from iscsi.target.scsi.command import INVALID_FIELD, Answer, Command, Reservation, Row, Rows
from iscsi.wire import scsi_data as data

_ALLOCATION_MIN: Final = 16
_NO_WELL_KNOWN: Final = 0
_WELL_KNOWN_ONLY: Final = 1
_ALL: Final = 2


def _report_luns(command: Command) -> Answer:
    """SELECT REPORT 0 and 2 list every unit, 1 the well known units, of which there are none."""
    select = command.cdb[2]
    if select not in (_NO_WELL_KNOWN, _WELL_KNOWN_ONLY, _ALL):
        return INVALID_FIELD
    if command.number(6, 4) < _ALLOCATION_MIN:
        return INVALID_FIELD
    command.nexus.luns_reported()
    numbers = sorted(command.target.units) if select != _WELL_KNOWN_ONLY else ()
    return Answer(data=data.build_luns(numbers))


ROWS: Final[Rows] = {
    (0xA0, None): Row(
        _report_luns,
        "00ff000000ffffffff0000",
        (6, 4),
        needs_medium=False,
        reservation=Reservation.ALWAYS_ALLOWED,
        during_sanitize=True,
    ),
}
