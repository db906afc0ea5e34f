"""What a datamover endpoint tells its host: events of what is over, PDUs that the host must see,
in buffers it lent, and that its command window has opened.
"""

import errno
from typing import Final

from iscsi.wire import initiator_mover
from iscsi.wire import sequencing as sn
from iscsi.wire.initiator_task import initiator_at
from iscsi.wire.mover import WINDOW, event_at
from iscsi.wire.port import port_at
from iscsi.wire.target_task import target_at
from ppe.cycle.endpoints import (
    endpoint_id,
    endpoint_of,
    queue_transmit,
)
from ppe.cycle.operations import (
    channel_row_of,
    mark_dirty,
    operation_of,
)
from ppe.cycle.records import (
    NONE,
    RINGS,
    endpoint_at,
    engine_at,
    operation_at,
    row_at,
)
from ppe.cycle.services import mover_roles as roles
from ppe.cycle.services.mover_events import finish_by_event
from ppe.cycle.services.mover_records import INITIATOR_ROLE, mover_at
from ppe.cycle.services.mover_units import look_at_fences
from ppe.cycle.services.stream_ends import break_endpoint
from shm.atomics import store_relaxed
from shm.channel import notify
from shm.jit import nopython

EBADF: Final = -errno.EBADF


@nopython
def tell(engine: int, index: int) -> None:
    """Events of what is over, PDUs that are the host's to see, and news of the window."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover = mover_at(endpoint["mover"])[0]
    event = engine_at(engine)[0]["event"]
    conn = mover["conn"]
    while roles.event_next(mover["role"], conn, event):
        mover["told"] = event_at(event)[0]["arg2"]
        finish_by_event(engine, index, event_at(event)[0]["user_data"])
    if roles.has_news(mover["role"], conn) and mover["starved"] == 0:
        _notify_all(engine, index)
    words = mover["words"]
    port = port_at(conn)[0]
    store_relaxed(words, port["rx_pdus"])
    store_relaxed(words + 8, port["tx_pdus"])
    if mover["role"] == INITIATOR_ROLE:
        _tell_window(engine, index)
    else:
        target = target_at(conn)[0]
        store_relaxed(words + 16, target["data_bytes"])
        store_relaxed(words + 24, port["tx_made"] - port["tx_sent"])
        store_relaxed(words + 32, target["commands"])
        store_relaxed(words + 40, target["rejects"])
        look_at_fences(engine, mover["table"])


@nopython
def _notify_all(engine: int, index: int) -> None:
    """Put PDUs for the host into lent buffers; without one it waits in its pool's line."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover = mover_at(endpoint["mover"])[0]
    pool = endpoint_at(endpoint_of(engine, mover["pool"]))[0]
    if pool["generation"] != mover["pool_generation"]:
        break_endpoint(engine, index, EBADF)
        return
    while roles.has_news(mover["role"], mover["conn"]):
        first = pool["receive_first"]
        if first == NONE:
            _starve(engine, index)
            return
        lent = operation_at(operation_of(engine, first))[0]
        event = event_at(mine["event"])[0]
        outcome = roles.notify_next(
            mover["role"], mover["conn"], lent["address"], lent["length"], mine["event"]
        )
        if outcome == 0:
            return
        if outcome < 0:
            break_endpoint(engine, index, outcome)
            return
        pool["receive_first"] = lent["next"]
        event["status"] = 0
        mover["told"] = event["arg2"]
        finish_by_event(engine, index, first)


@nopython
def _starve(engine: int, index: int) -> None:
    """Wait for a buffer: the endpoint goes to the end of its pool's line."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover = mover_at(endpoint["mover"])[0]
    mover["starved"] = 1
    last = mover["pool"]
    if last == index:
        return  # Its buffers are its own: `_lend` looks at it anyway.
    following = endpoint_at(endpoint_of(engine, last))[0]["starved"]
    while following != NONE:
        last = following
        following = endpoint_at(endpoint_of(engine, last))[0]["starved"]
    endpoint_at(endpoint_of(engine, last))[0]["starved"] = index


@nopython
def leave_line(engine: int, index: int) -> None:
    """Wait for no buffer any more."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover = mover_at(endpoint["mover"])[0]
    if mover["starved"] == 0:
        return
    mover["starved"] = 0
    last = mover["pool"]
    while last != index and last != NONE:
        place = endpoint_at(endpoint_of(engine, last))[0]
        if place["starved"] == index:
            place["starved"] = endpoint["starved"]
            break
        last = place["starved"]
    endpoint["starved"] = NONE


@nopython
def _tell_window(engine: int, index: int) -> None:
    """If the window was closed for all the host knows, and is not any more, say so."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover = mover_at(endpoint["mover"])[0]
    conn = mover["conn"]
    word = initiator_mover.window_word(conn)
    if word == mover["told"]:
        return
    known = (mover["told"] >> 32) & initiator_mover.WORD_MASK
    if not sn.is_after(initiator_at(conn)[0]["cmd_sn"], known):
        return  # It can send, and learns of more with the next event.
    channel = endpoint["channel"]
    row = channel_row_of(engine, channel)
    name = endpoint_id(engine, index)
    if row_at(row)[0]["dead"] == 0 and notify(row + RINGS, WINDOW, name, 0, 0, word):
        mover["told"] = word
        mark_dirty(engine, channel)
    elif row_at(row)[0]["dead"] == 0:
        queue_transmit(engine, index)  # There is no room now: look again.
