"""Announce the pass's completions: at most one wake-up per channel, after all are published. Hosts
that wait for several have left it to the engine to say when fewer are enough.
"""

from ppe.cycle.accounts import CHANNEL_STATS, INDEX
from ppe.cycle.operations import channel_row_of
from ppe.cycle.records import RINGS, engine_at, row_at
from ppe.cycle.stages.channels import channel_stats_of
from shm.atomics import store_relaxed
from shm.channel import E_PRODUCER, E_WAKER, engine_channel_at
from shm.counters import count
from shm.jit import nopython
from shm.layout import offset
from shm.libc import monotonic_ns
from shm.memory import load_32, store_32
from shm.records import waker_at
from shm.solicited import wake_if_solicited
from shm.wait import GATHERING, WOKEN, is_time_kept, keep_time, wake_if_crossed

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
            crossed = wake_if_solicited(rings + E_PRODUCER, rings + E_WAKER)
        else:
            crossed = wake_if_crossed(rings + E_PRODUCER, rings + E_WAKER)
        woken += crossed
        if crossed == 0 and row["gathering"] == 0 and is_time_kept(rings + E_WAKER):
            row["gathering"] = 1
            store_32(mine["gathering"] + 4 * mine["gathering_count"], channel)
            mine["gathering_count"] += 1
        stats = channel_stats_of(engine, channel)
        store_relaxed(stats + _COMPLETED, engine_channel_at(rings)[0]["completed"])
        store_relaxed(stats + _CHANNEL_WAKES, waker_at(rings + E_WAKER)[0]["wakes"])
    mine["dirty_count"] = 0
    if woken > 0:
        count(mine["counters"], _WAKES, woken)
    return woken


@nopython
def keep_times(engine: int) -> int:
    """Wake the hosts whose minimum wait is over and for whom something is there. Return the wakes.

    To be called in each pass while there are such hosts; the engine does not sleep meanwhile.
    """
    mine = engine_at(engine)[0]
    now_ns = monotonic_ns()
    woken = left = 0
    for place in range(mine["gathering_count"]):
        channel = load_32(mine["gathering"] + 4 * place)
        address = channel_row_of(engine, channel)
        row = row_at(address)[0]
        found = 0
        if row["client"] != 0 and row["dead"] == 0:
            rings = address + RINGS
            found = keep_time(rings + E_PRODUCER, rings + E_WAKER, now_ns)
        if found == GATHERING:
            store_32(mine["gathering"] + 4 * left, channel)
            left += 1
            continue
        row["gathering"] = 0
        if found == WOKEN:
            woken += 1
            wakes = waker_at(address + RINGS + E_WAKER)[0]["wakes"]
            store_relaxed(channel_stats_of(engine, channel) + _CHANNEL_WAKES, wakes)
    mine["gathering_count"] = left
    if woken > 0:
        count(mine["counters"], _WAKES, woken)
    return woken
