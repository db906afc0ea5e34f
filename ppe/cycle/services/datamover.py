"""The datamover service: the engine frames PDUs itself (RFC 5047's interface, `iscsi.wire.mover`),
so a host posts one operation per SCSI command and gets one event. Its functions are compiled when
this module is imported, and called through their addresses (`dispatch`).
"""

import ctypes
import errno
from typing import Final

from iscsi.wire import tx
from iscsi.wire.mover import event_at, post_at
from ppe.cycle.accounts import E_BYTES_IN
from ppe.cycle.endpoints import (
    endpoint_of,
    push_receive,
    queue_receive,
    queue_transmit,
    stats_of,
)
from ppe.cycle.operations import (
    channel_row_of,
    complete_now,
    new_operation,
    refuse,
)
from ppe.cycle.records import (
    CALLS_PER_VISIT,
    CONNECTED,
    NONE,
    POOL,
    endpoint_at,
    engine_at,
    row_at,
)
from ppe.cycle.regions import resolve
from ppe.cycle.services import mover_roles as roles
from ppe.cycle.services.mover_events import fill_post, finish_by_event
from ppe.cycle.services.mover_gather import gather
from ppe.cycle.services.mover_io import progress, receive_once
from ppe.cycle.services.mover_news import leave_line, tell
from ppe.cycle.services.mover_records import (
    ACTION_BITS,
    ACTION_MASK,
    END,
    RECEIVE,
    TRANSMIT,
    WORK,
    mover_at,
)
from ppe.cycle.services.mover_units import fence, look_at_fences, set_unit, table_uses
from ppe.cycle.services.stream_ends import table_full
from shm.atomics import load_relaxed
from shm.jit import callback, nopython
from shm.operations import MOVER_FENCE, MOVER_RECEIVE, MOVER_UNIT
from shm.records import wqe_at

EINVAL: Final = -errno.EINVAL
EFAULT: Final = -errno.EFAULT
PENDING: Final = roles.PENDING
SLOTS_MASK: Final = 7
PARTS: Final = ctypes.c_int64


# --- operations ------------------------------------------------------------------------------


@nopython
def _buffer_of(engine: int, channel: int, wqe: int) -> int:
    """Address of the data a WQE names, 0 for none, or -EFAULT."""
    entry = wqe_at(wqe)[0]
    if entry["length"] == 0:
        return 0
    client = row_at(channel_row_of(engine, channel))[0]["client"]
    address = resolve(engine, client, entry["region"], entry["offset"], entry["length"])
    return EFAULT if address == 0 else address


@nopython
def _ask(engine: int, channel: int, wqe: int, index: int) -> int:
    """An operation for the protocol: it is over now, or has an event later."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover = mover_at(endpoint["mover"])[0]
    address = _buffer_of(engine, channel, wqe)
    if address < 0:
        return refuse(engine, channel, wqe, address)
    operation = new_operation(engine, wqe, index, address)
    if operation == NONE:
        return table_full(engine, channel, wqe)
    post = fill_post(engine, wqe, address)
    client = row_at(channel_row_of(engine, channel))[0]["client"]
    outcome = gather(engine, client, endpoint["mover"], post)
    if outcome == 0:
        outcome = roles.on_post(
            mover["role"], mover["conn"], post, mover["home"], mover["home_size"], operation
        )
    if outcome != PENDING:
        event = event_at(engine_at(engine)[0]["event"])[0]
        event["status"] = outcome
        event["length"] = 0
        event["arg0"] = post_at(post)[0]["arg0"]
        event["arg1"] = 0
        event["arg2"] = 0
        finish_by_event(engine, index, operation)
    if endpoint["writable"] != 0:
        queue_transmit(engine, index)
    else:
        tell(engine, index)
    return 1


@nopython
def _lend(engine: int, channel: int, wqe: int, index: int) -> int:
    """Take a buffer for PDUs that the host must see; whoever waited for one gets it."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != CONNECTED and endpoint["state"] != POOL:
        status = -endpoint["error"] if endpoint["error"] != 0 else EINVAL
        return complete_now(engine, channel, wqe, status)
    if endpoint["mover"] != 0 and mover_at(endpoint["mover"])[0]["pool"] != index:
        return refuse(engine, channel, wqe, EINVAL)  # It takes its buffers from elsewhere.
    address = _buffer_of(engine, channel, wqe)
    if address <= 0:
        return refuse(engine, channel, wqe, EFAULT)
    operation = new_operation(engine, wqe, index, address)
    if operation == NONE:
        return table_full(engine, channel, wqe)
    push_receive(engine, index, operation)
    if endpoint["mover"] != 0 and mover_at(endpoint["mover"])[0]["starved"] != 0:
        mover_at(endpoint["mover"])[0]["starved"] = 0
        tell(engine, index)
    while endpoint["receive_first"] != NONE and endpoint["starved"] != NONE:
        waiting = endpoint["starved"]
        its = endpoint_at(endpoint_of(engine, waiting))[0]
        endpoint["starved"] = its["starved"]
        its["starved"] = NONE
        mover_at(its["mover"])[0]["starved"] = 0
        tell(engine, waiting)
    return 1


