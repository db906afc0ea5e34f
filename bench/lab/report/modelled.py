"""The queueing model beside what was measured, and the distributions behind the medians.

The one rule: a prediction is shown with its residual, a percentile only where enough samples lie
beyond it.
"""

from typing import Final

from bench.harness import PERCENTILES
from bench.lab import calibration, labels, statistics
from bench.lab.calibration import Family
from bench.lab.report.document import Block, Bullets, Paragraph, Table
from bench.lab.results import Results, telling

ROWS_MAX: Final = 60
METRIC: Final = "iops"


def residuals(results: Results) -> list[Block]:
    """What the model says of the points it did not learn from; nothing where it learnt from all."""
    families, _ = calibration.families(results)
    tried = [family for family in families if family.error() is not None]
    if not tried:
        return []
    rows = tuple(row for family in tried for row in _rows(family))
    headings = ("configuration", "point", "measured (k/s)", "predicted (k/s)", "residual", "")
    table = Table(
        "Operations a second: a queueing model beside the measurement",
        headings,
        rows[:ROWS_MAX],
        frozenset({2, 3, 4}),
    )
    said = [
        f"{_name(family)}: {100 * (family.error() or 0):.1f} % off in the median at points that "
        "were no anchors"
        for family in tried
    ]
    text = (
        "The model is a closed queueing network whose demands come from the anchors alone (`ppe "
        "advise --explain` states it). Where it is off, something is at work that the demands of "
        "an operation do not explain."
    )
    return [Paragraph(text), Bullets(tuple(said)), table]


def percentiles(results: Results) -> list[Block]:
    """Latency percentiles of all repeats together, each with its interval over the repeats."""
    points = results.points()
    names = list(telling(results.done))
    rows = []
    for runs in points.values():
        kept = [found for run in runs if (found := run.histogram()) is not None]
        if not kept:
            continue
        whole = statistics.merge(kept)
        cells = []
        for percent in PERCENTILES:
            value = whole.percentile(percent)
            each = [own for one in kept if (own := one.percentile(percent)) is not None]
            cells.append(_cell(value, each if len(each) == len(kept) else []))
        label = labels.point(runs[0].point, names) or "the only point"
        rows.append((label, *cells, labels.number(whole.max / 1e3), f"{whole.count:,}"))
    if not rows or len(rows) > ROWS_MAX:
        return []
    headings = ("point", *(f"{p:g} % (µs)" for p in PERCENTILES), "max (µs)", "samples")
    return [
        Table(
            "Latency percentiles of all repeats together, with the interval of the repeats' own; a "
            "dash where fewer than ten samples lie beyond",
            headings,
            tuple(rows),
            frozenset(range(1, len(headings))),
        )
    ]


def _cell(value: float | None, each: list[float]) -> str:
    if value is None:
        return "—"
    if len(each) < 2:
        return labels.number(value / 1e3)
    found = statistics.median_interval(each)
    low, high = labels.number(found.low / 1e3), labels.number(found.high / 1e3)
    return f"{labels.number(value / 1e3)} [{low}, {high}]"


def _rows(family: Family) -> list[tuple[str, ...]]:
    shown = labels.number
    return [
        (
            _name(family),
            row.point,
            f"{shown(row.measured.median)} [{shown(row.measured.low)}, {shown(row.measured.high)}]",
            shown(row.predicted),
            f"{100 * row.share:+.1f} %",
            "anchor" if row.anchor else "",
        )
        for row in family.residuals()
        if row.metric == METRIC
    ]


def _name(family: Family) -> str:
    return ", ".join(part for part in (family.name, family.workload) if part)
