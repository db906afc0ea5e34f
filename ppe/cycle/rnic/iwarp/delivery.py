"""What the last segment of a message brings about (RFC 5040 §5), after its CRC was found right:
receives complete, STags end, requests of the peer are queued and answers to ours taken.
"""

from typing import Final

from ppe.cycle.rnic.iwarp.atomic import execute
from ppe.cycle.rnic.iwarp.placement import (
    LOCAL_FAULT,
    RTR_POSITION,
    WORD,
    expected_msn,
    is_last,
    oldest_request,
    opcode_of,
    work_at,
)
from ppe.cycle.rnic.iwarp.records import (
    IRQ_ENTRY_SIZE,
    RX_MSN,
    SQ_PIECES,
    irq_entry_at,
    qp_at,
    sq_entry_at,
)
from ppe.cycle.rnic.iwarp.terminate import terminated
from ppe.cycle.rnic.iwarp.wire import (
    ATOMIC_OPCODE,
    ATOMIC_REQUEST_ID,
    ATOMIC_RESPONSE_ID,
    ATOMIC_STAG,
    ATOMIC_TO,
    ATOMIC_VALUE,
    CANNOT_INVALIDATE,
    CANNOT_INVALIDATE_PROTECTED,
    CATASTROPHIC_FOR_STREAM,
    CMP_SWAP,
    IMMEDIATE_DATA,
    NO_BUFFER,
    OP_ATOMIC_REQUEST,
    OP_ATOMIC_RESPONSE,
    OP_IMMEDIATE_SE,
    OP_READ_REQUEST,
    OP_READ_RESPONSE,
    OP_SEND_INV,
    OP_SEND_SE,
    OP_SEND_SE_INV,
    OP_TERMINATE,
    OP_WRITE,
    QN_ATOMIC_RESPONSE,
    QN_REQUEST,
    QN_SEND,
    READ_SIZE,
    RSVD_ULP,
    SINK_STAG,
    SINK_TO,
    SOURCE_STAG,
    SOURCE_TO,
    STAG,
    TO,
    UNEXPECTED_OPCODE,
)
from ppe.cycle.rnic.memory import (
    EACCES,
    address_in,
    hold,
    invalidate_for_peer,
    keeper_of,
    let_go,
    remote_row,
    wrap,
)
from ppe.cycle.rnic.receive import NONE, entry_of, take_buffer
from ppe.cycle.rnic.records import MR_VALID, mr_at, piece_at, rq_entry_at
from shm.jit import nopython
from shm.memory import load_32_be, load_64_be, store_64
from shm.qp_spec import RTR_SEND
from shm.verbs_numbers import (
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_READ,
    WC_RECV_RDMA_WITH_IMM,
    WC_SOLICITED,
    WC_WITH_IMM,
    WC_WITH_INV,
    WR_RDMA_READ,
)

ATOMIC_SIZE: Final = 8


@nopython
def deliver(qp: int) -> int:
    """Let the segment under way take effect: 0, the code of a Terminate, or what `terminated`
    returns.
    """
    mine = qp_at(qp)[0]
    opcode = opcode_of(qp)
    let_go(mine["rx_row"])
    mine["rx_row"] = 0
    mine["rx_fpdus"] += 1
    is_first, mine["started"] = mine["started"] == 0, 1
    if opcode == OP_WRITE:
        _note_continuation(qp, opcode)
        return 0
    if opcode == OP_READ_RESPONSE:
        return _take_response(qp)
    if opcode == OP_READ_REQUEST:
        return _queue_read(qp)
    if opcode == OP_ATOMIC_REQUEST:
        return _queue_atomic(qp)
    if opcode == OP_ATOMIC_RESPONSE:
        return _take_atomic_response(qp)
    if opcode == OP_TERMINATE:
        return terminated(qp)
    if opcode > OP_TERMINATE:
        return _take_immediate(qp, opcode)
    if is_first and mine["rtr"] == RTR_SEND:
        _next_msn(qp, QN_SEND)
        return 0
    return _take_send(qp, opcode)


