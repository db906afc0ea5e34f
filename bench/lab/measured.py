"""From what was read before and after a run to the figures of its result file.

The one rule: every figure follows from totals of one interval; what was not counted is null and
its reason stands under `not_measured`. What each figure means is in docs/EXPERIMENTS.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from bench.lab.accounting import NOTHING, CoreTimes, ProcessCounts, System, between
from bench.lab.points import INLINE, Point
from shm.histogram import BUCKETS, LINEAR_BITS, Histogram, lowest_of

PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}
SAMPLES_BEYOND: Final = 10  # a percentile with fewer samples beyond it is the story of one sample
# The engine's stages as layers; which transport's code runs in the last two is the point's.
QUEUE_STAGES: Final = ("control", "submissions", "readiness", "completions", "timers", "events")
WIRE_STAGES: Final = ("receive", "transmit")
BEHIND_SHARE: Final = 0.02  # of a rate: so much less done than asked is beyond capacity

Snapshots = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything read around the interval that was measured, and what the loads found."""

    point: Point
    wall_s: float
    tsc_hz: float
    cores: Sequence[int]
    system: tuple[System, System]
    processes: Mapping[str, ProcessCounts]
    loads: Sequence[Mapping[str, Any]]
    engines: Snapshots
    hardware: Mapping[str, float]
    missing_hardware: Mapping[str, str] = field(default_factory=dict)
    core_hz: float = 0.0  # of the cores' clock, as far as it is known

    def sum(self, name: str) -> int:
        """A count of all sessions together."""
        return sum(int(load[name]) for load in self.loads)

    @property
    def operations(self) -> int:
        """Commands that ended."""
        return self.sum("operations")

    @property
    def seconds(self) -> float:
        """How long the longest of the loads took: its last command included."""
        return max(float(load["seconds"]) for load in self.loads)


def measured(r: Readings) -> dict[str, Any]:
    """The `measured` of a result file."""
    return {
        "operations": r.operations,
        "bytes": r.sum("bytes"),
        "iops": r.operations / r.seconds,
        "throughput_bytes_per_s": r.sum("bytes") / r.seconds,
        **_latency(r),
        "cpu": _cpu(r),
        "counts_per_op": _counts(r),
        "wakeup_reasons": _reasons(r),
        "stages": _stages(r),
        "engine": _engine_counters(r),
        "layers": layers(r),
        "hardware": {name: value / r.operations for name, value in r.hardware.items()} or None,
    }


def not_measured(r: Readings) -> dict[str, str]:
    """Why what is null in `measured` is null."""
    found = {
        "layers.scsi": "the initiator's SCSI and iSCSI code is one compiled loop: under iscsi",
        "layers.copies": "copies are made inside receive and transmit: under tcp or rdma",
    }
    if r.hardware:
        found |= {f"hardware.{name}": why for name, why in r.missing_hardware.items()}
    else:
        found["hardware"] = r.missing_hardware.get("cycles", "it was not asked for")
    if r.point.target == "tgt":
        found["stages.target"] = "tgtd keeps no accounts"
    else:
        found["stages.target"] = "the target's own engine is read by no other process"
    return found


def beyond_capacity(r: Readings) -> str | None:
    """Why the rate that was asked is no rate that was kept; None when it was, or there is none."""
    asked, done = r.point.rate_per_s, r.operations / r.seconds
    behind = r.sum("behind")
    if not asked or behind <= r.point.depth or done > asked * (1 - BEHIND_SHARE):
        return None
    late_ms = max(int(load["late_ns"]) for load in r.loads) / 1e6
    return (
        f"rate beyond capacity: {asked:,.0f} a second asked, {done:,.0f} done; at the end "
        f"{behind:,} that were due had not been sent, the oldest of them {late_ms:,.0f} ms late"
    )


# --- latency -------------------------------------------------------------------------------------


