"""How a datamover endpoint receives and sends. Bytes whose place is not known yet, headers above
all, come into one staging area that all endpoints of the engine share: they are used up before the
next call. Data of which much is missing is received where its task wants it; what is sent is taken
from where it lies.
"""

import errno
from typing import Final

from iscsi.wire import initiator_rx, initiator_tx, tx
from iscsi.wire.port import READY, is_empty, port_at
from iscsi.wire.rx import PHASE_DATA
from ppe.cycle import libc
from ppe.cycle.accounts import E_BYTES_IN, E_BYTES_OUT, INDEX, add
from ppe.cycle.endpoints import (
    endpoint_of,
    queue_transmit,
    stats_of,
)
from ppe.cycle.hot import stay_hot
from ppe.cycle.records import (
    CALLS_PER_VISIT,
    CONNECTED,
    HUNG_UP,
    NONE,
    SPANS_MAX,
    VECTOR_SIZE,
    endpoint_at,
    engine_at,
)
from ppe.cycle.services import mover_roles as roles
from ppe.cycle.services.mover_news import tell
from ppe.cycle.services.mover_records import mover_at
from ppe.cycle.services.stream_ends import break_endpoint, shut_now
from ppe.cycle.transport import tcp
from shm.counters import count
from shm.jit import nopython
from shm.operations import END_OF_STREAM

EAGAIN: Final = -errno.EAGAIN
_BYTES_IN, _BYTES_OUT = INDEX["bytes_in"], INDEX["bytes_out"]
_BYTES_PLACED, _BYTES_STAGED = INDEX["bytes_placed"], INDEX["bytes_staged"]

# Data of which so much is missing is received straight to its place, in front of what follows.
DIRECT_MIN: Final = 4096
# Behind a data segment of this size only the next header is asked for, so that its data, too, goes
# to its place without a copy.
LARGE_SEGMENT: Final = 16384
AHEAD_OF_LARGE: Final = 64
# What one visit offers to the transport before others get their turn, give or take one PDU: as much
# as a socket takes at once. A digest reads all of it.
BYTES_PER_VISIT: Final = 4 << 20


