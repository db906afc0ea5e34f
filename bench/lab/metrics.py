"""What a run measures, named once: where it stands in the file, its unit, and which way is good.

The one rule: figures, tables and comparisons take label, unit and direction of a metric from here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.lab.results import Run


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured quantity, shown as `value * scale` in `unit`."""

    name: str
    path: str
    label: str
    unit: str
    scale: float = 1.0
    less_is_better: bool = True
    derived: Callable[[Run], float | None] | None = None

    def of(self, run: Run) -> float | None:
        """The value of a run in this metric's unit; None where it was not measured."""
        found = self.derived(run) if self.derived else run.value(self.path)
        return None if found is None else found * self.scale

    @property
    def axis(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


def utilisation(run: Run) -> float | None:
    """Busy time of all cores over wall time: 2 when two cores were full."""
    wall = run.value("cpu.wall_s")
    cores = run.part("cpu").get("cores")
    if not wall or not isinstance(cores, dict) or not cores:
        return None
    busy = [run.value(f"cpu.cores.{name}.busy_s") for name in cores]
    return None if None in busy else sum(value or 0.0 for value in busy) / wall


_ALL: Final = (
    Metric("iops", "iops", "operations a second", "k/s", 1e-3, less_is_better=False),
    Metric(
        "throughput", "throughput_bytes_per_s", "throughput", "MB/s", 1e-6, less_is_better=False
    ),
    Metric("mean", "latency_ns.mean", "mean latency", "µs", 1e-3),
    Metric("p50", "latency_ns.p50", "median latency", "µs", 1e-3),
    Metric("p99", "latency_ns.p99", "99th percentile of latency", "µs", 1e-3),
    Metric("host_cpu", "cpu.host_cpu_ns_per_op", "host CPU per operation", "µs", 1e-3),
    Metric(
        "initiator_cpu",
        "cpu.initiator_busy_ns_per_op",
        "busy CPU of hosts and engines per operation",
        "µs",
        1e-3,
    ),
    Metric(
        "total_cpu", "cpu.total_busy_ns_per_op", "busy CPU of all cores per operation", "µs", 1e-3
    ),
    Metric("cycles_per_bit", "cpu.cycles_per_bit", "cost", "GHz/Gbps"),
    Metric("utilisation", "", "CPU utilisation of all cores", "%", 100.0, derived=utilisation),
    Metric("empty", "cpu.engine_empty_share", "share of empty engine passes", "%", 100.0),
    Metric("wakeups", "counts_per_op.wakeups", "wake-ups per operation", ""),
    Metric("doorbells", "counts_per_op.doorbells", "doorbells per operation", ""),
    Metric("switches", "counts_per_op.context_switches", "context switches per operation", ""),
    Metric("interrupts", "counts_per_op.interrupts", "interrupts per operation", ""),
    Metric("page_faults", "counts_per_op.page_faults", "page faults per operation", ""),
    Metric("cycles", "hardware.cycles", "core cycles per operation", ""),
    Metric("instructions", "hardware.instructions", "instructions per operation", ""),
    Metric("cache_misses", "hardware.cache_misses", "cache misses per operation", ""),
    Metric("clears", "hardware.machine_clears", "machine clears per operation", ""),
)
METRICS: Final = {metric.name: metric for metric in _ALL}
# What two result sets, or SMP and AMP, are compared by.
COMPARED: Final = ("iops", "host_cpu", "total_cpu", "cycles_per_bit", "p50", "p99")