@nopython
def _next_msn(qp: int, queue: int) -> None:
    store_64(qp + RX_MSN + 8 * queue, expected_msn(qp, queue) + 1 & WORD)


@nopython
def _note_continuation(qp: int, opcode: int) -> None:
    """Remember where a tagged message must go on."""
    mine = qp_at(qp)[0]
    mine["rx_tagged"] = NONE if is_last(qp) else opcode
    mine["rx_tagged_stag"] = load_32_be(mine["rx_header"] + STAG)
    mine["rx_tagged_to"] = wrap(load_64_be(mine["rx_header"] + TO) + mine["rx_payload"])


# --- Sends and immediate data ------------------------------------------------------------------


@nopython
def _take_send(qp: int, opcode: int) -> int:
    mine = qp_at(qp)[0]
    mine["rx_bytes"] += mine["rx_payload"]
    if not is_last(qp):
        mine["rx_send"] = opcode
        return 0
    entry = rq_entry_at(entry_of(mine["rq"], mine["rx_entry"]))[0]
    if opcode in (OP_SEND_INV, OP_SEND_SE_INV):
        # RFC 5040 §5.2: the STag is invalid before the Send is delivered.
        stag = load_32_be(mine["rx_header"] + RSVD_ULP)
        refused = invalidate_for_peer(mine["table"], stag, mine["pd"], mine["number"])
        if refused != 0:
            return CANNOT_INVALIDATE_PROTECTED if refused == EACCES else CANNOT_INVALIDATE
        entry["invalidated_rkey"] = stag
        entry["flags"] |= WC_WITH_INV
    if opcode in (OP_SEND_SE, OP_SEND_SE_INV):
        entry["flags"] |= WC_SOLICITED
    entry["byte_len"] = mine["rx_bytes"]
    finish_receive(qp, mine["rx_entry"])
    mine["rx_entry"], mine["rx_send"], mine["rx_bytes"] = NONE, NONE, 0
    _next_msn(qp, QN_SEND)
    return 0


@nopython
def finish_receive(qp: int, index: int) -> None:
    """Line up an entry for its completion."""
    mine = qp_at(qp)[0]
    rq_entry_at(entry_of(mine["rq"], index))[0]["next"] = NONE
    if mine["done_first"] == NONE:
        mine["done_first"] = index
    else:
        rq_entry_at(entry_of(mine["rq"], mine["done_last"]))[0]["next"] = index
    mine["done_last"] = index


@nopython
def _take_immediate(qp: int, opcode: int) -> int:
    """Immediate data uses up a receive and leaves its buffer alone (RFC 7306 §6)."""
    mine = qp_at(qp)[0]
    index = take_buffer(mine["rq"])
    if index == NONE:
        return NO_BUFFER  # It was there when the header came, but the queue is shared.
    entry = rq_entry_at(entry_of(mine["rq"], index))[0]
    entry["opcode"] = WC_RECV_RDMA_WITH_IMM
    entry["imm"] = load_64_be(mine["rx_header"] + IMMEDIATE_DATA)
    entry["flags"] |= WC_WITH_IMM
    if opcode == OP_IMMEDIATE_SE:
        entry["flags"] |= WC_SOLICITED
    finish_receive(qp, index)
    _next_msn(qp, QN_SEND)
    return 0


# --- the peer's requests -----------------------------------------------------------------------


@nopython
def _new_request(qp: int) -> int:
    """Address of a place for a request of the peer, or 0 if it has too many outstanding."""
    mine = qp_at(qp)[0]
    if mine["irq_tail"] - mine["irq_head"] >= mine["ird"]:
        return 0
    return int(mine["irq"] + IRQ_ENTRY_SIZE * (mine["irq_tail"] & (mine["irq_capacity"] - 1)))


