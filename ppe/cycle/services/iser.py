"""The datamover over a queue pair: `iscsi.wire.iser`'s halves on one side, work requests on the
other. Whoever moves the bytes calls this service when some are over; hosts call it with their work.

The one rule: which RNIC lies below is not known here; `iser_queue` is what there is of it.
"""

import ctypes
import errno
from typing import Final

from iscsi.wire import tx
from iscsi.wire.iser import initiator, target, work
from iscsi.wire.iser.records import KIND_RELEASE, send_at
from iscsi.wire.mover import event_at, post_at
from iscsi.wire.port import READY, is_empty
from ppe.cycle.endpoints import endpoint_of
from ppe.cycle.operations import channel_row_of, complete_now, new_operation, refuse
from ppe.cycle.records import CONNECTED, NONE, endpoint_at, engine_at, row_at
from ppe.cycle.regions import resolve
from ppe.cycle.rnic.records import wc_at, wr_at
from ppe.cycle.services import iser_queue as queue
from ppe.cycle.services import iser_tags as tags
from ppe.cycle.services import mover_roles as roles
from ppe.cycle.services.mover_events import fill_post, finish_by_event
from ppe.cycle.services.mover_news import leave_line, tell
from ppe.cycle.services.mover_records import (
    ACTION_BITS,
    ACTION_MASK,
    END,
    INITIATOR_ROLE,
    START,
    TOLD,
    WORK,
    mover_at,
)
from ppe.cycle.services.mover_units import look_at_fences
from ppe.cycle.services.rdma_records import rnic_at
from ppe.cycle.services.stream_ends import break_endpoint, table_full
from shm.jit import callback, nopython
from shm.records import wqe_at
from shm.verbs_numbers import WC_LOCAL_INV, WC_RECV, WC_WITH_INV

EINVAL: Final = -errno.EINVAL
EFAULT: Final = -errno.EFAULT
PENDING: Final = roles.PENDING
SLOTS_MASK: Final = 7
PARTS: Final = ctypes.c_int64


# --- work requests -------------------------------------------------------------------------------


@nopython
def _open(engine: int, index: int, wr: int) -> None:
    """Make the tag that an initiator asks for."""
    mover = mover_at(endpoint_at(endpoint_of(engine, index))[0]["mover"])[0]
    request = wr_at(wr)[0]
    stag, base, is_kept = tags.acquire(
        engine,
        mover["tags"],
        request["bind_addr"],
        request["bind_length"],
        request["bind_access"],
    )
    initiator.tagged(mover["iser"], request["token"], stag, base, is_kept)


@nopython
def _work_next(role: int, iser: int, wr: int) -> bool:
    if role == INITIATOR_ROLE:
        return initiator.work_next(iser, wr)
    return target.work_next(iser, wr)


@nopython
def _pump(engine: int, index: int) -> None:
    """Post what the protocol has to post."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover = mover_at(endpoint["mover"])[0]
    wr = rnic_at(engine_at(engine)[0]["rnic"])[0]["wr"]
    while work.receive_next(mover["iser"], wr):
        outcome = queue.post_recv(engine, index, wr)
        if outcome < 0:
            break_endpoint(engine, index, outcome)
            return
    while _work_next(mover["role"], mover["iser"], wr):
        if wr_at(wr)[0]["opcode"] == work.WR_TAG:
            _open(engine, index, wr)
            continue
        outcome = queue.post_send(engine, index, wr)
        if outcome < 0:
            break_endpoint(engine, index, outcome)
            return


@nopython
def _take(engine: int, index: int, wc: int) -> int:
    """One completion: 0, or what ends the connection. A tag that is invalidated is given back."""
    mover = mover_at(endpoint_at(endpoint_of(engine, index))[0]["mover"])[0]
    done, iser = wc_at(wc)[0], mover["iser"]
    is_initiator = mover["role"] == INITIATOR_ROLE
    if done["opcode"] & WC_RECV:
        if is_initiator and done["flags"] & WC_WITH_INV:
            tags.release(mover["tags"], done["invalidated_rkey"])
        if is_initiator:
            return initiator.received(iser, wc)
        return target.received(iser, wc)
    if done["opcode"] == WC_LOCAL_INV and done["status"] == 0:
        send = send_at(work.send_of(iser, done["token"]))[0]
        if send["kind"] == KIND_RELEASE:
            tags.release(mover["tags"], send["stag"])
    return initiator.sent(iser, wc) if is_initiator else target.sent(iser, wc)


@nopython
def _told(engine: int, index: int, is_here: int) -> int:
    """Work is over: let it take effect, post what follows, tell the host. `is_here`: the
    engine's WC is a completion, and there may be more.
    """
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    wc = rnic_at(engine_at(engine)[0]["rnic"])[0]["wc"]
    if not is_here:
        is_here = queue.wc_next(engine, index, wc)
    while endpoint["state"] == CONNECTED and is_here:
        broken = _take(engine, index, wc)
        if broken < 0:
            break_endpoint(engine, index, broken)
            return 0
        is_here = queue.wc_next(engine, index, wc)
    if endpoint["state"] == CONNECTED:
        _go_on(engine, index)
    return 0


@nopython
def _go_on(engine: int, index: int) -> None:
    """Post what there is to post, and tell the host what is over; what that made room for, too."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    _pump(engine, index)
    if endpoint["state"] != CONNECTED:
        return
    tell(engine, index)
    waits = not is_empty(mover_at(endpoint["mover"])[0]["conn"] + READY)
    if waits and endpoint["state"] == CONNECTED:
        _pump(engine, index)


