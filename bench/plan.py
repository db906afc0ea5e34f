"""How much to measure, on which cores, and what the goals are.

The one rule: a goal stands beside its figure as text; it decides nothing.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

from bench.harness import REPEATS_USUAL, Result
from ppe import output
from shm.clock import cycles_per_ns


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure's name, the bound it should keep, and what it says."""

    name: str
    sign: str
    bound: float
    says: str

    def verdict(self, value: float | None) -> str:
        """One of: reached, missed, not measured."""
        if value is None:
            return "not measured"
        reached = value <= self.bound if self.sign == "≤" else value >= self.bound
        return "reached" if reached else "missed"


QUICK: Final = {"trips": 3_000, "batches": 500, "wakes": 150, "python_seconds": 0.05}
FULL: Final = {"trips": 40_000, "batches": 8_000, "wakes": 3_000, "python_seconds": 0.4}


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one invocation. `a` and `b` are the cores, the engine's is `b`."""

    a: int
    b: int
    quick: bool = False
    repeats: int = REPEATS_USUAL
    quiet: bool = True
    connections: tuple[int, ...] = (1, 2, 4, 8)  # of an initiator

    @property
    def trips(self) -> int:
        """Samples of a round-trip run."""
        return int(self._size("trips"))

    @property
    def batches(self) -> int:
        """Samples of a throughput run."""
        return int(self._size("batches"))

    @property
    def wakes(self) -> int:
        """Sleeps of a wake-up run."""
        return int(self._size("wakes"))

    @property
    def python_seconds(self) -> float:
        """How long an interpreted sender sends."""
        return self._size("python_seconds")

    def _size(self, name: str) -> float:
        return (QUICK if self.quick else FULL)[name]

    def config(self) -> dict[str, Any]:
        """What a result file says about it."""
        sizes = QUICK if self.quick else FULL
        return {"cores": [self.a, self.b], "quick": self.quick, "repeats": self.repeats, **sizes}

    def clock(self) -> dict[str, Any]:
        """What a result file says about the clock that took the times."""
        return {"source": "time-stamp counter", "ns_per_tick": 1 / cycles_per_ns()}

    def say(self, text: str) -> None:
        """Tell on stderr what is measured now."""
        if not self.quiet:
            output.say(f"  {text} …")


def show(result: Result, goals: tuple[Goal, ...], method: tuple[str, ...]) -> None:
    """Print a result for a person: every run's median, the ratios with their goals, the method."""
    from bench import machine

    output.write(f"{result.benchmark}: {machine.summary(result.machine)}")
    output.write(
        f"cores {', '.join(map(str, result.cores))}; repeats interleaved with the reference"
    )
    output.write()
    for line in output.columns(_run_rows(result)):
        output.write(line.rstrip())
    output.write()
    for line in output.columns(_ratio_rows(result, goals)):
        output.write(line.rstrip())
    output.write()
    for text in result.notes:
        output.write(f"where   {text}")
    for text in method:
        output.write(f"method  {text}")
    for text in dict.fromkeys(result.warnings):
        output.write(f"! {text}")


def _run_rows(result: Result) -> list[tuple[str, ...]]:
    """One row per thing and placement: how often it ran, its medians' range, its percentiles."""
    rows: list[tuple[str, ...]] = [
        ("measured", "placement", "runs", "median", "lowest", "highest", "p99", "unit")
    ]
    kinds = dict.fromkeys((run.name, run.placement, run.unit) for run in result.runs)
    for name, placement, unit in kinds:
        runs = [r for r in result.runs if (r.name, r.placement, r.unit) == (name, placement, unit)]
        values = sorted(run.value for run in runs)
        tails = [run.latency.percentile(99) for run in runs if run.latency and unit == "ns"]
        known = sorted(tail for tail in tails if tail is not None)
        p99 = _number(known[len(known) // 2]) if known else ""
        middle = values[len(values) // 2]
        bounds = (_number(middle), _number(values[0]), _number(values[-1]))
        rows.append((name, placement, str(len(runs)), *bounds, p99, unit))
    return rows


def _ratio_rows(result: Result, goals: tuple[Goal, ...]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("ratio", "median", "quartiles", "goal", "", "what it says")]
    by_name = {goal.name: goal for goal in goals}
    for ratio in result.ratios:
        goal = by_name.get(ratio.name)
        value = "not measured" if ratio.value is None else f"{ratio.value:.3f}"
        spread = "" if ratio.low is None else f"{ratio.low:.3f} … {ratio.high:.3f}"
        wanted = f"{goal.sign} {goal.bound:g}" if goal else ""
        verdict = goal.verdict(ratio.value) if goal else ""
        says = (goal.says if goal else "") if ratio.reason is None else ratio.reason
        rows.append((ratio.name, value, spread, wanted, verdict, says))
    return rows


def _number(value: float) -> str:
    digits = 0 if value >= 1000 else max(0, 3 - math.ceil(math.log10(max(value, 1e-9))))
    return f"{value:,.{min(digits, 4)}f}"
