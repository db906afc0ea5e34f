"""Which split of the cores suits a workload: every candidate predicted, one recommended, and why.

The one rule: a lead smaller than the model's own error is no lead; then the cheaper one is taken,
by busy CPU of all cores, and the text says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from bench.lab import labels, model, statistics
from bench.lab.answers import by_repeat
from bench.lab.calibration import Expected, Family, Setting, predict, setting_of, under_way

PREFERENCES: Final = ("throughput", "latency", "cpu")
ERROR_LEAST: Final = 0.02
ERROR_UNKNOWN: Final = 0.15  # of a model that no held-out point has tried
PATIENCE: Final = 2.0  # min_wait in times it takes to gather N completions


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration with what the model expects of it."""

    family: Family
    setting: Setting
    expected: Expected

    @property
    def label(self) -> str:
        """The configuration on one line."""
        layout = self.setting.layout
        parts = [self.family.name]
        if not self.family.smp:
            parts.append(_counted(layout.engines, "engine"))
        parts.append(_counted(layout.hosts, "host thread"))
        if self.setting.wait_n > 1:
            parts.append(f"wait_n {self.setting.wait_n}")
        return ", ".join(parts)

    def min_wait_us(self) -> float | None:
        """A `min_wait` that ends a wait when load falls, and seldom while it lasts."""
        if self.setting.wait_n == 1:
            return None
        rate = self.expected.iops / self.setting.sessions
        return PATIENCE * (self.setting.wait_n - 1) / rate * 1e6

    def to_json(self) -> dict[str, Any]:
        """Return the object `--json` prints."""
        return {
            "placement": "smp" if self.family.smp else "amp",
            "family": self.family.name,
            "engines": 0 if self.family.smp else self.setting.layout.engines,
            "hosts": self.setting.layout.hosts,
            "wait_n": self.setting.wait_n,
            "min_wait_us": self.min_wait_us(),
            "sessions": self.setting.sessions,
            "depth": self.setting.depth,
            "iops": self.expected.iops,
            "latency_us": self.expected.latency_s * 1e6,
            "host_cpu_us": self.expected.host_cpu_s * 1e6,
            "total_cpu_us": self.expected.total_cpu_s * 1e6,
            "bottleneck": self.expected.bottleneck,
        }


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer for one workload: the candidates from best to worst, and the reason."""

    workload: str
    candidates: tuple[Candidate, ...]
    reason: str
    error: float

    @property
    def best(self) -> Candidate:
        """What is recommended."""
        return self.candidates[0]


def advise(
    families: Sequence[Family], cores: int, depth: int | None = None, prefer: str = "throughput"
) -> list[Advice]:
    """One piece of advice for each workload, on that many cores.

    Without `depth` the deepest measured one counts. A workload of which nothing fits on the cores
    has no advice.
    """
    found = []
    for workload in dict.fromkeys(family.workload for family in families):
        group = [family for family in families if family.workload == workload]
        at = depth or max(under_way(runs[0]) for f in group for runs in f.points.values())
        candidates = [c for family in group for c in _candidates(family, cores, at)]
        if candidates:
            found.append(_choose(workload, candidates, prefer))
    return found


def _candidates(family: Family, cores: int, depth: int) -> Iterator[Candidate]:
    """Every split that fits, with every N up to the depth that is a power of two."""
    together = {role for roles in family.layout.shared for role in roles}
    target = 1 if family.costs.target_s > 0 and "target" not in together else 0
    joined = any({"host", "engine"} <= roles for roles in family.layout.shared)
    for engines in (1,) if family.smp else range(1, cores + 1):
        for hosts in range(1, cores + 1):
            own = 0 if family.smp or joined else engines
            if own + hosts + target > cores:
                continue
            layout = replace(family.layout, engines=engines, hosts=hosts)
            each = max(1, depth // hosts)  # every host has a session
            for n, min_wait_s in _waits(family, each):
                setting = Setting(layout, each, hosts, n, min_wait_s)
                expected = predict(family.costs, setting)
                if expected is not None:
                    yield Candidate(family, setting, expected)


def _waits(family: Family, depth: int) -> list[tuple[int, float | None]]:
    """N with the `min_wait` of its prediction.

    N is worth a thought only where it is known what a wake-up costs, and up to half the depth:
    beyond it the model promises too much.
    """
    most = max(1, depth // 2)
    if family.costs.wake_s == 0:
        fewest = min(
            (setting_of(runs[0]) for runs in family.points.values()), key=lambda s: s.wait_n
        )
        return [(min(fewest.wait_n, most), fewest.min_wait_s)]
    return [(1 << power, None) for power in range(most.bit_length())]


def _choose(workload: str, candidates: Sequence[Candidate], prefer: str) -> Advice:
    keys = {
        "throughput": lambda c: -c.expected.iops,
        "latency": lambda c: c.expected.latency_s,
        "cpu": lambda c: c.expected.total_cpu_s,
    }
    first = min(candidates, key=keys[prefer])
    error = max(_error(c.family) for c in candidates)
    good = [c for c in candidates if _as_good(c, first, prefer, error)]
    best = min(good, key=lambda c: (c.expected.total_cpu_s, -c.expected.iops))
    rest = sorted((c for c in candidates if c is not best), key=keys[prefer])
    return Advice(workload, (best, *rest), _reason(best, first, candidates, prefer, error), error)


def _error(family: Family) -> float:
    found = family.error()
    return ERROR_UNKNOWN if found is None else max(ERROR_LEAST, found)


def _as_good(one: Candidate, first: Candidate, prefer: str, error: float) -> bool:
    a, b = one.expected, first.expected
    if prefer == "throughput":
        return a.iops >= b.iops * (1 - error)
    if prefer == "latency":
        return a.latency_s <= b.latency_s * (1 + error)
    return a.total_cpu_s <= b.total_cpu_s * (1 + error)


def _reason(
    best: Candidate, first: Candidate, candidates: Sequence[Candidate], prefer: str, error: float
) -> str:
    """Why this one, and what it says of SMP against AMP."""
    kinds = {c.family.smp for c in candidates}
    if len(kinds) == 1:
        missing = "AMP" if best.family.smp else "SMP"
        opening = f"{missing} was not measured, so nothing is said about it."
    else:
        winner, loser = ("SMP", "AMP") if best.family.smp else ("AMP", "SMP")
        rivals = [c for c in candidates if c.family.smp != best.family.smp]
        rival = max(rivals, key=lambda c: c.expected.iops)
        speed = best.expected.iops / rival.expected.iops
        cost = best.expected.total_cpu_s / rival.expected.total_cpu_s
        opening = (
            f"{winner} is the better choice here: {speed:.2f} × the throughput of the fastest "
            f"{loser} at {cost:.2f} × its busy CPU per operation. {_measured(best, rival)}"
        )
    if best is first:
        return f"{opening} It is the best by {prefer}."
    return (
        f"{opening} {first.label} would lead by {prefer}, but by less than the model errs "
        f"({100 * error:.0f} %), and this one is the cheapest of those."
    )


def _measured(best: Candidate, rival: Candidate) -> str:
    """What the runs themselves say of the two families, at the deepest point of each."""
    ours, theirs = (by_repeat(c.family.deepest, "iops") for c in (best, rival))
    found = statistics.ratio(theirs, ours)
    if found is None:
        return "Their throughput was not measured side by side."
    word = statistics.verdict(found, less_is_better=False)
    return (
        f"Measured at the deepest point of both: {found.median:.2f} × [{found.low:.2f}, "
        f"{found.high:.2f}], {word}."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def explain(family: Family) -> str:
    """The demands of a family in one line."""
    costs = family.costs
    parts = [f"host {labels.number(costs.host_s * 1e6)}"]
    if costs.wake_s:
        parts.append(f"a wake-up {labels.number(costs.wake_s * 1e6)}")
    if costs.engine_s:
        parts.append(f"engine {labels.number(costs.engine_s * 1e6)}")
    if costs.target_s:
        parts.append(f"target {labels.number(costs.target_s * 1e6)}")
    if costs.stretch > 1.01:
        parts.append(f"by the clock {costs.stretch:.2f} times that")
    parts.append(f"under way without a core {labels.number(costs.delay_s * 1e6)}")
    return f"{', '.join(parts)} (µs per operation)"


METHOD: Final = " ".join((model.__doc__ or "").split("The one rule")[0].split())
