"""Everything the doctor looks at, gathered in one short visit to the engine's CPU.

All of /proc and /sys is read below `root`; what only the process itself can tell (limits,
capabilities, system calls) is in ProcessFacts, so a test can describe any machine.
"""

import gc
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ppe.cputime import CpuTicks, busy_fractions, parse_stat
from ppe.cycle.rnic.verbs.library import Library
from ppe.cycle.rnic.verbs.library import find as find_pyverbs
from ppe.doctor.libc import io_uring_errno
from ppe.topology import SYSTEM_ROOT, Topology, read_text, read_topology

SAMPLE_MS: Final = 200
GAP_NS: Final = 10_000  # Longer than any single step of the loop below, shorter than a switch.
CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_PERFMON = 14, 21, 38


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters at one moment. `interrupts` is `{(name, label): {cpu: count}}`."""

    ticks: dict[int, CpuTicks]
    interrupts: dict[tuple[str, str], dict[int, int]]


@dataclass(frozen=True, slots=True)
class SpinReport:
    """What a spinning loop lost: intervals over GAP_NS in which it did not run."""

    window_ns: int
    gaps: int
    lost_ns: int
    longest_ns: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What only this process can tell. Limits are bytes or counts, -1 without a limit.

    `io_uring_errno` is what io_uring_setup answers to nonsense: EFAULT or EINVAL when it is there.
    pyverbs is looked for where there are RDMA devices.
    """

    memlock_limit: int = -1
    nofile_limit: int = -1
    capabilities: int = 0
    policy: int = os.SCHED_OTHER
    io_uring_errno: int | None = None
    shm_total: int = 0
    shm_free: int = 0
    pyverbs: Library | None = None

    def can(self, capability: int) -> bool:
        """Tell whether the process has a capability of capabilities(7), by number."""
        return bool(self.capabilities >> capability & 1)


@dataclass(frozen=True, slots=True)
class Machine:
    """The observed machine, as seen by an engine on `cpu`. `holder` is the engine there, if any."""

    cpu: int
    topology: Topology
    root: Path = SYSTEM_ROOT
    housekeeping: tuple[int, ...] = ()
    holder: int | None = None
    refusal: str = ""
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0
    before: Sample = field(default_factory=lambda: Sample({}, {}))
    after: Sample = field(default_factory=lambda: Sample({}, {}))
    spin: SpinReport | None = None
    process: ProcessFacts = field(default_factory=ProcessFacts)

    def text(self, path: str) -> str | None:
        """Return a kernel file's text, None where there is none."""
        return read_text(self.root / path)

    def busy_fraction(self, cpu: int) -> float | None:
        """Return how busy `cpu` was during the visit, 0 to 1."""
        return busy_fractions(self.before.ticks, self.after.ticks).get(cpu)

    def interrupt_counts(self, cpu: int) -> dict[tuple[str, str], int]:
        """Return how many interrupts of each kind `cpu` took during the visit, zeros left out."""
        counts = {
            key: counts.get(cpu, 0) - self.before.interrupts.get(key, {}).get(cpu, 0)
            for key, counts in self.after.interrupts.items()
        }
        return {key: count for key, count in counts.items() if count > 0}


def observe(
    cpu: int,
    *,
    root: Path = SYSTEM_ROOT,
    housekeeping: tuple[int, ...] = (),
    holder: int | None = None,
    refusal: str = "",
    reasons: tuple[str, ...] = (),
    sample_ms: int = SAMPLE_MS,
) -> Machine:
    """Watch `cpu` for `sample_ms` and return what was seen.

    Spins there meanwhile, to feel what an engine would, unless one already runs there.
    """
    before, start = read_sample(root), time.monotonic()
    spin = spin_on(cpu, sample_ms) if holder is None else None
    if spin is None:
        time.sleep(sample_ms / 1000)
    after, seconds = read_sample(root), time.monotonic() - start
    return Machine(
        cpu=cpu,
        topology=read_topology(root),
        root=root,
        housekeeping=housekeeping,
        holder=holder,
        refusal=refusal,
        reasons=reasons,
        seconds=seconds,
        before=before,
        after=after,
        spin=spin,
        process=read_process_facts(root),
    )


def spin_on(cpu: int, window_ms: int) -> SpinReport | None:
    """Spin on `cpu` and record every interval over GAP_NS; None where pinning is refused."""
    inherited = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        return None
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _spin(window_ms * 1_000_000)
    finally:
        if collecting:
            gc.enable()
        os.sched_setaffinity(0, inherited)


def _spin(window_ns: int) -> SpinReport:
    clock = time.perf_counter_ns
    switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    gaps = lost_ns = longest_ns = 0
    start = last = clock()
    while last - start < window_ns:
        now = clock()
        if now - last > GAP_NS:
            gaps += 1
            lost_ns += now - last
            longest_ns = max(longest_ns, now - last)
            now = clock()  # The bookkeeping above is not a gap.
        last = now
    preemptions = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw - switches
    return SpinReport(last - start, gaps, lost_ns, longest_ns, preemptions)


def read_sample(root: Path = SYSTEM_ROOT) -> Sample:
    """Read /proc/stat and /proc/interrupts."""
    return Sample(
        parse_stat(read_text(root / "proc/stat") or ""),
        parse_interrupts(read_text(root / "proc/interrupts") or ""),
    )


def parse_interrupts(text: str) -> dict[tuple[str, str], dict[int, int]]:
    """Parse /proc/interrupts into `{(name, label): {cpu: count}}`; summary lines are left out."""
    lines = text.splitlines()
    if not lines:
        return {}
    cpus = [int(word[3:]) for word in lines[0].split() if word.startswith("CPU")]
    found: dict[tuple[str, str], dict[int, int]] = {}
    for line in lines[1:]:
        name, _, rest = line.partition(":")
        words = rest.split(None, len(cpus))
        counts = words[: len(cpus)]
        if len(counts) < len(cpus) or not all(count.isdigit() for count in counts):
            continue  # ERR and MIS have one number for the whole machine.
        label = " ".join(words[len(cpus)].split()) if len(words) > len(cpus) else ""
        found[name.strip(), label] = dict(zip(cpus, map(int, counts), strict=True))
    return found


def read_process_facts(root: Path = SYSTEM_ROOT) -> ProcessFacts:
    """Ask for this process's limits, capabilities, scheduling policy and system calls."""
    capabilities = 0
    for line in (read_text(root / "proc/self/status") or "").splitlines():
        if line.startswith("CapEff:"):
            capabilities = int(line.split()[1], 16)
    shm_total = shm_free = 0
    if (root / "dev/shm").is_dir():
        space = os.statvfs(root / "dev/shm")
        shm_total, shm_free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    return ProcessFacts(
        memlock_limit=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        nofile_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        capabilities=capabilities,
        policy=os.sched_getscheduler(0),
        io_uring_errno=io_uring_errno(),
        shm_total=shm_total,
        shm_free=shm_free,
        pyverbs=find_pyverbs() if (root / "sys/class/infiniband").is_dir() else None,
    )
