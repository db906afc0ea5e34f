"""From a result set to the numbers of a figure: which field runs along x, what makes a line.

The one rule: runs that differ in any field but their repeat are never averaged together; a field
that is neither x nor a line becomes part of the line's name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench.lab import labels, statistics
from bench.lab.answers import WORKLOAD
from bench.lab.metrics import METRICS, Metric
from bench.lab.report.document import ALONE, Figure, Panel, Raw, Series, parts, slug
from bench.lab.results import Results, Run, Value, sortable, telling, varying
from bench.lab.statistics import Interval

PANELS_MAX: Final = 6
LINES_MAX: Final = 6  # of more in one panel nobody tells the colours apart
BAR_GROUPS_MAX: Final = 6
REPEATS_LEAST: Final = 2

Where = Callable[[Mapping[str, Any]], bool]


class NoFigure(ValueError):
    """The runs do not make this figure; the message says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A figure somebody asks for: `metric` over `x`, one line for each value of `lines`."""

    metric: str
    x: str
    lines: tuple[str, ...] = ()
    what: str = ""
    kind: str = "lines"
    where: Where | None = None
    lines_max: int = field(default=LINES_MAX)


@dataclass(frozen=True, slots=True)
class Spot:
    """The repeats of one point with what was measured there."""

    runs: Sequence[Run]
    interval: Interval

    @property
    def point(self) -> Mapping[str, Any]:
        """The configuration."""
        return self.runs[0].point


def spots(results: Results, metric: Metric, where: Where | None = None) -> list[Spot]:
    """The points that measured a metric at least twice. Raises NoFigure when there are none."""
    found = []
    for runs in results.points().values():
        if where is not None and not where(runs[0].point):
            continue
        values = [value for run in runs if (value := metric.of(run)) is not None]
        if len(values) >= REPEATS_LEAST:
            found.append(Spot(runs, statistics.median_interval(values)))
    if not found:
        raise NoFigure(
            f"{metric.label}: no point has measured it {REPEATS_LEAST} times, so there is no spread"
        )
    return found


def build(results: Results, wanted: Wanted, machine_line: str) -> list[Figure]:
    """Make the figure, in parts if it has many panels. Raises NoFigure."""
    metric = METRICS[wanted.metric]
    there = spots(results, metric, wanted.where)
    series, used = (_bars if wanted.kind == "bars" else _lines)(there, wanted)
    panels = _panels(series, wanted.lines_max)
    over = "by workload" if wanted.kind == "bars" else f"against {labels.field(wanted.x)}"
    what = wanted.what or f"{_capital(metric.label)} {over}"
    x_label = "workload" if wanted.kind == "bars" else labels.field(wanted.x)
    if wanted.x.endswith("_bytes") and wanted.kind == "lines":
        x_label += " (bytes)"
    whole = Figure(
        slug([results.experiment, wanted.metric, wanted.kind, wanted.x]),
        wanted.kind,
        x_label,
        metric.axis,
        panels,
        f"{what}. {spread_words(used)} {machine_line}",
        _alt(what, metric, panels),
        raw(used, metric),
    )
    return parts(whole, PANELS_MAX)


def raw(used: Sequence[Spot], metric: Metric) -> Raw:
    """One row for each run behind a figure: what it was, and the metric as it was measured."""
    runs = [run for spot in used for run in spot.runs]
    names = list(varying(runs))
    rows = [
        (run.id, str(run.repeat), *(_plain(run.point.get(name)) for name in names), repr(value))
        for run in runs
        if (value := metric.of(run)) is not None
    ]
    return Raw(("run", "repeat", *names, f"{metric.name} [{metric.unit or '1'}]"), tuple(rows))


def spread_words(used: Sequence[Spot]) -> str:
    """What the whiskers are, with the confidence they have."""
    repeats = sorted({spot.interval.repeats for spot in used})
    confidences = sorted({round(100 * spot.interval.confidence, 1) for spot in used})
    many = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
    sure = " to ".join(f"{c:g}" for c in dict.fromkeys([confidences[0], confidences[-1]]))
    return (
        f"Medians of {many} repeats; the whiskers are exact intervals of the median from order "
        f"statistics, of {sure} % confidence."
    )


def generic(results: Results) -> list[Wanted]:
    """The figures of an experiment nobody knows: x is the swept field, lines the second one.

    Fields count in the order in which the experiment's file sweeps them; x is the first that is a
    number, or the one with most values where the file does not say. Without any there are bars.
    """
    swept = telling(results.done)
    named = [name for name in _sweeps(results.spec.get("sweep")) if name in swept]
    order = [*named, *(name for name in swept if name not in named)]
    numeric = [name for name in order if all(map(_is_number, swept[name]))]
    if not numeric:
        return [Wanted(m, "placement", kind="bars") for m in ("iops", "p50", "total_cpu")]
    first = [name for name in numeric if name in named]
    x = first[0] if first else max(numeric, key=lambda name: len(swept[name]))
    lines = tuple(name for name in order if name != x)[:1]
    return [Wanted(m, x, lines) for m in ("iops", "throughput", "p50", "p99", "total_cpu")]


def _sweeps(found: Any) -> list[str]:
    """The fields a file sweeps: of one table, or of several in turn."""
    if isinstance(found, list):
        return [name for each in found for name in _sweeps(each)]
    return list(found) if isinstance(found, Mapping) else []


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(there: Sequence[Spot], wanted: Wanted) -> tuple[list[Series], list[Spot]]:
    """A line for each combination of all other fields that has at least two places on x."""
    names = [n for n in telling([spot.runs[0] for spot in there], wanted.x) if n != wanted.x]
    ordered = [
        *(n for n in wanted.lines if n in names),
        *(n for n in names if n not in wanted.lines),
    ]
    groups: dict[tuple[Value, ...], list[Spot]] = {}
    for spot in there:
        x = spot.point.get(wanted.x)
        if isinstance(x, int | float) and not isinstance(x, bool):
            groups.setdefault(tuple(spot.point.get(n) for n in ordered), []).append(spot)
    groups = {key: found for key, found in groups.items() if len(found) > 1}
    if not groups:
        raise NoFigure(f"no two runs differ in {wanted.x} alone")
    kept = [spot for found in groups.values() for spot in found]
    left = telling([spot.runs[0] for spot in kept], wanted.x)
    names = [n for n in ordered if n in left and n != wanted.x]
    series = []
    for found in groups.values():
        found.sort(key=lambda spot: spot.point[wanted.x])
        label = labels.point(found[0].point, names) or ALONE
        series.append(_series(label, [float(spot.point[wanted.x]) for spot in found], found))
    return sorted(series, key=lambda each: _smp_first(each.label)), kept


def _bars(there: Sequence[Spot], wanted: Wanted) -> tuple[list[Series], list[Spot]]:
    """A colour for each way of doing it, a group of bars for each workload."""
    names = list(telling([spot.runs[0] for spot in there]))
    how = [n for n in names if n not in WORKLOAD] or ["placement"]
    work = [n for n in names if n in WORKLOAD]
    groups: dict[str, list[Spot]] = {}
    for spot in there:
        groups.setdefault(labels.point(spot.point, how), []).append(spot)
    series = []
    for label, found in groups.items():
        found.sort(key=lambda spot: [sortable(spot.point.get(n)) for n in work])
        places = [labels.point(spot.point, work) or "the workload" for spot in found]
        series.append(_series(label, places, found))
    return sorted(series, key=lambda each: _smp_first(each.label)), list(there)


def _series(label: str, x: Sequence[float | str], found: Sequence[Spot]) -> Series:
    return Series(
        label,
        tuple(x),
        tuple(spot.interval.median for spot in found),
        tuple(spot.interval.low for spot in found),
        tuple(spot.interval.high for spot in found),
    )


def _panels(series: Sequence[Series], lines_max: int) -> tuple[Panel, ...]:
    """One panel, or as many as keep the lines of each to be told apart; the label's head parts."""
    if len(series) <= lines_max:
        return (Panel("", tuple(series)),)
    heads: dict[str, list[Series]] = {}
    for each in series:
        heads.setdefault(each.label.rpartition(", ")[2], []).append(each)
    if 1 < len(heads) < len(series) and max(map(len, heads.values())) <= lines_max:
        return tuple(
            Panel(head, tuple(_shortened(each, head) for each in found))
            for head, found in heads.items()
        )
    size = lines_max
    cut = [tuple(series[at : at + size]) for at in range(0, len(series), size)]
    return tuple(Panel(f"lines {i + 1} of {len(cut)}", part) for i, part in enumerate(cut))


def _shortened(series: Series, head: str) -> Series:
    label = series.label.removesuffix(head).rstrip(", ") or series.label
    return Series(label, series.x, series.y, series.low, series.high, series.cited)


def _alt(what: str, metric: Metric, panels: Sequence[Panel]) -> str:
    """The figure in words: for each series where it starts and ends."""
    said = []
    for series in (each for panel in panels for each in panel.series):
        first, last = series.y[0], series.y[-1]
        said.append(f"{series.label}: {labels.number(first)} to {labels.number(last)}")
    unit = f" in {metric.unit}" if metric.unit else ""
    return f"{what}{unit}. First and last value of each series: {'; '.join(said)}."


def _smp_first(label: str) -> tuple[bool, str]:
    return "SMP" not in label, ""


def _plain(value: Value) -> str:
    return "" if value is None else str(value)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
