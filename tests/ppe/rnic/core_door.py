"""One door from Python into the compiled core, as a service's callback is: the protocol is compiled
once for all tests.
"""

from typing import Final

from ppe.cycle.rnic import memory, windows
from ppe.cycle.rnic.iwarp import core
from shm.jit import entry, nopython

POST_SEND: Final = 0
POST_RECV: Final = 1
TAKE: Final = 2
NEXT_SPAN: Final = 3
TX_TAKE: Final = 4
SENT: Final = 5
UNTAKE: Final = 6
WC_NEXT: Final = 7
TERMINATE: Final = 8
END: Final = 9
CLOSE: Final = 10
HAS_SENT_ALL: Final = 11
IS_BETWEEN: Final = 12
REGISTER: Final = 20
INVALIDATE: Final = 21
DEREGISTER: Final = 22
ALLOCATE_WINDOW: Final = 23
FIND: Final = 24


@nopython
def _ask_memory(what, table, a, b, c, d, e, f):
    if what == REGISTER:
        return memory.register(table, a, b, c, d, e, f)
    if what == INVALIDATE:
        return memory.invalidate(table, a, b)
    if what == DEREGISTER:
        return memory.deregister(table, a, b)
    if what == ALLOCATE_WINDOW:
        return windows.allocate(table, a, b)
    return memory.find(table, a)


@nopython
def _ask_ending(what, qp, a, b, c):
    if what == TERMINATE:
        core.terminate(qp, a, b, c)
        return 0
    if what == END:
        core.end(qp, a)
        return 0
    if what == CLOSE:
        core.close(qp)
        return 0
    if what == HAS_SENT_ALL:
        return int(core.has_sent_all(qp))
    return int(core.is_between_fpdus(qp))


@entry("int64(int64, intp, int64, int64, int64, int64, int64, int64)")
def ask(what, qp, a, b, c, d, e, f):
    """Ask `what` of a queue pair (POST_RECV: of a receive queue; memory: of its table)."""
    if what == POST_SEND:
        return core.post_send(qp, a)
    if what == POST_RECV:
        return core.post_recv(qp, a)
    if what == TAKE:
        return core.take(qp, a, b)
    if what == NEXT_SPAN:
        return core.next_span(qp)
    if what == TX_TAKE:
        core.tx_take(qp, a)
        return 0
    if what == SENT:
        core.sent(qp, a)
        return 0
    if what == UNTAKE:
        core.untake(qp)
        return 0
    if what == WC_NEXT:
        return int(core.wc_next(qp, a))
    if what >= REGISTER:
        return _ask_memory(what, qp, a, b, c, d, e, f)
    return _ask_ending(what, qp, a, b, c)
