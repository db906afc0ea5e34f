"""The target's pump over a datamover endpoint: a connection's operations, and the buffers that all
connections of a server lend for PDUs it must see. A lent buffer is used up at once, or kept in the
order in which the PDUs came until there is room for them. Compiled.
"""

import errno
from typing import Final

from host import mover
from host.mover import KIND_MASK, MIRROR_POST, OF_RECEIVE, lend, make_mover, post, read_event
from host.pump import pump_at
from iscsi.target.barriers import lane_at
from iscsi.wire.bhs import BHS_LENGTH
from iscsi.wire.lun import GATE_OPEN
from iscsi.wire.mover import event_at, post_at
from iscsi.wire.port import port_at
from iscsi.wire.target_mirror import KIND_GET, on_event, on_notify
from iscsi.wire.target_mirror_post import (
    FROM_DONES,
    FROM_GATES,
    FROM_NOWHERE,
    FROM_READY,
    post_peek,
    post_taken,
)
from iscsi.wire.target_posts import gate_last, gates_waiting, mirror_at
from iscsi.wire.target_task import target_at
from shm.jit import nopython
from shm.layout import Field, record
from shm.memory import copy_bytes, load_64, store_64
from shm.operations import INDEX_MASK
from shm.records import cqe_at
from shm.view import opener

LENDING: Final = record(
    Field("context", "<i8"),
    Field("pool", "<i8"),  # the endpoint that buffers are lent to
    Field("size", "<i8"),  # bytes of one
    Field("count", "<i8"),
    Field("spare", "<i8"),  # address of int64[count]: buffers that are here
    Field("spare_count", "<i8"),
    Field("kept", "<i8"),  # address of KEPT[count]: PDUs for which there is no room yet
    Field("kept_count", "<i8"),
    Field("pumps", "<i8"),  # address of int64[65536]: the pump of the endpoint with an index
    Field("scratch", "<i8"),  # address of host.mover.SCRATCH_SIZE bytes
    Field("refused", "<i8"),  # PDUs that had to wait
    size=128,
)
KEPT: Final = record(
    Field("pump", "<i8"),
    Field("buffer", "<i8"),
    Field("event", "<i8"),  # 64 bytes begin here
    size=80,
)
lending_at = opener(LENDING)
kept_at = opener(KEPT)
KEPT_SIZE: Final = KEPT.itemsize
EVENT_OFFSET: Final = 16
EVENT_SIZE: Final = 64
ENDPOINTS_MAX: Final = INDEX_MASK + 1
EAGAIN: Final = errno.EAGAIN
ENOENT: Final = errno.ENOENT
ENOBUFS: Final = errno.ENOBUFS
# The share of all buffers that one connection may keep.
KEPT_SHARE: Final = 2


@nopython
def _peek(conn: int, home: int, asked: int) -> bool:
    """The next post of a connection, which knows its home."""
    return post_peek(conn, asked)


@nopython
def _on_event(conn: int, event: int) -> int:
    """Take an event: 0, or what ended the connection. A task that was aborted is no news."""
    on_event(conn, event)
    mine = event_at(event)[0]
    is_data = mine["user_data"] & KIND_MASK == KIND_GET and mine["status"] == -errno.EIO
    if mine["status"] >= 0 or mine["status"] == -ENOENT or is_data:
        return 0
    return int(mine["status"])


_send, _, _event = make_mover(_peek, post_taken, _on_event, on_notify)


@nopython
def pump_named(lending: int, endpoint: int) -> int:
    """The pump of an endpoint, or 0."""
    if lending == 0:
        return 0
    pump = load_64(lending_at(lending)[0]["pumps"] + 8 * (endpoint & INDEX_MASK))
    if pump == 0 or pump_at(pump)[0]["endpoint"] != endpoint:
        return 0
    return pump


@nopython
def event(pump: int, completion: int) -> None:
    """Feed one completion of an operation of the connection's own."""
    _event(pump, completion)


@nopython
def send(pump: int, may_answer: bool) -> None:
    """Post what the connection asks for; later, if it must not answer yet."""
    its = pump_at(pump)[0]
    if not may_answer:
        its["tx_length"] = 1  # as of one that found no room
        return
    mirror = mirror_at(target_at(its["conn"])[0]["mirror"])[0]
    before = mirror["fences"]
    _send(pump)
    lane_at(its["lane"])[0]["fences"] += mirror["fences"] - before


@nopython
def post_fences(pump: int) -> bool:
    """Post what ends or shuts something. False: there is no room for all of it. What opens a gate
    is left to `send`: nothing may be let in before all that was to be shut out is.
    """
    its = pump_at(pump)[0]
    mirror = mirror_at(target_at(its["conn"])[0]["mirror"])[0]
    before = mirror["fences"]
    is_done = _post_fences(pump)
    lane_at(its["lane"])[0]["fences"] += mirror["fences"] - before
    return is_done


