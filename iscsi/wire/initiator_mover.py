"""The initiator's lower half of the datamover cut: what whoever owns the connection does with the
session's POSTs (`iscsi.wire.mover`), and the EVENTs it makes. The connection is an INITIATOR whose
tags and CmdSNs come from the session. It trusts no number of a POST; addresses were checked.
"""

import errno
from typing import Final

from iscsi.wire import bhs, tx
from iscsi.wire import sequencing as sn
from iscsi.wire.initiator_post import (
    COMMAND_FLAGS,
    DIRECTIONS,
    MAX_TRANSFER_LENGTH,
    NOP_OUT,
    cancel,
)
from iscsi.wire.initiator_task import (
    COMPLETED,
    KIND_CONTROL,
    KIND_NOP,
    KIND_SCSI,
    SENSE_ROOM,
    STAGE_COMMAND,
    STATE_DONE,
    STATE_FREE,
    TASK_SIZE,
    begin_task,
    initiator_at,
    make_ready,
    task_at,
    task_of,
)
from iscsi.wire.mover import (
    AHS_MASK,
    AHS_SHIFT,
    CANCEL,
    COMMAND,
    CONTROL,
    IS_CONTROL,
    VECTOR_SHIFT,
    event_at,
    post_at,
)
from iscsi.wire.port import (
    CONTROL_DATA,
    CONTROL_DATA_LENGTH,
    EVENTS,
    READY,
    TOKEN_CONTROL,
    control_give,
    control_store,
    first,
    is_empty,
    pop,
    port_at,
    push,
    token_of,
)
from iscsi.wire.runs import RUN_SIZE, overlap, reach_into, total
from shm.jit import nopython
from shm.memory import copy_bytes, load_8, load_32_be, load_64

PENDING: Final = 1
ENOENT: Final = errno.ENOENT
EEXIST: Final = errno.EEXIST
EINVAL: Final = errno.EINVAL
EAGAIN: Final = errno.EAGAIN
EMSGSIZE: Final = errno.EMSGSIZE
EOPNOTSUPP: Final = errno.EOPNOTSUPP
WORD_MASK: Final = 0xFFFFFFFF


@nopython
def on_post(conn: int, post: int, home: int, home_size: int, handle: int) -> int:
    """Do what the session asks: PENDING, when an EVENT with `user_data` = `handle` follows; else it
    is over, with 0 or -errno. Data buffers are the caller's to check, offsets in `home` are not.
    """
    opcode = post_at(post)[0]["opcode"]
    if opcode == COMMAND:
        return _command(conn, post, home, home_size, handle)
    if opcode == CONTROL:
        return _control(conn, post, home, home_size, handle)
    if opcode == CANCEL:
        return cancel(conn, post_at(post)[0]["arg1"] & WORD_MASK)
    return -EOPNOTSUPP


@nopython
def is_inside(offset: int, length: int, size: int) -> bool:
    """Whether `length` bytes from `offset` on lie in `size` bytes."""
    return 0 <= offset <= size and 0 <= length <= size - offset


@nopython
def _adopt(conn: int, itt: int, kind: int, handle: int) -> int:
    """Begin a task whose tag the session chose: its address, or -EINVAL, -EEXIST."""
    mine = initiator_at(conn)[0]
    index = itt & 0xFFFF
    if index >= mine["task_count"] or itt == bhs.RESERVED_TAG:
        return -EINVAL
    address = int(mine["tasks"] + TASK_SIZE * index)
    if task_at(address)[0]["state"] != STATE_FREE:
        return -EEXIST
    begin_task(conn, address, kind, handle)
    task_at(address)[0]["itt"] = itt
    return address


@nopython
def _command(conn: int, post: int, home: int, home_size: int, handle: int) -> int:
    mine = post_at(post)[0]
    flags = mine["arg2"] & 0xFF
    direction = flags & DIRECTIONS
    ahs_length = (mine["arg2"] >> AHS_SHIFT) & AHS_MASK
    run_count = mine["arg2"] >> VECTOR_SHIFT
    length = mine["more5"] if run_count else mine["length"]
    if flags & ~COMMAND_FLAGS or direction == DIRECTIONS or (length and not direction):
        return -EINVAL
    if run_count and not _can_be_runs(conn, post, run_count):
        return -EINVAL
    if not is_inside(mine["more2"], SENSE_ROOM, home_size):
        return -EINVAL
    if ahs_length and (
        ahs_length & 3
        or ahs_length < 8
        or ahs_length > bhs.MAX_AHS_LENGTH
        or not is_inside(mine["more3"], ahs_length, home_size)
    ):
        return -EINVAL
    address = _adopt(conn, mine["arg1"] & WORD_MASK, KIND_SCSI, handle)
    if address < 0:
        return address
    task = task_at(address)[0]
    task["flags"] = flags
    task["lun"] = mine["arg0"]
    task["cdb0"] = mine["more0"]
    task["cdb1"] = mine["more1"]
    task["expected_length"] = length
    task["data_address"] = mine["address"]
    task["cmd_sn"] = (mine["arg1"] >> 32) & WORD_MASK
    task["sense_home"] = home + mine["more2"]
    task["ahs_length"] = ahs_length
    task["ahs"] = home + mine["more3"]
    if run_count:
        copy_bytes(task["vectors"], mine["more4"], run_count * RUN_SIZE)
        task["runs"] = task["vectors"]
        task["run_count"] = run_count
    task["stage"] = STAGE_COMMAND
    initiator_at(conn)[0]["cmd_sn"] = (task["cmd_sn"] + 1) & WORD_MASK
    initiator_at(conn)[0]["last"] = address
    make_ready(conn, address)
    return PENDING


