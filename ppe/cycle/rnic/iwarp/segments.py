"""Messages to DDP segments (RFC 5041 §5, RFC 5040 §4): what the next FPDU of a message says, for
answers to the peer and for work of our own. Whose message it is, `schedule` has said.
"""

from typing import Final

from ppe.cycle.rnic.iwarp.placement import RTR_POSITION, WORD, work_at
from ppe.cycle.rnic.iwarp.records import (
    IRQ_ENTRY_SIZE,
    RELEASES_NOTHING,
    RELEASES_RESPONSE,
    RELEASES_WORK,
    SMALL,
    SOURCE_NONE,
    SQ_PIECES,
    TX_MSN,
    TX_PIECE_SIZE,
    TX_PIECES,
    irq_entry_at,
    qp_at,
    sq_entry_at,
)
from ppe.cycle.rnic.iwarp.tx import commit, entry_at, room_at, tx_piece_at
from ppe.cycle.rnic.iwarp.wire import (
    ATOMIC_COMPARE,
    ATOMIC_COMPARE_MASK,
    ATOMIC_DATA,
    ATOMIC_MASK,
    ATOMIC_OPCODE,
    ATOMIC_REQUEST_ID,
    ATOMIC_REQUEST_SIZE,
    ATOMIC_RESPONSE_ID,
    ATOMIC_RESPONSE_SIZE,
    ATOMIC_STAG,
    ATOMIC_TO,
    ATOMIC_VALUE,
    CMP_SWAP,
    DDP_CONTROL,
    DDP_VERSION,
    FETCH_ADD,
    IMMEDIATE_DATA,
    IMMEDIATE_SIZE,
    LAST,
    MO,
    MSN,
    OP_ATOMIC_REQUEST,
    OP_ATOMIC_RESPONSE,
    OP_IMMEDIATE,
    OP_READ_REQUEST,
    OP_READ_RESPONSE,
    OP_SEND,
    OP_TERMINATE,
    OP_WRITE,
    QN,
    QN_ATOMIC_RESPONSE,
    QN_REQUEST,
    QN_SEND,
    QN_TERMINATE,
    RDMAP_CONTROL,
    RDMAP_VERSION,
    RDMAP_VERSION_SHIFT,
    READ_REQUEST_SIZE,
    READ_SIZE,
    RSVD_ULP,
    SINK_STAG,
    SINK_TO,
    SOURCE_STAG,
    SOURCE_TO,
    STAG,
    SWAP,
    TAGGED,
    TAGGED_END,
    TAGGED_SIZE,
    TO,
    UNTAGGED_END,
    UNTAGGED_SIZE,
)
from ppe.cycle.rnic.records import PIECE_SIZE, piece_at
from shm.jit import nopython
from shm.memory import (
    copy_bytes,
    load_64,
    store_8,
    store_32_be,
    store_64,
    store_64_be,
)
from shm.qp_spec import RTR_READ, RTR_WRITE
from shm.verbs_numbers import (
    SEND_SOLICITED,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_ATOMIC_SWAP,
    WR_IMMEDIATE,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND_WITH_INV,
)

_WHOLE: Final = -8  # payload of all but the last segment is a multiple of eight
# A peer that must not look at it still finds a well-formed STag (RFC 6581 §9; siw sends the same).
_RTR_STAG: Final = 1


# --- headers ---------------------------------------------------------------------------------


@nopython
def _begin(qp: int, opcode: int, is_last: bool, tagged: int) -> int:
    """Address of the next FPDU's header, its control bytes written."""
    header = room_at(qp, qp_at(qp)[0]["tx_made"])
    store_8(header + DDP_CONTROL, tagged | (LAST if is_last else 0) | DDP_VERSION)
    store_8(header + RDMAP_CONTROL, RDMAP_VERSION << RDMAP_VERSION_SHIFT | opcode)
    return header


@nopython
def _begin_tagged(qp: int, opcode: int, is_last: bool, stag: int, to: int) -> int:
    header = _begin(qp, opcode, is_last, TAGGED)
    store_32_be(header + STAG, stag)
    store_64_be(header + TO, to)
    return header


