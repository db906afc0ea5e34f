"""Serve the endpoints that have both posted receives and, as far as we know, bytes."""

from ppe.cycle.endpoints import next_receive
from ppe.cycle.records import engine_at
from ppe.cycle.services import dispatch
from shm.jit import nopython


@nopython
def step(engine: int) -> int:
    """Visit each endpoint that was on the list when the stage began, once."""
    mine = engine_at(engine)[0]
    end = mine["receive_tail"]
    done = 0
    while mine["receive_head"] < end:
        done += dispatch.on_receive(engine, next_receive(engine))
    return done
