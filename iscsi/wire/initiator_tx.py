"""What an initiator sends in the full feature phase (RFC 7143 §11.3, §11.7): commands with their
immediate data, unsolicited Data-Out, and the answer to each R2T, made one PDU at a time from the
task's state when there is room. Unsolicited data leaves in the order of its commands.
"""

from typing import Final

from iscsi.wire import bhs, tx
from iscsi.wire.initiator_task import (
    R2T_SIZE,
    STAGE_COMMAND,
    STAGE_NONE,
    STAGE_UNSOLICITED,
    complete_if_over,
    initiator_at,
    piece_at,
    r2t_at,
    task_at,
)
from iscsi.wire.port import (
    CONTROL_DATA,
    CONTROL_DATA_LENGTH,
    READY,
    TOKEN_CONTROL,
    TOKEN_NONE,
    TOKEN_TASK,
    first,
    pop,
    port_at,
    token_address,
    token_kind,
    token_of,
)
from shm.jit import nopython
from shm.memory import copy_bytes, load_64, store_8, store_32_be, store_64, store_64_be

SCSI_COMMAND: Final = int(bhs.Opcode.SCSI_COMMAND)
DATA_OUT: Final = int(bhs.Opcode.DATA_OUT)


@nopython
def _make_one(conn: int) -> None:
    token = first(conn + READY)
    address = token_address(token)
    if token_kind(token) == TOKEN_CONTROL:
        pop(conn + READY)
        make_control(conn, address)
        return
    task = task_at(address)[0]
    if task["stage"] == STAGE_COMMAND:
        _make_command(conn, address)
    elif task["stage"] == STAGE_UNSOLICITED:
        make_unsolicited(conn, address)
    elif task["r2t_count"] > 0:
        _make_solicited(conn, address)
    if task["stage"] == STAGE_NONE and task["r2t_count"] == 0:
        pop(conn + READY)
        task["queued"] = 0
        complete_if_over(conn, address)


@nopython
def _one_sent(conn: int, address: int) -> None:
    task_at(address)[0]["tx_pending"] -= 1
    complete_if_over(conn, address)


tx_next, tx_done = tx.make_tx(_make_one, _one_sent)
tx_take = tx.take


@nopython
def make_control(conn: int, slot: int) -> None:
    """A request that is no command, from its slot."""
    header = tx.begin(conn)
    copy_bytes(header, slot, bhs.BHS_LENGTH)
    store_32_be(header + bhs.OFFSET_EXP_STAT_SN, initiator_at(conn)[0]["exp_stat_sn"])
    length = load_64(slot + CONTROL_DATA_LENGTH)
    tx.commit(conn, header, slot + CONTROL_DATA, length, token_of(TOKEN_CONTROL, slot))


@nopython
def commit(conn: int, address: int, header: int, start: int, length: int) -> None:
    """Send `length` bytes of the task's data from `start` under this header; they are in one
    piece.
    """
    task = task_at(address)[0]
    store_32_be(header + bhs.OFFSET_EXP_STAT_SN, initiator_at(conn)[0]["exp_stat_sn"])
    token = TOKEN_NONE
    where = int(task["data_address"] + start)
    if task["run_count"]:
        where = piece_at(address, start)[0]
    if length:
        task["tx_pending"] += 1
        token = token_of(TOKEN_TASK, address)
    tx.commit(conn, header, where, length, token)


@nopython
def longest(conn: int, address: int, start: int, length: int) -> int:
    """How much of `length` bytes from `start` on one PDU takes: it ends where a piece ends."""
    length = min(length, port_at(conn)[0]["peer_max_recv_data_segment_length"])
    if task_at(address)[0]["run_count"]:
        length = min(length, piece_at(address, start)[1])
    return int(length)


