"""The target's lower half of the datamover cut (RFC 5047's primitives over `iscsi.wire.mover`): a
TARGET whose cold code is the host's. It moves data for commands that the host does, and answers
them; `target_notice` shows them. It trusts no number of a POST; addresses were checked before.
"""

import errno
from typing import Final

from iscsi.wire import bhs, tx
from iscsi.wire import lun as units
from iscsi.wire.mover import (
    ABORT,
    ANSWER,
    CANCEL,
    CONTROL,
    DONE,
    GATE,
    GET,
    MAY_CHANGE,
    OLDEST,
    ONE_TASK,
    QUERY,
    REFUSE,
    event_at,
    post_at,
)
from iscsi.wire.port import (
    READY,
    is_empty,
    pop,
    port_at,
    push,
    queue_at,
)
from iscsi.wire.rx import forget_place
from iscsi.wire.sense import ScsiStatus
from iscsi.wire.target_block import TargetLimits
from iscsi.wire.target_command import end_spoiled, spoil
from iscsi.wire.target_mover_control import control, done, is_inside, send_waiting
from iscsi.wire.target_posts import (
    ENDED,
    NOTICES,
    PENDING,
    POST_ANSWER,
    POST_GET,
    POST_NONE,
    POST_UNIT,
    SENDING,
    WAITING,
    WORD_MASK,
    build_lower,
    ended,
    lower_at,
    lower_parts,
)
from iscsi.wire.target_rx import count_as_received
from iscsi.wire.target_task import (
    STATE_COLD,
    STATE_DATA_IN,
    STATE_DATA_OUT,
    STATE_FREE,
    STATE_RESPOND,
    STATE_SENT,
    TASK_SIZE,
    abort_before,
    abort_task,
    drop_buffers,
    make_ready,
    target_at,
    task_at,
)
from iscsi.wire.target_writes import refuse_writes
from shm.atomics import store_release
from shm.jit import nopython
from shm.memory import copy_bytes, load_64

EBUSY: Final = errno.EBUSY
EINVAL: Final = errno.EINVAL
EIO: Final = errno.EIO
EMSGSIZE: Final = errno.EMSGSIZE
ENOBUFS: Final = errno.ENOBUFS
ENOENT: Final = errno.ENOENT
EOPNOTSUPP: Final = errno.EOPNOTSUPP
GOOD: Final = int(ScsiStatus.GOOD)
RESIDUALS: Final = bhs.FLAG_OVERFLOW | bhs.FLAG_UNDERFLOW
SENSE_MASK: Final = 0xFFFFFF  # key << 16 | code
# Of an ANSWER's arg1.
RESIDUAL_SHIFT: Final = 8
SENSE_LENGTH_SHIFT: Final = 16
SENSE_SHIFT: Final = 32

GATE_MAX: Final = max(units.GATE_OPEN, units.GATE_CLOSED, units.GATE_READS_ONLY)


def lower_size(limits: TargetLimits) -> int:
    """Bytes of zeroed memory that `build_lower_half` needs, from a multiple of 64 on."""
    parts = lower_parts(limits.task_count, limits.port.control_slots)
    return sum((size + 63) & ~63 for size in parts.values())


def build_lower_half(conn: int, memory: int, limits: TargetLimits) -> None:
    """Make a TARGET from `build_target`, with the same limits, a datamover's lower half."""
    counts = (limits.task_count, limits.port.control_slots)
    at = {}
    for name, size in lower_parts(*counts).items():
        at[name] = memory
        memory += (size + 63) & ~63
    build_lower(at, *counts)
    target_at(conn)[0]["lower"] = at["lower"]


# --- what the host asks ----------------------------------------------------------------------


@nopython
def on_post(conn: int, post: int, home: int, home_size: int, handle: int) -> int:
    """Do what the host asks. PENDING: an event with `user_data` = `handle` follows; else it is over
    with 0 or -errno, and what its event's `arg0` would say is left in the post's.

    `address` and `length` name memory that may be used until then; `home` is `home_size` bytes of
    the host's. -ENOENT: no such task, or it was aborted; -EBUSY: it is not the host's turn.
    """
    mine, lower = post_at(post)[0], lower_at(target_at(conn)[0]["lower"])[0]
    if lower["over"]:
        return int(lower["over"])
    if lower["open_posts"] >= lower["post_limit"]:
        return -ENOBUFS
    opcode = mine["opcode"]
    if opcode == GET:
        outcome = _get(conn, post, handle)
    elif opcode == ANSWER:
        outcome = _answer(conn, post, home, home_size, handle)
    elif opcode == CONTROL:
        outcome = control(conn, post, home, home_size, handle)
    elif opcode == ABORT:
        outcome = _abort(conn, post, handle)
    elif opcode == DONE:
        outcome = done(conn, mine["arg0"])
    elif opcode == GATE:
        outcome = _gate(conn, mine["arg0"], mine["arg1"])
    elif opcode == CANCEL:
        outcome = _cancel(conn, mine["arg0"], handle)
    else:
        outcome = -EOPNOTSUPP
    if outcome == PENDING:
        lower["open_posts"] += 1
    return outcome


