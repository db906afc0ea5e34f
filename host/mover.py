"""The pump of a datamover endpoint: turns a protocol's POSTs into work-queue entries and its
completions into EVENTs (`iscsi.wire.mover`), in compiled code. It knows no PDU. `make_mover` makes
one role's functions, with the same shape as those of `host.pump`, on the same PUMP record.
"""

from typing import Any, Final

from host import native
from host.pump import PumpFunctions, pump_at
from host.records import MAPPING_SIZE, context_at, mapping_at
from iscsi.wire.mover import (
    COMMAND,
    RECEIVE,
    VECTOR,
    VECTOR_SHIFT,
    WINDOW,
    event_at,
    post_at,
    vector_at,
)
from iscsi.wire.port import control_free_count
from shm.channel import H_PRODUCER, UNSOLICITED, fill, prepare, submit
from shm.jit import nopython
from shm.memory import store_64
from shm.records import cqe_at, wqe_at
from shm.ring import claim

EFAULT: Final = -14
_VECTOR_SIZE: Final = VECTOR.itemsize
_MORE_WORDS: Final = 8  # bytes before the first word of a WQE's second slot
OF_RECEIVE: Final = 4  # the low bits of the user_data of a lent buffer; its address is the rest
KIND_MASK: Final = 15
BUFFERS_MAX: Final = 62  # of one pump: they are bits of a word
CONTROL_RESERVE: Final = 4  # control slots that no lent buffer counts on
MIRROR_POST: Final = 0  # offsets in a pump's scratch
MIRROR_EVENT: Final = 128
SCRATCH_SIZE: Final = 192


@nopython
def post(context: int, endpoint: int, asked: int) -> int:
    """Post a POST: 1, 0 (no room) or -EFAULT for memory the engine does not share."""
    mine, what = context_at(context)[0], post_at(asked)[0]
    region, offset = 0, 0
    if what["length"] > 0:
        index = native.region_of(context, what["address"], what["length"])
        if index < 0:
            return EFAULT
        mapping = mapping_at(mine["mappings"] + index * MAPPING_SIZE)[0]
        region = mapping["region"]
        offset = what["address"] - mapping["address"] + mapping["offset"]
    channel = mine["channel"]
    slots = 1 if what["opcode"] == RECEIVE else 2
    if not prepare(channel, slots):
        return 0
    slot = fill(
        channel,
        what["opcode"],
        what["flags"],
        endpoint,
        what["user_data"],
        region,
        offset,
        what["length"],
    )
    entry = wqe_at(slot)[0]
    entry["arg0"] = what["arg0"]
    entry["arg1"] = what["arg1"]
    entry["arg2"] = what["arg2"]
    if slots == 2:
        more = claim(channel + H_PRODUCER, 1) + _MORE_WORDS
        store_64(more, what["more0"])
        store_64(more + 8, what["more1"])
        store_64(more + 16, what["more2"])
        store_64(more + 24, what["more3"])
        store_64(more + 32, what["more4"])
        store_64(more + 40, what["more5"])
        store_64(more + 48, 0)
    submit(channel, slots)
    return 1


@nopython
def _name_vectors(context: int, vectors: int, count: int) -> int:
    """Name a gather list's addresses by region: 0, or -EFAULT for memory that is not shared."""
    mine = context_at(context)[0]
    for number in range(count):
        vector = vector_at(vectors + number * _VECTOR_SIZE)[0]
        index = native.region_of(context, vector["offset"], vector["length"])
        if index < 0:
            return EFAULT
        mapping = mapping_at(mine["mappings"] + index * MAPPING_SIZE)[0]
        vector["region"] = mapping["region"]
        vector["offset"] += mapping["offset"] - mapping["address"]
    return 0


