"""The stream service: byte streams over a transport, ETA's cut.

Receives complete in the order they were posted, sends too. One transport call serves as many of
them as fit into its spans, so a header and its data posted together cost one system call.
"""

import errno
from typing import Final

from ppe.cycle.accounts import (
    INDEX,
)
from ppe.cycle.endpoints import (
    endpoint_of,
    find_endpoint,
    finish_operation,
    flush_endpoint,
    push_receive,
    push_send,
    queue_receive,
    queue_transmit,
)
from ppe.cycle.operations import (
    channel_row_of,
    complete_now,
    new_operation,
    operation_of,
    refuse,
)
from ppe.cycle.readiness import events
from ppe.cycle.records import (
    BROKEN,
    CONNECTED,
    CONNECTING,
    HUNG_UP,
    LISTENING,
    NONE,
    endpoint_at,
    engine_at,
    operation_at,
    row_at,
)
from ppe.cycle.regions import resolve
from ppe.cycle.services.stream_ends import (
    break_endpoint,
    has_users,
    release,
    shut_now,
    table_full,
)
from ppe.cycle.services.stream_receive import on_receive
from ppe.cycle.services.stream_setup import connect, connected, listen
from ppe.cycle.services.stream_transmit import on_transmit
from ppe.cycle.transport import tcp
from shm.counters import count
from shm.jit import nopython
from shm.operations import (
    ACCEPT,
    CANCEL,
    CANCELLED,
    CONNECT,
    LISTEN,
    NOP,
    RECEIVE,
    SEND,
    SHUTDOWN,
)
from shm.records import wqe_at

__all__ = ["on_edge", "on_receive", "on_timer", "on_transmit", "on_work", "release"]


EINVAL: Final = -errno.EINVAL
EFAULT: Final = -errno.EFAULT
EBADF: Final = -errno.EBADF
EBUSY: Final = -errno.EBUSY
ENOTCONN: Final = -errno.ENOTCONN
EPIPE: Final = -errno.EPIPE
ENOENT: Final = -errno.ENOENT
EALREADY: Final = -errno.EALREADY
ETIMEDOUT: Final = -errno.ETIMEDOUT
EOPNOTSUPP: Final = -errno.EOPNOTSUPP

_CANCELLED = INDEX["cancelled"]


@nopython
def on_work(engine: int, channel: int, wqe: int, slots: int) -> int:
    """Do or queue one operation. It has exactly one completion, now or later."""
    opcode = wqe_at(wqe)[0]["opcode"]
    if opcode == NOP:
        return complete_now(engine, channel, wqe, 0)
    if opcode in (SEND, RECEIVE):
        return _transfer(engine, channel, wqe)
    if opcode in (CONNECT, LISTEN):
        if slots != 2:
            return refuse(engine, channel, wqe, EINVAL)
        if opcode == CONNECT:
            return connect(engine, channel, wqe)
        return listen(engine, channel, wqe)
    index = find_endpoint(engine, channel, wqe_at(wqe)[0]["endpoint"])
    if opcode < ACCEPT or opcode > CANCEL:
        return refuse(engine, channel, wqe, EOPNOTSUPP)
    if index == NONE:
        return refuse(engine, channel, wqe, EBADF)
    if opcode == ACCEPT:
        return _accept(engine, channel, wqe, index)
    if opcode == CANCEL:
        return _cancel(engine, channel, wqe, index)
    if opcode == SHUTDOWN:
        return _shutdown(engine, channel, wqe, index)
    if has_users(engine, index):
        return refuse(engine, channel, wqe, EBUSY)
    flush_endpoint(engine, index, CANCELLED)
    release(engine, index)
    return complete_now(engine, channel, wqe, 0)


@nopython
def _transfer(engine: int, channel: int, wqe: int) -> int:
    entry = wqe_at(wqe)[0]
    index = find_endpoint(engine, channel, entry["endpoint"])
    if index == NONE:
        return refuse(engine, channel, wqe, EBADF)
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != CONNECTED:
        status = -endpoint["error"] if endpoint["state"] == BROKEN else ENOTCONN
        return complete_now(engine, channel, wqe, status)
    if endpoint["service"] != 0:
        return refuse(engine, channel, wqe, EINVAL)  # Its bytes are a datamover's, or a QP's.
    sending = entry["opcode"] == SEND
    if sending and endpoint["shut"] != NONE:
        return complete_now(engine, channel, wqe, EPIPE)
    client = row_at(channel_row_of(engine, channel))[0]["client"]
    address = resolve(engine, client, entry["region"], entry["offset"], entry["length"])
    if address == 0:
        return refuse(engine, channel, wqe, EFAULT)
    operation = new_operation(engine, wqe, index, address)
    if operation == NONE:
        return table_full(engine, channel, wqe)
    if sending:
        push_send(engine, index, operation)
        if endpoint["writable"] != 0:
            queue_transmit(engine, index)
    else:
        push_receive(engine, index, operation)
        if endpoint["readable"] != 0:
            queue_receive(engine, index)
    return 1


