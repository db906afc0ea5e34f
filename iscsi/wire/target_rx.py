"""What a target receives in the full feature phase (RFC 7143 §11.3, §11.7, §11.18): headers are
judged before a byte of their data is placed, written data goes straight to the LUN's memory, and a
PDU takes effect when it is complete. A peer's mistake ends in a Reject where the stream and the
command numbering stay intact, else in a Violation.
"""

from typing import Final

from iscsi.wire import bhs, rx
from iscsi.wire import sequencing as sn
from iscsi.wire.errors import RejectReason
from iscsi.wire.port import (
    CONTROL_CREDIT,
    CONTROL_DATA,
    CONTROL_DATA_LENGTH,
    EVENTS,
    READY,
    TOKEN_CONTROL,
    control_free_count,
    control_take,
    port_at,
    push,
    token_of,
)
from iscsi.wire.target_command import begin_command, command_data, command_here, data_out_here
from iscsi.wire.target_task import (
    STATE_DATA_OUT,
    open_window,
    promised,
    target_at,
    task_at,
    task_of,
    tasks_free,
)
from iscsi.wire.target_tx import r2t_tag
from iscsi.wire.violations import Violation
from shm.jit import nopython
from shm.memory import (
    copy_bytes,
    load_8,
    load_32_be,
    store_8,
    store_32_be,
    store_64,
    zero_bytes,
)

NOP_OUT: Final = int(bhs.Opcode.NOP_OUT)
SCSI_COMMAND: Final = int(bhs.Opcode.SCSI_COMMAND)
TASK_MANAGEMENT_REQUEST: Final = int(bhs.Opcode.TASK_MANAGEMENT_REQUEST)
LOGIN_REQUEST: Final = int(bhs.Opcode.LOGIN_REQUEST)
TEXT_REQUEST: Final = int(bhs.Opcode.TEXT_REQUEST)
DATA_OUT: Final = int(bhs.Opcode.DATA_OUT)
LOGOUT_REQUEST: Final = int(bhs.Opcode.LOGOUT_REQUEST)
SNACK_REQUEST: Final = int(bhs.Opcode.SNACK_REQUEST)
NOP_IN: Final = int(bhs.Opcode.NOP_IN)
REJECT: Final = int(bhs.Opcode.REJECT)
BIDIRECTIONAL: Final = bhs.FLAG_READ | bhs.FLAG_WRITE

REJECT_SNACK: Final = int(RejectReason.SNACK_REJECT)
REJECT_NOT_SUPPORTED: Final = int(RejectReason.COMMAND_NOT_SUPPORTED)
REJECT_TOO_MANY_IMMEDIATE: Final = int(RejectReason.TOO_MANY_IMMEDIATE_COMMANDS)
REJECT_TASK_IN_PROGRESS: Final = int(RejectReason.TASK_IN_PROGRESS)
REJECT_FIELD: Final = int(RejectReason.INVALID_PDU_FIELD)

AHS: Final = int(Violation.AHS)
OPCODE: Final = int(Violation.OPCODE)
CONTROL_OVERFLOW: Final = int(Violation.CONTROL_OVERFLOW)
CONTROL_TOO_LONG: Final = int(Violation.CONTROL_TOO_LONG)
CMD_SN_GAP: Final = int(Violation.CMD_SN_GAP)
IMMEDIATE_DATA: Final = int(Violation.IMMEDIATE_DATA)
UNSOLICITED_DATA: Final = int(Violation.UNSOLICITED_DATA)
FIRST_BURST: Final = int(Violation.FIRST_BURST)
DATA_OUT_TAG: Final = int(Violation.DATA_OUT_TAG)
DATA_OUT_ORDER: Final = int(Violation.DATA_OUT_ORDER)
DATA_OUT_SN: Final = int(Violation.DATA_OUT_SN)
DATA_OUT_RANGE: Final = int(Violation.DATA_OUT_RANGE)
FINAL_MISSING: Final = int(Violation.FINAL_MISSING)
FINAL_EARLY: Final = int(Violation.FINAL_EARLY)
TOO_MANY_TASKS: Final = int(Violation.TOO_MANY_TASKS)

