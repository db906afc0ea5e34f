"""Receive framing for both roles: which bytes of the stream belong where (RFC 7143 §11.1).
The role fills in where a PDU's data goes when its header is complete and acts when the PDU is; the
bytes may already lie where they are wanted, and then they are not touched.
"""

from collections.abc import Callable
from typing import Any, Final

from iscsi.wire import bhs
from iscsi.wire.port import SINK_SIZE, port_at
from iscsi.wire.violations import Violation
from shm.crc32c import ONES, copy_and_update, finish, update
from shm.jit import nopython
from shm.memory import copy_bytes, load_8, load_24_be, load_32

BHS_LENGTH: Final = bhs.BHS_LENGTH
AHS_WORDS: Final = bhs.OFFSET_TOTAL_AHS_WORDS
DATA_SEGMENT_LENGTH: Final = bhs.OFFSET_DATA_SEGMENT_LENGTH

# What comes next in the stream.
PHASE_BHS: Final = 0
PHASE_REST_OF_HEADER: Final = 1  # AHS and header digest
PHASE_DATA: Final = 2
PHASE_SINK: Final = 3
PHASE_TRAILER: Final = 4  # padding and data digest

# What `step` found.
MORE: Final = 0
HEADER_COMPLETE: Final = 1
PDU_COMPLETE: Final = 2
NEXT_PLACE: Final = 3  # the role says with `place_next` where more of the data goes

HEADER_DIGEST: Final = int(Violation.HEADER_DIGEST)
DATA_DIGEST: Final = int(Violation.DATA_DIGEST)
DATA_SEGMENT_TOO_LONG: Final = int(Violation.DATA_SEGMENT_TOO_LONG)


@nopython
def want(conn: int, phase: int, address: int, length: int) -> None:
    """Say where the next bytes belong."""
    port = port_at(conn)[0]
    port["rx_phase"] = phase
    port["want_address"] = address
    port["want_length"] = length


@nopython
def take(conn: int, address: int, length: int) -> int:
    """Put up to `length` bytes lying at `address` where they are wanted; return how many."""
    port = port_at(conn)[0]
    size = min(length, port["want_length"])
    if port["data_digest"] and (port["rx_phase"] == PHASE_DATA or port["rx_phase"] == PHASE_SINK):
        _take_with_digest(conn, address, size)
    elif address != port["want_address"]:
        copy_bytes(port["want_address"], address, size)
    port["want_address"] += size
    port["want_length"] -= size
    return int(size)


@nopython
def _take_with_digest(conn: int, address: int, length: int) -> None:
    """Put data in its place and continue its digest, in one pass where the bytes are copied."""
    port = port_at(conn)[0]
    target = port["want_address"]
    if address == target:
        port["rx_crc"] = update(port["rx_crc"], address, length)
    else:
        port["rx_crc"] = copy_and_update(port["rx_crc"], target, address, length)


@nopython
def is_between_pdus(conn: int) -> bool:
    """Whether the next byte is the first of a PDU."""
    port = port_at(conn)[0]
    return bool(port["rx_phase"] == PHASE_BHS and port["want_length"] == BHS_LENGTH)


@nopython
def step(conn: int) -> int:
    """Go on after all wanted bytes came: MORE, HEADER_COMPLETE, PDU_COMPLETE or a violation; and
    NEXT_PLACE for a role that has spoken of more places (`rx_more`).
    """
    port = port_at(conn)[0]
    phase = port["rx_phase"]
    if phase == PHASE_BHS:
        rest = ahs_length(conn) + 4 * port["header_digest"]
        if rest:
            want(conn, PHASE_REST_OF_HEADER, port["rx_header"] + BHS_LENGTH, rest)
            return MORE
        return _header_complete(conn)
    if phase == PHASE_REST_OF_HEADER:
        return _header_complete(conn)
    if phase == PHASE_TRAILER:
        return _check_data_digest(conn)
    if port["rx_more"] > 0:
        return NEXT_PLACE
    return _next_piece(conn)


@nopython
def ahs_length(conn: int) -> int:
    """Bytes of additional header segments of the PDU under way."""
    return 4 * load_8(port_at(conn)[0]["rx_header"] + AHS_WORDS)


