"""Control_Notify (RFC 5047): what a target's lower half shows its host, one PDU in one buffer, in
the order it came. A command and all the data that came unasked with it are one PDU here, rebuilt
from the task; it never shows what was aborted meanwhile.
"""

import errno
from typing import Final

from iscsi.wire import bhs
from iscsi.wire.mover import IS_COMMAND, IS_CONTROL, RECEIVE, event_at
from iscsi.wire.port import (
    CONTROL_CREDIT,
    CONTROL_DATA,
    CONTROL_DATA_LENGTH,
    TOKEN_CONTROL,
    first,
    is_empty,
    pop,
    port_at,
    token_address,
    token_kind,
)
from iscsi.wire.target_command_header import AHS_HEAD, EXTENDED_CDB
from iscsi.wire.target_mover_control import SHOWN
from iscsi.wire.target_posts import NOTICES, WORD_MASK, lower_at
from iscsi.wire.target_task import CDB, CDB_LENGTH, STATE_COLD, drop_buffer, target_at, task_at
from shm.jit import nopython
from shm.memory import (
    copy_bytes,
    load_64,
    store_8,
    store_16_be,
    store_24_be,
    store_32_be,
    store_64,
    store_64_be,
    zero_bytes,
)

EMSGSIZE: Final = errno.EMSGSIZE
SCSI_COMMAND: Final = int(bhs.Opcode.SCSI_COMMAND)


@nopython
def notify_next(conn: int, buffer: int, size: int, event: int) -> int:
    """Put the next PDU for the host into `buffer`, and its RECEIVE's EVENT into `event`, except for
    `user_data`. 1; 0: there is none; -EMSGSIZE: the buffer is too small, and nothing happened.

    `arg2` names the newest ABORT that was carried out by then.
    """
    lower = target_at(conn)[0]["lower"]
    while not is_empty(lower + NOTICES):
        token = first(lower + NOTICES)
        address = token_address(token)
        is_control = token_kind(token) == TOKEN_CONTROL
        if not is_control and task_at(address)[0]["state"] != STATE_COLD:
            pop(lower + NOTICES)
            task_at(address)[0]["cold_queued"] = 0
            continue
        length = _control_length(address) if is_control else _command_length(address)
        if length > size:
            return -EMSGSIZE
        pop(lower + NOTICES)
        mine = event_at(event)[0]
        mine["opcode"], mine["status"], mine["length"] = RECEIVE, 0, length
        mine["arg2"] = lower_at(lower)[0]["aborts"] & WORD_MASK
        if is_control:
            mine["arg0"], mine["arg1"] = _show_control(conn, address, buffer), IS_CONTROL
        else:
            mine["arg0"], mine["arg1"] = _show_command(conn, address, buffer), IS_COMMAND
        return 1
    return 0


@nopython
def _control_length(slot: int) -> int:
    return bhs.BHS_LENGTH + load_64(slot + CONTROL_DATA_LENGTH)


@nopython
def _show_control(conn: int, slot: int, buffer: int) -> int:
    """Copy a request; its slot stays taken until DONE. The slot's index."""
    port = port_at(conn)[0]
    length = load_64(slot + CONTROL_DATA_LENGTH)
    copy_bytes(buffer, slot, bhs.BHS_LENGTH)
    copy_bytes(buffer + bhs.BHS_LENGTH, slot + CONTROL_DATA, length)
    store_24_be(buffer + bhs.OFFSET_DATA_SEGMENT_LENGTH, length)
    store_64(slot + CONTROL_CREDIT, load_64(slot + CONTROL_CREDIT) | SHOWN)
    return int((slot - port["control_slots"]) // port["control_stride"])


@nopython
def _ahs_length(address: int) -> int:
    """Bytes of the additional header segment that a long CDB takes."""
    more = task_at(address)[0]["cdb_length"] - CDB_LENGTH
    return int((AHS_HEAD + 1 + more + 3) & ~3) if more > 0 else 0


@nopython
def _command_length(address: int) -> int:
    return int(bhs.BHS_LENGTH + _ahs_length(address) + task_at(address)[0]["received"])


@nopython
def _show_command(conn: int, address: int, buffer: int) -> int:
    """Rebuild a command with all its unsolicited data, as if that had been immediate. Its id."""
    task = task_at(address)[0]
    ahs, length = _ahs_length(address), task["received"]
    zero_bytes(buffer, bhs.BHS_LENGTH + ahs)
    store_8(buffer, SCSI_COMMAND | (bhs.IMMEDIATE if task["is_immediate"] else 0))
    store_8(buffer + bhs.OFFSET_FLAGS, task["flags"] | bhs.FLAG_FINAL)
    store_8(buffer + bhs.OFFSET_TOTAL_AHS_WORDS, ahs >> 2)
    store_24_be(buffer + bhs.OFFSET_DATA_SEGMENT_LENGTH, length)
    store_64_be(buffer + bhs.OFFSET_LUN, task["lun"])
    store_32_be(buffer + bhs.OFFSET_ITT, task["itt"])
    store_32_be(buffer + bhs.OFFSET_EXPECTED_DATA_TRANSFER_LENGTH, task["expected_length"])
    store_32_be(buffer + bhs.OFFSET_CMD_SN, task["cmd_sn"])
    copy_bytes(buffer + bhs.OFFSET_CDB, address + CDB, CDB_LENGTH)
    segment = buffer + bhs.BHS_LENGTH
    if ahs:
        more = task["cdb_length"] - CDB_LENGTH
        store_16_be(segment, more + 1)
        store_8(segment + 2, EXTENDED_CDB)
        copy_bytes(segment + AHS_HEAD + 1, task["cdb_more"], more)
    copy_bytes(segment + ahs, task["data_address"], length)
    task["cold_queued"] = 0
    drop_buffer(conn, address)
    return int(task["id"])
