"""Making an experiment's runs, one after the other, and keeping each as soon as it is made.

The one rule: whatever ends a sweep, what was finished stays finished, and going on makes exactly
the runs that are missing.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from bench.lab import plan as planning
from bench.lab import result_files, runs
from bench.lab.partition import Machine
from bench.lab.plan import OVERHEAD_S, Plan, PlannedRun
from bench.lab.result_files import PLAN_FILE, RUNS_FOLDER, SPEC_FILE
from bench.lab.spec import Experiment
from ppe.errors import UsageError

RECENT_SHARE: Final = 0.3  # what the latest run counts for in the estimate of the others


class Watcher(Protocol):
    """Is told what a sweep does."""

    def begin(self, plan: Plan, left: Sequence[PlannedRun], seconds: float) -> None:
        """These runs are left to be made, and will take about so long."""

    def next(self, run: PlannedRun, seconds: float) -> None:
        """This one begins; with it and those behind it about so long is left."""

    def made(self, run: PlannedRun, found: Mapping[str, Any]) -> None:
        """It has ended, and this is its file."""

    def end(self) -> None:
        """Nothing more comes."""


@dataclass(slots=True)
class Silent:
    """A watcher that keeps how each run ended, and says nothing."""

    statuses: dict[str, str] = field(default_factory=dict)

    def begin(self, plan: Plan, left: Sequence[PlannedRun], seconds: float) -> None:
        """Say nothing."""

    def next(self, run: PlannedRun, seconds: float) -> None:
        """Say nothing."""

    def made(self, run: PlannedRun, found: Mapping[str, Any]) -> None:
        """Keep it."""
        self.statuses[run.id] = str(found["status"])

    def end(self) -> None:
        """Say nothing."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A result set that is being made: its folder, its plan, and the runs that are missing."""

    directory: Path
    plan: Plan
    left: tuple[PlannedRun, ...]

    def perform(self, here: Machine, watcher: Watcher) -> dict[str, str]:
        """Make the missing runs. Return how each of them ended, by its id."""
        statuses, overhead_s = {}, OVERHEAD_S
        watcher.begin(self.plan, self.left, self.plan.seconds(self.left))
        try:
            for number, run in enumerate(self.left):
                watcher.next(run, self.plan.seconds(self.left[number:], overhead_s))
                start = time.monotonic()
                found = runs.perform(run, self.plan.experiment, self.plan.timing, here)
                result_files.write_json(result_files.run_file(self.directory, run.id), found)
                statuses[run.id] = str(found["status"])
                if not run.refusal:
                    timing = self.plan.timing
                    took = time.monotonic() - start - timing.warm_up_s - timing.measure_s
                    overhead_s += RECENT_SHARE * (took - overhead_s)
                watcher.made(run, found)
        finally:
            watcher.end()
        return statuses


def begin(
    experiment: Experiment, directory: Path, here: Machine, *, is_short: bool = False
) -> Sweep:
    """Plan an experiment and write down what is to be done.

    Raises ConfigError for an experiment that cannot run here, UsageError for a folder in use.
    """
    chosen = experiment.shortened() if is_short else experiment
    plan = planning.make(chosen, here, is_short=is_short)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        hint = "name another folder with --into"
        if result_files.has_plan(directory):
            hint = f"go on with `ppe experiment run {directory} --resume`, or {hint}"
        raise UsageError(f"{directory} is in use", hint)
    (directory / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)
    result_files.write_text(directory / SPEC_FILE, experiment.to_toml())
    # Last: a folder with a plan is one that can be gone on with.
    result_files.write_json(directory / PLAN_FILE, plan.to_json())
    return Sweep(directory, plan, plan.runs)


def resume(directory: Path, experiment: Experiment | None = None) -> Sweep:
    """Go on with a result set. Raises NotResumable, or UsageError when it is of another experiment.

    `experiment` may be given to be sure that it is the one that was begun.
    """
    plan = Plan.from_directory(directory)
    if experiment is not None:
        begun = (directory / SPEC_FILE).read_text(encoding="utf-8")
        if begun != experiment.to_toml():
            raise UsageError(
                f"{directory} was begun with another {SPEC_FILE}",
                "begin anew in another folder (--into), or go on without naming the file",
            )
    finished = result_files.finished(directory)
    return Sweep(directory, plan, tuple(run for run in plan.runs if run.id not in finished))


def run(
    experiment: Experiment,
    into: "str | Path",
    *,
    short: bool = False,
    resume_it: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, str]:
    """Run an experiment into a folder. Return how each run ended: done, refused or failed, by id.

    `resume_it` goes on with what is there. Raises ConfigError, UsageError, NotResumable.
    """
    here, directory = Machine.here(), Path(into)
    if resume_it:
        sweep = resume(directory, experiment)
    else:
        sweep = begin(experiment, directory, here, is_short=short)
    return sweep.perform(here, watcher or Silent())


def with_repeats(experiment: Experiment, repeats: int) -> Experiment:
    """The same with another number of repeats, in its short form, too."""
    short = experiment.short
    if short is not None:
        short = replace(short, timing=replace(short.timing, repeats=repeats))
    return replace(experiment, timing=replace(experiment.timing, repeats=repeats), short=short)
