"""Before an answer leaves one engine, every other engine knows what it promises.

A ring keeps an order: what ends or fences something holds in its engine before what was posted
behind it. Between rings there is none. So a server with several engines counts for each what it
posted there of that kind, and posts a NOP behind it; the NOP's completion says that the engine has
taken all of it. Until then no other engine gets an answer. Compiled, in the server's thread.
"""

from typing import Final

from host import native
from host.records import context_at
from shm.channel import host_channel_at
from shm.jit import nopython
from shm.layout import Field, record
from shm.view import opener

LANE: Final = record(
    Field("context", "<i8"),  # the channel's CONTEXT
    Field("lending", "<i8"),  # LENDING, with a datamover, else 0
    Field("number", "<i8"),  # its place among the lanes
    Field("flushed", "<i8"),  # posts for which the bell was looked at
    Field("sweeping", "<i8"),  # 1: a NOP is under way whose completion covers silent sends
    Field("fences", "<i8"),  # what ends or fences something: how much of it was posted
    Field("known", "<i8"),  # how much of that the engine has taken for certain
    Field("barrier", "<i8"),  # how much a NOP under way stands behind, 0: there is none
    # 1 while operations of Python's that found no room hold answers back, because these may promise
    # what those say.
    Field("held", "<i8"),
    size=128,
)
lane_at = opener(LANE)
LANE_SIZE: Final = LANE.itemsize
BARRIER: Final = 13  # user_data of the NOP


@nopython
def raise_barriers(lanes: int, count: int) -> None:
    """Post a NOP behind whatever an engine may not know yet. Without room, the next time."""
    if count == 1:
        return
    for place in range(count):
        mine = lane_at(lanes + place * LANE_SIZE)[0]
        if mine["known"] == mine["fences"] or mine["barrier"] != 0:
            continue
        if native.post_nop(mine["context"], BARRIER, 0) > 0:
            mine["barrier"] = mine["fences"]


@nopython
def barrier_passed(lane: int) -> None:
    """The NOP is complete."""
    mine = lane_at(lane)[0]
    mine["known"] = mine["barrier"]
    mine["barrier"] = 0


@nopython
def others_know(lanes: int, count: int, lane: int) -> bool:
    """Whether every engine but this lane's knows all that ends or fences something. `lane` 0: every
    engine.
    """
    if count == 1:
        return True
    for place in range(count):
        other = lanes + place * LANE_SIZE
        mine = lane_at(other)[0]
        if other != lane and mine["known"] != mine["fences"]:
            return False
    return True


@nopython
def is_held(lanes: int, count: int) -> bool:
    """Whether something that Python posts first found no room yet, at any engine."""
    held = 0
    for place in range(count):
        held += lane_at(lanes + place * LANE_SIZE)[0]["held"]
    return held != 0


@nopython
def flush(lanes: int, count: int) -> None:
    """Ring for what was posted since the last time; an idle server must not ring any bell."""
    for place in range(count):
        mine = lane_at(lanes + place * LANE_SIZE)[0]
        channel = host_channel_at(context_at(mine["context"])[0]["channel"])[0]
        if channel["posted"] != mine["flushed"]:
            native.flush(mine["context"])
            mine["flushed"] = channel["posted"]
