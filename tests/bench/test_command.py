"""`ppe bench` from end to end on its quickest plan, and the flags it refuses."""

import json
import os
from argparse import Namespace
from functools import partial

import pytest

from bench import command, cores
from bench.command import Command
from ppe.errors import OperatorError, UsageError
from tests.bench import running

KEYS = {
    "queue": {
        "ring_rtt_over_floor",
        "ring_rtt_over_cpp_spsc",
        "engine_rtt_over_ring",
        "ring_bytes_over_memcpy",
        "python_ops_over_iceoryx2",
    },
    "wait": {"wake_over_futex", "wake_over_futex_split", "wakes_per_op_times_n"},
    "engine": {
        "cycle_256_clients_over_1",
        "cycle_256_polled_clients_over_1",
        "cycle_1024_connections_over_1",
    },
}


run = partial(running.run, Command())


@pytest.mark.slow
@pytest.mark.pinned
@pytest.mark.timeout(400)  # the first run compiles the duty cycle, in two processes
@pytest.mark.parametrize("name", list(KEYS))
def test_a_quick_run_prints_every_ratio_and_keeps_its_result(name, tmp_path, capsys):
    before = os.sched_getaffinity(0)
    assert run(name, "--quick", "--repeats", "1", "--json", "--out", str(tmp_path)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["ratios"]) == KEYS[name]
    for key, value in printed["ratios"].items():
        reason = printed["ratio_details"][key]["reason"]
        assert (value is None) == (reason is not None), key
        assert value is None or value > 0
    saved = json.loads((tmp_path / os.path.basename(printed["saved"])).read_text())  # noqa: PTH119
    assert saved["ratios"] == printed["ratios"]
    assert saved["runs"]
    assert os.sched_getaffinity(0) == before


@pytest.mark.slow
@pytest.mark.pinned
@pytest.mark.timeout(400)
def test_no_wait_takes_more_wake_ups_than_one(tmp_path, capsys):
    assert run("wait", "--quick", "--repeats", "1", "--json", "--no-save") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["saved"] is None
    assert printed["ratios"]["wakes_per_op_times_n"] <= 1
    rings = [r for r in printed["runs"] if "ring, N=" in r["name"]]
    assert len(rings) == 7
    for ring in rings:
        # Each wait was seen asleep before its last post, so it needed its one wake-up.
        assert ring["value"] == 1
        assert ring["details"]["not_asleep"] == 0


def test_a_benchmark_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setitem(command.BENCHMARKS, "iscsi", ("bench.not_written", "nothing yet"))
    with pytest.raises(OperatorError) as caught:
        run("iscsi")
    assert "'iscsi' is not part of this version" in caught.value.message
    assert "queue" in caught.value.hint


def test_repeats_below_one_are_refused():
    with pytest.raises(UsageError):
        run("queue", "--repeats", "0")


@pytest.mark.parametrize("text", ["0", "0,0", "a,b", "0,1,2", "0,99999", ""])
def test_cores_that_are_no_two_usable_cpus_are_refused(text):
    with pytest.raises(UsageError):
        cores.choose(text)


def test_pinning_ends_with_its_block():
    before = os.sched_getaffinity(0)
    with cores.pinned(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_comparing_a_file_that_is_no_result_says_so(tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(OperatorError) as caught:
        Command().run(Namespace(benchmark="compare", before=other, after=other, json=True))
    assert "other.json" in caught.value.message
