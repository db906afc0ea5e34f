"""Send work requests: checked in full when they are posted, so that what is in the queue can be
sent. Its memory is held from then until its completion is taken (`completions`).
"""

import errno
from typing import Final

from ppe.cycle.rnic.iwarp.placement import work_at
from ppe.cycle.rnic.iwarp.records import RTS, SQ_PIECES, qp_at, sq_entry_at
from ppe.cycle.rnic.iwarp.segments import wants_response
from ppe.cycle.rnic.receive import EINVAL, ENOMEM, check_pieces
from ppe.cycle.rnic.records import WR_SGES, piece_at, sge_at, wr_at
from shm.jit import nopython
from shm.memory import copy_bytes
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    SEND_FLAGS,
    SEND_INLINE,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_BIND_MW,
    WR_IMMEDIATE,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_IMM,
    WR_SEND_WITH_INV,
)

ENOTCONN: Final = -errno.ENOTCONN
EOPNOTSUPP: Final = -errno.EOPNOTSUPP
ATOMIC_SIZE: Final = 8
ALL_BITS: Final = -1
IMMEDIATE_32_SHIFT: Final = 32  # 32 bits travel in the first four bytes of the eight


@nopython
def immediate_64(immediate: int) -> int:
    """32 bits of immediate data as the eight bytes of RFC 7306: first, and zeros behind them.

    The RFC leaves that open; adapters that put 32 bits there put them so.
    """
    return (immediate & 0x7FFFFFFF) << IMMEDIATE_32_SHIFT | -(immediate >> 31 & 1) << 63


@nopython
def immediate_32(immediate: int) -> int:
    """The end of `immediate_64`: the 32 bits of a completion's `imm`."""
    return immediate >> IMMEDIATE_32_SHIFT & 0xFFFFFFFF


@nopython
def post_send(qp: int, wr: int) -> int:
    """Take a work request: 0, or why not, and nothing happened.

    -ENOTCONN: the queue pair is closing or over; -ENOMEM: the queue is full; -EOPNOTSUPP: iWARP,
    or this peer, does not have it; -EINVAL, -EACCES, -EFAULT, -EMSGSIZE: it cannot be.
    """
    mine = qp_at(qp)[0]
    if mine["state"] != RTS:
        return ENOTCONN
    if mine["sq_posted"] - mine["sq_retired"] == mine["sq_depth"]:
        return ENOMEM
    refused = _check(qp, wr)
    if refused != 0:
        return refused
    work = work_at(qp, mine["sq_posted"])
    length = _take_data(qp, wr, work)
    if length < 0:
        return length
    _fill(qp, wr, work, length)
    mine["sq_posted"] += 1
    return 0


@nopython
def _check(qp: int, wr: int) -> int:
    """What can be said of a work request without looking at its memory."""
    mine, asked = qp_at(qp)[0], wr_at(wr)[0]
    opcode, flags = asked["opcode"], asked["flags"]
    if flags & ~SEND_FLAGS:
        return EINVAL
    refused = _check_opcode(qp, opcode)
    if refused != 0:
        return refused
    if asked["sge_count"] < 0 or asked["sge_count"] > mine["sges_max"]:
        return EINVAL
    has_data = asked["sge_count"] > 0 or flags & SEND_INLINE
    if opcode in (WR_LOCAL_INV, WR_BIND_MW, WR_IMMEDIATE) and has_data:
        return EINVAL
    if opcode in (WR_SEND_WITH_INV, WR_LOCAL_INV) and asked["invalidate_rkey"] == 0:
        return EINVAL
    # One tagged buffer takes a response.
    one_sink = asked["sge_count"] <= 1 and not flags & SEND_INLINE
    if wants_response(opcode) and (mine["ord"] == 0 or not one_sink):
        return EINVAL
    return 0


