"""`ppe bench queue`: round trips and throughput of the ring, against C, C++ and iceoryx2.

Each figure is the median of ratios of neighbours in time. The one rule: both sides do the same work
per entry, with the same clock reads, on the same two cores.
"""

import os
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, Final

import numpy as np

from bench import reference_build, samples
from bench.cores import pinned
from bench.engine_workers import nop_trips
from bench.harness import Measurement, Ratio, Result, Run, best_layout
from bench.peers import Peer, peer
from bench.plan import Goal, Plan
from bench.private_engine import HostEnd
from bench.python_calls import (
    WAYS,
    open_service,
    send_to_iceoryx2,
    send_to_ring,
    sweep_iceoryx2,
)
from bench.reference_build import ReferenceMissing
from bench.ring_pair import Side, make_pair
from bench.workers import ask, consume
from shm.records import SLOT_SIZE

GROUP: Final = 16  # round trips per clock read, on every side
BURST: Final = 32
BURSTS_PER_SAMPLE: Final = 16
SECONDS_MAX: Final = 10
GOALS: Final = (
    Goal("ring_rtt_over_floor", "≤", 1.35, "ring round trip / one flag per direction in C"),
    Goal("ring_rtt_over_cpp_spsc", "≤", 0.9, "ring round trip / C++ SPSC queue"),
    Goal("engine_rtt_over_ring", "≤", 1.5, "post → engine → completion / ring round trip"),
    Goal("ring_bytes_over_memcpy", "≥", 0.5, "ring bytes/s / memcpy between the cores"),
    Goal("python_ops_over_iceoryx2", "≥", 3.0, "interpreted Python, batch 1 / iceoryx2's binding"),
)
METHOD: Final = (
    f"round trips are timed {GROUP} at a time with one read of the time-stamp counter, on both "
    "sides alike; warm-up discarded; full round trips, not halves",
    "ring and references: two processes (the C++ queue: two threads), one pinned to each core, "
    "both polling without pause; engine: its thread pinned and spinning, the host polling",
    f"throughput: 64-byte slots, of which 56 are payload, in bursts of {BURST}; batches of the "
    "same bytes for memcpy; the best of several buffer counts counts for memcpy",
    "Python: two interpreted processes, one way, the entry's number written to and read from its "
    "56-byte payload, order checked; iceoryx2's fastest call and placement count",
)


@dataclass(slots=True)
class Bench:
    """What the measurements of this benchmark share."""

    plan: Plan
    side: Side
    peer: Peer
    host: HostEnd

    @property
    def polling(self) -> str:
        """How runs on the plan's two cores are labelled."""
        return f"cores {self.plan.a} and {self.plan.b}, polling"

    def ring_trip(self) -> Measurement:
        """Round trips through two rings."""
        plan = self.plan
        self._fresh()
        ticks = np.zeros(plan.trips, np.int64)
        self.peer.tell("answer", descriptor=self.side.segment.descriptor, core=plan.b)
        with pinned(plan.a):
            taken = ask(
                self.side.address,
                ticks.ctypes.data,
                plan.trips,
                plan.trips // 10,
                GROUP,
                _deadline(),
            )
        samples.check(self.peer.answer())
        return samples.from_ticks(
            "ring round trip", ticks[: samples.check(taken)], GROUP, self.polling
        )

    def engine_trip(self) -> Measurement:
        """Nops to the engine and back."""
        plan = self.plan
        ticks = np.zeros(plan.trips, np.int64)
        self.peer.ask("engine_start")
        try:
            with pinned(plan.a):
                taken = nop_trips(
                    self.host.context,
                    ticks.ctypes.data,
                    plan.trips,
                    plan.trips // 10,
                    GROUP,
                    _deadline(),
                )
        finally:
            counted = self.peer.ask("engine_stop")
        return samples.from_ticks(
            "post, engine, completion",
            ticks[: samples.check(taken)],
            GROUP,
            self.polling,
            engine=counted,
        )

    def ring_bytes(self) -> Measurement:
        """Throughput of one ring in bursts."""
        plan = self.plan
        self._fresh()
        limit, warmup = plan.batches, plan.batches // 10
        ticks = np.zeros(limit, np.int64)
        self.peer.tell(
            "produce",
            descriptor=self.side.segment.descriptor,
            core=plan.b,
            burst=BURST,
            entries=(limit + warmup) * BURSTS_PER_SAMPLE * BURST,
        )
        with pinned(plan.a):
            taken = consume(
                self.side.address, ticks.ctypes.data, limit, warmup, BURSTS_PER_SAMPLE, BURST
            )
        samples.check(self.peer.answer())
        samples.check(taken)
        bursts = samples.from_ticks("ring burst", ticks, BURSTS_PER_SAMPLE, self.polling)
        assert bursts.latency is not None
        rate = BURST * SLOT_SIZE / bursts.latency.mean
        return Measurement(
            "ring bytes", rate, "GB/s", self.polling, bursts.latency, {"payload": rate * 56 / 64}
        )

    def python_ring(self, batch: int) -> Measurement:
        """Entries per second from Python to Python through the ring."""
        self._fresh()
        return self._python(
            f"python ring, batch {batch}",
            (self.plan.a, self.plan.b),
            {"kind": "ring", "batch": batch},
            lambda: send_to_ring(self.side, batch, self.plan.python_seconds),
        )

    def python_iceoryx2(self, way: str, cores: tuple[int, int]) -> Measurement:
        """The same through iceoryx2. Raises ReferenceMissing."""
        service = service_name()
        open_service(service)
        self._fresh()
        return self._python(
            f"python iceoryx2, {way}",
            cores,
            {"kind": "iceoryx2", "service": service},
            lambda: send_to_iceoryx2(self.side, service, way, self.plan.python_seconds),
        )

    def _python(
        self, name: str, cores: tuple[int, int], options: dict[str, Any], send: Any
    ) -> Measurement:
        descriptor = self.side.segment.descriptor
        self.peer.tell("python_receive", core=cores[1], descriptor=descriptor, **options)
        with pinned(cores[0]):
            send()
        outcome = self.peer.answer()
        rate = outcome["entries"] / outcome["ns"] * 1e9
        placement = f"cores {cores[0]} and {cores[1]}" if cores[0] >= 0 else "unpinned"
        return Measurement(name, rate, "ops/s", f"{placement}, polling", details=outcome)

    def _fresh(self) -> None:
        self.side.reset()
        self.peer.ask("reset", descriptor=self.side.segment.descriptor)


