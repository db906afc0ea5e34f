"""READ and WRITE of 6, 10, 12 and 16 bytes by cold code (SBC-3 §5): what compiled code does not
serve, because the unit is not in memory or its gate is closed. Same rules, same answers.
"""

from dataclasses import dataclass
from typing import Final

from iscsi.target.scsi.command import (
    INVALID_FIELD,
    LBA_OUT_OF_RANGE,
    Access,
    Answer,
    Command,
    Reservation,
    Row,
    Rows,
)

_PROTECT: Final = 0xE0
_FUA: Final = 0x08
# Where the LBA and the transfer length lie, by the group of the operation code.
_FIELDS: Final = {1: ((2, 4), (7, 2)), 4: ((2, 8), (10, 4)), 5: ((2, 4), (6, 4))}


@dataclass(frozen=True, slots=True)
class Extent:
    """Blocks a command names, in bytes of its unit."""

    lba: int
    blocks: int
    offset: int
    length: int


def extent(command: Command, lba: int, blocks: int) -> Extent | Answer:
    """The bytes of `blocks` blocks from `lba`, or the refusal of a range outside the unit."""
    unit = command.present
    if lba > unit.blocks or blocks > unit.blocks - lba:
        return LBA_OUT_OF_RANGE
    return Extent(lba, blocks, lba * unit.block_size, blocks * unit.block_size)


def cdb_range(command: Command) -> tuple[int, int]:
    """LBA and transfer length of a CDB laid out like READ's; in six bytes 0 means 256 blocks."""
    group = command.cdb[0] >> 5
    if group == 0:
        return command.number(1, 3) & 0x1FFFFF, command.cdb[4] or 256
    lba, length = _FIELDS[group]
    return command.number(*lba), command.number(*length)


def moves(command: Command) -> int | None:
    """The bytes that a command laid out like READ moves; None beyond the end of the unit."""
    lba, blocks = cdb_range(command)
    unit = command.present
    if lba + blocks > unit.blocks:
        return None
    return min(blocks * unit.block_size, command.expected_length)


def _checked(command: Command) -> Extent | Answer:
    if command.cdb[0] >> 5 and command.cdb[1] & _PROTECT:
        return INVALID_FIELD
    found = extent(command, *cdb_range(command))
    if isinstance(found, Extent) and found.blocks > command.present.limits.transfer:
        return INVALID_FIELD
    return found


def _read(command: Command) -> Answer:
    found = _checked(command)
    if isinstance(found, Answer):
        return found
    length = min(found.length, command.expected_length)
    return Answer(data=command.present.backend.read(found.offset, length), moved=found.length)


def _write(command: Command) -> Answer:
    found = _checked(command)
    if isinstance(found, Answer):
        return found
    durable = bool(command.cdb[0] >> 5 and command.cdb[1] & _FUA)
    unit, data = command.present, command.data[: found.length]
    if len(data):
        with unit.medium_lock:  # of COMPARE AND WRITE, which may run at the same time
            unit.backend.write(found.offset, data, durable=durable)
    return Answer(moved=found.length)


def _may_wait(command: Command) -> bool:
    """Whether the medium may keep whoever asks it waiting: memory does not."""
    return command.unit is not None and not command.unit.backend.memory


def _row(is_write: bool, usage: str) -> Row:
    return Row(
        _write if is_write else _read,
        usage,
        access=Access.WRITE if is_write else Access.READ,
        reservation=Reservation.WRITE_LIKE if is_write else Reservation.READ_LIKE,
        slow=_may_wait,
        moves=moves,
    )


ROWS: Final[Rows] = {
    (0x08, None): _row(False, "1fffffff00"),
    (0x0A, None): _row(True, "1fffffff00"),
    (0x28, None): _row(False, "f8ffffffff00ffff00"),
    (0x2A, None): _row(True, "f8ffffffff00ffff00"),
    (0x88, None): _row(False, "f8ffffffffffffffffffffffff0000"),
    (0x8A, None): _row(True, "f8ffffffffffffffffffffffff0000"),
    (0xA8, None): _row(False, "f8ffffffffffffffff0000"),
    (0xAA, None): _row(True, "f8ffffffffffffffff0000"),
}
