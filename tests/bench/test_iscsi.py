"""`ppe bench iscsi`: every key has a value or a reason, and nothing it started is left."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import host.inline  # compiles while tests are collected, where no timeout runs
import ppe.cycle.services.datamover  # noqa: F401 - the same
from bench import iscsi, iscsi_cpu, iscsi_loads, iscsi_peers, iscsi_scaling, iscsi_stages
from bench.command import Command
from bench.harness import Measurement, Result
from bench.iscsi_loads import Layout, Shape
from bench.iscsi_peers import Process, Target, Tgt
from bench.peers import PeerFailed
from bench.plan import Plan
from bench.reference_build import ReferenceMissing
from ppe.errors import UsageError
from shm.histogram import Histogram
from tests.bench import running

LOADS = ("qd1_4k", "qd32_4k", "qd32_64k")
KEYS = {
    f"ours_over_{reference}_{op}_{load}"
    for reference in ("libiscsi", "tgt", "floor")
    for op in ("read", "write")
    for load in LOADS
}
KEYS |= {f"ours_over_echo_{op}_{load}" for op in ("read", "write") for load in LOADS[:2]}
KEYS |= {
    f"digests_over_none_{client}_{op}_qd32_64k"
    for client in ("datamover", "stream")
    for op in ("read", "write")
}
KEYS |= {
    f"connections_{count}_over_fewest_{client}_{op}_qd32_4k"
    for count in (2, 4, 8)
    for client in ("datamover", "stream")
    for op in ("read", "write")
}
KEYS |= {
    f"{whose}_cpu_{variant}_{waits}_{rate}"
    for whose in ("host", "total")
    for variant in ("mover", "mover_coalesce_1", "stream", "one_engine")
    for waits in ("spin_over_inline_spin", "sleep_over_inline_sleep", "spin_over_inline_sleep")
    for rate in ("max", "20k", "5k")
}
KEYS |= {"host_cpu_amp_over_inline", "total_cpu_amp_over_inline"}
SPIN = [sys.executable, "-c", "print('{}', flush=True)\nwhile True: pass"]
WAIT_S = 20


def state_of(process):
    """One letter: R runs, S sleeps, T is stopped."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for_state(process, *wanted):
    deadline = time.monotonic() + WAIT_S
    while state_of(process) not in wanted:
        assert time.monotonic() < deadline, f"{process.name} is not in state {wanted}"
        time.sleep(0.005)


@pytest.fixture
def spinner():
    process = Process("a spinner", SPIN, -1)
    try:
        process.read_object()
        yield process
    finally:
        process.close()


@pytest.mark.slow
@pytest.mark.pinned
@pytest.mark.interop("tgtd", "tgtadm", "iscsi-perf", "qemu-img", "gcc")
@pytest.mark.timeout(600)  # the first run compiles initiator, target and engine
def test_a_quick_run_measures_every_ratio_and_leaves_nothing_running(tmp_path, capsys, monkeypatch):
    pids, launch = [], iscsi_peers.subprocess.Popen

    def noted(*arguments, **options):
        started = launch(*arguments, **options)
        pids.append(started.pid)
        return started

    monkeypatch.setattr(iscsi_peers.subprocess, "Popen", noted)
    sockets = set(Path("/var/run/tgtd").glob("socket.*"))
    before = os.sched_getaffinity(0)
    words = ["iscsi", "--quick", "--repeats", "1", "--json", "--out", str(tmp_path)]
    assert running.run(Command(), *words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["ratios"]) == KEYS
    assert all(value is not None and value > 0 for value in printed["ratios"].values())
    assert all("core" in run["placement"] for run in printed["runs"])
    text = " ".join(f"{run['name']} {run['placement']}" for run in printed["runs"])
    for placement in (
        "(stream)",
        "(datamover)",
        "(engine)",
        "(mover)",
        "(mover_coalesce_1)",
        "(one_engine)",
    ):
        assert placement in text
    assert [note for note in printed["notes"] if "engine (mover)" in note and "receive" in note]
    assert len(list(tmp_path.iterdir())) == 1
    assert os.sched_getaffinity(0) == before
    assert len(pids) >= 6, "two targets of ours, a bare server, a tgtd, two engines"
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert set(Path("/var/run/tgtd").glob("socket.*")) <= sockets


