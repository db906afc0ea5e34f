"""From a work-queue entry to a POST, and from an EVENT to its completion (`iscsi.wire.mover`)."""

from typing import Final

from iscsi.wire.mover import event_at, post_at
from ppe.cycle.accounts import E_COMPLETIONS, add
from ppe.cycle.endpoints import (
    endpoint_id,
    endpoint_of,
    stats_of,
)
from ppe.cycle.operations import (
    finish,
    free_operation,
    operation_of,
)
from ppe.cycle.records import (
    WQE_SIZE,
    endpoint_at,
    engine_at,
    operation_at,
)
from shm.jit import nopython
from shm.memory import load_64
from shm.records import wqe_at

MORE_WORDS: Final = 8  # bytes before the first word of a WQE's second slot


@nopython
def fill_post(engine: int, wqe: int, address: int) -> int:
    """The WQE as a POST; its address."""
    place = engine_at(engine)[0]["post"]
    post, entry = post_at(place)[0], wqe_at(wqe)[0]
    post["opcode"] = entry["opcode"]
    post["flags"] = entry["flags"]
    post["user_data"] = entry["user_data"]
    post["address"] = address
    post["length"] = entry["length"]
    post["arg0"] = entry["arg0"]
    post["arg1"] = entry["arg1"]
    post["arg2"] = entry["arg2"]
    more = wqe + WQE_SIZE + MORE_WORDS
    post["more0"] = load_64(more)
    post["more1"] = load_64(more + 8)
    post["more2"] = load_64(more + 16)
    post["more3"] = load_64(more + 24)
    post["more4"] = load_64(more + 32)
    post["more5"] = load_64(more + 40)
    return int(place)


@nopython
def finish_by_event(engine: int, index: int, operation: int) -> None:
    """Complete an operation with what stands in the engine's EVENT."""
    event = event_at(engine_at(engine)[0]["event"])[0]
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
        event["status"],
        event["length"],
        event["arg0"],
        event["arg1"],
        event["arg2"],
    )
    free_operation(engine, operation)
