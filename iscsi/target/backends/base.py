"""What every backend can do. All offsets and lengths are bytes; a range outside the backend is the
caller's mistake (ValueError), what fails on the medium is an OSError that keeps its errno.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from iscsi.target.backends.medium import Medium

# Anything with the buffer protocol, one byte per item; Python 3.11 has no name for it.
Bytes = Any


@dataclass(frozen=True, slots=True)
class Usage:
    """What a thin backend takes, and what is left for its unmapped pieces, in bytes. `shared`:
    others may use up what is left. Both are estimates where a file system keeps the books.
    """

    used: int
    available: int
    shared: bool = False


class Backend(Protocol):
    """Where a logical unit's blocks lie.

    OSError of `read` and `write`: EIO for a medium that fails, ENOSPC where a thin medium is full,
    EROFS for one that was opened read-only. A failed `write` may have written a part.
    """

    @property
    def size(self) -> int:
        """Bytes it holds."""

    @property
    def memory(self) -> int:
        """Address of byte 0 for compiled code, 0 if its bytes do not lie in the engine's memory."""

    @property
    def medium(self) -> Medium | None:
        """What compiled code needs to serve READ and WRITE, if its bytes do not lie in memory."""

    @property
    def allocation(self) -> int:
        """Address of one byte per `granularity` bytes, not 0 where mapped; 0 if there is none.

        Whoever writes to `memory` past this object marks what it writes.
        """

    @property
    def granularity(self) -> int:
        """The smallest aligned piece `discard` really gives back, in bytes."""

    @property
    def is_thin(self) -> bool:
        """Whether unwritten and discarded pieces take no room, and `extents` tells them."""

    @property
    def is_read_only(self) -> bool:
        """Whether it cannot be written."""

    @property
    def write_cache(self) -> bool:
        """Whether an acknowledged write may be lost with the power before the next `flush`."""

    @property
    def write_cache_changeable(self) -> bool:
        """Whether `set_write_cache` works."""

    def set_write_cache(self, enabled: bool) -> None:
        """Switch the write cache; off makes what was written durable first. OSError."""

    def read(self, offset: int, length: int) -> memoryview | bytes:
        """`length` bytes. They may be the medium itself: use them before the next write."""

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill `into`."""

    def write(self, offset: int, data: Bytes, *, durable: bool = False) -> None:
        """Write all of `data`; `durable`: it reaches the medium before this returns (FUA)."""

    def flush(self) -> None:
        """Everything written before reaches the medium before this returns."""

    def discard(self, offset: int, length: int) -> None:
        """Forget a range: zeros afterwards. A thin backend gives its whole pieces back."""

    def zero(self, offset: int, length: int) -> None:
        """Fill a range with zeros; it keeps its room, though `extents` may call it unmapped."""

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """The range as pieces `(length, mapped)`, in order; neighbours differ."""

    def usage(self) -> Usage | None:
        """How much room it takes; None where it is not thin, or nobody can tell. OSError."""

    def resize(self, size: int) -> None:
        """Grow with zeros, or cut off. OSError: ENOSPC, or EOPNOTSUPP where it has one size."""

    def close(self) -> None:
        """Give it back; nothing may be under way. Idempotent."""


def check_range(offset: int, length: int, size: int) -> None:
    """ValueError for a range that is not within `size` bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"{length} bytes at {offset} are not within {size}")


def merged(pieces: Iterator[tuple[int, bool]]) -> Iterator[tuple[int, bool]]:
    """The same pieces with equal neighbours made one and empty ones left out."""
    length, mapped = 0, False
    for more, is_mapped in pieces:
        if is_mapped is not mapped and length:
            yield length, mapped
            length = 0
        if more:
            length, mapped = length + more, is_mapped
    if length:
        yield length, mapped
