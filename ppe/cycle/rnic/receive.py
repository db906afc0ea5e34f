"""Receive queues, a queue pair's own or shared: buffers are posted in order, taken by the messages
that need one, and given back by their completion. A posted buffer was checked and is held.
"""

import errno
from typing import Final

import numpy as np

from ppe.cycle.rnic.memory import address_in, hold, let_go, local_row
from ppe.cycle.rnic.records import (
    PIECE_SIZE,
    RQ,
    RQ_ENTRY,
    RQ_ENTRY_PIECES,
    RQ_ENTRY_SIZE,
    SGE_SIZE,
    SGES_MAX,
    WR_SGES,
    piece_at,
    rq_at,
    rq_entry_at,
    sge_at,
    wr_at,
)
from shm.jit import nopython
from shm.verbs_numbers import ACCESS_LOCAL_WRITE, WC_RECV, WC_SUCCESS
from shm.view import window

NONE: Final = -1
DEPTH_MAX: Final = 1 << 16
EINVAL: Final = -errno.EINVAL
ENOMEM: Final = -errno.ENOMEM
EMSGSIZE: Final = -errno.EMSGSIZE
MESSAGE_MAX: Final = 0xFFFFFFFF  # what a DDP message offset of 32 bits can count


@nopython
def entry_of(rq: int, index: int) -> int:
    """Address of an entry."""
    return int(rq_at(rq)[0]["entries"] + RQ_ENTRY_SIZE * index)


@nopython
def check_pieces(table: int, pd: int, sges: int, count: int, access: int, pieces: int) -> int:
    """Turn a gather list into held PIECEs: the sum of their lengths, or -errno and nothing held.

    A length of 0 names nothing, so its key is not looked at.
    """
    total = 0
    for which in range(count):
        sge = sge_at(sges + SGE_SIZE * which)[0]
        piece = piece_at(pieces + PIECE_SIZE * which)[0]
        row = 0
        if sge["length"] > 0:
            row = local_row(table, pd, sge["lkey"], sge["addr"], sge["length"], access)
        total += sge["length"]
        if row < 0 or total > MESSAGE_MAX:
            release_pieces(pieces, which)
            return row if row < 0 else EMSGSIZE
        piece["address"] = address_in(row, sge["addr"]) if row > 0 else 0
        piece["length"] = sge["length"]
        piece["row"] = row
        hold(row)
    return total


@nopython
def release_pieces(pieces: int, count: int) -> None:
    """Let go of what `check_pieces` held."""
    for which in range(count):
        let_go(piece_at(pieces + PIECE_SIZE * which)[0]["row"])


@nopython
def post_recv(rq: int, wr: int) -> int:
    """Lend a buffer for one message: 0; -ENOMEM: the queue is full; -EINVAL, -EACCES, -EFAULT or
    -EMSGSIZE for a gather list that cannot be.
    """
    mine, asked = rq_at(rq)[0], wr_at(wr)[0]
    if asked["sge_count"] < 0 or asked["sge_count"] > mine["sges_max"]:
        return EINVAL
    index = mine["free"]
    if index == NONE:
        return ENOMEM
    address = entry_of(rq, index)
    pieces = address + RQ_ENTRY_PIECES
    length = check_pieces(
        mine["table"], mine["pd"], wr + WR_SGES, asked["sge_count"], ACCESS_LOCAL_WRITE, pieces
    )
    if length < 0:
        return length
    entry = rq_entry_at(address)[0]
    mine["free"] = entry["next"]
    entry["token"] = asked["token"]
    entry["sge_count"], entry["length"] = asked["sge_count"], length
    entry["status"], entry["opcode"] = WC_SUCCESS, WC_RECV
    entry["byte_len"], entry["imm"] = 0, 0
    entry["invalidated_rkey"], entry["flags"] = 0, 0
    entry["next"] = NONE
    if mine["posted"] == 0:
        mine["first"] = index
    else:
        rq_entry_at(entry_of(rq, mine["last"]))[0]["next"] = index
    mine["last"] = index
    mine["posted"] += 1
    return 0


@nopython
def take_buffer(rq: int) -> int:
    """Index of the oldest posted entry, now the caller's; -1 if none is posted."""
    mine = rq_at(rq)[0]
    if mine["posted"] == 0:
        return NONE
    index = mine["first"]
    mine["first"] = rq_entry_at(entry_of(rq, index))[0]["next"]
    mine["posted"] -= 1
    if mine["posted"] < mine["limit"]:
        mine["limit"], mine["limit_reached"] = 0, 1
    return int(index)


@nopython
def give_entry(rq: int, index: int) -> None:
    """The end of an entry that was taken: its memory is its owner's again."""
    mine, address = rq_at(rq)[0], entry_of(rq, index)
    entry = rq_entry_at(address)[0]
    release_pieces(address + RQ_ENTRY_PIECES, entry["sge_count"])
    entry["next"] = mine["free"]
    mine["free"] = index


# --- building --------------------------------------------------------------------------------


def rq_size(depth: int) -> int:
    """Bytes of a receive queue. Raises ValueError if it cannot be so deep."""
    if not 1 <= depth <= DEPTH_MAX:
        raise ValueError(f"a receive queue of {depth} entries is outside 1..{DEPTH_MAX}")
    return RQ.itemsize + RQ_ENTRY_SIZE * depth


def build_rq(
    address: int, depth: int, table: int, pd: int, *, sges_max: int = SGES_MAX, shared: bool = False
) -> None:
    """Make an empty receive queue in `rq_size` zeroed bytes. Raises ValueError for bad limits."""
    if not 1 <= sges_max <= SGES_MAX:
        raise ValueError(f"{sges_max} pieces of a receive buffer are outside 1..{SGES_MAX}")
    mine = rq_at(address)[0]
    mine["entries"], mine["capacity"] = address + RQ.itemsize, depth
    mine["table"], mine["pd"] = table, pd
    mine["sges_max"], mine["shared"] = sges_max, int(shared)
    mine["first"] = mine["last"] = NONE
    entries = window(int(mine["entries"]), depth, RQ_ENTRY)
    entries["next"] = np.arange(1, depth + 1)
    entries["next"][-1] = NONE