# What to do when the PDU is complete (`rx_action`).
DISCARD: Final = 0
COMMAND: Final = 1
DATA: Final = 2
ECHO: Final = 3
CONTROL: Final = 4

# Whether a request counts (`_number`).
ACCEPTED: Final = 0
IGNORED: Final = 1


@nopython
def rx_bytes(conn: int, address: int, length: int) -> int:
    """Take the next `length` bytes of the stream, all of them. 0, or the Violation they hold.

    Bytes that already lie at the port's `want_address` stay there; others are copied to where they
    belong. After a violation nothing more is accepted.
    """
    port = port_at(conn)[0]
    while length > 0 and port["error"] == 0:
        size = rx.take(conn, address, length)
        address += size
        length -= size
        while port["want_length"] == 0 and port["error"] == 0:
            port["error"] = _go_on(conn)
    return int(port["error"])


@nopython
def rx_placed(conn: int, length: int) -> int:
    """`rx_bytes` for bytes that were received straight to `want_address`; at most `want_length`."""
    return rx_bytes(conn, port_at(conn)[0]["want_address"], length)


@nopython
def _go_on(conn: int) -> int:
    found = rx.step(conn)
    if found == rx.HEADER_COMPLETE:
        found = _on_header(conn)
        if found == 0:
            found = rx.begin_data(conn)
    if found == rx.PDU_COMPLETE:
        found = _on_pdu(conn)
        if found == 0:
            rx.next_pdu(conn)
    return found


# --- when a header is complete ---------------------------------------------------------------


@nopython
def _on_header(conn: int) -> int:
    """Judge a header and say where its data goes: 0 or a violation."""
    port = port_at(conn)[0]
    header = port["rx_header"]
    opcode = load_8(header) & bhs.OPCODE_MASK
    port["rx_action"] = DISCARD
    port["rx_object"] = 0
    if opcode == DATA_OUT:
        return AHS if rx.ahs_length(conn) else _data_out_header(conn, header)
    if opcode == SNACK_REQUEST:
        return _reject(conn, header, REJECT_SNACK)
    if opcode == LOGIN_REQUEST:
        return OPCODE
    if opcode not in (
        NOP_OUT,
        SCSI_COMMAND,
        TASK_MANAGEMENT_REQUEST,
        TEXT_REQUEST,
        LOGOUT_REQUEST,
    ):
        # Without knowing the PDU its CmdSN means nothing.
        return _reject(conn, header, REJECT_NOT_SUPPORTED)
    verdict = _number(conn, header)
    if verdict < 0:
        return verdict
    if verdict == IGNORED:
        port["discarded"] += 1
        return 0
    if rx.ahs_length(conn):
        return _refuse(conn, header, REJECT_NOT_SUPPORTED)
    if opcode == SCSI_COMMAND:
        return _command_header(conn, header)
    return _control_header(conn, header, opcode)


@nopython
def _is_immediate(header: int) -> bool:
    return load_8(header) & bhs.IMMEDIATE != 0


@nopython
def _number(conn: int, header: int) -> int:
    """Judge a request's CmdSN (RFC 7143 §4.2.2.1): ACCEPTED, IGNORED or a violation."""
    mine = target_at(conn)[0]
    if _is_immediate(header):
        return ACCEPTED
    cmd_sn = load_32_be(header + bhs.OFFSET_CMD_SN)
    if not sn.in_window(cmd_sn, mine["exp_cmd_sn"], mine["max_cmd_sn"]):
        return IGNORED
    if cmd_sn != mine["exp_cmd_sn"]:
        return CMD_SN_GAP
    mine["exp_cmd_sn"] = sn.add(cmd_sn, 1)
    return ACCEPTED


