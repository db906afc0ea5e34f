"""The libc calls the benchmarks add to those of `shm.libc`: reading /proc, giving the core away,
hardware counters.

Every call returns a result or `-errno`, from compiled code and from Python.
"""

import ctypes
import errno
import platform
from typing import Any, Final

from numba import types

from shm.jit import nopython
from shm.libc import external

_pread: Any = external("pread", types.int64, types.int32, types.intp, types.int64, types.int64)
_sched_yield: Any = external("sched_yield", types.int32)
PERF_EVENT_OPEN: Final = {"x86_64": 298, "aarch64": 241}  # the system call's number


@nopython
def read_at_start(descriptor: int, out: int, size: int) -> int:
    """Read up to `size` bytes from a file's beginning into `out`. How many, or -1."""
    return _pread(descriptor, out, size, 0)  # type: ignore[no-any-return]


@nopython
def yield_core() -> None:
    """Let another thread of this core run."""
    _sched_yield()


def perf_event_open(attributes: bytes, pid: int, cpu: int, group: int, flags: int) -> int:
    """The system call, which has no wrapper in libc: a descriptor, or `-errno`."""
    number = PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        return -errno.ENOSYS
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(
        ctypes.c_long(number),
        ctypes.c_char_p(attributes),
        ctypes.c_int(pid),
        ctypes.c_int(cpu),
        ctypes.c_int(group),
        ctypes.c_ulong(flags),
    )
    return int(found) if found >= 0 else -ctypes.get_errno()
