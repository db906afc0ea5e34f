"""The memory of the data buffers that all connections of a server share (`iscsi.wire.buffers`): one
allocation of the engine, each buffer on pages of its own, so that files can be read and written
with it past the page cache.
"""

from typing import Any, Final

import numpy as np

from iscsi.target.units import MAX_TRANSFER
from iscsi.wire.buffers import BUFFERS, CLASS, SIZES_MAX
from shm.layout import offset
from shm.view import address_of

PAGE: Final = 4096
# Together 32 MiB: many small commands, some of the sizes that file systems and copying tools use,
# few of the largest.
DEFAULT_SIZES: Final = ((16 << 10, 64), (256 << 10, 28), (1 << 20, 8), (MAX_TRANSFER, 4))


class DataBuffers:
    """`sizes`: bytes, a multiple of a page, and count of each kind, ascending; () for none.

    Raises ValueError, and what `engine.alloc` raises when there is no memory.
    """

    def __init__(self, engine: Any, sizes: tuple[tuple[int, int], ...] = DEFAULT_SIZES) -> None:
        if len(sizes) > SIZES_MAX or list(sizes) != sorted(sizes):
            raise ValueError(f"data buffers come in up to {SIZES_MAX} sizes, ascending")
        if any(size <= 0 or size % PAGE or count <= 0 for size, count in sizes):
            raise ValueError(f"a data buffer is a multiple of {PAGE} bytes, and there is one")
        self._record = np.zeros(1, BUFFERS)
        self._arrays: list[np.ndarray[Any, Any]] = []
        self.total = sum(size * count for size, count in sizes)
        self._memory = _aligned(engine, self.total) if sizes else None
        start = 0 if self._memory is None else -(-self._memory.address // PAGE) * PAGE
        for kind, (size, count) in enumerate(sizes):
            self._build(kind, start, size, count)
            start += size * count
        self._record[0]["class_count"] = len(sizes)
        self._record[0]["largest"] = sizes[-1][0] if sizes else 0

    def _build(self, kind: int, start: int, size: int, count: int) -> None:
        its = self._record[0]["classes"][kind]
        its["base"], its["size"] = start, size
        free = np.arange(count - 1, -1, -1, dtype=np.int32)
        taken = np.zeros(count, np.uint8)
        self._arrays += [free, taken]
        pool = its["pool"]
        pool["free"], pool["taken"] = address_of(free), address_of(taken)
        pool["count"] = pool["free_count"] = pool["low_water"] = count

    @property
    def address(self) -> int:
        """The BUFFERS record."""
        return address_of(self._record)

    @property
    def largest(self) -> int:
        """Bytes of the largest one, 0 if there is none."""
        return int(self._record[0]["largest"])

    @property
    def quota(self) -> int:
        """Bytes that one connection may hold: half, so that a stalled one does not stop others."""
        return self.total // 2

    @property
    def taken(self) -> int:
        """How many are in use."""
        return sum(
            int(its["pool"]["count"] - its["pool"]["free_count"])
            for its in self._record[0]["classes"]
        )

    @property
    def refused(self) -> int:
        """How often none was free."""
        return int(self._record[0]["refused"])

    def free(self) -> None:
        """Give the memory back; none is in use. Idempotent."""
        if self._memory is not None:
            self._memory.free()
            self._memory = None


def _aligned(engine: Any, total: int) -> Any:
    """Memory with `total` bytes on page boundaries; a large allocation begins on one anyway."""
    memory = engine.alloc(total)
    if memory.address % PAGE:
        memory.free()
        memory = engine.alloc(total + PAGE)
    return memory


assert offset(CLASS, "pool") == 0
