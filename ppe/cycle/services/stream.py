"""The stream service: byte streams over a transport, ETA's cut.

Receives complete in the order they were posted, sends too. One transport call serves as many of
them as fit into its spans, so a header and its data posted together cost one system call.
"""

import errno
from typing import Final

from ppe.cycle import libc
from ppe.cycle.accounts import (
    E_BYTES_IN,
    E_BYTES_OUT,
    ERROR_CONNECT,
    ERROR_TABLE_FULL,
    ERROR_TRANSPORT,
    INDEX,
    add,
)
from ppe.cycle.endpoints import (
    endpoint_id,
    endpoint_of,
    find_endpoint,
    finish_operation,
    flush_endpoint,
    free_endpoint,
    new_endpoint,
    pop_receive,
    pop_send,
    push_receive,
    push_send,
    queue_receive,
    queue_transmit,
    set_state,
    stats_of,
)
from ppe.cycle.operations import (
    channel_row_of,
    finish,
    free_operation,
    mark_dirty,
    new_operation,
    operation_of,
    refuse,
)
from ppe.cycle.readiness import events
from ppe.cycle.records import (
    BROKEN,
    CONNECTED,
    CONNECTING,
    LISTENING,
    NONE,
    RINGS,
    SPANS_MAX,
    WQE_SIZE,
    endpoint_at,
    engine_at,
    operation_at,
    row_at,
)
from ppe.cycle.regions import resolve
from ppe.cycle.transport import tcp
from shm.channel import notify
from shm.counters import count
from shm.error_log import log_error
from shm.jit import nopython
from shm.libc import monotonic_ns
from shm.memory import load_16, load_16_be, load_64
from shm.operations import (
    ACCEPT,
    CANCEL,
    CANCELLED,
    CONNECT,
    END_OF_STREAM,
    EVENT_DISCONNECTED,
    LISTEN,
    MORE,
    NOP,
    RECEIVE,
    RECEIVE_EXACT,
    REUSE_PORT,
    SEND,
    SHUTDOWN,
)
from shm.records import wqe_at

HUNG_UP: Final = 2  # value of `readable` that a short count does not clear: the end is coming
CALLS_PER_VISIT: Final = 4  # transport calls for one endpoint before others get their turn
CONNECT_NS_MAX: Final = 86_400_000_000_000  # a day; more would overflow when turned into cycles
ADDRESS_OFFSET: Final = 8  # of the socket address in a WQE's second slot

EINVAL: Final = -errno.EINVAL
EFAULT: Final = -errno.EFAULT
EBADF: Final = -errno.EBADF
ENOTCONN: Final = -errno.ENOTCONN
EPIPE: Final = -errno.EPIPE
ENOBUFS: Final = -errno.ENOBUFS
ENOENT: Final = -errno.ENOENT
EALREADY: Final = -errno.EALREADY
EACCES: Final = -errno.EACCES
ETIMEDOUT: Final = -errno.ETIMEDOUT
EOPNOTSUPP: Final = -errno.EOPNOTSUPP
EINPROGRESS: Final = -errno.EINPROGRESS
EAGAIN: Final = -errno.EAGAIN
ECONNABORTED: Final = -errno.ECONNABORTED

_ACCEPTED, _CONNECTED = INDEX["accepted"], INDEX["connected"]
_FAILURES, _DISCONNECTS = INDEX["connect_failures"], INDEX["disconnects"]
_CANCELLED, _FULL = INDEX["cancelled"], INDEX["table_full"]
_BYTES_IN, _BYTES_OUT = INDEX["bytes_in"], INDEX["bytes_out"]


# --- work --------------------------------------------------------------------------------------


@nopython
def on_work(engine: int, channel: int, wqe: int, slots: int) -> int:
    """Do or queue one operation. It has exactly one completion, now or later."""
    opcode = wqe_at(wqe)[0]["opcode"]
    if opcode == NOP:
        return _complete_now(engine, channel, wqe, 0)
    if opcode in (SEND, RECEIVE):
        return _transfer(engine, channel, wqe)
    if opcode in (CONNECT, LISTEN):
        if slots != 2:
            return refuse(engine, channel, wqe, EINVAL)
        if opcode == CONNECT:
            return _connect(engine, channel, wqe)
        return _listen(engine, channel, wqe)
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
    flush_endpoint(engine, index, CANCELLED)
    release(engine, index)
    return _complete_now(engine, channel, wqe, 0)


