"""Measure two things side by side and say how they compare.

Machines drift, so both sides run interleaved and only neighbours in time are divided by each other.
The one rule: without its reference a ratio is null with the reason, never a number.
"""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.reference_build import ReferenceMissing

SCHEMA: Final = "ppe-bench/1"
REPEATS_USUAL: Final = 5
# A percentile needs this many samples beyond it, or it is the story of one sample.
SAMPLES_BEYOND: Final = 10
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
ROOT: Final = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution in nanoseconds: bins are (low, high, count), low inclusive, in order."""

    count: int
    min: float
    mean: float
    max: float
    bins: tuple[tuple[float, float, int], ...]

    @classmethod
    def from_bins(cls, bins: Sequence[Sequence[float]]) -> "Latency":
        """Take the non-empty bins of any histogram. Raises ValueError when all are empty."""
        kept = tuple((float(low), float(high), int(n)) for low, high, n in bins if n)
        if not kept:
            raise ValueError("a distribution of no samples")
        count = sum(n for _, _, n in kept)
        mean = sum((low + high) / 2 * n for low, high, n in kept) / count
        return cls(count, kept[0][0], mean, kept[-1][1], kept)

    @classmethod
    def from_reference(cls, printed: Mapping[str, Any]) -> "Latency":
        """Take the `latency_ns` object that a reference program prints."""
        bins = tuple((float(low), float(high), int(n)) for low, high, n in printed["bins"])
        return cls(printed["count"], printed["min"], printed["mean"], printed["max"], bins)

    def percentile(self, percent: float) -> float | None:
        """Return the percentile in ns, linear within its bin; None when too few samples lie beyond.

        The middle needs no such care, so anything up to 50 is always answered.
        """
        if percent > 50 and self.count * (1 - percent / 100) < SAMPLES_BEYOND:
            return None
        rank = max(1, math.ceil(self.count * percent / 100))
        seen = 0
        for low, high, n in self.bins:
            if seen + n >= rank:
                inside = low + (high - low) * (rank - seen) / n
                return min(max(inside, self.min), self.max)
            seen += n
        return self.max

    def to_json(self) -> dict[str, Any]:
        """Return the `latency_ns` object of a result file."""
        return {
            "count": self.count,
            "min": self.min,
            "mean": self.mean,
            "max": self.max,
            "percentiles": {f"{p:g}": self.percentile(p) for p in PERCENTILES},
            "bins": [list(row) for row in self.bins],
        }


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of one thing: its headline `value` in `unit`, and everything that explains it.

    `placement` says where its sides ran and how they waited. `details` holds what else the run
    counted: throughput, CPU accounts, system calls.
    """

    name: str
    value: float
    unit: str
    placement: str
    latency: Latency | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the object that stands in `runs`."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "placement": self.placement,
            "latency_ns": self.latency.to_json() if self.latency else None,
            "details": dict(self.details),
        }


Run = Callable[[], Measurement]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over the reference: the median of adjacent pairs with its spread, or None and why."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    pairs: tuple[float, ...] = ()
    ours: str = ""
    reference: str = ""
    reason: str | None = None

    @classmethod
    def missing(cls, name: str, reason: str) -> "Ratio":
        """Make the ratio of something that was not measured."""
        return cls(name, None, reason=reason)


