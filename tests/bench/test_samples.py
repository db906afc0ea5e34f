"""Turning samples into measurements, on values whose answers are known."""

import numpy as np
import pytest

from bench import samples
from bench.plan import Goal
from bench.python_calls import Meter
from bench.workers import GONE, WRONG


def test_the_headline_is_the_median_of_the_samples():
    run = samples.from_ns("x", np.array([1.0, 100.0, 3.0]), "here")
    assert (run.value, run.unit) == (3.0, "ns")


def test_every_sample_is_in_one_bin_that_is_narrow():
    values = np.arange(1, 100_000, 7, dtype=np.float64)
    found = samples.latency(values)
    assert found.count == len(values) == sum(n for _, _, n in found.bins)
    for low, high, n in found.bins:
        assert ((values >= low) & (values < high)).sum() == n
        assert high - low <= max(1, 0.0625 * low)


def test_no_sample_is_a_failure_and_not_a_figure():
    with pytest.raises(samples.BenchmarkFailed):
        samples.from_ns("x", np.array([]), "here")


@pytest.mark.parametrize("outcome", [GONE, WRONG, -1])
def test_a_workers_error_is_raised(outcome):
    with pytest.raises(samples.BenchmarkFailed):
        samples.check(outcome)


@pytest.mark.parametrize(
    ("sign", "value", "verdict"),
    [
        ("≤", 1.0, "reached"),
        ("≤", 1.1, "missed"),
        ("≥", 1.0, "reached"),
        ("≥", 0.9, "missed"),
        ("≤", None, "not measured"),
    ],
)
def test_a_goal_says_how_a_figure_stands_to_it(sign, value, verdict):
    assert Goal("x", sign, 1.0, "").verdict(value) == verdict


def test_a_receiver_that_has_seen_nothing_yet_is_given_time():
    meter = Meter()
    meter.nothing(0)
    meter.nothing(0)
