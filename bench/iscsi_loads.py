"""One run of one initiator against one target, or of the C floor: each gives IOPS.

The one rule: both sides of a ratio see the same queue depth, size, order of addresses and LUN size;
whatever a tool cannot do (iscsi-perf: writes, qemu-img: random addresses) is done by neither.
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import host
from bench import reference_build
from bench.cores import pinned
from bench.harness import Latency, Measurement, Run
from bench.iscsi_peers import BLOCK, Process, Target, wakeups_of
from bench.iscsi_stages import watching
from bench.reference_build import ReferenceMissing
from bench.samples import BenchmarkFailed
from iscsi.session import blockdev
from iscsi.session.blockdev import BlockDevice
from iscsi.session.perf import Load, LoadPlan, LoadResult
from iscsi.wire.keys import DIGEST_CRC32C, Proposal
from iscsi.wire.url import parse_url
from ppe.cputime import parse_stat
from shm.histogram import Histogram, lowest_of

BHS_LENGTH: Final = 48
WARM_UP_SHARE: Final = 0.15
TOOL_TIMEOUT_S: Final = 60
PERF_AVERAGE: Final = re.compile(r"iops average\s+(\d+)")
QEMU_SECONDS: Final = re.compile(r"Run completed in ([0-9.]+) seconds")
FLOOR_SECONDS_MAX: Final = 5
QUIET_SAMPLE_S: Final = 0.03
QUIET_BUSY_TICKS: Final = 1  # of 10 ms, on either core


@dataclass(frozen=True, slots=True)
class Shape:
    """A load: commands outstanding and bytes of each."""

    depth: int
    size: int

    @property
    def name(self) -> str:
        """As it stands in the keys."""
        size = f"{self.size >> 10}k" if self.size >= 1024 else f"{self.size}b"
        return f"qd{self.depth}_{size}"

    @property
    def blocks(self) -> int:
        """Blocks of one command."""
        return self.size // BLOCK


@dataclass(frozen=True, slots=True)
class Layout:
    """Where client and target run (negative: anywhere), how our client waits, where its PDUs are
    made (`placement`), and whether they have digests; over iSER, whether there is a CRC.
    """

    client: int
    target: int
    idle: str = "spin"
    placement: str = "stream"
    has_digests: bool = False
    registration: str = "auto"  # over iSER: how buffers are opened to the target

    @property
    def options(self) -> dict[str, Any]:
        """For `blockdev.open`."""
        crc = (DIGEST_CRC32C,)
        proposal = Proposal(header_digest=crc, data_digest=crc) if self.has_digests else Proposal()
        return {
            "placement": self.placement,
            "proposal": proposal,
            "mpa_crc": self.has_digests,
            "registration": self.registration,
        }

    @property
    def waits(self) -> str:
        """How our client waits, for people."""
        return "spinning" if self.idle == "spin" else "sleeping"

    def __str__(self) -> str:
        def place(core: int) -> str:
            return f"core {core}" if core >= 0 else "unpinned"

        return f"client {place(self.client)}, target {place(self.target)}"


def our_client(
    target: Target, layout: Layout, op: str, shape: Shape, seconds: float, *, is_random: bool
) -> Measurement:
    """IOPS of our initiator, inline in this process."""
    target.process.pin(layout.target)
    with (
        target.process.running(),
        pinned(layout.client),
        open_device(target, f"inline:?idle={layout.idle}", shape, **layout.options) as device,
    ):
        result, details = load_on(
            device, op, shape, seconds, is_random=is_random, others={"target": target.process}
        )
    protected = ", CRC" if is_iser(target.url) else ", both digests"
    digests = protected if layout.has_digests else ""
    if layout.registration != "auto":
        digests += f", {layout.registration}"
    return measurement_of(
        f"our initiator inline ({layout.placement}), {target.name}, {op} {shape.name}{digests}",
        f"{layout}; client {layout.waits}, target {target.waits}",
        op,
        result,
        details,
    )


def is_iser(url: str) -> bool:
    """Whether that is reached over RDMA."""
    return parse_url(url).is_iser


@contextlib.contextmanager
def open_device(
    target: Target, engine: str, shape: Shape, **options: Any
) -> Iterator[tuple[BlockDevice, Any]]:
    """A device on the target's LUN through an engine, and that engine's handle."""
    with (
        host.connect(engine) as handle,
        blockdev.open(target.url, handle, queue_depth=shape.depth, **options) as device,
    ):
        yield device, handle


def load_on(
    device: tuple[BlockDevice, Any],
    op: str,
    shape: Shape,
    seconds: float,
    *,
    is_random: bool,
    others: Mapping[str, Process],
    rate: float = 0,
) -> tuple[LoadResult, dict[str, Any]]:
    """Run a closed loop, or a load of `rate` a second, on an open device and its engine's handle.
    Its result, and details that explain it.

    CPU time is this process's and that of the `others`, each in µs for one command.
    """
    unit, handle = device
    plan = LoadPlan(
        blocks=shape.blocks,
        seconds=seconds * WARM_UP_SHARE,
        warm_up_s=0,
        random=is_random,
        write_percent=100 if op == "write" else 0,
        rate=rate,
    )
    _run_load(unit, plan)
    with watching(handle) as engine:
        before = {name: process.cpu_ns() for name, process in others.items()}
        woken = _wakeups(others)
        result = _run_load(unit, replace(plan, seconds=seconds))
        woken = {name: count - woken[name] for name, count in _wakeups(others).items()}
        used = {name: process.cpu_ns() - before[name] for name, process in others.items()}
    if result.commands == 0:
        raise BenchmarkFailed(f"no {op} of {shape.name} ended within {seconds} s")
    cpu_ns = {"client": int(result.cpu_s * 1e9), **used}
    details = {
        "order": "random" if is_random else "sequential",
        "cpu_us_per_io": {name: ns / result.commands / 1e3 for name, ns in cpu_ns.items()},
        "cpu_share": {name: ns / (result.seconds * 1e9) for name, ns in cpu_ns.items()},
        "waits_per_io": result.waits / result.commands,
        "wakeups_per_io": {name: count / result.commands for name, count in woken.items()},
        "engine": engine.per_command(result.commands),
    }
    return result, details


def _wakeups(others: Mapping[str, Process]) -> dict[str, int]:
    mine = {"client": wakeups_of(os.getpid())}
    return mine | {name: process.wakeups() for name, process in others.items()}


def _run_load(device: BlockDevice, plan: LoadPlan) -> LoadResult:
    load = Load(device, plan)
    try:
        return load.run()
    finally:
        load.close()


def measurement_of(
    name: str, placement: str, op: str, result: LoadResult, details: dict[str, Any]
) -> Measurement:
    """Make the measurement of a load's result."""
    histogram = result.write_latency if op == "write" else result.read_latency
    return Measurement(name, result.iops, "IOPS", placement, latency_of(histogram), details)


