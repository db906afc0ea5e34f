"""How a datamover endpoint receives and sends. Bytes whose place is not known yet, headers above
all, come into one staging area that all endpoints of the engine share: they are used up before the
next call. Data of which much is missing is received where its task wants it; what is sent is taken
from where it lies.
"""

import errno
from typing import Final

from iscsi.wire import initiator_tx
from iscsi.wire.port import READY, is_empty, port_at
from iscsi.wire.rx import PHASE_DATA
from ppe.cycle import libc
from ppe.cycle.accounts import E_BYTES_IN, E_BYTES_OUT, INDEX, add
from ppe.cycle.endpoints import (
    endpoint_of,
    queue_transmit,
    stats_of,
    stay_hot,
)
from ppe.cycle.records import (
    CALLS_PER_VISIT,
    CONNECTED,
    HUNG_UP,
    NONE,
    SPANS_MAX,
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


@nopython
def receive_once(engine: int, index: int) -> bool:
    """One call of the transport. False: there is no more, or the connection is over."""
    mine = engine_at(engine)[0]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover = mover_at(endpoint["mover"])[0]
    conn = mover["conn"]
    direct, wanted = _receive_spans(engine, mover["conn"], mover["ahead"])
    got = tcp.receive(engine, index, 2 if direct > 0 else 1)
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
    violation = 0
    if direct > 0:
        place = port_at(conn)[0]["want_address"]
        violation = roles.take(mover["role"], conn, place, placed)
    if got > direct and violation == 0:
        violation = roles.take(mover["role"], conn, mine["staging"], got - direct)
    if violation != 0:
        _say_why(engine, index, violation)
        return False
    port = port_at(conn)[0]  # Small pieces are better copied than received one at a time.
    is_large = port["rx_data_length"] >= LARGE_SEGMENT and port["rx_more"] == 0
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
def _receive_spans(engine: int, conn: int, ahead: int) -> tuple[int, int]:
    """Point the vectors at where the next bytes belong: bytes that go to their place, and all."""
    mine, port = engine_at(engine)[0], port_at(conn)[0]
    direct = 0
    if port["rx_phase"] == PHASE_DATA and port["want_length"] >= DIRECT_MIN:
        direct = port["want_length"]
        libc.fill_vector(mine["vectors"], 0, port["want_address"], direct)
    libc.fill_vector(mine["vectors"], 1 if direct > 0 else 0, mine["staging"], ahead)
    return direct, direct + ahead


@nopython
def progress(engine: int, index: int) -> int:
    """Send, then tell the host what is over. How many calls of the transport."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    done = 0
    while endpoint["writable"] != 0:
        if done == CALLS_PER_VISIT:
            queue_transmit(engine, index)
            break
        outcome = _send_once(engine, index)
        if outcome == 0:
            break
        done += 1
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
    """One call of the transport with as many spans as fit: 0 if there was nothing to send."""
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
        if spans == SPANS_MAX:
            break
        length = roles.next_span(role, conn)
    if spans == 0:
        return 0
    put = tcp.transmit(engine, index, spans, spans == SPANS_MAX)
    if put < 0 and put != EAGAIN:
        break_endpoint(engine, index, put)
        return 1
    if put > 0:
        count(mine["counters"], _BYTES_OUT, put)
        add(stats_of(engine, index) + E_BYTES_OUT, put)
        roles.sent(role, conn, put)
    if put < wanted:
        endpoint["writable"] = 0
        port["tx_taken"] = port["tx_sent"]  # What was not taken is offered again.
        port["tx_taken_offset"] = port["tx_sent_offset"]
    return 1
