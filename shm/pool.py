"""Fixed-size buffers out of one region: take one, give it back, never search.

A stack of free indices in the owner's private memory; one owner. `take` and `give` are for compiled
code; `Pool` is the same for Python.
"""

from typing import Final

import numpy as np

from shm.jit import entry, nopython
from shm.layout import Field, record
from shm.memory import load_8, load_32, store_8, store_32
from shm.view import address_of, opener

POOL: Final = record(
    Field("free", "<i8"),  # address of int32 indices, a stack
    Field("taken", "<i8"),  # address of one byte per buffer, 1 while taken
    Field("count", "<i8"),
    Field("free_count", "<i8"),
    Field("low_water", "<i8"),  # the fewest that were ever free
    size=64,
)
pool_at = opener(POOL)


@nopython
def take(pool: int) -> int:
    """Index of a free buffer, or -1 when all are taken."""
    mine = pool_at(pool)[0]
    if mine["free_count"] == 0:
        return -1
    mine["free_count"] -= 1
    mine["low_water"] = min(mine["low_water"], mine["free_count"])
    index = load_32(mine["free"] + 4 * mine["free_count"])
    store_8(mine["taken"] + index, 1)
    return index


@nopython
def give(pool: int, index: int) -> bool:
    """Return a buffer. False, changing nothing, if `index` is not one that is taken."""
    mine = pool_at(pool)[0]
    if index < 0 or index >= mine["count"] or load_8(mine["taken"] + index) == 0:
        return False
    store_8(mine["taken"] + index, 0)
    store_32(mine["free"] + 4 * mine["free_count"], index)
    mine["free_count"] += 1
    return True


@entry("int64(intp)")
def _take(pool: int) -> int:
    return take(pool)


@entry("boolean(intp, int64)")
def _give(pool: int, index: int) -> bool:
    return give(pool, index)


class Pool:
    """A pool of `count` indices; which memory they stand for is the owner's business."""

    def __init__(self, count: int) -> None:
        if count <= 0:
            raise ValueError(f"a pool of {count} buffers holds none")
        self._free = np.arange(count - 1, -1, -1, dtype=np.int32)
        self._taken = np.zeros(count, np.uint8)
        self._state = np.zeros(1, POOL)
        self._state[0]["free"], self._state[0]["taken"] = (
            address_of(self._free),
            address_of(self._taken),
        )
        for field in ("count", "free_count", "low_water"):
            self._state[0][field] = count

    @property
    def address(self) -> int:
        """The POOL record, for compiled code."""
        return address_of(self._state)

    @property
    def free_count(self) -> int:
        """How many buffers are free."""
        return int(self._state[0]["free_count"])

    def take(self) -> int | None:
        """Index of a free buffer, or None when all are taken."""
        index = _take(self.address)
        return None if index < 0 else index

    def give(self, index: int) -> None:
        """Return a buffer. Raises ValueError for one that is not taken: a double free."""
        if not _give(self.address, index):
            raise ValueError(f"buffer {index} is not taken from this pool")
