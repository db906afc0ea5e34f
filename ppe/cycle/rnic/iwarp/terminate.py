"""The end of a stream by error: the Terminate message we send, and what one of the peer says
(RFC 5040 §4.8). After either nothing is received any more; what was posted ends with `end`.
"""

from typing import Final

from ppe.cycle.rnic.iwarp.placement import (
    oldest_request,
    opcode_of,
    work_at,
)
from ppe.cycle.rnic.iwarp.records import (
    CLOSING,
    CODE_MASK,
    ERROR,
    RTS,
    TERMINATE,
    TERMINATED,
    VIOLATION,
    qp_at,
    sq_entry_at,
)
from ppe.cycle.rnic.iwarp.wire import (
    DDP_CONTROL,
    HDRCT_D,
    HDRCT_M,
    HDRCT_R,
    LENGTH_SIZE,
    MESSAGE_TOO_LONG,
    OP_ATOMIC_RESPONSE,
    OP_READ_REQUEST,
    OP_READ_RESPONSE,
    READ_REQUEST_SIZE,
    TAGGED,
    TAGGED_SIZE,
    TERMINATE_CONTROL_SIZE,
    TERMINATE_HEADERS,
    UNTAGGED_END,
    UNTAGGED_SIZE,
)
from ppe.cycle.rnic.receive import NONE, entry_of
from ppe.cycle.rnic.records import rq_entry_at
from shm.jit import nopython
from shm.memory import copy_bytes, load_8, load_16_be, store_8, store_16_be, zero_bytes
from shm.verbs_numbers import (
    WC_BAD_RESP_ERR,
    WC_LOC_LEN_ERR,
    WC_REM_ACCESS_ERR,
    WC_REM_INV_REQ_ERR,
    WC_REM_OP_ERR,
)

_SWAPPED_HEADERS: Final = 0x07  # siw before it was corrected: HdrCt, too, begins at the wrong end


# --- ours ------------------------------------------------------------------------------------


@nopython
def violate(qp: int, code: int, has_header: bool) -> int:
    """The peer broke the protocol: VIOLATION | code. A Terminate goes out, with the header of the
    segment under way if that is what is wrong with it.
    """
    mine = qp_at(qp)[0]
    code &= CODE_MASK
    if has_header:
        _blame(qp, code)
    mine["violation"] = VIOLATION | code
    mine["started"] = 1  # What came was no good, but it came: an answer may go out.
    _make(qp, code)
    if has_header:
        _add_headers(qp)
    return VIOLATION | code


@nopython
def terminate(qp: int, layer: int, etype: int, code: int) -> None:
    """End the stream from our side with a Terminate, if it was not ending already."""
    mine = qp_at(qp)[0]
    if mine["state"] == RTS or mine["state"] == CLOSING:
        mine["violation"] = VIOLATION | layer << 12 | etype << 8 | code
        _make(qp, layer << 12 | etype << 8 | code)


@nopython
def _make(qp: int, code: int) -> None:
    mine = qp_at(qp)[0]
    mine["state"], mine["want_length"] = TERMINATE, 0
    zero_bytes(mine["terminate"], TERMINATE_CONTROL_SIZE)
    store_16_be(mine["terminate"], code)
    mine["terminate_length"] = TERMINATE_CONTROL_SIZE
    mine["terminate_due"] = mine["started"]


@nopython
def _add_headers(qp: int) -> None:
    """Quote the segment that is wrong: its length, its DDP header and a Read Request's own."""
    mine = qp_at(qp)[0]
    header, message = mine["rx_header"], mine["terminate"]
    is_tagged = load_8(header + DDP_CONTROL) & TAGGED != 0
    size = TAGGED_SIZE if is_tagged else UNTAGGED_SIZE
    at = message + TERMINATE_CONTROL_SIZE
    store_16_be(at, mine["rx_length"])
    copy_bytes(at + 2, header + LENGTH_SIZE, size)
    quoted = HDRCT_M | HDRCT_D
    mine["terminate_length"] += 2 + size
    if opcode_of(qp) == OP_READ_REQUEST:
        copy_bytes(at + 2 + size, header + UNTAGGED_END, READ_REQUEST_SIZE)
        quoted |= HDRCT_R
        mine["terminate_length"] += READ_REQUEST_SIZE
    store_8(message + TERMINATE_HEADERS, quoted)


@nopython
def _blame(qp: int, code: int) -> None:
    """The work request that the wrong segment belongs to fails by itself, not by flushing."""
    mine = qp_at(qp)[0]
    opcode = opcode_of(qp)
    if code == MESSAGE_TOO_LONG and mine["rx_entry"] != NONE:
        entry = rq_entry_at(entry_of(mine["rq"], mine["rx_entry"]))[0]
        entry["status"] = WC_LOC_LEN_ERR
    if opcode in (OP_READ_RESPONSE, OP_ATOMIC_RESPONSE):
        fail(qp, oldest_request(qp), WC_BAD_RESP_ERR)


@nopython
def fail(qp: int, position: int, status: int) -> None:
    """Have one work request end with its own status instead of being flushed."""
    mine = qp_at(qp)[0]
    if position >= 0 and mine["failed"] == NONE:
        mine["failed"], mine["failed_status"] = position, status


# --- the peer's ------------------------------------------------------------------------------


@nopython
def code_of(message: int) -> int:
    """layer << 12 | etype << 8 | code of a Terminate's payload.

    Some siw sends both nibbles and the bits of HdrCt in the wrong order: known by a HdrCt that
    cannot be, or by a layer or error type that does not exist.
    """
    first = load_8(message)
    is_swapped = load_8(message + TERMINATE_HEADERS) & _SWAPPED_HEADERS != 0
    if not is_swapped and not _exists(first >> 4, first & 15):
        is_swapped = _exists(first & 15, first >> 4)
    if is_swapped:
        first = (first & 15) << 4 | first >> 4
    return first << 8 | load_16_be(message) & 0xFF


@nopython
def _exists(layer: int, etype: int) -> bool:
    """Whether an error type is defined for a layer."""
    if layer == 2:
        return etype == 0
    return layer < 2 and etype <= 2


@nopython
def terminated(qp: int) -> int:
    """A Terminate came: TERMINATED | code. The stream is over in both directions."""
    mine = qp_at(qp)[0]
    code = code_of(mine["rx_header"] + UNTAGGED_END)
    mine["terminated"] = TERMINATED | code
    mine["state"] = ERROR
    position = oldest_unfinished(qp)
    layer, etype = code >> 12, code >> 8 & 15
    if layer == 0 and etype == 1:
        # Only requests touch memory on behalf of RDMAP, and they are answered in order.
        oldest = oldest_request(qp)
        fail(qp, oldest if oldest >= 0 else position, WC_REM_ACCESS_ERR)
    elif layer == 0 and etype == 2:
        fail(qp, position, WC_REM_OP_ERR)
    elif layer == 1 and etype == 1:
        fail(qp, position, WC_REM_ACCESS_ERR)
    elif layer == 1 and etype == 2:
        fail(qp, position, WC_REM_INV_REQ_ERR)
    return TERMINATED | code


@nopython
def oldest_unfinished(qp: int) -> int:
    """Position of the oldest send work request that is not over, or -1."""
    mine = qp_at(qp)[0]
    for position in range(mine["sq_retired"], mine["sq_posted"]):
        if sq_entry_at(work_at(qp, position))[0]["awaits"] != 0:
            return position
    return NONE
