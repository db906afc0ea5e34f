"""`ppe experiment report DIR`: a result set as a page to be read, with figures and raw data.

The one rule: a report is derived, so it may be written over; result files are only read.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ppe import output
from ppe.errors import OperatorError

if TYPE_CHECKING:
    from bench.lab.report.document import Report
    from bench.lab.results import Rejected, Results

PAGE: Final = "report.html"


class ReportCommand:
    """The sub-command `report`."""

    name = "report"
    help = "write a result set as one HTML page, or as Markdown with figures"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument(
            "directory", type=Path, metavar="DIR", help="a result set, or a folder of result sets"
        )
        parser.add_argument(
            "--html", type=Path, metavar="FILE", help=f"the page (default: DIR/{PAGE})"
        )
        parser.add_argument(
            "--markdown",
            type=Path,
            metavar="FILE",
            help="Markdown, its figures in a folder beside it",
        )
        parser.add_argument(
            "--open-format",
            choices=("svg", "png"),
            default="svg",
            help="of the figures beside the Markdown (default: svg)",
        )
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Read, write, and say what was written."""
        from bench.lab import results
        from bench.lab.report import drawing, sections

        sets, left_out = results.load_all(args.directory)
        made = sections.report(sets, left_out)
        if args.html is None and args.markdown is None:
            args.html = args.directory / PAGE
        try:
            written = _write(made, args)
        except OSError as error:
            raise OperatorError(
                f"the report cannot be written: {error.filename}: {os.strerror(error.errno or 0)}",
                "name another file with --html or --markdown",
            ) from error
        if args.json:
            output.write_json(_json(sets, left_out, written))
            return 0
        for path in written[:2]:
            output.write(f"written {path}")
        if len(written) > 2:
            output.write(f"        and {output.counted(len(written) - 2, 'file')} beside it")
        for whole in left_out:
            output.say(f"left out: {args.directory}/{whole.file}: {whole.reason}")
        for each in sets:
            for rejected in each.rejected:
                output.say(f"left out: {each.directory}/{rejected.file}: {rejected.reason}")
        if not drawing.available():
            output.say(f"tables only: matplotlib is not installed. For figures: {drawing.HOW_TO}")
        return 0


def _write(made: "Report", args: argparse.Namespace) -> list[Path]:
    from bench.lab.report import html, markdown

    written = []
    if args.html is not None:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        args.html.write_text(html.write(made))
        written.append(args.html)
    if args.markdown is not None:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        written += markdown.write(made, args.markdown, args.open_format)
    return written


def _json(
    sets: "list[Results]", left_out: "list[Rejected]", written: list[Path]
) -> dict[str, object]:
    from bench.lab import answers

    found: dict[str, object] = {"written": written}
    found["left_out"] = [{"set": each.file, "reason": each.reason} for each in left_out]
    found["sets"] = [
        {
            "experiment": each.experiment,
            "directory": each.directory,
            "answer": answers.headline(duels := answers.duels(each)),
            "duels": [duel.to_json() for duel in duels],
            "missing": each.missing(),
            "left_out": [{"file": r.file, "reason": r.reason} for r in each.rejected],
        }
        for each in sets
    ]
    return found
