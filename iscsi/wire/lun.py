"""Memory-backed logical units and the commands served from compiled code: READ and WRITE of 6, 10,
12 and 16 bytes (SBC-3 §5). Everything else, and every unit that is not in its normal state, is for
the cold code. A unit's number is its index in the table; several connections may share the table.
"""

from dataclasses import dataclass
from typing import Final

from iscsi.wire import bhs
from iscsi.wire.sense import Asc, SenseKey
from shm.atomics import load_acquire
from shm.jit import nopython
from shm.layout import Field, offset, record
from shm.memory import load_8, load_16_be, load_32_be, load_64_be, store_8
from shm.view import opener

LUN: Final = record(
    Field("memory", "<i8"),  # address of block 0; 0 if its blocks are not in memory
    Field("block_size", "<i8"),
    Field("block_count", "<i8"),
    Field("read_only", "<i8"),
    # Anything but 0 sends every command to the cold code: no medium, reserved, being reset.
    Field("state", "<i8"),
    # A thin unit's map: one byte for each `granularity` bytes, not 0 where something was written.
    Field("allocation", "<i8"),
    Field("granularity", "<i8"),
    # What those who do file input and output know it by. This and `memory` 0: there is no unit.
    Field("storage", "<i8"),
    # What compiled code served: commands, and the bytes they moved.
    Field("reads", "<i8"),
    Field("writes", "<i8"),
    Field("read_bytes", "<i8"),
    Field("written_bytes", "<i8"),
    Field("under_way", "<i8"),  # commands of a datamover that use its memory
    size=128,
)
lun_at = opener(LUN)
LUN_SIZE: Final = LUN.itemsize
_STATE: Final = offset(LUN, "state")

# What `judge` found; the sense of a refusal is SENSE | key << 16 | ASC and ASCQ.
NOT_BLOCK_IO: Final = 0
READ: Final = bhs.FLAG_READ
WRITE: Final = bhs.FLAG_WRITE
# A nexus' word for a unit: what of it compiled code leaves to the cold code.
GATE_OPEN: Final = 0
GATE_CLOSED: Final = 1
GATE_READS_ONLY: Final = 2  # READ is served, WRITE is not


def _sense(key: SenseKey, code: Asc) -> int:
    return key << 16 | code


