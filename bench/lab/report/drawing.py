"""The only module that knows matplotlib: a Figure becomes SVG or PNG.

The one rule: what is drawn is what the Figure holds; colours are told apart by colour-blind readers
too, and each series has a mark of its own besides.
"""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any, Final

from bench.lab import labels
from bench.lab.report.document import ALONE, Figure, Panel, Series

# Okabe and Ito's palette, dark enough on white; yellow is left out.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
MARKS: Final = ("o", "s", "^", "D", "v", "P", "X")
HATCHES: Final = ("", "///", "...", "xx", "\\\\\\", "++", "oo")
LINES: Final = ("-", "--", "-.", ":")
DODGE_POINTS: Final = 1.8
FORMATS: Final = ("svg", "png")
HOW_TO: Final = "pip install 'ppe-runtime[plot]'"
LOG_SPAN: Final = 8  # of a wider range than this x is logarithmic
STYLE: Final = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "hatch.linewidth": 0.6,
}


def available() -> bool:
    """Tell whether matplotlib is installed."""
    try:
        return find_spec("matplotlib") is not None
    except ValueError:  # somebody has put None in its place
        return False


def draw(figure: Figure, kind: str = "svg") -> bytes:
    """Draw as `kind`, one of FORMATS. The same figure gives the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    settings: dict[Any, Any] = STYLE | {"svg.hashsalt": figure.name}
    with matplotlib.rc_context(settings):
        across = min(len(figure.panels), 2)
        down = -(-len(figure.panels) // across)
        canvas = Canvas(figsize=_size(figure, across, down), layout="constrained")
        FigureCanvasAgg(canvas)
        scale = figure.one_scale
        axes = list(canvas.subplots(down, across, squeeze=False, sharey=scale).ravel())
        looks = _looks(figure)
        for at, (axis, panel) in enumerate(zip(axes, figure.panels, strict=False)):
            _DRAW[figure.kind](axis, figure, panel, looks)
            axis.set_title(panel.title, fontsize=9.5, loc="left")
            if at % across == 0 and figure.kind != "grid":
                axis.set_ylabel(figure.y_label)
            if figure.kind != "grid":
                axis.yaxis.set_major_formatter("{x:,g}")
        for axis in axes[len(figure.panels) :]:
            axis.set_axis_off()
        if figure.kind == "grid":
            bar = canvas.colorbar(axes[0].collections[0], ax=axes, label=figure.y_label, aspect=30)
            if bar.solids is not None:  # else they are an image within the SVG
                bar.solids.set(rasterized=False, edgecolor="face")
        else:
            _legend(canvas, axes, looks)
        out = io.BytesIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else None
        canvas.savefig(out, format=kind, dpi=150, metadata=metadata)
    return out.getvalue()


def inline_svg(figure: Figure) -> str:
    """The drawing as an element to stand within a page among others: no prolog, ids of its own."""
    text = draw(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{figure.name}-", text)
    label = f'<svg role="img" aria-label="{escape(figure.alt, quote=True)}" '
    return text.replace("<svg ", label, 1)


def _size(figure: Figure, across: int, down: int) -> tuple[float, float]:
    if figure.kind == "grid":
        return 4.2 * across + 0.8, 2.9 * down
    series = len(_looks(figure))
    return (7.2 if across == 1 else 10.0), 3.1 * down + 0.22 * -(-series // 2)


def _looks(figure: Figure) -> dict[str, int]:
    """A place in the palette for each label, the same in every panel; the first is SMP's."""
    names = dict.fromkeys(series.label for panel in figure.panels for series in panel.series)
    kinds = {name[:3] for name in names}
    first = 1 if "AMP" in kinds and "SMP" not in kinds else 0
    return {name: at for at, name in enumerate(names, first)}


def _draw_lines(axis: Any, figure: Figure, panel: Panel, looks: Mapping[str, int]) -> None:
    from matplotlib.transforms import ScaledTranslation

    for at, series in enumerate(panel.series):
        if series.cited:
            axis.plot(series.x, series.y, "D", mfc="white", color="#555555", label=series.label)
            continue
        look = looks[series.label]
        # Aside by a point or two, so that whiskers at the same x do not hide each other.
        aside = (at - (len(panel.series) - 1) / 2) * DODGE_POINTS / 72
        shift = ScaledTranslation(aside, 0, axis.figure.dpi_scale_trans)
        axis.errorbar(
            series.x,
            series.y,
            yerr=_errors(series),
            marker=MARKS[look % len(MARKS)],
            markersize=4.5,
            linewidth=1.3,
            linestyle=LINES[look % len(LINES)],
            capsize=3,
            elinewidth=1,
            label=series.label,
            color=_colour(look),
            transform=axis.transData + shift,
        )
    _x_scale(axis, figure, panel)
    axis.set_xlabel(figure.x_label)
    drawn = [series for each in figure.panels for series in each.series]
    axis.set_ylim(0, 1.06 * max(high for series in drawn for high in series.high or series.y))
    if figure.reference is not None:
        axis.axhline(figure.reference, color="#555555", linewidth=0.8, linestyle="--")


