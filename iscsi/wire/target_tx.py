"""What a target sends in the full feature phase (RFC 7143 §11.4, §11.7, §11.8): Data-In with the
status in its last PDU, R2T, SCSI Response, made one PDU at a time from the task's state when there
is room. Every PDU is stamped with StatSN, ExpCmdSN and MaxCmdSN when it is made.
"""

from typing import Final

from iscsi.wire import bhs, tx
from iscsi.wire import sequencing as sn
from iscsi.wire.port import (
    CONTROL_CREDIT,
    CONTROL_DATA,
    CONTROL_DATA_LENGTH,
    READY,
    TOKEN_CONTROL,
    TOKEN_NONE,
    TOKEN_TASK,
    pop,
    port_at,
    token_address,
    token_kind,
    token_of,
)
from iscsi.wire.sense import FIXED_SENSE_LENGTH, SENSE_FIXED
from iscsi.wire.target_task import (
    STATE_DATA_IN,
    STATE_DATA_OUT,
    STATE_RESPOND,
    close_task,
    free_if_sent,
    index_of,
    make_ready,
    open_window,
    target_at,
    task_at,
)
from shm.jit import nopython
from shm.memory import (
    copy_bytes,
    load_8,
    load_32_be,
    load_64,
    store_8,
    store_16_be,
    store_32_be,
    store_64,
    store_64_be,
    zero_bytes,
)

NOP_IN: Final = int(bhs.Opcode.NOP_IN)
SCSI_RESPONSE: Final = int(bhs.Opcode.SCSI_RESPONSE)
DATA_IN: Final = int(bhs.Opcode.DATA_IN)
R2T: Final = int(bhs.Opcode.R2T)
R2T_TAG_MASK: Final = 0x7FFF  # keeps a target transfer tag away from the reserved one


@nopython
def _make_one(conn: int) -> None:
    token = pop(conn + READY)
    address = token_address(token)
    if token_kind(token) == TOKEN_CONTROL:
        make_control(conn, address)
        return
    task = task_at(address)[0]
    task["queued"] = 0
    if task["state"] == STATE_DATA_OUT:
        if wants_r2t(conn, address):
            _make_r2t(conn, address)
            if wants_r2t(conn, address):
                make_ready(conn, address)
    elif task["state"] == STATE_DATA_IN:
        _make_sequence(conn, address)
    elif task["state"] == STATE_RESPOND:
        make_response(conn, address)


@nopython
def _one_sent(conn: int, address: int) -> None:
    task_at(address)[0]["tx_pending"] -= 1
    free_if_sent(conn, address)


tx_next, tx_done = tx.make_tx(_make_one, _one_sent)
tx_take = tx.take


@nopython
def stamp(conn: int, header: int, takes_stat_sn: bool) -> None:
    """Write StatSN, ExpCmdSN and MaxCmdSN (RFC 7143 §4.2.2)."""
    mine = target_at(conn)[0]
    store_32_be(header + bhs.OFFSET_STAT_SN, mine["stat_sn"])
    store_32_be(header + bhs.OFFSET_EXP_CMD_SN, mine["exp_cmd_sn"])
    store_32_be(header + bhs.OFFSET_MAX_CMD_SN, mine["max_cmd_sn"])
    if takes_stat_sn:
        mine["stat_sn"] = sn.add(mine["stat_sn"], 1)


@nopython
def make_control(conn: int, slot: int) -> None:
    """A PDU that is no SCSI Response, from its slot."""
    if load_64(slot + CONTROL_CREDIT):
        store_64(slot + CONTROL_CREDIT, 0)
        open_window(conn)
    header = tx.begin(conn)
    copy_bytes(header, slot, bhs.BHS_LENGTH)
    is_ping = load_8(header) == NOP_IN and load_32_be(header + bhs.OFFSET_ITT) == bhs.RESERVED_TAG
    stamp(conn, header, not is_ping)
    length = load_64(slot + CONTROL_DATA_LENGTH)
    tx.commit(conn, header, slot + CONTROL_DATA, length, token_of(TOKEN_CONTROL, slot))


# --- asking for data -------------------------------------------------------------------------


@nopython
def wants_r2t(conn: int, address: int) -> bool:
    """Whether another R2T may be sent for a task that is collecting data."""
    task = task_at(address)[0]
    # `burst_end` is 0 until the command and what came with it are complete.
    if task["unsolicited"] or task["spoiled"] or task["burst_end"] == 0:
        return False
    is_open = task["r2t_offset"] < task["transfer"]
    outstanding = task["r2t_sn"] - task["r2t_done"]
    return bool(is_open and outstanding < target_at(conn)[0]["max_outstanding_r2t"])


@nopython
def r2t_tag(conn: int, address: int, r2t_sn: int) -> int:
    """Target transfer tag of a task's R2T number `r2t_sn`."""
    return (r2t_sn & R2T_TAG_MASK) << 16 | index_of(conn, address)


@nopython
def _make_r2t(conn: int, address: int) -> None:
    mine, task = target_at(conn)[0], task_at(address)[0]
    length = min(mine["max_burst_length"], task["transfer"] - task["r2t_offset"])
    header = tx.begin(conn)
    store_8(header, R2T)
    store_8(header + bhs.OFFSET_FLAGS, bhs.FLAG_FINAL)
    store_64_be(header + bhs.OFFSET_LUN, task["lun"])
    store_32_be(header + bhs.OFFSET_ITT, task["itt"])
    store_32_be(header + bhs.OFFSET_TTT, r2t_tag(conn, address, task["r2t_sn"]))
    stamp(conn, header, False)
    store_32_be(header + bhs.OFFSET_R2T_SN, task["r2t_sn"])
    store_32_be(header + bhs.OFFSET_BUFFER_OFFSET, task["r2t_offset"])
    store_32_be(header + bhs.OFFSET_DESIRED_DATA_TRANSFER_LENGTH, length)
    task["r2t_sn"] += 1
    task["r2t_offset"] += length
    tx.commit(conn, header, 0, 0, TOKEN_NONE)


