"""From readings to figures: each checked by hand on numbers that are easy to follow."""

from dataclasses import replace

import pytest

from bench.lab import measured
from bench.lab.accounting import CoreTimes, ProcessCounts, System
from bench.lab.measured import Readings
from bench.lab.points import Point
from shm.histogram import bucket_of, lowest_of

SECOND_US = 1_000_000
GHZ = 1e9
NAMES = (
    *("control", "submissions", "readiness", "completions"),
    *("receive", "transmit", "timers", "events"),
)


def snapshot(useful_s=0.0, empty_s=0.0, asleep_s=0.0, stages=(), sleeps=0):
    """An engine's accounts; `stages` are seconds of useful work by name."""
    took = dict(stages)
    return {
        "useful_us": useful_s * SECOND_US,
        "empty_us": empty_s * SECOND_US,
        "asleep_us": asleep_s * SECOND_US,
        "passes": 100 * bool(took),
        "useful_passes": 50 * bool(took),
        "counters": {"sleeps": sleeps, "wakes": 0},
        "stages": [
            {
                "stage": name,
                "useful_us": took.get(name, 0.0) * SECOND_US,
                "empty_us": 0.0,
                "runs": 10 * (name in took),
            }
            for name in NAMES
        ],
    }


def used(cpu_s, **counts):
    given = {
        "user_ticks": 1,
        "system_ticks": 1,
        "page_faults": 0,
        "voluntary": 0,
        "involuntary": 0,
    }
    return ProcessCounts(int(cpu_s * 1e9), **{**given, **counts})


def core(busy_s, idle_s):
    return CoreTimes(busy_s, busy_s, 0.0, 0.0, 0.0, 0.0, idle_s)


def load(operations=1000, seconds=1.0, **changes):
    given = {
        "seconds": seconds,
        "operations": operations,
        "bytes": operations * 4096,
        "waits": 300,
        "sleeps": 200,
        "doorbells": 20,
        "wait_ends": {"threshold": 250, "min_wait": 50, "peer": 0},
        "behind": 0,
        "late_ns": 0,
        "histogram": [[bucket_of(50_000), operations]],
    }
    return {**given, **changes}


STAGES = {"submissions": 0.05, "events": 0.05, "receive": 0.2, "transmit": 0.1}
AMP = Readings(
    point=Point().settled(),
    wall_s=1.0,
    tsc_hz=GHZ,
    cores=(0, 1),
    system=(
        System({0: core(0, 0), 1: core(0, 0)}, 1000),
        System({0: core(0.7, 0.3), 1: core(1.0, 0.0)}, 1500),
    ),
    processes={
        "host": used(0.3, voluntary=150, involuntary=50, page_faults=10),
        "engine": used(1.0),
        "target": used(0.35, voluntary=100),
    },
    loads=[load()],
    engines=[(snapshot(), snapshot(0.4, 0.6, 0.0, STAGES))],
    hardware={},
    missing_hardware={"cycles": "no hardware counters: perf_event_open says ENOENT"},
    core_hz=GHZ,
)
SMP = replace(
    AMP,
    point=Point(placement="inline").settled(),
    processes={"host": used(0.8), "target": used(0.9)},
    engines=[(snapshot(), snapshot(0.4, 0.1, 0.2, STAGES, sleeps=30))],
)


def test_the_layers_of_amp_are_the_hosts_the_engines_stages_the_target_and_idle_time():
    # A million cycles for each of 1000 operations and each second of a core.
    assert measured.layers(AMP) == pytest.approx(
        {
            "scsi": None,
            "iscsi": 300_000,
            "queues": 100_000,
            "tcp": 300_000,
            "copies": None,
            "target": 350_000,
            "others": 50_000,
            "idle": 900_000,
        }
    )


def test_inline_the_engines_stages_are_part_of_the_hosts_time():
    found = measured.layers(SMP)
    # 0.8 s of CPU in 0.8 s not asleep: it had its core all the time.
    assert measured.presence(SMP) == 1
    assert found["iscsi"] == pytest.approx(800_000 - 100_000 - 300_000 - 100_000)
    assert found["idle"] == pytest.approx(300_000 + 100_000)


def test_an_engine_that_others_took_the_core_from_counts_only_what_it_had():
    robbed = replace(AMP, processes={**AMP.processes, "engine": used(0.5)})
    assert measured.presence(robbed) == 0.5
    found = measured.layers(robbed)
    assert (found["queues"], found["tcp"]) == pytest.approx((50_000, 150_000))
    assert sum(value for value in found.values() if value) == pytest.approx(2_000_000)


def test_over_iser_the_wire_is_rdma():
    found = measured.layers(replace(AMP, point=Point(transport="iser").settled()))
    assert found["rdma"] == pytest.approx(300_000)
    assert "tcp" not in found


