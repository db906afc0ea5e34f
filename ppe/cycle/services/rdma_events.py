"""From a work-queue entry to a WR, and from a WC to its completion (`shm.verbs` has the words)."""

from typing import Final

from ppe.cycle.accounts import E_COMPLETIONS, add
from ppe.cycle.endpoints import endpoint_id, endpoint_of, stats_of
from ppe.cycle.operations import (
    channel_row_of,
    finish,
    free_operation,
    mark_dirty,
    operation_of,
)
from ppe.cycle.records import RINGS, WQE_SIZE, endpoint_at, engine_at, operation_at, row_at
from ppe.cycle.rnic.records import SGE_SIZE, WR_SGES, sge_at, wc_at, wr_at
from ppe.cycle.services.rdma_records import held_at, rnic_at
from shm.channel import SOLICITED, UNSIGNALLED, notify
from shm.jit import nopython
from shm.memory import copy_bytes, load_64
from shm.operations import EVENT_RDMA, RDMA_RECEIVE
from shm.records import wqe_at
from shm.verbs import (
    COUNT_SHIFT,
    FLAGS_SHIFT,
    MASK_32,
    SGES_MAX,
    SGES_PER_SLOT,
    SQ_DONE_SHIFT,
    WC_FLAGS_MASK,
    WC_MAY_BE_SOLICITED,
    WC_OPCODE_SHIFT,
    WC_VENDOR_SHIFT,
    errno_of,
    slots_for,
    wr_opcode_of,
)
from shm.verbs_numbers import (
    SEND_SIGNALED,
    WC_RECV,
    WC_SOLICITED,
    WC_UNSIGNALLED,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_ATOMIC_SWAP,
    WR_BIND_MW,
    WR_IMMEDIATE,
)

MORE_WORDS: Final = 8  # bytes before the first word of a WQE's further slots
SEND_FLAGS_MASK: Final = 0xFFFF
COUNT_MASK: Final = 0xFF


@nopython
def sges_of(wqe: int) -> int:
    """How many scatter/gather entries a WQE names."""
    return int((wqe_at(wqe)[0]["arg1"] >> COUNT_SHIFT) & COUNT_MASK)


@nopython
def has_its_slots(wqe: int, slots: int) -> bool:
    """Whether a work request came with the slots that its entries need."""
    opcode = wr_opcode_of(wqe_at(wqe)[0]["opcode"])
    if opcode in (WR_ATOMIC_CMP_AND_SWP, WR_ATOMIC_FETCH_AND_ADD, WR_ATOMIC_SWAP, WR_BIND_MW):
        return slots == 2
    count = sges_of(wqe)
    return count <= SGES_MAX and slots == slots_for(count)


@nopython
def fill_wr(wr: int, wqe: int, token: int) -> None:
    """The WQE, whose slots were checked, as a WR."""
    work, entry = wr_at(wr)[0], wqe_at(wqe)[0]
    opcode = wr_opcode_of(entry["opcode"])
    words = entry["arg1"]
    signalled = 0 if entry["flags"] & UNSIGNALLED != 0 else SEND_SIGNALED
    flags = (words >> FLAGS_SHIFT) & SEND_FLAGS_MASK & ~SEND_SIGNALED
    work["opcode"] = opcode
    work["flags"] = flags | signalled
    work["token"] = token
    work["remote_addr"] = entry["arg0"]
    work["rkey"] = words & MASK_32
    work["imm"] = entry["arg0"] if opcode == WR_IMMEDIATE else entry["arg2"]
    work["invalidate_rkey"] = entry["arg2"]
    work["masked"] = 0
    work["inline_address"] = 0
    work["inline_length"] = 0
    _fill_sges(wr, wqe)
    more = wqe + WQE_SIZE + MORE_WORDS
    work["compare_add"] = load_64(more)
    work["swap"] = load_64(more + 8)
    if opcode == WR_BIND_MW:
        work["bind_window"] = words & MASK_32
        work["bind_lkey"] = entry["region"]
        work["bind_addr"] = entry["offset"]
        work["bind_length"] = load_64(more)
        work["bind_access"] = load_64(more + 8)
        work["sge_count"] = 0


