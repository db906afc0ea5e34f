"""Write result sets as the measuring side does, with figures that the test chooses.

Every number of a run comes from `Machine`, a machine that costs what it is told to, with seeded
noise: a test knows the truth that the reading side has to find.
"""

import json
import random
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

POINT = {
    "placement": "inline",
    "transport": "tcp",
    "operation": "read",
    "write_percent": 0,
    "block_bytes": 8192,
    "depth": 32,
    "sessions": 1,
    "connections": 1,
    "digests": "none",
    "immediate_data": True,
    "rate_per_s": None,
    "wait_n": None,
    "wait_us": 1000,
    "registration": None,
    "wait_mode": "sleep",
    "idle": "sleep",
    "engines": 1,
    "hosts": 1,
    "target": "engine",
    "target_idle": "sleep",
    "pinned": True,
    "random": False,
}
MACHINE = {
    "cpu_model": "Example CPU",
    "cpus": 2,
    "kernel": "6.1.0",
    "hypervisor": True,
    "isolated": None,
    "versions": {"numba": "0.68.1", "numpy": "2.4.6"},
    "python": "3.11.7",
}
TSC_HZ = 2_400_000_000.0
LAYERS = {"scsi": 2000, "iscsi": 900, "queues": 800, "tcp": 9000, "copies": 4000, "others": 300}


@dataclass
class Machine:
    """What an operation costs; `host_us` and `engine_us` may depend on the point."""

    seed: int = 1
    noise: float = 0.01
    iops: Any = lambda point: 40_000.0
    host_us: Any = lambda point: 20.0
    engine_us: Any = lambda point: 10.0
    layers: Any = lambda point: LAYERS | {"idle": 5000}
    drift: float = 0.0  # how much slower each later repeat is
    omit: tuple[str, ...] = ()
    generator: random.Random = field(init=False)

    def __post_init__(self):
        self.generator = random.Random(self.seed)

    def shaken(self, value):
        return value * self.generator.lognormvariate(0, self.noise)

    def measured(self, point, repeat):
        iops = self.shaken(self.iops(point)) * (1 - self.drift * repeat)
        smp = point["placement"] == "inline"
        host = self.shaken(self.host_us(point))
        engine = 0.0 if smp else self.shaken(self.engine_us(point))
        latency = 1e9 * point["depth"] * point["sessions"] / iops
        seconds = 1.0
        operations = int(iops * seconds)
        busy = (host + engine) * 1e-6 * iops
        found = {
            "operations": operations,
            "bytes": operations * point["block_bytes"],
            "iops": iops,
            "throughput_bytes_per_s": iops * point["block_bytes"],
            "latency_ns": {
                "count": operations,
                "min": 0.5 * latency,
                "mean": latency,
                "p50": 0.95 * latency,
                "p90": 1.5 * latency,
                "p99": 2.5 * latency,
                "p999": 4 * latency,
                "max": 8 * latency,
                "from": "intended" if point["rate_per_s"] else "issued",
            },
            "latency_histogram": {
                "kind": "log-linear",
                "significant_bits": 5,
                "edges_ns": [int(0.9 * latency), int(2.4 * latency)],
                "counts": [operations - operations // 100, operations // 100],
            },
            "cpu": {
                "wall_s": seconds,
                "cores": {
                    "0": {"busy_s": host * 1e-6 * iops, "idle_s": 0.1},
                    "1": {"busy_s": engine * 1e-6 * iops, "idle_s": 0.2},
                },
                "processes": {
                    "host": {"user_s": host * 0.6e-6 * iops, "system_s": host * 0.4e-6 * iops},
                    "engine": {"user_s": engine * 1e-6 * iops, "system_s": 0.0},
                    "target": {"user_s": 0.0, "system_s": 0.0},
                },
                "host_cpu_ns_per_op": host * 1000,
                "total_busy_ns_per_op": (host + engine) * 1000,
                "engine_empty_share": None if smp else 0.0,
                "cycles_per_bit": busy / iops * TSC_HZ / (8 * point["block_bytes"]),
                "tsc_hz": TSC_HZ,
            },
            "counts_per_op": {
                "context_switches": self.shaken(0.5),
                "voluntary_switches": self.shaken(0.4),
                "interrupts": self.shaken(0.1),
                "page_faults": 0.0,
                "wakeups": self.shaken(1.0 / (point["wait_n"] or 1)),
                "doorbells": self.shaken(1.0),
            },
            "layers": {name: self.shaken(v) for name, v in self.layers(point).items()},
            "hardware": None,
        }
        return {name: value for name, value in found.items() if name not in self.omit}


def settled(point):
    """What follows from the rest, as the measuring side has it in its files."""
    share = {"read": 0, "write": 100}.get(point["operation"], point["write_percent"])
    engines = 0 if point["placement"] == "inline" else point["engines"]
    return point | {"write_percent": share, "engines": engines}


def run_file(identity, experiment, point, repeat, measured, order=0, **more):
    return {
        "schema": 1,
        "id": identity,
        "experiment": experiment,
        "repeat": repeat,
        "seed": 7,
        "order": order,
        "point": point,
        "cores": {
            "engine": list(range(point["hosts"], point["hosts"] + point["engines"])),
            "host": list(range(point["hosts"])),
            "target": [0],
            "shared": True,
            "isolated": False,
        },
        "started_at": "2026-12-01T00:00:00+00:00",
        "warm_up_s": 0.1,
        "measured_s": 1.0,
        "status": "done",
        "reason": None,
        "measured": measured,
        "not_measured": {"hardware": "no hardware counters: perf_event_open says ENOENT"},
        "machine": MACHINE,
        "versions": {"ppe": "0.1.0", "python": "3.11.7", "kernel": "6.1.0"},
        "sources": "abc123",
        "faults": [],
    } | more


def write(
    directory: Path,
    sweep: dict[str, list[Any]],
    *,
    experiment="eta",
    repeats=5,
    machine=None,
    spec="",
    **fixed,
):
    """Write the whole grid of `sweep` into `directory`; returns it."""
    return write_points(
        directory,
        [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())],
        experiment=experiment,
        repeats=repeats,
        machine=machine,
        spec=spec,
        **fixed,
    )


def write_points(directory, points, *, experiment="eta", repeats=5, machine=None, spec="", **fixed):
    machine = machine or Machine()
    runs = directory / "runs"
    runs.mkdir(parents=True)
    (directory / "experiment.toml").write_text(spec or f'name = "{experiment}"\n')
    planned = []
    order = 0
    for repeat in range(repeats):
        for swept in points:
            point = settled(POINT | fixed | swept)
            identity = f"{order:04}"
            planned.append({"id": identity, "point": point, "repeat": repeat})
            made = run_file(
                identity, experiment, point, repeat, machine.measured(point, repeat), order
            )
            (runs / f"{identity}.json").write_text(json.dumps(made))
            order += 1
    plan = {"schema": 1, "experiment": experiment, "seed": 7, "runs": planned}
    (directory / "plan.json").write_text(json.dumps(plan))
    return directory


def edit(directory, identity, change):
    """Rewrite one run file by `change(raw)`."""
    path = directory / "runs" / f"{identity}.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
