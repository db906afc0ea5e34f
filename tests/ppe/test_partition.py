"""Which CPUs engines get, on machines that only exist as files, and what is said about it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ppe.errors import (
    CpuError,
    CpuOffline,
    CpuOutsideCpuset,
    CpuTaken,
    CpuUnknown,
    NoHousekeepingCpu,
    OperatorError,
    UsageError,
)
from ppe.partition import affinity_lost, choose, parse_wanted, pin_thread, usable_cpus
from ppe.topology import Topology, read_topology
from tests.ppe.fake_machine import build_machine

FOUR_CORES = [(0,), (1,), (2,), (3,)]
TWO_CORES_SMT = [(0, 2), (1, 3)]


def machine(root: Path, cores: list[tuple[int, ...]], **facts: object) -> Topology:
    return read_topology(build_machine(root, cores, **facts))  # type: ignore[arg-type]


def all_of(topology: Topology) -> frozenset[int]:
    return topology.online


def test_cpu_0_is_avoided(tmp_path: Path) -> None:
    topology = machine(tmp_path, [(0,), (1,)])
    partition = choose(topology, all_of(topology))
    assert partition.engine_cpus == (1,)
    assert partition.housekeeping_cpus == (0,)
    assert "not CPU 0" in partition.reasons[0]


def test_an_isolated_cpu_is_preferred_though_the_affinity_hides_it(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES, isolated="2")
    partition = choose(topology, frozenset({0, 1, 3}))
    assert partition.engine_cpus == (2,)
    assert partition.housekeeping_cpus == (0, 1, 3)
    assert "isolated" in partition.reasons[0]
    assert partition.warnings == []


def test_isolated_cpus_do_no_housekeeping_while_others_can(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES, isolated="2-3")
    assert choose(topology, frozenset({0, 1})).housekeeping_cpus == (0, 1)


def test_a_cpu_that_is_not_isolated_is_warned_about(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES)
    assert any("not isolated" in text for text in choose(topology, all_of(topology)).warnings)


def test_two_engines_get_two_cores_not_two_threads_of_one(tmp_path: Path) -> None:
    topology = machine(tmp_path, [(0, 3), (1, 4), (2, 5)])
    partition = choose(topology, all_of(topology), engines=2)
    assert partition.engine_cpus == (1, 2)
    assert partition.housekeeping_cpus == (0, 3), "the engines' siblings stay idle"


def test_a_core_on_which_another_engine_runs_is_avoided(tmp_path: Path) -> None:
    topology = machine(tmp_path, [(0, 3), (1, 4), (2, 5)])
    assert choose(topology, all_of(topology), taken={4: 99}).engine_cpus == (2,)


def test_a_core_with_a_busy_sibling_is_avoided(tmp_path: Path) -> None:
    topology = machine(tmp_path, [(0, 3), (1, 4), (2, 5)])
    assert choose(topology, all_of(topology), busy={4: 0.9}).engine_cpus == (2,)


def test_the_sibling_does_housekeeping_only_when_nothing_else_is_left(tmp_path: Path) -> None:
    topology = machine(tmp_path, [(0, 1)])
    partition = choose(topology, all_of(topology))
    assert partition.engine_cpus == (1,)
    assert partition.housekeeping_cpus == (0,)
    assert any("shares its core" in text for text in partition.warnings)


def test_engines_stay_on_one_numa_node(tmp_path: Path) -> None:
    topology = machine(tmp_path, [(n,) for n in range(6)], nodes=["0-1", "2-5"])
    assert choose(topology, all_of(topology), engines=2).engine_cpus == (2, 3)


def test_engines_cross_nodes_only_when_no_node_is_large_enough(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES, nodes=["0-1", "2-3"])
    partition = choose(topology, all_of(topology), engines=3)
    assert partition.engine_cpus == (1, 2, 3)
    assert any("NUMA" in text for text in partition.warnings)


def test_a_named_cpu_is_taken_as_named(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES)
    assert choose(topology, all_of(topology), "0").engine_cpus == (0,)
    assert choose(topology, all_of(topology), 3).engine_cpus == (3,)
    assert choose(topology, all_of(topology), "3,1", engines=2).engine_cpus == (3, 1)


@pytest.mark.parametrize("wanted", ["x", "1,,2", "1,1", "", "-1", "2-1"])
def test_nonsense_for_a_cpu_is_a_usage_error_that_names_the_flag(wanted: str) -> None:
    with pytest.raises(UsageError, match="--cpu"):
        parse_wanted(wanted)


def test_the_number_of_cpus_must_match_the_engines(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES)
    with pytest.raises(UsageError, match="names 1 CPUs for --engines 2"):
        choose(topology, all_of(topology), "1", engines=2)


def test_an_unknown_cpu_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES)
    with pytest.raises(CpuUnknown, match=r"no CPU 64.*0-3"):
        choose(topology, all_of(topology), "64")


def test_an_offline_cpu_is_refused_with_the_way_to_switch_it_on(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES, offline=frozenset({2}))
    with pytest.raises(CpuOffline) as refused:
        choose(topology, all_of(topology), "2")
    assert "cpu2/online" in refused.value.hint


def test_a_cpu_outside_the_cpuset_is_refused_with_the_file_that_says_so(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES, cpuset="0-1")
    with pytest.raises(CpuOutsideCpuset) as refused:
        choose(topology, frozenset({0, 1}), "3")
    assert "/sys/fs/cgroup/box/cpuset.cpus.effective allows 0-1" in refused.value.hint


def test_without_a_cpuset_the_inherited_affinity_is_the_limit(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES)
    with pytest.raises(CpuOutsideCpuset) as refused:
        choose(topology, frozenset({0, 1}), "3")
    assert "affinity allows 0-1" in refused.value.hint


def test_the_cpuset_bounds_even_isolated_cpus(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES, cpuset="0-1", isolated="3")
    assert usable_cpus(topology, frozenset({0, 1})) == {0, 1}


def test_a_taken_cpu_is_refused_with_its_holder(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES)
    with pytest.raises(CpuTaken, match="pid 4711") as refused:
        choose(topology, all_of(topology), "2", taken={2: 4711})
    assert (refused.value.cpu, refused.value.pid) == (2, 4711)


def test_force_shares_a_taken_cpu_and_says_so(tmp_path: Path) -> None:
    topology = machine(tmp_path, FOUR_CORES)
    partition = choose(topology, all_of(topology), "2", taken={2: 4711}, force=True)
    assert partition.engine_cpus == (2,)
    assert any("4711" in text for text in partition.warnings)


def test_auto_passes_over_taken_cpus_and_refuses_when_none_is_free(tmp_path: Path) -> None:
    topology = machine(tmp_path, [(0,), (1,), (2,)])
    assert choose(topology, all_of(topology), taken={1: 7}).engine_cpus == (2,)
    with pytest.raises(CpuError, match="CPU 1 by pid 7"):
        choose(topology, all_of(topology), taken={0: 5, 1: 7, 2: 9})


def test_force_with_auto_still_prefers_a_free_cpu(tmp_path: Path) -> None:
    topology = machine(tmp_path, [(0,), (1,), (2,)])
    assert choose(topology, all_of(topology), taken={1: 7}, force=True).engine_cpus == (2,)


@pytest.mark.parametrize(
    ("cores", "wanted", "engines", "taken"),
    [
        ([(0,)], "auto", 1, {}),
        ([(0,)], "0", 1, {}),
        ([(0,), (1,)], "auto", 2, {}),
        ([(0,), (1,)], "auto", 1, {1: 7}),
    ],
    ids=["one CPU", "one CPU, named", "an engine on each", "another engine has the rest"],
)
def test_the_last_cpu_is_not_given_to_a_spinner(
    tmp_path: Path,
    cores: list[tuple[int, ...]],
    wanted: str,
    engines: int,
    taken: dict[int, int],
) -> None:
    topology = machine(tmp_path, cores)
    with pytest.raises(NoHousekeepingCpu) as refused:
        choose(topology, all_of(topology), wanted, engines=engines, taken=taken)
    assert "--force" in refused.value.hint
    assert "--idle yield" in refused.value.hint
    for way_out in ({"force": True}, {"idle": "sleep"}, {"idle": "yield"}):
        partition = choose(
            topology, all_of(topology), wanted, engines=engines, taken=taken, **way_out
        )
        assert partition.housekeeping_cpus
        assert any("also serves everything else" in text for text in partition.warnings)


def test_more_engines_than_cpus_are_refused(tmp_path: Path) -> None:
    topology = machine(tmp_path, [(0,), (1,)])
    with pytest.raises(CpuError, match=r"3 engine.*2 of 0-1"):
        choose(topology, all_of(topology), engines=3)


def test_a_pinned_thread_has_not_lost_its_affinity_until_it_is_moved() -> None:
    cpu = min(os.sched_getaffinity(0))
    pinned, stop = threading.Event(), threading.Event()
    tids: list[int] = []

    def run() -> None:
        pin_thread(cpu)
        tids.append(threading.get_native_id())
        pinned.set()
        stop.wait(30)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert pinned.wait(30), "the thread never got pinned"
        assert affinity_lost(tids[0], cpu) is None
        usable = os.sched_getaffinity(0)
        if len(usable) > 1:
            os.sched_setaffinity(tids[0], usable)
            message = affinity_lost(tids[0], cpu)
            assert message is not None
            assert f"taskset -cp {cpu}" in message
    finally:
        stop.set()
        thread.join(30)


def test_a_cpu_gone_offline_is_told_with_the_way_back(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    build_machine(tmp_path, [(cpu,), (cpu + 1,)], offline=frozenset({cpu}))
    message = affinity_lost(threading.get_native_id(), cpu, tmp_path)
    assert message is not None
    assert f"CPU {cpu} went offline" in message


def test_a_rewritten_cpuset_is_told_with_its_file(tmp_path: Path) -> None:
    build_machine(tmp_path, FOUR_CORES, cpuset="0")
    message = affinity_lost(threading.get_native_id(), 3, tmp_path)
    assert message is not None
    assert "box/cpuset.cpus.effective now says 0" in message


def test_the_affinity_of_a_thread_that_ended_is_lost() -> None:
    # A process, because its number is free once it is reaped; a joined thread may still linger.
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(30)
    message = affinity_lost(process.pid, 0)
    assert message is not None
    assert "gone" in message


def test_pinning_to_a_cpu_that_does_not_exist_is_an_operators_error() -> None:
    with pytest.raises(OperatorError, match="cannot pin to CPU 9999"):
        pin_thread(9999)
