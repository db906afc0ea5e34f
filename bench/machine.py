"""What a figure depends on besides the code: the machine, its settings and the versions.

Everything is read, nothing is changed; what cannot be read is None, never a guess.
"""

import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

CPUS: Final = Path("/sys/devices/system/cpu")
PACKAGES: Final = ("ppe-runtime", "numba", "llvmlite", "numpy", "posix-ipc", "psutil", "iceoryx2")


def facts(cores: Sequence[int] = ()) -> dict[str, Any]:
    """Describe this machine; `cores` are those the measurement pins to."""
    info = _cpuinfo()
    arguments = kernel_arguments(_read("/proc/cmdline") or "")
    return {
        "cpu_model": info.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_usable": sorted(os.sched_getaffinity(0)),
        "sockets": _count_distinct("topology/physical_package_id"),
        "numa_nodes": _read("/sys/devices/system/node/online"),
        "pinned": [core_facts(core) for core in cores],
        "turbo": _turbo(),
        "smt": _read(CPUS / "smt/control"),
        "isolated": _read(CPUS / "isolated"),
        "isolcpus": arguments.get("isolcpus"),
        "nohz_full": arguments.get("nohz_full"),
        "rcu_nocbs": arguments.get("rcu_nocbs"),
        "hypervisor": "hypervisor" in info.get("flags", "").split(),
        "clock_source": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "kernel": platform.release(),
        "mitigations": arguments.get("mitigations"),
        "huge_pages": _read("/proc/sys/vm/nr_hugepages"),
        "transparent_huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_average": list(os.getloadavg()),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in PACKAGES},
    }


def core_facts(core: int) -> dict[str, Any]:
    """Describe one CPU: who shares its execution units and how its frequency is governed."""
    folder = CPUS / f"cpu{core}"
    return {
        "cpu": core,
        "smt_siblings": _read(folder / "topology/thread_siblings_list"),
        "socket": _read(folder / "topology/physical_package_id"),
        "governor": _read(folder / "cpufreq/scaling_governor"),
        "numa_node": next((path.name.removeprefix("node") for path in folder.glob("node*")), None),
    }


def summary(machine: dict[str, Any]) -> str:
    """Return the one line that a figure carries as its caption."""
    parts = [machine["cpu_model"], f"{machine['cpus']} CPUs", f"Linux {machine['kernel']}"]
    if machine["hypervisor"]:
        parts.append("virtual machine")
    parts.append(f"isolated {machine['isolated']}" if machine["isolated"] else "no isolated CPU")
    return ", ".join(parts)


def warnings(machine: dict[str, Any]) -> list[str]:
    """Say what about this machine makes its figures worse or less certain."""
    found = []
    if machine["hypervisor"]:
        found.append("virtual machine: the hypervisor may take the CPU away at any moment")
    for core in machine["pinned"]:
        if core["smt_siblings"] and core["smt_siblings"] != str(core["cpu"]):
            found.append(f"CPU {core['cpu']} shares its core with {core['smt_siblings']}")
        if core["governor"] not in (None, "performance"):
            found.append(f"CPU {core['cpu']}: governor is {core['governor']}, not performance")
    if machine["pinned"] and not machine["isolated"]:
        found.append("no isolated CPU: the kernel runs other work on the measured ones")
    if machine["load_average"][0] > 0.5 * (machine["cpus"] or 1):
        found.append(f"load average was {machine['load_average'][0]:.2f} at the start")
    return found


def kernel_arguments(line: str) -> dict[str, str]:
    """Split a kernel command line into its `key=value` words; a bare word has the value ''."""
    pairs = (word.partition("=") for word in line.split())
    return {key: value for key, _, value in pairs}


def _read(path: Path | str) -> str | None:
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor."""
    first = (_read("/proc/cpuinfo") or "").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _count_distinct(name: str) -> int | None:
    values = {_read(cpu / name) for cpu in CPUS.glob("cpu[0-9]*")} - {None}
    return len(values) or None


def _turbo() -> bool | None:
    boost = _read(CPUS / "cpufreq/boost")
    if boost is not None:
        return boost == "1"
    no_turbo = _read(CPUS / "intel_pstate/no_turbo")
    return None if no_turbo is None else no_turbo == "0"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
