"""Where an engine's time goes while a load runs: per command and per stage, from its own accounts.

The one rule: the accounts are read where the engine keeps them, before and after; nothing is asked
of the engine meanwhile. All figures are per command, times in µs of the engine's core.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from bench.harness import Measurement
from ppe.cycle.accounts import ENGINE_INFO, AccountsLayout
from ppe.observer import Accounts
from shm.records import SEGMENT_HEADER

PARTS: Final = ("useful", "empty", "asleep")
LEAST_US: Final = 0.005  # a stage below this is not printed


@dataclass(slots=True)
class EngineTimes:
    """What an engine used since `started`: filled in by `watching`."""

    before: list[dict[str, Any]] = field(default_factory=list)
    after: list[dict[str, Any]] = field(default_factory=list)

    def per_command(self, commands: int) -> dict[str, Any]:
        """The accounts of all the engines together, for one of `commands`."""

        def grown(pick: Any) -> float:
            total: float = sum(map(pick, self.after)) - sum(map(pick, self.before))
            return total / commands

        names = [row["stage"] for row in self.after[0]["stages"]] if self.after else []
        counters = self.after[0]["counters"] if self.after else {}
        return {
            **{f"{part}_us": grown(lambda s, part=part: s[f"{part}_us"]) for part in PARTS},
            "passes": grown(lambda s: s["passes"]),
            "stages_us": {
                name: grown(lambda s, at=at: s["stages"][at]["useful_us"])
                for at, name in enumerate(names)
            },
            "counters": {
                name: grown(lambda s, name=name: s["counters"][name]) for name in counters
            },
        }


@contextmanager
def watching(handle: Any) -> Iterator[EngineTimes]:
    """Account what the engine of a handle does inside the block; a daemon's or an inline one."""
    segments = handle.accounts()
    try:
        found = EngineTimes([snapshot_of(segment.array) for segment in segments])
        yield found
        found.after = [snapshot_of(segment.array) for segment in segments]
    finally:
        if not getattr(handle, "inline", False):
            for segment in segments:
                segment.close()


def snapshot_of(array: Any) -> dict[str, Any]:
    """The accounts in a mapped segment, which says itself how many rows it has."""
    start = -(-SEGMENT_HEADER.itemsize // 128) * 128
    info = array[start : start + ENGINE_INFO.itemsize].view(ENGINE_INFO)[0]
    layout = AccountsLayout(int(info["channel_count"]), int(info["endpoint_count"]))
    return Accounts(layout, array).snapshot()


def notes(runs: Sequence[Measurement]) -> list[str]:
    """One line for each kind of run through an engine: what every side and stage took."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        if run.details.get("engine"):
            kinds.setdefault((run.name, run.placement), []).append(run.details)
    return [f"{name}; {where}: {_costs(found)}" for (name, where), found in kinds.items()]


def _costs(found: Sequence[Mapping[str, Any]]) -> str:
    """Medians over the runs of one kind, as text."""

    def middle(*path: str) -> float:
        values = []
        for details in found:
            value: Any = details
            for word in path:
                value = value[word]
            values.append(float(value))
        return median(values)

    cpu = [f"{name} {middle('cpu_us_per_io', name):.2f}" for name in found[0]["cpu_us_per_io"]]
    stages = [
        f"{name} {took:.2f}"
        for name in found[0]["engine"]["stages_us"]
        if (took := middle("engine", "stages_us", name)) >= LEAST_US
    ]
    idle = [f"{part} {middle('engine', f'{part}_us'):.2f}" for part in PARTS[1:]]
    wakeups = [
        f"{name} {middle('wakeups_per_io', name):.2f}" for name in found[0]["wakeups_per_io"]
    ]
    return (
        f"µs/IO: CPU of {', '.join(cpu)}; the client's engine: {', '.join([*stages, *idle])}; "
        f"wake-ups/IO of {', '.join(wakeups)}"
    )
