"""Announce the pass's completions: at most one wake-up per channel, after all are published."""

from ppe.cycle.accounts import CHANNEL_STATS, INDEX
from ppe.cycle.operations import channel_row_of
from ppe.cycle.records import RINGS, engine_at, row_at
from ppe.cycle.stages.channels import channel_stats_of
from shm.atomics import store_relaxed
from shm.channel import E_PRODUCER, E_WAKER, engine_channel_at
from shm.counters import count
from shm.jit import nopython
from shm.layout import offset
from shm.memory import load_32
from shm.records import waker_at
from shm.solicited import wake_if_solicited
from shm.wait import wake_if_crossed

_WAKES = INDEX["wakes"]
_COMPLETED, _CHANNEL_WAKES = offset(CHANNEL_STATS, "completed"), offset(CHANNEL_STATS, "wakes")


@nopython
def step(engine: int) -> int:
    """Look for waiters whose threshold was crossed and wake them. Return the wakes."""
    mine = engine_at(engine)[0]
    woken = 0
    for place in range(mine["dirty_count"]):
        channel = load_32(mine["dirty"] + 4 * place)
        address = channel_row_of(engine, channel)
        row = row_at(address)[0]
        row["dirty"] = 0
        if row["client"] == 0 or row["dead"] != 0:
            continue
        rings = address + RINGS
        if engine_channel_at(rings)[0]["solicited"] != 0:
            engine_channel_at(rings)[0]["solicited"] = 0
            woken += wake_if_solicited(rings + E_PRODUCER, rings + E_WAKER)
        else:
            woken += wake_if_crossed(rings + E_PRODUCER, rings + E_WAKER)
        stats = channel_stats_of(engine, channel)
        store_relaxed(stats + _COMPLETED, engine_channel_at(rings)[0]["completed"])
        store_relaxed(stats + _CHANNEL_WAKES, waker_at(rings + E_WAKER)[0]["wakes"])
    mine["dirty_count"] = 0
    if woken > 0:
        count(mine["counters"], _WAKES, woken)
    return woken