@nopython
def _task_named(conn: int, task_id: int) -> int:
    """Address of the open task with this id, or 0."""
    mine = target_at(conn)[0]
    index = task_id & 0xFFFF
    if index >= mine["task_count"]:
        return 0
    address = int(mine["tasks"] + TASK_SIZE * index)
    task = task_at(address)[0]
    if task["id"] != task_id or task["state"] in (STATE_FREE, STATE_SENT):
        return 0
    return address


@nopython
def _is_hosts_turn(address: int) -> bool:
    task = task_at(address)[0]
    return bool(task["state"] == STATE_COLD and task["cold_queued"] == 0)


@nopython
def _get(conn: int, post: int, handle: int) -> int:
    """Get_Data: ask for written data with R2Ts, and have it placed where the host wants it."""
    mine = post_at(post)[0]
    address = _task_named(conn, mine["arg0"])
    if address == 0:
        return -ENOENT
    if not _is_hosts_turn(address):
        return -EBUSY
    task = task_at(address)[0]
    start, length = mine["arg1"], mine["length"]
    if task["flags"] & bhs.FLAG_WRITE == 0 or length <= 0 or mine["address"] <= 0:
        return -EINVAL
    if not is_inside(start, length, task["expected_length"]):
        return -EINVAL
    if task["spoiled"]:
        mine["arg0"] = task["spoiled_sense"]
        return -EIO
    task["post"], task["post_handle"] = POST_GET, handle
    task["direction"] = bhs.FLAG_WRITE
    task["data_address"] = mine["address"] - start  # of what would be the buffer's first byte
    task["transfer"] = start + length
    task["received"] = task["r2t_offset"] = start
    task["burst_end"] = min(start + target_at(conn)[0]["max_burst_length"], start + length)
    task["data_out_sn"] = 0
    task["state"] = STATE_DATA_OUT
    make_ready(conn, address)
    return PENDING


@nopython
def _answer(conn: int, post: int, home: int, home_size: int, handle: int) -> int:
    """Put_Data with the status behind it, or Send_Control of a SCSI Response."""
    mine = post_at(post)[0]
    address = _task_named(conn, mine["arg0"])
    if address == 0:
        return -ENOENT
    if not _is_hosts_turn(address):
        return -EBUSY
    task = task_at(address)[0]
    word, length = mine["arg1"], mine["length"]
    sense_length = (word >> SENSE_LENGTH_SHIFT) & 0xFFFF
    sense = (word >> SENSE_SHIFT) & SENSE_MASK
    if length:
        if not 0 < length <= task["expected_length"] or mine["address"] <= 0:
            return -EINVAL
        if task["flags"] & bhs.FLAG_READ == 0 or word & 0xFF or sense_length or sense:
            return -EINVAL
    if sense_length:
        longest = port_at(conn)[0]["peer_max_recv_data_segment_length"]
        if sense_length > min(target_at(conn)[0]["cold_length"], longest):
            return -EMSGSIZE
        if sense or not is_inside(mine["more0"], sense_length, home_size):
            return -EINVAL
        copy_bytes(task["cold_address"], home + mine["more0"], sense_length)
    task["status"] = word & 0xFF
    task["residual_flags"] = (word >> RESIDUAL_SHIFT) & RESIDUALS
    task["residual_count"] = mine["arg2"] & WORD_MASK
    task["sense"], task["sense_length"] = sense, sense_length
    task["direction"], task["transfer"] = (bhs.FLAG_READ, length) if length else (0, 0)
    task["data_address"] = mine["address"]
    task["state"] = STATE_DATA_IN if length else STATE_RESPOND
    if length:
        task["post"], task["post_handle"] = POST_ANSWER, handle
        task["is_cold"] = 0 if mine["flags"] & MAY_CHANGE else 1
    make_ready(conn, address)
    return PENDING if length else 0