@nopython
def _complete_now(engine: int, channel: int, wqe: int, status: int) -> int:
    entry = wqe_at(wqe)[0]
    finish(
        engine,
        channel,
        entry["opcode"],
        entry["flags"],
        entry["endpoint"],
        entry["user_data"],
        entry["ticket"],
        status,
        0,
        0,
        0,
        0,
    )
    return 1


@nopython
def _table_full(engine: int, channel: int, wqe: int) -> int:
    mine = engine_at(engine)[0]
    count(mine["counters"], _FULL, 1)
    log_error(mine["errors"], ERROR_TABLE_FULL, 0, channel, monotonic_ns())
    return refuse(engine, channel, wqe, ENOBUFS)


@nopython
def _transfer(engine: int, channel: int, wqe: int) -> int:
    entry = wqe_at(wqe)[0]
    index = find_endpoint(engine, channel, entry["endpoint"])
    if index == NONE:
        return refuse(engine, channel, wqe, EBADF)
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != CONNECTED:
        status = -endpoint["error"] if endpoint["state"] == BROKEN else ENOTCONN
        return _complete_now(engine, channel, wqe, status)
    sending = entry["opcode"] == SEND
    if sending and endpoint["shut"] != NONE:
        return _complete_now(engine, channel, wqe, EPIPE)
    client = row_at(channel_row_of(engine, channel))[0]["client"]
    address = resolve(engine, client, entry["region"], entry["offset"], entry["length"])
    if address == 0:
        return refuse(engine, channel, wqe, EFAULT)
    operation = new_operation(engine, wqe, index, address)
    if operation == NONE:
        return _table_full(engine, channel, wqe)
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
def _connect(engine: int, channel: int, wqe: int) -> int:
    mine = engine_at(engine)[0]
    address = wqe + WQE_SIZE + ADDRESS_OFFSET
    descriptor = tcp.open_for(address)
    if descriptor < 0:
        return refuse(engine, channel, wqe, descriptor)
    index = new_endpoint(engine, channel, descriptor, CONNECTING)
    operation = NONE if index == NONE else new_operation(engine, wqe, index, 0)
    if operation == NONE:
        if index != NONE:
            release(engine, index)
        else:
            libc.close(descriptor)
        return _table_full(engine, channel, wqe)
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    endpoint["user_data"] = wqe_at(wqe)[0]["user_data"]
    endpoint["connecting"] = operation
    outcome = tcp.connect(engine, index, address)
    if outcome == 0 or outcome == EINPROGRESS:
        watched = tcp.watch(engine, index)
        outcome = watched if watched < 0 else outcome
    if outcome != EINPROGRESS:
        return _connected(engine, index, outcome)
    timeout_ns = min(wqe_at(wqe)[0]["arg0"], CONNECT_NS_MAX)
    if timeout_ns > 0:
        endpoint["deadline"] = mine["now"] + timeout_ns // 1_000 * mine["cycles_per_ms"] // 1_000
        mine["timed"] += 1
    return 1


