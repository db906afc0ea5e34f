"""One run: its processes, its load, and what was read around it, as the value of its result file.

The one rule: a run always has an outcome: done, refused with the reason, or failed with the error;
only being told to end leaves none.
"""

import hashlib
import platform
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.harness import ROOT, tool_version
from bench.iscsi_stages import snapshot_of
from bench.lab import accounting, frequency, measured, processes
from bench.lab.accounting import NOTHING, ProcessCounts
from bench.lab.hardware import Counters
from bench.lab.measured import Readings
from bench.lab.partition import Cores, Machine, divide
from bench.lab.plan import PlannedRun
from bench.lab.points import INLINE, Impossible
from bench.lab.processes import Running, Unavailable
from bench.lab.result_files import SCHEMA
from bench.lab.spec import Timing
from bench.peers import PeerFailed
from host.errors import HostError
from ppe.errors import OperatorError
from shm.clock import cycles_per_ns

LEAD_NS: Final = 20_000_000  # from the order to the start, so that all loads start together
PACKAGES: Final = ("ppe", "host", "shm", "iscsi", "bench")


def perform(run: PlannedRun, experiment: str, timing: Timing, here: Machine) -> dict[str, Any]:
    """Make a run and return the value of its file. Raises KeyboardInterrupt only."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    found: dict[str, Any] = {"status": "refused", "reason": run.refusal or None, "measured": None}
    cores = None
    try:
        cores = divide(run.point, here)
        found |= _measure(run, timing, cores)
    except Impossible as error:
        found["reason"] = f"{error.key}: {error}"
    except Unavailable as error:
        found["reason"] = str(error)
    except (PeerFailed, OperatorError, HostError, OSError, ValueError) as error:
        found |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    used = cores.all if cores is not None else ()
    return {
        "schema": SCHEMA,
        "id": run.id,
        "experiment": experiment,
        "repeat": run.repeat,
        "seed": run.seed,
        "order": run.order,
        "point": run.point.to_json(),
        "cores": cores.to_json() if cores is not None else None,
        "started_at": started,
        "warm_up_s": timing.warm_up_s,
        "measured_s": None,
        "not_measured": {},
        "faults": [],
        **found,
        "machine": machine.facts(used),
        "versions": versions(),
        "sources": sources_digest(),
    }


def _measure(run: PlannedRun, timing: Timing, cores: Cores) -> dict[str, Any]:
    with (
        frequency.held(cores.all, run.point.frequency_percent) as core_hz,
        processes.started(run.point, cores) as running,
    ):
        processes.open_sessions(running, run.point, run.seed)
        if timing.warm_up_s:
            running.ask("run", seconds=timing.warm_up_s, start_ns=0)
        readings = _read_around(run, timing, cores, running)
        readings = replace(readings, core_hz=core_hz or readings.tsc_hz)
        running.ask("close")
    if readings.operations == 0:
        reason = f"no command ended within {timing.measure_s:g} s: measure for longer"
        return {"status": "failed", "reason": reason}
    beyond = measured.beyond_capacity(readings)
    return {
        "status": "refused" if beyond else "done",
        "reason": beyond,
        "measured_s": readings.seconds,
        "measured": measured.measured(readings),
        "not_measured": measured.not_measured(readings),
    }


def _read_around(run: PlannedRun, timing: Timing, cores: Cores, running: Running) -> Readings:
    """Measure: read everything, run the loads, read everything."""
    accounts = _Accounts(run.point.placement, running)
    threads = [t for pids in running.pids.values() for p in pids for t in accounting.threads_of(p)]
    counters = Counters(threads, str(machine.facts()["cpu_model"]))
    try:
        engine_before, used = accounts.snapshots(), _used(running)
        hardware, system = counters.read(), accounting.system()
        start = time.monotonic_ns()
        answers = running.ask("run", seconds=timing.measure_s, start_ns=start + LEAD_NS)
        wall_s = (time.monotonic_ns() - start) / 1e9
        after = (accounting.system(), counters.read())
        used_after, engine_after = _used(running), accounts.snapshots()
    finally:
        counters.close()
        accounts.close()
    loads = [load for answer in answers for load in answer]
    engines = [(one[0], one[1]) for load in loads if (one := load["engine"]) is not None]
    return Readings(
        point=run.point,
        wall_s=wall_s,
        tsc_hz=cycles_per_ns() * 1e9,
        cores=cores.all,
        system=(system, after[0]),
        processes={name: used_after[name] - used[name] for name in used},
        loads=loads,
        engines=engines or list(zip(engine_before, engine_after, strict=True)),
        hardware={name: value - hardware[name] for name, value in after[1].items()},
        missing_hardware=counters.missing,
    )


class _Accounts:
    """The accounts of the run's engines, from outside; inline ones the hosts read themselves."""

    def __init__(self, placement: str, running: Running) -> None:
        self._observer, self._segments = None, []
        if placement != INLINE:
            from host.handle import EngineHandle

            assert running.engine is not None
            with running.engine.findable() as name:
                self._observer = EngineHandle(name)
            self._segments = self._observer.accounts()

    def snapshots(self) -> list[dict[str, Any]]:
        """Of each engine."""
        return [snapshot_of(segment.array) for segment in self._segments]

    def close(self) -> None:
        """Let go of them."""
        for segment in self._segments:
            segment.close()
        if self._observer is not None:
            self._observer.close()


def _used(running: Running) -> dict[str, ProcessCounts]:
    """What the processes of each kind have used so far."""
    return {
        name: sum((accounting.process(pid) for pid in pids), NOTHING)
        for name, pids in running.pids.items()
    }


def versions() -> dict[str, str]:
    """What ran."""
    import numba
    import numpy

    return {
        "ppe": tool_version(),
        "python": sys.version.split()[0],
        "numba": numba.__version__,
        "numpy": numpy.__version__,
        "kernel": platform.release(),
    }


@cache
def sources_digest() -> str:
    """A hash of the project's sources, so that two sets of one version can be told apart."""
    digest = hashlib.blake2b(digest_size=16)
    for package in PACKAGES:
        for path in sorted((Path(ROOT) / package).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
