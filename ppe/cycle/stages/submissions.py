"""Drain the work rings of the polled channels, a bounded number of operations from each."""

import errno
from typing import Final

from ppe.cycle.accounts import CHANNEL_STATS, INDEX
from ppe.cycle.operations import channel_row_of, mark_dirty, refuse
from ppe.cycle.records import CONTROL_CHANNEL, RINGS, engine_at, row_at
from ppe.cycle.services import dispatch
from ppe.cycle.stages import control
from ppe.cycle.stages.channels import channel_stats_of, park
from shm.atomics import store_relaxed
from shm.channel import engine_channel_at, take
from shm.counters import count
from shm.jit import nopython
from shm.layout import offset
from shm.memory import load_32

_OPERATIONS = INDEX["operations"]
_TAKEN, _COMPLETED = offset(CHANNEL_STATS, "taken"), offset(CHANNEL_STATS, "completed")
EINVAL: Final = -errno.EINVAL


@nopython
def step(engine: int) -> int:
    """Take operations and hand each to its service. Channels idle for long are parked."""
    mine = engine_at(engine)[0]
    total = 0
    place = 0
    while place < mine["active_count"]:
        channel = load_32(mine["active"] + 4 * place)
        done = _drain(engine, channel)
        row = row_at(channel_row_of(engine, channel))[0]
        if done > 0:
            total += done
            row["last_work"] = mine["now"]
        elif mine["now"] - row["last_work"] > mine["park_after"] and park(engine, channel):
            continue  # Another channel has this place in the list now.
        place += 1
    if total > 0:
        count(mine["counters"], _OPERATIONS, total)
    return total


@nopython
def _drain(engine: int, channel: int) -> int:
    mine = engine_at(engine)[0]
    rings = channel_row_of(engine, channel) + RINGS
    wqe = mine["wqe"]
    done = 0
    while done < mine["entries_per_pass"]:
        slots = take(rings, wqe)
        if slots == 0:
            break
        done += 1
        if slots < 0:
            refuse(engine, channel, wqe, EINVAL)
        elif channel == CONTROL_CHANNEL:
            control.on_work(engine, channel, wqe)
        else:
            dispatch.on_work(engine, channel, wqe, slots)
    if done > 0:
        stats = channel_stats_of(engine, channel)
        store_relaxed(stats + _TAKEN, engine_channel_at(rings)[0]["taken"])
        mark_dirty(engine, channel)
    return done
