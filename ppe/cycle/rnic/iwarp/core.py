"""The software RNIC as a service sees it, and all of it: one queue pair is a block of memory that
`QpSpec.build` makes, and these compiled functions, given its address, are the only ones it needs.

    post_send, post_recv -> 0 or -errno           work in
    take                 -> 0, a violation, ...   bytes of the stream in; see want_address
    next_span, tx_take, sent, untake              bytes of the stream out
    wc_next                                       work completions out
    close, terminate, end, has_sent_all           the end of it
"""

from ppe.cycle.rnic.iwarp.completions import close, end, wc_next
from ppe.cycle.rnic.iwarp.records import (
    CLOSING,
    CODE_MASK,
    ERROR,
    RTS,
    TERMINATE,
    TERMINATED,
    VIOLATION,
    qp_at,
)
from ppe.cycle.rnic.iwarp.rx import is_between_fpdus, take
from ppe.cycle.rnic.iwarp.segments import has_sent_all, next_span
from ppe.cycle.rnic.iwarp.spec import QpSpec
from ppe.cycle.rnic.iwarp.terminate import terminate
from ppe.cycle.rnic.iwarp.tx import sent, tx_take, untake
from ppe.cycle.rnic.iwarp.work import immediate_32, post_send
from ppe.cycle.rnic.receive import post_recv

__all__ = [
    "CLOSING",
    "CODE_MASK",
    "ERROR",
    "RTS",
    "TERMINATE",
    "TERMINATED",
    "VIOLATION",
    "QpSpec",
    "close",
    "end",
    "has_sent_all",
    "immediate_32",
    "is_between_fpdus",
    "next_span",
    "post_recv",
    "post_send",
    "qp_at",
    "sent",
    "take",
    "terminate",
    "tx_take",
    "untake",
    "wc_next",
]
