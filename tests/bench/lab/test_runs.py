"""Real runs, one of each placement: their figures agree with each other, and nothing is left."""

import json
import math
import os
import time
from pathlib import Path

import pytest

import host.inline  # noqa: F401 - compiles while tests are collected, where no timeout runs
import iscsi.session.doors  # noqa: F401 - the same
import ppe.cycle.services.datamover
import ppe.cycle.services.iser
import ppe.cycle.services.rdma  # noqa: F401 - the same
from bench.lab import Experiment, plan, runs
from bench.lab.partition import Machine
from bench.lab.spec import Timing
from bench.reference_build import ReferenceMissing
from tests.bench.lab.trees import descendants

pytestmark = [pytest.mark.slow, pytest.mark.pinned, pytest.mark.timeout(300)]
TIMING = Timing(1, 0.05, 0.2)
CASES = {
    "inline": {"placement": "inline"},
    "inline write": {"placement": "inline", "operation": "write", "block_bytes": 65536},
    "stream": {"placement": "stream"},
    "datamover": {"placement": "datamover", "wait_n": 4, "digests": "both"},
    "datamover mix": {"operation": "mix", "write_percent": 30, "sessions": 2, "depth": 8},
    "target inline": {"placement": "inline", "target": "inline", "random": False},
    "inline iser": {"placement": "inline", "transport": "iser", "registration": "pool"},
    "datamover iser": {"placement": "datamover", "transport": "iser", "operation": "write"},
    "two engines": {"engines": 2, "idle": "sleep", "sessions": 2, "hosts": 1, "depth": 4},
    "two hosts": {"placement": "inline", "sessions": 3, "hosts": 2, "depth": 4},
    "spinning": {"placement": "inline", "wait_mode": "spin", "target_idle": "spin"},
    "host spins": {"wait_mode": "spin", "idle": "sleep", "target_on": "engine"},
    "roaming": {"placement": "inline", "pinned": False, "target_on": "any"},
    "open loop": {"placement": "datamover", "rate_per_s": 200},
}
STAGES = {
    *("control", "submissions", "readiness", "completions"),
    *("receive", "transmit", "timers", "events"),
}


def two_cores():
    return Machine(Machine.here().usable[:2])