def latency_of(histogram: Histogram) -> Latency:
    """Take a log-linear histogram of nanoseconds."""
    counts = histogram.counts
    used = [int(bucket) for bucket in counts.nonzero()[0]]
    return Latency.from_bins([(lowest_of(b), lowest_of(b + 1), int(counts[b])) for b in used])


def iscsi_perf(target: Target, layout: Layout, shape: Shape, seconds: float) -> Measurement:
    """IOPS of libiscsi's iscsi-perf, random reads. Raises ReferenceMissing."""
    command = [_find("iscsi-perf"), "-r", "-m", str(shape.depth), "-b", str(shape.blocks)]
    # It takes whole seconds, and reports once a second.
    command += ["-t", str(max(1, round(seconds))), target.url]
    text, cpu_s = _run_tool(target, layout, command)
    found = PERF_AVERAGE.findall(text)
    if not found:
        raise ReferenceMissing(f"iscsi-perf says no average: {text.strip()[-200:]}")
    return Measurement(
        f"iscsi-perf, {target.name}, read {shape.name}",
        float(found[-1]),
        "IOPS",
        f"{layout}; client sleeping in poll(2), target {target.waits}",
        details={"order": "random", "client_cpu_s": cpu_s},
    )


def qemu_img(target: Target, layout: Layout, op: str, shape: Shape, count: int) -> Measurement:
    """IOPS of libiscsi inside QEMU's block driver, sequential. Raises ReferenceMissing."""
    command = [_find("qemu-img"), "bench", "-f", "raw", "-t", "none", "-c", str(count)]
    command += ["-d", str(shape.depth), "-s", str(shape.size), *(["-w"] if op == "write" else [])]
    text, cpu_s = _run_tool(target, layout, [*command, target.url])
    found = QEMU_SECONDS.search(text)
    if found is None or float(found[1]) <= 0:
        raise ReferenceMissing(f"qemu-img bench says no time: {text.strip()[-200:]}")
    return Measurement(
        f"qemu-img bench (libiscsi), {target.name}, {op} {shape.name}",
        count / float(found[1]),
        "IOPS",
        f"{layout}; client sleeping in poll(2), target {target.waits}",
        details={
            "order": "sequential",
            "client_cpu_s": cpu_s,
            "commands": count,
            "note": "libiscsi driven by QEMU's block layer in the qemu-img process",
        },
    )


