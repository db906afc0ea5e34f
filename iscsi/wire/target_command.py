"""The life of a SCSI command at the target, from its header to the point where its answer is ready
to be sent. READ and WRITE of a memory-backed LUN never leave compiled code, those of a file wait
for whoever does input and output, everything else for the cold code. Data that does not lie in a
LUN's memory is in a bounded area of the task or in a shared buffer; where none is free, the command
ends with TASK SET FULL (SAM-5 §5.3.1).
"""

import errno
from typing import Final

from iscsi.wire import bhs
from iscsi.wire import lun as units
from iscsi.wire.buffers import largest
from iscsi.wire.port import (
    CONTROL_CREDIT,
    EVENTS,
    READY,
    TOKEN_CONTROL,
    TOKEN_TASK,
    control_give,
    control_store,
    is_empty,
    pop,
    port_at,
    push,
    token_of,
)
from iscsi.wire.sense import ScsiStatus
from iscsi.wire.target_attribute import take_turn
from iscsi.wire.target_posts import (
    NOTICES,
    POST_GET,
    POST_NONE,
    POST_UNIT,
    add_cancel,
    add_done,
    ended,
)
from iscsi.wire.target_storage import wait_for_storage
from iscsi.wire.target_task import (
    CDB,
    COLD,
    STATE_COLD,
    STATE_DATA_IN,
    STATE_DATA_OUT,
    STATE_HELD,
    STATE_RESPOND,
    STATE_STORAGE,
    TASK_SIZE,
    drop_buffer,
    drop_orphan,
    hold_buffer,
    make_ready,
    new_task,
    open_window,
    set_residual,
    target_at,
    task_at,
)
from iscsi.wire.target_tx import wants_r2t
from shm.atomics import load_acquire
from shm.jit import nopython
from shm.memory import copy_bytes, load_8, load_32_be, load_64, load_64_be, store_16_be

GOOD: Final = int(ScsiStatus.GOOD)
CHECK_CONDITION: Final = int(ScsiStatus.CHECK_CONDITION)
TASK_SET_FULL: Final = int(ScsiStatus.TASK_SET_FULL)
TASK_ABORTED: Final = int(ScsiStatus.TASK_ABORTED)
EAGAIN: Final = errno.EAGAIN
EINVAL: Final = errno.EINVAL
EIO: Final = errno.EIO
ENOENT: Final = errno.ENOENT
EMSGSIZE: Final = errno.EMSGSIZE
ENOSPC: Final = errno.ENOSPC


@nopython
def begin_command(conn: int, header: int, itt: int) -> int:
    """Make the task of a SCSI Command whose header was judged; its address, or 0 if none is free.

    Says what data the command really moves: SPC's length against the expected data transfer length
    (RFC 7143 §11.4.5), and nothing in a direction the PDU did not announce.
    """
    drop_orphan(conn)  # this is another PDU
    address = new_task(conn, itt)
    if address == 0:
        return 0
    task = task_at(address)[0]
    flags = load_8(header + bhs.OFFSET_FLAGS)
    task["flags"] = flags
    task["is_immediate"] = 1 if load_8(header) & bhs.IMMEDIATE else 0
    task["cmd_sn"] = load_32_be(header + bhs.OFFSET_CMD_SN)
    task["lun"] = load_64_be(header + bhs.OFFSET_LUN)
    task["lun_number"] = units.lun_number(task["lun"])
    task["expected_length"] = load_32_be(header + bhs.OFFSET_EXPECTED_DATA_TRANSFER_LENGTH)
    task["cdb0"] = load_64(header + bhs.OFFSET_CDB)
    task["cdb1"] = load_64(header + bhs.OFFSET_CDB + 8)
    task["unsolicited"] = 0 if flags & bhs.FLAG_FINAL else 1
    if target_at(conn)[0]["rx_held"]:
        task["state"] = STATE_HELD
        task["refetch"] = 1
    else:
        _plan(conn, address)
    return address