@nopython
def _accept(engine: int, channel: int, wqe: int, index: int) -> int:
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != LISTENING:
        return refuse(engine, channel, wqe, EINVAL)
    operation = new_operation(engine, wqe, index, 0)
    if operation == NONE:
        return table_full(engine, channel, wqe)
    push_receive(engine, index, operation)
    endpoint["readable"] = 1  # Asking once too often costs one call; missing an edge hangs.
    queue_receive(engine, index)
    return 1


@nopython
def _cancel(engine: int, channel: int, wqe: int, index: int) -> int:
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    target = wqe_at(wqe)[0]["arg0"]
    status = _cancel_receive(engine, index, target)
    if status == ENOENT:
        status = _cancel_send(engine, index, target)
        is_sent = endpoint["send_first"] == NONE and endpoint["service"] == 0
        if is_sent and endpoint["shut"] != NONE:
            shut_now(engine, index)  # It waited for what was cancelled.
    if status == ENOENT and _is_connecting(engine, index, target):
        connected(engine, index, CANCELLED)
        status = 0
    if status == 0:
        count(engine_at(engine)[0]["counters"], _CANCELLED, 1)
    return complete_now(engine, channel, wqe, status)


@nopython
def _is_connecting(engine: int, index: int, target: int) -> bool:
    """Whether the endpoint's connect is the operation with this user_data."""
    operation = endpoint_at(endpoint_of(engine, index))[0]["connecting"]
    if operation == NONE:
        return False
    return bool(operation_at(operation_of(engine, operation))[0]["user_data"] == target)


@nopython
def _cancel_receive(engine: int, index: int, target: int) -> int:
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    before, current = NONE, endpoint["receive_first"]
    while current != NONE:
        operation = operation_at(operation_of(engine, current))[0]
        if operation["user_data"] == target:
            following = operation["next"]
            if before == NONE:
                endpoint["receive_first"] = following
            else:
                operation_at(operation_of(engine, before))[0]["next"] = following
            if following == NONE:
                endpoint["receive_last"] = before
            finish_operation(engine, index, current, CANCELLED, 0)
            return 0
        before, current = current, operation["next"]
    return ENOENT


@nopython
def _cancel_send(engine: int, index: int, target: int) -> int:
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    before, current = NONE, endpoint["send_first"]
    while current != NONE:
        operation = operation_at(operation_of(engine, current))[0]
        if operation["user_data"] == target:
            if operation["done"] > 0:
                return EALREADY  # Half of it is on the wire: the stream would be cut.
            following = operation["next"]
            if before == NONE:
                endpoint["send_first"] = following
            else:
                operation_at(operation_of(engine, before))[0]["next"] = following
            if following == NONE:
                endpoint["send_last"] = before
            finish_operation(engine, index, current, CANCELLED, 0)
            return 0
        before, current = current, operation["next"]
    return ENOENT


@nopython
def _shutdown(engine: int, channel: int, wqe: int, index: int) -> int:
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != CONNECTED:
        return complete_now(engine, channel, wqe, ENOTCONN)
    if endpoint["shut"] != NONE:
        return complete_now(engine, channel, wqe, EALREADY)
    operation = new_operation(engine, wqe, index, 0)
    if operation == NONE:
        return table_full(engine, channel, wqe)
    endpoint["shut"] = operation
    if endpoint["service"] != 0:
        queue_transmit(engine, index)  # It knows what is still to be sent.
    elif endpoint["send_first"] == NONE:
        shut_now(engine, index)
    return 1


@nopython
def on_edge(engine: int, index: int, mask: int) -> int:
    """The poller has news of an endpoint."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] == CONNECTING:
        if mask & (events.WRITE | events.BROKEN) != 0:
            return connected(engine, index, tcp.connect_outcome(engine, index))
        return 0
    if mask & (events.HANGUP | events.BROKEN) != 0:
        endpoint["readable"] = HUNG_UP
    elif mask & events.READ != 0:
        endpoint["readable"] = max(endpoint["readable"], 1)
    if mask & events.WRITE != 0:
        endpoint["writable"] = 1
        if endpoint["send_first"] != NONE or endpoint["service"] != 0:
            queue_transmit(engine, index)
    is_wanted = endpoint["receive_first"] != NONE or endpoint["service"] != 0
    if endpoint["readable"] != 0 and is_wanted:
        queue_receive(engine, index)
    elif mask & events.BROKEN != 0 and endpoint["state"] == CONNECTED:
        status = tcp.connect_outcome(engine, index)  # SO_ERROR: why it broke
        if status < 0:
            break_endpoint(engine, index, status)
    return 1


@nopython
def on_timer(engine: int, index: int) -> int:
    """An endpoint's deadline has passed: only connecting ones have one."""
    if endpoint_at(endpoint_of(engine, index))[0]["state"] == CONNECTING:
        return connected(engine, index, ETIMEDOUT)
    return 0
