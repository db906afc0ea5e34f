"""`ppe experiment run`: make an experiment's runs, or those that are missing, into a folder.

The one rule: it says beforehand what it will do and how long that takes, and whenever it ends it
says how to go on.
"""

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ppe import output
from ppe.errors import OperatorError, UsageError

if TYPE_CHECKING:
    from bench.lab.driver import Sweep
    from bench.lab.partition import Machine
    from bench.lab.plan import Plan
    from bench.lab.spec import Experiment

RESULTS: Final = Path("bench/results/lab")


class RunCommand:
    """The sub-command `run`."""

    name = "run"
    help = "run an experiment: a built-in one's name, a TOML file, or a folder to go on with"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        add = parser.add_argument
        add("what", metavar="NAME|FILE|DIR", help="what to run (`ppe experiment list`)")
        add(
            "--into",
            type=Path,
            metavar="DIR",
            help=f"the folder for its results (default: {RESULTS}/NAME)",
        )
        add("--resume", action="store_true", help="make only the runs that are missing there")
        add("--short", action="store_true", help="its short form, as its file says")
        add("--repeats", type=int, metavar="N", help="how often each point runs")
        add("--dry-run", action="store_true", help="show the plan, and run nothing")
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Run it; 1 when a run failed."""
        from bench.lab import progress
        from bench.lab.driver import Silent
        from bench.lab.partition import Machine

        here = Machine.here()
        if args.dry_run:
            return _show_plan(_planned(args, here), args.json)
        sweep = _sweep(args, here)
        if not args.json:
            output.say(f"results go to {sweep.directory}; Ctrl-C keeps what is finished")
        try:
            statuses = sweep.perform(here, Silent() if args.json else progress.watcher())
        except KeyboardInterrupt:
            _say_interrupted(sweep)
            raise
        return _conclude(sweep, statuses, args.json)


def _sweep(args: argparse.Namespace, here: "Machine") -> "Sweep":
    """What is to be done, written down. Raises UsageError, ConfigError, NotResumable."""
    from bench.lab import driver

    if Path(args.what).is_dir():
        if not args.resume:
            raise UsageError(
                f"{args.what} is a folder",
                f"go on with it: ppe experiment run {args.what} --resume",
            )
        _refuse_changes(args)
        return driver.resume(Path(args.what))
    experiment = _experiment(args)
    directory = args.into or RESULTS / experiment.name
    if args.resume:
        _refuse_changes(args)
        return driver.resume(directory, experiment)
    try:
        return driver.begin(experiment, directory, here, is_short=args.short)
    except OSError as error:
        raise OperatorError(
            f"{error.filename or directory}: {error.strerror}", "name another folder with --into"
        ) from error


def _experiment(args: argparse.Namespace) -> "Experiment":
    from bench.lab import builtin
    from bench.lab.driver import with_repeats

    experiment = builtin.find(args.what)
    if args.repeats is None:
        return experiment
    if args.repeats < 1:
        raise UsageError(f"--repeats {args.repeats}: at least 1", "leave it out for the file's")
    return with_repeats(experiment, args.repeats)


def _refuse_changes(args: argparse.Namespace) -> None:
    """A plan that was begun is not changed."""
    given = [flag for flag in ("short", "repeats") if getattr(args, flag)]
    if given:
        raise UsageError(
            f"--{given[0]} has no meaning with --resume: the plan was made before",
            "leave it out, or begin anew in another folder",
        )


def _planned(args: argparse.Namespace, here: "Machine") -> "Plan":
    from bench.lab import plan as planning
    from bench.lab.plan import Plan

    if Path(args.what).is_dir():
        return Plan.from_directory(Path(args.what))
    experiment = _experiment(args)
    chosen = experiment.shortened() if args.short else experiment
    return planning.make(chosen, here, is_short=args.short)


def _show_plan(plan: "Plan", as_json: bool) -> int:
    from bench.lab.progress import describe, duration, varying

    seconds = plan.seconds(plan.runs)
    if as_json:
        output.write_json(plan.to_json() | {"seconds": seconds})
        return 0
    names = varying(plan.runs)
    rows = [("run", "repeat", "point", "")]
    for run in plan.runs:
        said = f"refused: {run.refusal}" if run.refusal else ""
        rows.append((run.id, str(run.repeat), describe(run.point, names), said))
    for line in output.columns(rows):
        output.write(line.rstrip())
    output.write()
    output.write(
        f"{output.counted(len(plan.runs), 'run')} of {plan.timing.warm_up_s:g} + "
        f"{plan.timing.measure_s:g} s, about {duration(seconds)}; seed {plan.seed}"
    )
    return 0


def _say_interrupted(sweep: "Sweep") -> None:
    from bench.lab import result_files

    done = len(result_files.finished(sweep.directory))
    output.say(f"interrupted: {done} of {len(sweep.plan.runs)} runs are finished and kept")
    output.say(f"go on   ppe experiment run {sweep.directory} --resume")


def _conclude(sweep: "Sweep", statuses: Mapping[str, str], as_json: bool) -> int:
    counts = Counter(statuses.values())
    if as_json:
        output.write_json({"directory": sweep.directory, "runs": dict(statuses)})
    else:
        said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        output.write(f"saved   {sweep.directory} ({said or 'nothing was missing'})")
        output.write(f"next    ppe experiment report {sweep.directory}")
    if counts["failed"]:
        output.say(f"again   ppe experiment run {sweep.directory} --resume")
        return 1
    return 0
