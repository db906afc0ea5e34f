"""The doctor's only words to libc: through ctypes, so that looking loads no compiler."""

import ctypes
import errno
from typing import Final

SYS_IO_URING_SETUP: Final = 425  # The same number on every architecture.


def io_uring_errno() -> int:
    """The errno that a deliberately empty io_uring_setup gets.

    An allowed call answers EFAULT or EINVAL and makes no ring, a seccomp filter (Docker's default)
    EPERM, an old kernel ENOSYS.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(SYS_IO_URING_SETUP), ctypes.c_uint(0), ctypes.c_void_p())
    return ctypes.get_errno() if result < 0 else errno.EINVAL
