"""What an initiator receives in the full feature phase (RFC 7143 §11.4, §11.7, §11.8, §11.19).
Each PDU is judged when its header is complete, before a byte of its data is placed, and takes
effect when all of it is there; what the peer gets wrong ends the connection with one Violation.
"""

from typing import Final

from iscsi.wire import bhs, rx
from iscsi.wire import sequencing as sn
from iscsi.wire.initiator_task import (
    KIND_CONTROL,
    KIND_NOP,
    KIND_SCSI,
    R2T_SIZE,
    SENSE_ROOM,
    STATE_ACTIVE,
    STATE_CANCELLED,
    STATE_ENDED,
    complete,
    complete_if_over,
    initiator_at,
    make_ready,
    piece_at,
    r2t_at,
    task_at,
    task_of,
)
from iscsi.wire.port import (
    CONTROL_DATA,
    CONTROL_DATA_LENGTH,
    EVENTS,
    READY,
    TOKEN_CONTROL,
    control_take,
    port_at,
    push,
    token_of,
)
from iscsi.wire.runs import cut_out
from iscsi.wire.violations import Violation
from shm.jit import nopython
from shm.memory import (
    copy_bytes,
    load_8,
    load_16_be,
    load_32_be,
    load_64_be,
    store_8,
    store_32_be,
    store_64,
    store_64_be,
    zero_bytes,
)

NOP_OUT: Final = int(bhs.Opcode.NOP_OUT)
NOP_IN: Final = int(bhs.Opcode.NOP_IN)
SCSI_RESPONSE: Final = int(bhs.Opcode.SCSI_RESPONSE)
TASK_MANAGEMENT_RESPONSE: Final = int(bhs.Opcode.TASK_MANAGEMENT_RESPONSE)
TEXT_RESPONSE: Final = int(bhs.Opcode.TEXT_RESPONSE)
DATA_IN: Final = int(bhs.Opcode.DATA_IN)
LOGOUT_RESPONSE: Final = int(bhs.Opcode.LOGOUT_RESPONSE)
R2T: Final = int(bhs.Opcode.R2T)
ASYNC_MESSAGE: Final = int(bhs.Opcode.ASYNC_MESSAGE)
REJECT: Final = int(bhs.Opcode.REJECT)
RESIDUAL_FLAGS: Final = bhs.FLAG_OVERFLOW | bhs.FLAG_UNDERFLOW
IMMEDIATE_NOP_OUT: Final = NOP_OUT | bhs.IMMEDIATE

AHS: Final = int(Violation.AHS)
OPCODE: Final = int(Violation.OPCODE)
UNEXPECTED_DATA: Final = int(Violation.UNEXPECTED_DATA)
CONTROL_OVERFLOW: Final = int(Violation.CONTROL_OVERFLOW)
CONTROL_TOO_LONG: Final = int(Violation.CONTROL_TOO_LONG)
UNKNOWN_ITT: Final = int(Violation.UNKNOWN_ITT)
STAT_SN: Final = int(Violation.STAT_SN)
DATA_IN_DIRECTION: Final = int(Violation.DATA_IN_DIRECTION)
DATA_IN_RANGE: Final = int(Violation.DATA_IN_RANGE)
DATA_IN_ORDER: Final = int(Violation.DATA_IN_ORDER)
DATA_SN: Final = int(Violation.DATA_SN)
STATUS_WITHOUT_FINAL: Final = int(Violation.STATUS_WITHOUT_FINAL)
RESPONSE_TWICE: Final = int(Violation.RESPONSE_TWICE)
SENSE_LENGTH: Final = int(Violation.SENSE_LENGTH)
R2T_DIRECTION: Final = int(Violation.R2T_DIRECTION)
R2T_RANGE: Final = int(Violation.R2T_RANGE)
R2T_ORDER: Final = int(Violation.R2T_ORDER)
R2T_SN: Final = int(Violation.R2T_SN)
R2T_LENGTH: Final = int(Violation.R2T_LENGTH)
R2T_COUNT: Final = int(Violation.R2T_COUNT)


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
    elif found == rx.NEXT_PLACE:
        _place_more(conn)
        return 0
    return found


rx_bytes, rx_placed = rx.make_rx(_go_on)


# --- when a header is complete ---------------------------------------------------------------