@nopython
def _begin_untagged(qp: int, opcode: int, is_last: bool, queue: int, offset: int) -> int:
    """The header of a segment of the next message of a queue; its last one ends that message."""
    header = _begin(qp, opcode, is_last, 0)
    store_32_be(header + RSVD_ULP, 0)
    store_32_be(header + QN, queue)
    msn = load_64(qp + TX_MSN + 8 * queue)
    store_32_be(header + MSN, msn)
    store_32_be(header + MO, offset)
    if is_last:
        store_64(qp + TX_MSN + 8 * queue, msn + 1 & WORD)
    return header


@nopython
def wants_response(opcode: int) -> bool:
    """Whether a work request is over only when the peer answered."""
    return opcode in (WR_RDMA_READ, WR_ATOMIC_FETCH_AND_ADD, WR_ATOMIC_CMP_AND_SWP, WR_ATOMIC_SWAP)


@nopython
def make_rtr(qp: int) -> None:
    """What tells the passive side that it may send (RFC 6581 §9); no work request asked for it."""
    mine = qp_at(qp)[0]
    mine["rtr_due"] = 0
    if mine["rtr"] == RTR_WRITE:
        _begin_tagged(qp, OP_WRITE, True, _RTR_STAG, 0)
        commit(qp, TAGGED_END, 0, 0, RELEASES_NOTHING, 0)
    elif mine["rtr"] == RTR_READ:
        _make_read_request(qp, _RTR_STAG, 0, 0, _RTR_STAG, 0)
        _expect_response(qp, RTR_POSITION)
        commit(qp, UNTAGGED_END + READ_REQUEST_SIZE, 0, 0, RELEASES_NOTHING, 0)
    else:
        _begin_untagged(qp, OP_SEND, True, QN_SEND, 0)
        commit(qp, UNTAGGED_END, 0, 0, RELEASES_NOTHING, 0)


@nopython
def make_terminate(qp: int) -> bool:
    """The last thing that is said."""
    mine = qp_at(qp)[0]
    mine["terminate_due"] = 0
    header = _begin_untagged(qp, OP_TERMINATE, True, QN_TERMINATE, 0)
    copy_bytes(header + UNTAGGED_END, mine["terminate"], mine["terminate_length"])
    commit(qp, UNTAGGED_END + mine["terminate_length"], 0, 0, RELEASES_NOTHING, 0)
    return True


# --- answers to the peer -----------------------------------------------------------------------


@nopython
def make_response(qp: int) -> bool:
    """The next segment of the answer to the peer's oldest unanswered request."""
    mine = qp_at(qp)[0]
    slot = mine["irq_next"] & (mine["irq_capacity"] - 1)
    entry = irq_entry_at(mine["irq"] + IRQ_ENTRY_SIZE * slot)[0]
    if entry["is_atomic"]:
        header = _begin_untagged(qp, OP_ATOMIC_RESPONSE, True, QN_ATOMIC_RESPONSE, 0)
        store_32_be(header + ATOMIC_RESPONSE_ID, entry["request_id"])
        store_64_be(header + ATOMIC_VALUE, entry["value"])
        commit(qp, UNTAGGED_END + ATOMIC_RESPONSE_SIZE, 0, 0, RELEASES_RESPONSE, 0)
        _end_response(qp)
        return True
    done = mine["tx_bytes"]
    size = min(entry["size"] - done, mine["mulpdu"] - TAGGED_SIZE & _WHOLE)
    is_last = done + size == entry["size"]
    header = _begin_tagged(
        qp, OP_READ_RESPONSE, is_last, entry["sink_stag"], entry["sink_to"] + done
    )
    releases = RELEASES_RESPONSE if is_last else RELEASES_NOTHING
    if size <= SMALL:
        copy_bytes(header + TAGGED_END, entry["address"] + done, size)
        commit(qp, TAGGED_END + size, 0, 0, releases, 0)
    else:
        piece = tx_piece_at(entry_at(qp, mine["tx_made"]) + TX_PIECES)[0]
        piece["address"], piece["length"] = entry["address"] + done, size
        commit(qp, TAGGED_END, 1, size, releases, 0)
    mine["tx_bytes"] += size
    if is_last:
        _end_response(qp)
    return True


