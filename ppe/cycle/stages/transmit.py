"""Serve the endpoints that have posted sends and whose transport takes bytes."""

from ppe.cycle.endpoints import next_transmit
from ppe.cycle.records import engine_at
from ppe.cycle.services import dispatch
from shm.jit import nopython


@nopython
def step(engine: int) -> int:
    """Visit each endpoint that was on the list when the stage began, once."""
    mine = engine_at(engine)[0]
    end = mine["transmit_tail"]
    done = 0
    while mine["transmit_head"] < end:
        done += dispatch.on_transmit(engine, next_transmit(engine))
    return done
