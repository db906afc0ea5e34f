"""What a report says, in order: the answer, the machine and the method, each experiment, the rest.

The one rule: nothing that was asked is passed over in silence. What was not measured, refused,
failed, left out or never run is listed with its reason.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from bench import machine
from bench.lab import answers, labels, papers, statistics
from bench.lab.metrics import METRICS
from bench.lab.report import built_in, drawing, figures, layers, modelled, partition
from bench.lab.report.document import (
    Block,
    Bullets,
    Figure,
    Listing,
    Paragraph,
    Report,
    Section,
    Table,
)
from bench.lab.results import Rejected, Results, Run, flat, telling

ROWS_MAX: Final = 60  # a longer table is for a program: the raw data stand beside each figure
COLUMNS: Final = ("iops", "throughput", "p50", "p99", "host_cpu", "total_cpu", "cycles_per_bit")
ANSWERED: Final = ("iops", "host_cpu", "initiator_cpu", "total_cpu", "p50", "p99")
METHOD: Final = (
    "Every point ran several times, interleaved with all others in a seeded order, so that a drift "
    "of the machine meets all of them alike. Values are medians over repeats. Intervals are exact "
    "ones from ranks and hold for any distribution; with fewer than six repeats they are the least "
    "and the greatest, and the confidence given is what they have. AMP over SMP is the median "
    "ratio of pairs within a repeat where the pairs carry "
    f"{100 * statistics.CARRIES:.0f} % confidence, else the median of all ratios with the interval "
    "of the Mann-Whitney ranks. A verdict is “better” or “worse” when the interval leaves 1 out "
    f"and the difference is {100 * statistics.INDIFFERENCE:.0f} % or more; else “same” when the "
    f"interval leaves no room for more than {100 * statistics.SAME_WITHIN:.0f} %, and “unclear” "
    f"when it does; with less confidence than {100 * statistics.CARRIES:.0f} % there is none. "
    "Closed loops count latency from the "
    "moment an operation was issued, open loops from the moment it was due. Busy CPU counts all "
    "cores and empty polls."
)
NO_TIMELINE: Final = (
    "Timelines of single operations (posted, picked up, on the wire, completed, woken, seen): the "
    "engine counts cycles by stage and stamps no operation, so there is nothing to draw them from."
)


def report(sets: Sequence[Results], left_out: Sequence[Rejected] = ()) -> Report:
    """Put the whole report together from one or more result sets."""
    title = "What was measured: " + ", ".join(results.experiment for results in sets)
    found = Report(title, machine_line(sets[0].runs[0]))
    found.sections.append(_answer(sets))
    found.sections.append(_setting(sets))
    for results in sets:
        found.sections.extend(_experiment(results))
    found.sections.append(_absent(sets, left_out))
    found.sections.append(_sources(sets))
    return found


def machine_line(run: Run) -> str:
    """The machine in one line, of whatever facts the run kept."""
    kept = run.raw.get("machine")
    facts: Mapping[str, Any] = kept if isinstance(kept, Mapping) else {}
    parts = [str(facts["cpu_model"])] if facts.get("cpu_model") else []
    if facts.get("cpus"):
        parts.append(f"{facts['cpus']} CPUs")
    if facts.get("kernel"):
        parts.append(f"Linux {facts['kernel']}")
    if facts.get("hypervisor"):
        parts.append("virtual machine")
    if facts:
        isolated = facts.get("isolated")
        parts.append(f"isolated CPUs {isolated}" if isolated else "no isolated CPU")
    return (", ".join(parts) or "The machine is not described in the run files") + "."


def _answer(sets: Sequence[Results]) -> Section:
    section = Section("AMP against SMP on this machine")
    any_answer = False
    for results in sets:
        found = answers.duels(results)
        if not found:
            continue
        any_answer = True
        where = f"{results.experiment}: " if len(sets) > 1 else ""
        section.blocks.append(Paragraph(where + answers.headline(found), strong=True))
        shown = [metric for metric in ANSWERED if _any(found, metric)]
        section.blocks.append(Bullets(tuple(answers.summary(found, m) for m in shown)))
    if not any_answer:
        section.blocks.append(Paragraph(answers.headline([]), strong=True))
    if not drawing.available():
        section.blocks.append(
            Paragraph(f"Tables only: matplotlib is not installed. For figures: {drawing.HOW_TO}.")
        )
    return section


def _setting(sets: Sequence[Results]) -> Section:
    raw = sets[0].runs[0].raw
    described = raw.get("machine") if isinstance(raw.get("machine"), Mapping) else {}
    versions = raw.get("versions") if isinstance(raw.get("versions"), Mapping) else {}
    rows = [(name, str(value)) for name, value in _facts(described or {}).items()]
    known = {name.removeprefix("versions.") for name, _ in rows}
    rows += [(name, str(v)) for name, v in flat(versions or {}).items() if name not in known]
    if raw.get("sources"):
        rows.append(("sources", str(raw["sources"])))
    blocks: list[Block] = [Paragraph(METHOD)]
    if rows:
        blocks.append(Table("The machine and the versions", ("fact", "value"), tuple(rows)))
    disturbed = _disturbances(sets)
    if disturbed:
        blocks += [Paragraph("What makes these figures worse or less certain:"), Bullets(disturbed)]
    others = sorted({machine_line(run) for results in sets for run in results.runs})
    if len(others) > 1:
        lines = "Not all runs are of one machine: " + " ".join(others)
        blocks.append(Paragraph(lines, strong=True))
    return Section("Machine and method", blocks)


def _facts(machine: Mapping[str, Any]) -> dict[str, Any]:
    """The facts a reader wants, a line for each pinned core."""
    facts = {k: v for k, v in flat(machine).items() if v is not None}
    for name in ("pinned", "load_average"):
        facts.pop(name, None)
    pinned = machine.get("pinned")
    for core in pinned if isinstance(pinned, list) else []:
        if isinstance(core, Mapping):
            said = ", ".join(f"{k} {v}" for k, v in core.items() if k != "cpu" and v is not None)
            facts[f"CPU {core.get('cpu')}"] = said.replace("_", " ")
    return facts


def _disturbances(sets: Sequence[Results]) -> tuple[str, ...]:
    """What the machine's facts say against its figures, and in how many runs."""
    found: Counter[str] = Counter()
    runs = [run for results in sets for run in results.runs]
    for run in runs:
        facts = run.raw.get("machine")
        try:
            said = machine.warnings(dict(facts)) if isinstance(facts, Mapping) else []
        except (KeyError, TypeError, IndexError):  # fewer facts than this version asks for
            said = []
        # The load differs from run to run: one line for all of them.
        found.update({text.partition(" was ")[0] for text in said})
    return tuple(
        (f"{text} was above half the CPUs" if text == "load average" else text)
        + ("" if count == len(runs) else f" ({count} of {len(runs)} runs)")
        for text, count in found.items()
    )


