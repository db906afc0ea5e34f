"""`ppe advise`: a split of the cores for a workload, from what was measured and a queueing model.

The one rule: no prediction is printed without the measurements it can be checked against.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from bench.lab import labels
from ppe import output
from ppe.errors import OperatorError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.lab.advice import Advice
    from bench.lab.calibration import Family

SHOWN: Final = 6  # of a workload's candidates
WIDTH_OF_A_PIPE: Final = 160


class AdviseCommand:
    """The command `advise`."""

    name = "advise"
    help = "recommend a split of the cores from what was measured"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument(
            "--from",
            dest="directory",
            type=Path,
            metavar="DIR",
            help="the result set to learn from (default: a short run of about a minute)",
        )
        parser.add_argument(
            "--into", type=Path, metavar="DIR", help="keeps that short run (default: thrown away)"
        )
        parser.add_argument(
            "--operation", choices=("read", "write"), default="read", help="of the short run"
        )
        parser.add_argument(
            "--block-bytes", default="4K", metavar="SIZE", help="of the short run (default: 4K)"
        )
        parser.add_argument(
            "--transport", choices=("tcp", "iser"), default="tcp", help="of the short run"
        )
        parser.add_argument(
            "--cores", type=int, metavar="N", help="cores to share out (default: all)"
        )
        parser.add_argument(
            "--depth", type=int, metavar="N", help="operations under way (default: the deepest run)"
        )
        parser.add_argument(
            "--prefer",
            choices=("throughput", "latency", "cpu"),
            default="throughput",
            help="what counts first; busy CPU decides among equals (default: throughput)",
        )
        parser.add_argument("--explain", action="store_true", help="print what the model is")
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Calibrate, predict, recommend."""
        from bench.lab import model

        for flag, value, most in (
            ("--cores", args.cores, 4096),
            ("--depth", args.depth, model.POPULATION_MAX),
        ):
            if value is not None and not 1 <= value <= most:
                raise UsageError(f"{flag} {value} is not from 1 to {most}")
        if args.directory is not None:
            if args.into is not None:
                raise UsageError("--into is for a run, and --from learns from one that was made")
            return _advise(args, args.directory)
        with TemporaryDirectory(prefix="ppe-advise-") as place:
            into = args.into or Path(place) / "runs"
            _measure(args, into)
            return _advise(args, into)


def _measure(args: argparse.Namespace, into: Path) -> None:
    from bench.lab import advise_measure
    from ppe.config import parse_size

    try:
        size = parse_size(args.block_bytes)
    except ValueError as error:
        raise UsageError(f"--block-bytes {args.block_bytes!r}: {error}", "write 4K") from error
    output.say("measuring both placements at three depths: about a minute")
    advise_measure.measure(into, args.operation, size, args.transport)


def _advise(args: argparse.Namespace, directory: Path) -> int:
    from bench.lab import advice, calibration, results

    cores = args.cores or len(os.sched_getaffinity(0))
    families, refused = calibration.families(results.load(directory))
    if not families:
        why = "; ".join(refused) or "no run is done"
        raise OperatorError(
            f"no model can be made of {directory}: {why}",
            "run a closed loop at two depths at least",
        )
    found = advice.advise(families, cores, args.depth, args.prefer)
    if not found:
        raise OperatorError(
            f"no measured configuration fits on {output.counted(cores, 'core')}",
            "pass more with --cores",
        )
    if args.json:
        _print_json(found, families, refused, cores)
    else:
        _show(found, families, refused, explain=args.explain)
    return 0


def _print_json(
    found: "list[Advice]", families: "list[Family]", refused: list[str], cores: int
) -> None:
    output.write_json(
        {
            "cores": cores,
            "advice": [
                {
                    "workload": each.workload,
                    "recommended": each.best.to_json(),
                    "reason": each.reason,
                    "model_error": each.error,
                    "candidates": [candidate.to_json() for candidate in each.candidates],
                }
                for each in found
            ],
            "families": [
                {
                    "name": family.name,
                    "workload": family.workload,
                    "costs": family.costs,
                    "error": family.error(),
                    "notes": family.notes,
                    "residuals": [residual.to_json() for residual in family.residuals()],
                }
                for family in families
            ],
            "not_modelled": refused,
        }
    )


def _show(
    found: "list[Advice]", families: "list[Family]", refused: list[str], *, explain: bool
) -> None:
    from rich.console import Console

    from bench.lab import advice

    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_PIPE)
    if explain:
        console.print(advice.METHOD, markup=False)
    for family in families:
        _show_residuals(console, family)
    for text in refused:
        console.print(f"! no model: {text}", markup=False)
    for each in found:
        _show_advice(console, each)


def _show_residuals(console: "Console", family: "Family") -> None:
    from rich.table import Table

    from bench.lab import advice
    from bench.lab.metrics import METRICS

    title = ": ".join(part for part in (family.workload, family.name) if part)
    table = Table(title=f"prediction beside measurement: {title}")
    for heading in ("point", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in ("measured", "predicted", "residual"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("")
    for row in family.residuals():
        shown = labels.number
        table.add_row(
            row.point,
            METRICS[row.metric].axis,
            f"{shown(row.measured.median)} [{shown(row.measured.low)}, {shown(row.measured.high)}]",
            shown(row.predicted),
            f"{100 * row.share:+.1f} %",
            "anchor" if row.anchor else "",
        )
    console.print(table)
    console.print(advice.explain(family), markup=False)
    error = family.error()
    said = "no point was held out" if error is None else f"{100 * error:.1f} % off in the median"
    console.print(f"throughput at points that were no anchors: {said}", markup=False)
    for note in family.notes:
        console.print(f"! {note}", markup=False)


def _show_advice(console: "Console", each: "Advice") -> None:
    from rich.table import Table

    depth = each.best.setting.depth * each.best.setting.sessions
    table = Table(
        title=f"{each.workload or 'the workload'}, {depth} operations under way: predicted"
    )
    table.add_column("configuration", overflow="fold")
    for heading in ("operations (k/s)", "mean latency (µs)", "host CPU (µs)", "all CPU (µs)"):
        table.add_column(heading, justify="right")
    table.add_column("bottleneck")
    for candidate in each.candidates[:SHOWN]:
        expected = candidate.expected
        values = (
            expected.iops / 1e3,
            expected.latency_s * 1e6,
            expected.host_cpu_s * 1e6,
            expected.total_cpu_s * 1e6,
        )
        table.add_row(candidate.label, *map(labels.number, values), expected.bottleneck)
    console.print(table)
    patience = each.best.min_wait_us()
    wait = "" if patience is None else f", min_wait {labels.number(patience)} µs"
    console.print(f"recommended: {each.best.label}{wait}", markup=False, style="bold")
    console.print(each.reason, markup=False)