@nopython
def _post_fences(pump: int) -> bool:
    its = pump_at(pump)[0]
    conn, asked = its["conn"], its["scratch"] + MIRROR_POST
    address = target_at(conn)[0]["mirror"]
    mirror = mirror_at(address)[0]
    left = gates_waiting(address)
    while its["error"] == 0 and mirror["unsettled"] > 0 and post_peek(conn, asked):
        if mirror["peeked"] in (FROM_NOWHERE, FROM_DONES, FROM_READY):
            break
        if mirror["peeked"] == FROM_GATES and post_at(asked)[0]["arg1"] == GATE_OPEN:
            if left == 0:
                break
            left -= 1
            gate_last(address)
            continue
        posted = post(its["context"], its["endpoint"], asked)
        if posted < 0:
            its["error"] = posted
        if posted <= 0:
            return False
        post_taken(conn)
    return True


# --- buffers ---------------------------------------------------------------------------------


@nopython
def _give(lending: int, buffer: int) -> None:
    mine = lending_at(lending)[0]
    store_64(mine["spare"] + 8 * mine["spare_count"], buffer)
    mine["spare_count"] += 1


@nopython
def lend_spare(lending: int) -> None:
    """Try again what is kept, and lend every buffer that is here."""
    mine = lending_at(lending)[0]
    if mine["kept_count"]:
        _retry_kept(lending)
    while mine["spare_count"] > 0:
        buffer = load_64(mine["spare"] + 8 * (mine["spare_count"] - 1))
        if lend(mine["context"], mine["pool"], buffer, mine["size"], mine["scratch"]) <= 0:
            return
        mine["spare_count"] -= 1


@nopython
def received(lending: int, pump: int, completion: int) -> None:
    """A lent buffer is back, with a PDU for this connection, if that is still there."""
    mine, cqe = lending_at(lending)[0], cqe_at(completion)[0]
    buffer = cqe["user_data"] & ~KIND_MASK
    if pump == 0 or pump_at(pump)[0]["error"] != 0 or cqe["status"] != 0:
        _give(lending, buffer)
        return
    came = mine["scratch"] + mover.MIRROR_EVENT
    read_event(completion, came)
    if pump_at(pump)[0]["rx_next"] == 0 and _notify(pump, buffer, came):
        _give(lending, buffer)
        return
    _keep(lending, pump, buffer, came)


@nopython
def _notify(pump: int, buffer: int, came: int) -> bool:
    """Show a connection a PDU. False: it has no room now."""
    its = pump_at(pump)[0]
    outcome = on_notify(its["conn"], buffer, came)
    if outcome == -EAGAIN:
        return False
    # What was received last: a Reject may have to quote it.
    copy_bytes(port_at(its["conn"])[0]["rx_header"], buffer, BHS_LENGTH)
    if outcome < 0:
        its["error"] = outcome
    return True


@nopython
def _keep(lending: int, pump: int, buffer: int, came: int) -> None:
    """Put a PDU in line. `rx_next` of a PUMP counts those of its connection here."""
    mine, its = lending_at(lending)[0], pump_at(pump)[0]
    its["rx_next"] += 1
    mine["refused"] += 1
    if its["rx_next"] * KEPT_SHARE > mine["count"]:
        its["error"] = -ENOBUFS
    place = mine["kept"] + KEPT_SIZE * mine["kept_count"]
    mine["kept_count"] += 1
    kept = kept_at(place)[0]
    kept["pump"], kept["buffer"] = pump, buffer
    copy_bytes(place + EVENT_OFFSET, came, EVENT_SIZE)


@nopython
def _retry_kept(lending: int) -> None:
    """Show what is kept, each connection's in order. `rx_posted` says which have no room yet."""
    mine = lending_at(lending)[0]
    count, left = mine["kept_count"], 0
    for index in range(count):
        pump_at(kept_at(mine["kept"] + KEPT_SIZE * index)[0]["pump"])[0]["rx_posted"] = 0
    for index in range(count):
        place = mine["kept"] + KEPT_SIZE * index
        kept = kept_at(place)[0]
        its = pump_at(kept["pump"])[0]
        is_over = its["error"] != 0
        if not is_over and its["rx_posted"] == 0:
            is_over = _notify(kept["pump"], kept["buffer"], place + EVENT_OFFSET)
            its["rx_posted"] = 0 if is_over else 1
        if is_over:
            its["rx_next"] -= 1
            _give(lending, kept["buffer"])
            continue
        copy_bytes(mine["kept"] + KEPT_SIZE * left, place, KEPT_SIZE)
        left += 1
    mine["kept_count"] = left


@nopython
def forget_pump(lending: int, pump: int) -> None:
    """A connection is gone: what is kept for it is thrown away."""
    mine = lending_at(lending)[0]
    store_64(mine["pumps"] + 8 * (pump_at(pump)[0]["endpoint"] & INDEX_MASK), 0)
    count, left = mine["kept_count"], 0
    for index in range(count):
        place = mine["kept"] + KEPT_SIZE * index
        if kept_at(place)[0]["pump"] == pump:
            _give(lending, kept_at(place)[0]["buffer"])
            continue
        copy_bytes(mine["kept"] + KEPT_SIZE * left, place, KEPT_SIZE)
        left += 1
    mine["kept_count"] = left


assert OF_RECEIVE < KIND_MASK
