"""What a report is made of, before anyone decides how it is written.

The one rule: a figure carries its caption, its alternative text, its raw data, and the spread of
every series; one without them cannot be made. Cited numbers, which have no repeats, are marked.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from bench.lab import labels

ALONE: Final = "all runs"  # the label of a series that needs none
KINDS: Final = ("lines", "bars", "grid")


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text; `strong` for the sentence one came for."""

    text: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of plain texts."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Text to be shown letter by letter, folded under its title."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; columns in `numbers` are set to the right."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.headings) for row in self.rows):
            raise ValueError(f"{self.caption}: a row has not as many cells as there are headings")


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or one colour of bars. `low` and `high` are the spread at each x."""

    label: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    cited: bool = False  # printed by a paper, without a spread

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"{self.label}: {len(self.x)} places and {len(self.y)} values")
        if self.cited:
            return
        if not len(self.y) == len(self.low) == len(self.high):
            raise ValueError(f"{self.label}: a series without its spread is not drawn")
        if any(not a <= b <= c for a, b, c in zip(self.low, self.y, self.high, strict=True)):
            raise ValueError(f"{self.label}: a value lies outside its spread")


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. A grid's series are its rows, its x the columns."""

    title: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Raw:
    """The runs behind a figure, one row each."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def csv(self) -> str:
        """The rows as comma-separated values with a line of headings."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.headings)
        writer.writerows(self.rows)
        return out.getvalue()


@dataclass(frozen=True, slots=True)
class Figure:
    """Everything a drawing needs and everything that stands below it."""

    name: str  # a file name without its suffix
    kind: str
    x_label: str
    y_label: str
    panels: tuple[Panel, ...]
    caption: str
    alt: str
    raw: Raw
    reference: float | None = None  # a line to compare with, such as the ratio 1
    order: tuple[str, ...] = ()  # of the places along x, where they are words
    one_scale: bool = True  # whether the panels are there to be compared with each other

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: {self.kind!r} is none of {', '.join(KINDS)}")
        for what in ("caption", "alt", "x_label", "y_label"):
            if not getattr(self, what).strip():
                raise ValueError(f"{self.name}: a figure without its {what}")
        if not self.raw.rows or not any(panel.series for panel in self.panels):
            raise ValueError(f"{self.name}: a figure of no data")

    def table(self) -> Table:
        """The same numbers to be read: a row for each x of each series."""
        titled = len(self.panels) > 1
        rows = []
        for panel in self.panels:
            for series in panel.series:
                for at, x in enumerate(series.x):
                    spread = (
                        "as printed"
                        if series.cited
                        else f"{labels.number(series.low[at])} … {labels.number(series.high[at])}"
                    )
                    cells = (series.label, shown(x), labels.number(series.y[at]), spread)
                    rows.append((panel.title, *cells) if titled else cells)
        headings = ("series", self.x_label, self.y_label, "spread")
        return Table(
            f"The numbers of figure {self.name}",
            ("panel", *headings) if titled else headings,
            tuple(rows),
            frozenset({2, 3, 4} if titled else {2, 3}),
        )


Block = Paragraph | Bullets | Listing | Table | Figure


@dataclass
class Section:
    """A heading with what stands below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    level: int = 2


@dataclass
class Report:
    """The whole document."""

    title: str
    subtitle: str
    sections: list[Section] = field(default_factory=list)

    def figures(self) -> list[Figure]:
        """Every figure, in order."""
        return [block for s in self.sections for block in s.blocks if isinstance(block, Figure)]


def parts(figure: Figure, most: int) -> list[Figure]:
    """The figure, or as many as keep each to `most` panels; nothing is left away."""
    panels = figure.panels
    if len(panels) <= most:
        return [figure]
    cut = [panels[at : at + most] for at in range(0, len(panels), most)]
    return [
        replace(
            figure,
            name=f"{figure.name}-{at}",
            panels=some,
            caption=f"(Part {at} of {len(cut)}) {figure.caption}",
        )
        for at, some in enumerate(cut, 1)
    ]


def shown(x: float | str) -> str:
    """A place on the x axis in words."""
    return x if isinstance(x, str) else f"{x:,.6g}"


def slug(words: Sequence[str]) -> str:
    """A file name of these words."""
    text = "-".join(words).lower()
    kept = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in text)
    return "-".join(part for part in kept.split("-") if part)
