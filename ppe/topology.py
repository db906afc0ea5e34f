"""What the kernel says about this machine's CPUs, read once into frozen records.

Everything is read below one root directory, so a test can describe any machine by a few files;
what a kernel does not tell is empty or 0, never guessed.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYSTEM_ROOT: Final = Path("/")
CPU_FOLDER: Final = Path("sys/devices/system/cpu")
NODE_FOLDER: Final = Path("sys/devices/system/node")
CGROUP_FOLDER: Final = Path("sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Cpu:
    """One logical CPU. `siblings` are the other hardware threads of its core."""

    number: int
    online: bool
    core_id: int
    package_id: int
    node: int
    siblings: tuple[int, ...]
    isolated: bool
    nohz_full: bool


@dataclass(frozen=True, slots=True)
class Topology:
    """The machine's CPUs, and the cpuset that confines this process.

    `cpuset` is None where no cgroup says anything; `cpuset_file` is the file that said it.
    """

    cpus: tuple[Cpu, ...]
    cpuset: frozenset[int] | None
    cpuset_file: str

    def cpu(self, number: int) -> Cpu | None:
        """Return the CPU of that number, or None if the machine has no such CPU."""
        return next((cpu for cpu in self.cpus if cpu.number == number), None)

    @property
    def online(self) -> frozenset[int]:
        """Numbers of the CPUs that are switched on."""
        return frozenset(cpu.number for cpu in self.cpus if cpu.online)

    @property
    def isolated(self) -> frozenset[int]:
        """Numbers of the online CPUs the scheduler leaves alone."""
        return frozenset(cpu.number for cpu in self.cpus if cpu.online and cpu.isolated)

    @property
    def nodes(self) -> tuple[int, ...]:
        """NUMA nodes that have an online CPU."""
        return tuple(sorted({cpu.node for cpu in self.cpus if cpu.online}))


def parse_cpu_list(text: str) -> frozenset[int]:
    """Read the kernel's list form (`0-3,8,10-11`); raise ValueError for anything else."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part.strip():
            continue
        first, dash, last = part.partition("-")
        low = int(first)
        high = int(last) if dash else low
        if low < 0 or high < low or high > 1 << 16:
            raise ValueError(f"{part.strip()!r} is not a range of CPUs")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def format_cpu_list(cpus: frozenset[int] | set[int] | tuple[int, ...]) -> str:
    """Write CPUs in the kernel's list form, `none` for no CPU."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"


def read_topology(root: Path = SYSTEM_ROOT) -> Topology:
    """Read the topology below `root`; a fake tree needs only the files it wants to have read."""
    folder = root / CPU_FOLDER
    online = read_cpu_list(folder / "online") or frozenset()
    present = read_cpu_list(folder / "present") or online
    isolated = read_cpu_list(folder / "isolated") or frozenset()
    # CPUs isolated at run time by a cgroup partition are listed by the cgroup root (since 6.7).
    isolated |= read_cpu_list(root / CGROUP_FOLDER / "cpuset.cpus.isolated") or frozenset()
    nohz_full = _nohz_full(root)
    nodes = _nodes(root)
    cpuset, source = _effective_cpuset(root)
    return Topology(
        cpus=tuple(
            _read_cpu(folder, n, n in online, n in isolated, n in nohz_full, nodes.get(n, 0))
            for n in sorted(present | online)
        ),
        cpuset=cpuset,
        cpuset_file=source,
    )


def allowed_cpus() -> frozenset[int]:
    """Return the CPUs this process may run on now (sched_getaffinity)."""
    return frozenset(os.sched_getaffinity(0))


def read_text(path: Path) -> str | None:
    """Return a small kernel file's stripped text, None where it is missing or unreadable."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def read_cpu_list(path: Path) -> frozenset[int] | None:
    """Return the CPUs a kernel file lists; None where it is missing or no list."""
    text = read_text(path)
    if text is None:
        return None
    try:
        return parse_cpu_list(text)
    except ValueError:  # nohz_full reads "(null)" when the kernel was started without it.
        return None


def boot_parameter(name: str, root: Path = SYSTEM_ROOT) -> str | None:
    """Return a kernel command line parameter's value, None when it was not given."""
    for word in (read_text(root / "proc/cmdline") or "").split():
        key, _, value = word.partition("=")
        if key == name:
            return value
    return None


def _read_cpu(
    folder: Path, number: int, online: bool, isolated: bool, nohz_full: bool, node: int
) -> Cpu:
    facts = folder / f"cpu{number}" / "topology"
    threads = read_cpu_list(facts / "thread_siblings_list")
    if threads is None:
        threads = read_cpu_list(facts / "core_cpus_list") or frozenset()
    return Cpu(
        number=number,
        online=online,
        core_id=_read_int(facts / "core_id", number),
        package_id=_read_int(facts / "physical_package_id", 0),
        node=node,
        siblings=tuple(sorted(threads - {number})),
        isolated=isolated,
        nohz_full=nohz_full,
    )


def _read_int(path: Path, default: int) -> int:
    try:
        return int(read_text(path) or default)
    except ValueError:
        return default


def _nodes(root: Path) -> dict[int, int]:
    nodes: dict[int, int] = {}
    for folder in sorted((root / NODE_FOLDER).glob("node[0-9]*")):
        for cpu in read_cpu_list(folder / "cpulist") or frozenset():
            nodes[cpu] = int(folder.name.removeprefix("node"))
    return nodes


def _nohz_full(root: Path) -> frozenset[int]:
    listed = read_cpu_list(root / CPU_FOLDER / "nohz_full")
    if listed is not None:
        return listed
    try:
        return parse_cpu_list(boot_parameter("nohz_full", root) or "")
    except ValueError:  # The parameter also takes forms such as "all" or "8-".
        return frozenset()


def _effective_cpuset(root: Path) -> tuple[frozenset[int] | None, str]:
    for folder, file_name in _cpuset_places(root):
        # A container may see its path but not the folder behind it; what it can see then is
        # nearer to the root of its mount. The nearest file decides.
        for place in (folder, *folder.parents):
            listed = read_cpu_list(place / file_name)
            if listed:
                return listed, str(Path("/") / (place / file_name).relative_to(root))
            if place in {root / CGROUP_FOLDER, root / CGROUP_FOLDER / "cpuset"}:
                break
    return None, ""


def _cpuset_places(root: Path) -> list[tuple[Path, str]]:
    """Return where the limit may stand: (folder, file), cgroup v1's cpuset hierarchy first."""
    places: list[tuple[Path, str]] = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        below = path.strip("/")
        if ".." in below.split("/"):  # Our cgroup lies outside this container's view.
            below = ""
        if "cpuset" in controllers.split(","):
            places.insert(0, (root / CGROUP_FOLDER / "cpuset" / below, "cpuset.effective_cpus"))
        elif number == "0" and not controllers:
            places.append((root / CGROUP_FOLDER / below, "cpuset.cpus.effective"))
    return places
