"""How long a tick of the time-stamp counter is.

Durations inside compiled loops are taken in cycles, because the counter costs a third of
`clock_gettime`; points in time that processes compare are CLOCK_MONOTONIC nanoseconds.
"""

import time
from functools import cache

from shm.atomics import cycles
from shm.jit import entry
from shm.libc import monotonic_ns

CALIBRATION_NS = 20_000_000


@entry("int64()")
def read_cycles() -> int:
    """The time-stamp counter now, from Python."""
    return cycles()


@entry("UniTuple(int64,2)()")
def _sample() -> tuple[int, int]:
    best, at, ticks = 1 << 62, 0, 0
    for _ in range(16):  # The tightest bracket of clock and counter out of several.
        before = cycles()
        now = monotonic_ns()
        after = cycles()
        if after - before < best:
            best, at, ticks = after - before, now, (after + before) // 2
    return at, ticks


@cache
def cycles_per_ns() -> float:
    """The counter's rate against CLOCK_MONOTONIC, measured once per process over 20 ms."""
    first_ns, first_cycles = _sample()
    time.sleep(CALIBRATION_NS / 1e9)
    last_ns, last_cycles = _sample()
    return (last_cycles - first_cycles) / (last_ns - first_ns)