@nopython
def _plan(conn: int, address: int) -> None:
    """Its turn has come: say what it moves, and from or to where."""
    task_at(address)[0]["state"] = STATE_DATA_OUT
    take_turn(conn, address)
    unit = _hot_unit(conn, address)
    if unit:
        _plan_block_io(conn, address, unit)
    else:
        _plan_cold(conn, address)


@nopython
def resume_command(conn: int, address: int) -> None:
    """Go on with a command that was held; what was written with it is asked for now."""
    _plan(conn, address)
    _advance(conn, address)


@nopython
def _hot_unit(conn: int, address: int) -> int:
    """Address of the LUN if compiled code may serve this command now, else 0."""
    mine, task = target_at(conn)[0], task_at(address)[0]
    direction = units.direction_of(address + CDB)
    if direction == units.NOT_BLOCK_IO or mine["ordered"]:
        return 0
    unit = units.unit_of(mine["luns"], mine["lun_count"], task["lun_number"])
    if unit == 0:
        return 0
    gate = load_acquire(mine["nexus"] + 8 * task["lun_number"])
    if gate == units.GATE_OPEN or (gate == units.GATE_READS_ONLY and direction == units.READ):
        return unit
    return 0


@nopython
def _plan_block_io(conn: int, address: int, unit: int) -> None:
    task, lun = task_at(address)[0], units.lun_at(unit)[0]
    refusal = units.judge(unit, address + CDB)
    if refusal:
        task["status"] = CHECK_CONDITION
        task["sense"] = refusal
        set_residual(address, 0)
        return
    length = units.block_count(address + CDB) * lun["block_size"]
    set_residual(address, length)
    direction = units.direction_of(address + CDB)
    if task["flags"] & direction:
        task["direction"] = direction
        task["transfer"] = min(length, task["expected_length"])
        start = units.first_block(address + CDB) * lun["block_size"]
        task["unit"] = unit
        units.count(unit, direction, task["transfer"])
        if target_at(conn)[0]["lower"]:
            task["post"] = POST_UNIT
            lun["under_way"] += 1
        if lun["storage"]:
            _plan_storage(conn, address, lun["storage"], start)
            return
        task["data_address"] = lun["memory"] + start
        if direction == units.WRITE:
            units.mark_written(unit, address + CDB)


@nopython
def _plan_storage(conn: int, address: int, storage: int, start: int) -> None:
    """Data of a file goes through a buffer. A write's is needed now if data comes unasked; else
    the data is asked for when there is one, and a read's is found when it is read.
    """
    task = task_at(address)[0]
    if task["transfer"] > largest(target_at(conn)[0]["buffers"]):
        task["status"] = CHECK_CONDITION  # more than the maximum transfer length (SBC-3 §6.6.4)
        task["sense"] = units.INVALID_FIELD_IN_CDB
        _move_nothing(address)
        return
    if task["transfer"] == 0:
        return
    task["medium"] = storage
    task["medium_offset"] = start
    comes_unasked = task["unsolicited"] or port_at(conn)[0]["rx_data_length"] > 0
    is_write = task["direction"] == units.WRITE
    if is_write and not hold_buffer(conn, address, task["transfer"]) and comes_unasked:
        end_busy(address)


@nopython
def _move_nothing(address: int) -> None:
    task = task_at(address)[0]
    task["direction"] = 0
    task["transfer"] = 0
    task["medium"] = 0
    set_residual(address, 0)


@nopython
def end_busy(address: int) -> None:
    """There is no buffer for this command now: have it answered with TASK SET FULL."""
    task = task_at(address)[0]
    task["status"] = TASK_SET_FULL
    task["is_cold"] = 0
    _move_nothing(address)