@nopython
def _make_command(conn: int, address: int) -> None:
    """The SCSI Command, F unless unsolicited Data-Out follows (RFC 7143 §11.3.1)."""
    mine, task = initiator_at(conn)[0], task_at(address)[0]
    header = tx.begin(conn)
    flags = task["flags"]
    unsolicited = 0
    if flags & bhs.FLAG_WRITE:
        unsolicited = min(mine["first_burst_length"], task["expected_length"])
    immediate = 0
    if mine["immediate_data"] and task["ahs_length"] == 0:
        immediate = longest(conn, address, 0, unsolicited)
    if mine["initial_r2t"] or immediate == unsolicited or task["ahs_length"] > 0:
        flags |= bhs.FLAG_FINAL
    task["stage"] = STAGE_NONE if flags & bhs.FLAG_FINAL else STAGE_UNSOLICITED
    task["sent"] = immediate
    fill_command(header, address, flags, task["expected_length"])
    if task["ahs_length"] > 0:  # All data is waited for then: immediate data would follow them.
        commit_ahs(conn, address, header)
    else:
        commit(conn, address, header, 0, immediate)


@nopython
def fill_command(header: int, address: int, flags: int, length: int) -> None:
    """The header of a SCSI Command for `length` bytes of data, all but its ExpStatSN."""
    task = task_at(address)[0]
    store_8(header, SCSI_COMMAND)
    store_8(header + bhs.OFFSET_FLAGS, flags)
    store_64_be(header + bhs.OFFSET_LUN, task["lun"])
    store_32_be(header + bhs.OFFSET_ITT, task["itt"])
    store_32_be(header + bhs.OFFSET_EXPECTED_DATA_TRANSFER_LENGTH, length)
    store_32_be(header + bhs.OFFSET_CMD_SN, task["cmd_sn"])
    store_64(header + bhs.OFFSET_CDB, task["cdb0"])
    store_64(header + bhs.OFFSET_CDB + 8, task["cdb1"])


@nopython
def commit_ahs(conn: int, address: int, header: int) -> None:
    """Send a command with its additional header segments, and without data."""
    task = task_at(address)[0]
    store_32_be(header + bhs.OFFSET_EXP_STAT_SN, initiator_at(conn)[0]["exp_stat_sn"])
    task["tx_pending"] += 1
    token = token_of(TOKEN_TASK, address)
    tx.commit_segments(conn, header, task["ahs"], task["ahs_length"], token)


@nopython
def _make_data_out(
    conn: int, address: int, ttt: int, lun: int, start: int, length: int, is_final: bool
) -> None:
    task = task_at(address)[0]
    header = tx.begin(conn)
    store_8(header, DATA_OUT)
    store_8(header + bhs.OFFSET_FLAGS, bhs.FLAG_FINAL if is_final else 0)
    store_64_be(header + bhs.OFFSET_LUN, lun)
    store_32_be(header + bhs.OFFSET_ITT, task["itt"])
    store_32_be(header + bhs.OFFSET_TTT, ttt)
    store_32_be(header + bhs.OFFSET_DATA_SN, task["data_out_sn"])
    store_32_be(header + bhs.OFFSET_BUFFER_OFFSET, start)
    task["data_out_sn"] = 0 if is_final else task["data_out_sn"] + 1
    commit(conn, address, header, start, length)


@nopython
def make_unsolicited(conn: int, address: int) -> None:
    """The next Data-Out up to FirstBurstLength, immediate data counted (RFC 7143 §13.14)."""
    mine, task = initiator_at(conn)[0], task_at(address)[0]
    left = min(mine["first_burst_length"], task["expected_length"]) - task["sent"]
    start = task["sent"]
    length = longest(conn, address, start, left)
    is_final = length == left
    task["sent"] += length
    if is_final:
        task["stage"] = STAGE_NONE
    _make_data_out(conn, address, bhs.RESERVED_TAG, task["lun"], start, length, is_final)


@nopython
def _make_solicited(conn: int, address: int) -> None:
    """The next Data-Out for the oldest R2T, with its tag and LUN (RFC 7143 §11.7.1)."""
    task = task_at(address)[0]
    r2t = r2t_at(task["r2ts"] + R2T_SIZE * task["r2t_head"])[0]
    left = r2t["length"] - task["r2t_sent"]
    start = r2t["offset"] + task["r2t_sent"]
    length = longest(conn, address, start, left)
    task["r2t_sent"] += length
    if length == left:
        task["r2t_head"] += 1
        if task["r2t_head"] == initiator_at(conn)[0]["max_outstanding_r2t"]:
            task["r2t_head"] = 0
        task["r2t_count"] -= 1
        task["r2t_sent"] = 0
    _make_data_out(conn, address, r2t["ttt"], r2t["lun"], start, length, length == left)