def _experiment(results: Results) -> list[Section]:
    name = results.experiment
    title = str(results.spec.get("title") or built_in.TITLES.get(name) or name)
    question = str(results.spec.get("question") or built_in.QUESTIONS.get(name) or "")
    first = Section(title if name in title else f"{name}: {title}")
    if question:
        first.blocks.append(Paragraph(question))
    first.blocks.append(Paragraph(_what_ran(results)))
    duels = answers.duels(results)
    if duels:
        first.blocks += _duel_blocks(duels)
    first.blocks += _points_table(results)
    first.blocks += modelled.percentiles(results)
    pictures, not_made = _figures(results, duels)
    first.blocks += pictures
    first.blocks += _splits(results, pictures)
    if not_made:
        first.blocks.append(Paragraph("Figures that these runs do not make:"))
        first.blocks.append(Bullets(tuple(not_made)))
    first.blocks += modelled.residuals(results)
    first.blocks += _faults(results)
    found = [first]
    if name in papers.sources():
        found.append(_beside(results, duels))
    if results.spec_text:
        first.blocks.append(Listing("The experiment's file", results.spec_text))
    return found


def _what_ran(results: Results) -> str:
    runs = results.done
    points = results.points()
    repeats = sorted({len(each) for each in points.values()}) or [0]
    many = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
    swept = "; ".join(
        f"{labels.field(name)}: {', '.join(labels.value(name, v) for v in values)}"
        for name, values in telling(runs).items()
    )
    text = f"{len(runs)} runs of {len(points)} points, {many} repeats of each. "
    if swept:
        text += f"Varied: {swept}. "
    times = _span([run.raw.get("measured_s") for run in runs])
    warm = _span([run.raw.get("warm_up_s") for run in runs])
    if times:
        text += f"Each run measured for {times}" + (f" after {warm} of warm-up. " if warm else ". ")
    places: dict[str, set[str]] = {}
    for run in runs:
        where, placement = _cores(run), run.point.get("placement")
        if where:
            places.setdefault(where, set()).add(labels.value("placement", placement))
    shown = [
        where if len(places) == 1 else f"{where}: {', '.join(sorted(names))}"
        for where, names in places.items()
    ]
    return text + (f"Cores: {'; '.join(shown)}." if shown else "")