@nopython
def _connected(engine: int, index: int, status: int) -> int:
    """A connect has ended: hand the endpoint over, or take it back."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["deadline"] != 0:
        endpoint["deadline"] = 0
        mine["timed"] -= 1
    operation = endpoint["connecting"]
    endpoint["connecting"] = NONE
    if status == 0:
        count(mine["counters"], _CONNECTED, 1)
        set_state(engine, index, CONNECTED)
        endpoint["writable"] = 1
        endpoint["readable"] = max(endpoint["readable"], 1)
        finish_operation(engine, index, operation, 0, 0)
        return 1
    count(mine["counters"], _FAILURES, 1)
    log_error(mine["errors"], ERROR_CONNECT, -status, endpoint_id(engine, index), monotonic_ns())
    finish_operation(engine, index, operation, status, 0)
    release(engine, index)
    return 1


@nopython
def _listen(engine: int, channel: int, wqe: int) -> int:
    mine = engine_at(engine)[0]
    entry = wqe_at(wqe)[0]
    address = wqe + WQE_SIZE + ADDRESS_OFFSET
    port = load_16_be(address + 2)
    privileged = row_at(channel_row_of(engine, channel))[0]["privileged"]
    if port > 0 and port < mine["port_floor"] and privileged == 0:
        return refuse(engine, channel, wqe, EACCES)
    descriptor = tcp.open_for(address)
    if descriptor < 0:
        return refuse(engine, channel, wqe, descriptor)
    reuse_port = entry["flags"] & REUSE_PORT != 0
    bound = tcp.listen(descriptor, address, max(1, min(entry["arg0"], 4096)), reuse_port)
    if bound < 0:
        libc.close(descriptor)
        return refuse(engine, channel, wqe, bound)
    index = new_endpoint(engine, channel, descriptor, LISTENING)
    if index == NONE:
        libc.close(descriptor)
        return _table_full(engine, channel, wqe)
    tcp.watch(engine, index)
    endpoint_at(endpoint_of(engine, index))[0]["user_data"] = entry["user_data"]
    finish(
        engine,
        channel,
        LISTEN,
        0,
        endpoint_id(engine, index),
        entry["user_data"],
        entry["ticket"],
        0,
        0,
        bound,
        0,
        0,
    )
    return 1


@nopython
def _accept(engine: int, channel: int, wqe: int, index: int) -> int:
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != LISTENING:
        return refuse(engine, channel, wqe, EINVAL)
    operation = new_operation(engine, wqe, index, 0)
    if operation == NONE:
        return _table_full(engine, channel, wqe)
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
        if endpoint["send_first"] == NONE and endpoint["shut"] != NONE:
            _shut_now(engine, index)  # It waited for what was cancelled.
    if status == ENOENT and _is_connecting(engine, index, target):
        _connected(engine, index, CANCELLED)
        status = 0
    if status == 0:
        count(engine_at(engine)[0]["counters"], _CANCELLED, 1)
    return _complete_now(engine, channel, wqe, status)


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
        return _complete_now(engine, channel, wqe, ENOTCONN)
    if endpoint["shut"] != NONE:
        return _complete_now(engine, channel, wqe, EALREADY)
    operation = new_operation(engine, wqe, index, 0)
    if operation == NONE:
        return _table_full(engine, channel, wqe)
    endpoint["shut"] = operation
    if endpoint["send_first"] == NONE:
        _shut_now(engine, index)
    return 1


@nopython
def _shut_now(engine: int, index: int) -> None:
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    operation = endpoint["shut"]
    status = tcp.half_close(engine, index)
    endpoint["shut"] = NONE
    finish_operation(engine, index, operation, status, 0)


@nopython
def release(engine: int, index: int) -> None:
    """Close an endpoint whose queues are empty and free its row."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["deadline"] != 0:
        endpoint["deadline"] = 0
        engine_at(engine)[0]["timed"] -= 1
    tcp.close(engine, index)
    free_endpoint(engine, index)


@nopython
def break_endpoint(engine: int, index: int, status: int) -> None:
    """The transport failed: everything outstanding ends with `status`, or an event tells of it."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    endpoint["error"] = -status
    set_state(engine, index, BROKEN)
    count(mine["counters"], _DISCONNECTS, 1)
    log_error(mine["errors"], ERROR_TRANSPORT, -status, endpoint_id(engine, index), monotonic_ns())
    silent = endpoint["receive_first"] == NONE and endpoint["send_first"] == NONE
    flush_endpoint(engine, index, status)
    if silent and endpoint["announced"] == 0:
        channel = endpoint["channel"]
        row = channel_row_of(engine, channel)
        name = endpoint_id(engine, index)
        # Without room nobody is told now; the next operation on the endpoint gets the status.
        if row_at(row)[0]["dead"] == 0 and notify(
            row + RINGS, EVENT_DISCONNECTED, name, endpoint["user_data"], status, 0
        ):
            endpoint["announced"] = 1
            mark_dirty(engine, channel)


# --- edges -------------------------------------------------------------------------------------


@nopython
def on_edge(engine: int, index: int, mask: int) -> int:
    """The poller has news of an endpoint."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] == CONNECTING:
        if mask & (events.WRITE | events.BROKEN) != 0:
            return _connected(engine, index, tcp.connect_outcome(engine, index))
        return 0
    if mask & (events.HANGUP | events.BROKEN) != 0:
        endpoint["readable"] = HUNG_UP
    elif mask & events.READ != 0:
        endpoint["readable"] = max(endpoint["readable"], 1)
    if mask & events.WRITE != 0:
        endpoint["writable"] = 1
        if endpoint["send_first"] != NONE:
            queue_transmit(engine, index)
    if endpoint["readable"] != 0 and endpoint["receive_first"] != NONE:
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
        return _connected(engine, index, ETIMEDOUT)
    return 0


