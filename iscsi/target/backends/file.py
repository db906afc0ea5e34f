"""A backend in a file or a block device, by pread and pwrite and never by mmap: a page fault would
stop whoever touches the page for as long as the medium takes, and an I/O error there is a signal
instead of an errno. What `write_cache` says is what the file was opened for.
"""

import errno
import fcntl
import mmap
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from iscsi.target.backends.base import Bytes, Usage, check_range, merged
from iscsi.target.backends.libc import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate
from iscsi.target.backends.medium import FILE, Medium

# Names as QEMU uses them: whether the page cache is used, and whether each write is durable.
CACHE_MODES: Final = ("writeback", "writethrough", "direct", "directsync")
ALIGNMENT: Final = 4096  # of O_DIRECT; every block device of today takes it
_BOUNCE: Final = 1 << 20
_COUNTED: Final = 512  # bytes of what st_blocks counts, whatever the file system
_ZEROS: Final = bytes(_BOUNCE)
# What a file system says that does not know a mode of fallocate, or a device.
_CANNOT: Final = (errno.EOPNOTSUPP, errno.ENODEV, errno.ENOSYS, errno.EINVAL)


class FileBackend:
    """The file at `path`, locked against a second server.

    `size`: create it with that many bytes if it is missing (a `thin` one takes no room yet), or
    require them. `cache`: one of CACHE_MODES. A thin file gives discarded ranges back.
    Raises OSError that names the path: EAGAIN when another server has it.
    """

    memory: Final = 0
    allocation: Final = 0

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: int | None = None,
        cache: str = "writeback",
        thin: bool = False,
        read_only: bool = False,
    ) -> None:
        if cache not in CACHE_MODES:
            raise ValueError(f"cache {cache!r} is none of {', '.join(CACHE_MODES)}")
        self.path = Path(path)
        self.is_thin, self.is_read_only = thin, read_only
        self.write_cache = cache in ("writeback", "direct")
        self._failed: OSError | None = None
        self._bounces = threading.local()
        self._buffered = self._direct = -1
        self.medium = Medium(FILE, 0)
        try:
            self._open(size, direct=cache.startswith("direct"))
        except OSError as error:
            self.close()
            raise type(error)(error.errno, error.strerror, str(self.path)) from error
        except BaseException:
            self.close()
            raise
        self.medium = Medium(FILE, self.size, self._buffered, self._direct)
        self.medium.set_write_through(not self.write_cache)

    def _open(self, size: int | None, *, direct: bool) -> None:
        flags = os.O_RDONLY if self.is_read_only else os.O_RDWR
        if size is not None and not self.is_read_only:
            flags |= os.O_CREAT
        self._buffered = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        self._lock()
        self._adopt(size)
        if direct:
            again = flags & ~os.O_CREAT | os.O_CLOEXEC | os.O_DIRECT
            self._direct = os.open(f"/proc/self/fd/{self._buffered}", again)

    def _lock(self) -> None:
        kind = fcntl.LOCK_SH if self.is_read_only else fcntl.LOCK_EX
        try:
            fcntl.flock(self._buffered, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(errno.EAGAIN, "another unit or another server has it open") from error

    def _adopt(self, size: int | None) -> None:
        about = os.fstat(self._buffered)
        self._is_device = stat.S_ISBLK(about.st_mode)
        if not self._is_device and not stat.S_ISREG(about.st_mode):
            raise OSError(errno.ENODEV, "neither a file nor a block device")
        self.granularity = max(ALIGNMENT, about.st_blksize)
        self.size = os.lseek(self._buffered, 0, os.SEEK_END)
        if self.size == 0 and size and not self._is_device and not self.is_read_only:
            self.resize(size)
        if self.size == 0:
            raise OSError(errno.EINVAL, "it is empty: say which size it shall have")
        if size is not None and size != self.size:
            raise OSError(errno.EINVAL, f"it has {self.size} bytes, not {size}")

    @property
    def write_cache_changeable(self) -> bool:
        """Always, unless nothing is written at all."""
        return not self.is_read_only

    def set_write_cache(self, enabled: bool) -> None:
        """Have writes be durable from now on, after all earlier ones; or leave that to `flush`."""
        if not enabled and self.write_cache:
            self.flush()
        self.write_cache = enabled
        self.medium.set_write_through(not enabled)

    # --- data ------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> memoryview:
        """A copy of the bytes."""
        check_range(offset, length, self.size)
        data = memoryview(bytearray(length))
        self.read_into(offset, data)
        return data.toreadonly()

    def read_into(self, offset: int, into: memoryview) -> None:
        """Read all of `into`; OSError EIO where the file has become shorter."""
        check_range(offset, into.nbytes, self.size)
        if self._is_straight(offset, into.nbytes):
            self._read_direct(offset, into)
            return
        while into:
            count = os.preadv(self._buffered, [into], offset)
            if count == 0:
                raise OSError(errno.EIO, "the file was cut off", str(self.path))
            into, offset = into[count:], offset + count

    def write(self, offset: int, data: Bytes, *, durable: bool = False) -> None:
        """Write all of `data`, durably if asked to, or if there is no write cache."""
        left = memoryview(data).cast("B")
        check_range(offset, left.nbytes, self.size)
        put = self._write_direct if self._is_straight(offset, left.nbytes) else self._write_buffered
        if not durable and self.write_cache:
            put(offset, left, 0)
            return
        try:
            put(offset, left, os.RWF_DSYNC)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # A file system that knows no durable writes, but syncs.
            put(offset, left, 0)
            self.flush()

    def _write_buffered(self, offset: int, data: memoryview, flags: int) -> None:
        while data:
            count = os.pwritev(self._buffered, [data], offset, flags)
            data, offset = data[count:], offset + count

    def _is_straight(self, offset: int, length: int) -> bool:
        """Whether it goes past the page cache.

        The rest of a direct file goes through it: the kernel writes dirty pages before a direct
        read, and drops clean ones after a direct write.
        """
        return self._direct >= 0 and not (offset | length) % ALIGNMENT

    def _bounce(self) -> mmap.mmap:
        """Aligned memory of this thread."""
        if not hasattr(self._bounces, "memory"):
            self._bounces.memory = mmap.mmap(-1, _BOUNCE)
        found: mmap.mmap = self._bounces.memory
        return found

    def _read_direct(self, offset: int, into: memoryview) -> None:
        bounce = memoryview(self._bounce())
        while into:
            piece = bounce[: min(into.nbytes, _BOUNCE)]
            if os.preadv(self._direct, [piece], offset) != piece.nbytes:
                raise OSError(errno.EIO, "a direct read came back short", str(self.path))
            into[: piece.nbytes] = piece
            into, offset = into[piece.nbytes :], offset + piece.nbytes

    def _write_direct(self, offset: int, data: memoryview, flags: int) -> None:
        bounce = memoryview(self._bounce())
        while data:
            piece = bounce[: min(data.nbytes, _BOUNCE)]
            piece[:] = data[: piece.nbytes]
            if os.pwritev(self._direct, [piece], offset, flags) != piece.nbytes:
                raise OSError(errno.EIO, "a direct write came back short", str(self.path))
            data, offset = data[piece.nbytes :], offset + piece.nbytes

    def flush(self) -> None:
        """fdatasync. Once that has failed, every later flush fails.

        The kernel reports a lost page once and forgets it: a later success would say nothing.
        """
        if self._failed is not None:
            raise OSError(errno.EIO, f"an earlier flush failed: {self._failed}")
        try:
            os.fdatasync(self._buffered)
        except OSError as error:
            self._failed = error
            raise

    # --- space -----------------------------------------------------------------------------

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole in a thin file; anything else is filled with zeros."""
        check_range(offset, length, self.size)
        if not self.is_thin or not self._fallocate(PUNCH_HOLE | KEEP_SIZE, offset, length):
            self.zero(offset, length)

    def zero(self, offset: int, length: int) -> None:
        """Fill with zeros, by the file system where it can.

        Some tell such a range as a hole: it has its room, but nothing was written there.
        """
        check_range(offset, length, self.size)
        if self._fallocate(ZERO_RANGE | KEEP_SIZE, offset, length):
            return
        for start in range(offset, offset + length, _BOUNCE):
            self.write(start, memoryview(_ZEROS)[: min(_BOUNCE, offset + length - start)])

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """Whether the file system could."""
        if length == 0:
            return True
        try:
            fallocate(self._buffered, mode, offset, length)
        except OSError as error:
            if error.errno in _CANNOT:
                return False
            raise
        if not self.write_cache:
            self.flush()
        return True

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Where the file has data and where holes; a thick one counts as mapped everywhere."""
        check_range(offset, length, self.size)
        if not self.is_thin or self._is_device:
            return merged(iter([(length, True)]))
        return merged(self._pieces(offset, offset + length))

    def _pieces(self, offset: int, end: int) -> Iterator[tuple[int, bool]]:
        while offset < end:
            try:
                data = min(os.lseek(self._buffered, offset, os.SEEK_DATA), end)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no data up to the end of the file
                    raise
                data = end
            yield data - offset, False
            if data < end:
                hole = min(os.lseek(self._buffered, data, os.SEEK_HOLE), end)
                yield hole - data, True
                data = hole
            offset = data

    def usage(self) -> Usage | None:
        """What the file system counts for the file, and what it has left, for this or for others.

        None for a device, which does not tell.
        """
        if not self.is_thin or self._is_device:
            return None
        about, room = os.fstat(self._buffered), os.fstatvfs(self._buffered)
        used = min(about.st_blocks * _COUNTED, self.size)
        return Usage(used, min(self.size - used, room.f_bavail * room.f_frsize), shared=True)

    def resize(self, size: int) -> None:
        """Grow with zeros (a thick file takes the room at once) or cut off."""
        if self._is_device or size <= 0:
            raise OSError(errno.EOPNOTSUPP, f"it cannot have {size} bytes", str(self.path))
        grown = size - os.fstat(self._buffered).st_size
        if grown > 0 and not self.is_thin and not self._fallocate(0, size - grown, grown):
            os.posix_fallocate(self._buffered, size - grown, grown)
        os.ftruncate(self._buffered, size)
        os.fsync(self._buffered)  # a size that is not on the medium is a size that may be lost
        self.size = size
        self.medium.resize(size)

    def close(self) -> None:
        """Close and so unlock it."""
        for descriptor in (self._direct, self._buffered):
            if descriptor >= 0:
                os.close(descriptor)
        self._direct = self._buffered = -1
