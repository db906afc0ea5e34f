"""Transmit framing of MPA (RFC 5044 §4): FPDUs leave as spans of bytes, payload from where it lies.
Payload of a few bytes is copied, so that a small FPDU is one span. What an FPDU keeps from being
freed is released when the transport has taken all of it.
"""

from typing import Final

from ppe.cycle.rnic.iwarp.placement import work_at
from ppe.cycle.rnic.iwarp.records import (
    IRQ_ENTRY_SIZE,
    MARKERS_OFFSET,
    RELEASES_RESPONSE,
    RELEASES_WORK,
    TRAILER_OFFSET,
    TX_ENTRY_SIZE,
    TX_PIECE_SIZE,
    TX_PIECES,
    irq_entry_at,
    qp_at,
    sq_entry_at,
    tx_entry_at,
)
from ppe.cycle.rnic.iwarp.wire import (
    CRC_SIZE,
    FPDUPTR,
    LENGTH_SIZE,
    MARKER_GAP,
    MARKER_SIZE,
    MARKER_SPACING,
)
from ppe.cycle.rnic.memory import let_go
from shm.crc32c import ONES, finish, update
from shm.jit import nopython
from shm.layout import Field, record
from shm.memory import store_16_be, store_32
from shm.view import opener

_PIECE: Final = record(Field("address", "<i8"), Field("length", "<i8"), size=TX_PIECE_SIZE)
tx_piece_at = opener(_PIECE)


@nopython
def has_room(qp: int) -> bool:
    """Whether another FPDU can be made."""
    mine = qp_at(qp)[0]
    return bool(mine["tx_made"] - mine["tx_sent"] < mine["tx_capacity"])


@nopython
def _slot(qp: int, position: int) -> int:
    return int(position & (qp_at(qp)[0]["tx_capacity"] - 1))


@nopython
def entry_at(qp: int, position: int) -> int:
    """Address of the entry of an FPDU."""
    return int(qp_at(qp)[0]["tx_entries"] + TX_ENTRY_SIZE * _slot(qp, position))


@nopython
def room_at(qp: int, position: int) -> int:
    """Address of an FPDU's room: its header begins there."""
    mine = qp_at(qp)[0]
    return int(mine["tx_rooms"] + mine["tx_room_size"] * _slot(qp, position))


# --- making ----------------------------------------------------------------------------------


@nopython
def commit(qp: int, header_length: int, pieces: int, payload: int, releases: int, at: int) -> None:
    """Finish the FPDU whose header, with any small payload, lies in the next room: its length,
    padding, markers and CRC. `payload` bytes more lie in `pieces` pieces of its entry.
    """
    mine = qp_at(qp)[0]
    room = room_at(qp, mine["tx_made"])
    entry = tx_entry_at(entry_at(qp, mine["tx_made"]))[0]
    store_16_be(room, header_length - LENGTH_SIZE + payload)
    padding = -(header_length + payload) & 3
    trailer = room + (TRAILER_OFFSET if pieces > 0 else header_length)
    store_32(trailer, 0)
    store_32(trailer + padding, 0)
    own = header_length if pieces > 0 else header_length + padding + CRC_SIZE
    entry["header_length"], entry["piece_count"], entry["payload_length"] = own, pieces, payload
    entry["trailer_length"] = padding + CRC_SIZE if pieces > 0 else 0
    entry["length"] = header_length + payload + padding + CRC_SIZE
    entry["first_marker"] = entry["length"]
    entry["releases"], entry["position"] = releases, at
    if mine["markers_tx"]:
        _lay_markers(qp, room)
    if mine["crc"]:
        store_32(trailer + padding, _crc_of(qp, mine["tx_made"]))
    mine["tx_made"] += 1
    mine["tx_fpdus"] += 1


@nopython
def _lay_markers(qp: int, room: int) -> None:
    """Find where markers lie in an FPDU. One at its end belongs to the next (RFC 5044 §4.3)."""
    mine = qp_at(qp)[0]
    entry = tx_entry_at(entry_at(qp, mine["tx_made"]))[0]
    first, length = mine["tx_to_marker"], entry["length"]
    count = 0
    if first < length:
        count = (length - first + MARKER_GAP - 1) // MARKER_GAP
    # FPDUPTR counts from the length field, and a marker in front of that points at it.
    start = MARKER_SIZE if first == 0 else 0
    for which in range(count):
        marker = room + MARKERS_OFFSET + MARKER_SIZE * which
        at = first + MARKER_SPACING * which
        store_32(marker, 0)
        store_16_be(marker + FPDUPTR, max(0, at - start))
    entry["length"] = length + MARKER_SIZE * count
    entry["first_marker"] = first if count > 0 else entry["length"]
    mine["tx_to_marker"] = first + MARKER_SPACING * count - entry["length"]