@nopython
def _header_complete(conn: int) -> int:
    port = port_at(conn)[0]
    header = port["rx_header"]
    if port["header_digest"]:
        length = BHS_LENGTH + ahs_length(conn)
        if finish(update(ONES, header, length)) != load_32(header + length):
            return HEADER_DIGEST
    length = load_24_be(header + DATA_SEGMENT_LENGTH)
    if length > port["max_recv_data_segment_length"]:
        return DATA_SEGMENT_TOO_LONG
    port["rx_data_length"] = length
    port["rx_place"] = 0
    port["rx_pdus"] += 1
    return HEADER_COMPLETE


@nopython
def place(conn: int, address: int, length: int) -> None:
    """Have the first `length` bytes of this PDU's data put at `address`; the sink gets the rest."""
    port = port_at(conn)[0]
    port["rx_address"] = address
    port["rx_place"] = min(length, port["rx_data_length"])


@nopython
def place_next(conn: int, address: int, length: int) -> None:
    """Have the next `length` bytes of the data, at most `rx_more`, put at `address`."""
    port = port_at(conn)[0]
    port["rx_more"] -= length
    port["rx_left"] -= length
    want(conn, PHASE_DATA, address, length)


@nopython
def forget_place(conn: int) -> None:
    """Have the sink get what is still to come of this PDU's data; what came stays where it is.

    Only for bytes that are copied to where they are wanted, not received there.
    """
    port = port_at(conn)[0]
    if port["rx_phase"] != PHASE_DATA:
        return
    port["rx_left"] += port["want_length"]
    port["rx_more"] = 0
    _next_piece(conn)


@nopython
def begin_data(conn: int) -> int:
    """Ask for the data segment, after the role looked at the header: MORE or PDU_COMPLETE."""
    port = port_at(conn)[0]
    port["rx_left"] = port["rx_data_length"] - port["rx_place"]
    port["rx_crc"] = ONES
    if port["rx_place"] > 0:
        want(conn, PHASE_DATA, port["rx_address"], port["rx_place"])
        return MORE
    return _next_piece(conn)


@nopython
def _next_piece(conn: int) -> int:
    port = port_at(conn)[0]
    if port["rx_left"] > 0:
        size = min(port["rx_left"], SINK_SIZE)
        port["rx_left"] -= size
        want(conn, PHASE_SINK, port["rx_sink"], size)
        return MORE
    length = port["rx_data_length"]
    trailer = (-length) & 3
    if length > 0:
        trailer += 4 * port["data_digest"]
    if trailer:
        want(conn, PHASE_TRAILER, port["rx_sink"], trailer)
        return MORE
    return PDU_COMPLETE


@nopython
def _check_data_digest(conn: int) -> int:
    port = port_at(conn)[0]
    if port["data_digest"]:
        padding = (-port["rx_data_length"]) & 3
        crc = finish(update(port["rx_crc"], port["rx_sink"], padding))
        if crc != load_32(port["rx_sink"] + padding):
            return DATA_DIGEST
    return PDU_COMPLETE


@nopython
def next_pdu(conn: int) -> None:
    """Ask for the next header."""
    want(conn, PHASE_BHS, port_at(conn)[0]["rx_header"], BHS_LENGTH)


def make_rx(go_on: Any) -> tuple[Callable[[int, int, int], int], Callable[[int, int], int]]:
    """Make one role's `rx_bytes` and `rx_placed` from `go_on(conn)`, its nopython function for what
    `step` finds. The outcome of all three is 0 or a Violation.
    """

    @nopython
    def rx_bytes(conn: int, address: int, length: int) -> int:
        """Take the next `length` bytes of the stream, all of them. 0, or the Violation they hold.

        Bytes that already lie at the port's `want_address` stay there; others are copied to where
        they belong. After a violation nothing more is accepted and every task keeps its state.
        """
        port = port_at(conn)[0]
        while length > 0 and port["error"] == 0:
            size = take(conn, address, length)
            address += size
            length -= size
            while port["want_length"] == 0 and port["error"] == 0:
                port["error"] = go_on(conn)
        return int(port["error"])

    @nopython
    def rx_placed(conn: int, length: int) -> int:
        """`rx_bytes` for bytes that lie at `want_address` already; at most `want_length`."""
        return rx_bytes(conn, port_at(conn)[0]["want_address"], length)

    return rx_bytes, rx_placed
