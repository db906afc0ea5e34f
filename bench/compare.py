"""Compare two result files, run by run, and call things the same when they are.

Each side's median gets a bootstrap interval over its repeats; where two intervals overlap the
verdict is "same". The one rule: never a verdict where the repeats cannot carry one.
"""

import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench import machine
from bench.harness import SCHEMA

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95
# Of fewer repeats than this the interval of a median says nothing.
REPEATS_LEAST: Final = 3
# Units in which less is better; in every other more is.
LESS_IS_BETTER: Final = frozenset({"ns", "us", "ms", "s", "cycles", "cycles/op", "calls/op"})


class NotAResult(Exception):
    """A file is not a result file this version can read. The message names file and reason."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with the bounds the repeats support."""

    low: float
    median: float
    high: float
    repeats: int


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that both files measured, or that only one of them did."""

    name: str
    placement: str
    unit: str
    before: Interval | None
    after: Interval | None

    @property
    def change(self) -> float | None:
        """After over before, or None when either is missing or zero."""
        if self.before is None or self.after is None or self.before.median == 0:
            return None
        return self.after.median / self.before.median

    @property
    def verdict(self) -> str:
        """One of: same, better, worse, changed, too few repeats, only before, only after."""
        if self.before is None:
            return "only after"
        if self.after is None:
            return "only before"
        if min(self.before.repeats, self.after.repeats) < REPEATS_LEAST:
            return "too few repeats"
        if self.before.low <= self.after.high and self.after.low <= self.before.high:
            return "same"
        if self.unit == "ratio":  # which way is good depends on what was divided
            return "changed"
        fell = self.after.median < self.before.median
        return "better" if fell == (self.unit in LESS_IS_BETTER) else "worse"

    def to_json(self) -> dict[str, Any]:
        """Return the object `--json` prints for this row."""
        sides = {
            side: None if interval is None else [interval.low, interval.median, interval.high]
            for side, interval in (("before", self.before), ("after", self.after))
        }
        return {
            "name": self.name,
            "placement": self.placement,
            "unit": self.unit,
            **sides,
            "change": self.change,
            "verdict": self.verdict,
        }


def load(path: Path) -> dict[str, Any]:
    """Read a result file. Raises NotAResult when it is none, or of another schema."""
    try:
        result = json.loads(path.read_text())
    except OSError as error:
        raise NotAResult(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise NotAResult(f"{path}: not JSON: {error}") from error
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema != SCHEMA:
        raise NotAResult(f"{path}: schema is {schema!r}, this version reads {SCHEMA!r}")
    loaded: dict[str, Any] = result
    return loaded


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Row]:
    """Match two loaded results by name, placement and unit, runs first, then ratios."""
    old, new = _values(before), _values(after)
    keys = [*old, *(key for key in new if key not in old)]
    return [Row(*key, _interval_of(old, key), _interval_of(new, key)) for key in keys]


def interval(values: Sequence[float]) -> Interval:
    """Bootstrap the median of `values`; always the same answer for the same values."""
    if len(values) == 1:
        return Interval(values[0], values[0], values[0], 1)
    generator = random.Random(len(values))
    medians = sorted(
        statistics.median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    tail = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Interval(medians[tail], statistics.median(values), medians[-1 - tail], len(values))


def different_machines(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say which machine facts differ: then different figures prove nothing about the code."""
    facts = ("cpu_model", "cpus", "kernel", "isolated", "hypervisor", "versions")
    old, new = before["machine"], after["machine"]
    return [
        f"{fact}: {old.get(fact)} before, {new.get(fact)} after"
        for fact in facts
        if old.get(fact) != new.get(fact)
    ]


def show(before: dict[str, Any], after: dict[str, Any], console: Console) -> None:
    """Print the comparison as a table, with what differs between the machines below it."""
    table = Table(title=f"{before['benchmark']}: {before['started']} → {after['started']}")
    for heading in ("measured", "placement", "unit"):
        table.add_column(heading, overflow="fold")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("verdict")
    for row in compare(before, after):
        change = "" if row.change is None else f"{row.change:.3f}"
        table.add_row(
            row.name,
            row.placement,
            row.unit,
            _cell(row.before),
            _cell(row.after),
            change,
            row.verdict,
        )
    console.print(table)
    console.print(machine.summary(after["machine"]))
    for difference in different_machines(before, after):
        console.print(f"! not the same machine: {difference}")


def _values(result: dict[str, Any]) -> dict[tuple[str, str, str], list[float]]:
    """Gather repeats of the same thing; a ratio's repeats are its pairs."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for run in result["runs"]:
        values.setdefault((run["name"], run["placement"], run["unit"]), []).append(run["value"])
    for name, ratio in result["ratio_details"].items():
        if ratio["value"] is not None:
            values[(name, ratio["ours"], "ratio")] = ratio["pairs"]
    return values


def _interval_of(
    values: dict[tuple[str, str, str], list[float]], key: tuple[str, str, str]
) -> Interval | None:
    return interval(values[key]) if key in values else None


def _cell(side: Interval | None) -> str:
    return "" if side is None else f"{side.median:,.4g} [{side.low:,.4g}, {side.high:,.4g}]"
