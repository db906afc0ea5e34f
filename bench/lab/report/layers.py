"""Where the cycles of an operation go, and by how much each layer improves: Figures 5, 6, Table 2.

The one rule: improvement is the paper's own formula, taken within each repeat and then its median.
"""

from collections.abc import Sequence
from typing import Final

from bench.lab import papers, statistics
from bench.lab.answers import Duel
from bench.lab.report.document import Figure, Panel, Raw, Series, parts, slug
from bench.lab.report.figures import REPEATS_LEAST, NoFigure
from bench.lab.results import Results, Run
from bench.lab.statistics import Interval

# The paper's order, from the application down; what others name comes after.
ORDER: Final = (
    "scsi",
    "iscsi",
    "queues",
    "tcp",
    "rdma",
    "copies",
    "target",
    "others",
    "idle",
    "total",
)
# The paper looks at the initiator alone.
ELSEWHERE: Final = frozenset({"target"})
PANELS_MAX: Final = 4
PRINTED: Final = {("write", 65536): "write_64k", ("read", 65536): "read_64k"}


def profile(results: Results, duels: Sequence[Duel], machine_line: str) -> list[Figure]:
    """Cycles of an operation by layer, SMP beside AMP, a panel for each workload."""
    panels = []
    for title, group in _grouped(duels).items():
        sides = {_smp_label(duel): duel.smp for duel in group}
        sides |= {_head(duel.amp_label): duel.amp for duel in group}
        made = [_profile_of(label, runs) for label, runs in sides.items()]
        if all(made):
            panels.append(Panel(title, tuple(each for each in made if each)))
    if not panels:
        raise NoFigure("no run of both SMP and AMP has cycles by layer in two repeats")
    runs = [run for duel in duels for run in (*duel.smp, *duel.amp)]
    whole = Figure(
        slug([results.experiment, "profile by layer"]),
        "bars",
        "layer",
        "thousand cycles per operation",
        tuple(panels),
        "Cycles of one operation by layer, all cores together; idle holds empty polls and waiting. "
        f"{_spread(duels)} {machine_line}",
        _alt("Cycles by layer", panels, "thousand cycles"),
        _raw(runs),
        order=ORDER,
        one_scale=False,
    )
    return parts(whole, PANELS_MAX)


def improvement(results: Results, duels: Sequence[Duel], machine_line: str) -> list[Figure]:
    """Improvement of AMP over SMP by layer, beside the paper's Table 2 if it has the workload."""
    panels = []
    for title, group in _grouped(duels).items():
        made = [series for duel in group if (series := _improvement_of(duel)) is not None]
        point = group[0].amp[0].point
        name = PRINTED.get((str(point.get("operation")), int(point.get("block_bytes") or 0)))
        if made and name is not None:
            made.append(_printed(name))
        if made:
            panels.append(Panel(title, tuple(made)))
    if not panels:
        raise NoFigure("no two repeats have cycles by layer of both SMP and AMP")
    runs = [run for duel in duels for run in (*duel.smp, *duel.amp)]
    whole = Figure(
        slug([results.experiment, "improvement by layer"]),
        "bars",
        "layer",
        "improvement (% of SMP's cycles)",
        tuple(panels),
        "Improvement in cycles of AMP over SMP by layer: (layer SMP / total SMP) × (1 - layer AMP "
        "/ layer SMP), the total with idle in it, as in Table 2 of Foong et al., whose column of "
        "cycles is cited where it has the workload (diamonds: printed without a spread; kernel "
        "support and driver are added to TCP). The target is left out. Below zero AMP costs more. "
        f"{_spread(duels)} {machine_line}",
        _alt("Improvement by layer", panels, "per cent"),
        _raw(runs),
        reference=0.0,
        order=ORDER,
        one_scale=False,
    )
    return parts(whole, PANELS_MAX)


