"""How endpoints of the stream service come to be: connect, listen and accept."""

import errno
from typing import Final

from ppe.cycle import libc
from ppe.cycle.accounts import (
    ERROR_CONNECT,
    INDEX,
)
from ppe.cycle.endpoints import (
    endpoint_id,
    endpoint_of,
    finish_operation,
    new_endpoint,
    pop_receive,
    queue_receive,
    set_state,
)
from ppe.cycle.operations import (
    channel_row_of,
    finish,
    free_operation,
    new_operation,
    operation_of,
    refuse,
)
from ppe.cycle.records import (
    CONNECTED,
    CONNECTING,
    LISTENING,
    NONE,
    WQE_SIZE,
    endpoint_at,
    engine_at,
    operation_at,
    row_at,
)
from ppe.cycle.services.stream_ends import release, table_full
from ppe.cycle.transport import tcp
from shm.counters import count
from shm.error_log import log_error
from shm.jit import nopython
from shm.libc import monotonic_ns
from shm.memory import load_16, load_16_be, load_64
from shm.operations import (
    ACCEPT,
    LISTEN,
    REUSE_PORT,
)
from shm.records import wqe_at

CONNECT_NS_MAX: Final = 86_400_000_000_000  # a day; more would overflow when turned into cycles
ADDRESS_OFFSET: Final = 8  # of the socket address in a WQE's second slot

ENOBUFS: Final = -errno.ENOBUFS
EACCES: Final = -errno.EACCES
EINPROGRESS: Final = -errno.EINPROGRESS
EAGAIN: Final = -errno.EAGAIN
ECONNABORTED: Final = -errno.ECONNABORTED

_ACCEPTED, _CONNECTED = INDEX["accepted"], INDEX["connected"]
_FAILURES = INDEX["connect_failures"]
_FULL = INDEX["table_full"]


@nopython
def connect(engine: int, channel: int, wqe: int) -> int:
    """Start a connect; it completes when the transport says how it ended, or at its timeout."""
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
        return table_full(engine, channel, wqe)
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    endpoint["user_data"] = wqe_at(wqe)[0]["user_data"]
    endpoint["connecting"] = operation
    outcome = tcp.connect(engine, index, address)
    if outcome == 0 or outcome == EINPROGRESS:
        watched = tcp.watch(engine, index)
        outcome = watched if watched < 0 else outcome
    if outcome != EINPROGRESS:
        return connected(engine, index, outcome)
    timeout_ns = min(wqe_at(wqe)[0]["arg0"], CONNECT_NS_MAX)
    if timeout_ns > 0:
        endpoint["deadline"] = mine["now"] + timeout_ns // 1_000 * mine["cycles_per_ms"] // 1_000
        mine["timed"] += 1
    return 1


@nopython
def connected(engine: int, index: int, status: int) -> int:
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
def listen(engine: int, channel: int, wqe: int) -> int:
    """Bind and listen; completes at once with the listener's id and port."""
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
        return table_full(engine, channel, wqe)
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
def accept_all(engine: int, index: int) -> int:
    """Complete posted accepts while connections wait."""
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
