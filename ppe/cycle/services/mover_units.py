"""Units that the engine serves itself: a table of them is an endpoint without a connection, filled
in by MOVER_UNIT and looked at by MOVER_FENCE. Only checked memory of its client gets into it.
"""

import errno
from typing import Final

from iscsi.wire import target_units
from iscsi.wire.lun import LUN_SIZE, lun_at
from iscsi.wire.mover import event_at, post_at
from ppe.cycle.endpoints import (
    endpoint_of,
    push_send,
)
from ppe.cycle.operations import (
    channel_row_of,
    complete_now,
    new_operation,
    operation_of,
    refuse,
)
from ppe.cycle.records import (
    FREE,
    NONE,
    endpoint_at,
    engine_at,
    operation_at,
    row_at,
)
from ppe.cycle.regions import resolve
from ppe.cycle.services.mover_events import fill_post, finish_by_event
from ppe.cycle.services.mover_records import mover_at
from ppe.cycle.services.stream_ends import table_full
from shm.jit import nopython
from shm.records import wqe_at

EINVAL: Final = -errno.EINVAL
EFAULT: Final = -errno.EFAULT
# Of a UNIT's arg2, and a flag of a FENCE.
UNIT_CLOSED: Final = 1
UNIT_READ_ONLY: Final = 2
COUNT_BYTES: Final = 1 << 8
AT_ONCE: Final = 1 << 9  # It only counts: it waits for nothing.
BLOCKS: Final = 1 << 10  # It waits for WRITEs of some blocks only.
LUN_BITS: Final = 16  # of what is kept of a fence; above them the first block
BLOCKS_MAX: Final = 1 << 40
LUN_MASK: Final = (1 << LUN_BITS) - 1


@nopython
def set_unit(engine: int, channel: int, wqe: int, index: int) -> int:
    """Say what a unit of a table is: `iscsi.wire.mover`, UNIT."""
    table = endpoint_at(endpoint_of(engine, index))[0]
    client = row_at(channel_row_of(engine, channel))[0]["client"]
    entry, post = wqe_at(wqe)[0], post_at(fill_post(engine, wqe, 0))[0]
    memory, allocation = 0, 0
    if post["arg1"] != 0:
        memory = resolve(engine, client, entry["region"], entry["offset"], post["arg1"])
    if post["more4"] != 0:
        allocation = resolve(engine, client, post["more2"], post["more3"], post["more4"])
    if (post["arg1"] != 0 and memory == 0) or (post["more4"] != 0 and allocation == 0):
        return refuse(engine, channel, wqe, EFAULT)
    block_size = post["more0"]
    if block_size <= 0:
        return refuse(engine, channel, wqe, EINVAL)
    status = target_units.set_unit(
        table["table"],
        table["table_size"],
        post["arg0"],
        memory,
        post["arg1"],
        block_size,
        post["arg1"] // block_size,
        post["arg2"] & UNIT_READ_ONLY,
        post["arg2"] & UNIT_CLOSED,
        allocation,
        post["more4"],
        post["more1"],
    )
    return complete_now(engine, channel, wqe, status)


@nopython
def fence(engine: int, channel: int, wqe: int, index: int) -> int:
    """Complete when no command uses a unit any more; with what was done there."""
    operation = new_operation(engine, wqe, index, 0)
    if operation == NONE:
        return table_full(engine, channel, wqe)
    mine, entry = operation_at(operation_of(engine, operation))[0], wqe_at(wqe)[0]
    mine["done"] = min(max(entry["arg0"], 0), LUN_MASK)
    if entry["flags"] & BLOCKS:
        mine["done"] |= min(max(entry["arg1"], 0), BLOCKS_MAX) << LUN_BITS
        mine["length"] = min(max(entry["offset"], 0), BLOCKS_MAX)
    if wqe_at(wqe)[0]["flags"] & AT_ONCE:
        _answer(engine, index, operation)
        return 1
    push_send(engine, index, operation)
    look_at_fences(engine, index)
    return 1


@nopython
def look_at_fences(engine: int, index: int) -> None:
    """End the fences of a table that are open now. Those of one unit end in the order they came;
    no unit waits for another.
    """
    if index == NONE:
        return
    table = endpoint_at(endpoint_of(engine, index))[0]
    if table["table"] == 0 or table["send_first"] == NONE:
        return
    last, first = table["send_last"], NONE
    while first != last:
        first = table["send_first"]
        operation = operation_at(operation_of(engine, first))[0]
        table["send_first"] = operation["next"]
        operation["next"] = NONE
        if _is_over(engine, index, first):
            _answer(engine, index, first)
        else:
            push_send(engine, index, first)


@nopython
def _is_over(engine: int, index: int, fence: int) -> bool:
    """Whether what a fence waits for has ended."""
    table = endpoint_at(endpoint_of(engine, index))[0]
    operation = operation_at(operation_of(engine, fence))[0]
    lun = operation["done"] & LUN_MASK
    if target_units.is_idle(table["table"], table["table_size"], lun):
        return True
    if operation["flags"] & BLOCKS == 0:
        return False
    unit = target_units.unit_at(table["table"], table["table_size"], lun)
    first = operation["done"] >> LUN_BITS
    for number in range(engine_at(engine)[0]["endpoint_count"]):
        endpoint = endpoint_at(endpoint_of(engine, number))[0]
        if endpoint["state"] == FREE or endpoint["mover"] == 0:
            continue
        mover = mover_at(endpoint["mover"])[0]
        if mover["table"] != index:
            continue
        if target_units.writes_blocks(mover["conn"], unit, first, operation["length"]):
            return False
    return True


@nopython
def _answer(engine: int, index: int, fence: int) -> None:
    """End a fence with what was done at its unit."""
    table = endpoint_at(endpoint_of(engine, index))[0]
    operation = operation_at(operation_of(engine, fence))[0]
    event = event_at(engine_at(engine)[0]["event"])[0]
    lun = operation["done"] & LUN_MASK
    event["status"], event["length"] = 0, 0
    event["arg0"] = event["arg1"] = event["arg2"] = 0
    if 0 <= lun < table["table_size"]:
        unit = lun_at(table["table"] + LUN_SIZE * lun)[0]
        is_bytes = operation["flags"] & COUNT_BYTES != 0
        event["arg0"] = unit["read_bytes"] if is_bytes else unit["reads"]
        event["arg1"] = unit["written_bytes"] if is_bytes else unit["writes"]
    finish_by_event(engine, index, fence)


@nopython
def table_uses(engine: int, index: int, start: int, end: int) -> int:
    """1 if a unit of a table lies between two addresses."""
    table = endpoint_at(endpoint_of(engine, index))[0]
    for lun in range(table["table_size"]):
        unit = lun_at(table["table"] + LUN_SIZE * lun)[0]
        for at in (unit["memory"], unit["allocation"]):
            if at != 0 and at >= start and at < end:
                return 1
    return 0
