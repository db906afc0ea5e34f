"""The libc calls the benchmarks add to those of `shm.libc`: reading /proc and giving the core away.

Every call returns a result or `-errno`, from compiled code and from Python.
"""

from typing import Any

from numba import types

from shm.jit import nopython
from shm.libc import external

_pread: Any = external("pread", types.int64, types.int32, types.intp, types.int64, types.int64)
_sched_yield: Any = external("sched_yield", types.int32)


@nopython
def read_at_start(descriptor: int, out: int, size: int) -> int:
    """Read up to `size` bytes from a file's beginning into `out`. How many, or -1."""
    return _pread(descriptor, out, size, 0)  # type: ignore[no-any-return]


@nopython
def yield_core() -> None:
    """Let another thread of this core run."""
    _sched_yield()