# --- receive -----------------------------------------------------------------------------------


@nopython
def on_receive(engine: int, index: int) -> int:
    """Serve an endpoint's posted receives (or accepts) until the transport runs dry."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] == LISTENING:
        return _accept_all(engine, index)
    done = 0
    for _ in range(CALLS_PER_VISIT):
        if endpoint["receive_first"] == NONE or endpoint["readable"] == 0:
            return done
        if endpoint["state"] != CONNECTED:
            return done
        done += 1
        spans, wanted = _receive_spans(engine, index)
        got = tcp.receive(engine, index, spans)
        if got == EAGAIN:
            endpoint["readable"] = 0
            return done
        if got < 0:
            break_endpoint(engine, index, got)
            return done
        if got == 0:
            _end_of_stream(engine, index)
            return done
        _distribute(engine, index, got)
        if got < wanted and endpoint["readable"] != HUNG_UP:
            endpoint["readable"] = 0
    if endpoint["receive_first"] != NONE and endpoint["readable"] != 0:
        queue_receive(engine, index)
    return done


@nopython
def _receive_spans(engine: int, index: int) -> tuple[int, int]:
    """Point the engine's vectors at the posted receives: how many, and bytes in all."""
    mine = engine_at(engine)[0]
    current = endpoint_at(endpoint_of(engine, index))[0]["receive_first"]
    spans, wanted = 0, 0
    while current != NONE and spans < SPANS_MAX:
        operation = operation_at(operation_of(engine, current))[0]
        left = operation["length"] - operation["done"]
        libc.fill_vector(mine["vectors"], spans, operation["address"] + operation["done"], left)
        spans += 1
        wanted += left
        if operation["flags"] & RECEIVE_EXACT == 0:
            break  # Any bytes complete it; what follows belongs to the next call.
        current = operation["next"]
    return spans, wanted


@nopython
def _distribute(engine: int, index: int, got: int) -> None:
    """Credit received bytes to the posted receives in order and complete those that are done."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    count(mine["counters"], _BYTES_IN, got)
    add(stats_of(engine, index) + E_BYTES_IN, got)
    left = got
    while left > 0:
        operation = operation_at(operation_of(engine, endpoint["receive_first"]))[0]
        part = min(left, operation["length"] - operation["done"])
        operation["done"] += part
        left -= part
        if operation["done"] == operation["length"] or operation["flags"] & RECEIVE_EXACT == 0:
            pop_receive(engine, index, 0)


@nopython
def _end_of_stream(engine: int, index: int) -> None:
    """The peer has half-closed: every posted receive ends with what it has."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    endpoint["readable"] = HUNG_UP
    while endpoint["receive_first"] != NONE:
        operation = operation_at(operation_of(engine, endpoint["receive_first"]))[0]
        exact = operation["flags"] & RECEIVE_EXACT != 0
        pop_receive(engine, index, END_OF_STREAM if exact else 0)


@nopython
def _accept_all(engine: int, index: int) -> int:
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    done = 0
    while endpoint["receive_first"] != NONE and done < 64:
        peer = mine["vectors"]
        descriptor = tcp.accept(engine, index, peer, peer + 64)
        if descriptor == ECONNABORTED:
            continue
        if descriptor == EAGAIN:
            endpoint["readable"] = 0
            return done
        done += 1
        if descriptor < 0:
            pop_receive(engine, index, descriptor)
            continue
        _hand_over(engine, index, descriptor, peer)
    if endpoint["receive_first"] != NONE:
        queue_receive(engine, index)
    return done


