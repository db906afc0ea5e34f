"""Regions: the memory a client has lent the engine, and the check of every reference to it.

A client names memory as `(region_id, offset, length)`. The id carries a generation; offset and
length come from the private copy of the WQE and are compared without any sum that could wrap.
"""

import errno
from typing import Final

from ppe.cycle.records import NONE, REGION_SIZE, engine_at, region_at
from shm.jit import nopython
from shm.operations import INDEX_BITS, INDEX_MASK, next_generation

EINVAL: Final = errno.EINVAL
EFAULT: Final = errno.EFAULT


@nopython
def region_of(engine: int, index: int) -> int:
    """Address of a region row."""
    return int(engine_at(engine)[0]["regions"] + index * REGION_SIZE)


@nopython
def resolve(engine: int, client: int, region_id: int, offset: int, length: int) -> int:
    """Address of `length` bytes of a client's region, or 0 if any part of the name is wrong."""
    index = region_id & INDEX_MASK
    if index >= engine_at(engine)[0]["region_count"]:
        return 0
    region = region_at(region_of(engine, index))[0]
    if region["address"] == 0 or region["client"] != client:
        return 0
    if region["generation"] != region_id >> INDEX_BITS:
        return 0
    size = region["size"]
    if offset < 0 or length <= 0 or offset > size or length > size - offset:
        return 0
    return int(region["address"] + offset)


@nopython
def add_region(engine: int, client: int, address: int, size: int) -> int:
    """Id of a new region, or -1 when the table is full."""
    mine = engine_at(engine)[0]
    index = mine["free_region"]
    if index == NONE:
        return NONE
    region = region_at(region_of(engine, index))[0]
    mine["free_region"] = region["next"]
    region["address"] = address
    region["size"] = size
    region["client"] = client
    return int((region["generation"] << INDEX_BITS) | index)


@nopython
def remove_region(engine: int, region_id: int) -> bool:
    """Forget a region; its id never names anything again. False if there is no such region."""
    mine = engine_at(engine)[0]
    index = region_id & INDEX_MASK
    if index >= mine["region_count"]:
        return False
    region = region_at(region_of(engine, index))[0]
    if region["address"] == 0 or region["generation"] != region_id >> INDEX_BITS:
        return False
    region["address"] = 0
    region["client"] = 0
    region["generation"] = next_generation(region["generation"])
    region["next"] = mine["free_region"]
    mine["free_region"] = index
    return True