LBA_OUT_OF_RANGE: Final = _sense(SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE)
INVALID_FIELD_IN_CDB: Final = _sense(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
WRITE_PROTECTED: Final = _sense(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)

_GROUP_6: Final = 0x00
_GROUP_10: Final = 0x20
_GROUP_16: Final = 0x80
_GROUP_12: Final = 0xA0
_READ: Final = 0x08
_WRITE: Final = 0x0A
_PROTECT: Final = 0xE0  # RDPROTECT and WRPROTECT: no unit here has protection information
_FUA: Final = 0x08
_SINGLE_LEVEL: Final = 0xFFFF_FFFF_FFFF
_FLAT: Final = 1


@nopython
def lun_number(field: int) -> int:
    """The number an eight-byte LUN field names (SAM-5 §4.7), or -1 for one that no unit has."""
    first = (field >> 48) & 0xFFFF
    method = first >> 14
    if field & _SINGLE_LEVEL or method > _FLAT or (method == 0 and first > 0xFF):
        return -1
    return first & 0x3FFF


@nopython
def unit_of(luns: int, lun_count: int, number: int) -> int:
    """Address of the LUN that compiled code may serve now, or 0."""
    if number < 0 or number >= lun_count:
        return 0
    address = luns + LUN_SIZE * number
    lun = lun_at(address)[0]
    if (lun["memory"] == 0 and lun["storage"] == 0) or load_acquire(address + _STATE) != 0:
        return 0
    return address


@nopython
def mark_written(unit: int, cdb: int) -> None:
    """Note that the blocks of a WRITE are mapped, on a thin unit in memory."""
    lun = lun_at(unit)[0]
    length = block_count(cdb) * lun["block_size"]
    if lun["allocation"] == 0 or length == 0:
        return
    size = lun["granularity"]
    start = first_block(cdb) * lun["block_size"]
    # The unit may have become smaller since the command was judged.
    end = min(start + length, lun["block_count"] * lun["block_size"])
    for piece in range(start // size, (end + size - 1) // size):
        store_8(lun["allocation"] + piece, 1)


@nopython
def direction_of(cdb: int) -> int:
    """READ, WRITE or NOT_BLOCK_IO for the CDB at this address."""
    operation = load_8(cdb)
    group = operation & 0xE0
    if group not in (_GROUP_6, _GROUP_10, _GROUP_16, _GROUP_12):
        return NOT_BLOCK_IO
    if operation & 0x1F == _READ:
        return READ
    return WRITE if operation & 0x1F == _WRITE else NOT_BLOCK_IO


@nopython
def first_block(cdb: int) -> int:
    """The logical block address of a READ or WRITE; negative when it is 2^63 or more."""
    group = load_8(cdb) & 0xE0
    if group == _GROUP_6:
        return load_32_be(cdb) & 0x1FFFFF
    return load_64_be(cdb + 2) if group == _GROUP_16 else load_32_be(cdb + 2)


@nopython
def block_count(cdb: int) -> int:
    """The transfer length of a READ or WRITE in blocks; in six bytes 0 means 256."""
    group = load_8(cdb) & 0xE0
    if group == _GROUP_6:
        length = load_8(cdb + 4)
        return 256 if length == 0 else length
    if group == _GROUP_10:
        return load_16_be(cdb + 7)
    return load_32_be(cdb + 10) if group == _GROUP_16 else load_32_be(cdb + 6)


@nopython
def count(unit: int, direction: int, length: int) -> None:
    """Count a READ or WRITE."""
    lun = lun_at(unit)[0]
    if direction == READ:
        lun["reads"] += 1
        lun["read_bytes"] += length
    else:
        lun["writes"] += 1
        lun["written_bytes"] += length


@nopython
def is_durable(cdb: int) -> bool:
    """Whether a READ or WRITE asks for the medium itself: its FUA bit (SBC-3 §5.8)."""
    return load_8(cdb) & 0xE0 != _GROUP_6 and load_8(cdb + 1) & _FUA != 0


@nopython
def judge(unit: int, cdb: int) -> int:
    """0 if the READ or WRITE can be done, else the sense to refuse it with: key << 16 | code."""
    lun = lun_at(unit)[0]
    first, count = first_block(cdb), block_count(cdb)
    if load_8(cdb) & 0xE0 != _GROUP_6 and load_8(cdb + 1) & _PROTECT:
        return INVALID_FIELD_IN_CDB
    # In this order nothing overflows, whatever the CDB says.
    if first < 0 or first > lun["block_count"] or count > lun["block_count"] - first:
        return LBA_OUT_OF_RANGE
    if lun["read_only"] and direction_of(cdb) == WRITE:
        return WRITE_PROTECTED
    return 0


@dataclass(frozen=True, slots=True)
class Unit:
    """A RAM-backed logical unit, for `write_lun`. `memory` is the address of block 0."""

    memory: int
    block_size: int
    block_count: int
    read_only: bool = False
    allocation: int = 0
    granularity: int = 1
    storage: int = 0


def write_lun(address: int, unit: Unit | None, state: int = 0) -> None:
    """Fill in the table's entry at `address`; None empties it. `state` 0 is the normal one."""
    lun = lun_at(address)[0]
    lun["state"] = 1
    lun["memory"] = unit.memory if unit else 0
    lun["block_size"] = unit.block_size if unit else 0
    lun["block_count"] = unit.block_count if unit else 0
    lun["read_only"] = unit.read_only if unit else 0
    lun["allocation"] = unit.allocation if unit else 0
    lun["granularity"] = unit.granularity if unit else 1
    lun["storage"] = unit.storage if unit else 0
    lun["state"] = state
