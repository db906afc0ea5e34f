"""Hand the kernel's edges to the endpoints and channels they belong to."""

from ppe.cycle.accounts import INDEX
from ppe.cycle.endpoints import endpoint_of
from ppe.cycle.operations import channel_row_of
from ppe.cycle.readiness import poller
from ppe.cycle.readiness.events import (
    READ,
    TAG_DOORBELL,
    TAG_ENDPOINT,
    make_tag,
    tag_generation,
    tag_index,
    tag_kind,
)
from ppe.cycle.records import FREE, endpoint_at, engine_at, row_at
from ppe.cycle.services import stream
from ppe.cycle.stages.channels import on_doorbell
from ppe.cycle.transport import tcp
from shm.counters import count
from shm.jit import nopython

_ENTERS, _EVENTS = INDEX["poller_enters"], INDEX["readiness_events"]


@nopython
def step(engine: int) -> int:
    """Enter the kernel if there is reason to, and dispatch what it has."""
    mine = engine_at(engine)[0]
    entered = poller.refresh(engine)
    if entered > 0:
        count(mine["counters"], _ENTERS, entered)
    return dispatch(engine)


@nopython
def dispatch(engine: int) -> int:
    """Dispatch every edge already fetched. A tag whose generation is over is stale: ignored."""
    mine = engine_at(engine)[0]
    done = 0
    while True:
        tag, mask = poller.take(engine)
        if tag == 0:
            break
        done += 1
        index = tag_index(tag)
        if tag_kind(tag) == TAG_DOORBELL:
            row = row_at(channel_row_of(engine, index))[0]
            if mask == 0 and row["client"] != 0:
                poller.add(engine, row["doorbell"], READ, make_tag(TAG_DOORBELL, 0, index))
            on_doorbell(engine, index)
        elif tag_kind(tag) == TAG_ENDPOINT:
            endpoint = endpoint_at(endpoint_of(engine, index))[0]
            if endpoint["state"] == FREE or endpoint["generation"] != tag_generation(tag):
                continue
            if mask == 0:
                if endpoint["watched"] != 0:
                    tcp.watch(engine, index)
            else:
                stream.on_edge(engine, index, mask)
    if done > 0:
        count(mine["counters"], _EVENTS, done)
    return done
