"""The POSTs that a target's upper half has to make (`iscsi.wire.mover`). The next one is looked at,
and counts as made only when it is taken: one that finds no room in the ring is shown again.
"""

from typing import Final

from iscsi.wire import bhs
from iscsi.wire.mover import ABORT, ANSWER, CANCEL, CONTROL, DONE, GATE, GET, MAY_CHANGE, post_at
from iscsi.wire.port import (
    CONTROL_DATA_LENGTH,
    READY,
    TOKEN_CONTROL,
    first,
    is_empty,
    pop,
    port_at,
    token_address,
    token_kind,
)
from iscsi.wire.target_mirror import (
    KIND_ABORT,
    KIND_ANSWER,
    KIND_BITS,
    KIND_CANCEL,
    KIND_CONTROL,
    KIND_GATE,
    KIND_GET,
    KIND_SILENT,
)
from iscsi.wire.target_mover import RESIDUAL_SHIFT, SENSE_LENGTH_SHIFT, SENSE_SHIFT
from iscsi.wire.target_posts import (
    ABORT_DUE,
    ABORT_POSTED,
    ABORT_SIZE,
    CANCELS,
    DONES,
    GATES,
    POST_GET,
    WORD_MASK,
    abort_at,
    mirror_at,
)
from iscsi.wire.target_task import (
    STATE_DATA_IN,
    STATE_DATA_OUT,
    STATE_RESPOND,
    address_of,
    close_task,
    target_at,
    task_at,
)
from iscsi.wire.target_tx import wants_r2t
from shm.channel import UNSIGNALLED
from shm.jit import nopython
from shm.memory import load_64, zero_bytes

POST_SIZE: Final = 128
# Where what `post_peek` showed comes from.
FROM_NOWHERE: Final = 0
FROM_ABORTS: Final = 1
FROM_CANCELS: Final = 2
FROM_DONES: Final = 3
FROM_GATES: Final = 4
FROM_READY: Final = 5
# More wait for these: the engine keeps an account of each.
ABORTS_OPEN_MAX: Final = 16


@nopython
def post_peek(conn: int, post: int) -> bool:
    """Fill in the next POST; False if there is none. It is made by `post_taken`, which is called
    before anything else touches the connection, or not at all: then it is shown again.

    What ends or fences something comes before what moves data.
    """
    mirror = target_at(conn)[0]["mirror"]
    mine = mirror_at(mirror)[0]
    zero_bytes(post, POST_SIZE)
    mine["peeked"] = FROM_NOWHERE
    if mine["unsettled"] and _peek_fence(conn, mirror, post):
        return True
    if not is_empty(mirror + DONES):
        _fill(post, DONE, UNSIGNALLED, KIND_SILENT, first(mirror + DONES), 0)
        mine["peeked"] = FROM_DONES
        return True
    return _peek_ready(conn, post)


@nopython
def _fill(post: int, opcode: int, flags: int, user_data: int, arg0: int, arg1: int) -> None:
    mine = post_at(post)[0]
    mine["opcode"], mine["flags"], mine["user_data"] = opcode, flags, user_data
    mine["arg0"], mine["arg1"] = arg0, arg1


@nopython
def _peek_fence(conn: int, mirror: int, post: int) -> bool:
    """The next ABORT, CANCEL or GATE."""
    mine = mirror_at(mirror)[0]
    place = _next_abort(mirror)
    if place:
        entry = abort_at(place)[0]
        user_data = entry["number"] << KIND_BITS | KIND_ABORT
        second = entry["itt"] if entry["flags"] else entry["cmd_sn"]
        _fill(post, ABORT, entry["flags"], user_data, entry["lun"], second)
        post_at(post)[0]["arg2"] = entry["number"] & WORD_MASK
        mine["peeked"] = FROM_ABORTS
        return True
    while not is_empty(mirror + CANCELS):
        address = address_of(conn, first(mirror + CANCELS))
        task = task_at(address)[0]
        if task["id"] == first(mirror + CANCELS) and task["post"] == POST_GET:
            _fill(post, CANCEL, 0, address | KIND_CANCEL, task["remote"], 0)
            mine["peeked"] = FROM_CANCELS
            return True
        pop(mirror + CANCELS)
        mine["unsettled"] -= 1
    if is_empty(mirror + GATES):
        return False
    lun = first(mirror + GATES)
    word = load_64(target_at(conn)[0]["nexus"] + 8 * lun)
    _fill(post, GATE, 0, lun << KIND_BITS | KIND_GATE, lun, word)
    mine["peeked"] = FROM_GATES
    return True


@nopython
def _next_abort(mirror: int) -> int:
    """Address of the oldest ABORT_ENTRY that is due, or 0."""
    mine = mirror_at(mirror)[0]
    found = 0
    if mine["aborts_open"] >= ABORTS_OPEN_MAX:
        return found
    for index in range(mine["abort_count"]):
        place = int(mine["aborts"] + ABORT_SIZE * index)
        entry = abort_at(place)[0]
        if entry["stage"] != ABORT_DUE:
            continue
        if found == 0 or entry["number"] < abort_at(found)[0]["number"]:
            found = place
    return found


