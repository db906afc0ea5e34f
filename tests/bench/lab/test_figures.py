"""Which runs make which line, that nothing is averaged that differs, and what drawings hold."""

import re
import xml.etree.ElementTree as ET

import pytest

from bench.lab import answers, load
from bench.lab.report import built_in, drawing, figures, layers, partition
from bench.lab.report.document import Figure, Panel, Raw, Series
from bench.lab.report.figures import NoFigure, Wanted
from tests.bench.lab import builder

LINE = "A machine."
RAW = Raw(("run",), (("0000",),))
needs_matplotlib = pytest.mark.interop("matplotlib")


def figure(*series, kind="lines", **more):
    given = {"x_label": "x", "y_label": "y (µs)", "caption": "c", "alt": "a", "raw": RAW} | more
    return Figure("name", kind, panels=(Panel("", series),), **given)


def one(label="one", x=(1.0, 2.0), y=(3.0, 4.0), low=(2.0, 3.0), high=(4.0, 5.0), **more):
    return Series(label, x, y, low, high, **more)


def test_a_series_without_its_spread_is_not_drawn():
    with pytest.raises(ValueError, match="without its spread"):
        Series("bare", (1.0,), (2.0,))
    with pytest.raises(ValueError, match="outside its spread"):
        Series("odd", (1.0,), (2.0,), (2.5,), (3.0,))
    assert Series("printed", (1.0,), (2.0,), cited=True).cited


@pytest.mark.parametrize("missing", ["caption", "alt", "x_label", "y_label"])
def test_a_figure_cannot_be_made_without_what_explains_it(missing):
    with pytest.raises(ValueError, match=f"without its {missing}"):
        figure(one(), **{missing: " "})


def test_a_figure_of_no_data_cannot_be_made():
    with pytest.raises(ValueError, match="no data"):
        figure(one(), raw=Raw(("run",), ()))
    with pytest.raises(ValueError, match="no data"):
        figure()


def union(tmp_path):
    """A sweep of depth at 4 KiB, and one of size at depth 32, in one result set."""
    points = [{"transport": t, "depth": d, "block_bytes": 4096} for t in "ab" for d in (1, 8, 32)]
    points += [{"transport": t, "depth": 32, "block_bytes": b} for t in "ab" for b in (512, 65536)]
    return load(builder.write_points(tmp_path / "set", points, experiment="libiscsi-iser"))


def test_a_union_of_sweeps_comes_apart_by_what_varies_alone(tmp_path):
    found = union(tmp_path)
    (by_depth,) = figures.build(found, Wanted("iops", "depth", ("transport",)), LINE)
    (by_size,) = figures.build(found, Wanted("iops", "block_bytes", ("transport",)), LINE)
    assert [s.x for s in by_depth.panels[0].series] == [(1, 8, 32)] * 2
    assert [s.x for s in by_size.panels[0].series] == [(512, 4096, 65536)] * 2
    assert {row[0] for row in by_depth.raw.rows} < {run.id for run in found.runs}


def test_runs_that_differ_are_never_averaged(tmp_path):
    sweep = {"depth": [1, 2], "transport": ["tcp", "iser"], "digests": ["none", "both"]}
    found = load(builder.write(tmp_path / "set", sweep, repeats=4))
    (made,) = figures.build(found, Wanted("iops", "depth", ("transport",)), LINE)
    assert len(made.panels[0].series) == 4
    assert {s.label for s in made.panels[0].series} == {
        f"{t}, digests {d}" for t in ("tcp", "iser") for d in ("none", "both")
    }
    assert all(spot.interval.repeats == 4 for spot in figures.spots(found, _iops()))


def _iops():
    return figures.METRICS["iops"]


def test_many_lines_are_spread_over_panels(tmp_path):
    sweep = {"depth": [1, 2], "engines": [1, 2, 3], "hosts": [1, 2, 3]}
    found = load(builder.write(tmp_path / "set", sweep, repeats=2, placement="stream"))
    (made,) = figures.build(found, Wanted("iops", "depth", ("engines", "hosts")), LINE)
    assert [panel.title for panel in made.panels] == ["hosts 1", "hosts 2", "hosts 3"]
    assert [s.label for s in made.panels[0].series] == ["engines 1", "engines 2", "engines 3"]


