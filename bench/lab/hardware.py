"""Counters of the processor, through perf_event_open(2): cycles, instructions, cache misses and
machine clears of given threads.

The one rule: what the machine, its hypervisor or its administrator does not give is said with the
kernel's own reason, and never estimated from something else.
"""

import errno
import os
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from bench.libc import perf_event_open

TYPE_HARDWARE: Final = 0
TYPE_SOFTWARE: Final = 1
TYPE_RAW: Final = 4
ATTRIBUTES_SIZE: Final = 64  # PERF_ATTR_SIZE_VER0
TIMES: Final = 1 | 2  # PERF_FORMAT_TOTAL_TIME_ENABLED and _RUNNING
CLOSE_ON_EXEC: Final = 8
EXCLUDE_HYPERVISOR: Final = 1 << 6
PARANOID: Final = Path("/proc/sys/kernel/perf_event_paranoid")
EVENTS: Final[Mapping[str, tuple[int, int]]] = {
    "cycles": (TYPE_HARDWARE, 0),
    "instructions": (TYPE_HARDWARE, 1),
    "cache_misses": (TYPE_HARDWARE, 3),
}
# MACHINE_CLEARS.COUNT of Intel's processors: event C3h, umask 1, edge, counter mask 1.
INTEL_CLEARS: Final = (TYPE_RAW, 0x0104_01C3)


class NoCounters(OSError):
    """The kernel gives no such counter; the text says why."""


def attributes(kind: int, config: int) -> bytes:
    """A perf_event_attr that counts from now on, in user and kernel mode."""
    return struct.pack(
        "<IIQQQQQIIQ",
        kind,
        ATTRIBUTES_SIZE,
        config,
        0,
        0,
        TIMES,
        EXCLUDE_HYPERVISOR,
        0,
        0,
        0,
    )


class Counter:
    """One event, summed over threads. Raises NoCounters."""

    def __init__(self, event: tuple[int, int], threads: Collection[int]) -> None:
        self._descriptors: list[int] = []
        for thread in threads:
            found = perf_event_open(attributes(*event), thread, -1, -1, CLOSE_ON_EXEC)
            if found == -errno.ESRCH:  # It ended meanwhile.
                continue
            if found < 0:
                self.close()
                raise NoCounters(-found, reason(-found))
            self._descriptors.append(found)

    def read(self) -> float:
        """What was counted so far; scaled where the counter was shared with others for a while."""
        total = 0.0
        for descriptor in self._descriptors:
            value, enabled, running = struct.unpack("<QQQ", os.read(descriptor, 24))
            total += value * enabled / running if running else 0.0
        return total

    def close(self) -> None:
        """Give the counters back. Idempotent."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def reason(number: int) -> str:
    """Why there is no counter, as one can act on it."""
    name, text = errno.errorcode.get(number, str(number)), os.strerror(number)
    if number in (errno.EACCES, errno.EPERM):
        level = PARANOID.read_text().strip() if PARANOID.exists() else "unknown"
        return f"perf_event_open says {name} ({text}); kernel.perf_event_paranoid is {level}"
    return f"no hardware counters: perf_event_open says {name} ({text})"


class Counters:
    """The events of EVENTS (and machine clears, on Intel's processors) of some threads.

    `missing` says of each that there is not, why.
    """

    def __init__(self, threads: Collection[int], cpu_model: str = "") -> None:
        events = dict(EVENTS)
        self.missing: dict[str, str] = {}
        if "Intel" in cpu_model:
            events["machine_clears"] = INTEL_CLEARS
        else:
            self.missing["machine_clears"] = f"no event for them is known for {cpu_model or 'it'}"
        self._counters: dict[str, Counter] = {}
        for name, event in events.items():
            try:
                self._counters[name] = Counter(event, threads)
            except NoCounters as error:
                self.missing[name] = str(error.strerror)

    def read(self) -> dict[str, float]:
        """Each event that there is."""
        return {name: counter.read() for name, counter in self._counters.items()}

    def close(self) -> None:
        """Give them back. Idempotent."""
        for counter in self._counters.values():
            counter.close()
