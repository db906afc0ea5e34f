"""A backend in the engine's memory: compiled code reads and writes it without this object. A thin
one keeps a byte for each piece, which compiled code sets when it writes, so that what GET LBA
STATUS says is true; its room is not given back to the machine, only its contents are.
"""

import errno
from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np

from host.memory import Buffer
from iscsi.target.backends.base import Bytes, Usage, check_range, merged
from shm.view import address_of

GRANULARITY: Final = 4096
_SEARCHED: Final = 1 << 16  # pieces looked at in one step of `extents`


class Memory(Protocol):
    """What buffers come from: an engine handle."""

    def alloc(self, size: int) -> Buffer:
        """A buffer the engine may touch."""


class RamBackend:
    """Bytes in `buffer`, of which `size` (default: all) are used and the rest is room to grow.

    `granularity`: bytes of one piece of a thin backend, a power of two. A thin one starts as zeros.
    """

    medium: Final = None
    is_read_only: Final = False
    # Nothing here outlives the process, so there is nothing that a flush could make safer.
    write_cache: Final = False
    write_cache_changeable: Final = False

    def __init__(
        self,
        buffer: Buffer,
        *,
        size: int | None = None,
        thin: bool = False,
        granularity: int = GRANULARITY,
        owns: bool = False,
    ) -> None:
        self.size = len(buffer) if size is None else size
        if not 0 < self.size <= len(buffer):
            raise ValueError(f"{self.size} bytes do not lie in a buffer of {len(buffer)}")
        if granularity <= 0 or granularity & (granularity - 1):
            raise ValueError(f"a granularity of {granularity} bytes is no power of two")
        self.is_thin, self.granularity = thin, granularity
        self._buffer, self._owns = buffer, owns
        self._bytes = buffer.array
        self._map = np.zeros(-(-len(buffer) // granularity) if thin else 0, np.uint8)
        self._map_buffer: Buffer | None = None
        if thin:
            self._bytes[:] = 0

    @classmethod
    def create(
        cls,
        memory: Memory,
        size: int,
        *,
        capacity: int | None = None,
        thin: bool = False,
        granularity: int = GRANULARITY,
    ) -> "RamBackend":
        """A backend of zeros in memory of its own, which `close` gives back.

        It can grow up to `capacity` bytes. MemoryError, SegmentError when there is no room.
        """
        buffer = memory.alloc(max(size, capacity or 0))
        buffer.array[:] = 0
        return cls(buffer, size=size, thin=thin, granularity=granularity, owns=True)

    @property
    def memory(self) -> int:
        """Address of byte 0."""
        return self._buffer.address

    @property
    def allocation(self) -> int:
        """Address of the map of a thin backend, else 0."""
        return address_of(self._map) if self.is_thin else 0

    def share_map(self, memory: Memory) -> None:
        """Move the map of a thin backend to where an engine may touch it, once. Whoever knows where
        it lay has to look again; nothing may write meanwhile.
        """
        if not self.is_thin or self._map_buffer is not None:
            return
        self._map_buffer = memory.alloc(len(self._map))
        self._map_buffer.array[:] = self._map
        self._map = self._map_buffer.array

    def set_write_cache(self, enabled: bool) -> None:
        """OSError EOPNOTSUPP, unless it asks for what is: there is no cache."""
        if enabled:
            raise OSError(errno.EOPNOTSUPP, "memory has no write cache")

    def read(self, offset: int, length: int) -> memoryview:
        """The bytes themselves, not a copy."""
        check_range(offset, length, self.size)
        return self._bytes[offset : offset + length].data.toreadonly()

    def read_into(self, offset: int, into: memoryview) -> None:
        """Copy bytes out."""
        into[:] = self.read(offset, into.nbytes)

    def write(self, offset: int, data: Bytes, *, durable: bool = False) -> None:
        """Copy bytes in."""
        new = np.frombuffer(data, np.uint8)
        check_range(offset, new.size, self.size)
        self._bytes[offset : offset + new.size] = new
        self._mark(offset, new.size)

    def _mark(self, offset: int, length: int) -> None:
        if self.is_thin and length:
            last = (offset + length - 1) // self.granularity
            self._map[offset // self.granularity : last + 1] = 1

    def flush(self) -> None:
        """Nothing is on the way."""

    def discard(self, offset: int, length: int) -> None:
        """Zero a range; the pieces that lie in it whole are unmapped."""
        check_range(offset, length, self.size)
        self._bytes[offset : offset + length] = 0
        if self.is_thin:
            end = offset + length
            # The last piece is whole where the backend ends.
            last = len(self._map) if end == self.size else end // self.granularity
            self._map[-(-offset // self.granularity) : last] = 0

    def zero(self, offset: int, length: int) -> None:
        """Zero a range; it is mapped."""
        check_range(offset, length, self.size)
        self._bytes[offset : offset + length] = 0
        self._mark(offset, length)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Pieces as the map has them; a backend that is not thin is mapped everywhere."""
        check_range(offset, length, self.size)
        if not self.is_thin:
            return merged(iter([(length, True)]))
        return merged(self._pieces(offset, offset + length))

    def _pieces(self, offset: int, end: int) -> Iterator[tuple[int, bool]]:
        while offset < end:
            first = offset // self.granularity
            found = self._map[first : min(first + _SEARCHED, -(-end // self.granularity))]
            changes = np.flatnonzero(found != found[0])
            count = int(changes[0]) if changes.size else found.size
            stop = min((first + count) * self.granularity, end)
            yield stop - offset, bool(found[0])
            offset = stop

    def usage(self) -> Usage | None:
        """What its map says; the memory for the rest is this backend's own already."""
        if not self.is_thin:
            return None
        pieces = -(-self.size // self.granularity)
        mapped = int(np.count_nonzero(self._map[:pieces])) * self.granularity
        used = min(mapped, self.size)
        return Usage(used, self.size - used)

    def resize(self, size: int) -> None:
        """Cut off, or grow with zeros into the room the buffer has; OSError ENOSPC beyond it."""
        if not 0 < size <= len(self._buffer):
            room = len(self._buffer)
            what = f"this memory holds at most {room} bytes: the max_size that it was made with"
            raise OSError(errno.ENOSPC, what)
        low, high = sorted((size, self.size))
        self._bytes[low:high] = 0
        self._map[-(-low // self.granularity) : -(-high // self.granularity)] = 0
        self.size = size

    def close(self) -> None:
        """Give the memory back if it is this backend's own."""
        if self._map_buffer is not None:
            self._map = self._map.copy()
            self._map_buffer.free()
            self._map_buffer = None
        if self._owns:
            self._owns = False
            self._buffer.free()
