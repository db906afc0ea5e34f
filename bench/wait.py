"""`ppe bench wait`: what a wake-up through `wait_n` costs, and how few of them it takes.

The one rule: only waits that slept are timed, and ours is measured in every layout in which the raw
futex is.
"""

from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import Final

import numpy as np

from bench import reference_build, samples
from bench.cores import pinned
from bench.engine_workers import nops_by_wait
from bench.harness import Measurement, Ratio, Result, Run, best_layout
from bench.peers import Peer, peer
from bench.plan import Goal, Plan
from bench.private_engine import HostEnd
from bench.reference_build import ReferenceMissing
from bench.ring_pair import Side, make_pair
from bench.wait_workers import STAT_SIZE, wake_rounds

SETTLE_US: Final = 10
COUNTS: Final = (1, 2, 4, 8, 16, 32, 64)
ENGINE_ROUNDS: Final = 200
SECONDS_MAX: Final = 20
GOALS: Final = (
    Goal("wake_over_futex", "≤", 1.1, "wait_n wake-up / raw futex wake-up, best layout of each"),
    Goal("wake_over_futex_split", "≤", 1.1, "the same, waker and sleeper on different cores"),
    Goal("wakes_per_op_times_n", "≤", 1.0, "wake-ups per operation × N, the worst N"),
)
METHOD: Final = (
    "two processes; the sleeper is seen asleep in /proc, then 10 µs pass; from the waker's clock "
    "before its post to the sleeper's clock after waking; spin 0; waits that did not sleep dropped",
    "wake-ups: N posts one at a time, each followed by the look for a waiter, to a sleeper in "
    f"wait_n(N), for N in {COUNTS}; then the same through a spinning engine with nops",
)