def test_every_goal_names_a_ratio_there_is():
    assert {goal.name for goal in iscsi.GOALS} <= KEYS


def test_a_process_runs_inside_its_block_and_is_stopped_outside(spinner):
    spinner.halt()
    wait_for_state(spinner, "T")
    with spinner.running():
        wait_for_state(spinner, "R")
    wait_for_state(spinner, "T")


def test_a_stopped_process_uses_no_cpu_and_a_running_one_does(spinner):
    spinner.halt()
    wait_for_state(spinner, "T")
    stopped = spinner.cpu_ns()
    time.sleep(0.05)
    assert spinner.cpu_ns() == stopped
    deadline = time.monotonic() + WAIT_S
    with spinner.running():
        while spinner.cpu_ns() == stopped:
            assert time.monotonic() < deadline, "it gets no CPU"


def test_a_stopped_process_is_ended_all_the_same(spinner):
    spinner.halt()
    wait_for_state(spinner, "T")
    pid = spinner.pid
    spinner.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_is_pinned_and_unpinned(spinner):
    usable = os.sched_getaffinity(0)
    spinner.pin(min(usable))
    assert os.sched_getaffinity(spinner.pid) == {min(usable)}
    spinner.pin(-1)
    assert os.sched_getaffinity(spinner.pid) == usable


def test_a_process_that_ends_before_it_is_ready_is_quoted():
    process = Process("it", [sys.executable, "-c", "raise SystemExit('no such thing')"], -1)
    try:
        with pytest.raises(PeerFailed, match="it is not ready: no such thing"):
            process.read_object()
    finally:
        process.close()


