"""Doors from Python into the compiled functions of the memory table, one for all of them."""

from typing import Final

from ppe.cycle.rnic import memory
from shm.jit import entry, nopython

REGISTER: Final = 0
INVALIDATE: Final = 1
INVALIDATE_FOR_PEER: Final = 2
DEREGISTER: Final = 3
REMOVE_CLIENT: Final = 4
LOCAL: Final = 5
LOCAL_ROW: Final = 6
REMOTE: Final = 7
FIND: Final = 8
HOLD: Final = 9
LET_GO: Final = 10
RENEW: Final = 11
HANDLE: Final = 12
NUMBER: Final = 13


@nopython
def _ask(what, table, a, b, c, d, e, f):
    if what == INVALIDATE:
        return memory.invalidate(table, a, b)
    if what == INVALIDATE_FOR_PEER:
        return memory.invalidate_for_peer(table, a, b, c)
    if what == DEREGISTER:
        return memory.deregister(table, a, b)
    if what == REMOVE_CLIENT:
        return memory.remove_client(table, a)
    if what == FIND:
        return memory.find(table, a)
    if what == RENEW:
        return memory.renew(table, a, b, c)
    if what == HANDLE:
        return memory.handle_of(table, a)
    return memory.number_of(table, a)


@entry("int64(int64, intp, int64, int64, int64, int64, int64, int64)")
def ask(what, table, a, b, c, d, e, f):
    if what == REGISTER:
        return memory.register(table, a, b, c, d, e, f)
    if what == LOCAL:
        return memory.local(table, a, b, c, d, e)
    if what == LOCAL_ROW:
        return memory.local_row(table, a, b, c, d, e)
    if what == REMOTE:
        return memory.remote(table, a, b, c, d, e, f)
    if what == HOLD:
        memory.hold(a)
        return 0
    if what == LET_GO:
        memory.let_go(a)
        return 0
    return _ask(what, table, a, b, c, d, e, f)