@nopython
def _plan_cold(conn: int, address: int) -> None:
    """Collect a cold command's data, in its area or in a buffer, unless it is more than any holds:
    then the cold code sees that there is none.
    """
    mine, task = target_at(conn)[0], task_at(address)[0]
    task["is_cold"] = 1
    task["data_address"] = task["cold_address"]
    if mine["lower"]:
        _plan_below(conn, address)
        return
    length = task["expected_length"]
    if task["flags"] & bhs.FLAG_WRITE == 0:
        return
    if length > mine["cold_length"]:
        if length > largest(mine["buffers"]):
            return
        if not hold_buffer(conn, address, length):
            end_busy(address)
            return
    task["direction"] = bhs.FLAG_WRITE
    task["transfer"] = length


@nopython
def _plan_below(conn: int, address: int) -> None:
    """Keep what comes unasked until the host sees it, or throw it away and let it be asked for."""
    mine, task = target_at(conn)[0], task_at(address)[0]
    if task["flags"] & bhs.FLAG_WRITE == 0 or task["refetch"]:
        return
    length = port_at(conn)[0]["rx_data_length"]
    if task["unsolicited"]:
        length = max(length, mine["first_burst_length"])
    length = min(length, task["expected_length"])
    if length > mine["cold_length"] and not hold_buffer(conn, address, length):
        task["refetch"] = 1
    task["direction"] = bhs.FLAG_WRITE
    task["transfer"] = length


@nopython
def command_data(address: int) -> int:
    """How many more bytes of written data are wanted; the rest of what comes is thrown away."""
    task = task_at(address)[0]
    if task["direction"] != bhs.FLAG_WRITE or task["refetch"] or task["spoiled"]:
        return 0
    return int(max(0, task["transfer"] - task["received"]))


@nopython
def command_here(conn: int, address: int) -> None:
    """A command and its immediate data are complete."""
    task = task_at(address)[0]
    task["received"] = port_at(conn)[0]["rx_data_length"]
    target_at(conn)[0]["data_bytes"] += task["received"]
    if task["state"] != STATE_HELD:
        _advance(conn, address)


@nopython
def data_out_here(conn: int, address: int, is_final: bool, is_unsolicited: bool) -> None:
    """A Data-Out PDU is complete and placed."""
    mine, task = target_at(conn)[0], task_at(address)[0]
    task["received"] += port_at(conn)[0]["rx_data_length"]
    mine["data_bytes"] += port_at(conn)[0]["rx_data_length"]
    task["data_out_sn"] += 1
    if not is_final:
        return
    task["data_out_sn"] = 0
    if is_unsolicited:
        task["unsolicited"] = 0
    else:
        if task["spoiled"]:
            task["received"] = task["burst_end"]
        task["r2t_done"] += 1
        task["burst_end"] = min(task["burst_end"] + mine["max_burst_length"], task["transfer"])
    if task["state"] != STATE_HELD:
        _advance(conn, address)


@nopython
def data_may_come(conn: int, address: int) -> None:
    """A write that waited for a buffer has one: ask for its data."""
    task_at(address)[0]["state"] = STATE_DATA_OUT
    _advance(conn, address)


@nopython
def _advance(conn: int, address: int) -> None:
    """Ask for more data, or do the command when all of it is here."""
    task = task_at(address)[0]
    if task["unsolicited"]:
        return
    if task["spoiled"]:
        end_spoiled(conn, address)
        return
    if task["refetch"]:
        task["refetch"] = 0
        task["received"] = 0
    if task["is_cold"] and target_at(conn)[0]["lower"]:
        _advance_below(conn, address)
        return
    if command_data(address):
        if task["medium"] and task["buffer"] == 0:
            task["state"] = STATE_STORAGE
            wait_for_storage(conn, address)
            return
        if task["r2t_sn"] == 0:
            task["r2t_offset"] = task["received"]
            end = task["received"] + target_at(conn)[0]["max_burst_length"]
            task["burst_end"] = min(end, task["transfer"])
        if wants_r2t(conn, address):
            make_ready(conn, address)
        return
    if task["is_cold"]:
        task["state"] = STATE_COLD
        if task["cold_queued"] == 0:
            task["cold_queued"] = 1
            push(conn + COLD, address)
        return
    if task["medium"]:
        task["state"] = STATE_STORAGE
        wait_for_storage(conn, address)
        return
    if task["direction"] == units.WRITE and task["unit"]:
        units.mark_written(task["unit"], address + CDB)  # An UNMAP may have come in between.
    is_read = task["direction"] == bhs.FLAG_READ and task["transfer"] > 0
    task["state"] = STATE_DATA_IN if is_read else STATE_RESPOND
    make_ready(conn, address)


