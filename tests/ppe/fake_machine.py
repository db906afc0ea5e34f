"""Build the few files of /proc and /sys that describe a machine, below a temporary root."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ppe.topology import format_cpu_list


def write_files(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def build_machine(
    root: Path,
    cores: Sequence[tuple[int, ...]],
    *,
    offline: frozenset[int] = frozenset(),
    isolated: str = "",
    nohz_full: str | None = None,
    nodes: Sequence[str] = (),
    cpuset: str | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Describe a machine whose `cores` are tuples of hardware threads."""
    cpus = frozenset(cpu for core in cores for cpu in core)
    tree = {
        "sys/devices/system/cpu/present": format_cpu_list(cpus),
        "sys/devices/system/cpu/online": format_cpu_list(cpus - offline),
        "sys/devices/system/cpu/isolated": isolated,
    }
    if nohz_full is not None:
        tree["sys/devices/system/cpu/nohz_full"] = nohz_full
    for core_id, core in enumerate(cores):
        for cpu in set(core) - offline:
            folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
            siblings = format_cpu_list(frozenset(core) - offline)
            tree[f"{folder}/thread_siblings_list"] = siblings
            tree[f"{folder}/core_id"] = str(core_id)
            tree[f"{folder}/physical_package_id"] = "0"
    for node, listed in enumerate(nodes):
        tree[f"sys/devices/system/node/node{node}/cpulist"] = listed
    if cpuset is not None:
        tree["proc/self/cgroup"] = "0::/box/inner"
        tree["sys/fs/cgroup/box/cpuset.cpus.effective"] = cpuset
    write_files(root, tree | dict(files or {}))
    return root
