"""What the header of a DDP segment means (RFC 5041 §5, RFC 5040 §7): every field is checked against
what is expected of the stream, and the payload's place is found. Nothing takes effect here.
"""

from typing import Final

from ppe.cycle.rnic.iwarp.records import (
    RX_MSN,
    SQ_ENTRY_SIZE,
    SQ_PIECES,
    VIOLATION,
    qp_at,
    sq_entry_at,
)
from ppe.cycle.rnic.iwarp.wire import (
    CATASTROPHIC_FOR_STREAM,
    DDP_BASE_OR_BOUNDS,
    DDP_CONTROL,
    DDP_INVALID_STAG,
    DDP_TAGGED_VERSION,
    DDP_UNTAGGED_VERSION,
    DDP_VERSION,
    DDP_VERSION_MASK,
    INVALID_MO,
    INVALID_MSN,
    INVALID_QN,
    INVALID_RDMAP_VERSION,
    LAST,
    LENGTH_SIZE,
    MESSAGE_TOO_LONG,
    MO,
    MSN,
    NO_BUFFER,
    NO_MATCHING_RTR,
    OP_ATOMIC_RESPONSE,
    OP_IMMEDIATE,
    OP_IMMEDIATE_SE,
    OP_READ_REQUEST,
    OP_READ_RESPONSE,
    OP_SEND,
    OP_SEND_SE_INV,
    OP_TERMINATE,
    OP_WRITE,
    OPCODE_MASK,
    QN,
    RDMAP_CONTROL,
    RDMAP_VERSION,
    RDMAP_VERSION_SHIFT,
    READ_SIZE,
    STAG,
    TAGGED,
    TO,
    UNEXPECTED_OPCODE,
    as_ddp,
    is_tagged,
    queue_of,
)
from ppe.cycle.rnic.memory import address_in, hold, keeper_of, remote_row, wrap
from ppe.cycle.rnic.receive import NONE, entry_of, take_buffer
from ppe.cycle.rnic.records import (
    MR_VALID,
    PIECE_SIZE,
    RQ_ENTRY_PIECES,
    mr_at,
    piece_at,
    rq_at,
    rq_entry_at,
)
from shm.jit import nopython
from shm.memory import load_8, load_32_be, load_64, load_64_be
from shm.qp_spec import RTR_READ, RTR_SEND, RTR_WRITE
from shm.verbs_numbers import ACCESS_REMOTE_WRITE, WR_RDMA_READ

WORD: Final = 0xFFFFFFFF
# Our own memory is not there any more: layer 0, type 0, code 0, which is no number to return.
LOCAL_FAULT: Final = VIOLATION
RTR_POSITION: Final = -1  # in the ORQ, of a Read that no work request asked for


@nopython
def opcode_of(qp: int) -> int:
    """RDMAP opcode of the segment under way."""
    return load_8(qp_at(qp)[0]["rx_header"] + RDMAP_CONTROL) & OPCODE_MASK


@nopython
def is_last(qp: int) -> bool:
    """Whether this segment ends its message."""
    return bool(load_8(qp_at(qp)[0]["rx_header"] + DDP_CONTROL) & LAST)


@nopython
def expected_msn(qp: int, queue: int) -> int:
    """The MSN of the message that queue expects or has under way."""
    return load_64(qp + RX_MSN + 8 * queue) & WORD


@nopython
def oldest_request(qp: int) -> int:
    """Position in the SQ of what waits longest for a response, RTR_POSITION, or -2: nothing."""
    mine = qp_at(qp)[0]
    if mine["orq_head"] == mine["orq_tail"]:
        return -2
    return load_64(mine["orq"] + 8 * (mine["orq_head"] & (mine["orq_capacity"] - 1)))


@nopython
def work_at(qp: int, position: int) -> int:
    """Address of a send work request."""
    mine = qp_at(qp)[0]
    return int(mine["sq_entries"] + SQ_ENTRY_SIZE * (position & (mine["sq_capacity"] - 1)))