@nopython
def _post_from(home: int, context: int, endpoint: int, asked: int) -> int:
    """`post`, of a POST that may have a gather list in `home`."""
    what = post_at(asked)[0]
    if what["opcode"] == COMMAND and what["arg2"] >> VECTOR_SHIFT:
        count = what["arg2"] >> VECTOR_SHIFT
        named = _name_vectors(context, home + what["more4"], count)
        if named < 0:
            return named
    return post(context, endpoint, asked)


@nopython
def lend(context: int, endpoint: int, address: int, length: int, scratch: int) -> int:
    """Lend a buffer for one Control_Notify: 1, 0 (no room) or -EFAULT."""
    what = post_at(scratch)[0]
    what["opcode"] = RECEIVE
    what["flags"] = 0
    what["user_data"] = address | OF_RECEIVE
    what["address"] = address
    what["length"] = length
    what["arg0"] = 0
    what["arg1"] = 0
    what["arg2"] = 0
    return post(context, endpoint, scratch)


@nopython
def read_event(completion: int, event: int) -> None:
    """A completion as an EVENT."""
    cqe, mine = cqe_at(completion)[0], event_at(event)[0]
    mine["opcode"] = cqe["opcode"]
    mine["user_data"] = cqe["user_data"]
    mine["status"] = cqe["status"]
    mine["length"] = cqe["length"]
    mine["arg0"] = cqe["arg0"]
    mine["arg1"] = cqe["arg1"]
    mine["arg2"] = cqe["arg2"]


@nopython
def _receive(pump: int) -> int:
    """Keep buffers lent, one for each control slot that is free to keep what comes in it."""
    mine = pump_at(pump)[0]
    added = 0
    while mine["lent_free"] != 0 and mine["error"] == 0:
        if mine["rx_posted"] + CONTROL_RESERVE >= control_free_count(mine["conn"]):
            break
        index = 0
        while (mine["lent_free"] >> index) & 1 == 0:
            index += 1
        address = mine["staging"] + index * mine["staging_size"]
        posted = lend(
            mine["context"],
            mine["endpoint"],
            address,
            mine["staging_size"],
            mine["scratch"] + MIRROR_POST,
        )
        if posted < 0:
            mine["error"] = posted
        if posted <= 0:
            break
        mine["lent_free"] ^= 1 << index
        mine["rx_posted"] += 1
        added += 1
    return added


def make_mover(peek: Any, taken: Any, on_event: Any, on_notify: Any) -> PumpFunctions:
    """Make the pump of one role from its upper half's nopython functions."""

    @nopython
    def send(pump: int) -> int:
        mine = pump_at(pump)[0]
        asked = mine["scratch"] + MIRROR_POST
        done = 0
        while mine["error"] == 0 and peek(mine["conn"], mine["home"], asked):
            posted = _post_from(mine["home"], mine["context"], mine["endpoint"], asked)
            if posted < 0:
                mine["error"] = posted
            if posted <= 0:
                mine["tx_length"] = 1  # as of a byte stream: something found no room
                return done
            taken(mine["conn"])
            done += 1
        mine["tx_length"] = 0
        return done

    @nopython
    def event(pump: int, completion: int) -> int:
        mine, cqe = pump_at(pump)[0], cqe_at(completion)[0]
        came = mine["scratch"] + MIRROR_EVENT
        read_event(completion, came)
        status = 0
        if cqe["flags"] & UNSOLICITED != 0 and cqe["opcode"] != WINDOW:
            status = int(cqe["status"])
        elif cqe["user_data"] & KIND_MASK == OF_RECEIVE and cqe["opcode"] == RECEIVE:
            address = cqe["user_data"] & ~KIND_MASK
            mine["rx_posted"] -= 1
            mine["lent_free"] |= 1 << ((address - mine["staging"]) // mine["staging_size"])
            status = int(cqe["status"])
            if status == 0:
                status = on_notify(mine["conn"], address, came)
        else:
            status = on_event(mine["conn"], came)
        if status < 0 and mine["error"] == 0:
            mine["error"] = status
        return int(mine["error"])

    return PumpFunctions(send, _receive, event)
