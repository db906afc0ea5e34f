"""The software RNIC as the RDMA service calls it: `ppe.cycle.rnic.iwarp.core`, and what the service
wants to know of a queue pair and of its receives, by one name each.
"""

from typing import Final

from ppe.cycle.rnic.iwarp.core import (
    ERROR,
    TERMINATE,
    end,
    has_sent_all,
    is_between_fpdus,
    next_span,
    post_recv,
    post_send,
    qp_at,
    sent,
    take,
    tx_take,
    untake,
    wc_next,
)
from ppe.cycle.rnic.iwarp.records import SOURCE_NONE
from ppe.cycle.rnic.receive import NONE, entry_of, give_entry, take_buffer
from ppe.cycle.rnic.records import rq_at, rq_entry_at
from shm.jit import nopython

__all__ = [
    "end",
    "has_sent_all",
    "is_between_fpdus",
    "next_span",
    "post_recv",
    "post_send",
    "sent",
    "take",
    "tx_take",
    "untake",
    "wc_next",
]
NO_MESSAGE: Final = -1


@nopython
def want_address(qp: int) -> int:
    """Where the next bytes of the stream belong."""
    return int(qp_at(qp)[0]["want_address"])


@nopython
def want_length(qp: int) -> int:
    """How many of them; 0: not known yet."""
    return int(qp_at(qp)[0]["want_length"])


@nopython
def large_segments(qp: int) -> int:
    """How many large segments have begun to come so far."""
    return int(qp_at(qp)[0]["rx_large"])


@nopython
def has_few_to_send(qp: int, limit: int) -> bool:
    """Whether it has messages to send, all of our own, all of them whole, and below a limit."""
    mine = qp_at(qp)[0]
    if mine["tx_made"] != mine["tx_sent"] or mine["irq_next"] != mine["irq_tail"]:
        return False
    if mine["tx_bytes"] != 0 and mine["tx_source"] != SOURCE_NONE:
        return False
    return bool(0 < mine["sq_posted"] - mine["sq_next"] < limit)


@nopython
def span_address(qp: int) -> int:
    """Where the span lies that `next_span` found."""
    return int(qp_at(qp)[0]["span_address"])


@nopython
def state_of(qp: int) -> int:
    """The provider's state."""
    return int(qp_at(qp)[0]["state"])


@nopython
def is_over(qp: int) -> bool:
    """Whether a Terminate ended it, of either side."""
    state = qp_at(qp)[0]["state"]
    return bool(state in (TERMINATE, ERROR))


@nopython
def is_between_messages(qp: int) -> bool:
    """Whether the stream may end here without cutting a message."""
    mine = qp_at(qp)[0]
    is_whole = mine["rx_send"] == NO_MESSAGE and mine["rx_tagged"] == NO_MESSAGE
    return bool(is_whole and is_between_fpdus(qp))


@nopython
def terminate_came(qp: int) -> int:
    """The peer's Terminate: 0 for none, else its code below a bit that says that there is one."""
    return int(qp_at(qp)[0]["terminated"])


@nopython
def terminate_sent(qp: int) -> int:
    """Ours, likewise."""
    return int(qp_at(qp)[0]["violation"])


@nopython
def rq_of(qp: int) -> int:
    """Address of its receive queue."""
    return int(qp_at(qp)[0]["rq"])


@nopython
def number_of(qp: int) -> int:
    """Its number, by which windows know it."""
    return int(qp_at(qp)[0]["number"])


@nopython
def move_to_domain(qp: int, domain: int) -> None:
    """Have it and its receive queue, to which nothing is posted, use the memory of a domain."""
    mine = qp_at(qp)[0]
    mine["pd"] = domain
    rq_at(mine["rq"])[0]["pd"] = domain


@nopython
def share_rq(qp: int, rq: int) -> None:
    """Have a queue pair that has not begun take its receives from a shared queue."""
    qp_at(qp)[0]["rq"] = rq


@nopython
def rq_withdraw(rq: int) -> int:
    """Take the oldest receive that no message took off its queue: its token, or -1."""
    if rq_at(rq)[0]["posted"] == 0:
        return NONE
    index = take_buffer(rq)
    token = rq_entry_at(entry_of(rq, index))[0]["token"]
    give_entry(rq, index)
    return int(token)


@nopython
def limit_reached(rq: int) -> bool:
    """Whether a shared queue fell below its limit since the last look; says so once."""
    mine = rq_at(rq)[0]
    if mine["limit_reached"] == 0:
        return False
    mine["limit_reached"] = 0
    return True


@nopython
def set_limit(rq: int, limit: int) -> None:
    """Have `limit_reached` say when fewer receives than that are left."""
    rq_at(rq)[0]["limit"] = limit