@nopython
def check_control(qp: int) -> int:
    """0 if both control bytes of a segment can be, else the code of a Terminate."""
    mine = qp_at(qp)[0]
    ddp, rdmap = load_8(mine["rx_header"] + DDP_CONTROL), load_8(mine["rx_header"] + RDMAP_CONTROL)
    if ddp & DDP_VERSION_MASK != DDP_VERSION:
        return DDP_TAGGED_VERSION if ddp & TAGGED else DDP_UNTAGGED_VERSION
    if rdmap >> RDMAP_VERSION_SHIFT != RDMAP_VERSION:
        return INVALID_RDMAP_VERSION
    opcode = rdmap & OPCODE_MASK
    if opcode > (OP_ATOMIC_RESPONSE if mine["extensions"] else OP_TERMINATE):
        return UNEXPECTED_OPCODE
    if is_tagged(opcode) != (ddp & TAGGED != 0):
        return UNEXPECTED_OPCODE
    return 0


@nopython
def place(qp: int) -> int:
    """Check a complete header and say where the payload goes (`rx_target`, `rx_need`, `rx_left`):
    0, or the code of a Terminate.
    """
    mine = qp_at(qp)[0]
    opcode = opcode_of(qp)
    mine["rx_payload"] = LENGTH_SIZE + mine["rx_length"] - mine["rx_have"]
    mine["rx_need"], mine["rx_target"], mine["rx_left"] = mine["rx_payload"], 0, 0
    if not mine["started"] and mine["rtr"] and not _is_rtr(qp, opcode):
        return NO_MATCHING_RTR
    if opcode == OP_WRITE:
        return _place_write(qp)
    if opcode == OP_READ_RESPONSE:
        return _place_response(qp)
    header = mine["rx_header"]
    queue = queue_of(opcode)
    if load_32_be(header + QN) != queue:
        return INVALID_QN
    if opcode == OP_TERMINATE:
        return 0  # The stream is over whatever else it says.
    if load_32_be(header + MSN) != expected_msn(qp, queue):
        return INVALID_MSN
    if opcode >= OP_SEND and opcode <= OP_SEND_SE_INV:
        return _place_send(qp, opcode)
    return _check_single(qp, opcode)


@nopython
def _is_rtr(qp: int, opcode: int) -> bool:
    """Whether this is what was agreed that the active side sends first (RFC 6581 §9)."""
    mine = qp_at(qp)[0]
    if mine["rtr"] == RTR_READ:
        return bool(opcode == OP_READ_REQUEST and load_32_be(mine["rx_header"] + READ_SIZE) == 0)
    wanted = OP_WRITE if mine["rtr"] == RTR_WRITE else OP_SEND
    return bool(opcode == wanted and mine["rx_payload"] == 0 and is_last(qp))


# --- tagged ----------------------------------------------------------------------------------


@nopython
def _check_continuation(qp: int, opcode: int, stag: int, to: int) -> int:
    """A tagged message that has begun goes on where it stopped, before any other begins."""
    mine = qp_at(qp)[0]
    if mine["rx_tagged"] == NONE:
        return 0
    if mine["rx_tagged"] != opcode:
        return UNEXPECTED_OPCODE
    if mine["rx_tagged_stag"] != stag:
        return DDP_INVALID_STAG
    return 0 if mine["rx_tagged_to"] == to else DDP_BASE_OR_BOUNDS


@nopython
def _place_write(qp: int) -> int:
    mine = qp_at(qp)[0]
    stag, to = load_32_be(mine["rx_header"] + STAG), load_64_be(mine["rx_header"] + TO)
    fault = _check_continuation(qp, OP_WRITE, stag, to)
    if fault != 0 or mine["rx_payload"] == 0:
        return fault
    row = remote_row(
        mine["table"],
        mine["pd"],
        mine["number"],
        stag,
        to,
        mine["rx_payload"],
        ACCESS_REMOTE_WRITE,
    )
    if row < 0:
        return as_ddp(-row)
    mine["rx_row"], mine["rx_target"] = keeper_of(row), address_in(row, to)
    hold(mine["rx_row"])
    return 0


