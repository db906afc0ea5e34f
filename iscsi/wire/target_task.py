"""The target's records for a connection in the full feature phase, and its task table.
A task is found by the tag its initiator chose, through a hash table of bounded chains; the command
window never promises more than the table holds (RFC 7143 §4.2.2.1).
"""

import errno
from typing import Final

from iscsi.wire import bhs
from iscsi.wire import sequencing as sn
from iscsi.wire.buffers import buffer_address, buffer_size, give_buffer, take_buffer
from iscsi.wire.lun import lun_at
from iscsi.wire.mover import ONE_TASK
from iscsi.wire.port import (
    PORT,
    QUEUE,
    READY,
    TOKEN_TASK,
    port_at,
    push,
    token_of,
)
from iscsi.wire.rx import forget_place
from iscsi.wire.target_posts import (
    POST_UNIT,
    aborts_under_way,
    add_abort,
    ended,
    forget_notice,
)
from iscsi.wire.violations import Violation
from shm.jit import nopython
from shm.layout import Field, offset, record
from shm.memory import load_32, load_64, store_32, store_64
from shm.pool import POOL, give, pool_at, take
from shm.view import opener

TARGET: Final = record(
    Field("port", PORT),
    Field("exp_cmd_sn", "<i8"),
    Field("max_cmd_sn", "<i8"),
    Field("stat_sn", "<i8"),  # of the next response
    Field("first_burst_length", "<i8"),
    Field("max_burst_length", "<i8"),
    Field("immediate_data", "<i8"),
    Field("initial_r2t", "<i8"),
    Field("max_outstanding_r2t", "<i8"),
    Field("tasks", "<i8"),  # addresses
    Field("task_count", "<i8"),
    Field("cold_areas", "<i8"),
    Field("cold_length", "<i8"),  # bytes of one task's cold area
    Field("buckets", "<i8"),  # int32 each: index of the first task of a chain, plus 1
    Field("bucket_mask", "<i8"),
    Field("luns", "<i8"),
    Field("lun_count", "<i8"),
    Field("nexus", "<i8"),  # int64 per LUN: not 0 sends this session's commands to the cold code
    Field("has_aborted", "<i8"),  # 1 once a task was aborted: its data may still be on the way
    Field("held", "<i8"),  # int64 per place in the window: token of what waits for its CmdSN
    Field("held_mask", "<i8"),
    Field("held_count", "<i8"),
    Field("rx_held", "<i8"),  # 1 while a PDU is received that came before its turn
    Field("faults", "<i8"),  # commands that ended because of how their data came
    Field("commands", "<i8"),
    Field("rejects", "<i8"),
    Field("buffers", "<i8"),  # BUFFERS shared with other connections; 0: there are none
    Field("buffer_quota", "<i8"),  # bytes of them that this connection may hold, or one buffer
    Field("buffer_held", "<i8"),
    Field("orphan", "<i8"),  # buffer of an aborted task into which a PDU is still received
    Field("jobs", "<i8"),  # tasks on which somebody else works
    Field("arrivals", "<i8"),  # commands whose turn came
    Field(
        "ordered", "<i8"
    ),  # open tasks that may keep others waiting: not 0 sends all to the cold code
    Field("data_bytes", "<i8"),  # written data that came
    Field("lower", "<i8"),  # the engine's half of a datamover's target: its LOWER; else 0
    Field("mirror", "<i8"),  # the host's half: its MIRROR; else 0
    Field("cold", QUEUE),  # addresses of tasks for the cold code
    Field("storage", QUEUE),  # and of those whose data goes to or comes from a file
    Field("task_pool", POOL),
    size=PORT.itemsize + 35 * 8 + 2 * QUEUE.itemsize + POOL.itemsize,
)
TASK: Final = record(
    Field("state", "<i8"),
    Field("itt", "<i8"),
    Field("id", "<i8"),  # generation << 16 | index: what the cold code answers with
    Field("chain", "<i8"),  # address of the next task in the same bucket
    Field("lun", "<i8"),  # the eight-byte field
    Field("lun_number", "<i8"),  # -1 for a field that names no unit
    Field("flags", "<i8"),  # byte 1 of the SCSI Command
    Field("is_immediate", "<i8"),
    Field("cmd_sn", "<i8"),
    Field("arrival", "<i8"),  # its place in the order of `arrivals`; 0: its turn has not come
    Field("is_ordered", "<i8"),  # 1 while it counts in `ordered`
    Field("is_cold", "<i8"),
    Field("expected_length", "<i8"),  # expected data transfer length
    Field("direction", "<i8"),  # of the data that is really moved: FLAG_READ, FLAG_WRITE or 0
    Field("transfer", "<i8"),  # bytes that are really moved
    Field("data_address", "<i8"),
    Field("cold_address", "<i8"),  # this task's area for data of cold commands
    Field("buffer", "<i8"),  # token of the shared buffer its data is in; 0: in none
    Field("unit", "<i8"),  # address of the LUN, for a READ or WRITE of compiled code
    Field("medium", "<i8"),  # what `storage` of that LUN was; 0: its data is in memory
    Field("medium_offset", "<i8"),  # bytes
    Field("cdb0", "<i8"),
    Field("cdb1", "<i8"),
    Field("cdb_more", "<i8"),  # address of what goes beyond 16 bytes
    Field("cdb_length", "<i8"),
    # Sending.
    Field("queued", "<i8"),  # 1 while it has an entry in the ready queue
    Field("cold_queued", "<i8"),  # the same for the cold queue
    Field("storage_queued", "<i8"),  # the same for the storage queue
    # PDUs with data of its area or buffer whose sending was not reported, and work under way.
    Field("tx_pending", "<i8"),
    Field("workers", "<i8"),  # how many others work on its data
    Field("sent", "<i8"),
    Field("burst_sent", "<i8"),  # bytes of the Data-In sequence under way
    Field("data_in_sn", "<i8"),
    Field("r2t_sn", "<i8"),  # of the next R2T
    Field("r2t_offset", "<i8"),  # end of what was asked for
    # Receiving.
    Field("received", "<i8"),  # bytes of the initiator's buffer seen, wanted or not
    Field("unsolicited", "<i8"),  # 1 while unsolicited Data-Out is to come
    Field("data_out_sn", "<i8"),
    Field("r2t_done", "<i8"),  # R2Ts answered
    Field("burst_end", "<i8"),  # where the oldest open R2T ends
    Field("refetch", "<i8"),  # 1: what came unasked was thrown away, and is asked for
    Field("spoiled", "<i8"),  # 1: the data is wrong; only its end is waited for
    Field("spoiled_sense", "<i8"),  # key << 16 | code
    # The response.
    Field("status", "<i8"),
    Field("sense", "<i8"),  # key << 16 | code of sense made by compiled code
    Field("sense_length", "<i8"),  # bytes of the cold area that are the response's data segment
    Field("residual_flags", "<i8"),
    Field("residual_count", "<i8"),
    # With a datamover (`target_posts`).
    Field("remote", "<i8"),  # at the host: the engine's id of it
    Field("post", "<i8"),  # what ends with it: POST_GET, POST_ANSWER, POST_UNIT or POST_NONE
    Field("post_handle", "<i8"),
    Field("post_status", "<i8"),  # how that ends: 0, or -ENOENT once it was aborted
    size=448,
)
target_at = opener(TARGET)
task_at = opener(TASK)

