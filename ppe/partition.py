"""Divide the CPUs: which ones the engines get, which ones are left for everything else, and why.

The choice is a pure function of what it is told. It never gives away the last CPU to a spinner,
and every refusal names the file or the flag behind it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ppe.errors import (
    CpuError,
    CpuOffline,
    CpuOutsideCpuset,
    CpuTaken,
    CpuUnknown,
    NoHousekeepingCpu,
    UsageError,
)
from ppe.topology import (
    SYSTEM_ROOT,
    Cpu,
    Topology,
    format_cpu_list,
    parse_cpu_list,
    read_topology,
)

AUTO = "auto"
BUSY_FRACTION = 0.2  # Above this share of a core, its sibling is said to be in use.


@dataclass(frozen=True, slots=True)
class Partition:
    """The division. `housekeeping_cpus` serve the control plane and the hosts."""

    engine_cpus: tuple[int, ...]
    housekeeping_cpus: tuple[int, ...]
    reasons: list[str]
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class _Question:
    """What `choose` was asked, in one value. `busy` is the load per CPU, 0 to 1."""

    topology: Topology
    usable: frozenset[int]
    taken: Mapping[int, int]
    busy: Mapping[int, float]
    idle: str
    force: bool


def parse_wanted(wanted: str | int) -> tuple[int, ...] | None:
    """Return the CPUs that `--cpu` names, in its order; None for `auto`."""
    text = str(wanted).strip()
    if text == AUTO:
        return None
    cpus: list[int] = []
    try:
        for part in text.split(","):
            cpus += sorted(parse_cpu_list(part)) or [int(part)]
    except ValueError:
        raise UsageError(
            f"--cpu {text!r} is neither 'auto' nor a list of CPUs", "write --cpu 3 or --cpu 2,3"
        ) from None
    if len(set(cpus)) != len(cpus):
        raise UsageError(f"--cpu {text} names a CPU twice", "give each engine a CPU of its own")
    return tuple(cpus)


def choose(
    topology: Topology,
    allowed: frozenset[int],
    wanted: str | int = AUTO,
    *,
    engines: int = 1,
    taken: Mapping[int, int] | None = None,
    busy: Mapping[int, float] | None = None,
    idle: str = "spin",
    force: bool = False,
) -> Partition:
    """Choose a CPU for each of `engines` engines and say why.

    `allowed` is the inherited affinity, `taken` the CPUs other engines hold with their pids,
    `busy` an optional load per CPU (0 to 1). `force` lifts the last two refusals only: a taken
    CPU, and no CPU left over. Raises CpuUnknown, CpuOffline, CpuOutsideCpuset, CpuTaken,
    NoHousekeepingCpu, or UsageError when `wanted` and `engines` disagree.
    """
    usable = usable_cpus(topology, allowed)
    question = _Question(topology, usable, taken or {}, busy or {}, idle, force)
    named = parse_wanted(wanted)
    if named is None:
        chosen = _pick(question, engines)
    else:
        if len(named) != engines:
            raise UsageError(
                f"--cpu {wanted} names {len(named)} CPUs for --engines {engines}",
                f"make it --engines {len(named)}, or name {engines} CPUs",
            )
        for cpu in named:
            _check_named(question, allowed, cpu)
        chosen = named
    housekeeping = _housekeeping(question, allowed, chosen)
    if not housekeeping:
        housekeeping = _nothing_left(question, chosen)
    reasons = [_reason(question, cpu, chosen, named is not None) for cpu in chosen]
    left = format_cpu_list(set(housekeeping))
    subject = f"CPU {left} serves" if len(housekeeping) == 1 else f"CPUs {left} serve"
    reasons.append(f"{subject} everything else")
    return Partition(
        chosen, housekeeping, reasons, _warnings(question, allowed, chosen, housekeeping)
    )


def usable_cpus(topology: Topology, allowed: frozenset[int]) -> frozenset[int]:
    """Return the CPUs a thread of ours can be pinned to.

    Isolated CPUs are missing from every inherited affinity, yet may be asked for; the cpuset is
    the limit that cannot be crossed.
    """
    cpus = (allowed | topology.isolated) & topology.online
    return cpus if topology.cpuset is None else cpus & topology.cpuset


def pin_thread(cpu: int) -> None:
    """Pin the calling thread to `cpu`; raise CpuError with the reason when the kernel refuses."""
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        topology = read_topology()
        raise CpuError(
            f"cannot pin to CPU {cpu}: {error.strerror}", _allowed_hint(topology, frozenset())
        ) from error


def affinity_lost(tid: int, cpu: int, root: Path = SYSTEM_ROOT) -> str | None:
    """Return None while thread `tid` is pinned to `cpu` alone, else what became of it.

    The kernel drops a pinning without a word when a cpuset is rewritten or a CPU goes offline.
    """
    try:
        now = frozenset(os.sched_getaffinity(tid))
    except ProcessLookupError:
        return f"engine thread {tid} on CPU {cpu} is gone"
    topology = read_topology(root)
    where = format_cpu_list(now)
    if cpu not in topology.online:
        return (
            f"CPU {cpu} went offline; the kernel moved the engine to CPUs {where}. "
            f"Switch it on (echo 1 > /sys/devices/system/cpu/cpu{cpu}/online) and restart the "
            "engine, or restart it with another --cpu"
        )
    if now == {cpu}:
        return None
    if topology.cpuset is not None and cpu not in topology.cpuset:
        return (
            f"the cgroup no longer allows CPU {cpu} ({topology.cpuset_file} now says "
            f"{format_cpu_list(topology.cpuset)}); the engine runs on CPUs {where}. "
            "Give the CPU back to the cpuset, or restart the engine with another --cpu"
        )
    return (
        f"the engine is no longer pinned to CPU {cpu} alone but to CPUs {where}: "
        f"something changed its affinity. Put it back with `taskset -cp {cpu} {tid}`"
    )


def _check_named(question: _Question, allowed: frozenset[int], cpu: int) -> None:
    topology = question.topology
    facts = topology.cpu(cpu)
    if facts is None:
        numbers = format_cpu_list(frozenset(c.number for c in topology.cpus))
        raise CpuUnknown(
            f"there is no CPU {cpu}: this machine has {numbers}", "pass one of them with --cpu"
        )
    if not facts.online:
        raise CpuOffline(
            f"CPU {cpu} is offline",
            f"switch it on (echo 1 > /sys/devices/system/cpu/cpu{cpu}/online), "
            f"or pass --cpu with one of {format_cpu_list(topology.online)}",
        )
    confined = topology.cpuset is not None and cpu not in topology.cpuset
    # Without a cpuset to ask, the affinity is the only limit known; with one it is just a wish.
    if confined or (topology.cpuset is None and cpu not in question.usable):
        raise CpuOutsideCpuset(
            f"CPU {cpu} is not among the CPUs this process may use",
            _allowed_hint(topology, allowed),
        )
    if cpu in question.taken and not question.force:
        raise CpuTaken(cpu, question.taken[cpu])


def _allowed_hint(topology: Topology, allowed: frozenset[int]) -> str:
    if topology.cpuset is not None:
        return (
            f"{topology.cpuset_file} allows {format_cpu_list(topology.cpuset)}: "
            "pass --cpu with one of them, or widen the cpuset"
        )
    return (
        f"the inherited affinity allows {format_cpu_list(allowed)}: "
        "pass --cpu with one of them, or start without taskset"
    )


def _pick(question: _Question, engines: int) -> tuple[int, ...]:
    """Choose greedily within each NUMA node and over all of them; keep the best set."""
    free = [
        cpu
        for cpu in question.topology.cpus
        if cpu.number in question.usable and (question.force or cpu.number not in question.taken)
    ]
    if len(free) < engines:
        raise _too_few(question, engines)
    pools = [[cpu for cpu in free if cpu.node == node] for node in question.topology.nodes]
    sets = [_pick_from(question, pool, engines) for pool in pools if len(pool) >= engines]
    if not sets:  # No node is large enough: only then does the set cross nodes.
        sets = [_pick_from(question, free, engines)]
    return min(sets)[1]


def _pick_from(
    question: _Question, pool: list[Cpu], engines: int
) -> tuple[list[tuple[float, ...]], tuple[int, ...]]:
    chosen: list[int] = []
    costs: list[tuple[float, ...]] = []
    for _ in range(engines):
        left = [cpu for cpu in pool if cpu.number not in chosen]
        cost, number = min((_cost(question, cpu, chosen), cpu.number) for cpu in left)
        costs.append(cost)
        chosen.append(number)
    return sorted(costs, reverse=True), tuple(chosen)  # Compare sets by their worst member.


def _cost(question: _Question, cpu: Cpu, chosen: list[int]) -> tuple[float, ...]:
    """Return what speaks against a CPU, the weightiest first."""
    shared_core = any(s in question.taken or s in chosen for s in cpu.siblings)
    sibling_load = max((question.busy.get(s, 0.0) for s in cpu.siblings), default=0.0)
    core_has_cpu_0 = cpu.number == 0 or 0 in cpu.siblings
    return (
        cpu.number in question.taken,  # Only reached under --force.
        shared_core,
        not cpu.isolated,
        not cpu.nohz_full,
        sibling_load > BUSY_FRACTION,
        cpu.number == 0,
        core_has_cpu_0,
        question.busy.get(cpu.number, 0.0) > BUSY_FRACTION,
    )


def _too_few(question: _Question, engines: int) -> CpuError:
    taken = {cpu: pid for cpu, pid in question.taken.items() if cpu in question.usable}
    if len(taken) == 1 and engines == 1:
        return CpuTaken(*next(iter(taken.items())))
    held = ", ".join(f"CPU {cpu} by pid {pid}" for cpu, pid in sorted(taken.items()))
    return CpuError(
        f"{engines} engine(s) need {engines} free CPU(s), "
        f"{len(question.usable) - len(taken)} of {format_cpu_list(question.usable)} are free"
        + (f" (engines hold {held})" if held else ""),
        "ask for fewer --engines, stop an engine with `ppe down`, "
        "or share with --force and --idle sleep",
    )


def _housekeeping(
    question: _Question, allowed: frozenset[int], chosen: Iterable[int]
) -> tuple[int, ...]:
    """Return the best CPUs left: not an engine's, not isolated, not an engine's sibling."""
    engines = set(chosen) | set(question.taken)
    left = question.usable - engines
    if question.idle != "spin" and not left:
        return tuple(sorted(set(chosen)))  # An engine that gives its CPU up can share it.
    siblings = {s for cpu in question.topology.cpus if cpu.number in engines for s in cpu.siblings}
    for preferred in (
        (left & allowed) - question.topology.isolated - siblings,
        left - question.topology.isolated,
        left,
    ):
        if preferred:
            return tuple(sorted(preferred))
    return ()


def _nothing_left(question: _Question, chosen: tuple[int, ...]) -> tuple[int, ...]:
    if question.force:
        return tuple(sorted(question.usable))
    cpus = format_cpu_list(set(chosen))
    others = sorted(set(question.taken) & question.usable)
    held = f"; engines hold {format_cpu_list(set(others))}" if others else ""
    raise NoHousekeepingCpu(
        f"spinning on CPU {cpus} would leave no CPU for anything else "
        f"(usable: {format_cpu_list(question.usable)}{held})",
        "pass --idle yield or --idle sleep, use fewer --engines, or insist with --force",
    )


def _reason(question: _Question, number: int, chosen: tuple[int, ...], named: bool) -> str:
    cpu = question.topology.cpu(number)
    assert cpu is not None
    why = ["named by --cpu"] if named else []
    if cpu.isolated:
        why.append("isolated from the scheduler")
    if cpu.nohz_full:
        why.append("without a timer tick (nohz_full)")
    if not cpu.siblings:
        why.append("alone on its core")
    elif not any(s in chosen or s in question.taken for s in cpu.siblings):
        why.append(f"no engine on its sibling {format_cpu_list(cpu.siblings)}")
    if not named and number != 0 and 0 in question.usable:
        why.append("not CPU 0, which serves most interrupts")
    if len(question.topology.nodes) > 1:
        why.append(f"NUMA node {cpu.node}")
    return f"CPU {number}: " + ", ".join(why or ["the only one usable"])


def _warnings(
    question: _Question,
    allowed: frozenset[int],
    chosen: tuple[int, ...],
    housekeeping: tuple[int, ...],
) -> list[str]:
    found: list[str] = []
    nodes = set()
    for number in chosen:
        cpu = question.topology.cpu(number)
        assert cpu is not None
        nodes.add(cpu.node)
        if number in question.taken:
            pid = question.taken[number]
            found.append(f"CPU {number} is shared with the engine of pid {pid} (--force)")
        if number in housekeeping:
            found.append(f"CPU {number} also serves everything else, there is no other")
        elif not cpu.isolated:
            found.append(
                f"CPU {number} is not isolated: other threads may be scheduled there "
                "(see `ppe doctor`)"
            )
        if cpu.isolated is False and number not in allowed:
            found.append(f"CPU {number} is outside the affinity this process inherited")
        shared = set(cpu.siblings) & (set(housekeeping) | set(chosen) | set(question.taken))
        if shared:
            found.append(
                f"CPU {number} shares its core with CPU {format_cpu_list(shared)}, "
                "which is in use: expect up to half its speed"
            )
    if len(nodes) > 1:
        found.append(f"the engines lie on NUMA nodes {', '.join(map(str, sorted(nodes)))}")
    return found
