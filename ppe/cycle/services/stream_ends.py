"""How endpoints of the stream service end: in order, by release, or because they broke.

Also the two answers every kind of operation may get at once.
"""

import errno
from typing import Final

from ppe.cycle.accounts import (
    ERROR_TABLE_FULL,
    ERROR_TRANSPORT,
    INDEX,
)
from ppe.cycle.endpoints import (
    endpoint_id,
    endpoint_of,
    finish_operation,
    flush_endpoint,
    free_endpoint,
    set_state,
)
from ppe.cycle.operations import (
    channel_row_of,
    mark_dirty,
    refuse,
)
from ppe.cycle.records import (
    BROKEN,
    FREE,
    NONE,
    RINGS,
    endpoint_at,
    engine_at,
    row_at,
)
from ppe.cycle.services.mover_records import MOVER_OVER, MOVER_STATE, RELEASE, mover_at
from ppe.cycle.services.rdma_records import held_at
from ppe.cycle.transport import tcp
from shm.atomics import store_release
from shm.call import call_address
from shm.channel import notify
from shm.counters import count
from shm.error_log import log_error
from shm.jit import nopython
from shm.libc import monotonic_ns
from shm.operations import (
    EVENT_DISCONNECTED,
)

ENOBUFS: Final = -errno.ENOBUFS

_DISCONNECTS = INDEX["disconnects"]
_FULL = INDEX["table_full"]


@nopython
def table_full(engine: int, channel: int, wqe: int) -> int:
    """Refuse an operation because an engine table is full."""
    mine = engine_at(engine)[0]
    count(mine["counters"], _FULL, 1)
    log_error(mine["errors"], ERROR_TABLE_FULL, 0, channel, monotonic_ns())
    return refuse(engine, channel, wqe, ENOBUFS)


@nopython
def shut_now(engine: int, index: int) -> None:
    """End our direction, everything before it is sent, and complete the SHUTDOWN."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    operation = endpoint["shut"]
    status = tcp.half_close(engine, index)
    endpoint["shut"] = NONE
    finish_operation(engine, index, operation, status, 0)


@nopython
def has_users(engine: int, index: int) -> bool:
    """Whether datamovers take their buffers or units, or queue pairs their receives, from this one,
    or it is their protection domain, or a verbs device still has it.
    """
    mine = endpoint_at(endpoint_of(engine, index))[0]
    if mine["qp"] != 0 and held_at(mine["qp"])[0]["engaged"] != 0:
        return True
    for number in range(engine_at(engine)[0]["endpoint_count"]):
        endpoint = endpoint_at(endpoint_of(engine, number))[0]
        if number == index or endpoint["state"] == FREE:
            continue
        if endpoint["qp"] != 0:
            held = held_at(endpoint["qp"])[0]
            if held["domain"] == index or held["shared"] == index:
                return True
        if endpoint["mover"] == 0:
            continue
        mover = mover_at(endpoint["mover"])[0]
        if mover["pool"] == index or mover["table"] == index:
            return True
    return False


@nopython
def release(engine: int, index: int) -> None:
    """Close an endpoint whose queues are empty and free its row."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["deadline"] != 0:
        endpoint["deadline"] = 0
        engine_at(engine)[0]["timed"] -= 1
    if endpoint["mover"] != 0:
        # Its memory is the control plane's again.
        store_release(endpoint["mover"] + MOVER_STATE, MOVER_OVER)
        is_stream = endpoint["qp"] == 0
        endpoint["mover"] = 0
        endpoint["service"] = 0 if is_stream else endpoint["service"]
    if endpoint["service"] != 0:
        call_address(endpoint["service"], engine, index, 0, RELEASE)
        endpoint["qp"] = 0
    endpoint["service"] = 0
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