# --- data and status -------------------------------------------------------------------------


@nopython
def _make_sequence(conn: int, address: int) -> None:
    """Send Data-In up to the end of a sequence, then let other tasks send."""
    task = task_at(address)[0]
    while tx.has_room(conn):
        _make_data_in(conn, address)
        if task["state"] != STATE_DATA_IN:
            return
        if task["burst_sent"] == 0:
            make_ready(conn, address)
            return
    make_ready(conn, address)


@nopython
def _make_data_in(conn: int, address: int) -> None:
    """The next Data-In. F ends a sequence; the last one carries the status, which is GOOD."""
    mine, task = target_at(conn)[0], task_at(address)[0]
    start = task["sent"]
    left = task["transfer"] - start
    burst_left = mine["max_burst_length"] - task["burst_sent"]
    length = min(port_at(conn)[0]["peer_max_recv_data_segment_length"], left, burst_left)
    copied = _copied(conn, address)
    if copied:
        length = min(length, copied)
    is_last = length == left
    flags = bhs.FLAG_FINAL if is_last or length == burst_left else 0
    header = tx.begin(conn)
    store_8(header, DATA_IN)
    store_32_be(header + bhs.OFFSET_ITT, task["itt"])
    store_32_be(header + bhs.OFFSET_TTT, bhs.RESERVED_TAG)
    store_32_be(header + bhs.OFFSET_DATA_SN, task["data_in_sn"])
    store_32_be(header + bhs.OFFSET_BUFFER_OFFSET, start)
    if is_last:
        flags |= bhs.FLAG_STATUS | task["residual_flags"]
        store_32_be(header + bhs.OFFSET_RESIDUAL_COUNT, task["residual_count"])
        _end_of_task(conn, address)
    store_8(header + bhs.OFFSET_FLAGS, flags)
    stamp(conn, header, is_last)
    if not is_last:
        store_32_be(header + bhs.OFFSET_STAT_SN, 0)  # reserved without S (RFC 7143 §11.7.4)
    task["sent"] += length
    task["burst_sent"] = 0 if flags & bhs.FLAG_FINAL else task["burst_sent"] + length
    task["data_in_sn"] = sn.add(task["data_in_sn"], 1)
    if copied:
        tx.commit_copy(conn, header, task["data_address"] + start, length)
    else:
        _commit(conn, address, header, task["data_address"] + start, length)
    if is_last:
        close_task(conn, address)


@nopython
def _copied(conn: int, address: int) -> int:
    """How much of a task's data is copied into one PDU; 0 for data that only this task touches.

    A LUN's memory may be written to at any time, by WRITEs of this and of other connections.
    """
    task = task_at(address)[0]
    if task["is_cold"] or task["buffer"]:
        return 0
    return tx.copy_limit(conn)


@nopython
def make_response(conn: int, address: int) -> None:
    """The SCSI Response, with sense data if there is any (RFC 7143 §11.4)."""
    task = task_at(address)[0]
    header = tx.begin(conn)
    store_8(header, SCSI_RESPONSE)
    store_8(header + bhs.OFFSET_FLAGS, bhs.FLAG_FINAL | task["residual_flags"])
    store_8(header + bhs.OFFSET_STATUS, task["status"])
    store_32_be(header + bhs.OFFSET_ITT, task["itt"])
    store_32_be(header + bhs.OFFSET_EXP_DATA_SN, task["data_in_sn"] + task["r2t_sn"])
    store_32_be(header + bhs.OFFSET_RESIDUAL_COUNT, task["residual_count"])
    _end_of_task(conn, address)
    stamp(conn, header, True)
    if task["sense"]:
        data = tx.inline_data(conn)
        write_sense(data, task["sense"])
        tx.commit(conn, header, data, 2 + FIXED_SENSE_LENGTH, TOKEN_NONE)
    else:
        _commit(conn, address, header, task["cold_address"], task["sense_length"])
    close_task(conn, address)


@nopython
def _end_of_task(conn: int, address: int) -> None:
    """Open the window before the last PDU is stamped: the initiator may use it at once."""
    if not task_at(address)[0]["is_immediate"]:
        open_window(conn)


@nopython
def _commit(conn: int, address: int, header: int, data: int, length: int) -> None:
    """Send data of a task; its area or buffer must outlive the sending, a LUN does anyway."""
    task = task_at(address)[0]
    token = TOKEN_NONE
    if (task["is_cold"] or task["buffer"] or task["post"]) and length:
        task["tx_pending"] += 1
        token = token_of(TOKEN_TASK, address)
    tx.commit(conn, header, data, length, token)


@nopython
def write_sense(address: int, sense: int) -> None:
    """SenseLength and fixed-format sense data for key << 16 | code (SPC-4 §4.5.3)."""
    zero_bytes(address, 2 + FIXED_SENSE_LENGTH)
    store_16_be(address, FIXED_SENSE_LENGTH)
    store_8(address + 2, SENSE_FIXED)
    store_8(address + 4, sense >> 16)
    store_8(address + 9, FIXED_SENSE_LENGTH - 8)
    store_16_be(address + 14, sense & 0xFFFF)
