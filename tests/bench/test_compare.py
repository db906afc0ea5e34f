"""Two result files side by side, and the word "same"."""

import io
import json

import pytest
from rich.console import Console

from bench import compare
from bench.harness import Measurement, Result


def result(values, unit="ns", name="ring round trip", reference=1.0):
    made = Result("queue", argv=["ppe"])
    queue = iter(values)
    made.pair(
        "over_floor",
        lambda: Measurement(name, next(queue), unit, "cores 0 and 1"),
        lambda: Measurement("floor", reference, unit, "cores 0 and 1"),
        repeats=len(values),
    )
    return made.to_json()


def verdicts(before, after):
    return {row.name: row.verdict for row in compare.compare(before, after)}


def test_overlapping_intervals_are_the_same():
    found = verdicts(result([100, 104, 98, 110, 101]), result([102, 99, 105, 108, 97]))
    assert found == {"floor": "same", "ring round trip": "same", "over_floor": "same"}


def test_which_way_is_better_depends_on_the_unit():
    slow, fast = [100, 101, 102, 103], [50, 51, 52, 53]
    assert verdicts(result(slow), result(fast))["ring round trip"] == "better"
    assert verdicts(result(fast), result(slow))["ring round trip"] == "worse"
    assert verdicts(result(slow, "ops/s"), result(fast, "ops/s"))["ring round trip"] == "worse"
    assert verdicts(result(slow), result(fast))["over_floor"] == "changed"


def test_too_few_repeats_carry_no_verdict():
    assert verdicts(result([100, 100]), result([1, 1]))["ring round trip"] == "too few repeats"


def test_what_only_one_file_measured_is_said_to_be_so():
    found = verdicts(result([1, 1, 1], name="old"), result([1, 1, 1], name="new"))
    assert found["old"] == "only before"
    assert found["new"] == "only after"


def test_the_interval_is_the_same_each_time_and_holds_the_median():
    first = compare.interval([3.0, 1.0, 2.0, 9.0, 4.0])
    assert first == compare.interval([3.0, 1.0, 2.0, 9.0, 4.0])
    assert first.low <= first.median == 3.0 <= first.high


def test_the_table_warns_of_another_machine():
    before, after = result([1, 2, 3]), result([1, 2, 3])
    after["machine"] = after["machine"] | {"cpu_model": "another"}
    out = io.StringIO()
    compare.show(before, after, Console(file=out, width=160))
    assert "same" in out.getvalue()
    assert "not the same machine: cpu_model" in out.getvalue()


def test_a_narrow_terminal_cuts_no_figure_off():
    before, after = result([345678.9] * 3), result([987654.3] * 3)
    out = io.StringIO()
    compare.show(before, after, Console(file=out, width=80))
    assert "…" not in out.getvalue()


def test_a_row_as_json_has_both_sides_and_the_verdict():
    row = compare.compare(result([2, 2, 2]), result([4, 4, 4]))[1].to_json()
    assert row["before"] == [2, 2, 2]
    assert row["after"] == [4, 4, 4]
    assert (row["change"], row["verdict"]) == (2, "worse")


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "not JSON"), ("[]", "schema is None"), ('{"schema": "other/9"}', "other/9")],
)
def test_what_is_no_result_file_is_refused_with_its_name(tmp_path, text, why):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(compare.NotAResult, match=why) as caught:
        compare.load(path)
    assert str(path) in str(caught.value)


def test_a_saved_result_loads_again(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(result([1, 2, 3])))
    assert compare.load(path)["benchmark"] == "queue"
    with pytest.raises(compare.NotAResult, match="No such file"):
        compare.load(tmp_path / "absent.json")
