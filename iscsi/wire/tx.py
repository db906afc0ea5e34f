"""Transmit framing for both roles: PDUs are made when there is room and leave as spans of bytes.
Headers lie side by side, so PDUs without data make one long span; data is sent from where it lies
and must stay there until `retire` names its token, or from a copy that is made with its digest.
"""

from collections.abc import Callable
from typing import Any, Final

from iscsi.wire import bhs
from iscsi.wire.port import (
    COPY_MARGIN,
    INLINE_SIZE,
    READY,
    TOKEN_CONTROL,
    TOKEN_NONE,
    TOKEN_TASK,
    TRAILER_SIZE,
    TX_SIZE,
    control_give,
    is_empty,
    port_at,
    token_address,
    token_kind,
    tx_at,
)
from shm.crc32c import ONES, copy_and_update, finish, update
from shm.jit import nopython
from shm.memory import copy_bytes, store_8, store_24_be, store_32, store_64, zero_bytes

BHS_LENGTH: Final = bhs.BHS_LENGTH
DIGEST_LENGTH: Final = bhs.DIGEST_LENGTH
DATA_SEGMENT_LENGTH: Final = bhs.OFFSET_DATA_SEGMENT_LENGTH
# With so much made and not taken no further PDU is made: a digest reads all of its data, and copies
# are to be sent while they are in a cache. One PDU, of 16 MiB at the most, may go beyond it.
AHEAD_MAX: Final = 512 << 10


@nopython
def has_room(conn: int) -> bool:
    """Whether another PDU can be made now: it has a slot, and what is made waits for nobody."""
    port = port_at(conn)[0]
    return bool(
        port["tx_made"] - port["tx_sent"] < port["tx_capacity"] and port["tx_ahead"] < AHEAD_MAX
    )


@nopython
def slot_of(conn: int, position: int) -> int:
    """Which place of the ring an entry takes."""
    return int(position & (port_at(conn)[0]["tx_capacity"] - 1))


@nopython
def entry_of(conn: int, position: int) -> int:
    """Address of the TX at a position."""
    return int(port_at(conn)[0]["tx_entries"] + TX_SIZE * slot_of(conn, position))


@nopython
def begin(conn: int) -> int:
    """Address of the next PDU's header, 48 zero bytes. There must be room."""
    port = port_at(conn)[0]
    header = port["tx_headers"] + port["tx_header_length"] * slot_of(conn, port["tx_made"])
    zero_bytes(header, BHS_LENGTH)
    return int(header)


@nopython
def inline_data(conn: int) -> int:
    """Address of INLINE_SIZE bytes that live as long as the PDU being made."""
    port = port_at(conn)[0]
    return int(port["tx_inlines"] + INLINE_SIZE * slot_of(conn, port["tx_made"]))


@nopython
def _made(conn: int, length: int) -> None:
    """The PDU under way is complete and has `length` bytes."""
    port = port_at(conn)[0]
    tx_at(entry_of(conn, port["tx_made"]))[0]["length"] = length
    port["tx_ahead"] += length
    port["tx_made"] += 1
    port["tx_pdus"] += 1


@nopython
def commit(conn: int, header: int, data: int, length: int, token: int) -> None:
    """Finish the PDU whose header `begin` gave: its data segment, digests and what it releases."""
    port = port_at(conn)[0]
    store_24_be(header + DATA_SEGMENT_LENGTH, length)
    if port["header_digest"]:
        store_32(header + BHS_LENGTH, finish(update(ONES, header, BHS_LENGTH)))
    trailer = (-length) & 3
    if length > 0 and port["data_digest"]:
        where = port["tx_trailers"] + TRAILER_SIZE * slot_of(conn, port["tx_made"])
        store_64(where, 0)
        crc = update(update(ONES, data, length), where, trailer)
        store_32(where + trailer, finish(crc))
        trailer += 4
    entry = tx_at(entry_of(conn, port["tx_made"]))[0]
    entry["data_address"] = data
    entry["data_length"] = length
    entry["trailer_length"] = trailer
    entry["token"] = token
    _made(conn, port["tx_header_length"] + length + trailer)


