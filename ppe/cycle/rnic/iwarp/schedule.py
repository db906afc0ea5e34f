"""Whose message comes next: answers to the peer take turns with work of our own, work keeps its
order, its fences and what the peer takes at once, and an FPDU is made only when there is room.
"""

from ppe.cycle.rnic.iwarp.placement import work_at
from ppe.cycle.rnic.iwarp.records import (
    CLOSING,
    RTS,
    SOURCE_NONE,
    SOURCE_RESPONSE,
    SOURCE_WORK,
    SQ_PIECES,
    TERMINATE,
    qp_at,
    sq_entry_at,
)
from ppe.cycle.rnic.iwarp.segments import (
    make_response,
    make_rtr,
    make_terminate,
    make_work,
    wants_response,
)
from ppe.cycle.rnic.iwarp.terminate import fail, terminate
from ppe.cycle.rnic.iwarp.tx import has_room, span
from ppe.cycle.rnic.memory import invalidate
from ppe.cycle.rnic.records import MR_VALID, PIECE_SIZE, mr_at, piece_at
from ppe.cycle.rnic.windows import bind
from shm.jit import nopython
from shm.verbs_numbers import (
    SEND_FENCE,
    WC_LOC_PROT_ERR,
    WC_MW_BIND_ERR,
    WR_BIND_MW,
    WR_LOCAL_INV,
)


@nopython
def next_span(qp: int) -> int:
    """Length of the next run of bytes to send, its address in `span_address`; 0: there is none."""
    mine = qp_at(qp)[0]
    if mine["tx_taken"] == mine["tx_made"] and not _make(qp):
        return 0
    return span(qp)


@nopython
def has_sent_all(qp: int) -> bool:
    """Whether nothing is left to send, so that a stream that is to end may be closed."""
    mine = qp_at(qp)[0]
    if mine["tx_sent"] != mine["tx_made"]:
        return False
    if mine["state"] == TERMINATE:
        return bool(not mine["terminate_due"])
    return bool(mine["sq_next"] == mine["sq_posted"] and mine["irq_next"] == mine["irq_tail"])


@nopython
def _make(qp: int) -> bool:
    """Make the next FPDU, if there is something to say and may be said."""
    mine = qp_at(qp)[0]
    if not has_room(qp):
        return False
    if mine["state"] == RTS or mine["state"] == CLOSING:
        if not mine["started"]:
            return False  # RFC 5044 §7.1.2: the passive side waits for the active side's first.
        if mine["rtr_due"]:
            make_rtr(qp)
            return True
        if mine["tx_source"] == SOURCE_NONE:
            _choose(qp)
        if mine["tx_source"] == SOURCE_RESPONSE:
            return make_response(qp)
        if mine["tx_source"] == SOURCE_WORK:
            return make_work(qp)
    if mine["state"] == TERMINATE and mine["terminate_due"]:
        return make_terminate(qp)
    return False


@nopython
def _choose(qp: int) -> None:
    """Say whose message comes next: whoever did not have the last turn, if it has one."""
    mine = qp_at(qp)[0]
    has_response = mine["irq_next"] < mine["irq_tail"]
    has_work = _has_work(qp)
    if mine["state"] == TERMINATE:
        return
    if has_response and (not has_work or mine["tx_turn"] != SOURCE_RESPONSE):
        mine["tx_source"] = SOURCE_RESPONSE
    elif has_work:
        mine["tx_source"] = SOURCE_WORK
    mine["tx_turn"] = mine["tx_source"]
    mine["tx_bytes"], mine["tx_piece"], mine["tx_piece_at"] = 0, 0, 0


@nopython
def _has_work(qp: int) -> bool:
    """Whether a work request can be sent now. Those that need no network are done on the way."""
    mine = qp_at(qp)[0]
    while mine["sq_next"] < mine["sq_posted"]:
        work = work_at(qp, mine["sq_next"])
        entry = sq_entry_at(work)[0]
        outstanding = mine["orq_tail"] - mine["orq_head"]
        if entry["flags"] & SEND_FENCE and outstanding > 0:
            return False
        opcode = entry["opcode"]
        if opcode in (WR_LOCAL_INV, WR_BIND_MW):
            if not _do_locally(qp, work):
                return False
            continue
        if not _is_still_registered(work):
            fail(qp, mine["sq_next"], WC_LOC_PROT_ERR)
            terminate(qp, 0, 0, 0)
            return False
        return bool(not wants_response(opcode) or outstanding < mine["ord"])
    return False


@nopython
def _is_still_registered(work: int) -> bool:
    """Whether no memory of a work request was invalidated since it was posted."""
    for which in range(sq_entry_at(work)[0]["piece_count"]):
        row = piece_at(work + SQ_PIECES + PIECE_SIZE * which)[0]["row"]
        if row != 0 and mr_at(row)[0]["state"] != MR_VALID:
            return False
    return True


@nopython
def _do_locally(qp: int, work: int) -> bool:
    """Invalidate an STag or bind a window, in its turn. False: it failed, and the stream ends."""
    mine, entry = qp_at(qp)[0], sq_entry_at(work)[0]
    if entry["opcode"] == WR_LOCAL_INV:
        outcome = invalidate(mine["table"], entry["invalidate_rkey"], mine["pd"])
    else:
        outcome = bind(
            mine["table"],
            mine["pd"],
            mine["number"],
            entry["rkey"],
            entry["bind_lkey"],
            entry["bind_addr"],
            entry["bind_length"],
            entry["bind_access"],
        )
        entry["imm"] = outcome
    if outcome < 0:
        fail(qp, mine["sq_next"], WC_MW_BIND_ERR)
        terminate(qp, 0, 0, 0)
        return False
    entry["awaits"] = 0
    mine["sq_next"] += 1
    return True
