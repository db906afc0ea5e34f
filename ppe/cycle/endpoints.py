"""Endpoints: connections the engine drives, their queues, and the lists of those with work to do.

A pass touches only endpoints in a ready list, so idle connections cost nothing. An endpoint is in
each list at most once (`receive_queued`, `transmit_queued`), so the lists cannot overflow.
"""

from ppe.cycle.accounts import (
    CHANNEL_STATS,
    CHANNEL_STATS_SIZE,
    E_BYTES_OUT,
    E_COMPLETIONS,
    ENDPOINT_STATS,
    ENDPOINT_STATS_SIZE,
    INDEX,
    add,
)
from ppe.cycle.operations import channel_row_of, finish, free_operation, operation_of
from ppe.cycle.records import (
    ENDPOINT_SIZE,
    FREE,
    NONE,
    endpoint_at,
    engine_at,
    operation_at,
    row_at,
)
from ppe.cycle.services.mover_records import END
from shm.atomics import load_relaxed, store_relaxed
from shm.call import call_address
from shm.jit import nopython
from shm.layout import offset
from shm.memory import load_32, store_32, zero_bytes
from shm.operations import INDEX_BITS, INDEX_MASK, next_generation

_HOT_POLLS = INDEX["hot_polls"]
_ID = offset(ENDPOINT_STATS, "id")
_CHANNEL = offset(ENDPOINT_STATS, "channel")
_STATE = offset(ENDPOINT_STATS, "state")
_ENDPOINTS = offset(CHANNEL_STATS, "endpoints")


@nopython
def endpoint_of(engine: int, index: int) -> int:
    """Address of an endpoint row."""
    return int(engine_at(engine)[0]["endpoints"] + index * ENDPOINT_SIZE)


@nopython
def stats_of(engine: int, index: int) -> int:
    """Address of an endpoint's row in the accounts."""
    return int(engine_at(engine)[0]["endpoint_rows"] + index * ENDPOINT_STATS_SIZE)


@nopython
def endpoint_id(engine: int, index: int) -> int:
    """What the host calls this endpoint: generation and index."""
    return int((endpoint_at(endpoint_of(engine, index))[0]["generation"] << INDEX_BITS) | index)


@nopython
def find_endpoint(engine: int, channel: int, name: int) -> int:
    """Index of the endpoint with this id if it belongs to the channel, else -1."""
    index = name & INDEX_MASK
    if index >= engine_at(engine)[0]["endpoint_count"]:
        return NONE
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] == FREE or endpoint["generation"] != name >> INDEX_BITS:
        return NONE
    if endpoint["channel"] != channel:
        return NONE
    return index


@nopython
def set_state(engine: int, index: int, state: int) -> None:
    """Change an endpoint's state, and show it."""
    endpoint_at(endpoint_of(engine, index))[0]["state"] = state
    store_relaxed(stats_of(engine, index) + _STATE, state)


@nopython
def _count_endpoint(engine: int, channel: int, change: int) -> None:
    """Change how many endpoints a channel has, and show it."""
    row = row_at(channel_row_of(engine, channel))[0]
    row["endpoints"] += change
    stats = engine_at(engine)[0]["channel_rows"] + channel * CHANNEL_STATS_SIZE
    store_relaxed(stats + _ENDPOINTS, row["endpoints"])


@nopython
def new_endpoint(engine: int, channel: int, descriptor: int, state: int) -> int:
    """Index of a new endpoint of the channel, or -1: the table or the client's share is full."""
    mine = engine_at(engine)[0]
    row = row_at(channel_row_of(engine, channel))[0]
    index = mine["free_endpoint"]
    if index == NONE or row["endpoints"] >= mine["endpoints_per_client"]:
        return NONE
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mine["free_endpoint"] = endpoint["next"]
    _count_endpoint(engine, channel, 1)
    endpoint["channel"] = channel
    endpoint["descriptor"] = descriptor
    endpoint["readable"] = 0
    endpoint["writable"] = 0
    endpoint["watched"] = 0
    for_queue = NONE
    endpoint["receive_first"] = for_queue
    endpoint["receive_last"] = for_queue
    endpoint["send_first"] = for_queue
    endpoint["send_last"] = for_queue
    endpoint["connecting"] = NONE
    endpoint["shut"] = NONE
    endpoint["deadline"] = 0
    endpoint["error"] = 0
    endpoint["announced"] = 0
    endpoint["held"] = 0
    endpoint["mover"] = 0
    endpoint["starved"] = NONE
    endpoint["table"] = 0
    endpoint["table_size"] = 0
    endpoint["service"] = 0
    endpoint["qp"] = 0
    stats = stats_of(engine, index)
    zero_bytes(stats, ENDPOINT_STATS_SIZE)
    store_relaxed(stats + _ID, endpoint_id(engine, index))
    store_relaxed(stats + _CHANNEL, channel)
    set_state(engine, index, state)
    return int(index)