@nopython
def _end_response(qp: int) -> None:
    mine = qp_at(qp)[0]
    mine["irq_next"] += 1
    mine["tx_source"] = SOURCE_NONE


# --- work of our own ---------------------------------------------------------------------------


@nopython
def make_work(qp: int) -> bool:
    """The next segment of the oldest work request that is not sent."""
    mine = qp_at(qp)[0]
    entry = sq_entry_at(work_at(qp, mine["sq_next"]))[0]
    opcode = entry["opcode"]
    if opcode == WR_RDMA_READ:
        _make_read_request(
            qp,
            entry["sink_lkey"],
            entry["sink_to"],
            entry["length"],
            entry["rkey"],
            entry["remote_addr"],
        )
        _expect_response(qp, mine["sq_next"])
        _end_work(qp, UNTAGGED_END + READ_REQUEST_SIZE, 0, 0, 2)
    elif wants_response(opcode):
        _make_atomic_request(qp)
        _expect_response(qp, mine["sq_next"])
        _end_work(qp, UNTAGGED_END + ATOMIC_REQUEST_SIZE, 0, 0, 2)
    elif opcode == WR_IMMEDIATE or entry["step"] > 0:
        _make_immediate(qp)
        _end_work(qp, UNTAGGED_END + IMMEDIATE_SIZE, 0, 0, 1)
    elif opcode in (WR_RDMA_WRITE, WR_RDMA_WRITE_WITH_IMM):
        _make_write(qp)
    else:
        _make_send(qp)
    return True


@nopython
def _expect_response(qp: int, position: int) -> None:
    mine = qp_at(qp)[0]
    slot = mine["orq_tail"] & (mine["orq_capacity"] - 1)
    store_64(mine["orq"] + 8 * slot, position)
    mine["orq_tail"] += 1


@nopython
def _end_work(qp: int, header_length: int, pieces: int, payload: int, awaits: int) -> None:
    """Commit the last FPDU of a work request."""
    mine = qp_at(qp)[0]
    position = mine["sq_next"]
    sq_entry_at(work_at(qp, position))[0]["awaits"] = awaits
    commit(qp, header_length, pieces, payload, RELEASES_WORK, position)
    mine["sq_next"] += 1
    mine["tx_source"] = SOURCE_NONE


@nopython
def _make_read_request(
    qp: int, sink: int, sink_to: int, size: int, source: int, source_to: int
) -> None:
    header = _begin_untagged(qp, OP_READ_REQUEST, True, QN_REQUEST, 0)
    store_32_be(header + SINK_STAG, sink)
    store_64_be(header + SINK_TO, sink_to)
    store_32_be(header + READ_SIZE, size)
    store_32_be(header + SOURCE_STAG, source)
    store_64_be(header + SOURCE_TO, source_to)


@nopython
def _make_atomic_request(qp: int) -> None:
    mine = qp_at(qp)[0]
    entry = sq_entry_at(work_at(qp, mine["sq_next"]))[0]
    header = _begin_untagged(qp, OP_ATOMIC_REQUEST, True, QN_REQUEST, 0)
    what, data, mask = FETCH_ADD, entry["compare_add"], entry["compare_add_mask"]
    compare, compare_mask = 0, 0
    if entry["opcode"] != WR_ATOMIC_FETCH_AND_ADD:
        what, data, mask = SWAP, entry["swap"], entry["swap_mask"]
        if entry["opcode"] == WR_ATOMIC_CMP_AND_SWP:
            what = CMP_SWAP
            compare, compare_mask = entry["compare_add"], entry["compare_add_mask"]
    store_32_be(header + ATOMIC_OPCODE, what)
    store_32_be(header + ATOMIC_REQUEST_ID, mine["sq_next"] & WORD)
    store_32_be(header + ATOMIC_STAG, entry["rkey"])
    store_64_be(header + ATOMIC_TO, entry["remote_addr"])
    store_64_be(header + ATOMIC_DATA, data)
    store_64_be(header + ATOMIC_MASK, mask)
    store_64_be(header + ATOMIC_COMPARE, compare)
    store_64_be(header + ATOMIC_COMPARE_MASK, compare_mask)


