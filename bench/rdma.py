"""`ppe bench rdma`: the software RNIC against plain TCP, in the manner of perftest (`ib_send_lat`,
`ib_write_bw`), and registration strategies by how often buffers are used again.

Both sides are inline engines that spin, one core each; so are both ends of the TCP program in C.
The one rule: a bandwidth counts what was placed, not what a queue took.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns
from typing import Any, Final

import numpy as np

from bench import rdma_workers, reference_build
from bench.cores import pinned
from bench.harness import Latency, Measurement, Result, Run, best_layout
from bench.plan import Goal, Plan
from bench.rdma_peer import ACK_EVERY, DEPTH, End
from bench.reference_build import ReferenceMissing
from bench.samples import BenchmarkFailed, check, from_ticks
from host.verbs import ConnParam, SendWr
from host.verbs.pin_down_cache import PinDownCache
from host.verbs.registration import OnTheFly, PreRegistered, Registrar, Windows
from shm.clock import cycles_per_ns
from shm.qp_spec import MULPDU
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
)

STREAM_DEPTH: Final = 16
SIZES: Final = {"4k": 4096, "64k": 65536, "1m": 1 << 20}
OPCODES: Final = {"write": WR_RDMA_WRITE, "read": WR_RDMA_READ, "send": WR_SEND}
# Layouts of the TCP program: bytes of its system calls, messages without an acknowledgement.
TCP_LAYOUTS: Final = tuple((chunk << 10, deep) for chunk in (64, 256, 1024) for deep in (16, 128))
TCP_CHUNK: Final = 64 << 10  # for round trips
RUN_SECONDS: Final = 30  # the longest that a run may take
REUSES: Final = (0, 50, 100)  # per cent of uses that are of the same buffer as the one before
CACHE_REGIONS: Final = 16
BUFFERS: Final = 64
GOALS: Final = (
    Goal("write_64k_over_tcp", "≥", 0.7, "RDMA Write of 64 KiB, CRC on / plain TCP"),
    Goal("write_64k_nocrc_over_tcp", "≥", 0.85, "the same, CRC off / plain TCP"),
    Goal("send_8b_over_tcp", "≤", 1.2, "round trip of 8-byte Sends / plain TCP, both polling"),
)
METHOD: Final = (
    f"bandwidth: {STREAM_DEPTH} work requests under way; the run ends when an RDMA Read behind "
    "them has come back, so everything was placed in the peer's memory; Sends are acknowledged "
    f"{ACK_EVERY} at a time, so that none comes without a receive. TCP: messages of that size, "
    "each acknowledged by one byte, in the best of its layouts (bytes of a system call, messages "
    "under way)",
    "round trip: one Send each way, one in 16 signalled; TCP: the same bytes through "
    "non-blocking sockets, both ends polling",
    "registration: lease 64 KiB of one of 64 buffers, use it for one RDMA Write of 4 KiB, release; "
    f"the cache keeps {CACHE_REGIONS} registrations; the pool copies what lies elsewhere",
)


class Link:
    """Our end and the peer's process, connected anew for each set of parameters."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.rdma_peer", str(plan.b)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.end = End()
        self.where: dict[str, int] = self.ask("where")
        self._made: tuple[bool, int] | None = None

    def order(self, name: str, **fields: Any) -> None:
        """Give the peer an order, to be answered later."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"order": name, **fields}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What the peer says to its last order."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkFailed("the peer's process ended")
        reply = json.loads(line)
        if "failed" in reply:
            raise BenchmarkFailed(f"the peer: {reply['failed']}")
        return reply["done"]

    def ask(self, name: str, **fields: Any) -> Any:
        """Give an order and wait for its answer."""
        self.order(name, **fields)
        return self.answer()

    def connect(self, crc: bool, mulpdu: int = MULPDU) -> None:
        """Have a connection with these parameters; the one there is if it has them."""
        if self._made == (crc, mulpdu):
            return
        self.order("accept", crc=crc, mulpdu=mulpdu)
        param = ConnParam(crc=crc, mulpdu=mulpdu)
        self.end.new_qp().connect(("127.0.0.1", self.where["port"]), param)
        self.answer()
        self._made = (crc, mulpdu)

    def stop_peer(self) -> int:
        """Send the message of no bytes that ends the peer's loop; what it counted."""
        if not self.end.qp.post_send(SendWr(WR_SEND)):
            raise BenchmarkFailed("the send queue is full")
        self.end.cq.wait_n(1, timeout_s=RUN_SECONDS)
        self.end.cq.poll_cq()
        return check(self.answer())

    def close(self) -> None:
        """End the peer and our end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(RUN_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.end.close()


@dataclass(frozen=True, slots=True)
class Stream:
    """A bandwidth to measure."""

    op: str
    size: int
    name: str
    crc: bool = True

    def count(self, plan: Plan) -> int:
        """Work requests of one run."""
        total = (64 << 20) if plan.quick else (1 << 30)
        return max(min(total // self.size, 20_000), 32)

    def run(self, link: Link) -> Measurement:
        """Bytes per second that were placed."""
        link.connect(self.crc)
        end, plan, count = link.end, link.plan, self.count(link.plan)
        until = monotonic_ns() + RUN_SECONDS * 1_000_000_000
        link.order("take", seconds=RUN_SECONDS)
        with pinned(plan.a):
            spent = check(
                self._sends(link, count, until)
                if self.op == "send"
                else rdma_workers.stream(
                    end.device.address, end.qp.qp, OPCODES[self.op], end.mr.addr, self.size,
                    end.mr.lkey, link.where["addr"], link.where["rkey"], count, STREAM_DEPTH,
                    end.at[1], until,
                )
            )  # fmt: skip
        link.stop_peer()
        end.cq.poll_cq()
        seconds = spent / cycles_per_ns() / 1e9
        crc = "CRC on" if self.crc else "CRC off"
        return Measurement(
            f"{self.op} {self.name}, {crc}",
            count * self.size / seconds / 1e6,
            "MB/s",
            f"cores {plan.a} and {plan.b}, inline, spinning",
            details={"count": count, "depth": STREAM_DEPTH, "per_second": count / seconds},
        )

    def _sends(self, link: Link, count: int, until: int) -> int:
        end = link.end
        sge, wc = end.at
        return rdma_workers.stream_sends(
            end.device.address, end.qp.qp, end.qp.rq, sge, self.size, count, STREAM_DEPTH,
            ACK_EVERY, wc, until,
        )  # fmt: skip


def round_trip(link: Link, size: int, name: str) -> Measurement:
    """Round trips of Sends."""
    link.connect(True)
    end, plan = link.end, link.plan
    ticks = np.zeros(plan.trips, np.int64)
    until = monotonic_ns() + RUN_SECONDS * 1_000_000_000
    link.order("answer", size=size, seconds=RUN_SECONDS)
    sge, wc = end.at
    with pinned(plan.a):
        taken = check(
            rdma_workers.ask(
                end.device.address, end.qp.qp, end.qp.rq, sge, size, wc,
                int(ticks.ctypes.data), plan.trips, plan.trips // 10, until,
            )
        )  # fmt: skip
    link.stop_peer()
    placement = f"cores {plan.a} and {plan.b}, inline, spinning"
    return from_ticks(f"send {name} round trip", ticks[:taken], 1, placement)


# --- the reference --------------------------------------------------------------------------------


def tcp(plan: Plan, request: int, response: int, depth: int, count: int, chunk: int) -> Any:
    """What the C program over plain TCP prints. Raises ReferenceMissing."""
    return reference_build.run(
        "tcp_floor",
        a=plan.a,
        b=plan.b,
        seconds=RUN_SECONDS,
        samples=count,
        warmup=max(count // 10, depth),
        depth=depth,
        chunk=chunk,
        request=request,
        response=response,
    )


def tcp_stream(plan: Plan, size: int, name: str, count: int, chunk: int, depth: int) -> Measurement:
    """Bytes per second of plain TCP."""
    printed = tcp(plan, size, 1, depth, count, chunk)
    return Measurement(
        f"plain TCP {name}",
        float(printed["iops"]) * size / 1e6,
        "MB/s",
        f"cores {plan.a} and {plan.b}, both polling, chunk {chunk >> 10} KiB, depth {depth}",
        Latency.from_reference(printed["latency_ns"]),
    )


def tcp_round_trip(plan: Plan, size: int, name: str) -> Measurement:
    """Round trips of plain TCP."""
    printed = tcp(plan, size, size, 1, plan.trips, TCP_CHUNK)
    distribution = printed["latency_ns"]
    return Measurement(
        f"plain TCP {name} round trip",
        float(distribution["p50"]),
        "ns",
        f"cores {plan.a} and {plan.b}, both polling",
        Latency.from_reference(distribution),
    )


def tcp_best(plan: Plan, size: int, name: str, count: int) -> Run | None:
    """The TCP program in the better of its layouts; None where it cannot be built."""
    layouts = {
        f"{chunk}/{depth}": partial(tcp_stream, plan, size, name, count, chunk, depth)
        for chunk, depth in TCP_LAYOUTS
    }
    try:
        return best_layout(layouts, lower_is_better=False)[1]
    except ReferenceMissing:
        return None


# --- registration ---------------------------------------------------------------------------------


def strategies(link: Link) -> Iterator[tuple[str, Registrar, list[Any]]]:
    """Each strategy with the buffers that it leases."""
    end = link.end
    size = SIZES["64k"]
    whole = end.engine.alloc(BUFFERS * size)
    pieces = [whole.array[i * size : (i + 1) * size] for i in range(BUFFERS)]
    yield "on_the_fly", OnTheFly(end.pd), pieces
    yield "cache", PinDownCache(end.pd, max_regions=CACHE_REGIONS), pieces
    yield "pool", PreRegistered(end.pd, [(size, 4)]), pieces
    yield "windows", Windows(end.qp, end.cq, whole), pieces
    whole.free()


def lease_loop(link: Link, registrar: Registrar, pieces: list[Any], reuse: int, n: int) -> float:
    """Microseconds of one lease, an RDMA Write from it, and its release."""
    end, chosen, place = link.end, np.random.default_rng(7), 0
    turns = chosen.integers(0, 100, n) >= reuse
    start = time.perf_counter_ns()
    for turn in turns:
        place = (place + 1) % len(pieces) if turn else place
        lease = registrar.acquire(pieces[place], ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ)
        lease.load()
        end.qp.post_send(
            SendWr(
                WR_RDMA_WRITE,
                [lease.sge(0, 4096)],
                1,
                remote_addr=link.where["addr"],
                rkey=link.where["rkey"],
            )
        )
        end.cq.complete(1).check()
        lease.release()
    return (time.perf_counter_ns() - start) / n / 1e3


def registrations(link: Link, result: Result) -> None:
    """Each strategy at each reuse, and its time over that of registering on the fly."""
    plan, n = link.plan, 50 if link.plan.quick else 1000
    link.connect(True)
    link.order("take", seconds=10 * RUN_SECONDS)
    made: dict[str, tuple[Registrar, list[Any]]] = {}
    source = strategies(link)
    for name, registrar, pieces in source:
        made[name] = registrar, pieces
        if len(made) == len(STRATEGIES):
            break

    def run(name: str, reuse: int) -> Measurement:
        registrar, pieces = made[name]
        with pinned(plan.a):
            value = lease_loop(link, registrar, pieces, reuse, n)
        counters: dict[str, Any] = getattr(registrar, "counters").as_dict()  # noqa: B009
        placement = f"interpreted Python on core {plan.a}, reuse {reuse} %"
        return Measurement(f"lease, {name}", value, "us", placement, details=counters)

    for reuse in REUSES:
        reference = partial(run, "on_the_fly", reuse)
        for name in STRATEGIES[1:]:
            key = f"{name}_over_on_the_fly_reuse_{reuse}"
            result.pair(key, partial(run, name, reuse), reference, plan.repeats)
    for registrar, _ in made.values():
        registrar.close()
    for _ in source:
        pass
    link.stop_peer()


STRATEGIES: Final = ("on_the_fly", "cache", "pool", "windows")


def measure(plan: Plan) -> Result:
    """Run the whole benchmark."""
    result = Result("rdma", plan.config(), (plan.a, plan.b), plan.clock())
    with contextlib.ExitStack() as stack:
        plan.say("two inline engines, connected over loopback")
        link = Link(plan)
        stack.callback(link.close)
        trip: Callable[[int, str], Run] = lambda size, name: partial(round_trip, link, size, name)  # noqa: E731
        plan.say("round trips")
        for key, name, size in (("", "8b", 8), ("round_trip_", "4k", 4096)):
            result.pair(
                f"send_{name}_{key}over_tcp",
                trip(size, name),
                partial(tcp_round_trip, plan, size, name),
                plan.repeats,
            )
        for name, size in SIZES.items():
            plan.say(f"bandwidth, {name}")
            streams = [(f"{op}_{name}_over_tcp", Stream(op, size, name)) for op in OPCODES]
            nocrc = Stream("write", size, name, crc=False)
            streams.insert(1, (f"write_{name}_nocrc_over_tcp", nocrc))
            reference = tcp_best(plan, size, name, nocrc.count(plan))
            for key, each in streams:
                result.pair(key, partial(each.run, link), reference, plan.repeats)
        plan.say("registration strategies")
        registrations(link, result)
    assert DEPTH >= STREAM_DEPTH
    return result