def test_a_missing_tool_is_a_missing_reference(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(iscsi_peers, "SBIN", str(tmp_path))
    target, layout, shape = (
        Target(None, "iscsi://nowhere", "none", "sleeping"),
        Layout(0, 1),
        Shape(1, 4096),
    )
    with pytest.raises(ReferenceMissing, match="iscsi-perf is not installed"):
        iscsi_loads.iscsi_perf(target, layout, shape, 1)
    with pytest.raises(ReferenceMissing, match="qemu-img is not installed"):
        iscsi_loads.qemu_img(target, layout, "write", shape, 10)
    with pytest.raises(ReferenceMissing, match="tgtd is not installed"):
        Tgt(str(tmp_path), 1)


@pytest.mark.interop("iscsi-perf", "qemu-img")
def test_a_tool_that_reaches_no_target_is_a_missing_reference(spinner):
    target = Target(spinner, "iscsi://127.0.0.1:1/iqn.2026-01.org.example:none/0", "none", "")
    layout, shape = Layout(-1, -1), Shape(1, 4096)
    with pytest.raises(ReferenceMissing, match="iscsi-perf"):
        iscsi_loads.iscsi_perf(target, layout, shape, 1)
    with pytest.raises(ReferenceMissing, match="qemu-img"):
        iscsi_loads.qemu_img(target, layout, "write", shape, 10)


def test_the_last_average_iscsi_perf_says_is_the_one_that_counts():
    said = (
        "00:00:02 - lba 8, iops current 14747 (57 MB/s), iops average 14000 (54 MB/s), "
        "in_flight 32, busy 0\r\n\riops average 27546 (107 MB/s)      \n\nfinished.\n"
    )
    assert iscsi_loads.PERF_AVERAGE.findall(said)[-1] == "27546"


def test_a_histogram_of_the_load_keeps_every_sample_and_its_median():
    histogram = Histogram()
    for value in range(1, 100_001, 7):
        histogram.record(value)
    found = iscsi_loads.latency_of(histogram)
    assert found.count == len(range(1, 100_001, 7))
    assert found.percentile(50) == pytest.approx(50_000, rel=1 / 32)


def bench_with(quick):
    return iscsi.Bench(Plan(0, 1, quick), "", None, iscsi.QUICK, Result("iscsi"))


def runs_of(**values):
    def run(value):
        if value is None:
            raise ReferenceMissing("not here")
        return Measurement("it", value, "IOPS", "core 0")

    return {name: lambda value=value: run(value) for name, value in values.items()}


def test_the_fastest_layout_counts_and_missing_ones_do_not():
    runs = runs_of(gone=None, slow=1.0, fast=3.0, middle=2.0)
    assert bench_with(quick=False).best(runs) is runs["fast"]
    assert bench_with(quick=True).best(runs) is runs["gone"]
    missing = runs_of(one=None, two=None)
    with pytest.raises(ReferenceMissing, match="not here"):
        bench_with(quick=False).best(missing)()


def test_a_target_that_cannot_start_is_tried_once_and_its_reason_kept():
    subject, starts = bench_with(quick=True), []

    def start():
        starts.append(1)
        raise ReferenceMissing("no room")

    for _ in range(3):
        with pytest.raises(ReferenceMissing, match="no room"):
            subject._get("tgt", start)
    assert len(starts) == 1


def test_total_cpu_is_the_sum_over_all_processes():
    cost = {"client": 2.0, "target": 3.5, "engine": 4.0}
    run = Measurement("a read", 1000.0, "IOPS", "core 0", details={"cpu_us_per_io": cost})
    host = iscsi_cpu._as_host_cpu(run)
    total = iscsi_cpu._as_total_cpu(host)
    assert (host.value, total.value) == (2.0, 9.5)
    assert host.details["iops"] == 1000.0
    assert np.isclose(sum(cost.values()), total.value)


def details(client_us, receive_us):
    return {
        "cpu_us_per_io": {"client": client_us, "target": 1.0},
        "wakeups_per_io": {"client": 0.25, "target": 0.0},
        "engine": {
            "useful_us": receive_us,
            "empty_us": 0.5,
            "asleep_us": 0.0,
            "stages_us": {"control": 0.0, "receive": receive_us},
        },
    }


def test_the_notes_say_the_medians_of_each_kind_of_run_and_leave_out_idle_stages():
    runs = [
        Measurement("a read", 1.0, "IOPS", "core 0", details=details(cost, cost / 2))
        for cost in (2.0, 8.0, 4.0)
    ]
    runs.append(Measurement("tgt", 1.0, "IOPS", "core 0"))
    assert iscsi_stages.notes(runs) == [
        "a read; core 0: µs/IO: CPU of client 4.00, target 1.00; the client's engine: "
        "receive 2.00, empty 0.50, asleep 0.00; wake-ups/IO of client 0.25, target 0.00"
    ]


def test_an_engine_s_accounts_are_divided_by_the_commands():
    def snapshot(passes, useful, receive, calls):
        return {
            "passes": passes,
            "useful_us": useful,
            "empty_us": 0.0,
            "asleep_us": 0.0,
            "stages": [{"stage": "receive", "useful_us": receive}],
            "counters": {"receive_calls": calls},
        }

    times = iscsi_stages.EngineTimes([snapshot(10, 5.0, 1.0, 7)], [snapshot(30, 25.0, 6.0, 17)])
    found = times.per_command(10)
    assert (found["passes"], found["useful_us"], found["empty_us"]) == (2.0, 2.0, 0.0)
    assert found["stages_us"] == {"receive": 0.5}
    assert found["counters"] == {"receive_calls": 1.0}


def test_the_accounts_of_an_inline_engine_are_there_and_stay_usable():
    with host.connect("inline:") as handle:
        for _ in range(2):
            with iscsi_stages.watching(handle) as times:
                pass
            assert times.per_command(1)["counters"]["bytes_in"] == 0


def test_a_thread_that_slept_is_counted_as_woken():
    before = iscsi_peers.wakeups_of(os.getpid())
    for _ in range(20):
        time.sleep(0.001)
    assert iscsi_peers.wakeups_of(os.getpid()) >= before + 20


def run_named(calls, name):
    def run():
        calls.append(name)
        return Measurement(name, 1.0, "µs/IO", "core 0")

    return run


def test_every_variant_runs_between_two_runs_of_every_reference():
    calls = []
    references = {name: run_named(calls, name) for name in ("spin", "sleep")}
    ours = {("mover", "spin"): run_named(calls, "mover")}
    theirs, mine = iscsi_cpu.rounds(references, ours, 2)
    assert calls == ["spin", "sleep", "mover", "spin", "sleep", "mover", "spin", "sleep"]
    assert [len(runs) for runs in theirs.values()] == [3, 3]
    assert [len(runs) for runs in mine.values()] == [2]


def test_what_was_tried_before_the_best_was_chosen_stands_in_the_result():
    subject = bench_with(quick=False)
    subject.best(runs_of(gone=None, slow=1.0, fast=3.0))
    assert [run.value for run in subject.result.runs] == [1.0, 3.0] * iscsi.PROBES


def test_a_session_that_fails_is_named_and_not_those_that_waited_for_it():
    target = Target(None, "iscsi://127.0.0.1:1/iqn.2026-01.org.example:none/0", "none", "")
    subject = iscsi_scaling.Connections(Plan(0, 1, True), "stream", 0.01, lambda run: run)
    start = iscsi_scaling.threading.Barrier(2)
    with iscsi_scaling.ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(start.wait, WAIT_S)
        failing = threads.submit(subject._one, target, "read", 1, start)
        with pytest.raises(OSError, match="refused"):
            iscsi_scaling._results([waiting, failing])


@pytest.mark.parametrize("text", ["", "0", "1,two", "33"])
def test_numbers_of_connections_that_are_none_are_refused(text):
    from bench.command import _connections

    with pytest.raises(UsageError, match="from 1 to 32"):
        _connections(text)
    assert _connections("4,1,4") == (1, 4)


def test_the_short_names_stand_for_the_datamover_with_everybody_spinning_flat_out(monkeypatch):
    def run(value, total):
        return Measurement("a read", value, "µs/IO", "c", details={"total_cpu_us_per_io": total})

    def rounds(references, ours, repeats):
        theirs = {idle: [run(10.0, 20.0)] * 2 for idle in references}
        mine = {what: [run(30.0, 40.0)] for what in ours}
        if next(iter(references.values())).args[1] == "max":
            mine["mover", "spin"] = [run(6.0, 25.0)]
        return theirs, mine

    monkeypatch.setattr(iscsi_cpu, "rounds", rounds)
    result = Result("iscsi")
    cpu = iscsi_cpu.Cpu(Plan(0, 1, True), None, {}, 1.0, 0.0)
    iscsi_cpu.measure(result, cpu, dict.fromkeys(iscsi_cpu.IDLES))
    found = {ratio.name: ratio.value for ratio in result.ratios}
    assert len(found) == len(result.ratios)
    assert found["host_cpu_amp_over_inline"] == pytest.approx(0.6)
    assert found["total_cpu_amp_over_inline"] == pytest.approx(1.25)


def test_an_engine_has_both_ends_only_where_that_is_what_is_measured(monkeypatch):
    class FakeEngine:
        idle = "sleep"
        running = staticmethod(contextlib.nullcontext)

        def findable(self):
            return contextlib.nullcontext("engine's name")

    asked = []
    monkeypatch.setattr(iscsi_cpu.Cpu, "_run", lambda _, *what: asked.append(what))
    alone, behind = Target(None, "alone", "", "sleeping"), Target(None, "behind", "", "sleeping")
    cpu = iscsi_cpu.Cpu(Plan(0, 1, True), alone, {"sleep": behind, "spin": None}, 1.0, 0.0)
    for variant in iscsi_cpu.VARIANTS:
        cpu.amp(FakeEngine(), variant, "max")
    at = list(iscsi_cpu.VARIANTS).index(iscsi_cpu.ONE_ENGINE)
    assert [what[0] for what in asked].count(behind) == 1
    assert asked[at][0] is behind
    assert "target (through the same engine)" in asked[at][-1]
