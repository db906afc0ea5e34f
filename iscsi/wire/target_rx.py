"""What a target receives in the full feature phase (RFC 7143 §11.3, §11.7, §11.18): headers are
judged before a byte of their data is placed, written data goes straight to the LUN's memory, and a
PDU takes effect when it is complete, in the order of CmdSN. A peer's mistake ends in a Reject or
in its command's CHECK CONDITION where the stream and the command numbering stay intact, else in a
Violation.
"""

from typing import Final

from iscsi.wire import bhs, rx
from iscsi.wire import sequencing as sn
from iscsi.wire import target_refusal as refusal
from iscsi.wire.port import (
    CONTROL_CREDIT,
    CONTROL_DATA,
    CONTROL_DATA_LENGTH,
    EVENTS,
    READY,
    TOKEN_CONTROL,
    TOKEN_TASK,
    control_free_count,
    control_give,
    control_take,
    port_at,
    push,
    token_address,
    token_kind,
    token_of,
)
from iscsi.wire.target_command import (
    begin_command,
    command_data,
    command_here,
    data_out_here,
    resume_command,
    spoil,
)
from iscsi.wire.target_command_header import command_fault, command_sense, extended_cdb, keep_cdb
from iscsi.wire.target_data_out import CRC_ERROR, DATA, data_out_header, ends_burst
from iscsi.wire.target_posts import NOTICES
from iscsi.wire.target_refusal import is_immediate, pass_number, refuse, reject
from iscsi.wire.target_task import (
    HELD_GONE,
    forget_held,
    hold,
    is_held,
    next_held,
    open_window,
    promised,
    target_at,
    task_at,
    tasks_free,
)
from iscsi.wire.violations import Violation
from shm.jit import nopython
from shm.memory import (
    copy_bytes,
    load_8,
    load_32_be,
    load_64,
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

AHS: Final = int(Violation.AHS)
OPCODE: Final = int(Violation.OPCODE)
DATA_DIGEST: Final = int(Violation.DATA_DIGEST)
CONTROL_OVERFLOW: Final = int(Violation.CONTROL_OVERFLOW)
TOO_MANY_TASKS: Final = int(Violation.TOO_MANY_TASKS)

# What to do when the PDU is complete (`rx_action`); DATA is 2.
DISCARD: Final = 0
COMMAND: Final = 1
ECHO: Final = 3
CONTROL: Final = 4

# Whether a request counts (`_number`).
ACCEPTED: Final = 0
IGNORED: Final = 1


@nopython
def _go_on(conn: int) -> int:
    found = rx.step(conn)
    if found == rx.HEADER_COMPLETE:
        found = _on_header(conn)
        if found == 0:
            found = rx.begin_data(conn)
    if found == DATA_DIGEST:
        found = _on_wrong_data(conn)
    if found == rx.PDU_COMPLETE:
        found = _on_pdu(conn)
        if found == 0:
            rx.next_pdu(conn)
    return found


rx_bytes, rx_placed = rx.make_rx(_go_on)


# --- when a header is complete ---------------------------------------------------------------


@nopython
def _on_header(conn: int) -> int:
    """Judge a header and say where its data goes: 0 or a violation."""
    port = port_at(conn)[0]
    header = port["rx_header"]
    opcode = load_8(header) & bhs.OPCODE_MASK
    port["rx_action"] = DISCARD
    port["rx_object"] = 0
    target_at(conn)[0]["rx_held"] = 0
    if opcode == DATA_OUT:
        return AHS if rx.ahs_length(conn) else data_out_header(conn, header)
    if opcode == SNACK_REQUEST:
        return reject(conn, header, refusal.SNACK)
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
        return reject(conn, header, refusal.NOT_SUPPORTED)
    verdict = _number(conn, header)
    if verdict == IGNORED:
        port["discarded"] += 1
        return 0
    if opcode == SCSI_COMMAND:
        return _command_header(conn, header)
    if rx.ahs_length(conn):
        return refuse(conn, header, refusal.INVALID_FIELD)
    return _control_header(conn, header, opcode)


@nopython
def _number(conn: int, header: int) -> int:
    """Judge a request's CmdSN (RFC 7143 §4.2.2.1): ACCEPTED or IGNORED.

    One that comes before its turn is accepted too, with `rx_held` set: it takes effect in turn.
    """
    mine = target_at(conn)[0]
    if is_immediate(header):
        return ACCEPTED
    cmd_sn = load_32_be(header + bhs.OFFSET_CMD_SN)
    if not sn.in_window(cmd_sn, mine["exp_cmd_sn"], mine["max_cmd_sn"]):
        return IGNORED
    if cmd_sn == mine["exp_cmd_sn"]:
        mine["exp_cmd_sn"] = sn.add(cmd_sn, 1)
    elif is_held(conn, cmd_sn):
        return IGNORED
    else:
        mine["rx_held"] = 1
    return ACCEPTED


@nopython
def _command_header(conn: int, header: int) -> int:
    port, mine = port_at(conn)[0], target_at(conn)[0]
    more = extended_cdb(header, rx.ahs_length(conn))
    reason = command_fault(conn, header, more)
    if reason:
        return refuse(conn, header, reason)
    if is_immediate(header) and tasks_free(conn) <= promised(conn):
        return refuse(conn, header, refusal.TOO_MANY_IMMEDIATE)
    address = begin_command(conn, header, load_32_be(header + bhs.OFFSET_ITT))
    if address == 0:
        return TOO_MANY_TASKS
    if mine["rx_held"]:
        hold(conn, task_at(address)[0]["cmd_sn"], token_of(TOKEN_TASK, address))
    keep_cdb(address, header, more)
    sense = command_sense(conn, header)
    if sense:
        task_at(address)[0]["unsolicited"] = 0  # what was announced finds no task
        spoil(conn, address, sense)
    mine["commands"] += 1
    port["rx_action"] = COMMAND
    port["rx_object"] = address
    rx.place(conn, task_at(address)[0]["data_address"], command_data(address))
    return 0


@nopython
def _control_header(conn: int, header: int, opcode: int) -> int:
    """Keep a request for the cold code; a NOP-Out is answered from its slot."""
    port = port_at(conn)[0]
    is_ping = opcode == NOP_OUT
    is_answer = is_ping and load_32_be(header + bhs.OFFSET_ITT) == bhs.RESERVED_TAG
    if is_answer and target_at(conn)[0]["lower"] == 0:
        pass_number(conn, header)
        return 0  # the answer to a ping of ours
    length = port["rx_data_length"]
    if length > port["control_data_length"]:
        if not is_ping:
            return refuse(conn, header, refusal.INVALID_FIELD)
        length = port["control_data_length"]
    if is_immediate(header) and control_free_count(conn) <= promised(conn) + 1:
        return refuse(conn, header, refusal.TOO_MANY_IMMEDIATE)
    slot = control_take(conn)
    if slot == 0:
        return CONTROL_OVERFLOW
    copy_bytes(slot, header, bhs.BHS_LENGTH)
    store_64(slot + CONTROL_DATA_LENGTH, length)
    store_64(slot + CONTROL_CREDIT, 0 if is_immediate(header) else 1)
    if target_at(conn)[0]["rx_held"]:
        cmd_sn = load_32_be(header + bhs.OFFSET_CMD_SN)
        hold(conn, cmd_sn, token_of(TOKEN_CONTROL, slot))
    port["rx_action"] = ECHO if is_ping else CONTROL
    port["rx_object"] = slot
    rx.place(conn, slot + CONTROL_DATA, length)
    return 0


# --- when a PDU is complete ------------------------------------------------------------------


@nopython
def _on_pdu(conn: int) -> int:
    """Let a complete PDU take effect, and those that waited for it. 0: what could be wrong was
    seen in the header.
    """
    port = port_at(conn)[0]
    action, subject = port["rx_action"], port["rx_object"]
    port["rx_object"] = 0
    if subject == 0:  # nothing to do, or its task was aborted while its data came
        pass
    elif action == COMMAND:
        command_here(conn, subject)
    elif action == DATA:
        is_unsolicited = load_32_be(port["rx_header"] + bhs.OFFSET_TTT) == bhs.RESERVED_TAG
        is_last = ends_burst(conn, subject, port["rx_header"])
        data_out_here(conn, subject, is_last, is_unsolicited)
    elif target_at(conn)[0]["rx_held"] == 0:
        _control_here(conn, subject)
    release_held(conn)
    return 0


@nopython
def _control_here(conn: int, slot: int) -> None:
    """A request other than a command is complete, and its turn has come."""
    lower = target_at(conn)[0]["lower"]
    is_ping = load_8(slot) & bhs.OPCODE_MASK == NOP_OUT
    if is_ping and load_32_be(slot + bhs.OFFSET_ITT) != bhs.RESERVED_TAG:
        _echo(conn, slot)
    elif lower:
        push(lower + NOTICES, token_of(TOKEN_CONTROL, slot))
    else:
        push(conn + EVENTS, slot)


@nopython
def release_held(conn: int) -> None:
    """Let the requests take effect whose turn has come, in the order of their CmdSN."""
    token = next_held(conn)
    while token:
        if token == HELD_GONE:
            open_window(conn)
        elif token_kind(token) == TOKEN_TASK:
            resume_command(conn, token_address(token))
        else:
            _control_here(conn, token_address(token))
        token = next_held(conn)


@nopython
def count_as_received(conn: int, cmd_sn: int, before: int) -> bool:
    """ABORT TASK of a command that has not come (RFC 7143 §11.5.5): whether it is one that still
    could, and came before the request with the CmdSN `before`. Nobody waits for it any more, and
    it is ignored if it comes.
    """
    mine = target_at(conn)[0]
    if not sn.in_window(cmd_sn, mine["exp_cmd_sn"], mine["max_cmd_sn"]):
        return False
    if not sn.is_after(before, cmd_sn):
        return False
    if not is_held(conn, cmd_sn):
        hold(conn, cmd_sn, HELD_GONE)
        release_held(conn)
    return True


@nopython
def _on_wrong_data(conn: int) -> int:
    """The data digest of a complete PDU does not match: reject it, and end its command once all
    its data came (RFC 7143 §7.8). Its header is good, so its number counts: at error recovery
    level 0 nobody would send it again. PDU_COMPLETE or a violation.
    """
    port = port_at(conn)[0]
    action, subject = port["rx_action"], port["rx_object"]
    if subject == 0:  # it was ignored or rejected before
        return rx.PDU_COMPLETE
    overflow = reject(conn, port["rx_header"], refusal.DATA_DIGEST_ERROR)
    if overflow:
        return overflow
    if action in (COMMAND, DATA):
        spoil(conn, subject, CRC_ERROR)
        return rx.PDU_COMPLETE
    port["rx_object"] = 0
    if target_at(conn)[0]["rx_held"]:
        forget_held(conn, load_32_be(port["rx_header"] + bhs.OFFSET_CMD_SN))
    elif load_64(subject + CONTROL_CREDIT):
        open_window(conn)
    control_give(conn, subject)
    return rx.PDU_COMPLETE


@nopython
def _echo(conn: int, slot: int) -> None:
    """Turn a NOP-Out in its slot into the NOP-In that answers it (RFC 7143 §11.19)."""
    port = port_at(conn)[0]
    itt = load_32_be(slot + bhs.OFFSET_ITT)
    length = load_64(slot + CONTROL_DATA_LENGTH)
    store_64(slot + CONTROL_DATA_LENGTH, min(length, port["peer_max_recv_data_segment_length"]))
    zero_bytes(slot, bhs.BHS_LENGTH)
    store_8(slot, NOP_IN)
    store_8(slot + bhs.OFFSET_FLAGS, bhs.FLAG_FINAL)
    store_32_be(slot + bhs.OFFSET_ITT, itt)
    store_32_be(slot + bhs.OFFSET_TTT, bhs.RESERVED_TAG)
    push(conn + READY, token_of(TOKEN_CONTROL, slot))
