"""The daemon's life: claim a name and CPUs, compile, pin, serve, stop.

The main thread is the control plane and runs on the housekeeping CPUs; each engine has its own
thread and CPU. Nothing is compiled after "ready": `compilations_since_ready` in `ppe stat` counts
what was, and a test holds it at zero.
"""

import contextlib
import gc
import os
import resource
import signal
import time
from types import FrameType
from typing import Any

from ppe import cpulock, notify, paths
from ppe.config import EngineConfig
from ppe.cputime import busy_now
from ppe.errors import OperatorError
from ppe.first_start import Report, compile_engine
from ppe.partition import Partition, choose, usable_cpus
from ppe.topology import allowed_cpus, format_cpu_list, read_topology


def plan(config: EngineConfig) -> Partition:
    """Which CPUs the engines get, and why. Raises a CpuError that says what to change."""
    topology, allowed = read_topology(), allowed_cpus()
    return choose(
        topology,
        allowed,
        config.cpu,
        engines=config.engines,
        taken={} if config.force else cpulock.holders(usable_cpus(topology, allowed)),
        busy=busy_now(),
        idle=config.idle,
        force=config.force,
    )


def _raise_open_files() -> None:
    """Ask for every descriptor the hard limit allows: each client and connection needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Daemon:
    """One `ppe up`, from claim to release. Use as a context manager, then `serve`."""

    def __init__(self, config: EngineConfig, report: Report) -> None:
        self.config, self._report = config, report
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "Daemon":
        try:
            self._start()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        notify.stopping()
        self._undo.close()

    def _start(self) -> None:
        _raise_open_files()
        self.files, lock = paths.claim_name(self.config.name)
        self._undo.callback(lock.release)
        self.partition = plan(self.config)
        claims, warnings = cpulock.claim_all(self.partition.engine_cpus, self.config.force)
        self._undo.callback(cpulock.release_all, claims)
        for note in (*self.partition.reasons, *self.partition.warnings, *warnings):
            self._report("note", note)
        if self.partition.housekeeping_cpus:
            os.sched_setaffinity(0, self.partition.housekeeping_cpus)
        self._counter = compile_engine(self._report, self.partition.engine_cpus)
        self._start_engines()
        self._open_devices()
        from ppe.control import ControlServer

        self.server = ControlServer(self.files.socket, self.config, self.engines)
        self._undo.callback(self.server.close)
        self.server.stat = self.stat
        self._compiled_at_ready = self._counter.count
        gc.freeze()

    def _start_engines(self) -> None:
        from ppe.cycle import guard
        from ppe.engine_thread import EngineThread, port_floor
        from shm.segment import SegmentError

        self._sweep()
        guard.install()
        self.engines: list[EngineThread] = []
        for number, cpu in enumerate(self.partition.engine_cpus):
            engine = EngineThread(number, cpu, self.config, port_floor())
            self._undo.callback(engine.stop)
            try:
                complaint = engine.start()
            except SegmentError as error:
                raise OperatorError(f"engine {number} could not start: {error.strerror}") from error
            if complaint:
                self._report("note", complaint)
            self.engines.append(engine)

    def _open_devices(self) -> None:
        """Open the RDMA devices that were asked for, in each engine, before anybody is served."""
        from ppe.cycle.rnic.verbs.library import NoVerbsError
        from ppe.cycle.rnic.verbs.pointers import PointerUnknownError

        for engine in self.engines:
            for name in self.config.rdma_device_names:
                try:
                    engine.rnics.devices.open(name)
                except (OSError, NoVerbsError, PointerUnknownError) as error:
                    why = getattr(error, "strerror", None) or str(error)
                    raise OperatorError(
                        f"RDMA device {name} cannot be driven: {why}",
                        "look at `ppe doctor`, or leave it out of --rdma-devices",
                    ) from error

    def stat(self) -> dict[str, Any]:
        """What the control plane knows; the engines' own accounts are read from their segments."""
        return {
            "name": self.config.name,
            "pid": os.getpid(),
            "clients": self.server.client_count,
            "idle": self.config.idle,
            "readiness": self.engines[0].tables.poller_name,
            "housekeeping_cpus": list(self.partition.housekeeping_cpus),
            "compilations_since_ready": self._counter.count - self._compiled_at_ready,
            "affinity": [engine.affinity_complaint() for engine in self.engines],
            "notes": list(self.server.notes)[-20:],
        }

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.server.stopping = True
        self.server.wake()

    def serve(self) -> None:
        """Serve until `ppe down`, SIGTERM or SIGINT. Raises OperatorError if an engine ends."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        cpus = format_cpu_list(self.partition.engine_cpus)
        text = f"engine {self.config.name!r} runs on CPU {cpus}, pid {os.getpid()}, idle: "
        text += self.config.idle
        self._report("ready", text)
        notify.ready(text)
        complained: dict[int, str | None] = {}
        looked = time.monotonic()
        while not self.server.stopping:
            self.server.step()
            if time.monotonic() - looked < 1.0:
                continue
            looked = time.monotonic()
            notify.watchdog()
            self._sweep()
            for engine in self.engines:
                if not engine.is_alive:
                    raise OperatorError(
                        f"engine {engine.number} ended by itself", "this is a bug: see `ppe errors`"
                    )
                self._look_at_affinity(engine, complained)

    def _sweep(self) -> None:
        """Remove the names of segments whose makers were killed just before they took them away."""
        from shm.segment import sweep

        for name in sweep():
            self._report("note", f"removed /dev/shm/{name}, left behind by a dead process")

    def _look_at_affinity(self, engine: Any, complained: dict[int, str | None]) -> None:
        """Note what became of an engine's core, each time that it becomes something else."""
        complaint = engine.affinity_complaint()
        is_news = complaint != complained.get(engine.number)
        complained[engine.number] = complaint
        if complaint and is_news:
            self.server.notes.append(complaint)
            self._report("note", complaint)
