"""The clock of cores, through cpufreq: held at a share of its highest for a run, and put back.

The one rule: what was set is restored however the run ends; a machine without cpufreq, as most
virtual ones are, says so before anything runs.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CPUS: Final = Path("/sys/devices/system/cpu")
KHZ: Final = 1000


@dataclass(frozen=True, slots=True)
class Clock:
    """One core's cpufreq folder."""

    folder: Path

    def read(self, name: str) -> int:
        """One of its files, in kHz. Raises OSError."""
        return int((self.folder / name).read_text())

    def limit(self, low: int, high: int) -> None:
        """Keep the clock between two frequencies. Raises OSError."""
        # First out of the way: a minimum above the maximum is refused.
        self._write("scaling_min_freq", self.read("cpuinfo_min_freq"))
        self._write("scaling_max_freq", high)
        self._write("scaling_min_freq", low)

    def _write(self, name: str, khz: int) -> None:
        (self.folder / name).write_text(f"{khz}\n")


def _clock(core: int, root: Path) -> Clock:
    return Clock(root / f"cpu{core}" / "cpufreq")


def refusal(cores: Collection[int], root: Path = CPUS) -> str:
    """Why the clock of these cores cannot be held, or ""."""
    for core in cores:
        folder = _clock(core, root).folder
        if not folder.is_dir():
            return (
                f"core {core} has no {folder}: this machine does not say what its clock is, let "
                "alone set it (a hypervisor keeps that to itself)"
            )
        for name in ("scaling_min_freq", "scaling_max_freq"):
            if not os.access(folder / name, os.W_OK):
                return f"{folder / name} may not be written: run as root"
    return ""


@contextmanager
def held(cores: Collection[int], percent: int, root: Path = CPUS) -> Iterator[float | None]:
    """Hold the clock of these cores at so much of 100 of their highest inside the block.

    Gives the frequency in Hz, the lowest of the cores'; None, and nothing done, for 0 percent.
    Raises OSError.
    """
    if not percent:
        yield None
        return
    chosen = []
    with ExitStack() as stack:
        for core in cores:
            clock = _clock(core, root)
            low, high = clock.read("scaling_min_freq"), clock.read("scaling_max_freq")
            wanted = clock.read("cpuinfo_max_freq") * percent // 100
            wanted = max(wanted, clock.read("cpuinfo_min_freq"))
            stack.callback(clock.limit, low, high)
            clock.limit(wanted, wanted)
            chosen.append(wanted * KHZ)
        yield float(min(chosen))