@dataclass(slots=True)
class Result:
    """All that one invocation measured; written as one JSON file."""

    benchmark: str
    config: Mapping[str, Any] = field(default_factory=dict)
    cores: tuple[int, ...] = ()
    clock: Mapping[str, Any] = field(default_factory=dict)
    argv: list[str] = field(default_factory=lambda: list(sys.argv))
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    runs: list[Measurement] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what explains the runs, for people
    machine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.machine:
            self.machine = machine.facts(self.cores)
        self.warnings.extend(machine.warnings(self.machine))

    def pair(
        self, name: str, ours: Run, reference: Run | None, repeats: int = REPEATS_USUAL
    ) -> Ratio:
        """Run both sides interleaved, keep every run, and add the ratio `name`.

        With no reference, or one that raises ReferenceMissing, ours runs once and the ratio is
        null. A failure of ours is raised: it is a fault, not a missing figure.
        """
        runs, ratio = interleave(name, ours, reference, repeats)
        self.runs.extend(runs)
        self.ratios.append(ratio)
        if ratio.reason:
            self.warnings.append(f"{name} not measured: {ratio.reason}")
        return ratio

    def to_json(self) -> dict[str, Any]:
        """Return the whole result: `ratios` is flat, name to number or null."""
        return {
            "schema": SCHEMA,
            "tool": {"name": "ppe", "version": tool_version()},
            "benchmark": self.benchmark,
            "git": git_facts(),
            "started": self.started.isoformat(timespec="seconds"),
            "argv": self.argv,
            "config": dict(self.config),
            "machine": self.machine,
            "clock": dict(self.clock),
            "runs": [run.to_json() for run in self.runs],
            "ratios": {ratio.name: ratio.value for ratio in self.ratios},
            "ratio_details": {ratio.name: asdict(ratio) for ratio in self.ratios},
            "notes": self.notes,
            "warnings": self.warnings,
        }

    def save(self, directory: Path) -> Path:
        """Write the result into `directory` under a name nothing has yet, and return its path."""
        directory.mkdir(parents=True, exist_ok=True)
        stem = f"{self.started:%Y-%m-%d-%H%M%S}-{self.benchmark}"
        text = json.dumps(self.to_json(), indent=1) + "\n"
        for attempt in range(1000):
            path = directory / (f"{stem}-{attempt}.json" if attempt else f"{stem}.json")
            try:
                with path.open("x") as file:
                    file.write(text)
            except FileExistsError:
                continue
            return path
        raise FileExistsError(f"{directory} holds a thousand results named {stem}")


def interleave(
    name: str, ours: Run, reference: Run | None, repeats: int = REPEATS_USUAL
) -> tuple[list[Measurement], Ratio]:
    """Run reference, ours, reference, ours, ..., reference; return all runs and their ratio.

    Ours runs `repeats` times, each time between two runs of the reference. The reference goes
    first, so that a missing one costs one run of ours and no more.
    """
    if repeats < 1:
        raise ValueError("repeats must be at least 1")
    if reference is None:
        return [ours()], Ratio.missing(name, "there is no reference")
    mine: list[Measurement] = []
    theirs: list[Measurement] = []
    runs: list[Measurement] = []
    try:
        theirs.append(reference())
        runs.append(theirs[-1])
        for _ in range(repeats):
            mine.append(ours())
            runs.append(mine[-1])
            theirs.append(reference())
            runs.append(theirs[-1])
    except ReferenceMissing as error:
        return [*runs, *([] if mine else [ours()])], Ratio.missing(name, str(error))
    return runs, ratio_of(name, mine, theirs)


def ratio_of(name: str, ours: Sequence[Measurement], reference: Sequence[Measurement]) -> Ratio:
    """Divide neighbours: each run of ours by the reference before it and by the one after it.

    With a reference on either side of every run a steady drift cancels. `low` and `high` are the
    quartiles of the pairs.
    """
    pairs: list[float] = []
    for index, run in enumerate(ours):
        for neighbour in reference[index : index + 2]:
            if neighbour.unit != run.unit:
                raise ValueError(f"{name}: {run.unit} over {neighbour.unit} is no ratio")
            if neighbour.value <= 0:
                return Ratio.missing(name, f"the reference measured {neighbour.value}")
            pairs.append(run.value / neighbour.value)
    low, middle, high = quartiles(pairs)
    return Ratio(name, middle, low, high, tuple(pairs), ours[0].placement, reference[0].placement)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def best_layout(candidates: Mapping[str, Run], *, lower_is_better: bool) -> tuple[str, Run]:
    """Try each layout of a reference once and return the best, which is the one that counts.

    Raises ReferenceMissing with every reason when none of them can run.
    """
    values: dict[str, float] = {}
    reasons: list[str] = []
    for layout, run in candidates.items():
        try:
            values[layout] = run().value
        except ReferenceMissing as error:
            reasons.append(f"{layout}: {error}")
    if not values:
        raise ReferenceMissing("; ".join(reasons) or "no layout was given")
    choose = min if lower_is_better else max
    best = choose(values, key=lambda layout: values[layout])
    return best, candidates[best]


def tool_version() -> str:
    """Return the installed version, or a plain statement that there is none."""
    try:
        return metadata.version("ppe-runtime")
    except metadata.PackageNotFoundError:
        return "not installed"


def git_facts() -> dict[str, Any]:
    """Say which sources were measured; both values are None outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain") if commit else None
    return {"id": commit or None, "dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    # A packaged copy may lie inside somebody else's repository, whose id would be a false one.
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
