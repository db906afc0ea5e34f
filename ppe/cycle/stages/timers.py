"""Deadlines, to the millisecond. Only endpoints that have one cost anything."""

from ppe.cycle.endpoints import endpoint_of
from ppe.cycle.records import FREE, endpoint_at, engine_at
from ppe.cycle.services import stream
from shm.jit import nopython


@nopython
def step(engine: int) -> int:
    """Once per millisecond while anything has a deadline, end what is over."""
    mine = engine_at(engine)[0]
    if mine["timed"] == 0 or mine["now"] < mine["next_timer"]:
        return 0
    mine["next_timer"] = mine["now"] + mine["cycles_per_ms"]
    done = 0
    for index in range(mine["endpoint_count"]):
        endpoint = endpoint_at(endpoint_of(engine, index))[0]
        if endpoint["state"] == FREE or endpoint["deadline"] == 0:
            continue
        if endpoint["deadline"] <= mine["now"]:
            done += stream.on_timer(engine, index)
    return done