@nopython
def copy_limit(conn: int) -> int:
    """How much data `commit_copy` takes in one PDU; 0: data is sent from where it lies.

    Data that somebody may change between its digest and its sending is to be copied, or the peer
    would find a wrong digest. Without a digest it does not matter which of both it sees.
    """
    port = port_at(conn)[0]
    return int(port["tx_copy_size"]) if port["data_digest"] else 0


@nopython
def commit_copy(conn: int, header: int, data: int, length: int) -> None:
    """`commit` for 1..`copy_limit` bytes of data that may change: they are copied, with the digest.

    The trailer lies behind the copy, so both are one span. Nothing is released when it is sent.
    """
    port = port_at(conn)[0]
    store_24_be(header + DATA_SEGMENT_LENGTH, length)
    if port["header_digest"]:
        store_32(header + BHS_LENGTH, finish(update(ONES, header, BHS_LENGTH)))
    place = slot_of(conn, port["tx_made"]) * (port["tx_copy_size"] + COPY_MARGIN)
    copy = port["tx_copies"] + place
    padding = (-length) & 3
    store_64(copy + length, 0)
    crc = copy_and_update(ONES, copy, data, length)
    store_32(copy + length + padding, finish(update(crc, copy + length, padding)))
    entry = tx_at(entry_of(conn, port["tx_made"]))[0]
    entry["data_address"] = copy
    entry["data_length"] = length + padding + DIGEST_LENGTH
    entry["trailer_length"] = 0
    entry["token"] = TOKEN_NONE
    _made(conn, port["tx_header_length"] + length + padding + DIGEST_LENGTH)


@nopython
def commit_segments(conn: int, header: int, segments: int, length: int, token: int) -> None:
    """Finish a PDU without data whose header `begin` gave, with additional header segments.

    `length` is 8 or more, whole words. They are sent from where they lie, like data; the header
    digest covers them and follows them (RFC 7143 §11.2.3), so with one the first word takes the
    digest's place behind the header.
    """
    port = port_at(conn)[0]
    store_24_be(header + DATA_SEGMENT_LENGTH, 0)
    store_8(header + bhs.OFFSET_TOTAL_AHS_WORDS, length >> 2)
    moved = port["tx_header_length"] - BHS_LENGTH
    entry = tx_at(entry_of(conn, port["tx_made"]))[0]
    if moved:
        copy_bytes(header + BHS_LENGTH, segments, moved)
        crc = update(ONES, header, BHS_LENGTH + moved)
        where = port["tx_trailers"] + TRAILER_SIZE * slot_of(conn, port["tx_made"])
        store_32(where, finish(update(crc, segments + moved, length - moved)))
    entry["data_address"] = segments + moved
    entry["data_length"] = length - moved
    entry["trailer_length"] = moved
    entry["token"] = token
    _made(conn, BHS_LENGTH + length + moved)


@nopython
def span(conn: int) -> int:
    """Length of the next run of bytes to send, its address in `span_address`; 0 if there is none.

    Only looks: `take` says that bytes were handed over. Asked again later it may be longer.
    """
    port = port_at(conn)[0]
    position = port["tx_taken"]
    if position == port["tx_made"]:
        return 0
    at = port["tx_taken_offset"]
    entry = tx_at(entry_of(conn, position))[0]
    header_length = port["tx_header_length"]
    if at < header_length:
        port["span_address"] = port["tx_headers"] + header_length * slot_of(conn, position) + at
        return int(header_length - at + header_length * _headers_after(conn, position))
    at -= header_length
    if at < entry["data_length"]:
        port["span_address"] = entry["data_address"] + at
        return int(entry["data_length"] - at)
    at -= entry["data_length"]
    port["span_address"] = port["tx_trailers"] + TRAILER_SIZE * slot_of(conn, position) + at
    return int(entry["trailer_length"] - at)