@nopython
def _on_header(conn: int) -> int:
    """Judge a header and say where its data goes: 0 or a violation."""
    port = port_at(conn)[0]
    header = port["rx_header"]
    opcode = load_8(header) & bhs.OPCODE_MASK
    port["rx_action"] = opcode
    port["rx_object"] = 0
    if not _is_expected(opcode):
        return OPCODE
    if rx.ahs_length(conn):
        return AHS
    if _advances_stat_sn(header, opcode) and not _may_come(conn, header):
        return STAT_SN
    if opcode == DATA_IN:
        return _data_in_header(conn, header)
    if opcode == SCSI_RESPONSE:
        return _response_header(conn, header)
    if opcode == R2T:
        return _r2t_header(conn, header)
    if opcode == NOP_IN:
        return _nop_in_header(conn, header)
    if opcode in (ASYNC_MESSAGE, REJECT):
        return _control_header(conn)
    task = task_of(conn, load_32_be(header + bhs.OFFSET_ITT))
    if task == 0 or task_at(task)[0]["kind"] != KIND_CONTROL:
        return UNKNOWN_ITT
    return _control_header(conn)


@nopython
def _is_expected(opcode: int) -> bool:
    """Whether a target sends PDUs of this type in the full feature phase."""
    if opcode in (DATA_IN, SCSI_RESPONSE, R2T, NOP_IN, ASYNC_MESSAGE, REJECT):
        return True
    return opcode in (TASK_MANAGEMENT_RESPONSE, TEXT_RESPONSE, LOGOUT_RESPONSE)


@nopython
def _advances_stat_sn(header: int, opcode: int) -> bool:
    """Whether a PDU carries a StatSN of its own (RFC 7143 §4.2.2.2)."""
    if opcode == DATA_IN:
        return load_8(header + bhs.OFFSET_FLAGS) & bhs.FLAG_STATUS != 0
    if opcode == NOP_IN:
        return load_32_be(header + bhs.OFFSET_ITT) != bhs.RESERVED_TAG
    return opcode != R2T


@nopython
def _may_come(conn: int, header: int) -> bool:
    """Whether a status comes in its turn: over TCP it is the next one (RFC 7143 §4.2.2.2), over
    RDMA somewhere near it (`iscsi.wire.iser.build`).
    """
    mine = initiator_at(conn)[0]
    ahead = sn.distance(mine["exp_stat_sn"], load_32_be(header + bhs.OFFSET_STAT_SN))
    return bool(abs(ahead) <= mine["stat_sn_reach"])


@nopython
def _count_status(conn: int, header: int) -> None:
    """ExpStatSN is one more than the latest StatSN, whatever the order."""
    mine = initiator_at(conn)[0]
    stat_sn = load_32_be(header + bhs.OFFSET_STAT_SN)
    ahead = sn.distance(mine["exp_stat_sn"], stat_sn)
    if ahead >= 0:
        mine["exp_stat_sn"] = sn.add(stat_sn, 1)


@nopython
def _scsi_task(conn: int, header: int) -> int:
    """Address of the command a PDU is for, or a violation."""
    address = task_of(conn, load_32_be(header + bhs.OFFSET_ITT))
    if address == 0 or task_at(address)[0]["kind"] != KIND_SCSI:
        return UNKNOWN_ITT
    state = task_at(address)[0]["state"]
    if state != STATE_ACTIVE and state != STATE_CANCELLED:
        return RESPONSE_TWICE
    return address


@nopython
def _data_in_header(conn: int, header: int) -> int:
    address = _scsi_task(conn, header)
    if address < 0:
        return address
    port, task = port_at(conn)[0], task_at(address)[0]
    start = load_32_be(header + bhs.OFFSET_BUFFER_OFFSET)
    flags = load_8(header + bhs.OFFSET_FLAGS)
    if task["flags"] & bhs.FLAG_READ == 0:
        return DATA_IN_DIRECTION
    if start + port["rx_data_length"] > task["expected_length"]:
        return DATA_IN_RANGE
    if flags & bhs.FLAG_STATUS and not flags & bhs.FLAG_FINAL:
        return STATUS_WITHOUT_FINAL
    port["rx_object"] = address
    if task["state"] == STATE_CANCELLED:
        return 0
    if load_32_be(header + bhs.OFFSET_DATA_SN) != task["data_in_sn"]:
        return DATA_SN
    # DataPDUInOrder and DataSequenceInOrder are always Yes, because we never offer anything else.
    if start != task["received"]:
        return DATA_IN_ORDER
    if task["run_count"]:
        _place_pieces(conn, address, start)
    else:
        rx.place(conn, task["data_address"] + start, port["rx_data_length"])
    return 0


@nopython
def _place_pieces(conn: int, address: int, start: int) -> None:
    """Data for memory in several pieces goes to the first of them, then to the next ones."""
    port = port_at(conn)[0]
    where, length = piece_at(address, start)
    rx.place(conn, where, length)
    port["rx_more"] = port["rx_data_length"] - port["rx_place"]


@nopython
def _place_more(conn: int) -> None:
    port = port_at(conn)[0]
    done = port["rx_data_length"] - port["rx_more"]
    start = task_at(port["rx_object"])[0]["received"] + done
    where, length = piece_at(port["rx_object"], start)
    rx.place_next(conn, where, min(length, port["rx_more"]))


