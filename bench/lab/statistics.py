"""Intervals, ratios and verdicts that hold for few repeats and any distribution.

The one rule: nothing is assumed of a distribution but that repeats are alike. Intervals come from
ranks, so their confidence is exact; where the repeats cannot carry the confidence asked for, the
widest interval is returned with the confidence it has, and a verdict is refused below CARRIES.

A median's interval lies between two order statistics: how many of n values lie below the median is
binomial. A ratio of two independent sets is the Hodges-Lehmann estimate (the median of all ratios
after/before), whose interval lies between two of those ratios by the Mann-Whitney distribution.
A ratio of pairs, taken within a repeat, is the median of the pairs with a median's interval.
"""

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from bench.harness import Latency

CONFIDENCE: Final = 0.95
CARRIES: Final = 0.90  # of less confidence than this a verdict would be a guess
# A difference below this share is of no use to anybody, however certain it is.
INDIFFERENCE: Final = 0.01
# "Same" is said only where the interval leaves no room for a difference above this share.
SAME_WITHIN: Final = 0.10
RESAMPLES: Final = 2000
VERDICTS: Final = ("same", "better", "worse", "unclear", "too few repeats")


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate between bounds; `confidence` is what the bounds have, not what was asked."""

    low: float
    median: float
    high: float
    repeats: int
    confidence: float

    def holds(self, value: float) -> bool:
        """Tell whether `value` lies within the bounds."""
        return self.low <= value <= self.high

    def scaled(self, factor: float) -> "Interval":
        """The same in another unit; `factor` is positive."""
        return Interval(
            self.low * factor,
            self.median * factor,
            self.high * factor,
            self.repeats,
            self.confidence,
        )

    def to_json(self) -> dict[str, float | int]:
        """Return the object that `--json` prints."""
        return {
            "low": self.low,
            "median": self.median,
            "high": self.high,
            "repeats": self.repeats,
            "confidence": self.confidence,
        }


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The median with the narrowest symmetric pair of order statistics of that confidence.

    Raises ValueError for no values. Fewer than six repeats cannot reach 95 %: then the bounds are
    the least and the greatest, of confidence 1 - 2 ** (1 - n).
    """
    if not values:
        raise ValueError("an interval of no values")
    ordered = sorted(values)
    n = len(ordered)
    skip = 0  # values left out at either end
    while skip + 1 <= (n - 1) // 2 and _covers(n, skip + 1) >= confidence:
        skip += 1
    middle = statistics.median(ordered)
    return Interval(ordered[skip], middle, ordered[n - 1 - skip], n, _covers(n, skip))


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    confidence: float = CONFIDENCE,
    seed: int = 1,
) -> Interval:
    """The percentile bootstrap of any statistic: for what has no exact interval.

    Below about ten values it is narrower than it says. The same seed gives the same answer.
    """
    if not values:
        raise ValueError("an interval of no values")
    generator = random.Random(seed)
    n = len(values)
    drawn = sorted(statistic(generator.choices(values, k=n)) for _ in range(RESAMPLES))
    tail = int(RESAMPLES * (1 - confidence) / 2)
    return Interval(drawn[tail], statistic(values), drawn[-1 - tail], n, confidence)


def ratio_of_pairs(
    before: Mapping[int, float], after: Mapping[int, float], confidence: float = CONFIDENCE
) -> Interval | None:
    """After over before for each repeat that both have; None when there is no such pair."""
    pairs = [after[at] / before[at] for at in before if at in after and before[at] > 0]
    return median_interval(pairs, confidence) if pairs else None


def ratio_of_sets(
    before: Sequence[float], after: Sequence[float], confidence: float = CONFIDENCE
) -> Interval | None:
    """After over before for sets that are not paired; None without positive values on both sides.

    Exact when both sides have the same distribution up to a factor.
    """
    if not before or not after or min(before) <= 0 or min(after) <= 0:
        return None
    ratios = sorted(b / a for a in before for b in after)
    m, n = len(before), len(after)
    skip = 0
    while skip + 1 <= (m * n - 1) // 2 and _covers_ranks(m, n, skip + 1) >= confidence:
        skip += 1
    middle = statistics.median(ratios)
    covered = _covers_ranks(m, n, skip)
    return Interval(ratios[skip], middle, ratios[m * n - 1 - skip], min(m, n), covered)


def ratio(before: Mapping[int, float], after: Mapping[int, float]) -> Interval | None:
    """After over before of repeats that ran interleaved: by pairs where they carry a verdict.

    Which way is taken depends on how many pairs there are and never on what they say: pairs
    cancel drift, but three of them have a confidence of 75 %, where ranks of three and three have
    90 %.
    """
    paired = ratio_of_pairs(before, after)
    if paired is not None and paired.confidence >= CARRIES:
        return paired
    return ratio_of_sets(list(before.values()), list(after.values())) or paired


def verdict(found: Interval | None, *, less_is_better: bool) -> str:
    """One of VERDICTS for a ratio after/before.

    `better` or `worse`, by which way is good, when the interval leaves 1 out and the estimate
    differs from 1 by INDIFFERENCE or more. Else `same`, when all of the interval is within
    SAME_WITHIN of 1, and `unclear` when it is wider: then it tells nothing apart, neither a
    difference nor that there is none. `too few repeats` when its confidence is below CARRIES.
    """
    if found is None or found.confidence < CARRIES - 1e-12:
        return "too few repeats"
    if found.holds(1.0) or abs(found.median - 1) < INDIFFERENCE:
        narrow = found.low >= 1 / (1 + SAME_WITHIN) and found.high <= 1 + SAME_WITHIN
        return "same" if narrow else "unclear"
    return "better" if (found.median < 1) == less_is_better else "worse"


def merge(histograms: Sequence[Latency]) -> Latency:
    """Add up distributions. Bins that overlap without being equal are kept as they are.

    Raises ValueError for none.
    """
    if not histograms:
        raise ValueError("a distribution of no histograms")
    counts: dict[tuple[float, float], int] = {}
    for histogram in histograms:
        for low, high, n in histogram.bins:
            counts[low, high] = counts.get((low, high), 0) + n
    total = sum(histogram.count for histogram in histograms)
    return Latency(
        total,
        min(histogram.min for histogram in histograms),
        sum(histogram.mean * histogram.count for histogram in histograms) / total,
        max(histogram.max for histogram in histograms),
        tuple((low, high, n) for (low, high), n in sorted(counts.items())),
    )


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean that treats 2 and 1/2 alike. Raises ValueError for none, or one that is not > 0."""
    return statistics.geometric_mean(ratios)


def _covers(n: int, skip: int) -> float:
    """How likely a median lies between the order statistics `skip` from either end of n values."""
    tail = sum(math.comb(n, k) for k in range(skip + 1))
    return max(0.0, 1 - 2 * tail / 2.0**n)


def _covers_ranks(m: int, n: int, skip: int) -> float:
    """The same for the m n ratios of two sets: the Mann-Whitney count is above `skip`."""
    ways = _rank_counts(m, n)
    tail = sum(ways[: skip + 1])
    return max(0.0, 1 - 2 * tail / math.comb(m + n, m))


@cache
def _rank_counts(m: int, n: int) -> tuple[int, ...]:
    """In how many orders of m and n values the Mann-Whitney count is 0, 1, ..., m n.

    These are the coefficients of the Gaussian binomial: multiply by 1 - q^(n+i), divide by 1 - q^i.
    """
    counts = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for at in range(m * n, n + i - 1, -1):
            counts[at] -= counts[at - n - i]
        for at in range(i, m * n + 1):
            counts[at] += counts[at - i]
    return tuple(counts)