@nopython
def _queue_read(qp: int) -> int:
    mine = qp_at(qp)[0]
    header, place = mine["rx_header"], _new_request(qp)
    if place == 0:
        return CATASTROPHIC_FOR_STREAM
    size = load_32_be(header + READ_SIZE)
    stag, to = load_32_be(header + SOURCE_STAG), load_64_be(header + SOURCE_TO)
    row = 0
    if size > 0:  # Nothing may be read from anywhere (RFC 5040 §5.1).
        row = remote_row(
            mine["table"], mine["pd"], mine["number"], stag, to, size, ACCESS_REMOTE_READ
        )
        if row < 0:
            return -row
    entry = irq_entry_at(place)[0]
    entry["is_atomic"] = 0
    entry["sink_stag"] = load_32_be(header + SINK_STAG)
    entry["sink_to"] = load_64_be(header + SINK_TO)
    entry["size"] = size
    entry["address"] = address_in(row, to) if row != 0 else 0
    entry["row"] = keeper_of(row) if row != 0 else 0
    hold(entry["row"])
    mine["irq_tail"] += 1
    _next_msn(qp, QN_REQUEST)
    return 0


@nopython
def _queue_atomic(qp: int) -> int:
    """Do what an Atomic Request asks for, now: all that came before is placed (RFC 7306 §5.4)."""
    mine = qp_at(qp)[0]
    header, place = mine["rx_header"], _new_request(qp)
    if place == 0:
        return CATASTROPHIC_FOR_STREAM
    what = load_32_be(header + ATOMIC_OPCODE) & 15
    if what > CMP_SWAP:
        return UNEXPECTED_OPCODE
    stag, to = load_32_be(header + ATOMIC_STAG), load_64_be(header + ATOMIC_TO)
    row = remote_row(
        mine["table"], mine["pd"], mine["number"], stag, to, ATOMIC_SIZE, ACCESS_REMOTE_ATOMIC
    )
    if row < 0:
        return -row
    address = address_in(row, to)
    if address & 7:
        return CATASTROPHIC_FOR_STREAM  # RFC 7306 §7.2
    entry = irq_entry_at(place)[0]
    entry["is_atomic"], entry["row"] = 1, 0
    entry["request_id"] = load_32_be(header + ATOMIC_REQUEST_ID)
    entry["value"] = execute(header, what, address)
    mine["irq_tail"] += 1
    _next_msn(qp, QN_REQUEST)
    return 0


# --- answers to ours ---------------------------------------------------------------------------


@nopython
def _take_response(qp: int) -> int:
    mine = qp_at(qp)[0]
    position = oldest_request(qp)
    if position != RTR_POSITION:
        _note_continuation(qp, OP_READ_RESPONSE)
        entry = sq_entry_at(work_at(qp, position))[0]
        entry["received"] += mine["rx_payload"]
        if not is_last(qp):
            return 0
        entry["awaits"] -= 1
    mine["orq_head"] += 1
    return 0


@nopython
def _take_atomic_response(qp: int) -> int:
    """The value that was there goes to the request's buffer, in the machine's byte order."""
    mine = qp_at(qp)[0]
    header, position = mine["rx_header"], oldest_request(qp)
    if position < 0 or load_32_be(header + ATOMIC_RESPONSE_ID) != position & WORD:
        return UNEXPECTED_OPCODE
    work = work_at(qp, position)
    entry = sq_entry_at(work)[0]
    if entry["opcode"] == WR_RDMA_READ:
        return UNEXPECTED_OPCODE
    piece = piece_at(work + SQ_PIECES)[0]
    if mr_at(piece["row"])[0]["state"] != MR_VALID:
        return LOCAL_FAULT
    store_64(piece["address"], load_64_be(header + ATOMIC_VALUE))
    entry["awaits"] -= 1
    mine["orq_head"] += 1
    _next_msn(qp, QN_ATOMIC_RESPONSE)
    return 0