def perform(timing=TIMING, **fields):
    experiment = Experiment("mine", timing=timing, fixed={"shared": True, **fields})
    here = two_cores()
    made = plan.make(experiment, here)
    before, names = descendants(os.getpid()), set(Path("/dev/shm").iterdir())
    found = runs.perform(made.runs[0], "mine", timing, here)
    assert descendants(os.getpid()) == before
    # Other tests may run beside this one: what is new is looked at for a while.
    deadline = time.monotonic() + 10
    while ours := {path for path in set(Path("/dev/shm").iterdir()) - names if path.exists()}:
        assert time.monotonic() < deadline, f"left behind: {ours}"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def made():
    """Each case runs once, when it is first asked for."""
    kept = {}

    def get(name):
        if name not in kept:
            kept[name] = perform(**CASES[name])
        return kept[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_the_figures_of_a_run_agree_with_each_other(made, name):
    found = made(name)
    assert (found["status"], found["reason"]) == ("done", None)
    point, measured, cpu = found["point"], found["measured"], found["measured"]["cpu"]
    operations = measured["operations"]
    assert operations > 0
    assert measured["bytes"] == operations * point["block_bytes"]
    assert math.isclose(measured["iops"], operations / found["measured_s"])
    assert math.isclose(measured["throughput_bytes_per_s"], measured["bytes"] / found["measured_s"])
    assert measured["latency_ns"]["count"] == operations
    assert sum(measured["latency_histogram"]["counts"]) == operations
    assert found["measured_s"] <= cpu["wall_s"]
    for times in cpu["cores"].values():
        parts = ("user_s", "system_s", "softirq_s", "irq_s", "steal_s")
        assert math.isclose(times["busy_s"], sum(times[part] for part in parts), abs_tol=1e-6)
    places = found["cores"]
    used = {*places["engine"], *places["host"], *places["target"]}
    assert set(cpu["cores"]) == set(map(str, used))


@pytest.mark.parametrize("name", CASES)
def test_cpu_time_is_of_the_processes_that_ran(made, name):
    found = made(name)
    measured, cpu = found["measured"], found["measured"]["cpu"]
    is_inline = found["point"]["placement"] == "inline"
    assert set(cpu["processes"]) == {"host", "target"} | (set() if is_inline else {"engine"})
    busy = {name: sum(used.values()) for name, used in cpu["processes"].items()}
    assert all(seconds > 0 for seconds in busy.values())
    operations = measured["operations"]
    assert math.isclose(cpu["host_cpu_ns_per_op"], busy["host"] * 1e9 / operations)
    assert math.isclose(cpu["total_busy_ns_per_op"], sum(busy.values()) * 1e9 / operations)
    initiator = sum(busy.values()) - busy["target"]
    cycles = initiator * cpu["core_hz"] / (8 * measured["bytes"])
    assert math.isclose(cpu["cycles_per_bit"], cycles)
    assert cpu["core_hz"] == cpu["tsc_hz"]  # nobody set the clock
    assert 0 <= cpu["engine_empty_share"] <= 1
    assert cpu["useful_cycles_per_bit"] <= cpu["cycles_per_bit"]


@pytest.mark.parametrize("name", CASES)
def test_the_engines_say_what_each_stage_did(made, name):
    found = made(name)
    measured = found["measured"]
    stages = measured["stages"]["engine"]
    assert set(stages) == STAGES
    for row in stages.values():
        assert 0 <= row["useful"] <= row["passes"]
        assert (row["cycles"] > 0) == (row["useful"] > 0)
    assert any(stages[name]["useful"] for name in ("receive", "transmit"))
    if found["point"]["transport"] == "tcp":
        moved = measured["engine"]["counters"]
        # A header of 48 bytes each way with every command, and its data one way.
        bytes_each = moved["bytes_in"] + moved["bytes_out"]
        assert bytes_each >= found["point"]["block_bytes"]


@pytest.mark.parametrize("name", CASES)
def test_the_layers_add_up_to_the_cycles_of_all_the_cores(made, name):
    measured = made(name)["measured"]
    layers, cpu = dict(measured["layers"]), measured["cpu"]
    assert layers.pop("scsi") is None
    assert layers.pop("copies") is None
    whole = cpu["wall_s"] * len(cpu["cores"]) * cpu["tsc_hz"] / measured["operations"]
    assert math.isclose(sum(layers.values()), whole, rel_tol=1e-9)
    wire = "rdma" if made(name)["point"]["transport"] == "iser" else "tcp"
    assert set(layers) == {"iscsi", "queues", wire, "target", "others", "idle"}
    assert all(layers[each] >= 0 for each in ("iscsi", "queues", wire, "target", "idle"))
    assert layers[wire] > 0


@pytest.mark.parametrize("name", CASES)
def test_a_result_file_holds_what_the_contract_says(made, name):
    found = made(name)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for key in ("schema", "id", "experiment", "repeat", "seed", "order", "cores", "started_at"):
        assert found[key] is not None
    assert found["versions"].keys() == {"ppe", "python", "numba", "numpy", "kernel"}
    assert len(found["sources"]) == 32
    assert found["machine"]["cpus"] == os.cpu_count()
    hardware, why = found["measured"]["hardware"], found["not_measured"]
    assert (hardware is None) == ("hardware" in why)
    ends = sum(found["measured"]["wakeup_reasons"].values())
    waits = found["measured"]["counts_per_op"]["waits"] * found["measured"]["operations"]
    assert ends == round(waits)


def test_a_rate_that_is_kept_counts_latency_from_when_a_command_was_due(made):
    found = made("open loop")
    assert found["measured"]["latency_ns"]["from"] == "intended"
    # One at the start and one every 5 ms of the time that was measured.
    assert found["measured"]["operations"] <= 1 + found["measured_s"] * 200 + 1
    assert made("datamover")["measured"]["latency_ns"]["from"] == "issued"


def test_a_rate_beyond_capacity_is_refused_with_what_was_done_instead():
    found = perform(placement="datamover", rate_per_s=50_000_000)
    assert found["status"] == "refused"
    assert "rate beyond capacity: 50,000,000 a second asked" in found["reason"]
    assert found["measured"]["iops"] < 50_000_000
    # They waited for their turn, and that counts: the median is far from a command's own time.
    assert found["measured"]["latency_ns"]["p50"] > TIMING.measure_s * 1e9 / 10


def test_one_command_is_a_run_and_its_percentiles_but_the_middle_are_not_told():
    found = perform(Timing(1, 0, 0.02), placement="inline", rate_per_s=0.001, depth=1)
    latency = found["measured"]["latency_ns"]
    assert found["measured"]["operations"] == latency["count"] == 1  # the one due at once
    assert latency["p50"] is not None
    assert (latency["p90"], latency["p99"], latency["p999"]) == (None, None, None)


def test_a_long_run_is_waited_for_as_long_as_it_takes():
    waited = []

    class Host:
        def tell(self, order, **options):
            assert (order, options) == ("run", {"seconds": 3600.0, "start_ns": 1})

        def answer(self, timeout_s):
            waited.append(timeout_s)

    running = runs.processes.Running(None, None, [Host(), Host()])
    running.ask("run", seconds=3600.0, start_ns=1)
    assert min(waited) > 3600


def test_a_run_whose_target_dies_has_failed_and_says_so(monkeypatch):
    whole = runs.processes.open_sessions

    def open_and_kill(running, point, seed):
        whole(running, point, seed)
        running.target.process.close()

    monkeypatch.setattr(runs.processes, "open_sessions", open_and_kill)
    monkeypatch.setattr(runs.processes, "RECOVERY_S", 0.2)
    found = perform(placement="inline")
    assert found["status"] == "failed"
    assert found["measured"] is None
    assert "PeerFailed" in found["reason"]


@pytest.mark.interop("tgtd", "tgtadm")
def test_tgtd_can_be_the_target():
    found = perform(placement="inline", target="tgt")
    assert (found["status"], found["reason"]) == ("done", None)
    assert found["measured"]["operations"] > 0
    assert "tgtd" in found["not_measured"]["stages.target"]


def test_a_run_that_wants_what_is_not_installed_is_refused_with_its_name(monkeypatch):
    def missing(folder, threads):
        raise ReferenceMissing("tgtd is not installed")

    monkeypatch.setattr(runs.processes, "Tgt", missing)
    found = perform(placement="inline", target="tgt")
    assert (found["status"], found["reason"]) == ("refused", "tgtd is not installed")