@nopython
def _hand_over(engine: int, index: int, descriptor: int, peer: int) -> None:
    """Make an accepted connection an endpoint and complete the oldest ACCEPT with it."""
    mine = engine_at(engine)[0]
    listener = endpoint_at(endpoint_of(engine, index))[0]
    channel = listener["channel"]
    family, port = load_16(peer), load_16_be(peer + 2)
    at = peer + (4 if family == libc.AF_INET else 8)
    high, low = load_64(at), load_64(at + 8)
    new = new_endpoint(engine, channel, descriptor, CONNECTED)
    if new == NONE:
        libc.close(descriptor)
        count(mine["counters"], _FULL, 1)
        pop_receive(engine, index, ENOBUFS)
        return
    endpoint = endpoint_at(endpoint_of(engine, new))[0]
    endpoint["writable"] = 1
    endpoint["readable"] = 1
    tcp.watch(engine, new)
    count(mine["counters"], _ACCEPTED, 1)
    first = listener["receive_first"]
    operation = operation_at(operation_of(engine, first))[0]
    listener["receive_first"] = operation["next"]
    endpoint["user_data"] = operation["user_data"]
    name = endpoint_id(engine, new)
    finish(
        engine,
        channel,
        ACCEPT,
        operation["flags"],
        name,
        operation["user_data"],
        operation["ticket"],
        0,
        0,
        (family << 16) | port,
        high,
        low,
    )
    free_operation(engine, first)


# --- transmit ----------------------------------------------------------------------------------


@nopython
def on_transmit(engine: int, index: int) -> int:
    """Hand an endpoint's posted sends to the transport until it takes no more."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    done = 0
    for _ in range(CALLS_PER_VISIT):
        if endpoint["send_first"] == NONE or endpoint["writable"] == 0:
            return done
        if endpoint["state"] != CONNECTED:
            return done
        spans, wanted, more = _transmit_spans(engine, index)
        if spans == 0:
            # All of it is marked MORE: what it announces may come with the next pass, but is not
            # waited for any longer, so a host that breaks its word loses nothing.
            endpoint["held"] = 1
            queue_transmit(engine, index)
            return done
        endpoint["held"] = 0
        done += 1
        put = tcp.transmit(engine, index, spans, more)
        if put == EAGAIN:
            endpoint["writable"] = 0
            return done
        if put < 0:
            break_endpoint(engine, index, put)
            return done
        _account_sent(engine, index, put)
        if put < wanted:
            endpoint["writable"] = 0
    if endpoint["send_first"] != NONE and endpoint["writable"] != 0:
        queue_transmit(engine, index)
    return done


@nopython
def _transmit_spans(engine: int, index: int) -> tuple[int, int, bool]:
    """Point the engine's vectors at the posted sends: how many, bytes in all, and "more follows".

    Trailing sends marked MORE wait one pass for what they announce.
    """
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    current = endpoint["send_first"]
    spans, wanted = 0, 0
    ready_spans, ready_wanted = 0, 0
    while current != NONE and spans < SPANS_MAX:
        operation = operation_at(operation_of(engine, current))[0]
        left = operation["length"] - operation["done"]
        libc.fill_vector(mine["vectors"], spans, operation["address"] + operation["done"], left)
        spans += 1
        wanted += left
        if operation["flags"] & MORE == 0 or endpoint["held"] != 0:
            ready_spans, ready_wanted = spans, wanted
        current = operation["next"]
    if current != NONE:  # The vectors are full and more is queued behind them.
        return spans, wanted, True
    return ready_spans, ready_wanted, False


@nopython
def _account_sent(engine: int, index: int, put: int) -> None:
    """Credit transmitted bytes to the posted sends in order and complete those that are done."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    count(mine["counters"], _BYTES_OUT, put)
    add(stats_of(engine, index) + E_BYTES_OUT, put)
    left = put
    while left > 0:
        operation = operation_at(operation_of(engine, endpoint["send_first"]))[0]
        part = min(left, operation["length"] - operation["done"])
        operation["done"] += part
        left -= part
        if operation["done"] == operation["length"]:
            pop_send(engine, index, 0)
    if endpoint["send_first"] == NONE and endpoint["shut"] != NONE:
        _shut_now(engine, index)
