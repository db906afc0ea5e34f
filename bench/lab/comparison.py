"""Two result sets point by point: intervals on both sides, the ratio with its interval, a verdict.

The one rule: points are matched by every field that both sets know; what only one of them has is
listed and never compared. The sets ran at different times, so nothing is paired.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.lab import labels, statistics
from bench.lab.answers import by_repeat
from bench.lab.metrics import COMPARED, METRICS, Metric
from bench.lab.results import Point, Results, Run, flat, telling
from bench.lab.statistics import Interval

MACHINE_FACTS = ("cpu_model", "cpus", "kernel", "isolated", "hypervisor", "python")


@dataclass(frozen=True, slots=True)
class Row:
    """One metric at one point, in both sets."""

    point: str
    metric: Metric
    before: Interval
    after: Interval
    ratio: Interval | None

    @property
    def verdict(self) -> str:
        """The word, by the rule of `statistics.verdict`."""
        if self.ratio is None and self.before == self.after:
            return "same"  # both measured nothing but zeros
        return statistics.verdict(self.ratio, less_is_better=self.metric.less_is_better)

    def to_json(self) -> dict[str, Any]:
        """Return the object `--json` prints for this row."""
        return {
            "point": self.point,
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "ratio": None if self.ratio is None else self.ratio.to_json(),
            "verdict": self.verdict,
        }


@dataclass
class Comparison:
    """All that comparing two sets says."""

    before: str
    after: str
    rows: list[Row] = field(default_factory=list)
    only_before: list[str] = field(default_factory=list)
    only_after: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    @property
    def verdicts(self) -> dict[str, int]:
        """How often each verdict was given."""
        words = [row.verdict for row in self.rows]
        return {word: words.count(word) for word in statistics.VERDICTS}

    @property
    def by_chance(self) -> int:
        """How many verdicts other than `same` equal sets would be given, at most, on average."""
        carried = [row.ratio for row in self.rows if row.ratio and row.verdict in _CARRIED]
        return math.ceil(sum(1 - ratio.confidence for ratio in carried) - 1e-9)

    def to_json(self) -> dict[str, Any]:
        """Return the object `--json` prints."""
        return {
            "before": self.before,
            "after": self.after,
            "rows": [row.to_json() for row in self.rows],
            "verdicts": self.verdicts,
            "expected_by_chance": self.by_chance,
            "only_before": self.only_before,
            "only_after": self.only_after,
            "differences": self.differences,
        }


_CARRIED = ("same", "better", "worse", "unclear")


def compare(before: Results, after: Results, metrics: Sequence[str] = COMPARED) -> Comparison:
    """Compare two sets by these metrics. A metric that a side lacks at a point has no row there."""
    shared = _fields(before) & _fields(after)
    old, new = _matched(before, shared), _matched(after, shared)
    names = list(telling([*before.done, *after.done]))
    found = Comparison(str(before.directory), str(after.directory))
    found.differences = _differences(before, after)
    for key, runs in old.items():
        if key not in new:
            found.only_before.append(_name(runs, names))
            continue
        rows = (_row(_name(runs, names), METRICS[m], runs, new[key]) for m in metrics)
        found.rows.extend(row for row in rows if row is not None)
    found.only_after = [_name(runs, names) for key, runs in new.items() if key not in old]
    return found


def _name(runs: Sequence[Run], names: Sequence[str]) -> str:
    return labels.point(runs[0].point, names) or "the only point"


def _row(name: str, metric: Metric, before: Sequence[Run], after: Sequence[Run]) -> Row | None:
    old = list(by_repeat(before, metric.name).values())
    new = list(by_repeat(after, metric.name).values())
    if not old or not new:
        return None
    sides = statistics.median_interval(old), statistics.median_interval(new)
    return Row(name, metric, *sides, statistics.ratio_of_sets(old, new))


def _fields(results: Results) -> set[str]:
    return {name for run in results.done for name in flat(run.raw["point"])}


def _matched(results: Results, shared: set[str]) -> dict[Point, list[Run]]:
    """The points by the fields both sets know.

    Where a field of this set alone tells points apart they keep it, and so match nothing.
    """
    found: dict[Point, list[Run]] = {}
    short = {key: tuple(item for item in key if item[0] in shared) for key in results.points()}
    names = list(short.values())
    for key, runs in results.points().items():
        found[short[key] if names.count(short[key]) == 1 else key] = runs
    return found


def _differences(before: Results, after: Results) -> list[str]:
    """Say which facts differ: then different figures prove nothing about the code."""
    old, new = _facts(before), _facts(after)
    return [
        f"{name}: {old.get(name)} before, {new.get(name)} after"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _facts(results: Results) -> dict[str, Any]:
    if not results.runs:
        return {}
    raw: Mapping[str, Any] = results.runs[0].raw
    machine = raw.get("machine") if isinstance(raw.get("machine"), Mapping) else {}
    versions = raw.get("versions") if isinstance(raw.get("versions"), Mapping) else {}
    facts = {name: machine.get(name) for name in MACHINE_FACTS if machine}
    facts |= {f"version of {name}": value for name, value in (versions or {}).items()}
    return facts | {"sources": raw.get("sources")}