@nopython
def _advance_below(conn: int, address: int) -> None:
    """In the engine the host does a command, and says when it wants the rest of its data."""
    task, lower = task_at(address)[0], target_at(conn)[0]["lower"]
    if task["post"] == POST_GET and command_data(address):
        if wants_r2t(conn, address):
            make_ready(conn, address)
        return
    task["state"] = STATE_COLD
    if task["post"] == POST_GET:
        task["post"] = POST_NONE
        ended(lower, task["post_handle"], POST_GET, 0, 0)
    elif task["cold_queued"] == 0:
        task["cold_queued"] = 1
        push(lower + NOTICES, token_of(TOKEN_TASK, address))


@nopython
def spoil(conn: int, address: int, sense: int) -> None:
    """Have a command end with this sense (key << 16 | code) because of how its data came; with 0 it
    is TASK ABORTED, because another nexus ended it.

    Its data is thrown away from here on. The response waits for the end of the bursts under way
    (RFC 7143 §7.8); no more is asked for.
    """
    task = task_at(address)[0]
    if task["spoiled"] == 0:
        task["spoiled"] = 1
        task["spoiled_sense"] = sense
        target_at(conn)[0]["faults"] += 1
        stop_get(conn, address)


@nopython
def stop_get(conn: int, address: int) -> None:
    """With a datamover: nothing more of what was asked for is to reach its place."""
    mirror, task = target_at(conn)[0]["mirror"], task_at(address)[0]
    if mirror and task["post"] == POST_GET:
        add_cancel(mirror, task["id"])


@nopython
def end_spoiled(conn: int, address: int) -> None:
    """Answer a spoiled command if nothing more is to come for it."""
    task = task_at(address)[0]
    if task["state"] != STATE_DATA_OUT or task["r2t_done"] != task["r2t_sn"]:
        return
    if task["post"] == POST_GET:
        _end_get(conn, address)
        return
    task["status"] = CHECK_CONDITION if task["spoiled_sense"] else TASK_ABORTED
    task["sense"] = task["spoiled_sense"]
    task["state"] = STATE_RESPOND
    set_residual(address, 0)
    # The initiator may have sent more than it was asked for: that names no task then.
    target_at(conn)[0]["has_aborted"] = 1
    make_ready(conn, address)


@nopython
def _end_get(conn: int, address: int) -> None:
    """The data that the host asked for is wrong: it says how the command ends."""
    task, mine = task_at(address)[0], target_at(conn)[0]
    task["state"] = STATE_COLD
    task["post"] = POST_NONE
    mine["has_aborted"] = 1
    ended(mine["lower"], task["post_handle"], POST_GET, -EIO, task["spoiled_sense"])


# --- for the cold code -----------------------------------------------------------------------


@nopython
def cold_next(conn: int) -> int:
    """Address of the next TASK that waits for the cold code, or 0.

    Its `id` is what `respond` takes. Data that was written with it lies at `data_address`: all
    `expected_length` bytes, or none if `transfer` is 0 because no buffer is that large.
    """
    while not is_empty(conn + COLD):
        address = pop(conn + COLD)
        task_at(address)[0]["cold_queued"] = 0
        if task_at(address)[0]["state"] == STATE_COLD:
            return address
    return 0