TASK_SIZE: Final = TASK.itemsize
COLD: Final = offset(TARGET, "cold")
STORAGE: Final = offset(TARGET, "storage")
TASK_POOL: Final = offset(TARGET, "task_pool")
CDB: Final = offset(TASK, "cdb0")
CDB_LENGTH: Final = 16
CDB_MORE_LENGTH: Final = 256  # room for the 244 bytes of the longest CDB that lie in an AHS
# Tasks and control slots beyond the window, for immediate requests.
IMMEDIATE_RESERVE: Final = 8
WINDOW_MAX: Final = 1 << 12
HASH: Final = 0x9E3779B1  # 2^32 over the golden ratio: neighbouring tags spread out

STATE_FREE: Final = 0
STATE_DATA_OUT: Final = 1  # collecting data
STATE_COLD: Final = 2  # the cold code's turn
STATE_DATA_IN: Final = 3
STATE_RESPOND: Final = 4
STATE_SENT: Final = 5  # answered; its cold area or its buffer is still used
STATE_STORAGE: Final = 6  # the file's turn
STATE_HELD: Final = 7  # came before its turn; nothing was looked at yet

# What `held` keeps besides tokens: a number that is over already, and only has to be passed.
HELD_GONE: Final = 7

ENOENT: Final = errno.ENOENT
TOO_MANY_TASKS: Final = int(Violation.TOO_MANY_TASKS)


