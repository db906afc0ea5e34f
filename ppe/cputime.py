"""How busy each CPU is, from /proc/stat.

By CPU number, because the lines of that file skip CPUs that are offline.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from ppe.topology import SYSTEM_ROOT, read_text


@dataclass(frozen=True, slots=True)
class CpuTicks:
    """Clock ticks of one CPU since boot; `stolen` by the hypervisor counts as busy."""

    busy: int
    stolen: int
    total: int


def parse_stat(text: str) -> dict[int, CpuTicks]:
    """Parse /proc/stat's cpuN lines: user nice system idle iowait irq softirq steal guest …"""
    found: dict[int, CpuTicks] = {}
    for line in text.splitlines():
        name, *values = line.split() or [""]
        if not name.startswith("cpu") or name == "cpu" or len(values) < 8:
            continue
        ticks = [int(value) for value in values[:8]]  # Guest time is part of user time already.
        idle = ticks[3] + ticks[4]
        found[int(name[3:])] = CpuTicks(sum(ticks) - idle, ticks[7], sum(ticks))
    return found


def busy_fractions(before: dict[int, CpuTicks], after: dict[int, CpuTicks]) -> dict[int, float]:
    """Return the busy share, 0 to 1, of each CPU that ticked between two readings."""
    return {
        cpu: (last.busy - before[cpu].busy) / (last.total - before[cpu].total)
        for cpu, last in after.items()
        if cpu in before and last.total > before[cpu].total
    }


def busy_now(sample_ms: int = 100, root: Path = SYSTEM_ROOT) -> dict[int, float]:
    """Watch for `sample_ms` and return each CPU's busy share: what `choose` takes as `busy`."""
    before = parse_stat(read_text(root / "proc/stat") or "")
    time.sleep(sample_ms / 1000)
    return busy_fractions(before, parse_stat(read_text(root / "proc/stat") or ""))
