"""The list of channels that are polled: parking the idle ones, unparking those that ring.

A parked channel is in no list, so a pass costs nothing for it.
"""

from ppe.cycle.accounts import CHANNEL_STATS, CHANNEL_STATS_SIZE, INDEX
from ppe.cycle.operations import channel_row_of
from ppe.cycle.records import NONE, RINGS, engine_at, row_at
from shm import doorbell
from shm.atomics import store_relaxed
from shm.channel import E_CONSUMER, engine_channel_at
from shm.counters import count
from shm.jit import nopython
from shm.layout import offset
from shm.memory import load_32, store_32

_PARKS, _DOORBELLS = INDEX["parks"], INDEX["doorbells"]
_PARKED = offset(CHANNEL_STATS, "parked")


@nopython
def channel_stats_of(engine: int, channel: int) -> int:
    """Address of a channel's row in the accounts."""
    return int(engine_at(engine)[0]["channel_rows"] + channel * CHANNEL_STATS_SIZE)


@nopython
def activate(engine: int, channel: int) -> None:
    """Poll a channel from now on."""
    mine = engine_at(engine)[0]
    row = row_at(channel_row_of(engine, channel))[0]
    if row["active_at"] != NONE:
        return
    row["active_at"] = mine["active_count"]
    row["last_work"] = mine["now"]
    store_32(mine["active"] + 4 * mine["active_count"], channel)
    mine["active_count"] += 1
    store_relaxed(channel_stats_of(engine, channel) + _PARKED, 0)


@nopython
def deactivate(engine: int, channel: int) -> None:
    """Poll a channel no more: the last of the list takes its place."""
    mine = engine_at(engine)[0]
    row = row_at(channel_row_of(engine, channel))[0]
    place = row["active_at"]
    if place == NONE:
        return
    mine["active_count"] -= 1
    last = load_32(mine["active"] + 4 * mine["active_count"])
    store_32(mine["active"] + 4 * place, last)
    row_at(channel_row_of(engine, last))[0]["active_at"] = place
    row["active_at"] = NONE


@nopython
def park(engine: int, channel: int) -> bool:
    """Stop polling until the host rings. False if there is work after all."""
    rings = channel_row_of(engine, channel) + RINGS
    if not doorbell.park(rings + E_CONSUMER, engine_channel_at(rings)[0]["need_doorbell"]):
        return False
    deactivate(engine, channel)
    store_relaxed(channel_stats_of(engine, channel) + _PARKED, 1)
    count(engine_at(engine)[0]["counters"], _PARKS, 1)
    return True


@nopython
def on_doorbell(engine: int, channel: int) -> int:
    """A host rang: poll its channel again."""
    row = row_at(channel_row_of(engine, channel))[0]
    if row["client"] == 0 or row["dead"] != 0:
        return 0
    # The bell is never read: each ring is a new edge, and reading could block if it were tampered.
    doorbell.unpark(engine_channel_at(channel_row_of(engine, channel) + RINGS)[0]["need_doorbell"])
    count(engine_at(engine)[0]["counters"], _DOORBELLS, 1)
    activate(engine, channel)
    return 1


@nopython
def park_all(engine: int) -> bool:
    """Park every polled channel before sleeping. False as soon as one has work."""
    mine = engine_at(engine)[0]
    while mine["active_count"] > 0:
        if not park(engine, load_32(mine["active"] + 4 * (mine["active_count"] - 1))):
            return False
    return True
