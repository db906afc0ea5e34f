"""Operations the engine has taken and not completed: rows of one table, queued per endpoint.

An operation is in exactly one place: free, in a queue of its endpoint, or named by it.
"""

from ppe.cycle.accounts import (
    CHANNEL_STATS,
    CHANNEL_STATS_SIZE,
    ERROR_BAD_OPERATION,
    INDEX,
    add,
)
from ppe.cycle.records import (
    CHANNEL_ROW_SIZE,
    NONE,
    OPERATION_SIZE,
    RINGS,
    engine_at,
    operation_at,
    row_at,
)
from shm.channel import COVERED, SOLICITED, UNSIGNALLED, complete, complete_silently
from shm.counters import count
from shm.error_log import log_error
from shm.jit import nopython
from shm.layout import offset
from shm.libc import monotonic_ns
from shm.memory import store_32
from shm.records import wqe_at

_REFUSED = INDEX["refused"]
_CHANNEL_REFUSED = offset(CHANNEL_STATS, "refused")


@nopython
def operation_of(engine: int, index: int) -> int:
    """Address of an operation row."""
    return int(engine_at(engine)[0]["operations"] + index * OPERATION_SIZE)


@nopython
def channel_row_of(engine: int, index: int) -> int:
    """Address of a channel row."""
    return int(engine_at(engine)[0]["channels"] + index * CHANNEL_ROW_SIZE)


@nopython
def new_operation(engine: int, wqe: int, endpoint: int, address: int) -> int:
    """Index of an operation made from a checked WQE, or -1 when the table is full."""
    mine, entry = engine_at(engine)[0], wqe_at(wqe)[0]
    index = mine["free_operation"]
    if index == NONE:
        return NONE
    operation = operation_at(operation_of(engine, index))[0]
    mine["free_operation"] = operation["next"]
    operation["next"] = NONE
    operation["endpoint"] = endpoint
    operation["opcode"] = entry["opcode"]
    operation["flags"] = entry["flags"]
    operation["user_data"] = entry["user_data"]
    operation["address"] = address
    operation["length"] = entry["length"]
    operation["done"] = 0
    operation["ticket"] = entry["ticket"]
    return int(index)


@nopython
def free_operation(engine: int, index: int) -> None:
    """Return a row."""
    mine = engine_at(engine)[0]
    operation = operation_at(operation_of(engine, index))[0]
    operation["next"] = mine["free_operation"]
    operation["address"] = 0  # It uses no memory any more: see control.remove_region.
    mine["free_operation"] = index


@nopython
def mark_dirty(engine: int, channel: int) -> None:
    """Remember that a channel has events to announce at the end of the pass."""
    mine = engine_at(engine)[0]
    row = row_at(channel_row_of(engine, channel))[0]
    if row["dirty"] == 0:
        row["dirty"] = 1
        store_32(mine["dirty"] + 4 * mine["dirty_count"], channel)
        mine["dirty_count"] += 1


@nopython
def finish(
    engine: int,
    channel: int,
    opcode: int,
    flags: int,
    endpoint_id: int,
    user_data: int,
    ticket: int,
    status: int,
    length: int,
    arg0: int,
    arg1: int,
    arg2: int,
) -> None:
    """Complete one taken operation on its channel; quietly if it was unsignalled and succeeded."""
    row = channel_row_of(engine, channel)
    if row_at(row)[0]["dead"] != 0:
        return
    if flags & UNSIGNALLED != 0 and status == 0:
        complete_silently(row + RINGS)
        return
    covered = (COVERED if flags & UNSIGNALLED != 0 else 0) | (flags & SOLICITED)
    complete(
        row + RINGS,
        opcode,
        covered,
        endpoint_id,
        user_data,
        ticket,
        status,
        length,
        arg0,
        arg1,
        arg2,
    )
    mark_dirty(engine, channel)


@nopython
def complete_now(engine: int, channel: int, wqe: int, status: int) -> int:
    """Complete an operation at once with `status`. Always 1: work was done."""
    return complete_with(engine, channel, wqe, status, 0)


@nopython
def complete_with(engine: int, channel: int, wqe: int, status: int, arg0: int) -> int:
    """The same with a word for the host."""
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
        arg0,
        0,
        0,
    )
    return 1


@nopython
def refuse(engine: int, channel: int, wqe: int, status: int) -> int:
    """Complete a WQE that cannot be done with `-errno`, and count whose fault it was."""
    mine = engine_at(engine)[0]
    count(mine["counters"], _REFUSED, 1)
    add(mine["channel_rows"] + channel * CHANNEL_STATS_SIZE + _CHANNEL_REFUSED, 1)
    log_error(mine["errors"], ERROR_BAD_OPERATION, -status, channel, monotonic_ns())
    return complete_now(engine, channel, wqe, status)
