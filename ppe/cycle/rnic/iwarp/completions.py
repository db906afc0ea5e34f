"""Work completions: each accepted work request has exactly one, in the order of its queue, and what
the queue pair held for it is let go when that is taken. After `end` the rest is flushed.
"""

from ppe.cycle.rnic.iwarp.delivery import finish_receive
from ppe.cycle.rnic.iwarp.placement import work_at
from ppe.cycle.rnic.iwarp.records import (
    CLOSING,
    CODE_MASK,
    ERROR,
    IRQ_ENTRY_SIZE,
    RTS,
    SQ_PIECES,
    irq_entry_at,
    qp_at,
    sq_entry_at,
)
from ppe.cycle.rnic.iwarp.terminate import fail, oldest_unfinished
from ppe.cycle.rnic.memory import let_go
from ppe.cycle.rnic.opcodes import completion_opcode
from ppe.cycle.rnic.receive import NONE, entry_of, give_entry, release_pieces, take_buffer
from ppe.cycle.rnic.records import rq_at, rq_entry_at, wc_at
from shm.jit import nopython
from shm.verbs_numbers import (
    SEND_SIGNALED,
    WC_SUCCESS,
    WC_UNSIGNALLED,
    WC_WR_FLUSH_ERR,
    WR_BIND_MW,
)


@nopython
def wc_next(qp: int, wc: int) -> bool:
    """Write the next completion to `wc`. False: there is none now.

    One with WC_UNSIGNALLED is not for the consumer: it only gives a token back.
    """
    mine = qp_at(qp)[0]
    if mine["done_first"] == NONE and mine["ended"]:
        _flush_receive(qp)
    if mine["done_first"] != NONE:
        _complete_receive(qp, wc)
        return True
    if mine["sq_retired"] == mine["sq_posted"]:
        return False
    is_over = sq_entry_at(work_at(qp, mine["sq_retired"]))[0]["awaits"] == 0
    if not is_over and not mine["ended"]:
        return False
    _complete_work(qp, wc, is_over)
    return True


@nopython
def _code(qp: int) -> int:
    """The code of the Terminate that ended the stream, or 0."""
    mine = qp_at(qp)[0]
    return int((mine["violation"] | mine["terminated"]) & CODE_MASK)


@nopython
def _complete_receive(qp: int, wc: int) -> None:
    mine, done = qp_at(qp)[0], wc_at(wc)[0]
    index = mine["done_first"]
    entry = rq_entry_at(entry_of(mine["rq"], index))[0]
    mine["done_first"] = entry["next"]
    done["token"], done["status"] = entry["token"], entry["status"]
    done["opcode"], done["byte_len"] = entry["opcode"], entry["byte_len"]
    done["imm"], done["invalidated_rkey"] = entry["imm"], entry["invalidated_rkey"]
    done["flags"] = entry["flags"]
    done["vendor_err"] = _code(qp) if entry["status"] != WC_SUCCESS else 0
    give_entry(mine["rq"], index)


@nopython
def _flush_receive(qp: int) -> None:
    """After the end: the buffer of a message that broke off, then those of our own queue."""
    mine = qp_at(qp)[0]
    index = mine["rx_entry"]
    mine["rx_entry"] = NONE
    if index == NONE and not rq_at(mine["rq"])[0]["shared"]:
        index = take_buffer(mine["rq"])
    if index == NONE:
        return
    entry = rq_entry_at(entry_of(mine["rq"], index))[0]
    if entry["status"] == WC_SUCCESS:
        entry["status"] = WC_WR_FLUSH_ERR
    entry["byte_len"], entry["flags"], entry["invalidated_rkey"] = 0, 0, 0
    finish_receive(qp, index)


@nopython
def _complete_work(qp: int, wc: int, is_over: bool) -> None:
    mine, done = qp_at(qp)[0], wc_at(wc)[0]
    position = mine["sq_retired"]
    work = work_at(qp, position)
    entry = sq_entry_at(work)[0]
    mine["sq_retired"] += 1
    release_pieces(work + SQ_PIECES, entry["piece_count"])
    done["token"], done["opcode"] = entry["token"], completion_opcode(entry["opcode"])
    done["status"], done["byte_len"] = WC_SUCCESS, entry["length"]
    done["imm"] = entry["imm"] if entry["opcode"] == WR_BIND_MW else 0
    done["invalidated_rkey"], done["vendor_err"] = 0, 0
    done["flags"] = 0 if entry["flags"] & SEND_SIGNALED else WC_UNSIGNALLED
    if not is_over:
        done["status"] = WC_WR_FLUSH_ERR
        if position == mine["failed"]:
            done["status"] = mine["failed_status"]
        done["flags"], done["byte_len"], done["imm"] = 0, 0, 0  # A failure is always shown.
        done["vendor_err"] = _code(qp)


@nopython
def close(qp: int) -> None:
    """Take no more work; what was posted, and answers to the peer, still go out."""
    mine = qp_at(qp)[0]
    if mine["state"] == RTS:
        mine["state"] = CLOSING


@nopython
def end(qp: int, status: int) -> None:
    """The stream is gone, and nothing touches memory any more: what is not over is flushed.

    `status`, unless WC_SUCCESS, is how the oldest send work request that is not over ends, if no
    reason of its own is known.
    """
    mine = qp_at(qp)[0]
    if mine["ended"]:
        return
    mine["ended"], mine["state"], mine["want_length"] = 1, ERROR, 0
    let_go(mine["rx_row"])
    mine["rx_row"] = 0
    while mine["irq_head"] < mine["irq_tail"]:
        slot = mine["irq_head"] & (mine["irq_capacity"] - 1)
        let_go(irq_entry_at(mine["irq"] + IRQ_ENTRY_SIZE * slot)[0]["row"])
        mine["irq_head"] += 1
    mine["irq_next"] = mine["irq_head"]
    mine["tx_sent"] = mine["tx_taken"] = mine["tx_made"]
    mine["tx_sent_offset"] = mine["tx_taken_offset"] = 0
    mine["terminate_due"], mine["rtr_due"] = 0, 0
    if status != WC_SUCCESS:
        fail(qp, oldest_unfinished(qp), status)
