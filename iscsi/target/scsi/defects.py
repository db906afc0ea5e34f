"""READ DEFECT DATA(10) and (12) (SBC-3 §5.14, §5.15): the lists of defects exist and are empty,
because the medium below is a memory or a file, which has none of its own to tell.
"""

from typing import Final

from iscsi.target.scsi.command import INVALID_FIELD, Access, Answer, Command, Reservation, Row

_LISTS_AND_FORMAT: Final = 0x1F  # REQ_PLIST, REQ_GLIST, DEFECT LIST FORMAT
_FORMAT: Final = 0x07
# Short and long block, bytes from index, physical sector.
_FORMATS: Final = frozenset((0, 3, 4, 5))


def _read_defects_10(command: Command) -> Answer:
    asked = command.cdb[2] & _LISTS_AND_FORMAT
    if asked & _FORMAT not in _FORMATS:
        return INVALID_FIELD
    return Answer(data=bytes((0, asked, 0, 0)))


def _read_defects_12(command: Command) -> Answer:
    asked = command.cdb[1] & _LISTS_AND_FORMAT
    if asked & _FORMAT not in _FORMATS:
        return INVALID_FIELD
    return Answer(data=bytes((0, asked, 0, 0, 0, 0, 0, 0)))


ROWS: Final = {
    (0x37, None): Row(
        _read_defects_10,
        "001f00000000ffff00",
        (7, 2),
        access=Access.READ,
        reservation=Reservation.READ_LIKE,
    ),
    (0xB7, None): Row(
        _read_defects_12,
        "1fffffffffffffffff0000",
        (6, 4),
        access=Access.READ,
        reservation=Reservation.READ_LIKE,
    ),
}
