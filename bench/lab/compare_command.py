"""`ppe experiment compare BEFORE AFTER`: two result sets side by side, and the word "same".

The one rule: it exits with 0 whatever it finds; a worse figure is a finding, not an error.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.lab import labels
from bench.lab.metrics import COMPARED, METRICS
from ppe import output
from ppe.errors import UsageError

if TYPE_CHECKING:
    from bench.lab.comparison import Comparison
    from bench.lab.statistics import Interval

WIDTH_OF_A_PIPE: Final = 160


class CompareCommand:
    """The sub-command `compare`."""

    name = "compare"
    help = "compare two result sets point by point, with confidence intervals"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument("before", type=Path, metavar="BEFORE", help="a result set")
        parser.add_argument("after", type=Path, metavar="AFTER", help="another one")
        parser.add_argument(
            "--metrics",
            metavar="M,M",
            default=",".join(COMPARED),
            help=f"of {', '.join(METRICS)} (default: {','.join(COMPARED)})",
        )
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Compare and print."""
        metrics = [word.strip() for word in args.metrics.split(",")]
        unknown = [word for word in metrics if word not in METRICS]
        if unknown:
            raise UsageError(
                f"--metrics {args.metrics!r}: there is no {unknown[0]!r}",
                f"name some of {', '.join(METRICS)}",
            )
        from bench.lab import comparison, results

        found = comparison.compare(results.load(args.before), results.load(args.after), metrics)
        if args.json:
            output.write_json(found.to_json())
        else:
            _show(found)
        return 0


def _show(found: "Comparison") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_PIPE)
    table = Table(title=f"{found.before} → {found.after}")
    for heading in ("point", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in ("before", "after", "after/before"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("verdict")
    for row in found.rows:
        table.add_row(
            row.point,
            row.metric.axis,
            _cell(row.before),
            _cell(row.after),
            "—" if row.ratio is None else _cell(row.ratio),
            row.verdict,
        )
    console.print(table)
    for line in notes(found):
        console.print(line, markup=False)


def notes(found: "Comparison") -> list[str]:
    """What a reader of the table has to know: the count, the rule, and what was not compared."""
    said = ", ".join(f"{count} {word}" for word, count in found.verdicts.items() if count)
    lines = [said or "no point and metric in common: nothing was compared"]
    confidences = sorted({round(row.ratio.confidence, 3) for row in found.rows if row.ratio})
    if confidences:
        span = " to ".join(
            f"{100 * c:.3g} %" for c in dict.fromkeys([confidences[0], confidences[-1]])
        )
        lines.append(
            f"[low, high]: exact intervals from ranks; those of the ratios have {span} confidence"
        )
    if found.by_chance:
        many = output.counted(found.by_chance, "verdict")
        lines.append(
            f"if nothing had changed, chance alone would give about {many} of better or worse"
        )
    lines += [f"only before: {name}" for name in found.only_before]
    lines += [f"only after: {name}" for name in found.only_after]
    lines += [f"! not the same: {text}" for text in found.differences]
    return lines


def _cell(interval: "Interval") -> str:
    shown = labels.number
    return f"{shown(interval.median)} [{shown(interval.low)}, {shown(interval.high)}]"