@nopython
def _peek_ready(conn: int, post: int) -> bool:
    """The next GET, ANSWER or CONTROL."""
    mirror = mirror_at(target_at(conn)[0]["mirror"])[0]
    while not is_empty(conn + READY):
        token = first(conn + READY)
        address = token_address(token)
        mirror["peeked"] = FROM_READY
        if token_kind(token) == TOKEN_CONTROL:
            longest = port_at(conn)[0]["peer_max_recv_data_segment_length"]
            _fill(post, CONTROL, 0, address | KIND_CONTROL, 0, longest)
            post_at(post)[0]["arg2"] = load_64(address + CONTROL_DATA_LENGTH)
            post_at(post)[0]["more0"] = address - mirror["home"]
            return True
        state = task_at(address)[0]["state"]
        if state == STATE_DATA_OUT and wants_r2t(conn, address):
            _fill_get(address, post)
            return True
        if state in (STATE_DATA_IN, STATE_RESPOND):
            _fill_answer(address, post, mirror["home"])
            return True
        pop(conn + READY)
        task_at(address)[0]["queued"] = 0
    mirror["peeked"] = FROM_NOWHERE
    return False


@nopython
def _fill_get(address: int, post: int) -> None:
    """Get_Data: everything that is missing, at once."""
    task, mine = task_at(address)[0], post_at(post)[0]
    _fill(post, GET, 0, address | KIND_GET, task["remote"], task["received"])
    mine["address"] = task["data_address"] + task["received"]
    mine["length"] = task["transfer"] - task["received"]


@nopython
def _uses_memory(address: int) -> bool:
    """Whether an ANSWER needs the task's area or its buffer; a unit's memory stays anyway."""
    task = task_at(address)[0]
    if task["state"] == STATE_DATA_IN:
        return bool(task["is_cold"] or task["buffer"])
    return bool(task["sense_length"])


@nopython
def _fill_answer(address: int, post: int, home: int) -> None:
    """Put_Data, or Send_Control of a SCSI Response."""
    task, mine = task_at(address)[0], post_at(post)[0]
    if _uses_memory(address):
        _fill(post, ANSWER, 0, address | KIND_ANSWER, task["remote"], 0)
    else:
        _fill(post, ANSWER, UNSIGNALLED, KIND_SILENT, task["remote"], 0)
    word = task["residual_flags"] << RESIDUAL_SHIFT
    if task["state"] == STATE_DATA_IN:
        mine["address"], mine["length"] = task["data_address"], task["transfer"]
        if task["is_cold"] == 0 and task["buffer"] == 0:
            mine["flags"] |= MAY_CHANGE
    else:
        word |= task["status"] | task["sense"] << SENSE_SHIFT
        if task["sense"] == 0 and task["sense_length"]:
            word |= task["sense_length"] << SENSE_LENGTH_SHIFT
            mine["more0"] = task["cold_address"] - home
    mine["arg1"] = word
    mine["arg2"] = task["residual_count"]


# --- when it is made -------------------------------------------------------------------------


@nopython
def post_taken(conn: int) -> None:
    """What `post_peek` showed just now is made: whatever became of it, an event may follow."""
    mirror = target_at(conn)[0]["mirror"]
    mine = mirror_at(mirror)[0]
    source = mine["peeked"]
    mine["peeked"] = FROM_NOWHERE
    if source == FROM_READY:
        _ready_taken(conn, mirror)
    elif source == FROM_DONES:
        pop(mirror + DONES)
    elif source != FROM_NOWHERE:
        mine["posts"] += 1
        mine["fences"] += 1
        if source == FROM_ABORTS:
            abort_at(_next_abort(mirror))[0]["stage"] = ABORT_POSTED
            mine["aborts_open"] += 1
        else:
            pop(mirror + CANCELS if source == FROM_CANCELS else mirror + GATES)


@nopython
def _ready_taken(conn: int, mirror: int) -> None:
    mine = mirror_at(mirror)[0]
    token = pop(conn + READY)
    address = token_address(token)
    if token_kind(token) == TOKEN_CONTROL:
        mine["posts"] += 1
        return
    task = task_at(address)[0]
    task["queued"] = 0
    if task["state"] == STATE_DATA_OUT:
        mine["posts"] += 1
        task["tx_pending"] += 1
        task["post"] = POST_GET
        task["r2t_sn"] += 1
        task["r2t_offset"] = task["transfer"]
        return
    if _uses_memory(address):
        mine["posts"] += 1
        task["tx_pending"] += 1
    close_task(conn, address)


assert bhs.FLAG_OVERFLOW | bhs.FLAG_UNDERFLOW < 1 << (SENSE_LENGTH_SHIFT - RESIDUAL_SHIFT)
