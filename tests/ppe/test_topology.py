"""The topology is what the files say, on any machine they describe."""

from pathlib import Path

import pytest

from ppe.topology import (
    boot_parameter,
    format_cpu_list,
    parse_cpu_list,
    read_topology,
)
from tests.ppe.fake_machine import build_machine, write_files


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", set()), ("3", {3}), ("0-2,5", {0, 1, 2, 5}), ("7, 1", {1, 7}), ("4-4", {4})],
)
def test_a_cpu_list_is_read_in_the_kernels_form(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["a", "3-1", "-1", "(null)", "1--3", "0-99999999"])
def test_what_is_no_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|invalid literal"):
        parse_cpu_list(text)


def test_a_cpu_list_is_written_in_the_kernels_form() -> None:
    assert format_cpu_list({5, 0, 1, 2, 9, 10}) == "0-2,5,9-10"
    assert format_cpu_list(frozenset()) == "none"


def test_siblings_isolation_and_nodes_are_read(tmp_path: Path) -> None:
    build_machine(tmp_path, [(0, 2), (1, 3)], isolated="3", nohz_full="3", nodes=["0,2", "1,3"])
    topology = read_topology(tmp_path)
    cpu = topology.cpu(3)
    assert cpu is not None
    assert (cpu.siblings, cpu.isolated, cpu.nohz_full, cpu.node) == ((1,), True, True, 1)
    assert topology.online == {0, 1, 2, 3}
    assert topology.isolated == {3}
    assert topology.nodes == (0, 1)
    assert topology.cpu(4) is None


def test_an_offline_cpu_is_known_but_not_online(tmp_path: Path) -> None:
    topology = read_topology(build_machine(tmp_path, [(0,), (1,)], offline=frozenset({1})))
    assert topology.online == {0}
    assert topology.cpu(1) is not None


def test_null_in_nohz_full_means_no_cpu(tmp_path: Path) -> None:
    topology = read_topology(build_machine(tmp_path, [(0,), (1,)], nohz_full="(null)"))
    assert not any(cpu.nohz_full for cpu in topology.cpus)


def test_nohz_full_is_taken_from_the_boot_line_when_sysfs_is_silent(tmp_path: Path) -> None:
    build_machine(tmp_path, [(0,), (1,)], files={"proc/cmdline": "quiet nohz_full=1 ro"})
    topology = read_topology(tmp_path)
    assert [cpu.nohz_full for cpu in topology.cpus] == [False, True]
    assert boot_parameter("ro", tmp_path) == ""
    assert boot_parameter("isolcpus", tmp_path) is None


def test_the_nearest_cpuset_above_the_process_decides(tmp_path: Path) -> None:
    topology = read_topology(build_machine(tmp_path, [(0,), (1,), (2,)], cpuset="1-2"))
    assert topology.cpuset == {1, 2}
    assert topology.cpuset_file == "/sys/fs/cgroup/box/cpuset.cpus.effective"


def test_the_cpuset_of_cgroup_version_1_is_found(tmp_path: Path) -> None:
    build_machine(tmp_path, [(0,), (1,)])
    write_files(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpuset:/docker/abc\n0::/",
            "sys/fs/cgroup/cpuset/docker/abc/cpuset.effective_cpus": "0",
        },
    )
    topology = read_topology(tmp_path)
    assert topology.cpuset == {0}
    assert topology.cpuset_file == "/sys/fs/cgroup/cpuset/docker/abc/cpuset.effective_cpus"


def test_a_cgroup_outside_the_view_falls_back_to_the_root_of_the_view(tmp_path: Path) -> None:
    build_machine(tmp_path, [(0,), (1,)])
    write_files(
        tmp_path,
        {"proc/self/cgroup": "0::/../../x", "sys/fs/cgroup/cpuset.cpus.effective": "1"},
    )
    assert read_topology(tmp_path).cpuset == {1}


def test_a_machine_that_tells_nothing_of_cpusets_has_none(tmp_path: Path) -> None:
    topology = read_topology(build_machine(tmp_path, [(0,)]))
    assert topology.cpuset is None
    assert topology.cpuset_file == ""


def test_this_machine_has_the_cpus_it_runs_on() -> None:
    import os

    assert os.sched_getaffinity(0) <= read_topology().online