@nopython
def _check_opcode(qp: int, opcode: int) -> int:
    if opcode == WR_SEND_WITH_IMM:
        return EOPNOTSUPP  # It would use up two receives of the peer.
    if opcode in (WR_SEND, WR_SEND_WITH_INV, WR_RDMA_WRITE, WR_RDMA_READ):
        return 0
    if opcode in (WR_LOCAL_INV, WR_BIND_MW):
        return 0
    if opcode in (WR_RDMA_WRITE_WITH_IMM, WR_IMMEDIATE) or wants_response(opcode):
        return 0 if qp_at(qp)[0]["extensions"] else EOPNOTSUPP
    return EINVAL


@nopython
def _take_data(qp: int, wr: int, work: int) -> int:
    """Hold a work request's memory, or copy its inline data: bytes of it, or -errno."""
    mine, asked = qp_at(qp)[0], wr_at(wr)[0]
    entry, pieces = sq_entry_at(work)[0], work + SQ_PIECES
    if asked["flags"] & SEND_INLINE:
        size = asked["inline_length"]
        if size < 0 or size > mine["inline_size"] or asked["sge_count"] > 0:
            return EINVAL
        slot = mine["sq_posted"] & (mine["sq_capacity"] - 1)
        piece = piece_at(pieces)[0]
        piece["address"] = mine["sq_inlines"] + mine["inline_size"] * slot
        piece["length"], piece["row"] = size, 0
        copy_bytes(piece["address"], asked["inline_address"], size)
        entry["piece_count"] = 1
        return int(size)
    is_sink = wants_response(asked["opcode"])
    access = ACCESS_LOCAL_WRITE if is_sink else 0
    is_word = asked["sge_count"] == 1 and sge_at(wr + WR_SGES)[0]["length"] == ATOMIC_SIZE
    if is_sink and asked["opcode"] != WR_RDMA_READ and not is_word:
        return EINVAL
    length = check_pieces(
        mine["table"], mine["pd"], wr + WR_SGES, asked["sge_count"], access, pieces
    )
    entry["piece_count"] = asked["sge_count"] if length >= 0 else 0
    return length


@nopython
def _fill(qp: int, wr: int, work: int, length: int) -> None:
    """Copy a checked work request into the queue."""
    asked, entry = wr_at(wr)[0], sq_entry_at(work)[0]
    entry["opcode"], entry["flags"] = asked["opcode"], asked["flags"]
    entry["token"] = asked["token"]
    entry["length"] = length
    entry["remote_addr"], entry["rkey"] = asked["remote_addr"], asked["rkey"]
    entry["imm"], entry["invalidate_rkey"] = asked["imm"], asked["invalidate_rkey"]
    if asked["opcode"] == WR_RDMA_WRITE_WITH_IMM:
        entry["imm"] = immediate_64(asked["imm"])
    entry["compare_add"], entry["swap"] = asked["compare_add"], asked["swap"]
    if asked["masked"]:
        entry["compare_add_mask"], entry["swap_mask"] = (
            asked["compare_add_mask"],
            asked["swap_mask"],
        )
    else:  # Whole words: one carry for all of a sum, every bit compared and swapped.
        is_sum = asked["opcode"] == WR_ATOMIC_FETCH_AND_ADD
        entry["compare_add_mask"] = 0 if is_sum else ALL_BITS
        entry["swap_mask"] = ALL_BITS
    entry["awaits"], entry["step"], entry["received"] = 1, 0, 0
    entry["sink_lkey"], entry["sink_to"] = 0, 0
    if asked["sge_count"] > 0:
        sge = sge_at(wr + WR_SGES)[0]
        entry["sink_lkey"], entry["sink_to"] = sge["lkey"], sge["addr"]
    if asked["opcode"] == WR_BIND_MW:
        entry["rkey"] = asked["bind_window"]
        entry["bind_lkey"], entry["bind_addr"] = asked["bind_lkey"], asked["bind_addr"]
        entry["bind_length"], entry["bind_access"] = asked["bind_length"], asked["bind_access"]
