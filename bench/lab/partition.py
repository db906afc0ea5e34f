"""Which cores a run uses: engines, hosts and target, from what a point asks and a machine has.

The one rule: nothing is given a core that another has unless the experiment says `shared`, and a
core that an engine spins on is nobody else's at all.
"""

from collections import defaultdict
from dataclasses import dataclass

from bench.lab.points import AUTO, INLINE, Impossible, Point
from ppe.topology import parse_cpu_list


@dataclass(frozen=True, slots=True)
class Machine:
    """The cores this process may use, and those of them that the scheduler leaves alone."""

    usable: tuple[int, ...]
    isolated: frozenset[int] = frozenset()
    no_frequency: str = "it was not looked at"  # why the clock cannot be set, or ""

    @classmethod
    def here(cls) -> "Machine":
        """This machine, as far as this process may use it."""
        import os

        from bench.lab.frequency import refusal
        from ppe.partition import usable_cpus
        from ppe.topology import read_topology

        topology = read_topology()
        usable = usable_cpus(topology, frozenset(os.sched_getaffinity(0)))
        isolated = frozenset(topology.isolated) & usable
        return cls(tuple(sorted(usable)), isolated, refusal(sorted(usable)))

    def __str__(self) -> str:
        return ", ".join(map(str, self.usable))


@dataclass(frozen=True, slots=True)
class Cores:
    """Where everything of one run is."""

    engine: tuple[int, ...]
    host: tuple[int, ...]
    target: tuple[int, ...]
    shared: bool
    isolated: bool

    @property
    def all(self) -> tuple[int, ...]:
        """Every core of the run, once."""
        return tuple(sorted({*self.engine, *self.host, *self.target}))

    def to_json(self) -> dict[str, object]:
        """The `cores` of a result file."""
        return {
            "engine": list(self.engine),
            "host": list(self.host),
            "target": list(self.target),
            "shared": self.shared,
            "isolated": self.isolated,
        }


def divide(point: Point, machine: Machine) -> Cores:
    """Give every part of a run its cores. Raises Impossible, which names the field to change."""
    if point.frequency_percent and machine.no_frequency:
        raise Impossible("frequency_percent", machine.no_frequency)
    engine = _engine(point, machine)
    spinning = set(engine) if point.idle == "spin" else set()
    # An engine that gives its core up can share it, where there is no other.
    rest = tuple(core for core in machine.usable if core not in engine)
    rest = rest or tuple(core for core in machine.usable if core not in spinning)
    if not rest:
        raise Impossible(
            "engines",
            f"{point.engines} spinning engines leave no core for the hosts: there are "
            f'{machine}; use fewer engines, or idle = "sleep"',
        )
    host = _host(point, machine, rest)
    target = _target(point, machine, (engine, host, rest))
    apart = bool(engine) and machine.isolated >= {*engine}
    found = Cores(engine, host, target, _is_shared(engine, host, target), apart)
    _check(point, found, spinning)
    return found


def _named(key: str, text: str, machine: Machine) -> tuple[int, ...]:
    cores = tuple(sorted(parse_cpu_list(text))) if text else ()
    for core in cores:
        if core not in machine.usable:
            raise Impossible(key, f"core {core} is not among those this process may use: {machine}")
    return cores


def _engine(point: Point, machine: Machine) -> tuple[int, ...]:
    if point.placement == INLINE:
        return ()
    named = _named("engine_cores", point.engine_cores, machine)
    if named:
        found = named
    elif point.engines > len(machine.usable):
        raise Impossible(
            "engines",
            f"{point.engines} engines want {point.engines} cores, and there are "
            f"{len(machine.usable)}: {machine}",
        )
    else:  # Isolated cores first, and core 0 last: it has most interrupts.
        liked = sorted(machine.usable, key=lambda core: (core not in machine.isolated, -core))
        found = tuple(sorted(liked[: point.engines]))
    foreign = [core for core in found if core not in machine.isolated]
    if point.isolated and foreign:
        raise Impossible(
            "isolated",
            f"core {foreign[0]} is not isolated (isolcpus=): give one that is in engine_cores, or "
            "leave isolated out",
        )
    return found


def _host(point: Point, machine: Machine, rest: tuple[int, ...]) -> tuple[int, ...]:
    named = _named("host_cores", point.host_cores, machine)
    if named or not point.pinned:
        return named or rest
    if point.hosts > len(rest):
        raise Impossible(
            "hosts",
            f"{point.hosts} pinned hosts want {point.hosts} cores, and beside "
            f"{point.engines} engines there are {len(rest)} of {machine}",
        )
    return rest[: point.hosts]


def _target(point: Point, machine: Machine, given: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    engine, host, rest = given
    named = _named("target_cores", point.target_cores, machine)
    if named:
        return named
    free = tuple(core for core in rest if core not in host)
    if point.target_on == "own" and not free:
        raise Impossible(
            "target_on",
            f"no core of {machine} is left for a target of its own beside {point.engines} engines "
            f'and {point.hosts} hosts; use "host" with shared = true',
        )
    if point.target_on == "engine" and not engine:
        raise Impossible("target_on", "inline has no engine whose core the target could have")
    if point.target_on == "own" or (point.target_on == AUTO and free):
        return free[:1]
    return {"engine": engine, "any": rest}.get(point.target_on, host)


def _users(
    engine: tuple[int, ...], host: tuple[int, ...], target: tuple[int, ...]
) -> dict[int, list[str]]:
    users: dict[int, list[str]] = defaultdict(list)
    for name, cores in (("engine", engine), ("host", host), ("target", target)):
        for core in cores:
            users[core].append(name)
    return users


def _is_shared(engine: tuple[int, ...], host: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return any(len(names) > 1 for names in _users(engine, host, target).values())


def _check(point: Point, cores: Cores, spinning: set[int]) -> None:
    for core, names in sorted(_users(cores.engine, cores.host, cores.target).items()):
        if len(names) < 2:
            continue
        who = " and ".join(names)
        if core in spinning:
            raise Impossible(
                "idle",
                f"core {core} has {who}, and an engine that spins leaves its core to nobody: use "
                'idle = "sleep" or "yield", or other cores',
            )
        if not point.shared:
            raise Impossible(
                "shared", f"core {core} is used twice, by {who}: say shared = true if it may be"
            )
    if point.wait_mode == "spin" and set(cores.host) & set(cores.target) and point.pinned:
        raise Impossible(
            "wait_mode",
            "a host that spins shares its core with the target: use sleep, or another core",
        )
