"""A queueing model of hosts, engines and a target, each on its cores.

An operation visits every station once and needs `demand_s` of one of its cores there. A closed loop
keeps `depth` operations under way: the machine-repairman model, with several machines. It is solved
exactly by Buzen's convolution, whose answer holds for exponential service times in any order of
service and for any service times under processor sharing. An open loop is solved station by station
by Allen and Cunneen's formula, which for one core is Pollaczek and Khinchine's M/G/1.

Waiting for N completions holds back (B - 1) / 2 of them on average, where B is how many a wake-up
finds: N, or fewer when `min_wait_s` ends first. A depth d then works like d - (B - 1) / 2. That is
good to about a tenth up to N of half the depth; beyond it batches move as blocks, which the model
does not see, and it promises too much.

The one rule: times are in seconds, a station with no demand is no station, and saturation is said
(None), not averaged away.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

POPULATION_MAX: Final = 4096
STEPS: Final = 60  # of a bisection: far below a part in a million


@dataclass(frozen=True, slots=True)
class Station:
    """Some cores that work on one queue. `scv` is variance over mean squared of a service time."""

    name: str
    demand_s: float
    cores: int = 1
    scv: float = 1.0

    def __post_init__(self) -> None:
        if not (self.demand_s >= 0 and math.isfinite(self.demand_s)):
            raise ValueError(f"{self.name}: a demand of {self.demand_s} s")
        if self.cores < 1:
            raise ValueError(f"{self.name}: {self.cores} cores")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one configuration; `latency_s` is the mean."""

    throughput_per_s: float
    latency_s: float
    utilisation: dict[str, float]  # of a station's cores, from 0 to 1

    @property
    def bottleneck(self) -> str:
        """The busiest station."""
        return max(self.utilisation, key=lambda name: self.utilisation[name], default="nothing")


def closed(stations: Sequence[Station], delay_s: float, depth: int) -> Prediction:
    """Solve a closed loop.

    Raises ValueError for a depth below 1 or above POPULATION_MAX, or when nothing takes any time.
    """
    rate = _throughputs(stations, delay_s, depth)[depth]
    return Prediction(rate, depth / rate, _utilisation(stations, rate))


def open_loop(
    stations: Sequence[Station], delay_s: float, rate_per_s: float, arrivals_scv: float = 1.0
) -> Prediction | None:
    """Solve a loop fed at a rate; None when a station cannot keep up.

    `arrivals_scv` is 1 for arrivals at random and 0 for equal intervals. Exact for M/M/c and M/G/1
    stations alone; what leaves a station is taken to vary as what came in.
    """
    latency = delay_s
    for station in stations:
        load = rate_per_s * station.demand_s / station.cores
        if load >= 1:
            return None
        waits = _erlang_c(station.cores, load) / (1 - load) * station.demand_s / station.cores
        latency += station.demand_s + waits * (arrivals_scv + station.scv) / 2
    return Prediction(rate_per_s, latency, _utilisation(stations, rate_per_s))


def batch(n: int, depth: float, rate_per_s: float, min_wait_s: float | None) -> float:
    """How many completions a wake-up finds when the host waits for `n`."""
    most = max(1.0, min(float(n), depth))
    if min_wait_s is None:
        return most
    return min(most, 1.0 + rate_per_s * min_wait_s)


def coalesced(
    stations: Sequence[Station],
    delay_s: float,
    depth: int,
    n: int = 1,
    min_wait_s: float | None = None,
    sessions: int = 1,
) -> Prediction:
    """Closed loops of that depth, whose hosts wake for `n` completions or one after `min_wait_s`.

    The higher the throughput, the fuller the batches and the fewer operations are under way: the
    throughput at which both agree is found by bisection, and there is only one.
    """

    most = depth * sessions
    rates = _throughputs(stations, delay_s, most)

    def answer(rate: float) -> float:
        held = (batch(n, depth, rate / sessions, min_wait_s) - 1) / 2
        under_way = max(1.0, most - sessions * held)
        whole = math.floor(under_way)
        part = under_way - whole
        return rates[whole] + (part * (rates[whole + 1] - rates[whole]) if part else 0.0)

    low, high = 0.0, rates[most]
    for _ in range(STEPS):
        middle = (low + high) / 2
        if answer(middle) > middle:
            low = middle
        else:
            high = middle
    return Prediction(high, most / high, _utilisation(stations, high))


def delay_of(stations: Sequence[Station], depth: int, throughput_per_s: float) -> float:
    """The delay with which the model has this throughput; 0 when it is slower even without."""

    def rate(delay_s: float) -> float:
        if delay_s <= 0 and all(station.demand_s == 0 for station in stations):
            return math.inf
        return closed(stations, delay_s, depth).throughput_per_s

    low, high = 0.0, depth / throughput_per_s
    if rate(low) <= throughput_per_s:
        return 0.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if rate(middle) > throughput_per_s:
            low = middle
        else:
            high = middle
    return high


def _throughputs(stations: Sequence[Station], delay_s: float, most: int) -> list[float]:
    """X(0..most) = G(n - 1) / G(n), where G is the convolution of what each station contributes.

    A station contributes D^n / (min(1, c) min(2, c) ... min(n, c)) for n operations in it, the
    delay Z^n / n!. All of it as logarithms: the terms themselves leave the range of a float.
    """
    if not 1 <= most <= POPULATION_MAX:
        raise ValueError(f"a depth of {most} is not from 1 to {POPULATION_MAX}")
    busy = [station for station in stations if station.demand_s > 0]
    if not busy and delay_s <= 0:
        raise ValueError("an operation that takes no time has no model")
    counts = np.arange(1, most + 1)
    constants = np.full(most + 1, -np.inf)
    constants[0] = 0.0
    for station in busy:
        steps = math.log(station.demand_s) - np.log(np.minimum(counts, station.cores))
        constants = _convolved(constants, steps)
    if delay_s > 0:
        constants = _convolved(constants, math.log(delay_s) - np.log(counts))
    return [0.0, *np.exp(constants[:-1] - constants[1:]).tolist()]


def _convolved(logs: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convolve with the sequence of 1 and then ratios exp(steps); all are logarithms."""
    weights = np.concatenate([[0.0], np.cumsum(steps)])
    return np.array([np.logaddexp.reduce(logs[: n + 1] + weights[n::-1]) for n in range(len(logs))])


def _utilisation(stations: Sequence[Station], rate: float) -> dict[str, float]:
    return {s.name: rate * s.demand_s / s.cores for s in stations if s.demand_s > 0}


def _erlang_c(cores: int, load: float) -> float:
    """The chance that an arrival at a station of so many cores has to wait (M/M/c)."""
    offered = cores * load
    blocked = 1.0  # Erlang B, core by core
    for core in range(1, cores + 1):
        blocked = offered * blocked / (core + offered * blocked)
    return blocked / (1 - load * (1 - blocked))