def _latency(r: Readings) -> dict[str, Any]:
    counts = np.zeros(BUCKETS, np.int64)
    for load in r.loads:
        for bucket, count in load["histogram"]:
            counts[bucket] += count
    histogram = Histogram(counts)
    summary = histogram.summary()
    used = [int(bucket) for bucket in np.nonzero(counts)[0]]

    def percentile(percent: float) -> float | None:
        enough = percent <= 50 or summary.count * (1 - percent / 100) >= SAMPLES_BEYOND
        return histogram.percentile(percent) if enough else None

    return {
        "latency_ns": {
            "count": summary.count,
            "min": summary.minimum,
            "mean": summary.mean,
            **{name: percentile(percent) for name, percent in PERCENTILES.items()},
            "max": summary.maximum,
            "from": "intended" if r.point.rate_per_s else "issued",
        },
        "latency_histogram": {
            "kind": "log-linear",
            "significant_bits": LINEAR_BITS - 1,
            "edges_ns": [[lowest_of(bucket), lowest_of(bucket + 1)] for bucket in used],
            "counts": [int(counts[bucket]) for bucket in used],
        },
    }


# --- CPU time ------------------------------------------------------------------------------------


def _host(r: Readings) -> ProcessCounts:
    return r.processes.get("host", NOTHING)


def _core_times(r: Readings) -> dict[int, CoreTimes]:
    return between(*r.system, r.cores)


def _cpu(r: Readings) -> dict[str, Any]:
    bits = 8 * r.sum("bytes")
    busy_ns = sum(used.cpu_ns for used in r.processes.values())
    ours_ns = busy_ns - r.processes["target"].cpu_ns
    cores = _core_times(r)
    cores_busy_s = sum(times.busy_s for times in cores.values())
    useful, empty, asleep = (_grown(r, f"{part}_us") for part in ("useful", "empty", "asleep"))
    awake = useful + empty
    return {
        "wall_s": r.wall_s,
        "cores": {str(core): asdict(times) for core, times in cores.items()},
        "processes": {name: used.seconds for name, used in r.processes.items()},
        "host_cpu_ns_per_op": _host(r).cpu_ns / r.operations,
        "total_busy_ns_per_op": busy_ns / r.operations,
        "initiator_busy_ns_per_op": ours_ns / r.operations,
        "engine_empty_share": empty / awake if awake else None,
        "engine_presence": presence(r),
        "engine_useful_s": useful / 1e6,
        "engine_empty_s": empty / 1e6,
        "engine_asleep_s": asleep / 1e6,
        # As the papers have it, of the initiator's side; its engine's empty polls are in it.
        "cycles_per_bit": ours_ns / 1e9 * r.core_hz / bits if bits else None,
        "total_cycles_per_bit": busy_ns / 1e9 * r.core_hz / bits if bits else None,
        "useful_cycles_per_bit": (
            max(ours_ns / 1e9 - empty / 1e6 * presence(r), 0.0) * r.core_hz / bits if bits else None
        ),
        "others_busy_share": max(cores_busy_s - busy_ns / 1e9, 0.0) / r.wall_s,
        "tsc_hz": r.tsc_hz,
        "core_hz": r.core_hz,
    }


def _counts(r: Readings) -> dict[str, float]:
    used = list(r.processes.values())
    voluntary = sum(one.voluntary for one in used)
    interrupts = r.system[1].interrupts - r.system[0].interrupts
    counts = {
        "context_switches": voluntary + sum(one.involuntary for one in used),
        "voluntary_switches": voluntary,
        "host_switches": _host(r).voluntary + _host(r).involuntary,
        "interrupts": interrupts,
        "page_faults": sum(one.page_faults for one in used),
        # Inline a wait runs the engine, so what puts the thread to sleep is the engine's sleep.
        "wakeups": r.sum("sleeps") if r.point.placement != INLINE else _counter(r, "sleeps"),
        "waits": r.sum("waits"),
        "doorbells": r.sum("doorbells"),
    }
    return {name: count / r.operations for name, count in counts.items()}


def _reasons(r: Readings) -> dict[str, int]:
    found: dict[str, int] = {}
    for load in r.loads:
        for name, count in load["wait_ends"].items():
            if count:
                found[name] = found.get(name, 0) + int(count)
    return found


