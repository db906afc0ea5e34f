"""What the papers printed, and the formula of theirs that our figures are put through.

The one rule: a number stands here only if a paper prints it, with its table or figure.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

COUNTERS: Final = ("cycles", "instructions", "clears", "l2_misses")
# The paper's bins as our layers: our engine uses the kernel's TCP, so what the paper calls kernel
# support and driver lies within the socket calls that we count as TCP.
BINS: Final[Mapping[str, str]] = {
    "scsi": "scsi",
    "iscsi": "iscsi",
    "interface": "queues",
    "kernel": "tcp",
    "tcp": "tcp",
    "driver": "tcp",
    "copies": "copies",
    "others": "others",
    "idle": "idle",
}


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement of a paper, with where it stands; `ratio` is AMP over SMP when it gives one."""

    source: str
    where: str
    metric: str
    text: str
    ratio: tuple[float, float] | None = None

    @property
    def cited(self) -> str:
        """The statement with its source."""
        return f"{self.text} ({sources()[self.source]['short']}, {self.where})"


@cache
def data() -> Mapping[str, Any]:
    """The whole data file."""
    return tomllib.loads(resources.files("bench.lab").joinpath("papers.toml").read_text("utf-8"))


def sources() -> Mapping[str, Mapping[str, str]]:
    """The papers, by the experiment that follows each."""
    found: Mapping[str, Mapping[str, str]] = data()["sources"]
    return found


def claims(experiment: str) -> list[Claim]:
    """What the paper behind an experiment states in numbers."""
    return [
        Claim(
            row["source"],
            row["where"],
            row["metric"],
            row["text"],
            tuple(row["ratio"]) if "ratio" in row else None,
        )
        for row in data()["claims"]
        if row["source"] == experiment
    ]


def not_printed(experiment: str) -> list[str]:
    """The paper's figures that we cannot stand beside, and why."""
    return [
        f"{sources()[row['source']]['short']}, {row['where']}: {row['why']}"
        for row in data()["not_printed"]
        if row["source"] == experiment
    ]


def table_1(workload: str, mode: str, counter: str = "cycles") -> dict[str, float]:
    """A column of Table 1 over both processors, by the paper's bins; `mode` is "smp" or "amp"."""
    at = COUNTERS.index(counter)
    rows = data()["eta"]["table_1"][workload][mode]
    return {name: float(sum(cpu[at] for cpu in cpus)) for name, cpus in rows.items()}


def table_2(workload: str, counter: str = "cycles") -> dict[str, float]:
    """A column of Table 2 in per cent, as printed."""
    at = ("cycles", "l2_misses", "clears").index(counter)
    return {name: float(row[at]) for name, row in data()["eta"]["table_2"][workload].items()}


def as_our_layers(bins: Mapping[str, float]) -> dict[str, float]:
    """Add the paper's bins up to our layers; a total stays one."""
    found: dict[str, float] = {}
    for name, value in bins.items():
        layer = BINS.get(name, name)
        found[layer] = found.get(layer, 0.0) + value
    return found


def improvement(smp: Mapping[str, float], amp: Mapping[str, float]) -> dict[str, float]:
    """Improvement of AMP over SMP by layer, as a share of SMP's total (the paper's §5.3).

    (layer_smp / total_smp) (1 - layer_amp / layer_smp), where the total has idle in it: only then
    does Table 2 follow from Table 1. Idle itself has no row; "total" is the sum of the rows. A
    layer that only AMP has counts against it. Raises ValueError when SMP's total is not positive.
    """
    total = sum(smp.values())
    if total <= 0:
        raise ValueError("the layers of SMP add up to nothing")
    names = [name for name in dict.fromkeys([*smp, *amp]) if name != "idle"]
    rows = {name: (smp.get(name, 0.0) - amp.get(name, 0.0)) / total for name in names}
    return rows | {"total": sum(rows.values())}