def test_what_cannot_be_made_says_why(tmp_path):
    found = load(builder.write(tmp_path / "set", {"depth": [1, 2]}, repeats=1))
    with pytest.raises(NoFigure, match="so there is no spread"):
        figures.build(found, Wanted("iops", "depth"), LINE)
    again = load(builder.write(tmp_path / "again", {"digests": ["none", "both"]}, repeats=3))
    with pytest.raises(NoFigure, match="no two runs differ in depth alone"):
        figures.build(again, Wanted("iops", "depth"), LINE)
    with pytest.raises(NoFigure, match="core cycles per operation: no point has measured it"):
        figures.build(again, Wanted("cycles", "digests", kind="bars"), LINE)


@pytest.mark.parametrize(
    ("spec", "x", "lines"),
    [
        ("", "block_bytes", "depth"),
        ('[sweep]\ndigests = ["none", "both"]\ndepth = [1, 2]\n', "depth", "digests"),
        ("[[sweep]]\ndepth = [1, 2]\n[[sweep]]\nblock_bytes = [1]\n", "depth", "block_bytes"),
    ],
)
def test_x_of_an_unknown_experiment_is_what_its_file_sweeps_first(tmp_path, spec, x, lines):
    sweep = {"digests": ["none", "both"], "depth": [1, 2], "block_bytes": [512, 4096, 65536]}
    place = tmp_path / "set"
    found = load(builder.write(place, sweep, experiment="mine", repeats=2, spec=spec))
    assert {(w.x, w.lines) for w in built_in.wanted(found)} == {(x, (lines,))}


@pytest.mark.parametrize("name", built_in.FIGURES)
def test_every_built_in_experiment_has_a_question_and_figures(name, tmp_path):
    assert built_in.QUESTIONS[name].endswith("?")
    assert all(w.metric in figures.METRICS for w in built_in.FIGURES[name])
    sweep = {"placement": ["inline", "stream"]}
    found = load(builder.write(tmp_path / "set", sweep, experiment=name, repeats=2))
    assert built_in.wanted(found), "even when the fields it knows were not swept"


def test_improvement_by_layer_is_found_and_stands_beside_table_2(tmp_path):
    smp = {"tcp": 60_000, "copies": 30_000, "idle": 10_000}
    amp = {"tcp": 40_000, "copies": 30_000, "queues": 5_000, "idle": 50_000}
    machine = builder.Machine(
        noise=0.001, layers=lambda p: smp if p["placement"] == "inline" else amp
    )
    sweep = {"placement": ["inline", "stream"], "block_bytes": [8192, 65536]}
    found = load(builder.write(tmp_path / "set", sweep, machine=machine))
    duels = answers.duels(found)
    total = layers.improvements(duels[0])["total"]
    assert total.low <= 15 <= total.high  # (20 - 5) of 100
    (made,) = layers.improvement(found, duels, LINE)
    cited = [[s.label for s in panel.series if s.cited] for panel in made.panels]
    assert cited == [[], ["Foong et al., Table 2"]]
    printed = next(s for s in made.panels[1].series if s.cited)
    assert dict(zip(printed.x, printed.y, strict=True))["total"] == 39.3


def test_many_panels_become_several_figures_and_none_is_left_away(tmp_path):
    sweep = {
        "placement": ["inline", "stream", "datamover"],
        "wait_mode": ["sleep", "spin"],
        "block_bytes": [512, 4096, 65536],
    }
    found = load(builder.write(tmp_path / "set", sweep, repeats=2))
    duels = answers.duels(found)
    made = layers.profile(found, duels, LINE)
    titles = [panel.title for part in made for panel in part.panels]
    assert [len(part.panels) for part in made] == [4, 2]
    assert len(set(titles)) == 6
    assert "4 KiB, host waits by spin" in titles
    assert {len(panel.series) for part in made for panel in part.panels} == {3}
    assert len({part.name for part in made}) == 2
    assert made[1].caption.startswith("(Part 2 of 2)")


