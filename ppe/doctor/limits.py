"""The doctor's checks of the kernel's settings and of this process's limits.

Each check reads only what was observed and returns one finding; a file that is missing is
"unknown", never "ok".
"""

import errno
import os
from pathlib import Path

from ppe.doctor.finding import BAD, OK, UNKNOWN, WARN, Finding
from ppe.doctor.machine import CAP_IPC_LOCK, CAP_PERFMON, CAP_SYS_ADMIN, Machine

MIB = 1 << 20
MEMLOCK_WARN, MEMLOCK_BAD = 256 * MIB, 16 * MIB
SHM_WARN, SHM_BAD = 512 * MIB, 64 * MIB
NOFILE_WARN = 4096
SLOW_CLOCKS = {"hpet", "acpi_pm", "refined-jiffies", "jiffies"}


def check_clock_source(machine: Machine) -> Finding:
    """Is reading the clock cheap, and does the TSC count steadily?"""
    folder = "sys/devices/system/clocksource/clocksource0"
    current = machine.text(f"{folder}/current_clocksource")
    if current is None:
        return Finding("clock source", UNKNOWN, "no clocksource0 in /sys")
    flags = set((machine.text("proc/cpuinfo") or "").split())
    steady = {"constant_tsc", "nonstop_tsc"} & flags
    detail = f"{current}; TSC flags: {', '.join(sorted(steady)) or 'none'}"
    if current in SLOW_CLOCKS:
        return Finding(
            "clock source",
            BAD,
            f"{detail}: each reading is a system call",
            f"echo tsc > /{folder}/current_clocksource, or boot with tsc=reliable",
        )
    if current == "tsc" and "constant_tsc" not in flags and "x86" in os.uname().machine:
        return Finding("clock source", WARN, f"{detail}: the TSC follows the CPU clock")
    return Finding("clock source", OK, detail)


def check_realtime_throttling(machine: Machine) -> Finding:
    """Would the kernel stop a real-time spinner for 5 % of each second?"""
    runtime = machine.text("proc/sys/kernel/sched_rt_runtime_us")
    period = machine.text("proc/sys/kernel/sched_rt_period_us")
    if runtime is None or period is None:
        return Finding("RT throttling", UNKNOWN, "no sched_rt_runtime_us")
    if runtime == "-1":
        return Finding("RT throttling", OK, "off")
    share = int(runtime) / int(period)
    detail = f"real-time threads get {share:.0%} of a second"
    if machine.process.policy in {os.SCHED_FIFO, os.SCHED_RR}:
        return Finding("RT throttling", BAD, detail, "sysctl kernel.sched_rt_runtime_us=-1")
    return Finding("RT throttling", OK, f"{detail}; this process is not one")


def check_cpu_quota(machine: Machine) -> Finding:
    """Does a cgroup stop its members when they have spun too long?"""
    quota = _cpu_quota(machine)
    if quota is None:
        return Finding("CPU quota", OK, "none")
    cpus, file = quota
    return Finding(
        "CPU quota",
        BAD,
        f"{file} allows {cpus:.2f} CPUs of time: a spinning engine takes one and is then stopped "
        "with everything else",
        f"echo max > {file}" if file.endswith("cpu.max") else f"echo -1 > {file}",
    )


def check_locked_memory(machine: Machine) -> Finding:
    """May rings and tables be locked in memory?"""
    process = machine.process
    if process.can(CAP_IPC_LOCK):
        return Finding("memlock", OK, "no limit (CAP_IPC_LOCK)")
    if process.memlock_limit < 0:
        return Finding("memlock", OK, "no limit")
    detail = f"{process.memlock_limit // MIB} MiB may be locked"
    fix = "ulimit -l unlimited, LimitMEMLOCK=infinity in the unit, or memlock in limits.conf"
    if process.memlock_limit < MEMLOCK_BAD:
        return Finding("memlock", BAD, detail, fix)
    if process.memlock_limit < MEMLOCK_WARN:
        return Finding("memlock", WARN, detail, fix)
    return Finding("memlock", OK, detail)


def check_open_files(machine: Machine) -> Finding:
    """Are there descriptors for many clients and connections?"""
    limit = machine.process.nofile_limit
    if limit < 0:
        return Finding("open files", OK, "no limit")
    if limit < NOFILE_WARN:
        return Finding("open files", WARN, f"{limit} descriptors", "ulimit -n 65536")
    return Finding("open files", OK, f"{limit} descriptors")


def check_shared_memory(machine: Machine) -> Finding:
    """Is there room in /dev/shm for the segments?"""
    process = machine.process
    if not process.shm_total:
        return Finding(
            "/dev/shm", BAD, "missing", "mount -t tmpfs -o mode=1777,size=1G tmpfs /dev/shm"
        )
    detail = f"{process.shm_free // MIB} of {process.shm_total // MIB} MiB free"
    fix = "mount -o remount,size=1G /dev/shm, or docker run --shm-size=1g"
    if process.shm_free < SHM_BAD:
        return Finding("/dev/shm", BAD, detail, fix)
    if process.shm_free < SHM_WARN:
        return Finding("/dev/shm", WARN, detail, fix)
    return Finding("/dev/shm", OK, detail)