@nopython
def more_places(conn: int, into: int, room: int) -> tuple[int, int]:
    """Where the data under way goes when its piece is full: a list at `into` of up to `room` runs
    (`iscsi.wire.runs`), how many they are, and their bytes.
    """
    port, task = port_at(conn)[0], task_at(port_at(conn)[0]["rx_object"])[0]
    start = task["received"] + port["rx_data_length"] - port["rx_more"]
    return cut_out(task["runs"], task["run_count"], start, port["rx_more"], into, room)


@nopython
def _response_header(conn: int, header: int) -> int:
    address = _scsi_task(conn, header)
    if address < 0:
        return address
    port = port_at(conn)[0]
    if port["rx_data_length"] == 1:
        return SENSE_LENGTH
    port["rx_object"] = address
    rx.place(conn, task_at(address)[0]["sense_address"], SENSE_ROOM)
    return 0


@nopython
def _r2t_header(conn: int, header: int) -> int:
    address = _scsi_task(conn, header)
    if address < 0:
        return address
    mine, task = initiator_at(conn)[0], task_at(address)[0]
    start = load_32_be(header + bhs.OFFSET_BUFFER_OFFSET)
    length = load_32_be(header + bhs.OFFSET_DESIRED_DATA_TRANSFER_LENGTH)
    if port_at(conn)[0]["rx_data_length"]:
        return UNEXPECTED_DATA
    if task["flags"] & bhs.FLAG_WRITE == 0:
        return R2T_DIRECTION
    if length == 0 or length > mine["max_burst_length"]:
        return R2T_LENGTH
    if start + length > task["expected_length"]:
        return R2T_RANGE
    port_at(conn)[0]["rx_object"] = address
    if task["state"] == STATE_CANCELLED:
        return 0
    if load_32_be(header + bhs.OFFSET_R2T_SN) != task["r2t_sn"]:
        return R2T_SN
    if task["r2t_count"] == mine["max_outstanding_r2t"]:
        return R2T_COUNT
    # It may ask again for unsolicited data, which it was free to discard, but for nothing twice.
    if start < task["r2t_offset"]:
        return R2T_ORDER
    return 0


@nopython
def _nop_in_header(conn: int, header: int) -> int:
    port = port_at(conn)[0]
    itt = load_32_be(header + bhs.OFFSET_ITT)
    if itt == bhs.RESERVED_TAG:
        return UNEXPECTED_DATA if port["rx_data_length"] else 0
    address = task_of(conn, itt)
    if address == 0 or task_at(address)[0]["kind"] != KIND_NOP:
        return UNKNOWN_ITT
    if task_at(address)[0]["state"] not in (STATE_ACTIVE, STATE_CANCELLED):
        return RESPONSE_TWICE
    port["rx_object"] = address
    return 0


@nopython
def _control_header(conn: int) -> int:
    port = port_at(conn)[0]
    if port["rx_data_length"] > port["control_data_length"]:
        return CONTROL_TOO_LONG
    slot = control_take(conn)
    if slot == 0:
        return CONTROL_OVERFLOW
    copy_bytes(slot, port["rx_header"], bhs.BHS_LENGTH)
    store_64(slot + CONTROL_DATA_LENGTH, port["rx_data_length"])
    port["rx_object"] = slot
    rx.place(conn, slot + CONTROL_DATA, port["rx_data_length"])
    return 0


# --- when a PDU is complete ------------------------------------------------------------------


@nopython
def _on_pdu(conn: int) -> int:
    """Let a complete PDU take effect: 0 or a violation."""
    port = port_at(conn)[0]
    header, subject, opcode = port["rx_header"], port["rx_object"], port["rx_action"]
    port["rx_object"] = 0
    result = 0
    if opcode == DATA_IN:
        _data_in(conn, header, subject)
    elif opcode == SCSI_RESPONSE:
        result = _response(conn, header, subject)
    elif opcode == R2T:
        _r2t(conn, header, subject)
    elif opcode == NOP_IN:
        result = _nop_in(conn, header, subject)
    else:
        push(conn + EVENTS, subject)
        end_control_task(conn, header, opcode)
    if _advances_stat_sn(header, opcode):
        _count_status(conn, header)
    _update_window(conn, header)
    return result


@nopython
def _update_window(conn: int, header: int) -> None:
    """Take over ExpCmdSN and MaxCmdSN, which never go back (RFC 7143 §4.2.2.1)."""
    mine = initiator_at(conn)[0]
    exp_cmd_sn = load_32_be(header + bhs.OFFSET_EXP_CMD_SN)
    max_cmd_sn = load_32_be(header + bhs.OFFSET_MAX_CMD_SN)
    if sn.is_after(sn.add(exp_cmd_sn, -1), max_cmd_sn):
        return
    if sn.is_after(max_cmd_sn, mine["max_cmd_sn"]):
        mine["max_cmd_sn"] = max_cmd_sn
    if sn.is_after(exp_cmd_sn, mine["exp_cmd_sn"]):
        mine["exp_cmd_sn"] = exp_cmd_sn


