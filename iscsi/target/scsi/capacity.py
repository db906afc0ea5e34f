"""READ CAPACITY(10) and (16) (SBC-3 §5.15, §5.16): how large a unit is now."""

from typing import Final

from iscsi.target.scsi.command import (
    INVALID_FIELD,
    LBA_OUT_OF_RANGE,
    Answer,
    Command,
    Reservation,
    Row,
    Rows,
)
from iscsi.wire import scsi_data as data

_PMI: Final = 0x01


def _capacity(command: Command, lba: int, pmi: bool) -> data.Capacity | Answer:
    """With PMI the last block before a delay in transfer: here always the last of the unit."""
    unit = command.present
    if lba and not pmi:
        return INVALID_FIELD
    if lba >= unit.blocks:
        return LBA_OUT_OF_RANGE
    return data.Capacity(unit.blocks, unit.block_size, unit.physical_exponent, unit.is_thin)


def _read_capacity_10(command: Command) -> Answer:
    found = _capacity(command, command.number(2, 4), bool(command.cdb[8] & _PMI))
    return found if isinstance(found, Answer) else Answer(data=data.build_capacity_10(found))


def _read_capacity_16(command: Command) -> Answer:
    found = _capacity(command, command.number(2, 8), bool(command.cdb[14] & _PMI))
    return found if isinstance(found, Answer) else Answer(data=data.build_capacity_16(found))


ROWS: Final[Rows] = {
    (0x25, None): Row(
        _read_capacity_10, "00ffffffff00000100", reservation=Reservation.PERSISTENT_ALLOWED
    ),
    (0x9E, 0x10): Row(
        _read_capacity_16,
        "10ffffffffffffffffffffffff0100",
        (10, 4),
        reservation=Reservation.PERSISTENT_ALLOWED,
    ),
}
