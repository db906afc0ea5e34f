"""The queueing model against closed forms and against a discrete-event simulation."""

import math

import pytest

from bench.lab import model
from bench.lab.model import Station
from tests.bench.lab.simulation import Simulation

pytestmark = pytest.mark.slow
OPERATIONS = 60_000
US = 1e-6


def stations(*demands):
    return [Station(f"s{at}", demand * US, cores) for at, (demand, cores) in enumerate(demands)]


def simulate(demands, delay_us=0.0, **options):
    return Simulation([(d * US, c) for d, c in demands], delay_us * US, **options)


def test_one_station_without_delay_is_always_busy():
    found = model.closed(stations((10, 1)), 0.0, 7)
    assert found.throughput_per_s == pytest.approx(1e5)
    assert found.latency_s == pytest.approx(70 * US)
    assert found.utilisation == {"s0": pytest.approx(1)}


def test_one_operation_meets_nobody():
    found = model.closed(stations((10, 1), (20, 2), (5, 1)), 15 * US, 1)
    assert found.latency_s == pytest.approx(50 * US)


def test_two_equal_stations_follow_the_known_formula():
    for depth in (1, 2, 5, 40):
        found = model.closed(stations((10, 1), (10, 1)), 0.0, depth)
        assert found.throughput_per_s == pytest.approx(1e5 * depth / (depth + 1))


def test_the_machine_repairman_follows_erlang():
    """One repairman, `depth` machines that run for Z each: X = (1 - p0) / D (finite source)."""
    demand, delay, depth = 10 * US, 40 * US, 6
    terms = [math.perm(depth, k) * (demand / delay) ** k for k in range(depth + 1)]
    found = model.closed(stations((10, 1)), delay, depth)
    assert found.throughput_per_s == pytest.approx((1 - 1 / sum(terms)) / demand)


def test_throughput_grows_with_depth_up_to_the_slowest_station():
    rates = [
        model.closed(stations((10, 1), (30, 2), (4, 1)), 50 * US, d).throughput_per_s
        for d in (1, 2, 4, 8, 64, 1024)
    ]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(2 / (30 * US), rel=0.01)
    found = model.closed(stations((10, 1), (30, 2), (4, 1)), 50 * US, 1024)
    assert found.bottleneck == "s1"


@pytest.mark.parametrize("depth", [1, 4, 32])
@pytest.mark.parametrize(
    ("demands", "delay_us"),
    [
        (((10, 1), (12, 1)), 0),
        (((10, 1), (25, 2), (4, 1)), 60),
        (((30, 3), (9, 1)), 20),
    ],
)
def test_a_closed_loop_is_what_the_simulation_says(demands, delay_us, depth):
    seen = simulate(demands, delay_us, seed=depth).closed(depth, OPERATIONS)
    said = model.closed(stations(*demands), delay_us * US, depth)
    assert said.throughput_per_s == pytest.approx(seen.throughput_per_s, rel=0.02)
    assert said.latency_s == pytest.approx(seen.latency_s, rel=0.02)
    assert list(said.utilisation.values()) == pytest.approx(seen.utilisation, rel=0.03)


@pytest.mark.parametrize("service", ["constant", "hyper"])
def test_with_other_service_times_the_model_errs_by_as_much_as_the_documents_say(service):
    demands = ((10, 1), (12, 1))
    worst = 0.0
    for depth in (1, 2, 4, 8, 32):
        seen = simulate(demands, 20, service=service, seed=depth).closed(depth, OPERATIONS)
        said = model.closed(stations(*demands), 20 * US, depth)
        worst = max(worst, abs(said.throughput_per_s / seen.throughput_per_s - 1))
    assert 0.02 < worst < 0.25


@pytest.mark.parametrize("load", [0.3, 0.6, 0.85])
@pytest.mark.parametrize(("service", "scv"), [("exponential", 1), ("constant", 0), ("hyper", 3.0)])
def test_an_open_loop_of_one_core_is_pollaczek_and_khinchine(load, service, scv):
    rate = load / (10 * US)
    if service == "hyper":  # 0.1 of mean 5, 0.9 of mean 5/9
        second = 2 * (0.1 * 5**2 + 0.9 * (1 / 1.8) ** 2)
        scv = second - 1
    seen = simulate(((10, 1),), service=service).open(rate, 4 * OPERATIONS)
    said = model.open_loop([Station("s0", 10 * US, 1, scv)], 0.0, rate)
    assert said.latency_s == pytest.approx(seen.latency_s, rel=0.12)


