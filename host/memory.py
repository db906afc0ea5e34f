"""Memory the engine may touch for this host: arenas of shared memory, buffers out of them.

An arena is one region. Buffers come in powers of two and go back to their size's free list, so
taking one is cheap and nothing is ever searched. A buffer is a NumPy array over the shared pages:
no copy lies between it and the engine.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from host.records import MAPPING, MAPPINGS_MAX
from shm.segment import Segment, create, round_up
from shm.view import address_of

ARENA_SIZE: Final = 4 << 20
BUFFER_MIN: Final = 64
Register = Callable[[Segment], int]


@dataclass(slots=True, eq=False)
class Buffer:
    """Shared memory of one host. `array` is its uint8 window; `free` gives it back once."""

    array: NDArray[Any]
    _owner: "Arenas | None" = field(repr=False)

    @property
    def address(self) -> int:
        """Where it lies in this process."""
        return address_of(self.array)

    def __len__(self) -> int:
        return len(self.array)

    def lend(self) -> NDArray[Any]:
        """Its array, for a post. Raises ValueError once it was freed."""
        if self._owner is None:
            raise ValueError("this buffer was freed: it may be somebody else's now")
        return self.array

    @property
    def view(self) -> memoryview:
        """The bytes as a writable memoryview."""
        return self.array.data

    def free(self) -> None:
        """Give it back. Raises ValueError the second time. Nothing may be outstanding on it.

        After its engine handle was closed there is nobody to give it back to, and nothing is done.
        """
        if self._owner is None:
            raise ValueError("this buffer was freed already")
        owner, self._owner = self._owner, None
        owner.take_back(self)

    def __enter__(self) -> "Buffer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._owner is not None:
            self.free()


class Arenas:
    """All arenas of one engine handle, and the table by which compiled code names their memory."""

    def __init__(self, register: Register, arena_size: int = ARENA_SIZE) -> None:
        self._lock = threading.Lock()  # Each thread has its channel, all have the same memory.
        self._register = register
        self._arena_size = arena_size
        self._segments: list[Segment] = []
        self._free: dict[int, list[NDArray[Any]]] = {}
        self._rest: NDArray[Any] = np.empty(0, np.uint8)
        self.mappings: NDArray[Any] = np.zeros(MAPPINGS_MAX, MAPPING)
        self.mapping_count = 0
        self.on_change: list[Callable[[], None]] = []
        # Called with address and size of a buffer that is about to be somebody else's.
        self.on_free: list[Callable[[int, int], None]] = []

    def alloc(self, size: int) -> Buffer:
        """A buffer of `size` bytes, its contents undefined.

        Raises ValueError for a size that is not positive, SegmentError when /dev/shm is full.
        """
        if size <= 0:
            raise ValueError(f"a buffer of {size} bytes holds nothing")
        rounded = max(BUFFER_MIN, 1 << (size - 1).bit_length())
        with self._lock:
            free = self._free.setdefault(rounded, [])
            whole = free.pop() if free else self._carve(rounded)
        return Buffer(whole[:size], self)

    def take_back(self, buffer: Buffer) -> None:
        """Put a freed buffer's memory on the list of its size."""
        size = max(BUFFER_MIN, 1 << (len(buffer.array) - 1).bit_length())
        address = buffer.address
        for forget in list(self.on_free):
            forget(address, size)
        with self._lock:
            for base in self._segments:
                start = address - base.address
                if 0 <= start < base.size:
                    self._free.setdefault(size, []).append(base.array[start : start + size])

    def _carve(self, size: int) -> NDArray[Any]:
        if size > self._arena_size:
            return self._add_segment(size)[:size]
        if len(self._rest) < size:
            self._rest = self._add_segment(self._arena_size)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def _add_segment(self, size: int) -> NDArray[Any]:
        if self.mapping_count == MAPPINGS_MAX:
            raise MemoryError(
                f"{MAPPINGS_MAX} regions are in use: allocate fewer, larger buffers, or pass "
                "arena_size to connect()"
            )
        segment = create(round_up(size))
        try:
            region = self._register(segment)
        except BaseException:
            segment.close()
            raise
        self._segments.append(segment)
        mapping = self.mappings[self.mapping_count]
        mapping["address"], mapping["size"] = segment.address, segment.size
        mapping["region"], mapping["offset"] = region, 0
        self.mapping_count += 1
        for changed in self.on_change:
            changed()
        return segment.array

    def register_again(self) -> None:
        """Name all memory to another engine. Nothing changes unless all of it is accepted."""
        with self._lock:
            regions = [self._register(segment) for segment in self._segments]
            self.mappings["region"][: self.mapping_count] = regions

    def close(self) -> None:
        """Unmap everything. Arrays that still exist keep their own pages until they go."""
        self._free.clear()
        self._rest = np.empty(0, np.uint8)
        for segment in self._segments:
            segment.close()
        self._segments.clear()
        self.mapping_count = 0
