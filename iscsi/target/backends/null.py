"""A backend that holds nothing: reads are zeros, writes vanish. For measuring what lies above."""

from collections.abc import Iterator
from typing import Final

from iscsi.target.backends.base import Bytes, Usage, check_range, merged
from iscsi.target.backends.medium import NULL, Medium


class NullBackend:
    """`size` bytes of nothing."""

    memory: Final = 0
    allocation: Final = 0
    granularity: Final = 4096
    is_thin: Final = False
    is_read_only: Final = False
    write_cache: Final = False
    write_cache_changeable: Final = False

    def __init__(self, size: int) -> None:
        self.size = 0
        self.medium = Medium(NULL, size)
        self.resize(size)

    def set_write_cache(self, enabled: bool) -> None:
        """Nothing to switch."""

    def read(self, offset: int, length: int) -> bytes:
        """Zeros."""
        check_range(offset, length, self.size)
        return bytes(length)

    def read_into(self, offset: int, into: memoryview) -> None:
        """Zeros."""
        into[:] = self.read(offset, into.nbytes)

    def write(self, offset: int, data: Bytes, *, durable: bool = False) -> None:
        """Nothing is kept."""
        check_range(offset, memoryview(data).nbytes, self.size)

    def flush(self) -> None:
        """Nothing is on the way."""

    def discard(self, offset: int, length: int) -> None:
        """Nothing is there."""
        check_range(offset, length, self.size)

    def zero(self, offset: int, length: int) -> None:
        """It is zeros already."""
        check_range(offset, length, self.size)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """All of it counts as mapped: nothing can be told apart."""
        check_range(offset, length, self.size)
        return merged(iter([(length, True)]))

    def usage(self) -> Usage | None:
        """Nobody can tell."""
        return None

    def resize(self, size: int) -> None:
        """Any size."""
        if size <= 0:
            raise ValueError(f"a backend of {size} bytes holds nothing")
        self.size = size
        self.medium.resize(size)

    def close(self) -> None:
        """Nothing to give back."""