@nopython
def _reject(conn: int, header: int, reason: int) -> int:
    """Answer a PDU with Reject and throw its data away: 0, or CONTROL_OVERFLOW."""
    slot = control_take(conn)
    if slot == 0:
        return CONTROL_OVERFLOW
    zero_bytes(slot, bhs.BHS_LENGTH)
    store_8(slot, REJECT)
    store_8(slot + bhs.OFFSET_FLAGS, bhs.FLAG_FINAL)
    store_8(slot + bhs.OFFSET_REJECT_REASON, reason)
    store_32_be(slot + bhs.OFFSET_ITT, bhs.RESERVED_TAG)
    copy_bytes(slot + CONTROL_DATA, header, bhs.BHS_LENGTH)
    store_64(slot + CONTROL_DATA_LENGTH, bhs.BHS_LENGTH)
    push(conn + READY, token_of(TOKEN_CONTROL, slot))
    target_at(conn)[0]["rejects"] += 1
    return 0


@nopython
def _refuse(conn: int, header: int, reason: int) -> int:
    """Reject a request whose CmdSN was taken, and give its place in the window back."""
    if not _is_immediate(header):
        open_window(conn)
    return _reject(conn, header, reason)


@nopython
def _command_header(conn: int, header: int) -> int:
    port, mine = port_at(conn)[0], target_at(conn)[0]
    flags = load_8(header + bhs.OFFSET_FLAGS)
    itt = load_32_be(header + bhs.OFFSET_ITT)
    expected_length = load_32_be(header + bhs.OFFSET_EXPECTED_DATA_TRANSFER_LENGTH)
    is_write = flags & bhs.FLAG_WRITE != 0
    length = port["rx_data_length"]
    if length and not (is_write and mine["immediate_data"]):
        return IMMEDIATE_DATA
    if length > min(mine["first_burst_length"], expected_length):
        return IMMEDIATE_DATA
    if flags & bhs.FLAG_FINAL == 0 and (mine["initial_r2t"] or not is_write):
        return UNSOLICITED_DATA
    if itt == bhs.RESERVED_TAG or flags & BIDIRECTIONAL == BIDIRECTIONAL:
        return _refuse(conn, header, REJECT_FIELD)
    if expected_length and flags & BIDIRECTIONAL == 0:
        return _refuse(conn, header, REJECT_FIELD)
    if task_of(conn, itt):
        return _refuse(conn, header, REJECT_TASK_IN_PROGRESS)
    if _is_immediate(header) and tasks_free(conn) <= promised(conn):
        return _refuse(conn, header, REJECT_TOO_MANY_IMMEDIATE)
    address = begin_command(conn, header, itt)
    if address == 0:
        return TOO_MANY_TASKS
    mine["commands"] += 1
    port["rx_action"] = COMMAND
    port["rx_object"] = address
    rx.place(conn, task_at(address)[0]["data_address"], command_data(address))
    return 0


@nopython
def _data_out_header(conn: int, header: int) -> int:
    """Find the burst a Data-Out belongs to and check that it comes next in it."""
    port = port_at(conn)[0]
    ttt = load_32_be(header + bhs.OFFSET_TTT)
    address = task_of(conn, load_32_be(header + bhs.OFFSET_ITT))
    if address == 0:
        # Its command may have been ignored, or aborted while the data was on the way.
        if ttt == bhs.RESERVED_TAG or target_at(conn)[0]["has_aborted"]:
            port["discarded"] += 1
            return 0
        return _reject(conn, header, REJECT_FIELD)
    task = task_at(address)[0]
    is_final = load_8(header + bhs.OFFSET_FLAGS) & bhs.FLAG_FINAL != 0
    end = task["received"] + port["rx_data_length"]
    if ttt == bhs.RESERVED_TAG:
        verdict = _check_unsolicited(conn, address, end, is_final)
    else:
        verdict = _check_solicited(conn, address, ttt, end, is_final)
    if verdict < 0:
        return verdict
    if load_32_be(header + bhs.OFFSET_BUFFER_OFFSET) != task["received"]:
        return DATA_OUT_ORDER
    if load_32_be(header + bhs.OFFSET_DATA_SN) != task["data_out_sn"]:
        return DATA_OUT_SN
    port["rx_action"] = DATA
    port["rx_object"] = address
    rx.place(conn, task["data_address"] + task["received"], command_data(address))
    return 0


