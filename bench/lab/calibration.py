"""From measured runs to the demands of the queueing model, and from those to every other point.

A family is what shares all settings but depth, sessions, engines, hosts, N and rate. Few of its
points, the anchors, give its demands: the deepest says what an operation costs, and how much longer
than its CPU time that takes; the shallowest how long it is under way while no core works on it; and
a second N what a wake-up costs.

The one rule: a point that was an anchor is marked as such wherever it is shown, because the model
cannot be wrong there; what it is worth shows at the other points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final

from bench.lab import labels, model
from bench.lab.answers import interval
from bench.lab.metrics import METRICS
from bench.lab.model import Prediction, Station
from bench.lab.results import Point, Results, Run, telling, varying
from bench.lab.statistics import Interval

FREE: Final = ("depth", "sessions", "engines", "hosts", "wait_n", "wait_us", "rate_per_s")
COALESCING: Final = "datamover"  # the placement whose events are commands
ROLES: Final = ("host", "engine", "target")
STRETCH_MAX: Final = 64.0
STRETCH_STEPS: Final = 30
STRETCH_TOLD: Final = 1.1
FULL: Final = 0.97  # a role busy for more than this share of a core was never idle
EQUAL_INTERVALS: Final = 0.0  # how an open loop's operations fall due


class Uncalibrated(ValueError):
    """The runs of a family do not give the model's demands; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a core for one operation, by role; `wake_s` for one wake-up of a host.

    `stretch` is how much longer that takes by the clock: 1 where a core has nothing else to do.
    """

    host_s: float
    engine_s: float
    target_s: float
    wake_s: float = 0.0
    delay_s: float = 0.0
    stretch: float = 1.0
    host_spins: bool = False
    engine_spins: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """How many cores each role has, and which roles share them."""

    engines: int
    hosts: int
    shared: frozenset[frozenset[str]] = frozenset()  # sets of roles on common cores

    def stations(self, costs: Costs, wakes_per_op: float) -> list[Station]:
        """The model's stations: one for each set of roles that shares cores."""
        demand = {
            "host": costs.host_s + costs.wake_s * wakes_per_op,
            "engine": costs.engine_s,
            "target": costs.target_s,
        }
        cores = {"host": self.hosts, "engine": self.engines, "target": 1}
        left = {role for role in ROLES if demand[role] > 0}
        found = []
        for roles in [*self.shared, *(frozenset({role}) for role in ROLES)]:
            here = [role for role in ROLES if role in roles and role in left]
            left -= set(here)
            if here:
                many = max(cores[role] for role in here)
                time = costs.stretch * sum(demand[role] for role in here)
                found.append(Station(" and ".join(here), time, many))
        return found


@dataclass(frozen=True, slots=True)
class Setting:
    """One configuration to predict. `depth` and `wait_n` are those of each session."""

    layout: Layout
    depth: int
    sessions: int = 1
    wait_n: int = 1
    min_wait_s: float | None = None
    rate_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """A prediction with the CPU that goes with it, spinning included."""

    iops: float
    latency_s: float
    host_cpu_s: float
    total_cpu_s: float
    bottleneck: str


