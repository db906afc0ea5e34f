"""The endpoint that received last: it is asked again in every pass for a while, before its edge.

What comes next on a busy connection comes soon, and a receive call finds it sooner than the
poller's news does. One endpoint at a time, the latest, so that a pass stays short. One that stays
the latest for long is taken off the poller meanwhile: each edge costs its sender a wake-up of the
poller and us a call, and tells nothing that the next pass would not have found (decision 0017).
The one rule: nobody sleeps, here or on the poller's descriptor, while an endpoint is off it.
"""

from typing import Final

from ppe.cycle.accounts import INDEX
from ppe.cycle.endpoints import endpoint_of, queue_receive
from ppe.cycle.records import CONNECTED, HUNG_UP, NONE, endpoint_at, engine_at
from ppe.cycle.transport import tcp
from shm.counters import count
from shm.jit import nopython

_HOT_POLLS = INDEX["hot_polls"]
# Receives in a row that were one endpoint's before it leaves the poller. Leaving and coming
# back are a system call each, and an edge is nearly one.
UNWATCH_AFTER: Final = 16


@nopython
def stay_hot(engine: int, index: int) -> None:
    """The endpoint has received: ask it again soon, when it is known to have no more."""
    mine = engine_at(engine)[0]
    if mine["hot"] != index:
        cool(engine)
        mine["hot"] = index
        mine["hot_streak"] = 0
    mine["hot_until"] = mine["now"] + mine["hot_cycles"]
    mine["hot_streak"] += 1
    if mine["hot_streak"] == UNWATCH_AFTER and mine["observed"] == 0:
        endpoint = endpoint_at(endpoint_of(engine, index))[0]
        if endpoint["writable"] != 0 and endpoint["readable"] != HUNG_UP:
            tcp.unwatch(engine, index)


@nopython
def ask(engine: int) -> None:
    """Have the receive stage ask the endpoint that was busy a moment ago."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, mine["hot"]))[0]
    if mine["now"] > mine["hot_until"] or endpoint["state"] != CONNECTED:
        cool(engine)
        return
    if endpoint["watched"] == 0 and (endpoint["writable"] == 0 or mine["observed"] != 0):
        _watch(engine, mine["hot"])  # Only an edge tells when it takes bytes again.
    if endpoint["transmit_queued"] != 0 and mine["hot_passed_over"] == 0:
        # What comes next is likely the answer to what is about to be sent. Once, not for ever: it
        # may have much to send.
        mine["hot_passed_over"] = 1
    elif endpoint["receive_first"] != NONE or endpoint["service"] != 0:
        mine["hot_passed_over"] = 0
        endpoint["readable"] = max(endpoint["readable"], 1)
        queue_receive(engine, mine["hot"])
        count(mine["counters"], _HOT_POLLS, 1)


@nopython
def cool(engine: int) -> None:
    """No endpoint is asked without an edge any more, so each is watched."""
    mine = engine_at(engine)[0]
    index = mine["hot"]
    mine["hot"] = NONE
    if index == NONE:
        return
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["watched"] == 0 and endpoint["state"] == CONNECTED:
        _watch(engine, index)


@nopython
def _watch(engine: int, index: int) -> None:
    """Watch it again; what came meanwhile is asked for."""
    tcp.watch(engine, index)
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    endpoint["readable"] = max(endpoint["readable"], 1)
    if endpoint["receive_first"] != NONE or endpoint["service"] != 0:
        queue_receive(engine, index)
