"""Transmitting: posted sends are handed over in order, several by one transport call."""

import errno
from typing import Final

from ppe.cycle import libc
from ppe.cycle.accounts import (
    E_BYTES_OUT,
    INDEX,
    add,
)
from ppe.cycle.endpoints import (
    endpoint_of,
    pop_send,
    queue_transmit,
    stats_of,
)
from ppe.cycle.operations import (
    operation_of,
)
from ppe.cycle.records import (
    CALLS_PER_VISIT,
    CONNECTED,
    NONE,
    SPANS_MAX,
    endpoint_at,
    engine_at,
    operation_at,
)
from ppe.cycle.services.stream_ends import break_endpoint, shut_now
from ppe.cycle.transport import tcp
from shm.counters import count
from shm.jit import nopython
from shm.operations import (
    MORE,
)

EAGAIN: Final = -errno.EAGAIN

_BYTES_OUT = INDEX["bytes_out"]


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
        shut_now(engine, index)
