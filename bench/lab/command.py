"""`ppe experiment`: experiments on one's own machine, from a file to a page.

Each sub-command is a class in a module of its own, with `name`, `help`, `prepare_parser` and `run`.
"""

import argparse
import importlib
from importlib.util import find_spec
from typing import Any, Final

from ppe.cli import Command

SUBCOMMANDS: Final = (
    "bench.lab.list_command:ListCommand",
    "bench.lab.run_command:RunCommand",
    "bench.lab.report_command:ReportCommand",
    "bench.lab.compare_command:CompareCommand",
)
_EXAMPLES: Final = """\
examples:
  ppe experiment list
  ppe experiment run eta --short --into results/eta
  ppe experiment report results/eta

How to write an experiment of your own: docs/EXPERIMENTS.md."""


class ExperimentCommand:
    """The sub-commands of `ppe experiment`."""

    name = "experiment"
    help = "compare SMP with AMP, core splits and settings on this machine, from a TOML file"

    def __init__(self) -> None:
        self._subcommands = {one.name: one for one in map(_load, SUBCOMMANDS) if one is not None}

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the sub-commands and their flags."""
        parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
        nested = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        for name, one in self._subcommands.items():
            one.prepare_parser(nested.add_parser(name, help=one.help, description=one.help))

    def run(self, args: argparse.Namespace) -> int:
        """Do what is asked."""
        return self._subcommands[args.action].run(args)


def _load(place: str) -> Command | None:
    """The sub-command at "module:class"; None where this version comes without it."""
    module, _, name = place.partition(":")
    if find_spec(module) is None:
        return None
    made: Any = getattr(importlib.import_module(module), name)()
    command: Command = made
    return command
