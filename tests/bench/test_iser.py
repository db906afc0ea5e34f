"""`ppe bench iser`: every key has a value, both sides are named, and nothing it started is left."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import host.inline  # noqa: F401 - compiles while tests are collected, where no timeout runs
import iscsi.session.doors  # noqa: F401 - the same
import ppe.cycle.services.iser
import ppe.cycle.services.rdma  # noqa: F401 - the same
from bench import iscsi_peers, iser
from bench.command import Command
from bench.harness import Latency, Measurement, Ratio
from bench.iscsi_loads import Layout, Shape
from tests.bench import running

OPS = ("read", "write")
PROTECTED = (
    *("qd1_4k", "qd4_4k", "qd16_4k", "qd64_4k", "qd1_64k"),
    *("qd32_512b", "qd32_4k", "qd32_16k", "qd32_64k", "qd32_256k"),
)
BARE = ("qd1_4k", "qd32_4k", "qd32_64k")
LOADS = {
    f"{what}_iser_over_tcp_{protection}_{op}_{load}"
    for what in ("iops", "latency")
    for protection, loads in (("digests", PROTECTED), ("nocrc", BARE))
    for load in loads
    for op in OPS
}
KEYS = LOADS | {"iser_over_tcp_digests_64k", "iser_nocrc_over_tcp_64k"}
KEYS |= {
    f"cpu_iser_over_tcp_digests_{op}_qd32_{size}" for op in OPS for size in ("512b", "4k", "64k")
}
KEYS |= {f"initiators_{count}_iser_over_tcp_digests_{op}_qd32_4k" for op in OPS for count in (1, 2)}

KEYS |= {
    f"registration_{name}_over_per_io_{op}_qd32_{size}"
    for name in ("window", "cache", "pool")
    for op in OPS
    for size in ("4k", "64k")
}


@pytest.mark.slow
@pytest.mark.pinned
@pytest.mark.timeout(600)  # many short runs, each with a login
def test_a_quick_run_measures_every_ratio_and_leaves_nothing_running(tmp_path, capsys, monkeypatch):
    pids, launch = [], iscsi_peers.subprocess.Popen

    def noted(*arguments, **options):
        started = launch(*arguments, **options)
        pids.append(started.pid)
        return started

    monkeypatch.setattr(iscsi_peers.subprocess, "Popen", noted)
    before = os.sched_getaffinity(0)
    words = ["iser", "--quick", "--repeats", "1", "--connections", "1,2", "--json"]
    assert running.run(Command(), *words, "--out", tmp_path) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["ratios"]) == KEYS
    assert all(value is not None and value > 0 for value in printed["ratios"].values())
    named = {run["name"] for run in printed["runs"]}
    for op in OPS:
        for loads, theirs, ours in ((PROTECTED, ", both digests", ", CRC"), (BARE, "", "")):
            for load in loads:
                tcp = f"our initiator inline (stream), our target (engine), {op} {load}{theirs}"
                assert tcp in named
                rdma = f"(datamover), our target (engine) over iSER, {op} {load}{ours}"
                assert f"our initiator inline {rdma}" in named
    assert all("core" in run["placement"] for run in printed["runs"])
    assert [note for note in printed["notes"] if "over iSER" in note and "receive" in note]
    assert len(list(tmp_path.iterdir())) == 1
    assert os.sched_getaffinity(0) == before
    assert len(pids) >= 2, "a target that spins and one that sleeps"
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_every_goal_names_a_ratio_there_is():
    assert {goal.name for goal in iser.GOALS} <= KEYS
    assert {(goal.sign, goal.bound) for goal in iser.GOALS} == {("≥", 1.0)}


def test_equal_protection_is_both_digests_or_a_crc_and_neither_or_none():
    protected, bare = Layout(0, 1, has_digests=True).options, Layout(0, 1).options
    assert protected["proposal"].data_digest == protected["proposal"].header_digest == ("CRC32C",)
    assert protected["mpa_crc"]
    assert bare["proposal"].data_digest == bare["proposal"].header_digest == ("None",)
    assert not bare["mpa_crc"]


def test_the_headline_is_the_lesser_of_read_and_write():
    read, write = Ratio("read", 1.25, 1.2, 1.3, (1.25,)), Ratio("write", 0.75, 0.7, 0.8, (0.75,))
    assert iser._lesser("both", [read, write]) == replace(write, name="both")
    missing = Ratio.missing("write", "no reason")
    assert iser._lesser("both", [read, missing]) == Ratio.missing("both", "no reason")


def test_latencies_are_the_medians_of_the_same_runs():
    latency = Latency.from_bins([(1000, 1000, 3), (5000, 5000, 8)])
    run = Measurement("a load", 1e5, "IOPS", "core 0", latency, {"engine": {}})
    (found,) = iser._latencies([run])
    assert (found.name, found.value, found.unit) == ("latency, a load", 5.0, "us")
    assert found.details == {}


def test_a_size_below_a_kilobyte_is_named_in_bytes():
    assert [Shape(32, size).name for size in (512, 4096)] == ["qd32_512b", "qd32_4k"]
