"""How a queue pair's endpoint receives and sends. Bytes whose place is not known yet, headers above
all, come into the staging area that all endpoints of the engine share: they are used up before the
next call. Payload of which much is missing is received where its STag or its receive wants it; what
is sent is taken from where it lies.
"""

import errno
from typing import Final

from ppe.cycle import libc
from ppe.cycle.accounts import E_BYTES_IN, E_BYTES_OUT, INDEX, add
from ppe.cycle.endpoints import endpoint_of, queue_transmit, stats_of
from ppe.cycle.hot import stay_hot
from ppe.cycle.records import (
    CALLS_PER_VISIT,
    CONNECTED,
    HUNG_UP,
    NONE,
    SPANS_MAX,
    endpoint_at,
    engine_at,
)
from ppe.cycle.services import rdma_core as core
from ppe.cycle.services.rdma_ends import end_of_stream, end_violated, tell
from ppe.cycle.services.rdma_records import held_at
from ppe.cycle.services.stream_ends import break_endpoint, shut_now
from ppe.cycle.transport import tcp
from shm.counters import count
from shm.jit import nopython

EAGAIN: Final = -errno.EAGAIN
_BYTES_IN, _BYTES_OUT = INDEX["bytes_in"], INDEX["bytes_out"]
_BYTES_PLACED, _BYTES_STAGED = INDEX["bytes_placed"], INDEX["bytes_staged"]

# Payload of which so much is missing is received straight to its place, in front of what follows.
DIRECT_MIN: Final = 4096
# Behind such a payload only a CRC, a small message and the next header are asked for, so that the
# next payload, too, goes to its place without a copy; and so for some receives after the last one,
# since large payloads come with small messages between them.
AHEAD_OF_LARGE: Final = 192
LARGE_KEPT: Final = 8
# While a large payload is coming in, a few messages wait for others to go out with them, at most so
# many passes: each call of the transport costs as much as some 30 KiB of payload.
LATER_MAX: Final = 4
LATER_MESSAGES: Final = 8


@nopython
def receive_once(engine: int, index: int) -> bool:
    """One call of the transport. False: there is no more, or the connection is over."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    held = held_at(endpoint["qp"])[0]
    qp = held["core"]
    place, direct = core.want_address(qp), core.want_length(qp)
    if direct < DIRECT_MIN:
        direct = 0
    else:
        libc.fill_vector(mine["vectors"], 0, place, direct)
    before = core.large_segments(qp)
    ahead = AHEAD_OF_LARGE if held["large"] > 0 else mine["staging_size"]
    libc.fill_vector(mine["vectors"], 1 if direct > 0 else 0, mine["staging"], ahead)
    got = tcp.receive(engine, index, 2 if direct > 0 else 1)
    if got <= 0:
        if got == EAGAIN:
            endpoint["readable"] = 0
        elif got == 0:
            end_of_stream(engine, index)
        else:
            break_endpoint(engine, index, got)
        return False
    placed = min(got, direct)
    count(mine["counters"], _BYTES_IN, got)
    count(mine["counters"], _BYTES_PLACED, placed)
    count(mine["counters"], _BYTES_STAGED, got - placed)
    add(stats_of(engine, index) + E_BYTES_IN, got)
    violation = 0
    if direct > 0:
        violation = core.take(qp, place, placed)
    if got > direct and violation == 0:
        violation = core.take(qp, mine["staging"], got - direct)
    if violation != 0 or core.is_over(qp):
        _end(engine, index)
        return False
    # A message of small pieces is better copied than received one piece at a time.
    came_large = direct >= DIRECT_MIN or core.large_segments(qp) != before
    held["large"] = LARGE_KEPT if came_large else max(held["large"] - 1, 0)
    if got < direct + ahead and endpoint["readable"] != HUNG_UP:
        endpoint["readable"] = 0
        stay_hot(engine, index)
        return False
    return True


@nopython
def _end(engine: int, index: int) -> None:
    """A Terminate came or is due: it goes out as far as the transport takes it now, and then the
    connection is over.
    """
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    while endpoint["writable"] != 0 and endpoint["state"] == CONNECTED:
        if _send_once(engine, index) == 0:
            break
    if endpoint["state"] == CONNECTED:
        end_violated(engine, index)


@nopython
def progress(engine: int, index: int) -> int:
    """Send, then tell the host what is over. How many calls of the transport."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    held = held_at(endpoint["qp"])[0]
    qp = held["core"]
    if _waits_for_more(endpoint["qp"]):
        held["later"] += 1
        tell(engine, index)
        queue_transmit(engine, index)
        return 1
    held["later"] = 0
    done = 0
    while endpoint["writable"] != 0:
        if done == CALLS_PER_VISIT:
            queue_transmit(engine, index)
            break
        if _send_once(engine, index) == 0:
            break
        done += 1
        if endpoint["state"] != CONNECTED:
            return done
    tell(engine, index)
    if core.is_over(qp):
        _end(engine, index)
    elif endpoint["shut"] != NONE and core.has_sent_all(qp):
        shut_now(engine, index)
    return done


@nopython
def _waits_for_more(at: int) -> bool:
    """Whether what a HELD has to send may wait for another pass."""
    held = held_at(at)[0]
    if held["later"] >= LATER_MAX or core.want_length(held["core"]) < DIRECT_MIN:
        return False
    return core.has_few_to_send(held["core"], LATER_MESSAGES)


@nopython
def _send_once(engine: int, index: int) -> int:
    """One call of the transport with as many spans as fit: 0 if there was nothing to send."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    qp = held_at(endpoint["qp"])[0]["core"]
    spans, wanted = 0, 0
    length = core.next_span(qp)
    while length > 0:
        libc.fill_vector(mine["vectors"], spans, core.span_address(qp), length)
        core.tx_take(qp, length)
        spans += 1
        wanted += length
        length = core.next_span(qp)
        if spans == SPANS_MAX:
            break
    if spans == 0:
        return 0
    # "More follows" only when it does: the kernel would hold the end of this back for it.
    put = tcp.transmit(engine, index, spans, length > 0)
    if put < 0 and put != EAGAIN:
        break_endpoint(engine, index, put)
        return 1
    if put > 0:
        count(mine["counters"], _BYTES_OUT, put)
        add(stats_of(engine, index) + E_BYTES_OUT, put)
        core.sent(qp, put)
    if put < wanted:
        endpoint["writable"] = 0
        core.untake(qp)  # What was not taken is offered again.
    return 1
