"""Intervals that hold what they say, verdicts by their stated rule: checked by simulation."""

import math
import random
import statistics

import pytest

from bench.harness import Latency
from bench.lab import statistics as lab

pytestmark = pytest.mark.slow
TRIALS = 4000
DRAWS = {
    "normal": lambda r: r.gauss(100, 5),
    "exponential": lambda r: r.expovariate(1) + 1,
    "lognormal": lambda r: r.lognormvariate(0, 1),
    "two hills": lambda r: r.gauss(10, 1) if r.random() < 0.35 else r.gauss(50, 1),
}
MEDIANS = {"normal": 100, "exponential": 1 + math.log(2), "lognormal": 1}


def within(share, expected, trials=TRIALS):
    """Four standard deviations of a share of that many trials."""
    return abs(share - expected) <= 4 * math.sqrt(max(expected * (1 - expected), 1e-4) / trials)


@pytest.mark.parametrize("name", MEDIANS)
@pytest.mark.parametrize("n", [3, 5, 8, 15])
def test_an_interval_of_a_median_covers_as_often_as_it_says(name, n):
    generator = random.Random(n)
    hits = 0
    for _ in range(TRIALS):
        found = lab.median_interval([DRAWS[name](generator) for _ in range(n)])
        hits += found.holds(MEDIANS[name])
    assert within(hits / TRIALS, found.confidence)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (3, 5), (5, 5), (8, 6)])
@pytest.mark.parametrize("name", DRAWS)
def test_an_interval_of_a_ratio_covers_as_often_as_it_says(name, m, n):
    generator = random.Random(m * n)
    factor = 1.3
    hits = 0
    for _ in range(TRIALS):
        before = [abs(DRAWS[name](generator)) for _ in range(m)]
        after = [factor * abs(DRAWS[name](generator)) for _ in range(n)]
        found = lab.ratio_of_sets(before, after)
        hits += found.holds(factor)
    assert within(hits / TRIALS, found.confidence)


