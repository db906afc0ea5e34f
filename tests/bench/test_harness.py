"""Pairs, ratios and result files, on figures made up so that the answers are known."""

import json

import pytest

from bench.harness import (
    Latency,
    Measurement,
    Result,
    best_layout,
    interleave,
    quartiles,
    ratio_of,
)
from bench.reference_build import ReferenceMissing


def measured(value, name="ours", unit="ns"):
    return Measurement(name, value, unit, "cores 0 and 1, spinning")


class Script:
    """A side that returns prepared values in turn and writes down when it ran."""

    def __init__(self, name, values, log):
        self.name, self.values, self.log = name, iter(values), log

    def __call__(self):
        self.log.append(self.name)
        return measured(next(self.values), self.name)


def missing():
    raise ReferenceMissing("no compiler")


def test_both_sides_run_in_turn_and_every_run_is_kept():
    log = []
    ours, reference = Script("A", [1, 2], log), Script("B", [4, 5, 6], log)
    runs, _ = interleave("r", ours, reference, repeats=2)
    assert log == ["B", "A", "B", "A", "B"]
    assert [run.value for run in runs] == [4, 1, 5, 2, 6]


def test_only_neighbours_are_divided():
    ratio = ratio_of("r", [measured(10), measured(100)], [measured(5), measured(50)])
    assert ratio.pairs == (10 / 5, 10 / 50, 100 / 50)
    assert ratio.value == 2


def test_a_steady_drift_does_not_move_the_ratio():
    slower = [1 + 0.02 * n for n in range(21)]
    ours = [measured(3 * slower[n]) for n in range(1, 21, 2)]
    reference = [measured(2 * slower[n]) for n in range(0, 21, 2)]
    assert ratio_of("r", ours, reference).value == pytest.approx(1.5, rel=0.002)


def test_without_a_reference_there_is_no_ratio_but_a_reason():
    for reference, reason in ((None, "there is no reference"), (missing, "no compiler")):
        log = []
        runs, ratio = interleave("r", Script("A", [1], log), reference)
        assert (ratio.value, ratio.reason, ratio.pairs) == (None, reason, ())
        assert log == ["A"]
        assert [run.value for run in runs] == [1]


def test_a_reference_that_vanishes_midway_leaves_no_ratio():
    answers = iter([measured(4, "B")])

    def reference():
        try:
            return next(answers)
        except StopIteration:
            raise ReferenceMissing("it was removed") from None

    runs, ratio = interleave("r", Script("A", [1, 2], []), reference, repeats=2)
    assert ratio.value is None
    assert ratio.reason == "it was removed"
    assert [run.value for run in runs] == [4, 1]


def test_a_failure_of_our_own_side_is_raised():
    def broken():
        raise RuntimeError("engine died")

    with pytest.raises(RuntimeError, match="engine died"):
        interleave("r", broken, lambda: measured(1))


def test_different_units_make_no_ratio():
    with pytest.raises(ValueError, match="is no ratio"):
        ratio_of("r", [measured(1)], [measured(1, unit="ops/s")])


def test_a_reference_of_zero_makes_no_ratio():
    assert ratio_of("r", [measured(1)], [measured(0)]).value is None


def test_the_best_layout_is_the_one_that_counts():
    layouts = {"split": lambda: measured(5), "same core": lambda: measured(3), "gone": missing}
    assert best_layout(layouts, lower_is_better=True)[0] == "same core"
    assert best_layout(layouts, lower_is_better=False)[0] == "split"
    with pytest.raises(ReferenceMissing, match="gone: no compiler"):
        best_layout({"gone": missing}, lower_is_better=True)


def test_quartiles_of_one_value_are_that_value():
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


def test_a_percentile_is_refused_when_too_few_samples_lie_beyond():
    latency = Latency.from_bins([(0, 10, 500), (10, 20, 499), (20, 30, 0), (30, 40, 1)])
    assert latency.count == 1000
    assert 9 < latency.percentile(50) <= 10
    assert 19 < latency.percentile(99) <= 20
    assert latency.percentile(99.9) is None
    assert latency.max == 40


def test_the_median_is_answered_however_few_samples_there_are():
    assert Latency.from_bins([(8, 9, 1)]).percentile(50) == 9


def test_a_distribution_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        Latency.from_bins([(0, 1, 0)])


def test_a_result_file_holds_flat_ratios_and_what_explains_them(tmp_path):
    result = Result("queue", config={"size": 64}, cores=(0,), argv=["ppe", "bench", "queue"])
    result.pair("fast_over_slow", lambda: measured(1), lambda: measured(2, "ref"), repeats=2)
    result.pair("ours_over_nothing", lambda: measured(1), missing)
    saved = json.loads(result.save(tmp_path).read_text())
    assert saved["ratios"] == {"fast_over_slow": 0.5, "ours_over_nothing": None}
    assert saved["ratio_details"]["fast_over_slow"]["pairs"] == [0.5] * 4
    assert saved["ratio_details"]["ours_over_nothing"]["reason"] == "no compiler"
    assert "ours_over_nothing not measured: no compiler" in saved["warnings"]
    assert len(saved["runs"]) == 6
    expected = {"schema", "tool", "git", "started", "argv", "config", "machine", "clock"}
    assert expected <= saved.keys()
    assert saved["argv"] == ["ppe", "bench", "queue"]


def test_a_second_result_of_the_same_second_overwrites_nothing(tmp_path):
    result = Result("queue")
    assert result.save(tmp_path) != result.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
