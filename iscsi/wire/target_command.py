"""The life of a SCSI command at the target, from its header to the point where its answer is ready
to be sent. READ and WRITE of a memory-backed LUN never leave compiled code; everything else waits
for the cold code, its data in a bounded area of the task.
"""

import errno
from typing import Final

from iscsi.wire import bhs
from iscsi.wire import lun as units
from iscsi.wire.port import (
    CONTROL_CREDIT,
    EVENTS,
    READY,
    TOKEN_CONTROL,
    control_give,
    control_store,
    is_empty,
    pop,
    port_at,
    push,
    token_of,
)
from iscsi.wire.sense import ScsiStatus
from iscsi.wire.target_task import (
    CDB,
    COLD,
    STATE_COLD,
    STATE_DATA_IN,
    STATE_DATA_OUT,
    STATE_RESPOND,
    TASK_SIZE,
    make_ready,
    new_task,
    open_window,
    target_at,
    task_at,
)
from iscsi.wire.target_tx import wants_r2t
from shm.atomics import load_acquire
from shm.jit import nopython
from shm.memory import copy_bytes, load_8, load_32_be, load_64, load_64_be, store_16_be

GOOD: Final = int(ScsiStatus.GOOD)
CHECK_CONDITION: Final = int(ScsiStatus.CHECK_CONDITION)
EAGAIN: Final = errno.EAGAIN
EINVAL: Final = errno.EINVAL
ENOENT: Final = errno.ENOENT
EMSGSIZE: Final = errno.EMSGSIZE


@nopython
def begin_command(conn: int, header: int, itt: int) -> int:
    """Make the task of a SCSI Command whose header was judged; its address, or 0 if none is free.

    Says what data the command really moves: SPC's length against the expected data transfer length
    (RFC 7143 §11.4.5), and nothing in a direction the PDU did not announce.
    """
    address = new_task(conn, itt)
    if address == 0:
        return 0
    task = task_at(address)[0]
    flags = load_8(header + bhs.OFFSET_FLAGS)
    task["flags"] = flags
    task["is_immediate"] = 1 if load_8(header) & bhs.IMMEDIATE else 0
    task["lun"] = load_64_be(header + bhs.OFFSET_LUN)
    task["lun_number"] = units.lun_number(task["lun"])
    task["expected_length"] = load_32_be(header + bhs.OFFSET_EXPECTED_DATA_TRANSFER_LENGTH)
    task["cdb0"] = load_64(header + bhs.OFFSET_CDB)
    task["cdb1"] = load_64(header + bhs.OFFSET_CDB + 8)
    task["unsolicited"] = 0 if flags & bhs.FLAG_FINAL else 1
    task["state"] = STATE_DATA_OUT
    unit = _hot_unit(conn, address)
    if unit:
        _plan_block_io(address, unit)
    else:
        _plan_cold(conn, address)
    return address


@nopython
def _hot_unit(conn: int, address: int) -> int:
    """Address of the LUN if compiled code may serve this command now, else 0."""
    mine, task = target_at(conn)[0], task_at(address)[0]
    if units.direction_of(address + CDB) == units.NOT_BLOCK_IO:
        return 0
    unit = units.unit_of(mine["luns"], mine["lun_count"], task["lun_number"])
    if unit and load_acquire(mine["nexus"] + 8 * task["lun_number"]) != 0:
        return 0
    return unit


@nopython
def _plan_block_io(address: int, unit: int) -> None:
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
        task["data_address"] = lun["memory"] + start


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


@nopython
def _plan_cold(conn: int, address: int) -> None:
    """Collect a cold command's data if its area holds it; the cold code sees `received`."""
    task = task_at(address)[0]
    task["is_cold"] = 1
    task["data_address"] = task["cold_address"]
    is_write = task["flags"] & bhs.FLAG_WRITE != 0
    if is_write and task["expected_length"] <= target_at(conn)[0]["cold_length"]:
        task["direction"] = bhs.FLAG_WRITE
        task["transfer"] = task["expected_length"]


@nopython
def command_data(address: int) -> int:
    """How many more bytes of written data are wanted; the rest of what comes is thrown away."""
    task = task_at(address)[0]
    if task["direction"] != bhs.FLAG_WRITE:
        return 0
    return int(max(0, task["transfer"] - task["received"]))


@nopython
def command_here(conn: int, address: int) -> None:
    """A command and its immediate data are complete."""
    task = task_at(address)[0]
    task["received"] = port_at(conn)[0]["rx_data_length"]
    _advance(conn, address)


@nopython
def data_out_here(conn: int, address: int, is_final: bool, is_unsolicited: bool) -> None:
    """A Data-Out PDU is complete and placed."""
    mine, task = target_at(conn)[0], task_at(address)[0]
    task["received"] += port_at(conn)[0]["rx_data_length"]
    task["data_out_sn"] += 1
    if not is_final:
        return
    task["data_out_sn"] = 0
    if is_unsolicited:
        task["unsolicited"] = 0
    else:
        task["r2t_done"] += 1
        task["burst_end"] = min(task["burst_end"] + mine["max_burst_length"], task["transfer"])
    _advance(conn, address)


@nopython
def _advance(conn: int, address: int) -> None:
    """Ask for more data, or do the command when all of it is here."""
    task = task_at(address)[0]
    if task["unsolicited"]:
        return
    if command_data(address):
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
    is_read = task["direction"] == bhs.FLAG_READ and task["transfer"] > 0
    task["state"] = STATE_DATA_IN if is_read else STATE_RESPOND
    make_ready(conn, address)


# --- for the cold code -----------------------------------------------------------------------


@nopython
def cold_next(conn: int) -> int:
    """Address of the next TASK that waits for the cold code, or 0.

    Its `id` is what `respond` takes. Data that was written with it lies at `cold_address`: all
    `expected_length` bytes, or none if `transfer` is 0 because the area is too small.
    """
    while not is_empty(conn + COLD):
        address = pop(conn + COLD)
        task_at(address)[0]["cold_queued"] = 0
        if task_at(address)[0]["state"] == STATE_COLD:
            return address
    return 0


@nopython
def respond(
    conn: int, task_id: int, status: int, data: int, length: int, sense: int, sense_length: int
) -> int:
    """Answer a command from `cold_next`; data and sense are copied to the task's area.

    `length` is what the command has to say, already cut to its allocation length; only what the
    initiator expects is sent, and the residual says the rest. Data goes with GOOD, sense with
    anything else. -ENOENT: the task was aborted meanwhile. -EMSGSIZE: more than the area holds.
    -EINVAL: data and sense at once.
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
    if max(length, sense_length + 2) > mine["cold_length"]:
        return -EMSGSIZE
    task["status"] = status
    task["sent"] = 0
    # A write took what was sent with it; everything else moves `length` bytes to the initiator.
    is_write = task["flags"] & bhs.FLAG_WRITE != 0
    set_residual(address, task["transfer"] if is_write and status == GOOD else length)
    task["state"] = STATE_RESPOND
    if length and task["flags"] & bhs.FLAG_READ and task["expected_length"]:
        copy_bytes(task["cold_address"], data, length)
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
    if load_64(slot + CONTROL_CREDIT):
        open_window(conn)
    control_give(conn, slot)