def _x_scale(axis: Any, figure: Figure, panel: Panel) -> None:
    places = sorted({float(x) for series in panel.series for x in series.x})
    first, last = places[0], places[-1]
    if first > 0 and last / first >= LOG_SPAN:
        axis.set_xscale("log", base=2)
        room = (last / first) ** 0.04
        axis.set_xlim(first / room, last * room)
    else:
        room = 0.04 * (last - first or 1)
        axis.set_xlim(first - room, last + room)
    _x_ticks(axis, figure, places)


def _x_ticks(axis: Any, figure: Figure, places: Sequence[float]) -> None:
    kept = places if len(places) <= 10 else places[:: -(-len(places) // 10)]
    axis.set_xticks(kept)
    bytes_wanted = figure.x_label.endswith("(bytes)")
    words = [labels.size(int(x)) if bytes_wanted else f"{x:,.6g}" for x in kept]
    axis.set_xticklabels(words, rotation=30 if bytes_wanted and len(kept) > 6 else 0)
    axis.minorticks_off()


def _draw_bars(axis: Any, figure: Figure, panel: Panel, looks: Mapping[str, int]) -> None:
    there = dict.fromkeys(x for series in panel.series for x in series.x)
    rank = {name: at for at, name in enumerate(figure.order)}
    groups = sorted(there, key=lambda name: rank.get(str(name), len(rank)))
    width = 0.8 / len(panel.series)
    for at, series in enumerate(panel.series):
        shift = (at - (len(panel.series) - 1) / 2) * width
        places = [groups.index(x) + shift for x in series.x]
        if series.cited:
            axis.plot(
                places, series.y, "D", mfc="white", color="black", label=series.label, zorder=4
            )
            continue
        axis.bar(
            places,
            series.y,
            width * 0.92,
            yerr=_errors(series),
            color=_colour(looks[series.label]),
            hatch=HATCHES[looks[series.label] % len(HATCHES)],
            edgecolor="white",
            linewidth=0.5,
            error_kw={"capsize": 3, "elinewidth": 1, "ecolor": "#222222"},
            label=series.label,
        )
    slanted = len(groups) > 4 and max(len(str(group)) for group in groups) > 8
    axis.set_xticks(range(len(groups)))
    axis.set_xticklabels(
        [str(group) for group in groups],
        rotation=25 if slanted else 0,
        ha="right" if slanted else "center",
    )
    axis.tick_params(axis="x", length=0)
    axis.set_xlabel(figure.x_label)
    if figure.reference is not None or any(low < 0 for s in panel.series for low in s.low):
        axis.axhline(figure.reference or 0.0, color="#555555", linewidth=0.8)


def _draw_grid(axis: Any, figure: Figure, panel: Panel, _: Mapping[str, int]) -> None:
    """A field of cells, each with its median and its spread in figures; one scale of colours."""
    everything = [y for each in figure.panels for series in each.series for y in series.y]
    columns = list(dict.fromkeys(x for series in panel.series for x in series.x))
    cells = [[float("nan")] * len(columns) for _ in panel.series]
    words: dict[tuple[int, int], str] = {}
    for row, series in enumerate(panel.series):
        for x, y, low, high in zip(series.x, series.y, series.low, series.high, strict=True):
            column = columns.index(x)
            cells[row][column] = y
            words[row, column] = (
                f"{labels.number(y)}\n[{labels.number(low)}, {labels.number(high)}]"
            )
    across = [at - 0.5 for at in range(len(columns) + 1)]
    up = [at - 0.5 for at in range(len(panel.series) + 1)]
    shown = axis.pcolormesh(across, up, cells, cmap="cividis", edgecolors="white", linewidth=1)
    shown.set_clim(min(everything), max(everything))
    middle = (min(everything) + max(everything)) / 2
    for (row, column), text in words.items():
        bright = cells[row][column] > middle
        colour = "black" if bright else "white"
        axis.text(column, row, text, ha="center", va="center", fontsize=8.5, color=colour)
    axis.set_xticks(range(len(columns)), [str(column) for column in columns])
    axis.set_yticks(range(len(panel.series)), [series.label for series in panel.series])
    axis.grid(visible=False)
    axis.set_xlabel(figure.x_label)


def _legend(canvas: Any, axes: Sequence[Any], looks: Mapping[str, int]) -> None:
    """One legend below for all panels, in the order of the palette."""
    if list(looks) == [ALONE]:
        return
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    columns = 1 if max(map(len, looks)) > 45 else min(len(looks), 3)
    canvas.legend(
        [handles[n] for n in looks], list(looks), loc="outside lower center", ncols=columns
    )


def _errors(series: Series) -> tuple[list[float], list[float]]:
    below = [y - low for y, low in zip(series.y, series.low, strict=True)]
    above = [high - y for y, high in zip(series.y, series.high, strict=True)]
    return below, above


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]


_DRAW: Final = {"lines": _draw_lines, "bars": _draw_bars, "grid": _draw_grid}