@nopython
def respond(
    conn: int,
    task_id: int,
    status: int,
    data: int,
    length: int,
    sense: int,
    sense_length: int,
    moved: int,
) -> int:
    """Answer a command from `cold_next`; data and sense are copied to the task's area or a buffer.

    `length` is what the command has to say, already cut to its allocation length; only what the
    initiator expects is sent, and the residual says the rest. It is made of `moved`, if that is
    not negative: what the command itself wants to move. Data goes with GOOD, sense with
    anything else; TASK SET FULL if there is no buffer for the data now. -ENOENT: the task was
    aborted meanwhile. -EMSGSIZE: more than any buffer holds. -EINVAL: data and sense at once.
    """
    mine = target_at(conn)[0]
    index = task_id & 0xFFFF
    if index >= mine["task_count"]:
        return -ENOENT
    address = int(mine["tasks"] + TASK_SIZE * index)
    task = task_at(address)[0]
    if task["id"] != task_id or task["state"] != STATE_COLD or task["cold_queued"]:
        return -ENOENT
    if length < 0 or sense_length < 0 or (length and (sense_length or status != GOOD)):
        return -EINVAL
    if sense_length + 2 > mine["cold_length"]:
        return -EMSGSIZE
    if length > max(mine["cold_length"], largest(mine["buffers"])):
        return -EMSGSIZE
    task["status"] = status
    wants_data = length and task["flags"] & bhs.FLAG_READ and task["expected_length"]
    if wants_data and not _place_answer(conn, address, length):
        end_busy(address)
        task["state"] = STATE_RESPOND
        make_ready(conn, address)
        return 0
    task["sent"] = 0
    # A write took what was sent with it; everything else moves `length` bytes to the initiator.
    is_write = task["flags"] & bhs.FLAG_WRITE != 0
    if moved < 0:
        moved = task["transfer"] if is_write and status == GOOD else length
    set_residual(address, moved)
    task["state"] = STATE_RESPOND
    if wants_data:
        copy_bytes(task["data_address"], data, length)
        task["direction"] = bhs.FLAG_READ
        task["transfer"] = min(length, task["expected_length"])
        task["state"] = STATE_DATA_IN
    elif sense_length:
        store_16_be(task["cold_address"], sense_length)
        copy_bytes(task["cold_address"] + 2, sense, sense_length)
        task["sense_length"] = sense_length + 2
    make_ready(conn, address)
    return 0


@nopython
def _place_answer(conn: int, address: int, length: int) -> bool:
    """Find room for a cold command's data: its area, or a buffer."""
    task = task_at(address)[0]
    drop_buffer(conn, address)  # of what was written with it
    if length > target_at(conn)[0]["cold_length"]:
        return hold_buffer(conn, address, length)
    task["data_address"] = task["cold_address"]
    return True


@nopython
def send_control(conn: int, header: int, data: int, length: int) -> int:
    """Send a PDU of the cold code's making: its 48-byte header and data are copied.

    StatSN (not taken by a NOP-In that asks for an answer), ExpCmdSN, MaxCmdSN and
    DataSegmentLength are filled in. 0; -EAGAIN: no slot is free; -EMSGSIZE: too much data.
    """
    port = port_at(conn)[0]
    if not 0 <= length <= port["control_data_length"]:
        return -EMSGSIZE
    if length > port["peer_max_recv_data_segment_length"]:
        return -EMSGSIZE
    slot = control_store(conn, header, data, length)
    if slot == 0:
        return -EAGAIN
    push(conn + READY, token_of(TOKEN_CONTROL, slot))
    return 0


@nopython
def control_done(conn: int) -> None:
    """The cold code is done with the PDU `control_next` showed: its place in the window is free."""
    if is_empty(conn + EVENTS):
        return
    slot = pop(conn + EVENTS)
    mirror = target_at(conn)[0]["mirror"]
    if mirror:
        add_done(mirror, load_64(slot + CONTROL_CREDIT))
    elif load_64(slot + CONTROL_CREDIT):
        open_window(conn)
    control_give(conn, slot)
