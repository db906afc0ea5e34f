"""Verbs for compiled code: post_send, post_recv, poll_cq, with the addresses of the host's records.

Posting never blocks and rings no bell: call `host.native.flush` once after a batch. A post answers
1, 0 (the queue, its completion queue or the ring is full: poll first) or -errno for what could
never be done. Waiting is `host.native.wait_n`.
"""

import errno
from typing import Final

from host import native
from host.records import context_at
from host.verbs.records import (
    CLOSING,
    INIT,
    RESET,
    SGE_SIZE,
    cq_at,
    device_at,
    qp_at,
    rq_at,
    sge_at,
    wc_at,
)
from shm.channel import H_PRODUCER, UNSIGNALLED, fill, prepare, submit
from shm.jit import nopython
from shm.memory import copy_bytes, load_64, store_64
from shm.operations import CANCELLED, EVENT_DISCONNECTED, INDEX_MASK, RDMA_FIRST, RDMA_RECEIVE
from shm.records import cqe_at, wqe_at
from shm.ring import claim
from shm.verbs import (
    COUNT_SHIFT,
    FLAGS_SHIFT,
    MASK_32,
    SGES_MAX,
    SGES_PER_SLOT,
    SQ_DONE_SHIFT,
    WC_FLAGS_MASK,
    WC_OPCODE_MASK,
    WC_OPCODE_SHIFT,
    WC_STATUS_MASK,
    WC_VENDOR_SHIFT,
    ring_opcode,
    slots_for,
)
from shm.verbs_numbers import (
    SEND_INLINE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WC_LOC_PROT_ERR,
    WC_LOC_QP_OP_ERR,
    WC_RECV,
    WC_WITH_IMM,
    WC_WR_FLUSH_ERR,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_ATOMIC_SWAP,
    WR_IMMEDIATE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND_WITH_IMM,
)

EINVAL: Final = -errno.EINVAL
EFAULT: Final = -errno.EFAULT
EOPNOTSUPP: Final = -errno.EOPNOTSUPP
MORE_WORDS: Final = 8  # bytes before the first word of a WQE's further slots
# What `next_wc` found.
NOTHING: Final = 0
COMPLETION: Final = 1
EVENT: Final = 2  # an asynchronous event: byte_len is not one; vendor_err holds its arg0


@nopython
def _has_room(qp: int) -> bool:
    """Whether the send queue and its completion queue take one more."""
    mine = qp_at(qp)[0]
    cq = cq_at(mine["send_cq"])[0]
    is_full = mine["sq_posted"] - mine["sq_done"] >= mine["sq_depth"]
    return not is_full and cq["posted"] - cq["done"] < cq["depth"]


@nopython
def _refusal(qp: int, opcode: int, send_flags: int) -> int:
    """0, or why this work request could never be done: -EINVAL, -EOPNOTSUPP."""
    mine = qp_at(qp)[0]
    if send_flags & SEND_INLINE != 0:
        return EOPNOTSUPP  # A slot has no room for data; ours is in shared memory anyway.
    if mine["state"] in (RESET, INIT, CLOSING):
        return EINVAL
    needs_extensions = opcode in (
        WR_RDMA_WRITE_WITH_IMM,
        WR_SEND_WITH_IMM,
        WR_ATOMIC_CMP_AND_SWP,
        WR_ATOMIC_FETCH_AND_ADD,
        WR_ATOMIC_SWAP,
        WR_IMMEDIATE,
    )
    if needs_extensions and mine["extensions"] == 0:
        return EOPNOTSUPP
    return 0


@nopython
def _claim(qp: int, opcode: int, send_flags: int, slots: int) -> int:
    """1: there are `slots` slots for this work request; 0: there are not; -EINVAL, -EOPNOTSUPP."""
    refused = _refusal(qp, opcode, send_flags)
    if refused != 0:
        return refused
    channel = context_at(qp_at(qp)[0]["context"])[0]["channel"]
    return 1 if _has_room(qp) and prepare(channel, slots) else 0


@nopython
def _submit(qp: int, slots: int) -> int:
    """Hand the work request over, and count it. 1: it is posted."""
    mine = qp_at(qp)[0]
    submit(context_at(mine["context"])[0]["channel"], slots)
    mine["sq_posted"] += 1
    cq_at(mine["send_cq"])[0]["posted"] += 1
    return 1


