"""Doors from Python into the compiled functions of the verbs provider."""

from typing import Final

from host import mover
from ppe.cycle.rnic.verbs import keys, poll, receive, send
from shm.jit import entry

POST_SEND: Final = 0
POST_RECV: Final = 1
WC_NEXT: Final = 2
FLUSH_NEXT: Final = 3
REQ_NOTIFY: Final = 4
PUT: Final = 5
GET: Final = 6
REMOVE: Final = 7


@entry("int64(int64, intp, int64, int64)")
def ask(what, at, a, b):
    if what == POST_SEND:
        return send.post_send(at, a)
    if what == POST_RECV:
        return receive.post_recv(at, a)
    if what == WC_NEXT:
        return poll.wc_next(at, a)
    if what == FLUSH_NEXT:
        return int(poll.flush_next(at, a))
    if what == REQ_NOTIFY:
        return poll.req_notify(at, a)
    if what == PUT:
        return keys.put(at, a, b)
    if what == GET:
        return keys.get(at, a)
    return keys.remove(at, a)


@entry("int64(intp, int64, intp)")
def post_mover(context, endpoint, asked):
    return mover.post(context, endpoint, asked)