def measure(plan: Plan) -> Result:
    """Run the whole benchmark. Raises PeerFailed or BenchmarkFailed when our own side fails."""
    result = Result("queue", plan.config(), (plan.a, plan.b), plan.clock())
    side, host = Side(make_pair(), True), HostEnd()
    descriptors = (side.segment.descriptor, host.segment.descriptor, host.bell)
    try:
        with peer(descriptors) as other:
            for module in ("bench.workers", "bench.python_calls"):
                other.ask("prepare", module=module)
            other.ask(
                "engine_open", core=plan.b, descriptor=host.segment.descriptor, bell=host.bell
            )
            _measure_all(result, Bench(plan, side, other, host))
    finally:
        host.close()
        side.close()
        sweep_iceoryx2(service_name())
    return result


def service_name() -> str:
    """What our iceoryx2 service and all its files are called."""
    return f"bench-{os.getpid()}-"


def _measure_all(result: Result, bench: Bench) -> None:
    repeats, plan = bench.plan.repeats, bench.plan
    plan.say("ring round trip against the floor")
    result.pair("ring_rtt_over_floor", bench.ring_trip, _floor(bench), repeats)
    plan.say("ring round trip against the C++ queue")
    spans = {f"span {span}": _spsc(bench, span) for span in (64, 128)}
    _pair_best(result, "ring_rtt_over_cpp_spsc", bench.ring_trip, spans, repeats, lower=True)
    plan.say("engine round trip against the ring's")
    result.pair("engine_rtt_over_ring", bench.engine_trip, bench.ring_trip, repeats)
    plan.say("throughput against memcpy")
    buffers = {f"{count} buffers": _memcpy(bench, count) for count in (4, 16, 64)}
    _pair_best(result, "ring_bytes_over_memcpy", bench.ring_bytes, buffers, repeats, lower=False)
    plan.say("Python against iceoryx2")
    layouts = {
        f"{way}, {place}": _iceoryx2(bench, way, cores)
        for way in WAYS
        for place, cores in (("split", (plan.a, plan.b)), ("unpinned", (-1, -1)))
    }
    _pair_best(
        result,
        "python_ops_over_iceoryx2",
        lambda: bench.python_ring(1),
        layouts,
        repeats,
        lower=False,
    )
    for _ in range(repeats):
        result.runs.append(bench.python_ring(32))


def _pair_best(
    result: Result, name: str, ours: Run, layouts: dict[str, Run], repeats: int, *, lower: bool
) -> Ratio:
    """Pair ours with the best layout of a reference."""
    try:
        _, reference = best_layout(layouts, lower_is_better=lower)
    except ReferenceMissing as error:
        reason = str(error)

        def reference() -> Measurement:
            raise ReferenceMissing(reason)

    return result.pair(name, ours, reference, repeats)


def _options(plan: Plan) -> dict[str, int]:
    return {"a": plan.a, "b": plan.b, "seconds": SECONDS_MAX}


def _floor(bench: Bench) -> Run:
    def run() -> Measurement:
        trips = bench.plan.trips
        printed = reference_build.run(
            "floor_pingpong",
            group=GROUP,
            samples=trips,
            warmup=trips // 10,
            **_options(bench.plan),
        )
        return samples.from_reference("floor round trip", printed, bench.polling)

    return run


def _spsc(bench: Bench, span: int) -> Run:
    def run() -> Measurement:
        trips = bench.plan.trips
        printed = reference_build.run(
            "spsc_rigtorp",
            group=GROUP,
            span=span,
            samples=trips,
            warmup=trips // 10,
            **_options(bench.plan),
        )
        placement = f"{bench.polling}, span {span}"
        return samples.from_reference("C++ SPSC round trip", printed, placement)

    return run


def _memcpy(bench: Bench, buffers: int) -> Run:
    def run() -> Measurement:
        batches = bench.plan.batches
        printed = reference_build.run(
            "memcpy_cores",
            batch=BURST * SLOT_SIZE,
            buffers=buffers,
            samples=batches,
            warmup=batches // 10,
            **_options(bench.plan),
        )
        found = samples.from_reference("memcpy", printed, bench.polling)
        placement = f"{bench.polling}, {buffers} buffers"
        rate = float(printed["gb_per_s"])
        return Measurement("memcpy", rate, "GB/s", placement, found.latency, found.details)

    return run


def _iceoryx2(bench: Bench, way: str, cores: tuple[int, int]) -> Run:
    return lambda: bench.python_iceoryx2(way, cores)


def _deadline() -> int:
    return monotonic_ns() + SECONDS_MAX * 1_000_000_000
