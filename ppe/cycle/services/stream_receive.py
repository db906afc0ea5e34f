"""Receiving: posted receives are served in order, several by one transport call."""

import errno
from typing import Final

from ppe.cycle import libc
from ppe.cycle.accounts import (
    E_BYTES_IN,
    INDEX,
    add,
)
from ppe.cycle.endpoints import (
    endpoint_of,
    pop_receive,
    queue_receive,
    stats_of,
)
from ppe.cycle.hot import stay_hot
from ppe.cycle.operations import (
    operation_of,
)
from ppe.cycle.records import (
    CALLS_PER_VISIT,
    CONNECTED,
    HUNG_UP,
    LISTENING,
    NONE,
    SPANS_MAX,
    endpoint_at,
    engine_at,
    operation_at,
)
from ppe.cycle.services.stream_ends import break_endpoint
from ppe.cycle.services.stream_setup import accept_all
from ppe.cycle.transport import tcp
from shm.counters import count
from shm.jit import nopython
from shm.operations import (
    END_OF_STREAM,
    RECEIVE_EXACT,
)

EAGAIN: Final = -errno.EAGAIN

_BYTES_IN = INDEX["bytes_in"]


@nopython
def on_receive(engine: int, index: int) -> int:
    """Serve an endpoint's posted receives (or accepts) until the transport runs dry."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] == LISTENING:
        return accept_all(engine, index)
    done = 0
    for _ in range(CALLS_PER_VISIT):
        if endpoint["receive_first"] == NONE or endpoint["readable"] == 0:
            return done
        if endpoint["state"] != CONNECTED:
            return done
        spans, wanted = _receive_spans(engine, index)
        got = tcp.receive(engine, index, spans)
        if got == EAGAIN:
            endpoint["readable"] = 0
            return done
        done += 1
        if got < 0:
            break_endpoint(engine, index, got)
            return done
        if got == 0:
            _end_of_stream(engine, index)
            return done
        _distribute(engine, index, got)
        stay_hot(engine, index)
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
