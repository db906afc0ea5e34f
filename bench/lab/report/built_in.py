"""What each built-in experiment asks, and the figures that answer it.

The one rule: an experiment that is not known here is not poorer for it: it gets the figures of its
own swept fields.
"""

from collections.abc import Mapping
from typing import Final

from bench.lab.report.figures import Wanted, generic
from bench.lab.results import Results

TITLES: Final[Mapping[str, str]] = {
    "eta": "SMP against AMP: throughput, utilisation and cost",
    "libiscsi-iser": "iSCSI over TCP against iSER: depth, size and clients",
    "thesis": "iSCSI against iSCSI over RDMA by request size",
    "wait-n": "Coalescing: what waiting for N completions costs and saves",
    "partition": "How many cores for the network, how many for the application",
    "registration": "Memory registration by reuse",
    "scaling": "Clients, connections and engines",
}
QUESTIONS: Final[Mapping[str, str]] = {
    "eta": "What does an operation cost when one symmetric thread does everything, what when an "
    "engine on a core of its own does the protocol work, and in which layers is the difference?",
    "libiscsi-iser": "What does RDMA bring as the queue deepens, as the blocks grow and as clients "
    "are added?",
    "thesis": "How do operations a second and the CPU used differ between iSCSI and iSCSI over "
    "RDMA, by request size?",
    "wait-n": "How do latency, wake-ups and CPU per operation change with N, the number of "
    "completions a sleeping host waits for?",
    "partition": "Which split of cores between engines and hosts suits which workload, and where "
    "does one overtake another?",
    "registration": "What does opening a buffer to the network cost, by strategy and by how often "
    "a buffer is used again?",
    "scaling": "What does another client, another connection, another engine add?",
}


def _over(x: str, lines: tuple[str, ...], *metrics: str) -> list[Wanted]:
    return [Wanted(metric, x, lines) for metric in metrics]


def _bars(*metrics: str) -> list[Wanted]:
    return [Wanted(metric, "workload", kind="bars") for metric in metrics]


FIGURES: Final[Mapping[str, list[Wanted]]] = {
    "eta": [
        *_bars("throughput", "utilisation", "cycles_per_bit", "host_cpu", "total_cpu", "p99"),
        *_over("frequency_khz", ("placement",), "throughput", "cycles_per_bit"),
    ],
    "libiscsi-iser": [
        *_over("depth", ("transport",), "iops", "p50", "p99"),
        *_over("block_bytes", ("transport",), "throughput", "p50"),
        *_over("sessions", ("transport",), "iops", "throughput"),
    ],
    "thesis": _over("block_bytes", ("transport",), "iops", "host_cpu", "utilisation"),
    "wait-n": _over("wait_n", ("depth",), "p50", "p99", "wakeups", "host_cpu", "total_cpu", "iops"),
    "partition": [
        *_over("write_percent", ("engines", "hosts"), "iops", "total_cpu"),
        *_over("block_bytes", ("engines", "hosts"), "throughput"),
        *_over("depth", ("engines", "hosts"), "iops"),
    ],
    "registration": [
        *_over("reuse", ("registration",), "iops", "p50", "total_cpu"),
        *_over("depth", ("registration",), "iops", "total_cpu"),
        *_over("block_bytes", ("registration",), "iops", "total_cpu"),
        *_bars("iops", "total_cpu"),
    ],
    "scaling": [
        *_over("sessions", ("engines",), "iops", "total_cpu", "p99"),
        *_over("connections", ("engines",), "iops"),
        *_over("engines", ("sessions",), "iops", "total_cpu"),
    ],
}
GRIDS: Final = ("iops", "total_cpu")


def wanted(results: Results) -> list[Wanted]:
    """The figures of this result set, whoever wrote its experiment."""
    known = FIGURES.get(results.experiment)
    if known is None:
        return generic(results)
    swept = results.varying()
    found = [each for each in known if each.kind == "bars" or each.x in swept]
    lined = any(each.kind == "lines" for each in found)
    if results.experiment == "registration" and lined:
        found = [each for each in found if each.kind == "lines"]
    return found or generic(results)