# --- operations ----------------------------------------------------------------------------------


@nopython
def _on_post(engine: int, index: int, post: int, operation: int) -> int:
    mover = mover_at(endpoint_at(endpoint_of(engine, index))[0]["mover"])[0]
    iser, home, size = mover["iser"], mover["home"], mover["home_size"]
    if mover["role"] == INITIATOR_ROLE:
        return initiator.on_post(iser, post, home, size, operation)
    return target.on_post(iser, post, home, size, operation)


@nopython
def _work(engine: int, channel: int, wqe: int, place: int) -> int:
    """One operation of the datamover, on the endpoint `place >> 3`, of `place & 7` slots."""
    index = place >> 3
    endpoint, entry = endpoint_at(endpoint_of(engine, index))[0], wqe_at(wqe)[0]
    if endpoint["state"] != CONNECTED:
        status = -endpoint["error"] if endpoint["error"] != 0 else EINVAL
        return complete_now(engine, channel, wqe, status)
    if place & SLOTS_MASK != 2:
        return refuse(engine, channel, wqe, EINVAL)
    address = 0
    if entry["length"] != 0:
        client = row_at(channel_row_of(engine, channel))[0]["client"]
        address = resolve(engine, client, entry["region"], entry["offset"], entry["length"])
        if address == 0 or not queue.reaches(engine, index, address, entry["length"]):
            return refuse(engine, channel, wqe, EFAULT)
    operation = new_operation(engine, wqe, index, address)
    if operation == NONE:
        return table_full(engine, channel, wqe)
    post = fill_post(engine, wqe, address)
    outcome = _on_post(engine, index, post, operation)
    if outcome != PENDING:
        event = event_at(engine_at(engine)[0]["event"])[0]
        event["status"], event["length"] = outcome, 0
        event["arg0"] = post_at(post)[0]["arg0"]
        event["arg1"], event["arg2"] = 0, 0
        finish_by_event(engine, index, operation)
    _go_on(engine, index)
    return 1


# --- the life of a connection --------------------------------------------------------------------


@nopython
def _start(engine: int, index: int) -> int:
    """Take a queue pair over that has nothing posted: 0 or -errno."""
    outcome = queue.take_over(engine, index)
    if outcome < 0:
        return outcome
    _pump(engine, index)
    return 0


@nopython
def _end(engine: int, index: int, status: int) -> int:
    """The connection is over: every operation that has no event yet gets it, with `status`; its
    tags and its key are gone.
    """
    mine = engine_at(engine)[0]
    mover = mover_at(endpoint_at(endpoint_of(engine, index))[0]["mover"])[0]
    queue.let_go(engine, index)
    leave_line(engine, index)
    event = event_at(mine["event"])[0]
    roles.end(mover["role"], mover["conn"], status)
    while roles.event_next(mover["role"], mover["conn"], mine["event"]):
        finish_by_event(engine, index, event["user_data"])
    look_at_fences(engine, mover["table"])
    return 0


@nopython
def _uses(engine: int, index: int, start: int, end: int) -> int:
    """1 if the connection still needs memory between two addresses: the host's block, what the tag
    of a command opens, what work under way names. Other tags there are closed.
    """
    mover = mover_at(endpoint_at(endpoint_of(engine, index))[0]["mover"])[0]
    if mover["home"] >= start and mover["home"] < end:
        return 1
    if roles.places_into(mover["role"], mover["conn"], start, end):
        return 1
    if tx.names(mover["conn"], start, end):
        return 1
    return 0 if mover["tags"] == 0 else tags.forget(mover["tags"], start, end)


@callback(PARTS, PARTS, PARTS, PARTS, PARTS)
def serve(engine: int, first: int, second: int, what: int) -> int:
    """What dispatcher and RDMA service call; one function, so that the protocol is compiled once.

    `what & 7`: WORK: an operation of channel `first`, the WQE at `second`, on the endpoint
    `what >> 6`, of `what >> 3 & 7` slots. Else the endpoint `first`: START; TOLD: completions are
    there, the engine's WC is the first if `second` is not 0; END with the status `second`; USES: 1
    if it needs memory from `second` on, `what >> 3` bytes of it.
    """
    action = what & ACTION_MASK
    if action == TOLD:
        return _told(engine, first, second)
    if action == WORK:
        return _work(engine, first, second, what >> ACTION_BITS)
    if action == START:
        return _start(engine, first)
    if action == END:
        return _end(engine, first, second)
    return _uses(engine, first, second, second + (what >> ACTION_BITS))