def check_huge_pages(machine: Machine) -> Finding:
    """Are huge pages set aside? None is fine; a large pool of buffers gains from them."""
    free: list[str] = []
    total = 0
    for folder in sorted((machine.root / "sys/kernel/mm/hugepages").glob("hugepages-*kB")):
        pages = machine.text(f"sys/kernel/mm/hugepages/{folder.name}/nr_hugepages") or "0"
        left = machine.text(f"sys/kernel/mm/hugepages/{folder.name}/free_hugepages") or "0"
        total += int(pages)
        if int(pages):
            kib = int(folder.name.removeprefix("hugepages-").removesuffix("kB"))
            free.append(f"{left} of {pages} of {kib // 1024} MiB free")
    return Finding("huge pages", OK, "; ".join(free) if total else "none set aside")


def check_transparent_huge_pages(machine: Machine) -> Finding:
    """May a page fault stop a thread to compact memory?"""
    folder = "sys/kernel/mm/transparent_hugepage"
    enabled = _selected(machine.text(f"{folder}/enabled"))
    defrag = _selected(machine.text(f"{folder}/defrag"))
    if enabled is None:
        return Finding("THP", OK, "not in this kernel")
    shmem = _selected(machine.text(f"{folder}/shmem_enabled")) or "unknown"
    detail = f"{enabled}, defrag {defrag}, shared memory {shmem}"
    if enabled != "never" and defrag == "always":
        return Finding(
            "THP", WARN, f"{detail}: faults wait for compaction", f"echo madvise > /{folder}/defrag"
        )
    return Finding("THP", OK, detail)


def check_io_uring(machine: Machine) -> Finding:
    """Can sockets become ready without a system call per pass?"""
    answer = machine.process.io_uring_errno
    disabled = machine.text("proc/sys/kernel/io_uring_disabled")
    if answer in {errno.EFAULT, errno.EINVAL}:
        return Finding("io_uring", OK, "available")
    if answer is None:
        return Finding("io_uring", UNKNOWN, f"not tried; io_uring_disabled={disabled}")
    fallback = "the engine falls back to epoll, a system call every few passes"
    if answer == errno.ENOSYS:
        return Finding(
            "io_uring", WARN, f"not in this kernel: {fallback}", "use Linux 6.1 or newer"
        )
    if disabled in {"1", "2"}:
        return Finding(
            "io_uring",
            WARN,
            f"io_uring_disabled={disabled}: {fallback}",
            "sysctl kernel.io_uring_disabled=0",
        )
    return Finding(
        "io_uring",
        WARN,
        f"refused ({errno.errorcode.get(answer, answer)}), by a seccomp filter perhaps: {fallback}",
        "docker run --security-opt seccomp=…, a profile that allows io_uring_*",
    )


def check_perf(machine: Machine) -> Finding:
    """May this user count cycles and cache misses?"""
    level = machine.text("proc/sys/kernel/perf_event_paranoid")
    if level is None:
        return Finding("perf", UNKNOWN, "no perf events in this kernel")
    if machine.process.can(CAP_PERFMON) or machine.process.can(CAP_SYS_ADMIN):
        return Finding("perf", OK, f"perf_event_paranoid={level}, this process may anyway")
    if int(level) > 1:
        return Finding(
            "perf", WARN, f"perf_event_paranoid={level}", "sysctl kernel.perf_event_paranoid=1"
        )
    return Finding("perf", OK, f"perf_event_paranoid={level}")


def _cpu_quota(machine: Machine) -> tuple[float, str] | None:
    """Return the tightest quota of this cgroup and those above it, in CPUs, and its file."""
    found: list[tuple[float, str]] = []
    for line in (machine.text("proc/self/cgroup") or "").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        below = Path(path.strip("/"))
        if ".." in below.parts:
            below = Path()
        for place in (below, *below.parents):
            if number == "0" and not controllers:
                found += _quota_v2(machine, f"sys/fs/cgroup/{place}")
            elif "cpu" in controllers.split(","):
                found += _quota_v1(machine, f"sys/fs/cgroup/cpu/{place}")
    return min(found, default=None)


def _quota_v2(machine: Machine, folder: str) -> list[tuple[float, str]]:
    words = (machine.text(f"{folder}/cpu.max") or "").split()
    if len(words) != 2 or words[0] == "max":
        return []
    return [(int(words[0]) / int(words[1]), _shown(f"{folder}/cpu.max"))]


def _quota_v1(machine: Machine, folder: str) -> list[tuple[float, str]]:
    quota = machine.text(f"{folder}/cpu.cfs_quota_us")
    period = machine.text(f"{folder}/cpu.cfs_period_us")
    if quota is None or period is None or int(quota) <= 0:
        return []
    return [(int(quota) / int(period), _shown(f"{folder}/cpu.cfs_quota_us"))]


def _shown(path: str) -> str:
    return str(Path("/") / path)


def _selected(text: str | None) -> str | None:
    """Return the word in brackets: `always [madvise] never`."""
    if text is None or "[" not in text:
        return None
    return text.partition("[")[2].partition("]")[0]