@nopython
def _fill_wr(
    context: int, endpoint: int, opcode: int, flags: int, wr_id: int, sges: int, count: int
) -> int:
    """Write a work request's entries in place, after `prepare`. Return its address."""
    channel = context_at(context)[0]["channel"]
    if count > 0:
        first = sge_at(sges)[0]
        address, length, lkey = first["addr"], first["length"], first["lkey"]
    else:
        address, length, lkey = 0, 0, 0
    slot = fill(channel, opcode, flags, endpoint, wr_id, lkey, address, length)
    entry = 1
    while entry < count:
        ahead = 1 + (entry - 1) // SGES_PER_SLOT
        part = min(SGES_PER_SLOT, count - entry)
        place = claim(channel + H_PRODUCER, ahead) + MORE_WORDS
        copy_bytes(place, sges + entry * SGE_SIZE, part * SGE_SIZE)
        entry += part
    return slot


@nopython
def post_send_list(
    qp: int,
    opcode: int,
    send_flags: int,
    wr_id: int,
    sges: int,
    count: int,
    remote_addr: int,
    rkey: int,
    imm: int,
) -> int:
    """Post a work request of `count` SGEs at `sges`. `imm`: immediate data, or the STag that the
    peer (or a local invalidate) is to invalidate. 1, 0, -EINVAL, -EOPNOTSUPP.
    """
    mine = qp_at(qp)[0]
    if count < 0 or count > SGES_MAX:
        return EINVAL
    slots = slots_for(count)
    claimed = _claim(qp, opcode, send_flags, slots)
    if claimed <= 0:
        return claimed
    flags = 0 if send_flags & SEND_SIGNALED != 0 else UNSIGNALLED
    slot = _fill_wr(
        mine["context"], mine["endpoint"], ring_opcode(opcode), flags, wr_id, sges, count
    )
    entry = wqe_at(slot)[0]
    entry["arg0"] = remote_addr
    entry["arg1"] = (rkey & MASK_32) | (send_flags << FLAGS_SHIFT) | (count << COUNT_SHIFT)
    entry["arg2"] = imm
    return _submit(qp, slots)


@nopython
def post_send(
    qp: int,
    opcode: int,
    send_flags: int,
    wr_id: int,
    address: int,
    length: int,
    lkey: int,
    remote_addr: int,
    rkey: int,
    imm: int,
) -> int:
    """`post_send_list` with one SGE, or none if `length` is 0."""
    mine = qp_at(qp)[0]
    claimed = _claim(qp, opcode, send_flags, 1)
    if claimed <= 0:
        return claimed
    channel = context_at(mine["context"])[0]["channel"]
    flags = 0 if send_flags & SEND_SIGNALED != 0 else UNSIGNALLED
    slot = fill(channel, ring_opcode(opcode), flags, mine["endpoint"], wr_id, lkey, address, length)
    count = 1 if length > 0 else 0
    entry = wqe_at(slot)[0]
    entry["arg0"] = remote_addr
    entry["arg1"] = (rkey & MASK_32) | (send_flags << FLAGS_SHIFT) | (count << COUNT_SHIFT)
    entry["arg2"] = imm
    return _submit(qp, 1)


@nopython
def post_atomic(
    qp: int,
    opcode: int,
    send_flags: int,
    wr_id: int,
    address: int,
    lkey: int,
    remote_addr: int,
    rkey: int,
    compare_add: int,
    swap: int,
) -> int:
    """Post an atomic on 8 bytes; what was there comes to `address`. 1, 0, -EINVAL, -EOPNOTSUPP."""
    mine = qp_at(qp)[0]
    claimed = _claim(qp, opcode, send_flags, 2)
    if claimed <= 0:
        return claimed
    channel = context_at(mine["context"])[0]["channel"]
    flags = 0 if send_flags & SEND_SIGNALED != 0 else UNSIGNALLED
    slot = fill(channel, ring_opcode(opcode), flags, mine["endpoint"], wr_id, lkey, address, 8)
    entry = wqe_at(slot)[0]
    entry["arg0"] = remote_addr
    entry["arg1"] = (rkey & MASK_32) | (send_flags << FLAGS_SHIFT) | (1 << COUNT_SHIFT)
    more = claim(channel + H_PRODUCER, 1) + MORE_WORDS
    store_64(more, compare_add)
    store_64(more + 8, swap)
    return _submit(qp, 2)


@nopython
def post_recv_list(rq: int, wr_id: int, sges: int, count: int) -> int:
    """Post a receive of `count` SGEs to a receive queue, shared or not. 1, 0, -EINVAL."""
    mine = rq_at(rq)[0]
    if count < 0 or count > SGES_MAX or mine["endpoint"] == 0:
        return EINVAL
    if mine["posted"] - mine["done"] >= mine["depth"]:
        return 0
    if mine["cq"] != 0:
        cq = cq_at(mine["cq"])[0]
        if cq["posted"] - cq["done"] >= cq["depth"]:
            return 0
    slots = slots_for(count)
    channel = context_at(mine["context"])[0]["channel"]
    if not prepare(channel, slots):
        return 0
    slot = _fill_wr(mine["context"], mine["endpoint"], RDMA_RECEIVE, 0, wr_id, sges, count)
    wqe_at(slot)[0]["arg1"] = count << COUNT_SHIFT
    submit(channel, slots)
    mine["posted"] += 1
    if mine["cq"] != 0:
        cq_at(mine["cq"])[0]["posted"] += 1
    return 1