def test_few_repeats_say_how_little_confidence_they_carry():
    assert lab.median_interval([1.0]).confidence == 0
    assert lab.median_interval([1.0, 2.0]).confidence == 0.5
    assert lab.median_interval([1.0, 2.0, 3.0]).confidence == 0.75
    five = lab.median_interval([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (five.low, five.median, five.high, five.confidence) == (1, 3, 5, 0.9375)


def test_many_repeats_leave_the_extremes_out():
    found = lab.median_interval([float(i) for i in range(20)])
    assert (found.low, found.high) == (5, 14)
    assert 0.95 <= found.confidence < 0.97


def test_three_and_three_repeats_carry_ninety_per_cent_by_ranks():
    found = lab.ratio_of_sets([1.0, 1.1, 1.2], [2.0, 2.2, 2.4])
    assert found.confidence == pytest.approx(0.9)
    assert found.low == pytest.approx(2.0 / 1.2)
    assert found.high == pytest.approx(2.4)


def test_rank_counts_are_those_of_all_orders():
    assert lab._rank_counts(2, 2) == (1, 1, 2, 1, 1)
    assert sum(lab._rank_counts(5, 7)) == math.comb(12, 5)
    assert lab._rank_counts(3, 6) == lab._rank_counts(6, 3)


def test_pairs_cancel_a_drift_that_drowns_the_sets():
    before = {repeat: 100.0 * 2**repeat for repeat in range(6)}
    after = {repeat: value * 1.1 for repeat, value in before.items()}
    paired = lab.ratio(before, after)
    assert paired.low == pytest.approx(1.1)
    assert lab.verdict(paired, less_is_better=True) == "worse"
    apart = lab.ratio_of_sets(list(before.values()), list(after.values()))
    assert lab.verdict(apart, less_is_better=True) == "unclear"


def test_only_repeats_that_both_sides_have_are_pairs():
    assert lab.ratio_of_pairs({0: 1.0, 1: 2.0}, {1: 4.0, 2: 9.0}).median == 2
    assert lab.ratio_of_pairs({0: 1.0}, {1: 4.0}) is None
    assert lab.ratio_of_pairs({0: 0.0}, {0: 4.0}) is None


@pytest.mark.parametrize(
    ("after", "less", "expected"),
    [
        ([80.0, 81, 82, 83, 84], True, "better"),
        ([80.0, 81, 82, 83, 84], False, "worse"),
        ([120.0, 121, 122, 123, 124], True, "worse"),
        ([98.0, 99, 100, 101, 102], True, "same"),
        ([100.4, 100.5, 100.6, 100.4, 100.5], True, "same"),  # certain, and of no use to anybody
        ([91.0, 95, 99, 104, 109], True, "same"),  # nothing beyond a tenth is left possible
        ([80.0, 90, 100, 115, 130], True, "unclear"),  # wide: neither a difference nor none
    ],
)
def test_the_verdict_follows_its_rule(after, less, expected):
    before = [100.0, 100.1, 99.9, 100.2, 99.8]
    found = lab.ratio_of_sets(before, after)
    assert lab.verdict(found, less_is_better=less) == expected


@pytest.mark.parametrize("sides", [([1.0], [9.0]), ([1.0, 1.0], [9.0, 9.0])])
def test_too_few_repeats_are_given_no_verdict(sides):
    assert lab.verdict(lab.ratio_of_sets(*sides), less_is_better=True) == "too few repeats"
    assert lab.verdict(None, less_is_better=True) == "too few repeats"


def test_equal_sides_are_called_different_as_seldom_as_the_confidence_says():
    generator = random.Random(4)
    wrong = 0
    for _ in range(TRIALS):
        sides = [
            {i: generator.lognormvariate(0, 0.2) for i in range(5)},
            {i: generator.lognormvariate(0, 0.2) for i in range(5)},
        ]
        found = lab.ratio(*sides)
        wrong += lab.verdict(found, less_is_better=True) in ("better", "worse")
    assert wrong / TRIALS <= 1 - found.confidence + 0.02


def test_a_real_difference_is_found():
    generator = random.Random(4)
    found = 0
    for _ in range(200):
        before = {i: generator.lognormvariate(0, 0.05) for i in range(5)}
        after = {i: 1.5 * generator.lognormvariate(0, 0.05) for i in range(5)}
        found += lab.verdict(lab.ratio(before, after), less_is_better=False) == "better"
    assert found == 200


def test_the_bootstrap_is_seeded_and_covers_with_many_values():
    generator = random.Random(2)
    values = [generator.expovariate(1) for _ in range(60)]
    mean = statistics.fmean
    assert lab.bootstrap_interval(values, mean) == lab.bootstrap_interval(values, mean)
    assert lab.bootstrap_interval(values, mean) != lab.bootstrap_interval(values, mean, seed=2)
    trials = 200
    hits = sum(
        lab.bootstrap_interval([generator.gauss(5, 1) for _ in range(30)], mean).holds(5)
        for _ in range(trials)
    )
    assert 0.85 < hits / trials <= 1


def test_merged_histograms_hold_every_sample():
    one = Latency.from_bins([(0, 10, 5), (10, 20, 5)])
    two = Latency.from_bins([(10, 20, 7), (40, 80, 3)])
    merged = lab.merge([one, two])
    assert merged.count == 20
    assert merged.bins == ((0, 10, 5), (10, 20, 12), (40, 80, 3))
    assert (merged.min, merged.max) == (0, 80)
    assert merged.mean == pytest.approx((one.mean + two.mean) / 2)
    assert 10 <= merged.percentile(50) <= 20


@pytest.mark.parametrize("function", [lab.median_interval, lab.bootstrap_interval, lab.merge])
def test_nothing_has_no_interval(function):
    with pytest.raises(ValueError, match="of no"):
        function([])