def test_cpu_time_is_told_of_hosts_of_the_initiator_and_of_all():
    cpu = measured.measured(AMP)["cpu"]
    assert cpu["host_cpu_ns_per_op"] == pytest.approx(300_000)
    assert cpu["initiator_busy_ns_per_op"] == pytest.approx(1_300_000)
    assert cpu["total_busy_ns_per_op"] == pytest.approx(1_650_000)
    assert cpu["engine_empty_share"] == pytest.approx(0.6)
    assert cpu["others_busy_share"] == pytest.approx(0.05)
    bits = 8 * 4096 * 1000
    assert cpu["cycles_per_bit"] == pytest.approx(1.3 * GHZ / bits)
    assert cpu["useful_cycles_per_bit"] == pytest.approx(0.7 * GHZ / bits)
    assert cpu["total_cycles_per_bit"] == pytest.approx(1.65 * GHZ / bits)


def test_a_bit_costs_cycles_of_the_clock_that_was_set():
    slow = measured.measured(replace(AMP, core_hz=GHZ / 2))["cpu"]
    assert slow["cycles_per_bit"] == pytest.approx(1.3 * GHZ / 2 / (8 * 4096 * 1000))


def test_counts_are_of_one_operation_and_wake_ups_inline_are_the_engines_sleeps():
    counts = measured.measured(AMP)["counts_per_op"]
    assert counts == pytest.approx(
        {
            "context_switches": 0.3,
            "voluntary_switches": 0.25,
            "host_switches": 0.2,
            "interrupts": 0.5,
            "page_faults": 0.01,
            "wakeups": 0.2,
            "waits": 0.3,
            "doorbells": 0.02,
        }
    )
    assert measured.measured(SMP)["counts_per_op"]["wakeups"] == pytest.approx(0.03)
    assert measured.measured(AMP)["wakeup_reasons"] == {"threshold": 250, "min_wait": 50}


def test_sessions_are_added_up_and_time_is_the_longest_ones():
    both = replace(AMP, loads=[load(1000, 1.0), load(3000, 2.0)])
    found = measured.measured(both)
    assert (found["operations"], found["bytes"]) == (4000, 4000 * 4096)
    assert found["iops"] == pytest.approx(2000)
    assert found["latency_ns"]["count"] == 4000
    assert found["wakeup_reasons"]["threshold"] == 500


def test_a_percentile_with_few_samples_beyond_it_is_not_told():
    few = measured.measured(replace(AMP, loads=[load(500)]))["latency_ns"]
    assert few["p50"] is not None
    assert few["p90"] is not None
    assert (few["p99"], few["p999"]) == (None, None)


def test_the_histogram_keeps_every_bin_with_its_bounds():
    slow, fast = bucket_of(1_000_000), bucket_of(1000)
    found = measured.measured(replace(AMP, loads=[load(histogram=[[slow, 10], [fast, 990]])]))
    kept = found["latency_histogram"]
    assert kept["counts"] == [990, 10]
    assert kept["edges_ns"] == [[lowest_of(b), lowest_of(b + 1)] for b in (fast, slow)]
    low, high = kept["edges_ns"][0]
    assert low <= 1000 < high
    assert high - low == 2 ** (low.bit_length() - 1 - kept["significant_bits"])


def test_what_the_machine_does_not_count_is_null_with_its_reason():
    assert measured.measured(AMP)["hardware"] is None
    assert "ENOENT" in measured.not_measured(AMP)["hardware"]
    some = replace(AMP, hardware={"cycles": 5000.0}, missing_hardware={"machine_clears": "none"})
    assert measured.measured(some)["hardware"] == {"cycles": 5.0}
    found = measured.not_measured(some)
    assert "hardware" not in found
    assert found["hardware.machine_clears"] == "none"


@pytest.mark.parametrize(
    ("rate", "done", "behind", "is_beyond"),
    [
        (0, 1000, 0, False),
        (1000, 1000, 0, False),
        (1000, 999, 32, False),  # its queue was full at the end
        (1000, 985, 500, False),  # a hiccup within what a rate may miss
        (2000, 1000, 900, True),
    ],
)
def test_a_rate_is_beyond_capacity_when_much_less_was_done_and_more_than_a_queue_waits(
    rate, done, behind, is_beyond
):
    loads = [load(done, behind=behind, late_ns=450_000_000)]
    readings = replace(AMP, point=Point(rate_per_s=float(rate)).settled(), loads=loads)
    why = measured.beyond_capacity(readings)
    assert (why is not None) == is_beyond
    if why is not None:
        assert why.startswith("rate beyond capacity: 2,000 a second asked, 1,000 done; at the end")
        assert "900 that were due had not been sent, the oldest of them 450 ms late" in why