@nopython
def qp_of(device: int, endpoint: int) -> int:
    """Address of the QP of this endpoint, or 0."""
    place = device_at(device)[0]["qps"] + 8 * (endpoint & INDEX_MASK)
    qp = load_64(place)
    if qp != 0 and qp_at(qp)[0]["endpoint"] != endpoint:
        return 0
    return qp


@nopython
def read_wc(completion: int, wc: int) -> None:
    """A CQE as a work completion."""
    cqe, mine = cqe_at(completion)[0], wc_at(wc)[0]
    words, how = cqe["arg1"], cqe["arg2"]
    status = how & WC_STATUS_MASK
    if status == 0 and cqe["status"] != 0:
        # The engine, or the host library after the engine's death, ended it before any queue pair.
        if cqe["status"] == EFAULT:
            status = WC_LOC_PROT_ERR
        elif cqe["status"] == EINVAL or cqe["status"] == EOPNOTSUPP:
            status = WC_LOC_QP_OP_ERR
        else:
            status = WC_WR_FLUSH_ERR
    mine["wr_id"] = cqe["user_data"]
    mine["status"] = status
    mine["opcode"] = (words >> WC_OPCODE_SHIFT) & WC_OPCODE_MASK
    mine["vendor_err"] = (how >> WC_VENDOR_SHIFT) & MASK_32
    mine["byte_len"] = cqe["length"]
    # 32 bits of immediate data are the first four bytes of RFC 7306's eight.
    is_immediate = words & WC_WITH_IMM != 0
    mine["imm_data"] = cqe["arg0"] >> 32 if is_immediate else cqe["arg0"]
    mine["qp_num"] = cqe["endpoint"]
    mine["src_qp"] = 0
    mine["wc_flags"] = words & WC_FLAGS_MASK
    mine["pkey_index"] = 0
    mine["slid"] = 0
    mine["sl"] = 0
    mine["dlid_path_bits"] = 0
    if cqe["opcode"] == RDMA_RECEIVE:
        mine["opcode"] |= WC_RECV


@nopython
def note_wc(device: int, endpoint: int, is_receive: bool, words: int) -> None:
    """Give the places back in their queues that a polled completion ends."""
    qp = qp_of(device, endpoint)
    if qp == 0:
        return
    mine = qp_at(qp)[0]
    if is_receive:
        rq_at(mine["rq"])[0]["done"] += 1
        if rq_at(mine["rq"])[0]["cq"] != 0:
            cq_at(mine["recv_cq"])[0]["done"] += 1
        return
    over = ((words >> SQ_DONE_SHIFT) - mine["sq_done"]) & MASK_32
    if over > mine["sq_posted"] - mine["sq_done"]:
        over = 0
    mine["sq_done"] += over
    cq_at(mine["send_cq"])[0]["done"] += over


@nopython
def next_wc(device: int, wc: int) -> int:
    """Take the next completion of the device's channel as the WC at `wc`: COMPLETION, EVENT (an
    asynchronous event, `vendor_err` says which) or NOTHING.
    """
    context = device_at(device)[0]["context"]
    found = native.next_completion(context)
    if found == 0:
        return NOTHING
    cqe = cqe_at(found)[0]
    opcode = cqe["opcode"]
    read_wc(found, wc)
    kind = COMPLETION
    if opcode < RDMA_FIRST or opcode >= EVENT_DISCONNECTED:
        wc_at(wc)[0]["vendor_err"] = cqe["arg0"] & MASK_32
        kind = EVENT
    else:
        note_wc(device, cqe["endpoint"], opcode == RDMA_RECEIVE, cqe["arg1"])
    native.consume_completion(context)
    return kind


@nopython
def poll_cq(device: int, out: int, limit: int, size: int) -> int:
    """Take up to `limit` work completions to `out`, WC records `size` bytes apart. How many.

    Asynchronous events are passed over: who wants them uses `next_wc`.
    """
    done = 0
    while done < limit:
        kind = next_wc(device, out + done * size)
        if kind == NOTHING:
            break
        if kind == COMPLETION:
            done += 1
    return done


__all__ = ["CANCELLED", "SEND_SOLICITED", "post_recv_list", "post_send", "post_send_list"]
