"""From raw samples to a Measurement: medians, percentiles and bins in nanoseconds.

The one rule: the headline is the median, taken from the samples themselves and not from bins.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.harness import Latency, Measurement
from bench.workers import GONE, WRONG
from shm.clock import cycles_per_ns

BINS_PER_OCTAVE: Final = 16
FAULTS: Final = {GONE: "the other side fell silent", WRONG: "an entry was lost or out of order"}


class BenchmarkFailed(RuntimeError):
    """Our own side of a benchmark did not work: a fault to report, not a missing figure."""


def check(outcome: int) -> int:
    """Return a worker's count, or raise BenchmarkFailed for its error."""
    if outcome < 0:
        raise BenchmarkFailed(FAULTS.get(outcome, f"worker failed with {outcome}"))
    return outcome


def latency(samples_ns: NDArray[Any]) -> Latency:
    """Bin samples as the C references do: sixteen bins to the octave, at most 6.25 % wide."""
    values = np.rint(samples_ns).astype(np.int64)
    octave = np.maximum(np.floor(np.log2(np.maximum(values, 1))).astype(np.int64) - 4, 0)
    width = 1 << octave
    low = values // width * width
    edges, counts = np.unique(np.stack([low, low + width], axis=1), axis=0, return_counts=True)
    bins = tuple((float(a), float(b), int(n)) for (a, b), n in zip(edges, counts, strict=True))
    extremes = float(samples_ns.min()), float(samples_ns.mean()), float(samples_ns.max())
    return Latency(len(samples_ns), *extremes, bins)


def from_ticks(
    name: str, ticks: NDArray[Any], group: int, placement: str, **details: Any
) -> Measurement:
    """Make the measurement of counter ticks, each sample the sum of `group` operations."""
    return from_ns(name, ticks / (cycles_per_ns() * group), placement, group=group, **details)


def from_ns(name: str, samples_ns: NDArray[Any], placement: str, **details: Any) -> Measurement:
    """Make the measurement of samples in ns. Raises BenchmarkFailed when there are none."""
    if len(samples_ns) == 0:
        raise BenchmarkFailed(f"{name}: no sample was taken within the time allowed")
    median = float(np.median(samples_ns))
    return Measurement(name, median, "ns", placement, latency(samples_ns), details)


def from_reference(name: str, printed: Mapping[str, Any], placement: str) -> Measurement:
    """Make the measurement of a reference program's printed p50."""
    distribution = printed["latency_ns"]
    details = {key: value for key, value in printed.items() if key != "latency_ns"}
    found = Latency.from_reference(distribution)
    return Measurement(name, float(distribution["p50"]), "ns", placement, found, details)
