"""What a sweep shows while it runs: what is running, what came out, how long it will take.

On a terminal a live line at the bottom; elsewhere a line for each run. All of it on stderr.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from bench.lab.plan import Plan, PlannedRun
from bench.lab.points import Point
from ppe import output

if TYPE_CHECKING:
    from rich.console import Console

ALWAYS: Final = ("placement", "transport", "operation", "block_bytes", "depth")


def duration(seconds: float) -> str:
    """A time for people: "40 s", "12 min", "1 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count >> 10}K" if count >= 1024 and count % 1024 == 0 else f"{count}"


def describe(point: Point, varying: Sequence[str]) -> str:
    """A point on one line: what it always says, and what else varies."""
    words = [
        point.placement,
        point.transport,
        point.operation,
        size(point.block_bytes),
        f"depth {point.depth}",
    ]
    words += [f"{name} {getattr(point, name)}" for name in varying if name not in ALWAYS]
    return " ".join(words)


def varying(runs: Sequence[PlannedRun]) -> list[str]:
    """The fields in which the points of these runs differ."""
    return [
        each.name
        for each in fields(Point)
        if len({getattr(run.point, each.name) for run in runs}) > 1
    ]


def outcome(found: Mapping[str, Any]) -> str:
    """How a run ended, in a few words."""
    if found["status"] != "done":
        return f"{found['status']}: {found['reason']}"
    measured = found["measured"]
    cpu, p50 = measured["cpu"], measured["latency_ns"]["p50"]
    return (
        f"{measured['iops']:,.0f} IOPS, p50 {p50 / 1e3:,.0f} µs, "
        f"host {cpu['host_cpu_ns_per_op'] / 1e3:.2f} and all "
        f"{cpu['total_busy_ns_per_op'] / 1e3:.2f} µs CPU per operation"
    )


class Lines:
    """A line for each run."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._names: list[str] = []
        self._seconds = 0.0

    def begin(self, plan: Plan, left: Sequence[PlannedRun], seconds: float) -> None:
        """Say how much there is to do."""
        self._plan, self._names = plan, varying(plan.runs)
        done = len(plan.runs) - len(left)
        before = f", {done} of them made before" if done else ""
        output.say(
            f"{plan.experiment}: {output.counted(len(plan.runs), 'run')}{before}; "
            f"about {duration(seconds)}"
        )

    def next(self, run: PlannedRun, seconds: float) -> None:
        """Keep how long it will take."""
        self._seconds = seconds

    def made(self, run: PlannedRun, found: Mapping[str, Any]) -> None:
        """Say what came out."""
        assert self._plan is not None
        output.say(self._line(run, found))

    def _line(self, run: PlannedRun, found: Mapping[str, Any]) -> str:
        assert self._plan is not None
        at = f"{run.order + 1}/{len(self._plan.runs)}"
        left = duration(self._seconds)
        return f"  {at} ({left}) {describe(run.point, self._names)}: {outcome(found)}"

    def end(self) -> None:
        """Nothing more comes."""


class Live(Lines):
    """The same, and below it what runs now."""

    def __init__(self, console: "Console | None" = None) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(20),
            TextColumn("{task.fields[left]} left, after"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._task: Any = None

    def begin(self, plan: Plan, left: Sequence[PlannedRun], seconds: float) -> None:
        """Show the bar."""
        super().begin(plan, left, seconds)
        total = len(plan.runs)
        self._task = self._progress.add_task(
            "", total=total, completed=total - len(left), left=duration(seconds)
        )
        self._progress.start()

    def next(self, run: PlannedRun, seconds: float) -> None:
        """Show what runs now."""
        super().next(run, seconds)
        text = describe(run.point, self._names)
        self._progress.update(self._task, description=text, left=duration(seconds))

    def made(self, run: PlannedRun, found: Mapping[str, Any]) -> None:
        """Say what came out, above the bar."""
        self._progress.console.print(self._line(run, found), markup=False, highlight=False)
        self._progress.advance(self._task)

    def end(self) -> None:
        """Take the bar away."""
        self._progress.stop()


def watcher() -> Lines:
    """What suits where this process writes to."""
    return Live() if sys.stderr.isatty() else Lines()