@nopython
def _fill_sges(wr: int, wqe: int) -> None:
    """The gather list of a WQE."""
    work, entry = wr_at(wr)[0], wqe_at(wqe)[0]
    count = min(sges_of(wqe), SGES_MAX)
    work["sge_count"] = count
    first = sge_at(wr + WR_SGES)[0]
    first["addr"] = entry["offset"]
    first["length"] = entry["length"]
    first["lkey"] = entry["region"]
    done = 1
    while done < count:
        slot = 1 + (done - 1) // SGES_PER_SLOT
        part = min(SGES_PER_SLOT, count - done)
        place = wqe + slot * WQE_SIZE + MORE_WORDS
        copy_bytes(wr + WR_SGES + done * SGE_SIZE, place, part * SGE_SIZE)
        done += part


@nopython
def finish_wc(engine: int, index: int) -> None:
    """Complete the operation that the engine's WC names; quietly if it was not signalled."""
    wc = wc_at(rnic_at(engine_at(engine)[0]["rnic"])[0]["wc"])[0]
    operation = wc["token"]
    mine = operation_at(operation_of(engine, operation))[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    held = held_at(endpoint["qp"])[0]
    flags, opcode = wc["flags"], wc["opcode"]
    if opcode & WC_RECV == 0:
        held["sq_done"] += 1
    status = errno_of(wc["status"])
    is_silent = status == 0 and flags & WC_UNSIGNALLED != 0
    how = UNSIGNALLED if is_silent else 0
    if mine["flags"] & UNSIGNALLED != 0 and status != 0:
        how = UNSIGNALLED  # It failed: it is shown, but nobody counted on a completion of it.
    words = flags & WC_FLAGS_MASK & ~WC_UNSIGNALLED
    add(stats_of(engine, index) + E_COMPLETIONS, 1)
    is_event = flags & (WC_SOLICITED | WC_MAY_BE_SOLICITED) != 0 or status != 0
    solicited = SOLICITED if is_event else 0
    finish(
        engine,
        endpoint["channel"],
        mine["opcode"],
        how | solicited,
        endpoint_id(engine, index),
        mine["user_data"],
        mine["ticket"],
        status,
        wc["byte_len"],
        wc["invalidated_rkey"] if wc["invalidated_rkey"] != 0 else wc["imm"],
        words | (opcode << WC_OPCODE_SHIFT) | ((held["sq_done"] & MASK_32) << SQ_DONE_SHIFT),
        wc["status"] | (wc["vendor_err"] << WC_VENDOR_SHIFT),
    )
    free_operation(engine, operation)


@nopython
def finish_now(engine: int, channel: int, wqe: int, index: int, wc_status: int) -> int:
    """Complete a work request that no queue takes. Always 1: work was done."""
    entry = wqe_at(wqe)[0]
    words = 0
    qp = endpoint_at(endpoint_of(engine, index))[0]["qp"]
    if qp != 0 and entry["opcode"] != RDMA_RECEIVE:
        held_at(qp)[0]["sq_done"] += 1
        words = (held_at(qp)[0]["sq_done"] & MASK_32) << SQ_DONE_SHIFT
    finish(
        engine,
        channel,
        entry["opcode"],
        (entry["flags"] & UNSIGNALLED) | SOLICITED,
        entry["endpoint"],
        entry["user_data"],
        entry["ticket"],
        errno_of(wc_status),
        0,
        0,
        words,
        wc_status,
    )
    return 1


@nopython
def tell_event(engine: int, index: int, event: int) -> None:
    """An asynchronous event of a queue pair, once; without room nobody is told."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    row = channel_row_of(engine, endpoint["channel"])
    if row_at(row)[0]["dead"] != 0:
        return
    name = endpoint_id(engine, index)
    if notify(row + RINGS, EVENT_RDMA, name, endpoint["user_data"], 0, event):
        mark_dirty(engine, endpoint["channel"])