@nopython
def _make_immediate(qp: int) -> None:
    entry = sq_entry_at(work_at(qp, qp_at(qp)[0]["sq_next"]))[0]
    solicited = 1 if entry["flags"] & SEND_SOLICITED else 0
    header = _begin_untagged(qp, OP_IMMEDIATE + solicited, True, QN_SEND, 0)
    store_64_be(header + IMMEDIATE_DATA, entry["imm"])


@nopython
def _make_write(qp: int) -> None:
    mine = qp_at(qp)[0]
    entry = sq_entry_at(work_at(qp, mine["sq_next"]))[0]
    done = mine["tx_bytes"]
    size = min(entry["length"] - done, mine["mulpdu"] - TAGGED_SIZE & _WHOLE)
    is_last = done + size == entry["length"]
    header = _begin_tagged(qp, OP_WRITE, is_last, entry["rkey"], entry["remote_addr"] + done)
    pieces = _add_payload(qp, header + TAGGED_END, size)
    own = TAGGED_END + (0 if pieces > 0 else size)
    _go_on(qp, own, pieces, size, is_last)


@nopython
def _make_send(qp: int) -> None:
    mine = qp_at(qp)[0]
    entry = sq_entry_at(work_at(qp, mine["sq_next"]))[0]
    done = mine["tx_bytes"]
    size = min(entry["length"] - done, mine["mulpdu"] - UNTAGGED_SIZE & _WHOLE)
    is_last = done + size == entry["length"]
    invalidates = 1 if entry["opcode"] == WR_SEND_WITH_INV else 0
    solicited = 2 if entry["flags"] & SEND_SOLICITED else 0
    opcode = OP_SEND + invalidates + solicited
    header = _begin_untagged(qp, opcode, is_last, QN_SEND, done)
    if invalidates:
        store_32_be(header + RSVD_ULP, entry["invalidate_rkey"])
    pieces = _add_payload(qp, header + UNTAGGED_END, size)
    own = UNTAGGED_END + (0 if pieces > 0 else size)
    _go_on(qp, own, pieces, size, is_last)


@nopython
def _go_on(qp: int, own: int, pieces: int, size: int, is_last: bool) -> None:
    """Commit a segment of a Send or Write; `size` bytes of payload, in the room or in pieces."""
    mine = qp_at(qp)[0]
    payload = size if pieces > 0 else 0
    entry = sq_entry_at(work_at(qp, mine["sq_next"]))[0]
    mine["tx_bytes"] += size
    if not is_last:
        commit(qp, own, pieces, payload, RELEASES_NOTHING, 0)
    elif entry["opcode"] == WR_RDMA_WRITE_WITH_IMM:
        commit(qp, own, pieces, payload, RELEASES_NOTHING, 0)
        entry["step"] = 1
    else:
        _end_work(qp, own, pieces, payload, 1)


@nopython
def _add_payload(qp: int, place: int, size: int) -> int:
    """The next `size` bytes of a work request's payload: copied to `place` if they are few, else
    named in pieces of the FPDU's entry. How many pieces.
    """
    mine = qp_at(qp)[0]
    sources = work_at(qp, mine["sq_next"]) + SQ_PIECES
    targets = entry_at(qp, mine["tx_made"]) + TX_PIECES
    count, left = 0, size
    while left > 0:
        source = piece_at(sources + PIECE_SIZE * mine["tx_piece"])[0]
        run = min(left, source["length"] - mine["tx_piece_at"])
        if run > 0:
            address = source["address"] + mine["tx_piece_at"]
            if size <= SMALL:
                copy_bytes(place, address, run)
                place += run
            else:
                target = tx_piece_at(targets + TX_PIECE_SIZE * count)[0]
                target["address"], target["length"] = address, run
                count += 1
        left -= run
        mine["tx_piece_at"] += run
        if mine["tx_piece_at"] == source["length"]:
            mine["tx_piece"] += 1
            mine["tx_piece_at"] = 0
    return count
