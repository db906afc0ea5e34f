"""What the commands print: data on stdout, everything else on stderr.

Colour appears only on a terminal that wants it; JSON is one object, always valid, never coloured.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    import argparse

COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}


def add_json_flag(parser: "argparse.ArgumentParser") -> None:
    """Give a command that prints data its machine-readable twin."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def colour_wanted(stream: TextIO) -> bool:
    """Tell whether `stream` is a terminal and neither NO_COLOR nor TERM=dumb speaks against it."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Wrap `text` in a colour of COLOURS if `stream` shows colours, else return it unchanged."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if colour_wanted(stream) else text


def write(text: str = "") -> None:
    """Print one line of data on stdout."""
    sys.stdout.write(text + "\n")


def write_json(value: Any) -> None:
    """Print `value` (dataclasses, sets and paths included) as one JSON object on stdout."""
    json.dump(value, sys.stdout, indent=2, default=_plain, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Print one line of progress on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def complain(command: str, message: str, hint: str = "") -> None:
    """Print an error as one or two lines on stderr: what is wrong, then what to change."""
    say(f"{paint(command + ':', 'red', sys.stderr)} {message}")
    if hint:
        say(f"  {paint('try:', 'dim', sys.stderr)} {hint}")


def counted(number: int, noun: str) -> str:
    """`1 client`, `2 clients`: a number with what it counts, whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def events(counts: Mapping[str, int]) -> str:
    """`3 accepted, 1 login failed`: how often each happened. One of a kind is told of in the
    singular: the first word that ends in s, which is the noun of such a name, goes without it.
    """
    told = []
    for what, count in counts.items():
        words = what.split(" ")
        noun = next((at for at, word in enumerate(words) if word.endswith("s")), None)
        if count == 1 and noun is not None:
            words[noun] = words[noun][:-1]
        told.append(f"{count} {' '.join(words)}")
    return ", ".join(told)


def columns(
    rows: Iterable[Sequence[str]], gap: int = 2, *, numbers: Container[int] = ()
) -> list[str]:
    """Line up rows of equal length; the columns that `numbers` names are lined up at their right.
    A last column that is none of them is not padded.
    """
    table = [tuple(row) for row in rows]
    if not table:
        return []
    last = len(table[0]) - 1
    widths = [max(len(row[i]) for row in table) for i in range(last + 1)]
    if last not in numbers:
        widths[last] = 0
    return [
        (" " * gap).join(
            cell.rjust(width) if at in numbers else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