@nopython
def _cancel(conn: int, task_id: int, handle: int) -> int:
    """Let nothing more be placed for a GET; it ends when its initiator has sent what was asked.

    Over a queue pair that is what has to be waited for: nobody can end an RDMA Read.
    """
    address = _task_named(conn, task_id)
    if address == 0 or task_at(address)[0]["post"] != POST_GET:
        return -ENOENT
    spoil(conn, address, 0)
    if port_at(conn)[0]["rx_object"] == address:
        forget_place(conn)
    end_spoiled(conn, address)
    if task_at(address)[0]["tx_pending"]:
        return _when_sent(conn, handle, CANCEL, 0)
    return 0


@nopython
def _when_sent(conn: int, handle: int, opcode: int, count: int) -> int:
    """Have a post end when everything that is in line by now was sent."""
    lower = target_at(conn)[0]["lower"]
    push(lower + SENDING, handle)
    push(lower + SENDING, opcode)
    push(lower + SENDING, count)
    push(lower + SENDING, port_at(conn)[0]["tx_made"])
    return PENDING


# --- other requests --------------------------------------------------------------------------


@nopython
def _gate(conn: int, lun: int, gate: int) -> int:
    """From the next command on, serve of a unit only what the nexus' word says."""
    mine = target_at(conn)[0]
    if not 0 <= lun < mine["lun_count"] or not 0 <= gate <= GATE_MAX:
        return -EINVAL
    store_release(mine["nexus"] + 8 * lun, gate)
    return 0


@nopython
def _abort(conn: int, post: int, handle: int) -> int:
    """Deallocate_Task_Resources. Nothing is received for them any more; what of their data was put
    in line already still goes out, and is waited for.
    """
    mine, lower = post_at(post)[0], target_at(conn)[0]["lower"]
    lower_at(lower)[0]["aborts"] = mine["arg2"] & WORD_MASK
    if mine["flags"] & QUERY:
        mine["arg0"] = _open_tasks(conn, mine["arg0"], mine["arg1"], mine["flags"] & OLDEST != 0)
        return 0
    if mine["flags"] & REFUSE:
        lun, before = mine["arg0"], lower_at(lower)[0]["refused_reads"]
        mine["arg0"] = _refuse(conn, lun, mine["arg1"] & SENSE_MASK)
        if lower_at(lower)[0]["refused_reads"] != before:
            return _when_sent(conn, handle, ABORT, mine["arg0"])
        return 0
    if mine["flags"] & ONE_TASK:
        count = 1 if _abort_one(conn, mine["arg1"] & WORD_MASK, mine["arg0"]) else 0
    else:
        before = mine["arg1"]
        count = abort_before(conn, mine["arg0"], before & WORD_MASK if before >= 0 else -1)
    if not _sends_aborted(conn):
        mine["arg0"] = count
        return 0
    return _when_sent(conn, handle, ABORT, count)


@nopython
def _refuse(conn: int, lun: int, sense: int) -> int:
    """End WRITEs that wait for data; they use their unit no more, whenever the rest comes, but for
    one whose RDMA Read is under way: that still does.
    """
    mine = target_at(conn)[0]
    count = refuse_writes(conn, lun, sense)
    for index in range(mine["task_count"]):
        task = task_at(int(mine["tasks"] + TASK_SIZE * index))[0]
        if task["post"] != POST_UNIT or not task["spoiled"] or task["lun_number"] != lun:
            continue
        if task["tx_pending"]:
            lower_at(mine["lower"])[0]["refused_reads"] += 1
        else:
            units.lun_at(task["unit"])[0]["under_way"] -= 1
            task["post"] = POST_NONE
    return count


@nopython
def _open_tasks(conn: int, lun: int, itt: int, waiting: bool) -> int:
    """How many there are with this LUN and tag, or which of them has waited longest for data."""
    mine = target_at(conn)[0]
    count, found, since = 0, -1, 0
    for index in range(mine["task_count"]):
        task = task_at(int(mine["tasks"] + TASK_SIZE * index))[0]
        if task["state"] in (STATE_FREE, STATE_SENT):
            continue
        if lun not in (-1, task["lun_number"]) or itt not in (-1, task["itt"]):
            continue
        count += 1
        waits = task["state"] == STATE_DATA_OUT and task["post"] == POST_UNIT
        if waits and (found == -1 or task["arrival"] < since):
            found, since = task["id"], task["arrival"]
    return int(found if waiting else count)