def test_the_grid_has_a_cell_for_each_split_and_the_best_is_named_only_when_it_leads(tmp_path):
    machine = builder.Machine(
        noise=0.01, iops=lambda p: 1e4 * min(2 * p["engines"], 2 * p["hosts"], 3)
    )
    sweep = {"engines": [1, 2], "hosts": [1, 2, 3], "placement": ["stream"]}
    found = load(
        builder.write(tmp_path / "set", sweep, experiment="partition", machine=machine, repeats=6)
    )
    (grid,) = partition.grid(found, "iops", LINE)
    assert [s.label for s in grid.panels[0].series] == ["1 engine", "2 engines"]
    assert grid.panels[0].series[1].y[1] == pytest.approx(30, rel=0.03)
    table = partition.best_splits(found)
    assert table.rows[0][-1].startswith("not parted")  # (2, 2) and (2, 3) are equal


def test_smp_is_the_row_without_an_engine(tmp_path):
    sweep = {"placement": ["inline", "stream"], "engines": [1, 2], "hosts": [1, 2]}
    found = load(builder.write(tmp_path / "set", sweep, experiment="partition", repeats=2))
    (grid,) = partition.grid(found, "iops", LINE)
    assert [s.label for s in grid.panels[0].series] == ["no engine (SMP)", "1 engine", "2 engines"]


def test_lines_that_cross_beyond_their_spread_are_told(tmp_path):
    def rate(point):
        share = point["write_percent"] / 100
        return 4e4 * (1 - 0.6 * share if point["engines"] == 1 else 0.4 + 0.6 * share)

    fixed = {"placement": "stream", "operation": "mix"}
    sweep = {"engines": [1, 2], "write_percent": [0, 25, 75, 100]}
    machine = builder.Machine(noise=0.01, iops=rate)
    fixed |= {"experiment": "partition", "machine": machine}
    found = load(builder.write(tmp_path / "set", sweep, **fixed))
    (made,) = figures.build(found, Wanted("iops", "write_percent", ("engines",)), LINE)
    assert partition.crossovers(made) == [
        "engines 1 and engines 2 change places between 25 and 75 (share of writes (%))."
    ]


@needs_matplotlib
@pytest.mark.parametrize("kind", ["lines", "bars", "grid"])
def test_a_drawing_holds_labels_with_units_and_the_same_bytes_each_time(kind):
    x = (1.0, 2.0) if kind == "lines" else ("a", "b")
    made = figure(one("first", x), one("second", x), kind=kind)
    text = drawing.draw(made, "svg").decode()
    assert text == drawing.draw(made, "svg").decode()
    shown = set(ET.fromstring(drawing.inline_svg(made)).itertext())
    assert {"x", "y (µs)"} <= {part.strip() for part in shown}
    assert "first" in text
    assert "<metadata>" not in text
    assert not re.search(r'(href|src)="(?!#)', text)


@needs_matplotlib
def test_every_series_has_a_colour_and_a_mark_of_its_own():
    made = figure(*(one(f"line {i}") for i in range(figures.LINES_MAX)))
    text = drawing.draw(made, "svg").decode()
    for colour in drawing.COLOURS[: figures.LINES_MAX]:
        assert colour.lower() in text.lower()
    assert len(set(drawing.MARKS[: figures.LINES_MAX])) == figures.LINES_MAX


@needs_matplotlib
def test_png_is_png():
    assert drawing.draw(figure(one()), "png").startswith(b"\x89PNG")


def contrast(one_colour, other):
    """WCAG's contrast of two colours as #rrggbb."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one_colour), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_colours_stand_out_from_the_page():
    assert all(contrast(colour, "#ffffff") > 2 for colour in drawing.COLOURS)
