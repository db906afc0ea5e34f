"""A host of a run: a process that has sessions, a thread each, and runs loads on them as told.

Orders come as lines on stdin (`bench.peer.serve`). The one rule: it ends when stdin does, and what
it opened with it.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, Final

from bench.peer import serve

START_TIMEOUT_S: Final = 120
FILL_BYTES: Final = 256 << 10
_sessions: list["Session"] = []


class Session:
    """One session with its load, in a thread of its own: an inline engine wants it so."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._handle: Any = None
        self._device: Any = None
        self._load: Any = None

    def call(self, work: str, **options: Any) -> Future[Any]:
        """Have its thread do one of `open`, `fill`, `run` or `close`."""
        return self._thread.submit(getattr(self, f"_{work}"), **options)

    def end(self) -> None:
        """End its thread."""
        self._thread.shutdown()

    def _open(
        self,
        url: str,
        engine: str,
        options: Mapping[str, Any],
        plan: Mapping[str, Any],
        spin_rounds: int,
    ) -> dict[str, Any]:
        import host
        from iscsi.session import blockdev
        from iscsi.session.perf import Load, LoadPlan

        self._handle = host.connect(engine)
        self._device = blockdev.open(url, self._handle, **_options(options))
        core = self._device.session.core
        if spin_rounds and not getattr(self._handle, "inline", False):
            core.channel.spin(spin_rounds)
        self._load = Load(self._device, LoadPlan(**plan))
        return {"engine": self._handle.engine, "block_size": self._device.block_size}

    def _fill(self, size: int) -> None:
        """Write once what will be read: memory that nobody wrote is one page of zeros."""
        block = self._device.block_size
        data = bytes(range(256)) * (FILL_BYTES // 256)
        for at in range(0, size, FILL_BYTES):
            self._device.write(at // block, data[: min(FILL_BYTES, size - at)])

    def _run(self, seconds: float, start_ns: int) -> dict[str, Any]:
        """Run the load for a while from `start_ns` (CLOCK_MONOTONIC) on."""
        from bench.iscsi_stages import watching

        load = self._load
        load.plan = replace(load.plan, seconds=seconds)
        if (left := start_ns - time.monotonic_ns()) > 0:
            time.sleep(left / 1e9)
        if not getattr(self._handle, "inline", False):
            return _facts(load.run(), None)
        with watching(self._handle) as engine:
            result = load.run()
        return _facts(result, (engine.before[0], engine.after[0]))

    def _close(self) -> None:
        for each in (self._load, self._device, self._handle):
            if each is not None:
                each.close()
        self._load = self._device = self._handle = None


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Session options from what an order can hold."""
    from iscsi.session.options import Recovery
    from iscsi.wire.keys import DIGEST_CRC32C, DIGEST_NONE, Proposal, SessionParams

    options = dict(given)
    digests, immediate = options.pop("digests"), options.pop("immediate_data")
    recovery = Recovery(limit_s=options.pop("recovery_s"))
    crc, none = (DIGEST_CRC32C,), (DIGEST_NONE,)
    proposal = Proposal(
        SessionParams(
            initial_r2t=False,
            immediate_data=immediate,
            first_burst_length=FILL_BYTES,
            default_time2wait=0,
        ),
        header_digest=crc if digests in ("header", "both") else none,
        data_digest=crc if digests in ("data", "both") else none,
    )
    return {
        **options,
        "mpa_crc": digests == "both",
        "proposal": proposal,
        "recovery": recovery,
    }


def _facts(result: Any, engine: tuple[dict[str, Any], dict[str, Any]] | None) -> dict[str, Any]:
    counts = result.read_latency.counts + result.write_latency.counts
    used = counts.nonzero()[0]
    return {
        "seconds": result.seconds,
        "operations": result.commands,
        "bytes": result.bytes,
        "waits": result.waits,
        "sleeps": result.sleeps,
        "doorbells": result.doorbells,
        "wait_ends": result.wait_ends,
        "behind": result.behind,
        "late_ns": result.late_ns,
        "histogram": [[int(bucket), int(counts[bucket])] for bucket in used],
        "engine": list(engine) if engine else None,
    }


def prepare(cores: Sequence[int]) -> int:
    """Go to these cores, and load what will run, so that nothing is compiled while it is timed."""
    os.sched_setaffinity(0, cores)
    __import__("host.inline")
    __import__("iscsi.session.perf")
    return os.getpid()


def open_sessions(sessions: Sequence[Mapping[str, Any]], fill_bytes: int) -> list[dict[str, Any]]:
    """Open a session for each of the orders' descriptions."""
    _sessions.extend(Session() for _ in sessions)
    found = _all([one.call("open", **how) for one, how in zip(_sessions, sessions, strict=True)])
    if fill_bytes:
        _all([_sessions[0].call("fill", size=fill_bytes)])
    return found


def run(seconds: float, start_ns: int) -> list[dict[str, Any]]:
    """Run every session's load at the same time."""
    return _all([one.call("run", seconds=seconds, start_ns=start_ns) for one in _sessions])


def close() -> int:
    """Close all sessions, whatever became of them."""
    try:
        _all([one.call("close") for one in _sessions])
    finally:
        for one in _sessions:
            one.end()
        _sessions.clear()
    return 0


def _all(working: list[Future[Any]]) -> list[Any]:
    wait(working)
    return [one.result() for one in working]


ORDERS: Final[Mapping[str, Callable[..., Any]]] = {
    "prepare": prepare,
    "open": open_sessions,
    "run": run,
    "close": close,
}


if __name__ == "__main__":
    # Ctrl-C reaches all processes of a terminal; this one ends when the sweep lets go of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(ORDERS)
    if _sessions:
        close()