@nopython
def _work(engine: int, channel: int, wqe: int, place: int) -> int:
    """One operation of the datamover, on the endpoint `place >> 3`, of `place & 7` slots."""
    index = place >> 3
    opcode = wqe_at(wqe)[0]["opcode"]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["table"] != 0:
        if opcode == MOVER_UNIT and place & SLOTS_MASK == 2:
            return set_unit(engine, channel, wqe, index)
        if opcode == MOVER_FENCE:
            return fence(engine, channel, wqe, index)
        return refuse(engine, channel, wqe, EINVAL)
    if opcode == MOVER_RECEIVE:
        return _lend(engine, channel, wqe, index)
    if endpoint["state"] != CONNECTED:
        status = -endpoint["error"] if endpoint["error"] != 0 else EINVAL
        return complete_now(engine, channel, wqe, status)
    if place & SLOTS_MASK != 2:
        return refuse(engine, channel, wqe, EINVAL)
    return _ask(engine, channel, wqe, index)


@nopython
def _receive(engine: int, index: int) -> int:
    """Take what the transport has, let it take effect, and answer it, all in one visit."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    before = load_relaxed(stats_of(engine, index) + E_BYTES_IN)
    calls = 0
    while endpoint["state"] == CONNECTED and endpoint["readable"] != 0:
        if calls == CALLS_PER_VISIT:
            queue_receive(engine, index)
            break
        calls += 1
        if not receive_once(engine, index):
            break
    if endpoint["state"] != CONNECTED:
        return calls
    # Asked in vain: that was no work.
    if load_relaxed(stats_of(engine, index) + E_BYTES_IN) == before:
        return 0
    progress(engine, index)
    return calls


@nopython
def _transmit(engine: int, index: int) -> int:
    """Send what there is to send."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != CONNECTED:
        return 0
    return progress(engine, index)


@nopython
def _end(engine: int, index: int, status: int) -> int:
    """The connection is over: every operation that has no event yet gets it, with `status`."""
    mine = engine_at(engine)[0]
    mover = mover_at(endpoint_at(endpoint_of(engine, index))[0]["mover"])[0]
    conn = mover["conn"]
    leave_line(engine, index)
    event = event_at(mine["event"])[0]
    roles.end(mover["role"], conn, status)
    while roles.event_next(mover["role"], conn, mine["event"]):
        finish_by_event(engine, index, event["user_data"])
    look_at_fences(engine, mover["table"])
    return 0


@nopython
def _uses(engine: int, index: int, start: int, end: int) -> int:
    """1 if the endpoint still needs memory between two addresses."""
    if endpoint_at(endpoint_of(engine, index))[0]["table"] != 0:
        return table_uses(engine, index, start, end)
    mover = mover_at(endpoint_at(endpoint_of(engine, index))[0]["mover"])[0]
    if mover["home"] >= start and mover["home"] < end:
        return 1
    if roles.places_into(mover["role"], mover["conn"], start, end):
        return 1
    return 1 if tx.names(mover["conn"], start, end) else 0


@callback(PARTS, PARTS, PARTS, PARTS, PARTS)
def serve(engine: int, first: int, second: int, what: int) -> int:
    """What the duty cycle calls; one function, so that the protocol is compiled once.

    `what & 7`: WORK: an operation of channel `first`, the WQE at `second`, on the endpoint
    `what >> 6`, of `what >> 3 & 7` slots. Else the endpoint `first`: RECEIVE, TRANSMIT; END with
    the status `second`; USES: 1 if it needs memory from `second` on, `what >> 3` bytes of it.
    """
    action = what & ACTION_MASK
    if action == RECEIVE:
        return _receive(engine, first)
    if action == TRANSMIT:
        return _transmit(engine, first)
    if action == WORK:
        return _work(engine, first, second, what >> ACTION_BITS)
    if action == END:
        return _end(engine, first, second)
    return _uses(engine, first, second, second + (what >> ACTION_BITS))