@nopython
def free_endpoint(engine: int, index: int) -> None:
    """Return a row whose transport is closed and whose queues are empty."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    _count_endpoint(engine, endpoint["channel"], -1)
    endpoint["generation"] = next_generation(endpoint["generation"])
    set_state(engine, index, FREE)
    endpoint["next"] = mine["free_endpoint"]
    mine["free_endpoint"] = index


@nopython
def is_idle(engine: int, index: int) -> bool:
    """Whether nothing is posted on a stream and its end was not asked for: it may change hands."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    is_used = endpoint["receive_first"] != NONE or endpoint["send_first"] != NONE
    return bool(not is_used and endpoint["shut"] == NONE)


@nopython
def push_receive(engine: int, index: int, operation: int) -> None:
    """Append an operation to the receive queue."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["receive_first"] == NONE:
        endpoint["receive_first"] = operation
    else:
        operation_at(operation_of(engine, endpoint["receive_last"]))[0]["next"] = operation
    endpoint["receive_last"] = operation


@nopython
def push_send(engine: int, index: int, operation: int) -> None:
    """Append an operation to the send queue."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["send_first"] == NONE:
        endpoint["send_first"] = operation
    else:
        operation_at(operation_of(engine, endpoint["send_last"]))[0]["next"] = operation
    endpoint["send_last"] = operation


@nopython
def finish_operation(engine: int, index: int, operation: int, status: int, arg0: int) -> None:
    """Complete an operation that is in no queue any more, with what it has done, and free it."""
    mine = operation_at(operation_of(engine, operation))[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    add(stats_of(engine, index) + E_COMPLETIONS, 1)
    finish(
        engine,
        endpoint["channel"],
        mine["opcode"],
        mine["flags"],
        endpoint_id(engine, index),
        mine["user_data"],
        mine["ticket"],
        status,
        mine["done"],
        arg0,
        0,
        0,
    )
    free_operation(engine, operation)


@nopython
def sent_bytes(engine: int, index: int) -> int:
    """Bytes the transport has taken from this endpoint since it was made.

    Every receive's and send's completion carries it: a cumulative acknowledgement, so that a host
    can send without asking for a completion each time.
    """
    return load_relaxed(stats_of(engine, index) + E_BYTES_OUT)


@nopython
def pop_receive(engine: int, index: int, status: int) -> None:
    """Complete the oldest receive."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    first = endpoint["receive_first"]
    endpoint["receive_first"] = operation_at(operation_of(engine, first))[0]["next"]
    finish_operation(engine, index, first, status, sent_bytes(engine, index))


@nopython
def pop_send(engine: int, index: int, status: int) -> None:
    """Complete the oldest send."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    first = endpoint["send_first"]
    endpoint["send_first"] = operation_at(operation_of(engine, first))[0]["next"]
    finish_operation(engine, index, first, status, sent_bytes(engine, index))


@nopython
def flush_endpoint(engine: int, index: int, status: int) -> None:
    """Complete everything outstanding on an endpoint with `status`, oldest first."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["service"] != 0:
        call_address(endpoint["service"], engine, index, status, END)
    if endpoint["connecting"] != NONE:
        operation = endpoint["connecting"]
        endpoint["connecting"] = NONE
        finish_operation(engine, index, operation, status, 0)
    while endpoint["send_first"] != NONE:
        pop_send(engine, index, status)
    while endpoint["receive_first"] != NONE:
        pop_receive(engine, index, status)
    if endpoint["shut"] != NONE:
        operation = endpoint["shut"]
        endpoint["shut"] = NONE
        finish_operation(engine, index, operation, status, 0)


@nopython
def queue_receive(engine: int, index: int) -> None:
    """Have the receive stage look at this endpoint."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["receive_queued"] == 0:
        endpoint["receive_queued"] = 1
        place = mine["receive_tail"] & (mine["endpoint_count"] - 1)
        store_32(mine["receive_ready"] + 4 * place, index)
        mine["receive_tail"] += 1


@nopython
def queue_transmit(engine: int, index: int) -> None:
    """Have the transmit stage look at this endpoint."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["transmit_queued"] == 0:
        endpoint["transmit_queued"] = 1
        place = mine["transmit_tail"] & (mine["endpoint_count"] - 1)
        store_32(mine["transmit_ready"] + 4 * place, index)
        mine["transmit_tail"] += 1


@nopython
def next_receive(engine: int) -> int:
    """Take the next endpoint off the receive list."""
    mine = engine_at(engine)[0]
    place = mine["receive_head"] & (mine["endpoint_count"] - 1)
    mine["receive_head"] += 1
    index = load_32(mine["receive_ready"] + 4 * place)
    endpoint_at(endpoint_of(engine, index))[0]["receive_queued"] = 0
    return index


@nopython
def next_transmit(engine: int) -> int:
    """Take the next endpoint off the transmit list."""
    mine = engine_at(engine)[0]
    place = mine["transmit_head"] & (mine["endpoint_count"] - 1)
    mine["transmit_head"] += 1
    index = load_32(mine["transmit_ready"] + 4 * place)
    endpoint_at(endpoint_of(engine, index))[0]["transmit_queued"] = 0
    return index
