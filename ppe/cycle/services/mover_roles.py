"""The protocol under a datamover endpoint by its role: the lower half of an initiator or of a
target, each with the same few functions.
"""

from typing import Final

from iscsi.wire import (
    initiator_mover,
    initiator_rx,
    initiator_tx,
    target_mover,
    target_notice,
    target_posts,
    target_refusal,
    target_rx,
    target_tx,
)
from iscsi.wire.errors import RejectReason
from iscsi.wire.port import EVENTS, is_empty, port_at
from iscsi.wire.violations import Violation
from ppe.cycle.services.mover_records import INITIATOR_ROLE
from shm.jit import nopython

DATA_DIGEST: Final = int(Violation.DATA_DIGEST)
HEADER_DIGEST: Final = int(Violation.HEADER_DIGEST)
DATA_DIGEST_ERROR: Final = int(RejectReason.DATA_DIGEST_ERROR)
PROTOCOL_ERROR: Final = int(RejectReason.PROTOCOL_ERROR)
PENDING: Final = initiator_mover.PENDING
assert PENDING == target_posts.PENDING


@nopython
def on_post(role: int, conn: int, post: int, home: int, home_size: int, handle: int) -> int:
    """What the host asks: PENDING, or how it ended at once."""
    if role == INITIATOR_ROLE:
        return initiator_mover.on_post(conn, post, home, home_size, handle)
    return target_mover.on_post(conn, post, home, home_size, handle)


@nopython
def take(role: int, conn: int, address: int, length: int) -> int:
    """Received bytes: 0 or a violation."""
    if role == INITIATOR_ROLE:
        return initiator_rx.rx_bytes(conn, address, length)
    return target_rx.rx_bytes(conn, address, length)


@nopython
def next_span(role: int, conn: int) -> int:
    """Length of the next bytes to send, at the port's `span_address`; 0: there are none."""
    if role == INITIATOR_ROLE:
        return initiator_tx.tx_next(conn)
    return target_tx.tx_next(conn)


@nopython
def sent(role: int, conn: int, length: int) -> None:
    """So many more bytes were taken by the transport."""
    if role == INITIATOR_ROLE:
        initiator_tx.tx_done(conn, length)
    else:
        target_tx.tx_done(conn, length)


@nopython
def event_next(role: int, conn: int, event: int) -> bool:
    """The next EVENT of a post that was PENDING."""
    if role == INITIATOR_ROLE:
        return initiator_mover.event_next(conn, event)
    return target_mover.event_next(conn, event)


@nopython
def has_news(role: int, conn: int) -> bool:
    """Whether a PDU waits that the host must see."""
    if role == INITIATOR_ROLE:
        return not is_empty(conn + EVENTS)
    return target_mover.has_news(conn)


@nopython
def notify_next(role: int, conn: int, buffer: int, size: int, event: int) -> int:
    """Put the next such PDU into a lent buffer: 1, 0 or -EMSGSIZE."""
    if role == INITIATOR_ROLE:
        return initiator_mover.notify_next(conn, buffer, size, event)
    return target_notice.notify_next(conn, buffer, size, event)


@nopython
def end(role: int, conn: int, status: int) -> None:
    """The connection is over: every post that has no event yet gets one with `status`."""
    if role == INITIATOR_ROLE:
        initiator_mover.end_all(conn, status)
    else:
        target_mover.end_all(conn, status)


@nopython
def refuse(role: int, conn: int, violation: int) -> bool:
    """Have a target say what was wrong with what it received last; whether it has to be sent."""
    if role == INITIATOR_ROLE or violation == HEADER_DIGEST:
        return False  # Without its header nobody knows what that was.
    reason = DATA_DIGEST_ERROR if violation == DATA_DIGEST else PROTOCOL_ERROR
    return target_refusal.reject(conn, port_at(conn)[0]["rx_header"], reason) == 0


@nopython
def places_into(role: int, conn: int, start: int, end: int) -> bool:
    """Whether data may still be placed between two addresses without an operation that says so."""
    if role == INITIATOR_ROLE:
        return initiator_mover.places_into(conn, start, end)
    return target_mover.places_into(conn, start, end)