@nopython
def _crc_of(qp: int, position: int) -> int:
    """The CRC of all bytes of an FPDU in front of it, in the order of the stream."""
    end = tx_entry_at(entry_at(qp, position))[0]["length"] - CRC_SIZE
    crc, at = ONES, 0
    while at < end:
        address, length = _span_at(qp, position, at)
        length = min(length, end - at)
        crc = update(crc, address, length)
        at += length
    return finish(crc)


# --- spans -----------------------------------------------------------------------------------


@nopython
def _span_at(qp: int, position: int, offset: int) -> tuple[int, int]:
    """Address and length of the bytes that follow `offset` bytes of an FPDU in the stream."""
    address = entry_at(qp, position)
    entry, room = tx_entry_at(address)[0], room_at(qp, position)
    run, at = entry["length"] - offset, offset
    first = entry["first_marker"]
    if offset < first:
        run = first - offset
    elif first < entry["length"]:
        which, inside = (offset - first) // MARKER_SPACING, (offset - first) % MARKER_SPACING
        if inside < MARKER_SIZE:
            return room + MARKERS_OFFSET + MARKER_SIZE * which + inside, MARKER_SIZE - inside
        run = min(run, MARKER_SPACING - inside)
        at -= MARKER_SIZE * (which + 1)
    if at < entry["header_length"]:
        return room + at, min(run, entry["header_length"] - at)
    at -= entry["header_length"]
    if at >= entry["payload_length"]:
        at -= entry["payload_length"]
        return room + TRAILER_OFFSET + at, min(run, entry["trailer_length"] - at)
    piece = tx_piece_at(address + TX_PIECES)[0]
    which = 0
    while at >= piece["length"]:
        at -= piece["length"]
        which += 1
        piece = tx_piece_at(address + TX_PIECES + TX_PIECE_SIZE * which)[0]
    return piece["address"] + at, min(run, piece["length"] - at)


@nopython
def span(qp: int) -> int:
    """Length of the next run of bytes to send, its address in `span_address`; 0 if none is made."""
    mine = qp_at(qp)[0]
    if mine["tx_taken"] == mine["tx_made"]:
        return 0
    address, length = _span_at(qp, mine["tx_taken"], mine["tx_taken_offset"])
    mine["span_address"] = address
    return int(length)


@nopython
def tx_take(qp: int, length: int) -> None:
    """Note that `length` bytes, no more than `next_span` said, were handed to the transport."""
    mine = qp_at(qp)[0]
    mine["tx_taken_offset"] += length
    if mine["tx_taken_offset"] == tx_entry_at(entry_at(qp, mine["tx_taken"]))[0]["length"]:
        mine["tx_taken"] += 1
        mine["tx_taken_offset"] = 0


@nopython
def untake(qp: int) -> None:
    """Offer again what was handed over and not sent."""
    mine = qp_at(qp)[0]
    mine["tx_taken"], mine["tx_taken_offset"] = mine["tx_sent"], mine["tx_sent_offset"]


@nopython
def sent(qp: int, count: int) -> None:
    """The transport took `count` bytes of what was handed over: whole FPDUs are released."""
    mine = qp_at(qp)[0]
    mine["tx_sent_offset"] += count
    while mine["tx_sent"] < mine["tx_made"]:
        entry = tx_entry_at(entry_at(qp, mine["tx_sent"]))[0]
        if mine["tx_sent_offset"] < entry["length"]:
            return
        mine["tx_sent_offset"] -= entry["length"]
        mine["tx_sent"] += 1
        if entry["releases"] == RELEASES_WORK:
            sq_entry_at(work_at(qp, entry["position"]))[0]["awaits"] -= 1
        elif entry["releases"] == RELEASES_RESPONSE:
            _release_response(qp)


@nopython
def _release_response(qp: int) -> None:
    """The peer's oldest request was answered entirely."""
    mine = qp_at(qp)[0]
    slot = mine["irq_head"] & (mine["irq_capacity"] - 1)
    let_go(irq_entry_at(mine["irq"] + IRQ_ENTRY_SIZE * slot)[0]["row"])
    mine["irq_head"] += 1
