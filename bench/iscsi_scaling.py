"""What digests cost, and what several connections bring.

The one rule: commands outstanding are the same in number however many connections share them, so a
ratio shows the connections and not a deeper queue.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from threading import BrokenBarrierError
from typing import Any, Final

from bench.cores import pinned
from bench.harness import Measurement, Result, Run, interleave
from bench.iscsi_loads import WARM_UP_SHARE, Layout, Shape, open_device
from bench.iscsi_peers import Target
from bench.plan import Goal, Plan
from bench.samples import BenchmarkFailed
from iscsi.session.perf import Load, LoadPlan, LoadResult

DIGEST_SHAPE: Final = Shape(32, 65536)
SHAPE: Final = Shape(32, 4096)  # of all connections together
START_TIMEOUT_S: Final = 60
METHOD: Final = (
    "digests: CRC32C of headers and data on against off, one placement and layout on both sides",
    f"connections: sessions with a thread and an inline engine each, all on core a, sleeping; the "
    f"target (engine) spins on core b; {SHAPE.depth} commands outstanding over all of them",
)


def digests_key(client: str, op: str) -> str:
    """Name of the ratio with digests / without, for one placement of the initiator."""
    return f"digests_over_none_{client}_{op}_{DIGEST_SHAPE.name}"


def connections_key(count: int, client: str, op: str) -> str:
    """Name of the ratio of so many connections / the fewest, for one placement of the initiator."""
    return f"connections_{count}_over_fewest_{client}_{op}_{SHAPE.name}"


def goals() -> Iterator[Goal]:
    """What digests may cost."""
    for client in ("datamover", "stream"):
        for op in ("read", "write"):
            says = f"{op}, initiator {client}: both digests / none"
            yield Goal(digests_key(client, op), "≥", 0.85, says)


@dataclass(frozen=True, slots=True)
class Connections:
    """The loads of several connections of initiators placed as `client` says. `quietly` makes a run
    again that others disturb. `has_digests`: as of a `Layout`.
    """

    plan: Plan
    client: str
    seconds: float
    quietly: Callable[[Run], Run]
    has_digests: bool = False

    def measure(self, result: Result, target: Target, op: str) -> None:
        """Add the ratio of each number of connections over the fewest: in rounds, each of which
        begins and ends with the fewest.
        """
        fewest, *more = self.plan.connections
        loads = {
            count: self.quietly(partial(self.run, target, op, count))
            for count in self.plan.connections
        }
        for count in more:
            self.plan.say(f"{count} connections ({self.client}), {op} {SHAPE.name}")
            name = connections_key(count, self.client, op)
            runs, ratio = interleave(name, loads[count], loads[fewest], self._repeats)
            result.runs += runs
            result.ratios.append(ratio)
        if not more:
            result.runs += [loads[fewest]() for _ in range(self._repeats)]

    @property
    def _repeats(self) -> int:
        return min(self.plan.repeats, 3)

    def run(self, target: Target, op: str, count: int) -> Measurement:
        """IOPS of so many connections together."""
        a, b = self.plan.a, self.plan.b
        target.process.pin(b)
        start = threading.Barrier(count)
        work = partial(self._one, target, op, max(SHAPE.depth // count, 1), start)
        with target.process.running(), pinned(a), ThreadPoolExecutor(count) as threads:
            cpu, target_cpu = time.process_time_ns(), target.process.cpu_ns()
            found = _results([threads.submit(work) for _ in range(count)])
            used = {
                "client": time.process_time_ns() - cpu,
                "target": target.process.cpu_ns() - target_cpu,
            }
        commands = sum(one.commands for one in found)
        if commands == 0:
            raise BenchmarkFailed(f"no {op} over {count} connections ended")
        noun = "connection" if count == 1 else "connections"
        return Measurement(
            f"{count} {noun}, our initiator inline ({self.client}), {target.name}, "
            f"{op} {SHAPE.name}",
            sum(one.iops for one in found),
            "IOPS",
            f"clients core {a}, target core {b}; clients sleeping, target {target.waits}",
            details={
                "depth_of_each": max(SHAPE.depth // count, 1),
                "iops_of_each": [one.iops for one in found],
                "cpu_s_with_login_and_warm_up": {name: ns / 1e9 for name, ns in used.items()},
            },
        )

    def _one(self, target: Target, op: str, depth: int, start: threading.Barrier) -> LoadResult:
        """One session in a thread of its own. A failure ends the wait of the others."""
        try:
            shape = Shape(depth, SHAPE.size)
            layout = Layout(self.plan.a, self.plan.b, "sleep", self.client, self.has_digests)
            with open_device(target, "inline:?idle=sleep", shape, **layout.options) as (unit, _):
                _load(unit, op, self.seconds * WARM_UP_SHARE)
                start.wait(START_TIMEOUT_S)
                return _load(unit, op, self.seconds)
        except BaseException:
            start.abort()
            raise


def _results(working: list[Future[LoadResult]]) -> list[LoadResult]:
    """What all of them found. Raises what one failed with, rather than that the others waited."""
    wait(working)
    failures = [one.exception() for one in working]
    for failure in sorted(filter(None, failures), key=lambda e: isinstance(e, BrokenBarrierError)):
        raise failure
    return [one.result() for one in working]


def _load(unit: Any, op: str, seconds: float) -> LoadResult:
    plan = LoadPlan(
        blocks=SHAPE.blocks,
        seconds=seconds,
        warm_up_s=0,
        random=True,
        write_percent=100 if op == "write" else 0,
    )
    load = Load(unit, plan)
    try:
        return load.run()
    finally:
        load.close()
