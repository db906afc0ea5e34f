"""A report as Markdown, with a folder beside it that holds each figure and its raw data.

The one rule: whatever would end a table cell or start markup is escaped.
"""

from pathlib import Path

from bench.lab.report import drawing
from bench.lab.report.document import (
    Block,
    Bullets,
    Figure,
    Listing,
    Paragraph,
    Report,
    Table,
)


def write(report: Report, path: Path, kind: str) -> list[Path]:
    """Write `path` and its figures as `kind` (svg or png); return every file written."""
    folder = path.with_name(f"{path.stem}-figures")
    written = [path]
    lines = [f"# {_plain(report.title)}", "", _plain(report.subtitle), ""]
    number = 0
    for section in report.sections:
        lines += [f"{'#' * section.level} {_plain(section.title)}", ""]
        for block in section.blocks:
            if isinstance(block, Figure):
                number += 1
                files = _files(block, folder, kind)
                written += files
                lines += _figure(block, number, folder.name, files)
            else:
                lines += _block(block)
    path.write_text("\n".join(lines))
    return written


def _block(block: Block) -> list[str]:
    match block:
        case Paragraph():
            return [f"**{_plain(block.text)}**" if block.strong else _plain(block.text), ""]
        case Bullets():
            return [*(f"- {_plain(item)}" for item in block.items), ""]
        case Listing():
            fence = "```" if "```" not in block.text else "~~~~~~~~"
            return [f"{_plain(block.title)}:", "", fence, block.text.rstrip("\n"), fence, ""]
        case Table():
            return _table(block)
        case Figure():
            raise TypeError("a figure is written with its files")


def _table(table: Table) -> list[str]:
    rule = ["---:" if at in table.numbers else "---" for at in range(len(table.headings))]
    rows = [table.headings, *table.rows]
    cells = [["| " + " | ".join(_cell(text) for text in row) + " |"] for row in rows]
    flat = [line for row in cells for line in row]
    return [f"*{_plain(table.caption)}*", "", flat[0], f"| {' | '.join(rule)} |", *flat[1:], ""]


def _files(figure: Figure, folder: Path, kind: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{figure.name}.csv"
    data.write_text(figure.raw.csv())
    if not drawing.available():
        return [data]
    picture = folder / f"{figure.name}.{kind}"
    picture.write_bytes(drawing.draw(figure, kind))
    return [data, picture]


def _figure(figure: Figure, number: int, folder: str, files: list[Path]) -> list[str]:
    data = f"Raw data: [{files[0].name}]({folder}/{files[0].name})"
    caption = f"**Figure {number}.** {_plain(figure.caption)} {data}"
    if len(files) == 1:
        return [*_table(figure.table()), caption, ""]
    alt = figure.alt.replace("[", "(").replace("]", ")")
    return [f"![{_plain(alt)}]({folder}/{files[1].name})", "", caption, ""]


def _plain(text: str) -> str:
    one_line = " ".join(text.split())
    for mark in ("\\", "*", "_", "<", "`"):
        one_line = one_line.replace(mark, f"\\{mark}")
    return one_line


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")
