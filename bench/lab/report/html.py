"""A report as one HTML page that needs nothing else: style, figures and raw data are inside.

The one rule: the page names no other resource; every text from a result file is escaped.
"""

import base64
from html import escape
from typing import Final

from bench.lab.report import drawing
from bench.lab.report.document import (
    Block,
    Bullets,
    Figure,
    Listing,
    Paragraph,
    Report,
    Section,
    Table,
)

STYLE: Final = """
:root { color-scheme: light; }
body { font: 17px/1.5 Georgia, "Times New Roman", serif; color: #1a1a1a; background: #fff;
       max-width: 54rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .2rem; }
h2 { font-size: 1.3rem; margin-top: 2.6rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
h3 { font-size: 1.1rem; margin-top: 1.8rem; }
.subtitle { color: #555; margin-top: 0; }
nav { font: 14px/1.5 system-ui, sans-serif; }
nav a { margin-right: 1rem; }
a { color: #0b5394; }
.answer { font-size: 1.08rem; border-left: 4px solid #0072B2; padding: .3rem 0 .3rem .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font: 13.5px/1.4 system-ui, sans-serif; margin: 1rem 0; }
caption { text-align: left; color: #444; padding-bottom: .4rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; }
thead th { border-top: 2px solid #333; border-bottom: 1px solid #333; }
tbody tr:last-child td { border-bottom: 2px solid #333; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 2rem 0; break-inside: avoid; }
figure svg { max-width: 100%; height: auto; }
figcaption { font: 14px/1.45 system-ui, sans-serif; color: #333; }
details { font: 13.5px/1.4 system-ui, sans-serif; margin: .4rem 0; }
pre { overflow-x: auto; background: #f6f6f4; padding: .7rem; font-size: 12.5px; }
@media print { details { display: none; } body { max-width: none; } }
"""


def write(report: Report) -> str:
    """Return the page."""
    numbered = {figure.name: at for at, figure in enumerate(report.figures(), 1)}
    links = "".join(
        f'<a href="#s{at}">{escape(section.title)}</a>'
        for at, section in enumerate(report.sections)
        if section.level == 2
    )
    body = "\n".join(_section(at, section, numbered) for at, section in enumerate(report.sections))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(report.title)}</h1>\n"
        f'<p class="subtitle">{escape(report.subtitle)}</p>\n<nav>{links}</nav>\n'
        f"{body}\n</body>\n</html>\n"
    )


def _section(at: int, section: Section, numbered: dict[str, int]) -> str:
    level = section.level
    parts = [f'<h{level} id="s{at}">{escape(section.title)}</h{level}>']
    parts += [_block(block, numbered) for block in section.blocks]
    return "\n".join(parts)


def _block(block: Block, numbered: dict[str, int]) -> str:
    match block:
        case Paragraph():
            kind = ' class="answer"' if block.strong else ""
            return f"<p{kind}>{escape(block.text)}</p>"
        case Bullets():
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in block.items) + "</ul>"
        case Listing():
            inside = f"<pre>{escape(block.text)}</pre>"
            return f"<details><summary>{escape(block.title)}</summary>{inside}</details>"
        case Table():
            return _table(block)
        case Figure():
            return _figure(block, numbered[block.name])


def _table(table: Table) -> str:
    def cell(tag: str, at: int, text: str) -> str:
        kind = ' class="n"' if at in table.numbers else ""
        return f"<{tag}{kind}>{escape(text)}</{tag}>"

    head = "".join(cell("th", at, text) for at, text in enumerate(table.headings))
    rows = "\n".join(
        "<tr>" + "".join(cell("td", at, text) for at, text in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _figure(figure: Figure, number: int) -> str:
    """The drawing with its caption, its numbers and its raw data; without matplotlib no drawing."""
    text = figure.raw.csv()
    data = base64.b64encode(text.encode()).decode()
    link = (
        f'<a download="{figure.name}.csv" href="data:text/csv;base64,{data}">{figure.name}.csv</a>'
    )
    rows = len(figure.raw.rows)
    kept = f"<details><summary>Raw data: {rows} runs</summary><p>{link}</p></details>"
    caption = f"<figcaption><b>Figure {number}.</b> {escape(figure.caption)}</figcaption>"
    numbers = _table(figure.table())
    if not drawing.available():
        return f'<figure id="f{number}">{numbers}{caption}{kept}</figure>'
    picture = drawing.inline_svg(figure)
    folded = f"<details><summary>The numbers</summary>{numbers}</details>"
    return f'<figure id="f{number}">{picture}{caption}{folded}{kept}</figure>'
