"""Engines against hosts: the grid of splits, and where one split overtakes another.

The one rule: a split is called the best only where its lead over the next is more than the repeats
scatter; else both are named.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from bench.lab import labels, statistics
from bench.lab.answers import WORKLOAD, by_repeat
from bench.lab.metrics import METRICS
from bench.lab.report.document import Figure, Panel, Series, Table, parts, shown, slug
from bench.lab.report.figures import NoFigure, Spot, raw, spots
from bench.lab.results import Results, Value, telling

SPLIT: Final = ("engines", "hosts")
PANELS_MAX: Final = 6


def grid(results: Results, metric_name: str, machine_line: str) -> list[Figure]:
    """A cell for each number of engines and hosts, a panel for each workload."""
    metric = METRICS[metric_name]
    there = spots(results, metric)
    rest = [n for n in telling([spot.runs[0] for spot in there]) if n not in SPLIT]
    asymmetric = {spot.point.get("placement") for spot in there if not spot.runs[0].smp}
    if len(asymmetric) < 2:  # then no engine says SMP, and it is a row of the same grid
        rest = [name for name in rest if name != "placement"]
    panels, used = [], []
    for title, group in _grouped(there, rest).items():
        if len({_split(spot) for spot in group}) > 1:
            panels.append(Panel(title, _rows(group)))
            used += group
    if not panels:
        raise NoFigure("no two splits ran the same workload")
    whole = Figure(
        slug([results.experiment, metric_name, "grid"]),
        "grid",
        "host threads",
        metric.axis,
        tuple(panels),
        f"{metric.axis} by split: rows are engines, columns host threads; in brackets the interval "
        f"of the median. {machine_line}",
        f"{metric.axis} for each number of engines and hosts; the numbers stand below.",
        raw(used, metric),
    )
    return parts(whole, PANELS_MAX)


def best_splits(results: Results, metric_name: str = "iops") -> Table | None:
    """For each workload the best split, and the next one when the repeats do not part them."""
    metric = METRICS[metric_name]
    try:
        there = spots(results, metric)
    except NoFigure:
        return None
    rest = [n for n in telling([spot.runs[0] for spot in there]) if n in WORKLOAD]
    # What tells the candidates apart, besides the workload.
    how = [n for n in telling([spot.runs[0] for spot in there]) if n not in WORKLOAD]
    rows = []
    for title, group in _grouped(there, rest).items():
        ordered = sorted(
            group, key=lambda spot: spot.interval.median, reverse=not metric.less_is_better
        )
        if len(ordered) < 2:
            continue
        first, second = ordered[0], ordered[1]
        lead = statistics.ratio(
            by_repeat(second.runs, metric_name), by_repeat(first.runs, metric_name)
        )
        word = statistics.verdict(lead, less_is_better=metric.less_is_better)
        by = "—" if lead is None else f"{lead.median:.2f} × [{lead.low:.2f}, {lead.high:.2f}]"
        told = "clear" if word == "better" else f"not parted ({word})"
        rows.append((title or "all", _name(first, how), _name(second, how), by, told))
    if not rows:
        return None
    return Table(
        f"The best configuration by {metric.label}, the next best, and the lead of the first",
        ("workload", "best", "next", "lead", "verdict"),
        tuple(rows),
        frozenset({3}),
    )


def crossovers(figure: Figure) -> list[str]:
    """Where lines cross, with the interval of x in which it happens; nothing where they overlap."""
    said = []
    for panel in figure.panels:
        for at, one in enumerate(panel.series):
            for two in panel.series[at + 1 :]:
                where = f"{figure.x_label}; {panel.title}" if panel.title else figure.x_label
                said += _crossings(where, one, two)
    return said


def _crossings(where: str, one: Series, two: Series) -> list[str]:
    """A crossing counts where both intervals lie apart on either side of it."""
    common = [x for x in one.x if x in two.x]
    leads = []
    for x in common:
        i, j = one.x.index(x), two.x.index(x)
        if one.low[i] > two.high[j]:
            leads.append((x, 1))
        elif one.high[i] < two.low[j]:
            leads.append((x, -1))

    def place(x: float | str) -> str:
        return labels.size(int(x)) if "(bytes)" in where else shown(x)

    return [
        f"{one.label} and {two.label} change places between {place(a)} and {place(b)} ({where})."
        for (a, first), (b, second) in pairwise(leads)
        if first != second
    ]


def _grouped(there: Sequence[Spot], names: Sequence[str]) -> dict[str, list[Spot]]:
    found: dict[str, list[Spot]] = {}
    for spot in there:
        found.setdefault(labels.point(spot.point, names), []).append(spot)
    return found


def _split(spot: Spot) -> tuple[Value, Value]:
    return spot.point.get("engines"), spot.point.get("hosts")


def _name(spot: Spot, names: Sequence[str]) -> str:
    return labels.point(spot.point, names) or "the only one"


def _rows(group: Sequence[Spot]) -> tuple[Series, ...]:
    engines = sorted({int(spot.point.get("engines") or 0) for spot in group})
    rows = []
    for count in engines:
        row = [spot for spot in group if int(spot.point.get("engines") or 0) == count]
        row.sort(key=lambda spot: int(spot.point.get("hosts") or 0))
        rows.append(
            Series(
                f"{count} engine{'s' if count != 1 else ''}" if count else "no engine (SMP)",
                tuple(str(spot.point.get("hosts")) for spot in row),
                tuple(spot.interval.median for spot in row),
                tuple(spot.interval.low for spot in row),
                tuple(spot.interval.high for spot in row),
            )
        )
    return tuple(rows)
