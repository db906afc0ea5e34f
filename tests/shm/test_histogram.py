"""Histograms against exact percentiles, and the buckets against their promises."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.histogram import BUCKETS, HISTOGRAM_SIZE, Histogram, lowest_of, middle_of
from tests.shm import doors

values = st.one_of(
    st.integers(0, 200), st.integers(0, 2**62 - 1), st.integers(0, 61).map(lambda bit: 1 << bit)
)


@given(bucket=st.integers(0, BUCKETS - 1))
def test_the_lowest_value_of_a_bucket_is_counted_there_and_the_one_below_is_not(bucket):
    lowest = lowest_of(bucket)
    assert doors.bucket_of(lowest) == bucket
    if bucket:
        assert doors.bucket_of(lowest - 1) == bucket - 1


@given(value=values)
def test_a_bucket_is_at_most_a_thirty_second_of_its_values_wide(value):
    bucket = doors.bucket_of(value)
    lowest, above = lowest_of(bucket), lowest_of(bucket + 1)
    assert lowest <= value < above
    assert above - lowest <= max(1, value / 32)
    assert abs(middle_of(bucket) - value) <= value / 32


@given(first=values, second=values)
def test_a_larger_value_never_falls_into_a_lower_bucket(first, second):
    low, high = sorted((first, second))
    assert doors.bucket_of(low) <= doors.bucket_of(high)


@pytest.mark.parametrize(
    ("value", "bucket"), [(-5, 0), (0, 0), (1, 1), (2**62, BUCKETS - 1), (2**63 - 1, BUCKETS - 1)]
)
def test_values_outside_the_range_count_at_its_ends(value, bucket):
    assert doors.bucket_of(value) == bucket
    assert 8 * BUCKETS == HISTOGRAM_SIZE


@given(
    samples=st.lists(st.integers(0, 10**9), min_size=1, max_size=200),
    percent=st.sampled_from([1.0, 10.0, 50.0, 90.0, 99.0, 100.0]),
)
@settings(deadline=None)
def test_percentiles_are_those_of_the_samples_to_a_thirty_second(samples, percent):
    histogram = Histogram()
    for value in samples:
        histogram.record(value)
    exact = float(np.percentile(samples, percent, method="inverted_cdf"))
    assert histogram.percentile(percent) == pytest.approx(exact, rel=1 / 32)


@given(samples=st.lists(st.integers(0, 10**6), min_size=1, max_size=100))
@settings(deadline=None)
def test_summary_says_count_extremes_and_mean(samples):
    histogram = Histogram()
    for value in samples:
        histogram.record(value)
    summary = histogram.summary(scale=2.0)
    assert summary.count == len(samples)
    assert summary.minimum == pytest.approx(2 * min(samples), rel=1 / 32)
    assert summary.maximum == pytest.approx(2 * max(samples), rel=1 / 32)
    assert summary.mean == pytest.approx(2 * np.mean(samples), rel=1 / 32)
    assert sum(count for _, count in histogram.bins()) == len(samples)


def test_a_percentile_with_no_sample_beyond_it_is_left_out():
    histogram = Histogram()
    for value in range(100):
        histogram.record(value)
    assert list(histogram.summary().percentiles) == [50, 90, 99]
    few = Histogram()
    few.record(7)
    assert few.summary().percentiles == {50: 7.0}


def test_an_empty_histogram_says_nothing():
    histogram = Histogram()
    assert math.isnan(histogram.percentile(50))
    assert histogram.summary().count == 0
    assert histogram.bins() == []


def test_histograms_add_up():
    first, second = Histogram(), Histogram()
    for value in (5, 5, 1000):
        first.record(value)
    second.record(5)
    first.add(second)
    assert first.bins() == [(5, 3), (992, 1)]
