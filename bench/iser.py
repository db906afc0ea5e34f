"""`ppe bench iser`: iSER over software iWARP against iSCSI over TCP, between our initiator and our
target, on one engine and LUN.

The one rule: both sides have the same protection: both digests against MPA's CRC, or neither.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Final

from bench import iscsi_stages
from bench.harness import Measurement, Ratio, Result, Run, interleave, ratio_of
from bench.iscsi import CLIENTS, DISTURBED_MAX, FULL, OPS, QUICK, Bench
from bench.iscsi_loads import Layout, Shape
from bench.iscsi_peers import LUN_BYTES
from bench.iscsi_scaling import SHAPE as SHARED_SHAPE
from bench.iscsi_scaling import Connections
from bench.plan import Goal, Plan
from iscsi.wire.iser.registration import REGISTRATIONS

PROTECTIONS: Final = {"digests": True, "nocrc": False}  # in the keys: whether there is one
HEADLINE: Final = Shape(32, 65536)
DEPTHS: Final = tuple(Shape(depth, 4096) for depth in (1, 4, 16, 64))
SIZES: Final = tuple(Shape(32, size) for size in (512, 4096, 16384, 65536, 262144))
SHAPES: Final = (*DEPTHS, Shape(1, 65536), *SIZES)
BARE_SHAPES: Final = (Shape(1, 4096), Shape(32, 4096), HEADLINE)  # without protection
CPU_SHAPES: Final = tuple(Shape(32, size) for size in (512, 4096, 65536))
REGISTRATION_SHAPES: Final = (Shape(32, 4096), HEADLINE)
RDMA_CLIENT: Final = "datamover"  # over RDMA the engine makes the PDUs
NANOSECONDS_US: Final = 1e3


def shapes(protection: str) -> tuple[Shape, ...]:
    """The loads that run with this protection."""
    return SHAPES if PROTECTIONS[protection] else BARE_SHAPES


def key(what: str, protection: str, op: str, shape: Shape) -> str:
    """Name of a ratio: `what` is iops, latency or cpu."""
    return f"{what}_iser_over_tcp_{protection}_{op}_{shape.name}"


def initiators_key(count: int, op: str) -> str:
    """Name of the ratio of IOPS of so many initiators."""
    return f"initiators_{count}_iser_over_tcp_digests_{op}_{SHARED_SHAPE.name}"


def registration_key(name: str, op: str, shape: Shape) -> str:
    """Name of the ratio of IOPS with a strategy / with a tag for each command."""
    return f"registration_{name.replace('-', '_')}_over_per_io_{op}_{shape.name}"


def headline_key(protection: str) -> str:
    """The short name of the goal's ratio."""
    return {"digests": "iser_over_tcp_digests_64k", "nocrc": "iser_nocrc_over_tcp_64k"}[protection]


def _goals() -> Iterator[Goal]:
    both = {"digests": "CRC / both digests", "nocrc": "no CRC / no digests"}
    for protection, says in both.items():
        text = f"{HEADLINE.name}, the lesser of read and write: iSER, {says}"
        yield Goal(headline_key(protection), "≥", 1.0, text)
        for op in OPS:
            name = key("iops", protection, op, HEADLINE)
            yield Goal(name, "≥", 1.0, f"{op}: iSER, {says}")


GOALS: Final = tuple(_goals())
METHOD: Final = (
    f"a closed loop over loopback on one LUN of {LUN_BYTES >> 20} MiB in memory, at random "
    "addresses; one target process and engine has a portal for TCP and one for iSER; our initiator "
    "is inline, and both spin, on a core each",
    "equal protection: digests: CRC32C of headers and data over TCP, MPA's CRC over iWARP; "
    "nocrc: neither",
    "over TCP our initiator makes its PDUs itself (stream) or its engine does (datamover): the "
    "better one counts, tried before in rounds (with --quick the first); over iSER the engine does",
    "bandwidth is IOPS times size: its ratio is the same; latency: medians of the same runs",
    "cpu: both sides sleep, process clocks of both together for one command",
    f"initiators: sessions with a thread and an inline engine each, all on core a, sleeping; "
    f"{SHARED_SHAPE.depth} commands outstanding over all of them",
    "registration: how the initiator opens its buffers, without a CRC; they are those of its "
    "commands outstanding, used again and again, which suits those that keep tags",
    "a target not in use is stopped (SIGSTOP); a run during which other processes took more than "
    f"{DISTURBED_MAX:.0%} of a core is made again, at most twice, and the least disturbed counts",
)


def measure(plan: Plan) -> Result:
    """Run the whole benchmark. Raises PeerFailed or BenchmarkFailed when our own side fails."""
    sizes = QUICK if plan.quick else FULL
    config = {**plan.config(), **asdict(sizes), "lun_bytes": LUN_BYTES}
    result = Result("iser", config, (plan.a, plan.b), plan.clock())
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ppe-bench-"))
        bench = Bench(plan, folder, stack, sizes, result)
        for protection in PROTECTIONS:
            found = {op: _loads(result, bench, protection, op) for op in OPS}
            result.ratios.append(_lesser(headline_key(protection), list(found.values())))
        for op in OPS:
            for shape in CPU_SHAPES:
                _cpu(result, bench, op, shape)
            _initiators(result, bench, op)
            for shape in REGISTRATION_SHAPES:
                _registrations(result, bench, op, shape)
    told = [run for run in result.runs if f" {HEADLINE.name}" in run.name]
    result.notes += iscsi_stages.notes(told)
    return result


