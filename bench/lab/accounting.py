"""What the kernel says of cores and processes: CPU time, context switches, interrupts, page faults.

The one rule: everything is a running total, read before and after; nothing is read in between.
"""

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
CORE_FIELDS: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """Seconds of one core since boot. `busy_s` is all but idle, the hypervisor's share included."""

    busy_s: float
    user_s: float
    system_s: float
    softirq_s: float
    irq_s: float
    steal_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class System:
    """All cores, and the interrupts they took."""

    cores: Mapping[int, CoreTimes]
    interrupts: int


@dataclass(frozen=True, slots=True)
class ProcessCounts:
    """What a process, all its threads together, has used so far."""

    cpu_ns: int
    user_ticks: int
    system_ticks: int
    page_faults: int
    voluntary: int
    involuntary: int

    def __sub__(self, before: "ProcessCounts") -> "ProcessCounts":
        return ProcessCounts(
            *(getattr(self, f.name) - getattr(before, f.name) for f in fields(self))
        )

    def __add__(self, other: "ProcessCounts") -> "ProcessCounts":
        return ProcessCounts(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        )

    @property
    def seconds(self) -> dict[str, float]:
        """CPU time in user and system mode: the exact sum, divided as the ticks are."""
        ticks = self.user_ticks + self.system_ticks
        share = self.user_ticks / ticks if ticks else 0.0
        total = self.cpu_ns / 1e9
        return {"user_s": total * share, "system_s": total * (1 - share)}


NOTHING: Final = ProcessCounts(0, 0, 0, 0, 0, 0)


def system() -> System:
    """Read /proc/stat."""
    return parse_system((PROC / "stat").read_text())


def parse_system(text: str) -> System:
    """The cpuN lines and the sum of the interrupts, from the text of /proc/stat."""
    cores, interrupts = {}, 0
    for line in text.splitlines():
        name, *values = line.split() or [""]
        if name == "intr":
            interrupts = int(values[0])
        elif name.startswith("cpu") and name != "cpu" and len(values) >= len(CORE_FIELDS):
            took = {f: int(v) * TICK_S for f, v in zip(CORE_FIELDS, values, strict=False)}
            idle = took["idle"] + took["iowait"]
            cores[int(name[3:])] = CoreTimes(
                busy_s=sum(took.values()) - idle,
                user_s=took["user"] + took["nice"],
                system_s=took["system"],
                softirq_s=took["softirq"],
                irq_s=took["irq"],
                steal_s=took["steal"],
                idle_s=idle,
            )
    return System(cores, interrupts)


def between(before: System, after: System, cores: Collection[int]) -> dict[int, CoreTimes]:
    """What each of the cores did between two readings."""
    return {
        core: CoreTimes(
            *(
                getattr(after.cores[core], each.name) - getattr(before.cores[core], each.name)
                for each in fields(CoreTimes)
            )
        )
        for core in cores
        if core in before.cores and core in after.cores
    }


def threads_of(pid: int) -> list[int]:
    """The threads of a process."""
    return [int(task.name) for task in (PROC / str(pid) / "task").iterdir()]


def process(pid: int) -> ProcessCounts:
    """Read what a living process of ours has used."""
    # What clock_getcpuclockid(3) makes of a pid; Python's time module does not have it.
    cpu_ns = time.clock_gettime_ns(~pid << 3 | 2)
    # Behind the name in parentheses, which may hold anything.
    row = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    voluntary, involuntary = switches_of(pid)
    faults = int(row[7]) + int(row[9])
    return ProcessCounts(cpu_ns, int(row[11]), int(row[12]), faults, voluntary, involuntary)


def switches_of(pid: int) -> tuple[int, int]:
    """Voluntary and involuntary context switches of all threads, those that ended excepted."""
    found = [0, 0]
    for thread in threads_of(pid):
        try:
            text = (PROC / str(pid) / "task" / str(thread) / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for at, name in enumerate(("\nvoluntary_ctxt_switches:", "\nnonvoluntary_ctxt_switches:")):
            found[at] += int(text.partition(name)[2].split(None, 1)[0])
    return found[0], found[1]
