"""Two result sets, point by point, through the command and through the API."""

import json
from functools import partial

import pytest

from bench.lab import comparison, load
from bench.lab.compare_command import CompareCommand
from ppe.errors import OperatorError, UsageError
from tests.bench import running
from tests.bench.lab import builder

SWEEP = {"placement": ["inline", "stream"], "depth": [1, 32]}


run = partial(running.run, CompareCommand())


@pytest.fixture
def before(tmp_path):
    return builder.write(tmp_path / "before", SWEEP)


def after(tmp_path, **more):
    sweep = more.pop("sweep", SWEEP)
    return builder.write(tmp_path / "after", sweep, machine=builder.Machine(seed=2, **more))


def test_the_same_machine_twice_is_the_same(tmp_path, before):
    found = comparison.compare(load(before), load(after(tmp_path)))
    assert len(found.rows) == 4 * 6
    assert found.verdicts["same"] >= 22  # at 95 % a few may differ by chance, and it is said
    assert found.by_chance == 1
    assert found.differences == []


def test_what_got_better_or_worse_is_found_by_point_and_metric(tmp_path, before):
    faster = after(tmp_path, iops=lambda p: 80_000 if p["depth"] == 32 else 20_000)
    rows = comparison.compare(load(before), load(faster), ["iops", "p50"]).rows
    found = {(row.point.split()[-1], row.metric.name): row.verdict for row in rows}
    assert found == {
        ("1", "iops"): "worse",
        ("1", "p50"): "worse",
        ("32", "iops"): "better",
        ("32", "p50"): "better",
    }
    deep = next(row for row in rows if row.point.endswith("32"))
    assert deep.ratio.low <= 2 <= deep.ratio.high


def test_what_only_one_set_has_is_listed_and_not_compared(tmp_path, before):
    other = after(tmp_path, sweep={"placement": ["stream", "datamover"], "depth": [1, 32]})
    found = comparison.compare(load(before), load(other))
    assert [name.split(",")[0] for name in found.only_before] == ["SMP (inline)"] * 2
    assert [name.split(",")[0] for name in found.only_after] == ["AMP (datamover)"] * 2
    assert len(found.rows) == 2 * 6


def test_a_field_that_a_newer_set_has_does_not_keep_points_apart(tmp_path, before):
    newer = builder.write(tmp_path / "newer", SWEEP, colour="green")
    assert len(comparison.compare(load(before), load(newer)).rows) == 24


def test_points_that_only_a_new_field_tells_apart_are_not_mixed(tmp_path, before):
    newer = builder.write(tmp_path / "newer", SWEEP | {"colour": ["green", "blue"]})
    found = comparison.compare(load(before), load(newer))
    assert found.rows == []
    assert (len(found.only_before), len(found.only_after)) == (4, 8)


def test_other_machines_and_versions_are_named(tmp_path, before):
    other = after(tmp_path)
    builder.edit(other, "0000", lambda raw: raw["machine"].update(cpu_model="Another CPU"))
    builder.edit(other, "0000", lambda raw: raw["versions"].update(ppe="0.2.0"))
    found = comparison.compare(load(before), load(other)).differences
    assert found == [
        "cpu_model: Example CPU before, Another CPU after",
        "version of ppe: 0.1.0 before, 0.2.0 after",
    ]


def test_the_command_prints_the_table_and_the_word(tmp_path, before, capsys):
    assert run(before, after(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "same" in out
    assert "operations a second (k/s)" in out
    assert "exact intervals from ranks" in out
    assert "chance alone would give about" in out


def test_the_command_prints_one_json_object(tmp_path, before, capsys):
    assert run(before, after(tmp_path), "--json", "--metrics", "iops") == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["metric"] for row in found["rows"]} == {"iops"}
    row = found["rows"][0]
    assert row["before"]["low"] <= row["before"]["median"] <= row["before"]["high"]
    assert row["ratio"]["confidence"] >= 0.95
    assert row["verdict"] in ("same", "better", "worse")


def test_one_repeat_is_given_no_verdict(tmp_path, capsys):
    for name in ("a", "b"):
        builder.write(tmp_path / name, SWEEP, repeats=1)
    assert run(tmp_path / "a", tmp_path / "b", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["verdict"] for row in rows} == {"too few repeats"}


def test_an_unknown_metric_and_a_folder_without_runs_are_refused(tmp_path, before):
    with pytest.raises(UsageError, match="there is no 'speed'"):
        run(before, before, "--metrics", "speed")
    with pytest.raises(OperatorError, match="not a result set"):
        run(before, tmp_path)