@dataclass(frozen=True, slots=True)
class Residual:
    """One metric at one point: measured beside predicted, in the metric's unit."""

    point: str
    metric: str
    measured: Interval
    predicted: float
    anchor: bool

    @property
    def share(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return self.predicted / self.measured.median - 1

    def to_json(self) -> dict[str, Any]:
        """Return the object `--json` prints."""
        return {
            "point": self.point,
            "metric": self.metric,
            "unit": METRICS[self.metric].unit,
            "measured": self.measured.to_json(),
            "predicted": self.predicted,
            "residual": self.share,
            "anchor": self.anchor,
        }


@dataclass
class Family:
    """Points that one set of demands describes."""

    name: str
    workload: str
    smp: bool
    points: dict[Point, list[Run]]
    costs: Costs = field(default_factory=lambda: Costs(0, 0, 0))
    layout: Layout = field(default_factory=lambda: Layout(1, 1))
    anchors: set[Point] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def deepest(self) -> list[Run]:
        """The repeats of the point with most operations under way."""
        return max(self.points.values(), key=lambda runs: under_way(runs[0]))

    def residuals(self) -> list[Residual]:
        """Prediction beside measurement at every point, anchors included."""
        names = [name for name in _varying(self.points) if name in FREE]
        found = []
        for key, runs in self.points.items():
            expected = predict(self.costs, setting_of(runs[0]))
            if expected is None:
                continue
            label = labels.point(runs[0].point, names) or "the only point"
            values = {
                "iops": expected.iops / 1e3,
                "mean": expected.latency_s * 1e6,
                "host_cpu": expected.host_cpu_s * 1e6,
                "total_cpu": expected.total_cpu_s * 1e6,
            }
            for metric, value in values.items():
                measured = interval(runs, metric)
                if measured is not None and measured.median > 0:
                    found.append(Residual(label, metric, measured, value, key in self.anchors))
        return found

    def error(self) -> float | None:
        """The median of how far the throughput is off at points that were no anchors."""
        off = [abs(r.share) for r in self.residuals() if r.metric == "iops" and not r.anchor]
        return median(off) if off else None


def families(results: Results) -> tuple[list[Family], list[str]]:
    """Every family of a set with its demands, and why others have none."""
    found: dict[tuple[Any, ...], dict[Point, list[Run]]] = {}
    for key, runs in results.points().items():
        rest = tuple(item for item in key if item[0] not in FREE)
        found.setdefault(rest, {})[key] = runs
    names = [name for name in telling(results.done) if name not in FREE]
    how = [name for name in names if name in ("placement", "wait_mode", "idle", "target")]
    work = [name for name in names if name not in how]
    made, refused = [], []
    for points in found.values():
        first = next(iter(points.values()))[0]
        name = labels.point(first.point, ["placement", *(n for n in how if n != "placement")])
        workload = labels.point(first.point, work)
        family = Family(name, workload, first.smp, points)
        try:
            _calibrate(family)
            made.append(family)
        except Uncalibrated as error:
            refused.append(f"{name}{', ' if workload else ''}{workload}: {error}")
    return made, refused


def predict(costs: Costs, setting: Setting) -> Expected | None:
    """What a configuration will do; None when it cannot keep up with its rate."""
    n = max(1, min(setting.wait_n, setting.depth))
    found: Prediction | None
    if setting.rate_per_s is not None:
        # A host is woken by each command that falls due, and takes what has ended until then.
        interval_s = setting.sessions / setting.rate_per_s
        held_s = min(interval_s / 2, setting.min_wait_s or interval_s) if n > 1 else 0.0
        n, stations = 1, setting.layout.stations(costs, 1.0)
        delay_s = costs.delay_s + held_s
        found = model.open_loop(stations, delay_s, setting.rate_per_s, EQUAL_INTERVALS)
    else:
        stations = setting.layout.stations(costs, 1 / n)
        found = model.coalesced(
            stations, costs.delay_s, setting.depth, n, setting.min_wait_s, setting.sessions
        )
    if found is None:
        return None
    rate = found.throughput_per_s
    wakes = 1 / model.batch(n, setting.depth, rate / setting.sessions, setting.min_wait_s)
    host = costs.host_s + costs.wake_s * wakes
    if costs.host_spins:
        host = max(host, setting.layout.hosts / rate)
    engine = costs.engine_s
    if costs.engine_spins and engine > 0:
        engine = max(engine, setting.layout.engines / rate)
    total = host + engine + costs.target_s
    return Expected(rate, found.latency_s, host, total, found.bottleneck)


def setting_of(run: Run) -> Setting:
    """The configuration a run had."""
    point = run.raw["point"]
    rate, wait_us = point.get("rate_per_s"), point.get("wait_us")
    return Setting(
        _layout(run),
        _whole(point, "depth"),
        _whole(point, "sessions"),
        _n(run),
        None if wait_us is None else wait_us * 1e-6,
        None if not rate else float(rate),
    )


def _calibrate(family: Family) -> None:
    """Find the demands. Raises Uncalibrated."""
    closed = {k: runs for k, runs in family.points.items() if not dict(k).get("rate_per_s")}
    if not closed:
        raise Uncalibrated("no closed loop was run, and an open one does not show the capacity")
    base = min(_split(runs[0]) for runs in closed.values())
    at_base = {k: runs for k, runs in closed.items() if _split(runs[0]) == base}
    depths = {key: under_way(runs[0]) for key, runs in at_base.items()}
    # Of equal depth the point with the smaller N: there least is held back.
    deepest = max(at_base, key=lambda key: (depths[key], -_n(at_base[key][0])))
    shallowest = min(at_base, key=lambda key: (depths[key], _n(at_base[key][0])))
    family.anchors = {deepest, shallowest}
    runs = at_base[deepest]
    family.layout = setting_of(runs[0]).layout
    family.costs = _costs(runs, smp=family.smp)
    _find_wake(family, at_base, deepest)
    _find_times(family, at_base[shallowest], runs)
    _note_full_target(family, runs)
    if family.costs.host_spins:
        family.notes.append(
            "the hosts spin, so what they were measured to use is more than an operation needs: "
            "their demand is an upper bound"
        )
    if depths[shallowest] == depths[deepest]:
        family.notes.append(
            f"only {depths[deepest]} operations under way were run, so waiting for each other and "
            "waiting for nobody are not told apart: run a depth of 1 too"
        )
    if len(family.anchors) == len(family.points):
        family.notes.append("every point was an anchor: the residuals say nothing about the model")


def _note_full_target(family: Family, runs: Sequence[Run]) -> None:
    rate = _median(runs, "iops")
    if rate is not None and family.costs.target_s * rate * 1e3 >= FULL:
        family.notes.append(
            "the target was never idle: either it is the bottleneck or it spins, and then its "
            "demand is an upper bound"
        )


def _costs(runs: Sequence[Run], *, smp: bool) -> Costs:
    """The demands of the deepest point, where least time is spent waiting."""
    host = interval(runs, "host_cpu")
    if host is None:
        raise Uncalibrated("the host's CPU per operation was not measured")
    engine = 0.0 if smp else _of_process(runs, "engine")
    target = _of_process(runs, "target")
    if engine is None:
        raise Uncalibrated("the engine's CPU time was not measured")
    point = runs[0].raw["point"]
    return Costs(
        host.median * 1e-6,
        engine,
        target or 0.0,
        host_spins=point.get("wait_mode") == "spin",
        engine_spins=not smp and point.get("idle") in ("spin", "yield"),
    )


def _of_process(runs: Sequence[Run], role: str) -> float | None:
    """Useful CPU seconds of an operation in one process: what it burnt in empty passes is not."""
    found = []
    for run in runs:
        parts = [run.value(f"cpu.processes.{role}.{kind}_s") for kind in ("user", "system")]
        operations = run.value("operations")
        if parts[0] is None or parts[1] is None or not operations:
            continue
        empty = run.value("cpu.engine_empty_share") if role == "engine" else None
        found.append((parts[0] + parts[1]) * (1 - (empty or 0.0)) / operations)
    return median(found) if found else None


def _find_wake(family: Family, points: Mapping[Point, list[Run]], deepest: Point) -> None:
    """Part what a wake-up costs from the rest, by the point of the same depth with another N."""
    loop = _loop(points[deepest][0])
    same = {_n(runs[0]): key for key, runs in points.items() if _loop(runs[0]) == loop}
    least, most = min(same), max(same)
    often, seldom = (_median(points[same[n]], "host_cpu") for n in (least, most))
    if least == most or often is None or seldom is None:
        family.notes.append("N was not varied, so what a wake-up costs is not known apart")
        return
    family.anchors |= {same[least], same[most]}
    if often <= seldom:
        family.notes.append(
            "the host used no less CPU with a larger N: a wake-up costs nothing here"
        )
        return
    wake = (often - seldom) * 1e-6 / (1 / least - 1 / most)
    rest = max(0.0, often * 1e-6 - wake / least)
    family.costs = replace(family.costs, host_s=rest, wake_s=wake)


def _find_times(family: Family, shallow: Sequence[Run], deep: Sequence[Run]) -> None:
    """Find the delay, and the stretch with which the deepest point is as slow as it was measured.

    For each stretch the shallowest point gives the delay; the more stretch, the slower the deepest
    point, so bisection finds it. Where both are one point only the delay can be found.
    """
    family.costs = _with_delay(family.costs, shallow)
    rate, setting = (_median(deep, "iops") or 0.0) * 1e3, setting_of(deep[0])
    if under_way(deep[0]) > under_way(shallow[0]):

        def excess(stretch: float) -> float:
            costs = _with_delay(replace(family.costs, stretch=stretch), shallow)
            expected = predict(costs, setting)
            return -rate if expected is None else expected.iops - rate

        low, high = 1.0, STRETCH_MAX
        if excess(low) > 0:
            for _ in range(STRETCH_STEPS):
                middle = (low + high) / 2
                low, high = (middle, high) if excess(middle) > 0 else (low, middle)
            family.costs = _with_delay(replace(family.costs, stretch=high), shallow)
    if family.costs.stretch > STRETCH_TOLD:
        family.notes.append(
            f"an operation took {family.costs.stretch:.1f} times its CPU time even at the deepest "
            "point: cores were taken by others, or something waits that the model does not know"
        )
    if family.costs.delay_s == 0:
        family.notes.append(
            "at the shallowest point CPU time explains all of the latency, or more than all of it"
        )


def _with_delay(costs: Costs, runs: Sequence[Run]) -> Costs:
    """The same costs with the delay that explains these runs. Raises Uncalibrated."""
    setting, rate = setting_of(runs[0]), _median(runs, "iops")
    if not rate:
        raise Uncalibrated("operations a second were not measured")
    stations = setting.layout.stations(costs, 1 / min(setting.wait_n, setting.depth))
    rate_per_s, sessions = rate * 1e3, setting.sessions
    found = model.batch(setting.wait_n, setting.depth, rate_per_s / sessions, setting.min_wait_s)
    active = max(1, round(sessions * (setting.depth - (found - 1) / 2)))
    return replace(costs, delay_s=model.delay_of(stations, active, rate_per_s))


def _layout(run: Run) -> Layout:
    point = run.raw["point"]
    kept = run.raw.get("cores")
    cores = kept if isinstance(kept, Mapping) else {}
    groups = [
        ({role}, {int(core) for core in cores[role]})
        for role in ROLES
        if isinstance(cores.get(role), list) and cores[role] and not (role == "engine" and run.smp)
    ]
    merged: list[tuple[set[str], set[int]]] = []
    for roles, places in groups:
        for other in [each for each in merged if each[1] & places]:
            merged.remove(other)
            roles, places = roles | other[0], places | other[1]  # noqa: PLW2901
        merged.append((roles, places))
    shared = frozenset(frozenset(roles) for roles, _ in merged if len(roles) > 1)
    # Threads beyond the cores they may use add no core.
    engines, hosts = (
        min(_whole(point, f"{role}s"), len(cores.get(role) or ()) or _whole(point, f"{role}s"))
        for role in ("engine", "host")
    )
    return Layout(engines, hosts, shared)


def _varying(points: Mapping[Point, list[Run]]) -> list[str]:
    return list(varying([runs[0] for runs in points.values()]))


def _split(run: Run) -> tuple[int, int]:
    return _whole(run.raw["point"], "engines"), _whole(run.raw["point"], "hosts")


def _n(run: Run) -> int:
    """How many completions a host waits for: half the depth where it chooses for itself."""
    point = run.raw["point"]
    if point.get("wait_n"):
        return _whole(point, "wait_n")
    chooses = point.get("placement") == COALESCING and "wait_us" in point
    return max(1, _whole(point, "depth") // 2) if chooses else 1


def under_way(run: Run) -> int:
    """The operations under way in all sessions."""
    return _whole(run.raw["point"], "depth") * _whole(run.raw["point"], "sessions")


def _loop(run: Run) -> tuple[int, int]:
    return _whole(run.raw["point"], "depth"), _whole(run.raw["point"], "sessions")


def _whole(point: Mapping[str, Any], name: str) -> int:
    return max(1, int(point.get(name) or 1))


def _median(runs: Sequence[Run], metric: str) -> float | None:
    found = interval(runs, metric)
    return None if found is None else found.median