def test_an_open_loop_of_several_cores_is_erlang():
    rate = 0.8 * 3 / (30 * US)
    seen = simulate(((30, 3),)).open(rate, 4 * OPERATIONS)
    said = model.open_loop(stations((30, 3)), 0.0, rate)
    assert said.latency_s == pytest.approx(seen.latency_s, rel=0.03)


def test_equal_intervals_wait_less_than_arrivals_at_random():
    one = [Station("s0", 10 * US, 1, 0.5)]
    at_random = model.open_loop(one, 0.0, 7e4)
    equal = model.open_loop(one, 0.0, 7e4, arrivals_scv=0.0)
    assert 10 * US < equal.latency_s < at_random.latency_s


def test_a_rate_beyond_capacity_is_said_and_not_averaged():
    assert model.open_loop(stations((10, 1)), 0.0, 1.01e5) is None
    assert model.open_loop(stations((10, 2)), 0.0, 1.01e5) is not None


@pytest.mark.parametrize(("depth", "n"), [(8, 2), (32, 4), (32, 16)])
def test_waiting_for_n_costs_what_the_simulation_says(depth, n):
    demands, delay = ((10, 1), (6, 1)), 30
    seen = simulate(demands, delay, n=n).closed(depth, OPERATIONS)
    said = model.coalesced(stations(*demands), delay * US, depth, n)
    assert said.throughput_per_s == pytest.approx(seen.throughput_per_s, rel=0.12)
    assert said.latency_s == pytest.approx(seen.latency_s, rel=0.12)


def test_beyond_half_the_depth_the_model_promises_too_much_as_it_says():
    seen = simulate(((10, 1), (6, 1)), 30, n=8).closed(8, OPERATIONS)
    said = model.coalesced(stations((10, 1), (6, 1)), 30 * US, 8, 8)
    assert said.throughput_per_s > 1.2 * seen.throughput_per_s


def test_min_wait_bounds_what_waiting_for_n_costs():
    given = stations((10, 1), (6, 1)), 30 * US, 8, 8
    alone = model.coalesced(*given[:3])
    patient = model.coalesced(*given)
    bounded = model.coalesced(*given, min_wait_s=10 * US)
    assert patient.throughput_per_s < bounded.throughput_per_s < alone.throughput_per_s
    assert model.coalesced(*given, min_wait_s=0.0).throughput_per_s == pytest.approx(
        alone.throughput_per_s
    )
    seen = simulate(((10, 1), (6, 1)), 30, n=8, min_wait_s=10 * US).closed(8, OPERATIONS)
    assert bounded.throughput_per_s == pytest.approx(seen.throughput_per_s, rel=0.12)


def test_more_than_is_outstanding_is_not_waited_for():
    given = stations((10, 1)), 30 * US, 4
    assert model.coalesced(*given, 64) == model.coalesced(*given, 4)


def test_the_delay_of_a_measured_throughput_is_found_back():
    there = stations((10, 1), (6, 2))
    rate = model.closed(there, 35 * US, 5).throughput_per_s
    assert model.delay_of(there, 5, rate) == pytest.approx(35 * US, rel=1e-6)
    assert model.delay_of(there, 5, 1e6) == 0


def test_deep_queues_and_tiny_demands_stay_within_a_float():
    found = model.closed([Station("a", 1e-9), Station("b", 1e-5, 8)], 1e-3, 4096)
    assert found.throughput_per_s == pytest.approx(8 / 1e-5, rel=0.01)
    assert 0 < found.latency_s < 1


@pytest.mark.parametrize("depth", [0, -1, 5000])
def test_a_depth_that_has_no_meaning_is_refused(depth):
    with pytest.raises(ValueError, match="is not from 1 to"):
        model.closed(stations((10, 1)), 0.0, depth)


def test_what_takes_no_time_and_what_takes_less_are_refused():
    with pytest.raises(ValueError, match="takes no time"):
        model.closed([], 0.0, 1)
    with pytest.raises(ValueError, match="a demand of"):
        Station("s", -1e-6)
    with pytest.raises(ValueError, match="0 cores"):
        Station("s", 1e-6, 0)
