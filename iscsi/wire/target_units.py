"""The units that an engine serves itself (MOVER_UNIT, MOVER_FENCE): LUN records of its own over a
client's memory. A unit's memory and size change only while no command uses it.
"""

import errno
from typing import Final

from iscsi.wire.lun import LUN, LUN_SIZE, WRITE, lun_at
from iscsi.wire.target_posts import POST_UNIT
from iscsi.wire.target_task import TASK_SIZE, target_at, task_at
from shm.atomics import store_release
from shm.jit import nopython
from shm.layout import offset

EBUSY: Final = errno.EBUSY
EINVAL: Final = errno.EINVAL
BLOCK_SIZE_MAX: Final = 1 << 16
_STATE: Final = offset(LUN, "state")


@nopython
def unit_at(luns: int, lun_count: int, lun: int) -> int:
    """Address of the LUN record with this number, or 0."""
    return luns + LUN_SIZE * lun if 0 <= lun < lun_count else 0


@nopython
def set_unit(
    luns: int,
    lun_count: int,
    lun: int,
    memory: int,
    length: int,
    block_size: int,
    block_count: int,
    read_only: int,
    state: int,
    allocation: int,
    allocation_length: int,
    granularity: int,
) -> int:
    """Say what a unit is. `state` 0 opens it; `memory` 0 removes it. 0, -EINVAL, or -EBUSY:
    commands use what it was until now, so close it as it is and wait until it `is_idle`.

    `memory` and `allocation` are checked addresses of `length` and `allocation_length` bytes;
    whether the blocks and their map fit is judged here.
    """
    place = unit_at(luns, lun_count, lun)
    if place == 0 or not _fits(memory, length, block_size, block_count):
        return -EINVAL
    if allocation and not _maps(allocation_length, block_size * block_count, granularity):
        return -EINVAL
    mine = lun_at(place)[0]
    is_same = mine["memory"] == memory and mine["block_size"] == block_size
    is_same = is_same and mine["block_count"] == block_count and mine["allocation"] == allocation
    is_same = is_same and (allocation == 0 or mine["granularity"] == granularity)
    if mine["under_way"] and not is_same:
        return -EBUSY
    store_release(place + _STATE, 1)
    mine["memory"], mine["block_size"], mine["block_count"] = memory, block_size, block_count
    mine["read_only"] = 1 if read_only else 0
    mine["allocation"], mine["granularity"] = allocation, granularity if allocation else 1
    mine["storage"] = 0
    store_release(place + _STATE, state)
    return 0


@nopython
def _fits(memory: int, length: int, block_size: int, block_count: int) -> bool:
    if memory == 0:
        return bool(block_count == 0)
    if not 0 < block_size <= BLOCK_SIZE_MAX or memory < 0:
        return False
    return bool(0 <= block_count <= length // block_size)


@nopython
def _maps(allocation_length: int, size: int, granularity: int) -> bool:
    """Whether a map of a byte for each `granularity` bytes covers a unit of `size` bytes."""
    if granularity <= 0:
        return False
    partial = 1 if size % granularity else 0
    return bool(size // granularity + partial <= allocation_length)


@nopython
def writes_blocks(conn: int, unit: int, first: int, count: int) -> bool:
    """Whether a WRITE of this connection that the engine serves by itself uses some of `count`
    blocks of a unit from `first` on.
    """
    mine, lun = target_at(conn)[0], lun_at(unit)[0]
    start = lun["memory"] + first * lun["block_size"]
    end = start + count * lun["block_size"]
    for index in range(mine["task_count"]):
        task = task_at(int(mine["tasks"] + TASK_SIZE * index))[0]
        if task["post"] != POST_UNIT or task["unit"] != unit or task["direction"] != WRITE:
            continue
        place = task["data_address"]
        if place < end and start < place + task["transfer"]:
            return True
    return False


@nopython
def is_idle(luns: int, lun_count: int, lun: int) -> bool:
    """Whether no command uses a unit's memory; one that does not exist is idle."""
    place = unit_at(luns, lun_count, lun)
    return place == 0 or bool(lun_at(place)[0]["under_way"] == 0)
