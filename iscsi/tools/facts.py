"""Facts as a person reads them: a name and a value a line, tables indented below their name, and no
line longer than a terminal is wide. Scripts take `--json`.
"""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ppe import output

WIDTH: Final = 80
_INDENT: Final = "  "


def fact_lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The lines. What is missing or empty is left out; the order stays, tables come last."""
    shown = {name: value for name, value in facts.items() if value not in (None, "", [], {}, ())}
    plain = {name: value for name, value in shown.items() if not isinstance(value, Mapping)}
    names = output.columns((f"{indent}{name}:", "") for name in plain)
    for name, value in zip(names, plain.values(), strict=True):
        yield from _wrapped(name, value)
    for name, value in shown.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from fact_lines(value, indent + _INDENT)


def _wrapped(name: str, value: Any) -> Iterator[str]:
    """One fact. A word that is longer than the line stays whole: it may be copied."""
    yield from textwrap.wrap(
        _text(value),
        WIDTH,
        initial_indent=name,
        subsequent_indent=" " * len(name),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return str(value)