def improvements(duel: Duel) -> dict[str, Interval]:
    """The improvement of each layer and in total, in per cent, over the repeats both sides have."""
    smp, amp = ({run.repeat: _ours(run) for run in side} for side in (duel.smp, duel.amp))
    rows = [
        papers.improvement(smp[at], amp[at])
        for at in smp
        if amp.get(at) and sum(smp[at].values()) > 0
    ]
    if len(rows) < REPEATS_LEAST:
        return {}
    names = _ordered({name for row in rows for name in row})
    return {
        name: statistics.median_interval([100 * row.get(name, 0.0) for row in rows])
        for name in names
    }


def _ours(run: Run) -> dict[str, float]:
    """The layers of the initiator, and of what the machine did besides."""
    return {name: value for name, value in run.layers().items() if name not in ELSEWHERE}


def _improvement_of(duel: Duel) -> Series | None:
    found = improvements(duel)
    if not found:
        return None
    rows = found.values()
    return Series(
        _head(duel.amp_label),
        tuple(found),
        tuple(row.median for row in rows),
        tuple(row.low for row in rows),
        tuple(row.high for row in rows),
    )


def _printed(workload: str) -> Series:
    rows = papers.as_our_layers(papers.table_2(workload))
    names = _ordered(set(rows))
    values = tuple(round(rows[name], 1) for name in names)
    return Series("Foong et al., Table 2", tuple(names), values, cited=True)


def _profile_of(label: str, runs: Sequence[Run]) -> Series | None:
    rows = [found for run in runs if (found := run.layers())]
    if len(rows) < REPEATS_LEAST:
        return None
    names = _ordered({name for row in rows for name in row})
    cells = [
        statistics.median_interval([row.get(name, 0.0) / 1000 for row in rows]) for name in names
    ]
    return Series(
        label,
        tuple(names),
        tuple(cell.median for cell in cells),
        tuple(cell.low for cell in cells),
        tuple(cell.high for cell in cells),
    )


def _grouped(duels: Sequence[Duel]) -> dict[str, list[Duel]]:
    """The duels of one panel: the same workload, and the same settings but the placement."""
    found: dict[str, list[Duel]] = {}
    for duel in duels:
        title = ", ".join(part for part in (duel.workload, _tail(duel.amp_label)) if part)
        found.setdefault(title, []).append(duel)
    return found


def _head(label: str) -> str:
    return label.partition(", ")[0]


def _tail(label: str) -> str:
    return label.partition(", ")[2]


def _smp_label(duel: Duel) -> str:
    """The placement alone where the rest is in the panel's title, else all of it."""
    shared = _tail(duel.smp_label) == _tail(duel.amp_label)
    return _head(duel.smp_label) if shared else duel.smp_label


def _ordered(names: set[str]) -> list[str]:
    rank = {name: at for at, name in enumerate(ORDER)}
    return sorted(names, key=lambda name: (rank.get(name, len(ORDER)), name))


def _spread(duels: Sequence[Duel]) -> str:
    repeats = sorted({len(duel.amp) for duel in duels})
    many = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
    return f"Medians of {many} repeats with exact intervals from order statistics."


def _raw(runs: Sequence[Run]) -> Raw:
    kept = {run.id: run for run in runs if run.layers()}
    names = _ordered({name for run in kept.values() for name in run.layers()})
    fields = ("placement", "operation", "block_bytes", "depth")
    rows = [
        (
            run.id,
            str(run.repeat),
            *(str(run.point.get(name)) for name in fields),
            *(repr(run.layers().get(name, 0.0)) for name in names),
        )
        for run in kept.values()
    ]
    headings = ("run", "repeat", *fields, *(f"{name} [cycles]" for name in names))
    return Raw(headings, tuple(rows))


def _alt(what: str, panels: Sequence[Panel], unit: str) -> str:
    said = [
        f"{panel.title}, {series.label}: "
        + ", ".join(f"{x} {y:.1f}" for x, y in zip(series.x, series.y, strict=True))
        for panel in panels
        for series in panel.series
    ]
    return f"{what}, in {unit}. {'; '.join(said)}."
