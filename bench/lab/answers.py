"""AMP against SMP, workload by workload: what the placement changes when the work stays the same.

The one rule: a configuration is compared with the symmetric one of the same workload that has as
many cores for hosts and engines, and of several with the one that shares most other settings; every
comparison is reported, not only the best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.lab import labels, statistics
from bench.lab.metrics import COMPARED, METRICS
from bench.lab.results import Results, Run, Value, telling
from bench.lab.statistics import Interval

# What has to be done, as against how it is done.
WORKLOAD: Final = (
    "transport",
    "operation",
    "write_percent",
    "block_bytes",
    "depth",
    "sessions",
    "connections",
    "digests",
    "immediate_data",
    "rate_per_s",
    "registration",
    "random",
    "span_bytes",
)


@dataclass(frozen=True)
class Duel:
    """One asymmetric configuration against its symmetric counterpart, on one workload."""

    workload: str
    smp_label: str
    amp_label: str
    smp: Sequence[Run]
    amp: Sequence[Run]

    def ratio(self, metric: str) -> Interval | None:
        """AMP over SMP; None when one of them did not measure it."""
        return statistics.ratio(by_repeat(self.smp, metric), by_repeat(self.amp, metric))

    def verdict(self, metric: str) -> str:
        """AMP is same, better or worse, or there are too few repeats."""
        rule = METRICS[metric]
        return statistics.verdict(self.ratio(metric), less_is_better=rule.less_is_better)

    def to_json(self) -> dict[str, Any]:
        """Return the object `--json` prints."""
        found = {name: self.ratio(name) for name in COMPARED}
        return {
            "workload": self.workload,
            "smp": self.smp_label,
            "amp": self.amp_label,
            "ratios": {n: None if r is None else r.to_json() for n, r in found.items()},
            "verdicts": {n: self.verdict(n) for n, r in found.items() if r is not None},
        }


_WORDS: Final = {"same": "the same", "unclear": "not told apart"}


def by_repeat(runs: Sequence[Run], metric: str) -> dict[int, float]:
    """The metric of each repeat that has it."""
    rule = METRICS[metric]
    found = {run.repeat: rule.of(run) for run in runs}
    return {repeat: value for repeat, value in found.items() if value is not None}


def interval(runs: Sequence[Run], metric: str) -> Interval | None:
    """The median of a metric over repeats; None when no repeat measured it."""
    values = list(by_repeat(runs, metric).values())
    return statistics.median_interval(values) if values else None


def duels(results: Results) -> list[Duel]:
    """Every asymmetric point with its symmetric counterpart; none where the set has only one."""
    points = list(results.points().values())
    symmetric = [runs for runs in points if runs[0].smp]
    names = list(telling(results.done))
    found = []
    for amp in (runs for runs in points if not runs[0].smp):
        rivals = [runs for runs in symmetric if _workload(runs[0]) == _workload(amp[0])]
        if rivals:
            smp = max(rivals, key=lambda runs, amp=amp: _nearness(runs, amp))  # type: ignore[misc]
            found.append(_duel(smp, amp, names))
    return found


def summary(found: Sequence[Duel], metric: str) -> str:
    """What the duels say of one metric, in a sentence with its uncertainty."""
    rule = METRICS[metric]
    rated = [(duel, ratio) for duel in found if (ratio := duel.ratio(metric)) is not None]
    if not rated:
        return f"{_capital(rule.label)}: not measured on both sides."
    verdicts = [duel.verdict(metric) for duel, _ in rated]
    counts = {word: verdicts.count(word) for word in statistics.VERDICTS if word in verdicts}
    said = ", ".join(f"{_WORDS.get(word, word)} in {count}" for word, count in counts.items())
    ratios = sorted((ratio for _, ratio in rated), key=lambda ratio: ratio.median)
    low, high = ratios[0], ratios[-1]
    span = _times(low) if len(ratios) == 1 else f"from {_times(low)} to {_times(high)}"
    many = "comparison" if len(rated) == 1 else "comparisons"
    return f"{_capital(rule.label)}: AMP is {said} of {len(rated)} {many}; AMP over SMP {span}."


def headline(found: Sequence[Duel]) -> str:
    """The answer in one sentence: which placement wins at speed and which at cost."""
    if not found:
        return (
            "AMP against SMP is not answered here: no workload was run in the inline placement and "
            "in another one."
        )
    return f"{_of(found, 'iops', 'speed')} {_of(found, 'total_cpu', 'cost')}"


def _of(found: Sequence[Duel], metric: str, what: str) -> str:
    verdicts = [duel.verdict(metric) for duel in found if duel.ratio(metric) is not None]
    head = f"By {what} ({METRICS[metric].label})"
    if not verdicts:
        return f"{head} nothing can be said: it was not measured on both sides."
    count = {word: verdicts.count(word) for word in statistics.VERDICTS}
    if count["too few repeats"] == len(verdicts):
        return f"{head} nothing can be said: there are too few repeats."
    better, worse, same = count["better"], count["worse"], count["same"]
    untold = count["unclear"] + count["too few repeats"]
    tally = f"AMP is better in {better}, the same in {same} and worse in {worse}"
    rest = f"; for {untold} the repeats do not tell" if untold else ""
    if untold == len(verdicts):
        winner = "the repeats scatter too much to tell AMP and SMP apart, or to call them the same"
        return f"{head} {winner} ({len(verdicts)} comparisons)."
    if better and not worse:
        winner = "AMP wins"
    elif worse and not better:
        winner = "SMP wins"
    elif better and worse:
        winner = "it depends on the workload"
    else:
        winner = f"AMP and SMP are the same, to within {100 * statistics.SAME_WITHIN:.0f} %"
    where = " where the repeats tell" if untold else ""
    return f"{head} {winner}{where}: {tally} of {len(verdicts)} comparisons{rest}."


def _workload(run: Run) -> tuple[Value, ...]:
    fields: Mapping[str, Any] = run.raw["point"]
    return tuple(fields.get(name) for name in WORKLOAD)


def _nearness(smp: Sequence[Run], amp: Sequence[Run]) -> tuple[int, int, float]:
    ours, theirs = amp[0].point, smp[0].point
    shared = sum(1 for name, value in ours.items() if theirs.get(name) == value)
    speed = interval(smp, "iops")
    return -abs(_cores(smp[0]) - _cores(amp[0])), shared, speed.median if speed else 0.0


def _cores(run: Run) -> int:
    """How many cores the initiator had, its engines included."""
    kept = run.raw.get("cores")
    places = [core for role in ("engine", "host") for core in (kept or {}).get(role) or ()]
    if places:
        return len(set(places))
    point = run.point
    return int(point.get("hosts") or 1) + (0 if run.smp else int(point.get("engines") or 1))


def _duel(smp: Sequence[Run], amp: Sequence[Run], names: Sequence[str]) -> Duel:
    work = [name for name in WORKLOAD if name in names]
    how = ["placement", *(name for name in names if name not in WORKLOAD and name != "placement")]
    workload = labels.point(amp[0].point, work) or labels.point(
        amp[0].point, ("operation", "block_bytes", "depth")
    )
    return Duel(
        workload, labels.point(smp[0].point, how), labels.point(amp[0].point, how), smp, amp
    )


def _times(ratio: Interval) -> str:
    return f"{ratio.median:.2f} × [{ratio.low:.2f}, {ratio.high:.2f}]"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
