"""A result set read back: strict about what it needs, patient with what it does not know."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from bench.lab import load
from bench.lab.results import NoResults, NotARun, bins, load_all, telling
from ppe.errors import OperatorError
from tests.bench.lab import builder

SWEEP = {"placement": ["inline", "stream"], "depth": [1, 32]}


@pytest.fixture
def place(tmp_path):
    return builder.write(tmp_path / "set", SWEEP, repeats=3)


def test_every_run_of_the_plan_is_there_in_its_order(place):
    found = load(place)
    assert found.experiment == "eta"
    assert [run.id for run in found.runs] == [f"{i:04}" for i in range(12)]
    assert found.missing() == []
    assert found.rejected == []


def test_repeats_of_one_point_are_together(place):
    points = load(place).points()
    assert len(points) == 4
    assert {tuple(run.repeat for run in runs) for runs in points.values()} == {(0, 1, 2)}


def test_points_are_in_one_order_whatever_the_order_of_the_runs(tmp_path):
    sweep = {"depth": [32, 1, 4], "placement": ["stream", "datamover", "inline"]}
    found = load(builder.write(tmp_path / "mixed", sweep, repeats=1)).points()
    order = [(dict(key)["placement"], dict(key)["depth"]) for key in found]
    ways = ["inline", "datamover", "stream"]
    assert order == [(way, depth) for way in ways for depth in (1, 4, 32)]


def test_the_fields_that_vary_are_found_with_their_values(place):
    swept = {"placement": ["inline", "stream"], "depth": [1, 32]}
    found = load(place)
    assert found.varying() == swept | {"engines": [0, 1]}
    assert telling(found.runs) == swept, "an inline run has no engine: that follows"


def test_a_field_that_follows_from_another_tells_nothing_apart(tmp_path):
    points = [{"operation": "mix", "write_percent": share} for share in (25, 75)]
    points += [{"operation": "read"}, {"operation": "write"}]
    found = load(builder.write_points(tmp_path / "mix", points, repeats=1))
    assert set(telling(found.runs)) == {"operation", "write_percent"}
    assert set(telling(found.runs, "write_percent")) == {"write_percent"}
    assert set(found.varying()) == {"operation", "write_percent"}


def test_a_file_of_another_schema_is_named_and_the_rest_is_read(place):
    builder.edit(place, "0003", lambda raw: raw.update(schema=2))
    found = load(place)
    assert len(found.runs) == 11
    assert [r.file for r in found.rejected] == ["runs/0003.json"]
    assert "schema is 2, this version reads 1" in found.rejected[0].reason
    assert found.missing() == ["0003"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: raw.pop("point"), "'point' is None"),
        (lambda raw: raw.update(repeat="1"), "'repeat' is '1'"),
        (lambda raw: raw.update(status="finished"), "not one of done, refused, failed"),
        (lambda raw: raw.update(measured=None), "nothing measured"),
        (
            lambda raw: raw["measured"]["latency_histogram"].update(counts=[1]),
            "edges_ns and counts are not as many",
        ),
        (
            lambda raw: raw["measured"]["latency_histogram"].update(counts=[-1, 2]),
            "a count is negative",
        ),
        (lambda raw: raw.update(order="first"), "'order' is 'first'"),
        (lambda raw: raw.update(repeat=True), "'repeat' is True"),
        (lambda raw: raw.update(status="refused", measured=[1]), "'measured' is [1]"),
        (lambda raw: raw.update(faults=5), "'faults' is 5"),
        (lambda raw: raw.update(measured_s="5"), "'measured_s' is '5'"),
        (lambda raw: raw["measured"].update(iops=10**400), "a number of 401 digits"),
        (
            lambda raw: raw["measured"].update(
                latency_histogram={"edges_ns": [1], "counts": [1], "significant_bits": -5000}
            ),
            "significant_bits is -5000",
        ),
        (
            lambda raw: raw["measured"].update(
                latency_histogram={"edges_ns": [[1, float("inf")]], "counts": [1]}
            ),
            "an edge is not a finite number",
        ),
        (lambda raw: raw.update(experiment="thesis"), "it belongs to 'thesis'"),
        (lambda raw: raw.update(id="0000"), "its id has been read already"),
    ],
)
def test_a_broken_run_is_named_with_its_reason(place, change, reason):
    builder.edit(place, "0005", change)
    found = load(place)
    assert len(found.runs) == 11
    assert reason in found.rejected[0].reason


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "[" * 200_000])
def test_what_is_no_json_object_is_left_out(place, text):
    (place / "runs" / "0001.json").write_text(text)
    assert [r.file for r in load(place).rejected] == ["runs/0001.json"]


def test_a_run_that_was_being_written_is_not_looked_at(place):
    (place / "runs" / "0099.json.tmp").write_text("{")
    assert load(place).rejected == []


def test_unknown_keys_change_nothing(place):
    before = load(place).table()
    builder.edit(place, "0000", lambda raw: raw.update(colour="green"))
    builder.edit(place, "0000", lambda raw: raw["measured"].update(entropy={"bits": 3}))
    found = load(place)
    assert found.rejected == []
    assert found.runs[0].raw["colour"] == "green"
    assert set(before) <= set(found.table())


def test_a_folder_without_runs_is_refused_with_what_to_do(tmp_path, place):
    with pytest.raises(NoResults, match="not a result set") as caught:
        load(tmp_path)
    assert "ppe experiment run" in caught.value.hint
    for path in (place / "runs").iterdir():
        path.write_text("no")
    with pytest.raises(NoResults, match=r"runs/0000\.json: not JSON"):
        load(place)


def test_a_missing_or_broken_specification_is_said_and_the_runs_are_read(place):
    (place / "experiment.toml").write_text("= broken")
    (place / "plan.json").unlink()
    found = load(place)
    assert len(found.runs) == 12
    assert {r.file for r in found.rejected} == {"experiment.toml", "plan.json"}


def test_a_folder_of_result_sets_gives_each_of_them(tmp_path, place):
    builder.write(tmp_path / "other", SWEEP, experiment="thesis", repeats=1)
    sets, left_out = load_all(tmp_path)
    assert [each.experiment for each in sets] == ["thesis", "eta"]
    assert left_out == []
    assert [each.experiment for each in load_all(place)[0]] == ["eta"]
    with pytest.raises(NoResults, match="holds no result set"):
        load_all(place / "runs")


def test_a_set_without_a_run_is_named_and_the_others_are_read(tmp_path, place):
    (tmp_path / "begun" / "runs").mkdir(parents=True)
    sets, left_out = load_all(tmp_path)
    assert [each.experiment for each in sets] == ["eta"]
    assert [each.file for each in left_out] == ["begun"]
    assert "no run that can be read" in left_out[0].reason


def test_a_run_that_was_refused_is_no_point_and_is_not_lost(place):
    builder.edit(
        place,
        "0000",
        lambda raw: raw.update(status="refused", measured=None, reason="rate beyond capacity"),
    )
    found = load(place)
    assert [run.raw["reason"] for run in found.undone] == ["rate beyond capacity"]
    assert sum(len(runs) for runs in found.points().values()) == 11


def test_the_table_has_a_row_for_each_run_and_typed_columns(place):
    table = load(place).table()
    assert {len(column) for column in table.values()} == {12}
    assert table["depth"].dtype == np.int64
    assert table["iops"].dtype == np.float64
    assert table["immediate_data"].dtype == bool
    assert table["placement"].tolist()[:4] == ["inline", "inline", "stream", "stream"]
    assert table["cores.engine"].tolist()[:4] == ["", "", "1", "1"]
    assert table["cores.host"].tolist() == ["0"] * 12
    assert "cpu.cores.0.busy_s" in table
    assert not any("histogram" in name for name in table)


def test_a_number_that_a_run_lacks_is_not_a_number_in_the_table(place):
    column = load(place).table()["cpu.engine_empty_share"]
    assert np.isnan(column[:2]).all()
    assert (column[2:4] == 0).all()


def test_a_value_that_is_no_number_is_none(place):
    run = load(place).runs[0]
    assert run.value("iops") > 0
    assert run.value("hardware.cycles") is None
    assert run.value("latency_ns.from") is None
    assert run.value("iops.deeper") is None


def test_a_histogram_keeps_its_count_and_answers_percentiles(place):
    run = load(place).runs[0]
    found = run.histogram()
    assert found.count == run.value("operations")
    assert found.bins[0][0] <= found.percentile(50) <= found.bins[0][1]
    assert found.max == run.value("latency_ns.max")


def test_the_edges_of_bins_are_pairs_or_low_edges():
    assert bins({"edges_ns": [[5, 6], [8, 10]], "counts": [1, 2]}) == [(5, 6, 1), (8, 10, 2)]
    log = bins({"edges_ns": [7, 128, 1024], "counts": [1, 2, 3], "significant_bits": 5})
    assert log == [(7, 8, 1), (128, 132, 2), (1024, 1056, 3)]
    with pytest.raises(NotARun, match="significant_bits"):
        bins({"edges_ns": [7], "counts": [1]})
    with pytest.raises(NotARun, match="not in order"):
        bins({"edges_ns": [8, 7], "counts": [1, 1], "significant_bits": 5})


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_without_the_library_the_error_says_what_to_do(place, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(OperatorError, match=f"{library} is not installed") as caught:
        getattr(load(place), library)()
    assert f"pip install {library}" in caught.value.hint


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_is_made_of_the_table_by_one_call(place, library, monkeypatch):
    class Frame:
        def __init__(self, columns, **options):
            self.columns = columns

    if importlib.util.find_spec(library) is None:
        stand_in = type(sys)(library)
        stand_in.DataFrame = Frame
        monkeypatch.setitem(sys.modules, library, stand_in)
    frame = getattr(load(place), library)()
    assert len(frame.columns) == len(load(place).table())


def test_the_numbers_survive_the_way_through_the_files(place):
    raw = json.loads((place / "runs" / "0004.json").read_text())
    assert load(place).runs[4].value("iops") == raw["measured"]["iops"]
