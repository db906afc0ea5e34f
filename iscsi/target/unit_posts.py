"""The two operations of a table of units that an engine serves itself (`iscsi.wire.mover`, UNIT and
FENCE), as the server posts them. Compiled, and called from Python: they are rare.
"""

from typing import Final

from host import native
from host.records import context_at
from shm.channel import H_PRODUCER, fill, prepare, submit
from shm.jit import entry
from shm.layout import Field, record
from shm.memory import store_64
from shm.operations import MOVER_FENCE, MOVER_UNIT
from shm.records import wqe_at
from shm.ring import claim
from shm.view import opener

UNIT_CLOSED: Final = 1
UNIT_READ_ONLY: Final = 2
COUNT_BYTES: Final = 1 << 8
AT_ONCE: Final = 1 << 9  # a FENCE that only counts: it waits for nothing
BLOCKS: Final = 1 << 10  # a FENCE that waits for WRITEs of some blocks only
_MORE_WORDS: Final = 8  # bytes before the first word of a WQE's second slot

UNIT_POST: Final = record(
    Field("table", "<i8"),
    Field("user_data", "<i8"),
    Field("lun", "<i8"),
    Field("region", "<i8"),
    Field("offset", "<i8"),
    Field("length", "<i8"),  # bytes of memory; 0 removes the unit
    Field("flags", "<i8"),
    Field("block_size", "<i8"),
    Field("granularity", "<i8"),
    Field("map_region", "<i8"),
    Field("map_offset", "<i8"),
    Field("map_length", "<i8"),
    size=128,
)
unit_post_at = opener(UNIT_POST)


@entry("int64(intp, intp)")
def post_unit(context: int, asked: int) -> int:
    """Post a UNIT and ring: 1, or 0 if there is no room."""
    mine = unit_post_at(asked)[0]
    channel = context_at(context)[0]["channel"]
    if not prepare(channel, 2):
        return 0
    slot = fill(
        channel,
        MOVER_UNIT,
        0,
        mine["table"],
        mine["user_data"],
        mine["region"],
        mine["offset"],
        0,
    )
    entry = wqe_at(slot)[0]
    entry["arg0"] = mine["lun"]
    entry["arg1"] = mine["length"]
    entry["arg2"] = mine["flags"]
    more = claim(channel + H_PRODUCER, 1) + _MORE_WORDS
    store_64(more, mine["block_size"])
    store_64(more + 8, mine["granularity"])
    store_64(more + 16, mine["map_region"])
    store_64(more + 24, mine["map_offset"])
    store_64(more + 32, mine["map_length"])
    store_64(more + 40, 0)
    store_64(more + 48, 0)
    submit(channel, 2)
    native.flush(context)
    return 1


@entry("int64(intp, int64, int64, int64, int64, int64, int64)")
def post_fence(
    context: int, table: int, user_data: int, lun: int, flags: int, first: int, count: int
) -> int:
    """Post a FENCE of a unit and ring: 1, or 0 if there is no room. With BLOCKS: of `count` blocks
    from `first` on.
    """
    channel = context_at(context)[0]["channel"]
    if not prepare(channel, 1):
        return 0
    slot = fill(channel, MOVER_FENCE, flags, table, user_data, 0, count, 0)
    wqe_at(slot)[0]["arg0"] = lun
    wqe_at(slot)[0]["arg1"] = first
    submit(channel, 1)
    native.flush(context)
    return 1