def _sides(
    bench: Bench, idle: str, op: str, shape: Shape, *, has_digests: bool
) -> tuple[Run, dict[str, Run]]:
    """Our initiator over iSER, and in each of its placements over TCP."""
    layout = Layout(bench.plan.a, bench.plan.b, idle, RDMA_CLIENT, has_digests)
    tcp = partial(bench.over_both, idle)
    over_tcp = {
        client: bench.load(tcp, replace(layout, placement=client), op, shape, True)
        for client in reversed(CLIENTS)
    }
    return bench.load(lambda: tcp().over_rdma, layout, op, shape, True), over_tcp


def _loads(result: Result, bench: Bench, protection: str, op: str) -> Ratio:
    """IOPS and latency at every depth and size; the ratio of the headline's IOPS."""
    headline = None
    for shape in shapes(protection):
        bench.plan.say(f"iSER against TCP, {protection}, {op} {shape.name}")
        ours, theirs = _sides(bench, "spin", op, shape, has_digests=PROTECTIONS[protection])
        runs, ratio = interleave(
            key("iops", protection, op, shape), ours, bench.best(theirs), bench.plan.repeats
        )
        result.runs += runs
        name = key("latency", protection, op, shape)
        over_tcp, over_rdma = runs[0::2], runs[1::2]
        result.ratios += [ratio, ratio_of(name, _latencies(over_rdma), _latencies(over_tcp))]
        headline = ratio if shape == HEADLINE else headline
    assert headline is not None, "the headline's shape is among them"
    return headline


def _lesser(name: str, ratios: Sequence[Ratio]) -> Ratio:
    """A ratio that all keep: the one with the least median, under another name."""
    missing = next((ratio for ratio in ratios if ratio.value is None), None)
    if missing is not None:
        return Ratio.missing(name, missing.reason or "")
    return replace(min(ratios, key=lambda ratio: ratio.value or 0.0), name=name)


def _latencies(runs: Sequence[Measurement]) -> list[Measurement]:
    """The same runs with their median latency as the headline."""
    found = []
    for run in runs:
        assert run.latency is not None, "every load keeps its latencies"
        value = run.latency.percentile(50) or 0.0
        name = f"latency, {run.name}"
        found.append(replace(run, name=name, value=value / NANOSECONDS_US, unit="us", details={}))
    return found


def _cpu(result: Result, bench: Bench, op: str, shape: Shape) -> None:
    """What a command costs both sides together in CPU time."""
    bench.plan.say(f"CPU for a command, {op} {shape.name}")
    ours, theirs = _sides(bench, "sleep", op, shape, has_digests=True)
    runs, ratio = interleave(
        key("cpu", "digests", op, shape),
        _costing(ours),
        _costing(bench.best(theirs)),
        bench.plan.repeats,
    )
    result.runs += runs
    result.ratios.append(ratio)


def _costing(run: Run) -> Run:
    """The same run with the CPU time of all its processes as the headline."""

    def measured() -> Measurement:
        found = run()
        cost = sum(found.details["cpu_us_per_io"].values())
        details = {**found.details, "iops": found.value}
        name = f"total CPU, {found.name}"
        return replace(found, name=name, value=cost, unit="µs/IO", details=details)

    return measured


def _initiators(result: Result, bench: Bench, op: str) -> None:
    """Several initiators at once."""
    plan, seconds, quietly = bench.plan, bench.sizes.seconds, bench.quietly
    over_rdma = Connections(plan, RDMA_CLIENT, seconds, quietly, has_digests=True)
    for count in plan.connections:
        plan.say(f"{count} initiators, {op} {SHARED_SHAPE.name}")
        target = bench.over_both("spin")
        over_tcp = {
            client: quietly(partial(replace(over_rdma, client=client).run, target, op, count))
            for client in reversed(CLIENTS)
        }
        result.pair(
            initiators_key(count, op),
            quietly(partial(over_rdma.run, target.over_rdma, op, count)),
            bench.best(over_tcp),
            plan.repeats,
        )


def _registrations(result: Result, bench: Bench, op: str, shape: Shape) -> None:
    """Each way of opening buffers against a tag for each command."""
    layout = Layout(bench.plan.a, bench.plan.b, "spin", RDMA_CLIENT)

    def load(name: str) -> Run:
        chosen = replace(layout, registration=name)
        return bench.load(lambda: bench.over_both("spin").over_rdma, chosen, op, shape, True)

    reference, *others = REGISTRATIONS
    for name in others:
        bench.plan.say(f"registration: {name} against {reference}, {op} {shape.name}")
        key = registration_key(name, op, shape)
        result.pair(key, load(name), load(reference), bench.plan.repeats)