def _span(values: Sequence[Any]) -> str:
    """Seconds, from the shortest to the longest where they differ by more than a tenth."""
    seconds = sorted(float(v) for v in values if isinstance(v, int | float))
    if not seconds:
        return ""
    if seconds[-1] <= 1.1 * seconds[0]:
        return f"{seconds[len(seconds) // 2]:.2g} s"
    return f"{seconds[0]:.2g} to {seconds[-1]:.2g} s"


def _cores(run: Run) -> str:
    kept = run.raw.get("cores")
    if not isinstance(kept, Mapping):
        return ""
    parts = [
        f"{role} on {','.join(map(str, kept[role]))}"
        for role in ("engine", "host", "target")
        if isinstance(kept.get(role), list) and kept[role]
    ]
    shared = " (shared)" if kept.get("shared") else ""
    return ", ".join(parts) + shared if parts else ""


def _duel_blocks(duels: Sequence[answers.Duel]) -> list[Block]:
    metrics = [metric for metric in ANSWERED if _any(duels, metric)]
    rows = []
    for duel in duels:
        cells = []
        for metric in metrics:
            ratio = duel.ratio(metric)
            shown = "—"
            if ratio is not None:
                shown = f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
                shown += f" {duel.verdict(metric)}"
            cells.append(shown)
        rows.append((duel.workload, duel.smp_label, duel.amp_label, *cells))
    headings = ("workload", "SMP", "AMP", *(METRICS[m].label for m in metrics))
    table = Table(
        "AMP over SMP, with the interval of the ratio and the verdict on AMP",
        headings,
        tuple(rows[:ROWS_MAX]),
        frozenset(range(3, len(headings))),
    )
    return [table]


def _any(duels: Sequence[answers.Duel], metric: str) -> bool:
    return any(duel.ratio(metric) is not None for duel in duels)


def _points_table(results: Results) -> list[Block]:
    points = results.points()
    names = list(telling(results.done))
    if not points or len(points) > ROWS_MAX:
        return []
    metrics = [
        m for m in COLUMNS if any(answers.interval(runs, m) is not None for runs in points.values())
    ]
    rows = [
        (labels.point(runs[0].point, names) or "the only point", *(_cell(runs, m) for m in metrics))
        for runs in points.values()
    ]
    headings = ("point", *(METRICS[m].axis for m in metrics))
    return [
        Table(
            "Every point: medians, with the interval the repeats support",
            headings,
            tuple(rows),
            frozenset(range(1, len(headings))),
        )
    ]


def _cell(runs: Sequence[Run], metric: str) -> str:
    found = answers.interval(runs, metric)
    if found is None:
        return "—"
    if found.repeats < figures.REPEATS_LEAST:
        return f"{labels.number(found.median)} (one run)"
    shown = labels.number
    return f"{shown(found.median)} [{shown(found.low)}, {shown(found.high)}]"


def _figures(results: Results, duels: Sequence[answers.Duel]) -> tuple[list[Figure], list[str]]:
    """The figures of a set, and what stood in the way of the others."""
    line = machine_line(results.runs[0])
    makers: list[Callable[[], list[Figure]]] = [
        partial(figures.build, results, each, line) for each in built_in.wanted(results)
    ]
    if results.experiment == "partition":
        makers += [partial(partition.grid, results, name, line) for name in built_in.GRIDS]
    if duels and any(run.layers() for run in results.done):
        makers.append(partial(layers.profile, results, duels, line))
        makers.append(partial(layers.improvement, results, duels, line))
    made: list[Figure] = []
    not_made: list[str] = []
    for make in makers:
        try:
            made += make()
        except figures.NoFigure as error:
            not_made.append(f"{error}.")
    return made, list(dict.fromkeys(not_made))


def _splits(results: Results, pictures: Sequence[Figure]) -> list[Block]:
    """Which split suits which workload, and where one overtakes another."""
    if not any(name in telling(results.done) for name in partition.SPLIT):
        return []
    table = partition.best_splits(results)
    blocks: list[Block] = [table] if table is not None else []
    crossed = [
        said
        for figure in pictures
        if figure.kind == "lines"
        for said in partition.crossovers(figure)
    ]
    if crossed:
        blocks += [Paragraph("Where one split overtakes another:"), Bullets(tuple(crossed))]
    elif table is not None:
        blocks.append(Paragraph("No split overtakes another within what was swept."))
    return blocks