def _run_tool(target: Target, layout: Layout, command: list[str]) -> tuple[str, float]:
    """Run a client to its end. Its output and CPU seconds. Raises ReferenceMissing."""
    target.process.pin(layout.target)
    before = os.times()
    try:
        with target.process.running(), pinned(layout.client):
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TOOL_TIMEOUT_S,
                check=False,
                errors="replace",
            )
    except subprocess.TimeoutExpired as error:
        raise ReferenceMissing(f"{command[0]} did not end in {TOOL_TIMEOUT_S} s") from error
    after = os.times()
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-200:]
        raise ReferenceMissing(f"{Path(command[0]).name} failed ({done.returncode}): {said}")
    cpu_s = after.children_user + after.children_system
    return done.stdout, cpu_s - before.children_user - before.children_system


def _find(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ReferenceMissing(f"{program} is not installed")
    return path


def floor(cores: tuple[int, int], op: str, shape: Shape, count: int, chunk: int) -> Measurement:
    """IOPS of the C program that moves as many bytes, both ends polling. Raises ReferenceMissing.

    Reads are one Data-In with status, writes one command with immediate data: what our two sides
    negotiate for both sizes (MaxRecvDataSegmentLength and FirstBurstLength are 256 KiB).
    """
    small, large = BHS_LENGTH, BHS_LENGTH + shape.size
    request, response = (large, small) if op == "write" else (small, large)
    printed = reference_build.run(
        "tcp_floor",
        a=cores[0],
        b=cores[1],
        seconds=FLOOR_SECONDS_MAX,
        samples=count,
        warmup=max(count // 10, shape.depth),
        depth=shape.depth,
        chunk=chunk,
        request=request,
        response=response,
    )
    return Measurement(
        f"tcp_floor, {op} {shape.name}",
        float(printed["iops"]),
        "IOPS",
        f"client core {cores[0]}, server core {cores[1]}; both polling, chunk {chunk >> 10} KiB",
        Latency.from_reference(printed["latency_ns"]),
        {key: value for key, value in printed.items() if key != "latency_ns"},
    )


def await_quiet(cores: tuple[int, int], limit_s: float) -> float:
    """Wait, at most so long, until nothing else keeps the cores busy. Seconds waited."""
    start = time.monotonic()
    while time.monotonic() - start < limit_s:
        before = parse_stat(Path("/proc/stat").read_text())
        time.sleep(QUIET_SAMPLE_S)
        after = parse_stat(Path("/proc/stat").read_text())
        if all(after[core].busy - before[core].busy <= QUIET_BUSY_TICKS for core in cores):
            break
    return time.monotonic() - start


def with_disturbance(run: Run, cores: tuple[int, int], others: Sequence[Process]) -> Measurement:
    """Run, and add to the details what share of a core processes that are not ours took meanwhile.

    From the cores' ticks of 10 ms, stolen ones included, less the CPU time of this process, of
    those it waited for, and of `others` that live on. What it started and still runs is not known.
    """
    start, before, mine = time.monotonic(), _busy_s(cores), _own_s(others)
    found = run()
    elapsed = time.monotonic() - start
    foreign = _busy_s(cores) - before - (_own_s(others) - mine)
    details = {**found.details, "disturbed": round(max(foreign, 0.0) / elapsed, 3)}
    return replace(found, details=details)


def _busy_s(cores: tuple[int, int]) -> float:
    ticks = parse_stat(Path("/proc/stat").read_text())
    return sum(ticks[core].busy for core in cores) / os.sysconf("SC_CLK_TCK")


def _own_s(others: Sequence[Process]) -> float:
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    return total + sum(process.cpu_ns() for process in others) / 1e9
