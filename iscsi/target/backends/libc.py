"""The only module of this package that names libc: fallocate(2) with its modes, which Python's `os`
does not have; and, for compiled code, reading, writing and syncing a file.
"""

import ctypes
import errno
import os
from typing import Final

from shm.jit import nopython
from shm.libc import EINTR, stack_words, syscall
from shm.memory import store_64

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_fallocate: Final = _LIBC.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_fallocate.restype = ctypes.c_int

KEEP_SIZE: Final = 1
PUNCH_HOLE: Final = 2
ZERO_RANGE: Final = 16

SYS_FDATASYNC: Final = 75  # x86-64
SYS_PREADV2: Final = 327
SYS_PWRITEV2: Final = 328
DSYNC: Final = int(os.RWF_DSYNC)
NOWAIT: Final = int(os.RWF_NOWAIT)
EIO: Final = errno.EIO

_two_words = stack_words(2)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Change how a file's range is stored. OSError, EOPNOTSUPP where the file system cannot."""
    if _fallocate(descriptor, mode, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@nopython
def read_at(descriptor: int, address: int, length: int, offset: int, flags: int) -> int:
    """Read up to `length` bytes; how many came before something stopped it, or `-errno`.

    A file that ends before is an error of the medium: -EIO.
    """
    return _transfer(SYS_PREADV2, descriptor, address, length, offset, flags)


@nopython
def write_at(descriptor: int, address: int, length: int, offset: int, flags: int) -> int:
    """Write up to `length` bytes; how many went before something stopped it, or `-errno`."""
    return _transfer(SYS_PWRITEV2, descriptor, address, length, offset, flags)


@nopython
def _transfer(
    number: int, descriptor: int, address: int, length: int, offset: int, flags: int
) -> int:
    vector = _two_words()  # a struct iovec
    done = 0
    while done < length:
        store_64(vector, address + done)
        store_64(vector + 8, length - done)
        result = syscall(number, descriptor, vector, 1, offset + done, 0, flags)
        if result == -EINTR:
            continue
        if result <= 0:
            result = -EIO if result == 0 else result
            return done if done > 0 else result
        done += result
    return done


@nopython
def sync(descriptor: int) -> int:
    """fdatasync(2): 0 or `-errno`."""
    return syscall(SYS_FDATASYNC, descriptor, 0, 0, 0, 0, 0)