@dataclass(slots=True)
class Bench:
    """What the measurements of this benchmark share."""

    plan: Plan
    side: Side
    peer: Peer
    host: HostEnd

    def layouts(self) -> dict[str, tuple[int, int]]:
        """Where waker and sleeper run; -1 for wherever the scheduler likes."""
        a, b = self.plan.a, self.plan.b
        return {"split": (a, b), "same core": (a, a), "unpinned": (-1, -1)}

    def wake(self, layout: str, n: int = 1, rounds: int | None = None) -> Measurement:
        """Wake a sleeper in wait_n(n), again and again."""
        a, b = self.layouts()[layout]
        rounds = rounds or self.plan.wakes
        descriptor = self.side.segment.descriptor
        self.side.reset()
        self.peer.ask("reset", descriptor=descriptor)
        deadline_ns = monotonic_ns() + SECONDS_MAX * 1_000_000_000
        taken_ns, line = np.zeros(rounds, np.int64), np.zeros(STAT_SIZE, np.uint8)
        self.peer.tell(
            "sleep_rounds",
            descriptor=descriptor,
            core=b,
            rounds=rounds,
            n=n,
            deadline_ns=deadline_ns,
        )
        with Path(f"/proc/{self.peer.pid}/stat").open("rb") as stat, pinned(a):
            taken = wake_rounds(
                self.side.address,
                stat.fileno(),
                line.ctypes.data,
                taken_ns.ctypes.data,
                rounds,
                rounds // 20,
                n,
                SETTLE_US * 1000,
                deadline_ns,
            )
        samples.check(self.peer.answer())
        wakes = int(self.side.state["waker"]["wakes"])
        return samples.from_ns(
            f"wake-up, wait_n({n})",
            taken_ns[: samples.check(taken)],
            _placement(layout, a, b),
            wakes=wakes,
            operations=rounds * n,
            not_asleep=rounds - rounds // 20 - taken,
        )

    def wakes_times_n(self, n: int, through_engine: bool) -> Measurement:
        """Wake-ups per operation times n."""
        if through_engine:
            return self._engine_wakes(n)
        run = self.wake("split", n, max(self.plan.wakes // 10, 20))
        value = run.details["wakes"] / run.details["operations"] * n
        return Measurement(
            f"wake-ups × N, ring, N={n}", value, "wakes", run.placement, run.latency, run.details
        )

    def _engine_wakes(self, n: int) -> Measurement:
        plan = self.plan
        self.peer.ask("engine_start")
        slept = self.host.channel.counts["sleeps"]
        try:
            before = self.peer.ask("engine_counts")
            with pinned(plan.a):
                deadline_ns = monotonic_ns() + SECONDS_MAX * 1_000_000_000
                done = nops_by_wait(self.host.context, ENGINE_ROUNDS, n, deadline_ns)
        finally:
            after = self.peer.ask("engine_stop")
        details = {
            "wakes": after["wakes"] - before["wakes"],
            "operations": samples.check(done),
            "sleeps": self.host.channel.counts["sleeps"] - slept,
        }
        value = details["wakes"] / details["operations"] * n
        placement = f"cores {plan.a} and {plan.b}, engine spinning"
        return Measurement(
            f"wake-ups × N, engine, N={n}", value, "wakes", placement, details=details
        )


def measure(plan: Plan) -> Result:
    """Run the whole benchmark. Raises PeerFailed or BenchmarkFailed when our own side fails."""
    result = Result("wait", plan.config(), (plan.a, plan.b), plan.clock())
    side, host = Side(make_pair(), True), HostEnd()
    try:
        with peer((side.segment.descriptor, host.segment.descriptor, host.bell)) as other:
            other.ask("prepare", module="bench.wait_workers")
            other.ask(
                "engine_open", core=plan.b, descriptor=host.segment.descriptor, bell=host.bell
            )
            bench = Bench(plan, side, other, host)
            _measure_wakes(result, bench)
            _measure_counts(result, bench)
    finally:
        host.close()
        side.close()
    return result


def _measure_wakes(result: Result, bench: Bench) -> None:
    plan = bench.plan
    plan.say("wake-ups against the raw futex, each in its best layout")
    _, ours = best_layout(
        {layout: _wake(bench, layout) for layout in bench.layouts()}, lower_is_better=True
    )
    futexes = {layout: _futex(bench, layout) for layout in bench.layouts()}
    try:
        _, reference = best_layout(futexes, lower_is_better=True)
    except ReferenceMissing:
        reference = futexes["split"]
    result.pair("wake_over_futex", ours, reference, plan.repeats)
    plan.say("wake-ups against the raw futex, on different cores")
    result.pair(
        "wake_over_futex_split", _wake(bench, "split"), _futex(bench, "split"), plan.repeats
    )


def _measure_counts(result: Result, bench: Bench) -> None:
    bench.plan.say("wake-ups per operation")
    runs = [
        bench.wakes_times_n(n, through_engine) for through_engine in (False, True) for n in COUNTS
    ]
    result.runs.extend(runs)
    values = tuple(run.value for run in runs)
    worst = max(runs, key=lambda run: run.value)
    result.ratios.append(
        Ratio(
            "wakes_per_op_times_n",
            worst.value,
            min(values),
            max(values),
            values,
            worst.name,
            "1/N",
        )
    )


def _wake(bench: Bench, layout: str) -> Run:
    return lambda: bench.wake(layout)


def _futex(bench: Bench, layout: str) -> Run:
    a, b = bench.layouts()[layout]

    def run() -> Measurement:
        rounds = bench.plan.wakes
        printed = reference_build.run(
            "futex_wake",
            a=a,
            b=b,
            seconds=SECONDS_MAX,
            settle_us=SETTLE_US,
            samples=rounds - rounds // 20,
            warmup=rounds // 20,
        )
        return samples.from_reference("wake-up, raw futex", printed, _placement(layout, a, b))

    return run


def _placement(layout: str, a: int, b: int) -> str:
    return layout if a < 0 else f"{layout}: waker on {a}, sleeper on {b}"
