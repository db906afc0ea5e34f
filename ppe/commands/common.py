"""What the commands that look at a running engine share."""

import argparse

from ppe.observer import Observer
from ppe.paths import DEFAULT_NAME, check_name


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add `--name`, the engine to look at."""
    parser.add_argument(
        "--name", default=DEFAULT_NAME, help=f"the engine's name (default: {DEFAULT_NAME})"
    )


def engine(name: str) -> Observer:
    """Connect to the engine. Raises OperatorError when there is none."""
    return Observer(check_name(name))