@nopython
def _abort_one(conn: int, itt: int, numbers: int) -> bool:
    """ABORT TASK of RefCmdSN | CmdSN << 32; one that has not come counts as received."""
    if abort_task(conn, itt) == 0:
        return True
    if numbers == -1:
        return False
    return count_as_received(conn, numbers & WORD_MASK, (numbers >> 32) & WORD_MASK)


@nopython
def _sends_aborted(conn: int) -> bool:
    """Whether data of aborted tasks is on its way."""
    mine = target_at(conn)[0]
    for index in range(mine["task_count"]):
        task = task_at(int(mine["tasks"] + TASK_SIZE * index))[0]
        if task["state"] == STATE_SENT and task["tx_pending"] and task["post_status"]:
            return True
    return False


# --- what the host is told -------------------------------------------------------------------


@nopython
def event_next(conn: int, event: int) -> bool:
    """Fill in the EVENT of a post that was PENDING and is over; False if there is none."""
    lower = target_at(conn)[0]["lower"]
    send_waiting(conn, lower)
    _end_aborts(conn, lower)
    if is_empty(lower + ENDED):
        return False
    mine = event_at(event)[0]
    mine["user_data"] = pop(lower + ENDED)
    mine["opcode"] = pop(lower + ENDED)
    mine["status"] = pop(lower + ENDED)
    mine["arg0"] = pop(lower + ENDED)
    mine["length"] = mine["arg1"] = mine["arg2"] = 0
    lower_at(lower)[0]["open_posts"] -= 1
    return True


@nopython
def _end_aborts(conn: int, lower: int) -> None:
    """End the ABORTs and CANCELs that wait for what was in line before them."""
    sent = port_at(conn)[0]["tx_sent"]
    while not is_empty(lower + SENDING):
        queue = queue_at(lower + SENDING)[0]
        mask = queue["capacity"] - 1
        if load_64(queue["slots"] + 8 * ((queue["head"] + 3) & mask)) > sent:
            return
        handle, opcode = pop(lower + SENDING), pop(lower + SENDING)
        count = pop(lower + SENDING)
        pop(lower + SENDING)
        ended(lower, handle, opcode, 0, count)


@nopython
def has_news(conn: int) -> bool:
    """Whether `target_notice.notify_next` has something to show."""
    return not is_empty(target_at(conn)[0]["lower"] + NOTICES)


@nopython
def places_into(conn: int, start: int, end: int) -> bool:
    """Whether a GET may still place data between two addresses."""
    mine = target_at(conn)[0]
    for index in range(mine["task_count"]):
        task = task_at(int(mine["tasks"] + TASK_SIZE * index))[0]
        if task["post"] != POST_GET:
            continue
        first = task["data_address"] + task["received"]
        if first < end and start < task["data_address"] + task["transfer"]:
            return True
    return False


# --- the end ---------------------------------------------------------------------------------


@nopython
def end_all(conn: int, status: int) -> None:
    """The connection is over: every post that has no event yet gets one with `status` (-errno).

    Nothing may be received or sent any more, and nothing touches a buffer of the host's or of a
    unit. What comes afterwards is refused with the same status. Again it does nothing.
    """
    lower = target_at(conn)[0]["lower"]
    mine, port = lower_at(lower)[0], port_at(conn)[0]
    if mine["over"]:
        return
    mine["over"] = status if status < 0 else -EIO
    if port["error"] == 0:
        port["error"] = mine["over"]
    port["rx_object"] = 0
    tx.forget_all(conn)
    for queue in (conn + READY, lower + NOTICES):
        queue_at(queue)[0]["head"] = queue_at(queue)[0]["tail"]
    _end_tasks(conn, mine["over"])
    while not is_empty(lower + SENDING):
        handle = pop(lower + SENDING)
        ended(lower, handle, pop(lower + SENDING), mine["over"], 0)
        queue_at(lower + SENDING)[0]["head"] += 2
    while not is_empty(lower + WAITING):
        ended(lower, pop(lower + WAITING), CONTROL, mine["over"], 0)
        queue_at(lower + WAITING)[0]["head"] += 2
    drop_buffers(conn)


@nopython
def _end_tasks(conn: int, status: int) -> None:
    mine = target_at(conn)[0]
    for index in range(mine["task_count"]):
        task = task_at(int(mine["tasks"] + TASK_SIZE * index))[0]
        if task["post"] == POST_GET or task["post"] == POST_ANSWER:
            ended(mine["lower"], task["post_handle"], task["post"], status, 0)
        elif task["post"] != POST_NONE:
            units.lun_at(task["unit"])[0]["under_way"] -= 1
        task["post"] = POST_NONE