@nopython
def _headers_after(conn: int, position: int) -> int:
    """How many headers follow the one at `position` directly, in the stream and in memory."""
    port = port_at(conn)[0]
    count = 0
    while (
        tx_at(entry_of(conn, position))[0]["data_length"] == 0
        and position + 1 < port["tx_made"]
        and slot_of(conn, position + 1) != 0
    ):
        count += 1
        position += 1
    return count


@nopython
def take(conn: int, length: int) -> None:
    """Note that the first `length` bytes of what is there to send were handed to the transport."""
    port = port_at(conn)[0]
    port["tx_ahead"] -= length
    while length > 0 and port["tx_taken"] < port["tx_made"]:
        left = tx_at(entry_of(conn, port["tx_taken"]))[0]["length"] - port["tx_taken_offset"]
        if length < left:
            port["tx_taken_offset"] += length
            return
        length -= left
        port["tx_taken"] += 1
        port["tx_taken_offset"] = 0


@nopython
def take_back(conn: int, length: int) -> None:
    """The last `length` bytes that were taken, all that are not sent, are to be sent after all."""
    port = port_at(conn)[0]
    port["tx_ahead"] += length
    port["tx_taken"] = port["tx_sent"]
    port["tx_taken_offset"] = port["tx_sent_offset"]


@nopython
def forget_all(conn: int) -> None:
    """Nothing more will be sent: its connection is over."""
    port = port_at(conn)[0]
    port["tx_ahead"] = 0
    port["tx_taken"] = port["tx_sent"] = port["tx_made"]
    port["tx_taken_offset"] = port["tx_sent_offset"] = 0


@nopython
def has_sent(conn: int, length: int) -> bool:
    """Add bytes that were sent; call `retire` while this is true (then with length 0)."""
    port = port_at(conn)[0]
    port["tx_sent_offset"] += length
    if port["tx_sent"] == port["tx_made"]:
        return False
    return bool(port["tx_sent_offset"] >= tx_at(entry_of(conn, port["tx_sent"]))[0]["length"])


@nopython
def retire(conn: int) -> int:
    """Free the entry of the oldest PDU, which was sent entirely, and return its token."""
    port = port_at(conn)[0]
    entry = tx_at(entry_of(conn, port["tx_sent"]))[0]
    port["tx_sent_offset"] -= entry["length"]
    port["tx_sent"] += 1
    return int(entry["token"])


@nopython
def names(conn: int, start: int, end: int) -> bool:
    """Whether data of a PDU whose sending was not reported lies between two addresses."""
    port = port_at(conn)[0]
    for position in range(port["tx_sent"], port["tx_made"]):
        at = tx_at(entry_of(conn, position))[0]["data_address"]
        if at >= start and at < end:
            return True
    return False


@nopython
def unsent(conn: int) -> int:
    """PDUs made whose sending was not reported yet."""
    port = port_at(conn)[0]
    return int(port["tx_made"] - port["tx_sent"])


def make_tx(
    make_one: Any, one_sent: Any
) -> tuple[Callable[[int], int], Callable[[int, int], None]]:
    """Make one role's `tx_next` and `tx_done` from its nopython functions: `make_one(conn)` makes
    what stands first in line, `one_sent(conn, task)` is told of a task's PDU whose data has left.
    """

    @nopython
    def tx_next(conn: int) -> int:
        """Length of the next bytes to send (at the port's `span_address`), or 0.

        Makes PDUs while there is room for them (`has_room`). Hand the bytes, or the first of them,
        to the transport and say so with `take`, then ask again; say `tx_done` when they are sent.
        """
        while has_room(conn) and not is_empty(conn + READY):
            make_one(conn)
        return span(conn)

    @nopython
    def tx_done(conn: int, length: int) -> None:
        """`length` more bytes are sent: their slots and their data's memory are free again."""
        more = has_sent(conn, length)
        while more:
            token = retire(conn)
            if token_kind(token) == TOKEN_CONTROL:
                control_give(conn, token_address(token))
            elif token_kind(token) == TOKEN_TASK:
                one_sent(conn, token_address(token))
            more = has_sent(conn, 0)

    return tx_next, tx_done