@nopython
def _place_response(qp: int) -> int:
    """A Read Response must be what the oldest outstanding request asked for, and no more."""
    mine = qp_at(qp)[0]
    position = oldest_request(qp)
    stag, to = load_32_be(mine["rx_header"] + STAG), load_64_be(mine["rx_header"] + TO)
    if position == RTR_POSITION:
        return 0 if mine["rx_payload"] == 0 and is_last(qp) else DDP_BASE_OR_BOUNDS
    if position < 0:
        return UNEXPECTED_OPCODE
    work = work_at(qp, position)
    entry = sq_entry_at(work)[0]
    if entry["opcode"] != WR_RDMA_READ:
        return UNEXPECTED_OPCODE
    fault = _check_continuation(qp, OP_READ_RESPONSE, stag, to)
    if fault != 0:
        return fault
    if stag != entry["sink_lkey"]:
        return DDP_INVALID_STAG
    received = entry["received"]
    if to != wrap(entry["sink_to"] + received):
        return DDP_BASE_OR_BOUNDS
    left = entry["length"] - received
    if mine["rx_payload"] > left or (is_last(qp) and mine["rx_payload"] != left):
        return DDP_BASE_OR_BOUNDS
    if mine["rx_payload"] > 0:
        piece = piece_at(work + SQ_PIECES)[0]
        if mr_at(piece["row"])[0]["state"] != MR_VALID:
            return DDP_INVALID_STAG
        mine["rx_target"] = piece["address"] + received
    return 0


# --- untagged --------------------------------------------------------------------------------


@nopython
def _place_send(qp: int, opcode: int) -> int:
    mine = qp_at(qp)[0]
    if mine["rx_send"] != NONE and mine["rx_send"] != opcode:
        return UNEXPECTED_OPCODE
    if load_32_be(mine["rx_header"] + MO) != mine["rx_bytes"]:
        return INVALID_MO
    if mine["rx_send"] == NONE:
        if not mine["started"] and mine["rtr"] == RTR_SEND:
            return 0  # Nobody but us sees it.
        if mine["rx_entry"] == NONE:
            mine["rx_entry"] = take_buffer(mine["rq"])
        if mine["rx_entry"] == NONE:
            return NO_BUFFER
        mine["rx_piece"], mine["rx_piece_at"] = 0, 0
        if not _is_still_registered(qp):
            return LOCAL_FAULT
    room = rq_entry_at(entry_of(mine["rq"], mine["rx_entry"]))[0]["length"]
    if mine["rx_payload"] > room - mine["rx_bytes"]:
        return MESSAGE_TOO_LONG
    mine["rx_left"] = mine["rx_payload"]
    if mine["rx_left"] > 0:
        next_piece(qp)
    return 0


@nopython
def _is_still_registered(qp: int) -> bool:
    """Whether no piece of the buffer was invalidated since it was posted."""
    mine = qp_at(qp)[0]
    address = entry_of(mine["rq"], mine["rx_entry"])
    for which in range(rq_entry_at(address)[0]["sge_count"]):
        row = piece_at(address + RQ_ENTRY_PIECES + PIECE_SIZE * which)[0]["row"]
        if row != 0 and mr_at(row)[0]["state"] != MR_VALID:
            return False
    return True


@nopython
def next_piece(qp: int) -> None:
    """The place of more of a Send's payload, of which `rx_left` bytes have none yet."""
    mine = qp_at(qp)[0]
    pieces = entry_of(mine["rq"], mine["rx_entry"]) + RQ_ENTRY_PIECES
    while True:
        piece = piece_at(pieces + PIECE_SIZE * mine["rx_piece"])[0]
        room = piece["length"] - mine["rx_piece_at"]
        if room > 0:
            break
        mine["rx_piece"] += 1
        mine["rx_piece_at"] = 0
    size = min(room, mine["rx_left"])
    mine["rx_target"] = piece["address"] + mine["rx_piece_at"]
    mine["rx_need"] = size
    mine["rx_left"] -= size
    mine["rx_piece_at"] += size


@nopython
def _check_single(qp: int, opcode: int) -> int:
    """A message of fixed length, which one segment holds: requests, responses, immediate data."""
    mine = qp_at(qp)[0]
    if load_32_be(mine["rx_header"] + MO) != 0:
        return INVALID_MO
    if mine["rx_payload"] > 0:
        return MESSAGE_TOO_LONG
    if not is_last(qp):
        return CATASTROPHIC_FOR_STREAM
    if opcode in (OP_IMMEDIATE, OP_IMMEDIATE_SE):
        if mine["rx_send"] != NONE:
            return UNEXPECTED_OPCODE
        return 0 if rq_at(mine["rq"])[0]["posted"] > 0 else NO_BUFFER
    return 0
