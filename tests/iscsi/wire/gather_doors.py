"""Doors for the tests of gather lists. Not in a test module: what such a one is compiled from is
not known, because pytest loads it.
"""

from iscsi.wire import initiator_rx
from iscsi.wire import runs as run_lists
from shm.jit import entry
from shm.memory import store_64


@entry("int64(intp, intp, int64)")
def more_places(conn, into, room):
    return initiator_rx.more_places(conn, into, room)[0]


@entry("void(intp, int64, int64, int64, intp, int64, intp, intp)")
def cut_out(runs, count, offset, length, into, room, count_at, covered_at):
    made, covered = run_lists.cut_out(runs, count, offset, length, into, room)
    store_64(count_at, made)
    store_64(covered_at, covered)
