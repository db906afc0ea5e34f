"""The processes of one run: target, engines and hosts, started for it and ended with it.

The one rule: all of them are children that end with this process, however it ends; what failed to
start ends those that did.
"""

import contextlib
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bench.iscsi_peers import (
    BLOCK,
    Engine,
    Process,
    Target,
    Tgt,
    quiet_environment,
    ready_target,
    start_target,
)
from bench.lab.partition import Cores
from bench.lab.points import INLINE, Point
from bench.peers import ANSWER_TIMEOUT_S, Peer
from bench.reference_build import ReferenceMissing

WORKER: Final = "bench.lab.worker"
SPIN_ROUNDS: Final = 1 << 13  # some tenths of a millisecond; then a host that spins sleeps, too
TGT_THREADS: Final = 1
RECOVERY_S: Final = 5.0  # a session without its target for longer has failed, and so the run


class Unavailable(RuntimeError):
    """The run needs something that this machine does not have."""


@dataclass(frozen=True, slots=True)
class Running:
    """What is running. `engine` is None inline."""

    target: Target
    engine: Engine | None
    hosts: list[Peer]

    @property
    def pids(self) -> dict[str, list[int]]:
        """The processes by what they are."""
        found = {"host": [host.pid for host in self.hosts], "target": [self.target.process.pid]}
        if self.engine is not None:
            found["engine"] = [self.engine.pid]
        return found

    def ask(self, order: str, **options: Any) -> list[Any]:
        """Give every host an order at the same time; their answers, in order. Raises PeerFailed.

        An order that lasts `seconds` is waited for that much longer.
        """
        patience_s = ANSWER_TIMEOUT_S + float(options.get("seconds", 0.0))
        for host in self.hosts:
            host.tell(order, **options)
        return [host.answer(patience_s) for host in self.hosts]


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold SIGINT back, also from the children that are started meanwhile: Ctrl-C goes to all
    processes of a terminal, and one that has hardly begun would print where it was.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def started(point: Point, cores: Cores) -> Iterator[Running]:
    """Have the processes of a run inside the block. Raises PeerFailed, Unavailable."""
    with contextlib.ExitStack() as stack:
        folder, engine = "", None
        if point.placement != INLINE or point.target == "tgt":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ppe-lab-"))
        if point.placement != INLINE:
            engine = Engine(folder, cores.engine, point.idle, awaited=True)
            stack.callback(engine.close)
        places = engine.environment if engine is not None else quiet_environment()
        hosts: list[Peer] = []
        for number in range(point.hosts):
            with _no_interrupt():
                hosts.append(Peer(module=WORKER, environment=places))
            stack.callback(hosts[-1].close)
            hosts[-1].tell("prepare", cores=_cores_of(point, cores, number))
        stack.push(partial(_kill_if_broken, hosts))  # Before they are closed: the last first.
        target = _target(point, cores, folder, engine)
        stack.callback(target.close)
        target.process.pin_to(cores.target)
        for process in _stopped(target, engine):
            stack.enter_context(process.running())
        for host in hosts:
            host.answer()
        yield Running(target, engine, hosts)


def _kill_if_broken(hosts: Sequence[Peer], kind: object, *_: object) -> None:
    """Do not wait for loads of hosts whose run has ended with an error, or was interrupted."""
    if kind is not None:
        for host in hosts:
            host.kill()


def _stopped(target: Target, engine: Engine | None) -> list[Process]:
    return [target.process, *([engine] if engine is not None else [])]


def _cores_of(point: Point, cores: Cores, number: int) -> list[int]:
    if not point.pinned:
        return list(cores.host)
    return [cores.host[number % len(cores.host)]]


def _target(point: Point, cores: Cores, folder: str, engine: Engine | None) -> Target:
    """Start the target and wait for it; and for the engine, before that: ready, it would spin."""
    if point.target == "tgt":
        _await(engine)
        try:
            return Tgt(folder, TGT_THREADS)
        except ReferenceMissing as error:
            raise Unavailable(str(error)) from error
    is_iser = point.transport == "iser"
    placement = "engine" if point.target == "engine" else "datamover" if is_iser else "stream"
    process = start_target(-1, point.target_idle, placement, iser=is_iser)
    try:
        _await(engine)
    except BaseException:
        process.close()
        raise
    return ready_target(process, point.target_idle, placement, iser=is_iser)


def _await(engine: Engine | None) -> None:
    if engine is not None:
        engine.await_ready()


def open_sessions(running: Running, point: Point, seed: int) -> None:
    """Have the hosts open their sessions, shared out in turn, and fill the LUN."""
    shares: list[list[dict[str, Any]]] = [[] for _ in running.hosts]
    for number in range(point.sessions):
        shares[number % len(shares)].append(_session(running, point, seed + number))
    for number, (host, share) in enumerate(zip(running.hosts, shares, strict=True)):
        # One after the other: the first fills what all of them use.
        host.ask("open", sessions=share, fill_bytes=point.span if number == 0 else 0)


def _session(running: Running, point: Point, seed: int) -> dict[str, Any]:
    is_iser = point.transport == "iser"
    if point.placement == INLINE:
        engine = f"inline:?idle={point.wait_mode}"
        placement = "datamover" if is_iser else "stream"
    else:
        assert running.engine is not None
        engine, placement = running.engine.engine_name, point.placement
    return {
        "url": running.target.rdma_url if is_iser else running.target.url,
        "engine": engine,
        "spin_rounds": SPIN_ROUNDS if point.wait_mode == "spin" else 0,
        "options": {
            "placement": placement,
            "queue_depth": point.depth,
            "coalesce": point.wait_n,
            "coalesce_us": point.wait_us,
            "registration": point.registration,
            "command_bytes": max(point.block_bytes, BLOCK),
            "digests": point.digests,
            "immediate_data": point.immediate_data,
            "recovery_s": RECOVERY_S,
        },
        "plan": {
            "blocks": point.block_bytes // BLOCK,
            "warm_up_s": 0,
            "random": point.random,
            "write_percent": point.write_percent,
            "span_blocks": point.span // BLOCK,
            "rate": point.rate_per_s / point.sessions,
            "seed": seed,
        },
    }