@nopython
def _bucket(conn: int, itt: int) -> int:
    mine = target_at(conn)[0]
    return int(mine["buckets"] + 4 * (((itt * HASH) & 0xFFFFFFFF) >> 16 & mine["bucket_mask"]))


@nopython
def _chained(conn: int, bucket: int) -> int:
    index = load_32(bucket)
    return int(target_at(conn)[0]["tasks"] + TASK_SIZE * (index - 1)) if index else 0


@nopython
def task_of(conn: int, itt: int) -> int:
    """Address of the open task with this tag, or 0."""
    address = _chained(conn, _bucket(conn, itt))
    while address and task_at(address)[0]["itt"] != itt:
        address = int(task_at(address)[0]["chain"])
    return address


@nopython
def new_task(conn: int, itt: int) -> int:
    """Address of a task for a tag that no open task has, everything else zero; 0 if none is free.

    `queued`, `cold_queued` and `storage_queued` outlive a task: an entry that an aborted one left
    behind serves the next.
    """
    mine = target_at(conn)[0]
    index = take(conn + TASK_POOL)
    if index < 0:
        return 0
    address = int(mine["tasks"] + TASK_SIZE * index)
    task, bucket = task_at(address)[0], _bucket(conn, itt)
    task["itt"] = itt
    task["id"] += 1 << 16
    task["chain"] = _chained(conn, bucket)
    store_32(bucket, index + 1)
    _clear_progress(address)
    return address


@nopython
def _clear_progress(address: int) -> None:
    task = task_at(address)[0]
    task["is_cold"] = 0
    task["arrival"] = 0
    task["is_ordered"] = 0
    task["direction"] = 0
    task["transfer"] = 0
    task["data_address"] = 0
    task["buffer"] = 0
    task["unit"] = 0
    task["medium"] = 0
    task["tx_pending"] = 0
    task["workers"] = 0
    task["sent"] = 0
    task["burst_sent"] = 0
    task["data_in_sn"] = 0
    task["r2t_sn"] = 0
    task["r2t_offset"] = 0
    task["received"] = 0
    task["unsolicited"] = 0
    task["data_out_sn"] = 0
    task["r2t_done"] = 0
    task["burst_end"] = 0
    task["refetch"] = 0
    task["spoiled"] = 0
    task["cdb_length"] = CDB_LENGTH
    task["status"] = 0
    task["sense"] = 0
    task["sense_length"] = 0
    task["residual_flags"] = 0
    task["residual_count"] = 0
    task["remote"] = 0
    task["post"] = 0
    task["post_status"] = 0


@nopython
def address_of(conn: int, task_id: int) -> int:
    """Address of the task whose `id` this is or was."""
    return int(target_at(conn)[0]["tasks"] + TASK_SIZE * (task_id & 0xFFFF))