# --- the engine's own accounts -------------------------------------------------------------------


def _grown(r: Readings, name: str) -> float:
    return sum(float(after[name]) - float(before[name]) for before, after in r.engines)


def presence(r: Readings) -> float:
    """Of the time in which the engines were not asleep, the share in which they had a core.

    Their accounts are of the time-stamp counter, which runs on while others have the core.
    """
    asleep_s = _grown(r, "asleep_us") / 1e6
    if r.point.placement == INLINE:
        cpu_ns = _host(r).cpu_ns
        there_s = sum(float(load["seconds"]) for load in r.loads) - asleep_s
    else:
        cpu_ns = r.processes["engine"].cpu_ns
        there_s = (_grown(r, "useful_us") + _grown(r, "empty_us")) / 1e6
    return min(cpu_ns / 1e9 / there_s, 1.0) if there_s > 0 else 1.0


def _counter(r: Readings, name: str) -> int:
    return sum(after["counters"][name] - before["counters"][name] for before, after in r.engines)


def _engine_counters(r: Readings) -> dict[str, Any]:
    """Passes and counters of all engines together, for one operation."""
    if not r.engines:
        return {}
    names = r.engines[0][1]["counters"]
    return {
        "passes": _grown(r, "passes") / r.operations,
        "useful_passes": _grown(r, "useful_passes") / r.operations,
        "counters": {name: _counter(r, name) / r.operations for name in names},
    }


def _stage_rows(r: Readings) -> dict[str, dict[str, float]]:
    per_us = r.tsc_hz / 1e6
    found: dict[str, dict[str, float]] = {}
    for before, after in r.engines:
        for old, new in zip(before["stages"], after["stages"], strict=True):
            row = found.setdefault(new["stage"], {"cycles": 0.0, "empty_cycles": 0.0, "useful": 0})
            row["cycles"] += (new["useful_us"] - old["useful_us"]) * per_us
            row["empty_cycles"] += (new["empty_us"] - old["empty_us"]) * per_us
            row["useful"] += new["runs"] - old["runs"]
    passes = _grown(r, "passes")
    return {name: {**row, "passes": passes} for name, row in found.items()}


def _stages(r: Readings) -> dict[str, Any]:
    """Totals of each stage: cycles of the passes in which it did work, and how many those were."""
    rows = _stage_rows(r)
    return {"engine": rows} if rows else {}


def layers(r: Readings) -> dict[str, float | None]:
    """Where the cycles of all the run's cores went, for one operation; they add up to all of them.

    `iscsi` is what the hosts used beyond their inline engines, `queues` and `tcp` (or `rdma`) are
    the engine's stages, `target` is its process. `others` is what is left of the cores' busy time:
    interrupts, the engine between its stages, other processes. `idle` are empty polls, and cores
    with nothing to do.
    """
    cycles_per_s, cores = r.tsc_hz / r.operations, _core_times(r)
    rows = _stage_rows(r)

    def stages(names: Sequence[str]) -> float:
        cycles = sum(rows[name]["cycles"] for name in names if name in rows)
        return cycles * present / r.operations

    present = presence(r)
    queues, wire = stages(QUEUE_STAGES), stages(WIRE_STAGES)
    empty = _grown(r, "empty_us") / 1e6 * present * cycles_per_s
    host = _host(r).cpu_ns / 1e9 * cycles_per_s
    if r.point.placement == INLINE:
        # All of it is estimated from two clocks: never below zero.
        host = max(host - queues - wire - empty, 0.0)
    target = r.processes["target"].cpu_ns / 1e9 * cycles_per_s
    idle_s = sum(times.idle_s for times in cores.values())
    whole = r.wall_s * len(cores) * cycles_per_s
    idle = empty + idle_s * cycles_per_s
    others = whole - host - queues - wire - target - idle
    return {
        "scsi": None,
        "iscsi": host,
        "queues": queues,
        "rdma" if r.point.transport == "iser" else "tcp": wire,
        "copies": None,
        "target": target,
        "others": others,
        "idle": idle,
    }