def _faults(results: Results) -> list[Block]:
    rows = []
    for run in results.runs:
        for fault in run.raw.get("faults") or []:
            if isinstance(fault, Mapping):
                cells = (fault.get(k) for k in ("kind", "at_step", "lost_operations", "recovery_s"))
                rows.append((run.id, *("—" if cell is None else str(cell) for cell in cells)))
    if not rows:
        return []
    lost = sum(int(row[3]) for row in rows if row[3].isdigit())
    said = "No operation was lost." if lost == 0 else f"{lost} operations were lost."
    headings = ("run", "fault", "at step", "operations lost", "recovered after (s)")
    table = Table("Faults that were injected", headings, tuple(rows), frozenset({2, 3, 4}))
    return [Paragraph(said, strong=True), table]


def _beside(results: Results, duels: Sequence[answers.Duel]) -> Section:
    """The paper's statements, each with what was measured here."""
    source = papers.sources()[results.experiment]
    rows = [
        (claim.text, claim.where, _ours(claim, results, duels))
        for claim in papers.claims(results.experiment)
    ]
    blocks: list[Block] = [Paragraph(f"{source['cite']} Its machine: {source['machine']}.")]
    if rows:
        headings = ("the paper", "where", "here")
        blocks.append(Table("The paper's figures beside ours", headings, tuple(rows)))
    missing = papers.not_printed(results.experiment)
    if missing:
        blocks.append(Paragraph("What the paper shows without printing its numbers:"))
        blocks.append(Bullets(tuple(missing)))
    return Section(f"{results.experiment}: beside the paper", blocks, level=3)


def _ours(claim: papers.Claim, results: Results, duels: Sequence[answers.Duel]) -> str:
    if claim.metric == "layers":
        said = [
            f"{duel.workload}, {duel.amp_label}: {total.median:.1f} % [{total.low:.1f}, "
            f"{total.high:.1f}]"
            for duel in duels
            if (total := layers.improvements(duel).get("total")) is not None
        ]
        return "; ".join(said) or "no cycles by layer of both sides"
    if duels:
        return answers.summary(duels, claim.metric)
    return _by_transport(claim.metric, results)


def _by_transport(metric: str, results: Results) -> str:
    """iSER over TCP at each point that ran over both."""
    groups: dict[tuple[Any, ...], dict[str, Sequence[Run]]] = {}
    # What follows from the transport, such as the registration, keeps no pair apart.
    ours = [name for name in telling(results.done) if name != "transport"]
    for key, runs in results.points().items():
        rest = tuple(item for item in key if item[0] in ours)
        groups.setdefault(rest, {})[str(dict(key).get("transport"))] = runs
    said = []
    for rest, sides in groups.items():
        if {"tcp", "iser"} <= sides.keys():
            before = answers.by_repeat(sides["tcp"], metric)
            ratio = statistics.ratio(before, answers.by_repeat(sides["iser"], metric))
            if ratio is not None:
                where = labels.point(dict(rest), ours) or "iSER over TCP"
                said.append(f"{where}: {ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
    return "iSER over TCP: " + "; ".join(said) if said else "not measured over both transports"


def _absent(sets: Sequence[Results], left_out: Sequence[Rejected]) -> Section:
    """What is not here, and why."""
    items = [NO_TIMELINE]
    items += [f"the whole set {each.file} was left out: {each.reason}" for each in left_out]
    for results in sets:
        name = results.experiment
        reasons = Counter(pair for run in results.done for pair in run.not_measured().items())
        total = len(results.done)
        items += [
            f"{name}: {what} — {why}" + ("" if count == total else f" ({count} of {total} runs)")
            for (what, why), count in sorted(reasons.items())
        ]
        items += _undone(results)
        missing = results.missing()
        if missing:
            head = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
            items.append(f"{name}: planned and not there: {len(missing)} runs ({head})")
        items += [f"{name}: {r.file} was left out: {r.reason}" for r in results.rejected]
    return Section("What was not measured, and why", [Bullets(tuple(items))])


def _undone(results: Results) -> list[str]:
    names = list(telling(results.runs))
    told = Counter(
        (
            run.status,
            labels.point(run.point, names),
            str(run.raw.get("reason") or "no reason given"),
        )
        for run in results.undone
    )
    return [
        f"{results.experiment}: {status}: {point or 'the only point'}: {reason}"
        + ("" if count == 1 else f" ({count} runs)")
        for (status, point, reason), count in told.items()
    ]


def _sources(sets: Sequence[Results]) -> Section:
    rows = []
    for results in sets:
        times = sorted(str(run.raw.get("started_at") or "") for run in results.runs)
        seed = results.plan.get("seed")
        rows.append(
            (
                results.experiment,
                results.directory.name,
                str(len(results.runs)),
                times[0] or "—",
                "—" if seed is None else str(seed),
            )
        )
    headings = ("experiment", "folder", "runs read", "first started", "seed of the order")
    return Section("Where this comes from", [Table("The result sets", headings, tuple(rows))])