@nopython
def index_of(conn: int, address: int) -> int:
    """Position of a task in the table."""
    return int((address - target_at(conn)[0]["tasks"]) // TASK_SIZE)


@nopython
def _unchain(conn: int, address: int) -> None:
    bucket = _bucket(conn, task_at(address)[0]["itt"])
    after = int(task_at(address)[0]["chain"])
    before = _chained(conn, bucket)
    if before == address:
        store_32(bucket, index_of(conn, after) + 1 if after else 0)
        return
    while task_at(before)[0]["chain"] != address:
        before = int(task_at(before)[0]["chain"])
    task_at(before)[0]["chain"] = after


@nopython
def close_task(conn: int, address: int) -> None:
    """Forget an open task's tag; its memory returns when nobody uses its data any more."""
    task = task_at(address)[0]
    _unchain(conn, address)
    target_at(conn)[0]["ordered"] -= task["is_ordered"]
    task["is_ordered"] = 0
    task["state"] = STATE_SENT
    free_if_sent(conn, address)


@nopython
def free_if_sent(conn: int, address: int) -> None:
    """Give back a closed task of which nothing is being sent or worked on."""
    task = task_at(address)[0]
    if task["state"] == STATE_SENT and task["tx_pending"] == 0:
        drop_buffer(conn, address)
        if task["post"]:
            _end_post(conn, address)
        task["state"] = STATE_FREE
        give(conn + TASK_POOL, index_of(conn, address))


@nopython
def _end_post(conn: int, address: int) -> None:
    """Nothing touches the data of a datamover's command any more."""
    task = task_at(address)[0]
    if task["post"] == POST_UNIT:
        lun_at(task["unit"])[0]["under_way"] -= 1
    else:
        lower = target_at(conn)[0]["lower"]
        ended(lower, task["post_handle"], task["post"], task["post_status"], 0)
    task["post"] = 0


@nopython
def hold_buffer(conn: int, address: int, length: int) -> bool:
    """Take a shared buffer for a task's data and let `data_address` be its first byte.

    False if none of that size is free, or this connection holds its share already.
    """
    mine, task = target_at(conn)[0], task_at(address)[0]
    token = take_buffer(mine["buffers"], length)
    if token == 0:
        return False
    size = buffer_size(mine["buffers"], token)
    if mine["buffer_held"] and mine["buffer_held"] + size > mine["buffer_quota"]:
        give_buffer(mine["buffers"], token)
        return False
    mine["buffer_held"] += size
    task["buffer"] = token
    task["data_address"] = buffer_address(mine["buffers"], token)
    return True


@nopython
def _give_back(conn: int, token: int) -> None:
    mine = target_at(conn)[0]
    if token and give_buffer(mine["buffers"], token):
        mine["buffer_held"] -= buffer_size(mine["buffers"], token)


@nopython
def drop_buffer(conn: int, address: int) -> None:
    """Give a task's buffer back, if it has one."""
    task = task_at(address)[0]
    _give_back(conn, task["buffer"])
    task["buffer"] = 0


@nopython
def _orphan_buffer(conn: int, address: int) -> None:
    """Keep the buffer into which the PDU under way is received; only one PDU is at any time."""
    mine, task = target_at(conn)[0], task_at(address)[0]
    _give_back(conn, mine["orphan"])
    mine["orphan"] = task["buffer"]
    task["buffer"] = 0


@nopython
def drop_orphan(conn: int) -> None:
    """The PDU that was received into an aborted task's buffer is over."""
    mine = target_at(conn)[0]
    if mine["orphan"]:
        _give_back(conn, mine["orphan"])
        mine["orphan"] = 0


@nopython
def drop_buffers(conn: int) -> None:
    """Give back every buffer. The connection is over: nothing is sent, received or worked on."""
    mine = target_at(conn)[0]
    for index in range(mine["task_count"]):
        drop_buffer(conn, mine["tasks"] + TASK_SIZE * index)
    drop_orphan(conn)


@nopython
def open_window(conn: int) -> None:
    """A non-immediate request is over: one more may come."""
    mine = target_at(conn)[0]
    mine["max_cmd_sn"] = sn.add(mine["max_cmd_sn"], 1)


@nopython
def promised(conn: int) -> int:
    """How many non-immediate requests the initiator may still send."""
    mine = target_at(conn)[0]
    return int(sn.window_size(mine["exp_cmd_sn"], mine["max_cmd_sn"]) - mine["held_count"])


# --- requests that came before their turn ----------------------------------------------------


@nopython
def _held_place(conn: int, cmd_sn: int) -> int:
    mine = target_at(conn)[0]
    return int(mine["held"] + 8 * (cmd_sn & mine["held_mask"]))


@nopython
def is_held(conn: int, cmd_sn: int) -> bool:
    """Whether the request with this number, which lies in the window, came already."""
    return load_64(_held_place(conn, cmd_sn)) != 0


@nopython
def hold(conn: int, cmd_sn: int, token: int) -> None:
    """Keep a request until its number is the expected one; HELD_GONE for one that is over."""
    store_64(_held_place(conn, cmd_sn), token)
    target_at(conn)[0]["held_count"] += 1


@nopython
def forget_held(conn: int, cmd_sn: int) -> None:
    """Have a held request do nothing when its turn comes: it is over.

    Its place in the window comes back when its number is passed, so the window never grows.
    """
    store_64(_held_place(conn, cmd_sn), HELD_GONE)


@nopython
def next_held(conn: int) -> int:
    """Take the request whose turn has come, and expect the number after it: its token, or 0."""
    mine = target_at(conn)[0]
    if mine["held_count"] == 0:
        return 0
    place = _held_place(conn, mine["exp_cmd_sn"])
    token = load_64(place)
    if token:
        store_64(place, 0)
        mine["held_count"] -= 1
        mine["exp_cmd_sn"] = sn.add(mine["exp_cmd_sn"], 1)
    return token


@nopython
def tasks_free(conn: int) -> int:
    """How many tasks are free."""
    return int(pool_at(conn + TASK_POOL)[0]["free_count"])


@nopython
def make_ready(conn: int, address: int) -> None:
    """Put a task in line for sending, once."""
    task = task_at(address)[0]
    if task["queued"] == 0:
        task["queued"] = 1
        push(conn + READY, token_of(TOKEN_TASK, address))


@nopython
def abort(conn: int, address: int) -> None:
    """End an open task without a response (RFC 7143 §11.5.1)."""
    port = port_at(conn)[0]
    target_at(conn)[0]["has_aborted"] = 1
    if port["rx_object"] == address:
        port["rx_object"] = 0
        forget_place(conn)  # what comes late must not reach the medium any more
        _orphan_buffer(conn, address)
    task = task_at(address)[0]
    task["post_status"] = -ENOENT
    if task["cold_queued"] and target_at(conn)[0]["lower"]:
        task["cold_queued"] = 0
        forget_notice(target_at(conn)[0]["lower"], token_of(TOKEN_TASK, address))
    if task["state"] == STATE_HELD:
        forget_held(conn, task["cmd_sn"])
    elif not task["is_immediate"]:
        open_window(conn)
    close_task(conn, address)


@nopython
def abort_task(conn: int, itt: int) -> int:
    """ABORT TASK: 0, or -ENOENT if there is no such task."""
    address = task_of(conn, itt)
    if address == 0:
        return -ENOENT
    abort(conn, address)
    _abort_below(conn, -1, -1, ONE_TASK, itt)
    return 0


@nopython
def abort_lun(conn: int, lun_number: int) -> int:
    """End this connection's tasks for one LUN, or for all with -1. Return how many there were."""
    return abort_before(conn, lun_number, -1)


@nopython
def abort_before(conn: int, lun_number: int, cmd_sn: int) -> int:
    """`abort_lun` for the tasks that came before the request with this CmdSN, -1 for all.

    A task management function acts on earlier commands only (RFC 7143 §4.2.2.1, §11.5.1); an
    immediate command has the number of what follows it, and counts as earlier.
    """
    mine = target_at(conn)[0]
    count = 0
    for index in range(mine["task_count"]):
        address = int(mine["tasks"] + TASK_SIZE * index)
        task = task_at(address)[0]
        if task["state"] in (STATE_FREE, STATE_SENT):
            continue
        if cmd_sn >= 0 and sn.distance(task["cmd_sn"], cmd_sn) < 1 - task["is_immediate"]:
            continue
        if lun_number == -1 or task["lun_number"] == lun_number:
            abort(conn, address)
            count += 1
    _abort_below(conn, lun_number, cmd_sn, 0, 0)
    return count


@nopython
def _abort_below(conn: int, lun_number: int, cmd_sn: int, flags: int, itt: int) -> None:
    """The engine's half of a datamover ends its tasks, too, and says when it has."""
    mirror = target_at(conn)[0]["mirror"]
    if mirror and add_abort(mirror, lun_number, cmd_sn, flags, itt) == 0:
        port_at(conn)[0]["error"] = TOO_MANY_TASKS  # never more than its requests ask for


@nopython
def aborted_work(conn: int, lun_number: int) -> int:
    """Tasks of one LUN, or of all with -1, that were aborted while somebody still works on them."""
    mine = target_at(conn)[0]
    count = 0
    for index in range(mine["task_count"]):
        task = task_at(int(mine["tasks"] + TASK_SIZE * index))[0]
        if task["state"] in (STATE_SENT, STATE_RESPOND) and task["workers"] > 0:
            count += lun_number in (-1, task["lun_number"])
    if mine["mirror"]:
        count += aborts_under_way(mine["mirror"], lun_number)
    return count


@nopython
def set_residual(address: int, length: int) -> None:
    """Compare what the command wants to move with what the initiator expects."""
    task = task_at(address)[0]
    expected = task["expected_length"]
    task["residual_flags"] = 0
    if length > expected:
        task["residual_flags"] = bhs.FLAG_OVERFLOW
    elif length < expected:
        task["residual_flags"] = bhs.FLAG_UNDERFLOW
    task["residual_count"] = min(abs(length - expected), 0xFFFFFFFF)
