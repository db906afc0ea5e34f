"""Latency histograms of constant relative error, recorded from compiled code.

Log-linear as in HdrHistogram: values below 64 have a bucket each, above that every power of two is
cut into 32 buckets, so a bucket is at most 1/32 (3 %) of its value wide. One writer records; others
may read at any time, since each bucket is one word written whole.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shm.atomics import load_relaxed, store_relaxed
from shm.jit import entry, nopython
from shm.view import address_of

LINEAR_BITS: Final = 6
HALF: Final = 1 << (LINEAR_BITS - 1)
VALUE_BITS: Final = 62
BUCKETS: Final = (1 << LINEAR_BITS) + (VALUE_BITS - LINEAR_BITS) * HALF
HISTOGRAM_SIZE: Final = 8 * BUCKETS


@nopython
def bucket_of(value: int) -> int:
    """Index of the bucket that counts `value`; negative values count as 0."""
    if value < (1 << LINEAR_BITS):
        return max(value, 0)
    shift = 0
    while (value >> shift) >= (1 << LINEAR_BITS):
        shift += 1
    shift = min(shift, VALUE_BITS - LINEAR_BITS)
    return (1 << LINEAR_BITS) + (shift - 1) * HALF + min((value >> shift) - HALF, HALF - 1)


@nopython
def record(histogram: int, value: int) -> None:
    """Count `value` in the histogram of BUCKETS int64 at address `histogram`."""
    address = histogram + 8 * bucket_of(value)
    store_relaxed(address, load_relaxed(address) + 1)


@entry("void(intp, int64)")
def record_value(histogram: int, value: int) -> None:
    """Count one value, called from Python."""
    record(histogram, value)


def lowest_of(bucket: int) -> int:
    """The smallest value that `bucket` counts."""
    if bucket < (1 << LINEAR_BITS):
        return bucket
    shift, place = divmod(bucket - (1 << LINEAR_BITS), HALF)
    return (HALF + place) << (shift + 1)


def middle_of(bucket: int) -> float:
    """The value a bucket stands for in percentiles: its middle."""
    return (lowest_of(bucket) + lowest_of(bucket + 1) - 1) / 2


@dataclass(frozen=True, slots=True)
class Summary:
    """What a histogram says, in the unit that was recorded."""

    count: int
    minimum: float
    maximum: float
    mean: float
    percentiles: dict[float, float]


class Histogram:
    """A histogram of this process, or a window on one in shared memory."""

    def __init__(self, counts: NDArray[Any] | None = None) -> None:
        self.counts: NDArray[Any] = np.zeros(BUCKETS, np.int64) if counts is None else counts

    @property
    def address(self) -> int:
        """Where compiled code records."""
        return address_of(self.counts)

    def record(self, value: int) -> None:
        """Count one value."""
        record_value(self.address, int(value))

    def add(self, other: "Histogram") -> None:
        """Count everything that `other` counted as well."""
        self.counts += other.counts

    def percentile(self, percent: float) -> float:
        """The value below or at which `percent` of the samples lie; NaN without samples."""
        total = int(self.counts.sum())
        if total == 0:
            return float("nan")
        rank = max(int(np.ceil(total * percent / 100)), 1)
        return middle_of(int(np.searchsorted(np.cumsum(self.counts), rank)))

    def summary(
        self, percentiles: tuple[float, ...] = (50, 90, 99, 99.9, 99.99), scale: float = 1.0
    ) -> Summary:
        """Count, extremes, mean and percentiles; every value is multiplied by `scale`."""
        used = np.nonzero(self.counts)[0]
        count = int(self.counts.sum())
        if count == 0:
            return Summary(0, float("nan"), float("nan"), float("nan"), {})
        mean = sum(middle_of(int(b)) * int(self.counts[b]) for b in used) / count
        # A percentile that fewer than one sample lies beyond says nothing: leave it out.
        shown = [p for p in percentiles if count * (100 - p) / 100 >= 1 or p == 50]
        return Summary(
            count,
            lowest_of(int(used[0])) * scale,
            middle_of(int(used[-1])) * scale,
            mean * scale,
            {p: self.percentile(p) * scale for p in shown},
        )

    def bins(self, scale: float = 1.0) -> list[tuple[float, int]]:
        """Every used bucket as (lowest value, count): what result files keep."""
        return [
            (lowest_of(int(b)) * scale, int(self.counts[b])) for b in np.nonzero(self.counts)[0]
        ]