@nopython
def _can_be_runs(conn: int, post: int, count: int) -> bool:
    """Whether the RUN[count] at more4, whose memory was checked, may be a command's data."""
    mine = post_at(post)[0]
    if count > initiator_at(conn)[0]["vectors_max"] or mine["length"]:
        return False
    if not 0 < mine["more5"] <= MAX_TRANSFER_LENGTH:
        return False
    if total(mine["more4"], count) != mine["more5"]:
        return False
    return not (mine["arg2"] & bhs.FLAG_READ and overlap(mine["more4"], count))


@nopython
def places_into(conn: int, start: int, end: int) -> bool:
    """Whether a command's gather list names memory between two addresses; data in one piece is
    known to whoever keeps the posts.
    """
    mine = initiator_at(conn)[0]
    for index in range(mine["task_count"]):
        task = task_at(mine["tasks"] + TASK_SIZE * index)[0]
        if task["run_count"] == 0 or task["state"] in (STATE_FREE, STATE_DONE):
            continue
        if reach_into(task["runs"], task["run_count"], start, end):
            return True
    return False


@nopython
def _control(conn: int, post: int, home: int, home_size: int, handle: int) -> int:
    """A request other than a command; its header and data are copied."""
    mine, port = post_at(post)[0], port_at(conn)[0]
    length = mine["arg2"]
    if length > port["control_data_length"] or length > port["peer_max_recv_data_segment_length"]:
        return -EMSGSIZE
    if not is_inside(mine["more0"], CONTROL_DATA + length, home_size):
        return -EINVAL
    header = home + mine["more0"]
    itt = load_32_be(header + bhs.OFFSET_ITT)
    is_ping = load_8(header) & bhs.OPCODE_MASK == NOP_OUT
    task = task_of(conn, itt)
    is_new = task == 0
    if is_new:
        task = _adopt(conn, itt, KIND_NOP if is_ping else KIND_CONTROL, handle)
        if task < 0:
            return task
    elif is_ping or task_at(task)[0]["kind"] != KIND_CONTROL:
        return -EEXIST
    slot = control_store(conn, header, header + CONTROL_DATA, length)
    if slot == 0:
        if is_new:
            task_at(task)[0]["state"] = STATE_FREE
            initiator_at(conn)[0]["active"] -= 1
        return -EAGAIN
    if load_8(slot) & bhs.IMMEDIATE == 0:
        initiator_at(conn)[0]["cmd_sn"] = sn.add(load_32_be(slot + bhs.OFFSET_CMD_SN), 1)
    push(conn + READY, token_of(TOKEN_CONTROL, slot))
    return PENDING if is_ping else 0


@nopython
def window_word(conn: int) -> int:
    """ExpCmdSN | MaxCmdSN << 32."""
    mine = initiator_at(conn)[0]
    return int(mine["exp_cmd_sn"] | mine["max_cmd_sn"] << 32)


@nopython
def event_next(conn: int, event: int) -> bool:
    """Fill in the next command's or ping's EVENT; its sense data goes to the session's memory."""
    if is_empty(conn + COMPLETED):
        return False
    address = pop(conn + COMPLETED)
    mine, task = event_at(event)[0], task_at(address)[0]
    sense_length = 0
    if task["sense_length"] > 0:
        sense_length = task["sense_length"] + 2
        copy_bytes(task["sense_home"], task["sense_address"], sense_length)
    mine["opcode"] = COMMAND if task["kind"] == KIND_SCSI else CONTROL
    mine["user_data"] = task["user_data"]
    mine["status"] = task["result"]
    mine["length"] = task["received"]
    mine["arg0"] = (
        task["response"] | task["status"] << 8 | task["residual_flags"] << 16 | sense_length << 24
    )
    mine["arg1"] = task["residual_count"]
    mine["arg2"] = window_word(conn)
    task["state"] = STATE_FREE
    return True


@nopython
def notify_next(conn: int, buffer: int, size: int, event: int) -> int:
    """Control_Notify: put the oldest PDU that is the session's to see into `buffer`. 1; 0: there is
    none; -EMSGSIZE: it is longer than `size` bytes.
    """
    if is_empty(conn + EVENTS):
        return 0
    slot = first(conn + EVENTS)
    length = load_64(slot + CONTROL_DATA_LENGTH)
    if bhs.BHS_LENGTH + length > size:
        return -EMSGSIZE
    copy_bytes(buffer, slot, bhs.BHS_LENGTH)
    copy_bytes(buffer + bhs.BHS_LENGTH, slot + CONTROL_DATA, length)
    control_give(conn, pop(conn + EVENTS))
    mine = event_at(event)[0]
    mine["length"] = bhs.BHS_LENGTH + length
    mine["arg0"] = 0
    mine["arg1"] = IS_CONTROL
    mine["arg2"] = window_word(conn)
    return 1


@nopython
def end_all(conn: int, status: int) -> None:
    """The connection is over: every post that has no event yet gets one with `status`."""
    mine, port = initiator_at(conn)[0], port_at(conn)[0]
    tx.forget_all(conn)
    port["rx_object"] = 0
    for index in range(mine["task_count"]):
        address = int(mine["tasks"] + TASK_SIZE * index)
        task = task_at(address)[0]
        if task["state"] in (STATE_FREE, STATE_DONE):
            continue
        if task["kind"] == KIND_CONTROL:
            task["state"] = STATE_FREE
            continue
        task["result"] = status
        task["state"] = STATE_DONE
        push(conn + COMPLETED, address)
