"""Each check of the doctor tells a good machine from a bad one, and says what to change."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppe import cli, cpulock
from ppe.cputime import CpuTicks, busy_fractions, busy_now, parse_stat
from ppe.cycle.rnic.verbs import library
from ppe.doctor import (
    BAD,
    CHECKS,
    OK,
    UNKNOWN,
    WARN,
    Finding,
    Machine,
    cores,
    examine,
    limits,
    verbs,
)
from ppe.doctor.machine import (
    CAP_IPC_LOCK,
    CAP_PERFMON,
    ProcessFacts,
    Sample,
    SpinReport,
    observe,
    parse_interrupts,
    spin_on,
)
from ppe.topology import read_topology
from tests.ppe.fake_machine import build_machine

MIB = 1 << 20
SYS_CPU = "sys/devices/system/cpu"
THP = "sys/kernel/mm/transparent_hugepage"
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"


def fake(
    root: Path,
    files: Mapping[str, str] | None = None,
    *,
    cores: list[tuple[int, ...]] | None = None,
    isolated: str = "",
    nohz_full: str | None = None,
    nodes: tuple[str, ...] = (),
    **facts: Any,
) -> Machine:
    """A machine whose engine is on CPU 1 and whose hosts are on CPU 0."""
    build_machine(
        root,
        cores or [(0,), (1,)],
        isolated=isolated,
        nohz_full=nohz_full,
        nodes=nodes,
        files=files,
    )
    facts.setdefault("housekeeping", (0,))
    facts.setdefault("seconds", 0.2)
    return Machine(cpu=1, topology=read_topology(root), root=root, **facts)


def ticks(busy: int, idle: int, stolen: int = 0) -> CpuTicks:
    return CpuTicks(busy, stolen, busy + idle)


def samples(before: dict[int, CpuTicks], after: dict[int, CpuTicks]) -> dict[str, Sample]:
    return {"before": Sample(before, {}), "after": Sample(after, {})}


def interrupts(before: int, after: int, name: str = "31") -> dict[str, Sample]:
    key = (name, "PCI-MSIX 1-edge eth0")
    return {
        "before": Sample({}, {key: {0: 5, 1: before}}),
        "after": Sample({}, {key: {0: 5, 1: after}}),
    }


Check = Callable[[Machine], Finding]


@pytest.mark.parametrize(
    ("check", "files", "facts", "status", "said"),
    [
        (cores.check_placement, {}, {}, OK, "CPU 1 for an engine, 0 for the rest"),
        (cores.check_placement, {}, {"housekeeping": (1,)}, WARN, "CPU 1"),
        (cores.check_placement, {}, {"refusal": "CPU 1 is taken"}, BAD, "CPU 1 is taken"),
        (cores.check_placement, {}, {"holder": 42}, OK, "pid 42"),
        (cores.check_stolen_time, {}, {}, UNKNOWN, "refused"),
        (cores.check_stolen_time, {}, {"holder": 42}, UNKNOWN, "pid 42"),
        (
            cores.check_stolen_time,
            {},
            {"spin": SpinReport(200_000_000, 1, 20_000, 20_000, 0)},
            OK,
            "1 gaps",
        ),
        (
            cores.check_stolen_time,
            {},
            {"spin": SpinReport(200_000_000, 9, 2_000_000, 900_000, 3)},
            WARN,
            "preempted 3 times",
        ),
        (
            cores.check_stolen_time,
            {"proc/cpuinfo": "flags : fpu hypervisor"},
            {"spin": SpinReport(200_000_000, 9, 20_000_000, 9_000_000, 0)},
            BAD,
            "10.00% lost",
        ),
        (cores.check_hypervisor_steal, {}, {}, UNKNOWN, "/proc/stat"),
        (
            cores.check_hypervisor_steal,
            {},
            samples({1: ticks(0, 1000)}, {1: ticks(5, 1015)}),
            OK,
            "0.0% now",
        ),
        (
            cores.check_hypervisor_steal,
            {},
            samples({1: ticks(0, 1000)}, {1: ticks(10, 1010, stolen=5)}),
            BAD,
            "25.0% now",
        ),
        (cores.check_isolated, {}, {}, WARN, "isolated: none"),
        (cores.check_isolated, {}, {"isolated": "1"}, OK, "isolated"),
        (cores.check_timer_tick, {}, {}, WARN, "tick"),
        (cores.check_timer_tick, {}, {"nohz_full": "1"}, OK, "without a tick"),
        (cores.check_timer_tick, {}, interrupts(0, 50, "LOC"), WARN, "250 timer interrupts/s"),
        (cores.check_rcu_callbacks, {"proc/cmdline": "quiet"}, {}, WARN, "CPU 1"),
        (cores.check_rcu_callbacks, {"proc/cmdline": "rcu_nocbs=1-3"}, {}, OK, "elsewhere"),
        (cores.check_rcu_callbacks, {"proc/cmdline": "rcu_nocbs=0"}, {}, WARN, "CPU 1"),
        (cores.check_rcu_callbacks, {"proc/cmdline": "rcu_nocbs=all"}, {}, OK, "elsewhere"),
        (cores.check_rcu_callbacks, {"proc/cmdline": "rcu_nocbs=x"}, {}, UNKNOWN, "rcu_nocbs=x"),
        (cores.check_rcu_callbacks, {}, {"nohz_full": "1"}, OK, "elsewhere"),
        (cores.check_interrupts, {}, {}, UNKNOWN, "not readable"),
        (cores.check_interrupts, {}, interrupts(7, 7), OK, "none from devices"),
        (cores.check_interrupts, {}, interrupts(7, 8), OK, "31 (eth0) ×1"),
        (cores.check_interrupts, {}, interrupts(7, 107), WARN, "31 (eth0) ×100"),
        (cores.check_governor, {}, {}, UNKNOWN, "no cpufreq"),
        (
            cores.check_governor,
            {f"{SYS_CPU}/cpu1/cpufreq/scaling_governor": "performance"},
            {},
            OK,
            "performance",
        ),
        (
            cores.check_governor,
            {f"{SYS_CPU}/cpu1/cpufreq/scaling_governor": "powersave"},
            {},
            WARN,
            "powersave",
        ),
        (cores.check_numa, {}, {}, OK, "one node"),
        (cores.check_numa, {}, {"nodes": ("0", "1")}, WARN, "no CPU left"),
        (
            cores.check_numa,
            {"proc/sys/kernel/numa_balancing": "1"},
            {"nodes": ("0", "1")},
            WARN,
            "numa_balancing",
        ),
        (limits.check_clock_source, {}, {}, UNKNOWN, "clocksource0"),
        (
            limits.check_clock_source,
            {CLOCK: "tsc", "proc/cpuinfo": "flags : constant_tsc nonstop_tsc"},
            {},
            OK,
            "constant_tsc, nonstop_tsc",
        ),
        (limits.check_clock_source, {CLOCK: "hpet"}, {}, BAD, "system call"),
        (limits.check_realtime_throttling, {}, {}, UNKNOWN, "no sched_rt"),
        (limits.check_cpu_quota, {}, {}, OK, "none"),
        (
            limits.check_cpu_quota,
            {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "50000 100000"},
            {},
            BAD,
            "/sys/fs/cgroup/a/cpu.max allows 0.50",
        ),
        (
            limits.check_cpu_quota,
            {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000"},
            {},
            OK,
            "none",
        ),
        (
            limits.check_cpu_quota,
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/d\n0::/",
                "sys/fs/cgroup/cpu/d/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/d/cpu.cfs_period_us": "100000",
            },
            {},
            BAD,
            "cpu.cfs_quota_us allows 2.00",
        ),
        (limits.check_huge_pages, {}, {}, OK, "none"),
        (
            limits.check_huge_pages,
            {
                "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "8",
                "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "6",
            },
            {},
            OK,
            "6 of 8 of 2 MiB free",
        ),
        (limits.check_transparent_huge_pages, {}, {}, OK, "not in this kernel"),
        (
            limits.check_transparent_huge_pages,
            {f"{THP}/enabled": "[always] never", f"{THP}/defrag": "[always] madvise"},
            {},
            WARN,
            "compaction",
        ),
        (
            limits.check_transparent_huge_pages,
            {f"{THP}/enabled": "always [madvise] never", f"{THP}/defrag": "always [madvise]"},
            {},
            OK,
            "madvise",
        ),
        (limits.check_perf, {}, {}, UNKNOWN, "no perf"),
        (limits.check_perf, {"proc/sys/kernel/perf_event_paranoid": "2"}, {}, WARN, "=2"),
        (limits.check_perf, {"proc/sys/kernel/perf_event_paranoid": "-1"}, {}, OK, "=-1"),
        (
            limits.check_perf,
            {"proc/sys/kernel/perf_event_paranoid": "3"},
            {"process": ProcessFacts(capabilities=1 << CAP_PERFMON)},
            OK,
            "may anyway",
        ),
    ],
)
def test_a_check_tells_good_from_bad(
    tmp_path: Path,
    check: Check,
    files: Mapping[str, str],
    facts: dict[str, Any],
    status: str,
    said: str,
) -> None:
    finding = check(fake(tmp_path, files, **facts))
    assert (finding.status, said in finding.detail) == (status, True), finding
    if status in {WARN, BAD}:
        assert finding.fix, "a complaint without a remedy"
        assert "\n" not in finding.fix


@pytest.mark.parametrize(
    ("process", "check", "status"),
    [
        (ProcessFacts(memlock_limit=8 * MIB), limits.check_locked_memory, BAD),
        (ProcessFacts(memlock_limit=64 * MIB), limits.check_locked_memory, WARN),
        (ProcessFacts(memlock_limit=-1), limits.check_locked_memory, OK),
        (
            ProcessFacts(memlock_limit=0, capabilities=1 << CAP_IPC_LOCK),
            limits.check_locked_memory,
            OK,
        ),
        (ProcessFacts(nofile_limit=1024), limits.check_open_files, WARN),
        (ProcessFacts(nofile_limit=65536), limits.check_open_files, OK),
        (ProcessFacts(), limits.check_shared_memory, BAD),
        (ProcessFacts(shm_total=64 * MIB, shm_free=63 * MIB), limits.check_shared_memory, BAD),
        (ProcessFacts(shm_total=900 * MIB, shm_free=300 * MIB), limits.check_shared_memory, WARN),
        (ProcessFacts(shm_total=900 * MIB, shm_free=800 * MIB), limits.check_shared_memory, OK),
        (ProcessFacts(io_uring_errno=errno.EFAULT), limits.check_io_uring, OK),
        (ProcessFacts(io_uring_errno=errno.EPERM), limits.check_io_uring, WARN),
        (ProcessFacts(io_uring_errno=errno.ENOSYS), limits.check_io_uring, WARN),
        (ProcessFacts(), limits.check_io_uring, UNKNOWN),
    ],
)
def test_limits_of_the_process_are_graded(
    tmp_path: Path, process: ProcessFacts, check: Check, status: str
) -> None:
    finding = check(fake(tmp_path, process=process))
    assert finding.status == status, finding
    assert bool(finding.fix) == (status in {WARN, BAD})


@pytest.mark.parametrize(
    ("policy", "runtime", "status"),
    [
        (os.SCHED_OTHER, "950000", OK),
        (os.SCHED_FIFO, "950000", BAD),
        (os.SCHED_FIFO, "-1", OK),
    ],
)
def test_real_time_throttling_matters_to_real_time_threads_only(
    tmp_path: Path, policy: int, runtime: str, status: str
) -> None:
    files = {
        "proc/sys/kernel/sched_rt_runtime_us": runtime,
        "proc/sys/kernel/sched_rt_period_us": "1000000",
    }
    machine = fake(tmp_path, files, process=ProcessFacts(policy=policy))
    assert limits.check_realtime_throttling(machine).status == status


@pytest.mark.parametrize(
    ("layout", "isolated", "busy", "status"),
    [
        ([(0,), (1,)], "", 0, OK),
        ([(0, 2), (1, 3)], "", 0, WARN),
        ([(0, 2), (1, 3)], "", 90, BAD),
        ([(0, 2), (1, 3)], "1,3", 0, OK),
        ([(0, 2), (1, 3)], "1,3", 90, BAD),
    ],
)
def test_a_sibling_is_judged_by_its_load_and_its_isolation(
    tmp_path: Path, layout: list[tuple[int, ...]], isolated: str, busy: int, status: str
) -> None:
    watched = samples({3: ticks(0, 0)}, {3: ticks(busy, 100 - busy)})
    finding = cores.check_smt_sibling(fake(tmp_path, cores=layout, isolated=isolated, **watched))
    assert finding.status == status
    if status == BAD:
        assert "CPU 3 90% busy" in finding.detail
        assert "cpu3/online" in finding.fix


@pytest.mark.parametrize(("disabled", "status"), [("0", WARN), ("1", OK)])
def test_the_deepest_idle_state_in_use_decides(tmp_path: Path, disabled: str, status: str) -> None:
    states = {"state0": ("POLL", "0", "0"), "state1": ("C6", "133", disabled)}
    files = {
        f"{SYS_CPU}/cpu0/cpuidle/{state}/{file}": text
        for state, facts in states.items()
        for file, text in zip(("name", "latency", "disable"), facts, strict=True)
    }
    finding = cores.check_idle_states(fake(tmp_path, files))
    assert finding.status == status
    assert ("C6" in finding.detail) == (status == WARN)


def test_an_io_uring_switched_off_names_its_setting(tmp_path: Path) -> None:
    machine = fake(
        tmp_path,
        {"proc/sys/kernel/io_uring_disabled": "2"},
        process=ProcessFacts(io_uring_errno=errno.EPERM),
    )
    assert limits.check_io_uring(machine).fix == "sysctl kernel.io_uring_disabled=0"


def test_no_check_fails_on_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    machine = Machine(cpu=1, topology=read_topology(tmp_path), root=tmp_path)
    findings = examine(machine)
    assert len(findings) == len(CHECKS)
    assert len({finding.name for finding in findings}) == len(CHECKS)


def test_proc_stat_is_read_by_cpu_number() -> None:
    text = (
        "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 40 5 6 7 8 0 0\ncpu2 0 0 0 10 0 0 0 0 0 0\n\nctxt 5"
    )
    parsed = parse_stat(text)
    assert parsed == {0: CpuTicks(busy=27, stolen=8, total=72), 2: CpuTicks(0, 0, 10)}
    later = {0: CpuTicks(37, 8, 92), 2: CpuTicks(0, 0, 10), 3: CpuTicks(1, 0, 1)}
    assert busy_fractions(parsed, later) == {0: 0.5}


def test_proc_interrupts_is_read_by_cpu_number() -> None:
    text = (
        "           CPU0       CPU2\n"
        "  9:          3          4   IO-APIC   9-fasteoi   acpi\n"
        "LOC:        100        200   Local timer interrupts\n"
        "ERR:          7\n"
        "MIS:          0\n"
    )
    assert parse_interrupts(text) == {
        ("9", "IO-APIC 9-fasteoi acpi"): {0: 3, 2: 4},
        ("LOC", "Local timer interrupts"): {0: 100, 2: 200},
    }
    assert parse_interrupts("") == {}


def test_spinning_puts_the_affinity_back_and_reports_its_window() -> None:
    before = os.sched_getaffinity(0)
    report = spin_on(min(before), 5)
    assert report is not None
    assert report.window_ns >= 5_000_000
    assert 0 <= report.lost_ns <= report.window_ns
    assert os.sched_getaffinity(0) == before
    assert spin_on(9999, 5) is None
    assert os.sched_getaffinity(0) == before


def test_a_cpu_with_an_engine_is_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(*_: object) -> None:
        raise AssertionError("the doctor spun on an engine's CPU")

    monkeypatch.setattr("ppe.doctor.machine.spin_on", spin)
    assert observe(0, holder=42, sample_ms=1).spin is None


def test_the_load_of_this_machine_is_between_nothing_and_everything() -> None:
    assert all(0 <= load <= 1 for load in busy_now(50).values())


def test_the_command_prints_one_json_object_with_every_check(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["findings"]) == len(CHECKS)
    assert sum(report["summary"].values()) == len(CHECKS)
    assert {"name", "status", "detail", "fix"} == set(report["findings"][0])


def test_the_command_prints_the_remedy_below_each_complaint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = fake(tmp_path, {CLOCK: "hpet"})
    monkeypatch.setattr("ppe.commands.doctor.visit", lambda cpu: machine)
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "✗ clock source" in shown
    assert "→ echo tsc" in shown
    assert cli.main(["doctor", "--strict"]) == 1


def test_a_cpu_that_does_not_exist_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--cpu", "9999"]) == 2
    assert "--cpu 9999" in capsys.readouterr().err


def test_the_doctor_looks_at_a_held_cpu_without_refusing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cpulock.DIRECTORY_VARIABLE, str(tmp_path / "locks"))
    cpu = max(os.sched_getaffinity(0))
    with cpulock.claim(cpu):
        assert cli.main(["doctor", "--json", "--cpu", str(cpu)]) == 0
    findings = {f["name"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert f"pid {os.getpid()}" in findings["stolen time"]["detail"]


def test_the_doctor_speaks_even_where_no_engine_could_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    topology = replace(read_topology(build_machine(tmp_path, [(0,)])), cpuset=frozenset({0}))
    monkeypatch.setattr("ppe.commands.doctor.read_topology", lambda: topology)
    monkeypatch.setattr("ppe.commands.doctor.allowed_cpus", lambda: frozenset({0}))
    assert cli.main(["doctor", "--json"]) == 0
    assert cli.main(["doctor", "--json", "--strict"]) == 1
    assert "would leave no CPU for anything else" in capsys.readouterr().out


RDMA = {
    "sys/class/infiniband/siw0/node_type": "4: RNIC",
    "sys/class/infiniband_verbs/uverbs0/dev": "231:192",
    "sys/class/misc/rdma_cm/dev": "10:124",
}
LOADED = library.Library(library.FOUND, "pyverbs in /somewhere")
ABSENT = library.Library(library.MISSING, "pyverbs is not installed", library.APT_FIX)
OLD = library.explain("symbol x version IBVERBS_PRIVATE_59 not defined in libibverbs", Path("/p"))


@pytest.mark.parametrize(
    ("without", "pyverbs", "status", "said", "fix"),
    [
        ("sys/class/infiniband/", None, OK, "runs in software", ""),
        ("nothing", LOADED, OK, "siw0; pyverbs in /somewhere", ""),
        ("nothing", ABSENT, WARN, "siw0, but the engine cannot", "apt-get install python3-pyverbs"),
        ("nothing", OLD, WARN, "rdma-core 59", "pip uninstall pyverbs; apt-get install"),
        ("nothing", None, WARN, "not looked for", "apt-get install"),
        ("sys/class/infiniband_verbs/", LOADED, WARN, "no ib_uverbs", "modprobe ib_uverbs"),
        ("sys/class/misc/", LOADED, WARN, "no rdma_ucm", "modprobe rdma_ucm"),
    ],
)
def test_rdma_devices_are_named_with_what_they_lack(
    tmp_path: Path,
    without: str,
    pyverbs: library.Library | None,
    status: str,
    said: str,
    fix: str,
):
    files = {name: text for name, text in RDMA.items() if not name.startswith(without)}
    finding = verbs.check_verbs(fake(tmp_path, files, process=ProcessFacts(pyverbs=pyverbs)))
    assert (finding.status, said in finding.detail) == (status, True), finding
    assert finding.fix.startswith(fix)