@nopython
def _end(conn: int, header: int, address: int) -> None:
    """A command has its status; Data-In and SCSI Response keep it in the same places."""
    task = task_at(address)[0]
    if task["state"] == STATE_ACTIVE:
        task["state"] = STATE_ENDED
        task["status"] = load_8(header + bhs.OFFSET_STATUS)
        task["residual_flags"] = load_8(header + bhs.OFFSET_FLAGS) & RESIDUAL_FLAGS
        task["residual_count"] = load_32_be(header + bhs.OFFSET_RESIDUAL_COUNT)
    complete_if_over(conn, address)


@nopython
def _data_in(conn: int, header: int, address: int) -> None:
    task = task_at(address)[0]
    task["data_in_sn"] = sn.add(task["data_in_sn"], 1)
    task["received"] += port_at(conn)[0]["rx_data_length"]
    if load_8(header + bhs.OFFSET_FLAGS) & bhs.FLAG_STATUS:
        _end(conn, header, address)
    elif task["state"] == STATE_CANCELLED:
        complete_if_over(conn, address)


@nopython
def _response(conn: int, header: int, address: int) -> int:
    task = task_at(address)[0]
    length = port_at(conn)[0]["rx_data_length"]
    if length:
        sense_length = load_16_be(task["sense_address"])
        if sense_length + 2 > length:
            return SENSE_LENGTH
        task["sense_length"] = min(sense_length, SENSE_ROOM - 2)
    task["response"] = load_8(header + bhs.OFFSET_RESPONSE)
    _end(conn, header, address)
    return 0


@nopython
def _r2t(conn: int, header: int, address: int) -> None:
    mine, task = initiator_at(conn)[0], task_at(address)[0]
    if task["state"] == STATE_CANCELLED:
        complete_if_over(conn, address)
        return
    index = task["r2t_head"] + task["r2t_count"]
    if index >= mine["max_outstanding_r2t"]:
        index -= mine["max_outstanding_r2t"]
    r2t = r2t_at(task["r2ts"] + R2T_SIZE * index)[0]
    r2t["ttt"] = load_32_be(header + bhs.OFFSET_TTT)
    r2t["lun"] = load_64_be(header + bhs.OFFSET_LUN)
    r2t["offset"] = load_32_be(header + bhs.OFFSET_BUFFER_OFFSET)
    r2t["length"] = load_32_be(header + bhs.OFFSET_DESIRED_DATA_TRANSFER_LENGTH)
    task["r2t_count"] += 1
    task["r2t_sn"] = sn.add(task["r2t_sn"], 1)
    task["r2t_offset"] = r2t["offset"] + r2t["length"]
    make_ready(conn, address)


@nopython
def _nop_in(conn: int, header: int, address: int) -> int:
    """An answer to our NOP-Out, or the target's ping, or only news of the window."""
    if address:
        if task_at(address)[0]["state"] == STATE_ACTIVE:
            task_at(address)[0]["state"] = STATE_ENDED
        complete_if_over(conn, address)
        return 0
    ttt = load_32_be(header + bhs.OFFSET_TTT)
    if ttt == bhs.RESERVED_TAG:
        return 0
    slot = control_take(conn)
    if slot == 0:
        return CONTROL_OVERFLOW
    zero_bytes(slot, bhs.BHS_LENGTH)
    store_8(slot, IMMEDIATE_NOP_OUT)
    store_8(slot + bhs.OFFSET_FLAGS, bhs.FLAG_FINAL)
    store_64_be(slot + bhs.OFFSET_LUN, load_64_be(header + bhs.OFFSET_LUN))
    store_32_be(slot + bhs.OFFSET_ITT, bhs.RESERVED_TAG)
    store_32_be(slot + bhs.OFFSET_TTT, ttt)
    store_32_be(slot + bhs.OFFSET_CMD_SN, initiator_at(conn)[0]["cmd_sn"])
    push(conn + READY, token_of(TOKEN_CONTROL, slot))
    initiator_at(conn)[0]["pings"] += 1
    return 0


@nopython
def end_control_task(conn: int, header: int, opcode: int) -> None:
    """Free the tag of a request that has its last answer; a Text Response may not be the last."""
    if opcode in (ASYNC_MESSAGE, REJECT):
        return
    if opcode == TEXT_RESPONSE and not load_8(header + bhs.OFFSET_FLAGS) & bhs.FLAG_FINAL:
        return
    address = task_of(conn, load_32_be(header + bhs.OFFSET_ITT))
    if address:
        complete(conn, address)