@nopython
def _check_unsolicited(conn: int, address: int, end: int, is_final: bool) -> int:
    task = task_at(address)[0]
    limit = min(target_at(conn)[0]["first_burst_length"], task["expected_length"])
    if task["state"] != STATE_DATA_OUT or task["unsolicited"] == 0:
        return UNSOLICITED_DATA
    if end > limit:
        return FIRST_BURST
    return FINAL_MISSING if end == limit and not is_final else 0


@nopython
def _check_solicited(conn: int, address: int, ttt: int, end: int, is_final: bool) -> int:
    """Data sequences come in the order of their R2Ts, because DataSequenceInOrder is Yes."""
    task = task_at(address)[0]
    if task["state"] != STATE_DATA_OUT or task["r2t_done"] == task["r2t_sn"]:
        return DATA_OUT_TAG
    if ttt != r2t_tag(conn, address, task["r2t_done"]):
        return DATA_OUT_TAG
    if end > task["burst_end"]:
        return DATA_OUT_RANGE
    if is_final == (end == task["burst_end"]):
        return 0
    return FINAL_EARLY if is_final else FINAL_MISSING


@nopython
def _control_header(conn: int, header: int, opcode: int) -> int:
    """Keep a request for the cold code; a NOP-Out is answered from its slot."""
    port = port_at(conn)[0]
    is_ping = opcode == NOP_OUT
    if is_ping and load_32_be(header + bhs.OFFSET_ITT) == bhs.RESERVED_TAG:
        if not _is_immediate(header):
            open_window(conn)
        return 0  # the answer to a ping of ours
    length = port["rx_data_length"]
    if length > port["control_data_length"]:
        if not is_ping:
            return CONTROL_TOO_LONG
        length = port["control_data_length"]
    if _is_immediate(header) and control_free_count(conn) <= promised(conn) + 1:
        return _refuse(conn, header, REJECT_TOO_MANY_IMMEDIATE)
    slot = control_take(conn)
    if slot == 0:
        return CONTROL_OVERFLOW
    copy_bytes(slot, header, bhs.BHS_LENGTH)
    store_64(slot + CONTROL_DATA_LENGTH, length)
    store_64(slot + CONTROL_CREDIT, 0 if _is_immediate(header) else 1)
    port["rx_action"] = ECHO if is_ping else CONTROL
    port["rx_object"] = slot
    rx.place(conn, slot + CONTROL_DATA, length)
    return 0


# --- when a PDU is complete ------------------------------------------------------------------


@nopython
def _on_pdu(conn: int) -> int:
    """Let a complete PDU take effect. 0: what could be wrong was seen in the header."""
    port = port_at(conn)[0]
    action, subject = port["rx_action"], port["rx_object"]
    port["rx_object"] = 0
    if subject == 0:  # nothing to do, or its task was aborted while its data came
        return 0
    if action == COMMAND:
        command_here(conn, subject)
    elif action == DATA:
        is_final = load_8(port["rx_header"] + bhs.OFFSET_FLAGS) & bhs.FLAG_FINAL != 0
        is_unsolicited = load_32_be(port["rx_header"] + bhs.OFFSET_TTT) == bhs.RESERVED_TAG
        data_out_here(conn, subject, is_final, is_unsolicited)
    elif action == ECHO:
        _echo(conn, subject)
    elif action == CONTROL:
        push(conn + EVENTS, subject)
    return 0


@nopython
def _echo(conn: int, slot: int) -> None:
    """Turn a NOP-Out in its slot into the NOP-In that answers it (RFC 7143 §11.19)."""
    port = port_at(conn)[0]
    itt = load_32_be(slot + bhs.OFFSET_ITT)
    length = min(port["rx_data_length"], port["control_data_length"])
    store_64(slot + CONTROL_DATA_LENGTH, min(length, port["peer_max_recv_data_segment_length"]))
    zero_bytes(slot, bhs.BHS_LENGTH)
    store_8(slot, NOP_IN)
    store_8(slot + bhs.OFFSET_FLAGS, bhs.FLAG_FINAL)
    store_32_be(slot + bhs.OFFSET_ITT, itt)
    store_32_be(slot + bhs.OFFSET_TTT, bhs.RESERVED_TAG)
    push(conn + READY, token_of(TOKEN_CONTROL, slot))
