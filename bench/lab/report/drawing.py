"""The only module that knows matplotlib: a Figure becomes SVG or PNG.

The one rule: what is drawn is what the Figure holds; colours are told apart by colour-blind readers
too, and each series has a mark of its own besides.
"""

import io
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

from bench.lab import labels
from bench.lab.report.document import Figure, Panel, Series

# Okabe and Ito's palette, dark enough on white; yellow is left out.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
MARKS: Final = ("o", "s", "^", "D", "v", "P", "X")
HATCHES: Final = ("", "///", "...", "xx", "\\\\\\", "++", "oo")
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
        size = _size(figure, across, down)
        canvas = Canvas(figsize=size, layout="constrained")
        FigureCanvasAgg(canvas)
        axes = list(canvas.subplots(down, across, squeeze=False).ravel())
        for axis, panel in zip(axes, figure.panels, strict=False):
            _DRAW[figure.kind](axis, figure, panel)
            axis.set_title(panel.title, fontsize=9.5, loc="left")
        for axis in axes[len(figure.panels) :]:
            axis.set_axis_off()
        _legend(canvas, axes, figure)
        out = io.BytesIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else None
        canvas.savefig(out, format=kind, dpi=150, metadata=metadata)
    return out.getvalue()


def inline_svg(figure: Figure) -> str:
    """The drawing as an element to stand within a page: no prolog, a label for who cannot see."""
    text = draw(figure, "svg").decode()
    return re.sub(r"\A.*?(?=<svg)", "", text, flags=re.DOTALL).replace(
        "<svg ", '<svg role="img" ', 1
    )


def _size(figure: Figure, across: int, down: int) -> tuple[float, float]:
    width = 7.2 if across == 1 else 10.0
    if figure.kind == "grid":
        return (4.6 * across, 3.2 * down)
    series = max(len(panel.series) for panel in figure.panels)
    return width, 3.1 * down + 0.22 * -(-series // 2)


def _draw_lines(axis: Any, figure: Figure, panel: Panel) -> None:
    for at, series in enumerate(panel.series):
        look = _look(at)
        if series.cited:
            axis.plot(series.x, series.y, "D", mfc="white", color="#555555", label=series.label)
            continue
        axis.errorbar(
            series.x,
            series.y,
            yerr=_errors(series),
            marker=MARKS[at % len(MARKS)],
            markersize=4.5,
            linewidth=1.3,
            capsize=3,
            elinewidth=1,
            label=series.label,
            color=look,
        )
    places = sorted({float(x) for series in panel.series for x in series.x})
    if places[0] > 0 and places[-1] / places[0] >= LOG_SPAN:
        axis.set_xscale("log", base=2)
    _x_ticks(axis, figure, places)
    axis.set_xlabel(figure.x_label)
    axis.set_ylabel(figure.y_label)
    axis.set_ylim(bottom=0)
    if figure.reference is not None:
        axis.axhline(figure.reference, color="#555555", linewidth=0.8, linestyle="--")


def _x_ticks(axis: Any, figure: Figure, places: Sequence[float]) -> None:
    kept = places if len(places) <= 10 else places[:: -(-len(places) // 10)]
    axis.set_xticks(kept)
    bytes_wanted = figure.x_label.endswith("(bytes)")
    words = [labels.size(int(x)) if bytes_wanted else f"{x:,.6g}" for x in kept]
    axis.set_xticklabels(words, rotation=30 if bytes_wanted and len(kept) > 6 else 0)
    axis.minorticks_off()


def _draw_bars(axis: Any, figure: Figure, panel: Panel) -> None:
    groups = list(dict.fromkeys(x for series in panel.series for x in series.x))
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
            color=_look(at),
            hatch=HATCHES[at % len(HATCHES)],
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
    axis.set_ylabel(figure.y_label)
    if figure.reference is not None or any(low < 0 for s in panel.series for low in s.low):
        axis.axhline(figure.reference or 0.0, color="#555555", linewidth=0.8)


def _draw_grid(axis: Any, figure: Figure, panel: Panel) -> None:
    """A field of cells, each with its median and its spread in figures."""
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
    shown = axis.imshow(cells, cmap="cividis", aspect="auto", origin="lower")
    middle = sum(shown.get_clim()) / 2
    for (row, column), text in words.items():
        bright = cells[row][column] > middle
        colour = "black" if bright else "white"
        axis.text(column, row, text, ha="center", va="center", fontsize=8.5, color=colour)
    axis.set_xticks(range(len(columns)), [str(column) for column in columns])
    axis.set_yticks(range(len(panel.series)), [series.label for series in panel.series])
    axis.grid(visible=False)
    axis.set_xlabel(figure.x_label)
    axis.figure.colorbar(shown, ax=axis, label=figure.y_label)


def _legend(canvas: Any, axes: Sequence[Any], figure: Figure) -> None:
    """One legend below for all panels that share their series, else one in each."""
    if figure.kind == "grid":
        return
    sets = {tuple(series.label for series in panel.series) for panel in figure.panels}
    if len(sets) == 1:
        names = next(iter(sets))
        if len(names) > 1 or names[0] != "all runs":
            handles, words = axes[0].get_legend_handles_labels()
            columns = 1 if max(map(len, words)) > 45 else min(len(words), 3)
            canvas.legend(handles, words, loc="outside lower center", ncols=columns)
        return
    for axis in axes[: len(figure.panels)]:
        axis.legend(fontsize=8)


def _errors(series: Series) -> tuple[list[float], list[float]]:
    below = [y - low for y, low in zip(series.y, series.low, strict=True)]
    above = [high - y for y, high in zip(series.y, series.high, strict=True)]
    return below, above


def _look(at: int) -> str:
    return COLOURS[at % len(COLOURS)]


_DRAW: Final = {"lines": _draw_lines, "bars": _draw_bars, "grid": _draw_grid}