@nopython
def receive_once(engine: int, index: int) -> bool:
    """One call of the transport. False: there is no more, or the connection is over."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover = mover_at(endpoint["mover"])[0]
    conn = mover["conn"]
    spans, direct, wanted = _receive_spans(engine, conn, mover["ahead"])
    got = tcp.receive(engine, index, spans)
    if got <= 0:
        if got == EAGAIN:
            endpoint["readable"] = 0
        else:
            break_endpoint(engine, index, END_OF_STREAM if got == 0 else got)
        return False
    placed = min(got, direct)
    count(mine["counters"], _BYTES_IN, got)
    count(mine["counters"], _BYTES_PLACED, placed)
    count(mine["counters"], _BYTES_STAGED, got - placed)
    add(stats_of(engine, index) + E_BYTES_IN, got)
    violation = _take_placed(conn, mover["role"], placed)
    if got > direct and violation == 0:
        violation = roles.take(mover["role"], conn, mine["staging"], got - direct)
    if violation != 0:
        _say_why(engine, index, violation)
        return False
    is_large = port_at(conn)[0]["rx_data_length"] >= LARGE_SEGMENT
    mover["ahead"] = AHEAD_OF_LARGE if is_large else mine["staging_size"]
    if got < wanted and endpoint["readable"] != HUNG_UP:
        endpoint["readable"] = 0
        stay_hot(engine, index)
        return False
    return True


@nopython
def _say_why(engine: int, index: int, violation: int) -> None:
    """End a connection whose peer broke the protocol, behind what is made to be sent, and a
    target's Reject (RFC 7143 §7.2), as far as the transport takes it now.
    """
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover = mover_at(endpoint["mover"])[0]
    if roles.refuse(mover["role"], mover["conn"], violation):
        while endpoint["writable"] != 0 and endpoint["state"] == CONNECTED:
            if _send_once(engine, index) == 0:
                break
        if endpoint["state"] == CONNECTED:
            tcp.half_close(engine, index)
    if endpoint["state"] == CONNECTED:
        break_endpoint(engine, index, violation)


@nopython
def _receive_spans(engine: int, conn: int, ahead: int) -> tuple[int, int, int]:
    """Point the vectors at where the next bytes belong: how many, bytes that go to their place, and
    all. `ahead` bytes follow those whose place is known, if all of their places have a vector.
    """
    mine, port = engine_at(engine)[0], port_at(conn)[0]
    spans, direct, more = 0, 0, port["rx_more"]
    if port["rx_phase"] == PHASE_DATA and port["want_length"] + more >= DIRECT_MIN:
        spans, direct = 1, int(port["want_length"])
        libc.fill_vector(mine["vectors"], 0, port["want_address"], direct)
        if more > 0:
            count, placed = initiator_rx.more_places(
                conn, mine["vectors"] + VECTOR_SIZE, SPANS_MAX - 2
            )
            spans += count
            direct += placed
            if placed < more:
                return spans, direct, direct
    libc.fill_vector(mine["vectors"], spans, mine["staging"], ahead)
    return spans + 1, direct, direct + ahead


@nopython
def _take_placed(conn: int, role: int, length: int) -> int:
    """Let `length` bytes take effect that were received to their places: 0 or a violation."""
    port = port_at(conn)[0]
    violation = 0
    while length > 0 and violation == 0:
        size = min(length, port["want_length"])
        violation = roles.take(role, conn, port["want_address"], size)
        length -= size
    return violation


@nopython
def progress(engine: int, index: int) -> int:
    """Send, then tell the host what is over. How many calls of the transport."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    done, offered = 0, 0
    while endpoint["writable"] != 0:
        if done == CALLS_PER_VISIT or offered >= BYTES_PER_VISIT:
            queue_transmit(engine, index)
            break
        length = _send_once(engine, index)
        if length == 0:
            break
        done += 1
        offered += length
        if endpoint["state"] != CONNECTED:
            return done
    tell(engine, index)
    if endpoint["writable"] != 0 and not is_empty(mover_at(endpoint["mover"])[0]["conn"] + READY):
        queue_transmit(engine, index)  # What the host was told of made room for more.
    if endpoint["shut"] != NONE and _is_sent(mover_at(endpoint["mover"])[0]["conn"]):
        shut_now(engine, index)
    return done


@nopython
def _is_sent(conn: int) -> bool:
    port = port_at(conn)[0]
    return bool(is_empty(conn + READY) and port["tx_made"] == port["tx_sent"])


@nopython
def _send_once(engine: int, index: int) -> int:
    """One call of the transport with as many spans as fit: bytes offered to it, 0 if there were
    none.
    """
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover = mover_at(endpoint["mover"])[0]
    conn, role = mover["conn"], mover["role"]
    port = port_at(conn)[0]
    spans, wanted = 0, 0
    length = roles.next_span(role, conn)
    while length > 0:
        libc.fill_vector(mine["vectors"], spans, port["span_address"], length)
        initiator_tx.tx_take(conn, length)
        spans += 1
        wanted += length
        length = roles.next_span(role, conn)
        if spans == SPANS_MAX or wanted >= BYTES_PER_VISIT:
            break
    if spans == 0:
        return 0
    # "More follows" only when it does: the kernel would hold the end of this back for it.
    put = tcp.transmit(engine, index, spans, length > 0)
    if put < 0 and put != EAGAIN:
        break_endpoint(engine, index, put)
        return int(wanted)
    if put > 0:
        count(mine["counters"], _BYTES_OUT, put)
        add(stats_of(engine, index) + E_BYTES_OUT, put)
        roles.sent(role, conn, put)
    if put < wanted:
        endpoint["writable"] = 0
        tx.take_back(conn, wanted - max(put, 0))
    return int(wanted)
