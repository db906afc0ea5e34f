"""Receive framing of MPA in full operation (RFC 5044 §4): which bytes of the stream are a header,
payload, padding, CRC or a marker. Payload goes straight to where its header says (`placement`), or
lies there already; a message takes effect (`delivery`) only when its last segment's CRC is right.
"""

from typing import Final

from ppe.cycle.rnic.iwarp.delivery import deliver
from ppe.cycle.rnic.iwarp.placement import check_control, next_piece, place
from ppe.cycle.rnic.iwarp.records import (
    CLOSING,
    RTS,
    RX_MARKER,
    RX_TRAILER,
    TERMINATED,
    qp_at,
)
from ppe.cycle.rnic.iwarp.terminate import violate
from ppe.cycle.rnic.iwarp.wire import (
    CRC_MISMATCH,
    CRC_SIZE,
    DDP_CONTROL,
    FPDUPTR,
    LENGTH_SIZE,
    MARKER_GAP,
    MARKER_OR_LENGTH,
    MARKER_SIZE,
    OPCODE_MASK,
    RDMAP_CONTROL,
    TAGGED,
    header_end,
)
from shm.crc32c import ONES, copy_and_update, finish, update
from shm.jit import nopython
from shm.memory import copy_bytes, load_8, load_16_be, load_32

# What comes next in the stream, markers aside.
PHASE_START: Final = 0  # ULPDU_Length and both control bytes, which say how long the header is
PHASE_HEADER: Final = 1
PHASE_PAYLOAD: Final = 2
PHASE_SINK: Final = 3  # the rest of a segment that is not placed, with its padding
PHASE_PAD: Final = 4
PHASE_CRC: Final = 5
# A segment that is worth being received to its place.
LARGE_SEGMENT: Final = 16384
START_SIZE: Final = 4  # an FPDU has always so many bytes before its CRC


@nopython
def take(qp: int, address: int, count: int) -> int:
    """Take `count` bytes of the stream that lie at `address`, which may be `want_address`.

    0; or VIOLATION | code: the peer broke the protocol, a Terminate is to be sent and nothing more
    is taken; or TERMINATED | code: the peer sent one.
    """
    mine = qp_at(qp)[0]
    while count > 0 and (mine["state"] == RTS or mine["state"] == CLOSING):
        if mine["markers_rx"] and mine["rx_to_marker"] == 0:
            size = _take_marker(qp, address, count)
        else:
            size = _take_piece(qp, address, count)
        address += size
        count -= size
        outcome = _spoilt_marker(qp)
        while outcome == 0 and mine["rx_need"] == 0:
            outcome = _advance(qp)
        if outcome != 0:
            mine["want_length"] = 0
            return outcome
    _say_what_is_wanted(qp)
    return 0


@nopython
def is_between_fpdus(qp: int) -> bool:
    """Whether the stream may end here without cutting an FPDU."""
    mine = qp_at(qp)[0]
    if mine["rx_phase"] != PHASE_START or mine["rx_have"] > 0 or mine["rx_marker"] > 0:
        return False
    # A marker that was just taken is the beginning of an FPDU.
    return bool(not mine["markers_rx"] or mine["rx_to_marker"] != MARKER_GAP)


@nopython
def next_fpdu(qp: int) -> None:
    """Expect the first byte of an FPDU."""
    mine = qp_at(qp)[0]
    mine["rx_phase"] = PHASE_START
    mine["rx_have"], mine["rx_position"] = 0, 0
    mine["rx_need"], mine["rx_target"] = START_SIZE, mine["rx_header"]
    mine["rx_crc"], mine["rx_fault"] = ONES, 0


@nopython
def _say_what_is_wanted(qp: int) -> None:
    """Set `want_address` and `want_length` if the next bytes are payload that has a place."""
    mine = qp_at(qp)[0]
    has_place = mine["rx_phase"] == PHASE_PAYLOAD and mine["rx_target"] != 0
    wanted = mine["rx_need"] if has_place else 0
    if mine["markers_rx"]:
        wanted = min(wanted, mine["rx_to_marker"])
    mine["want_address"], mine["want_length"] = mine["rx_target"], wanted


@nopython
def _take_piece(qp: int, address: int, count: int) -> int:
    """Put bytes of the current phase where they belong: how many."""
    mine = qp_at(qp)[0]
    size = min(count, mine["rx_need"])
    if mine["markers_rx"]:
        size = min(size, mine["rx_to_marker"])
        mine["rx_to_marker"] -= size
    target = mine["rx_target"]
    is_there = target == 0 or target == address
    if mine["crc"] and mine["rx_phase"] != PHASE_CRC:
        if is_there:
            mine["rx_crc"] = update(mine["rx_crc"], address, size)
        else:
            mine["rx_crc"] = copy_and_update(mine["rx_crc"], target, address, size)
    elif not is_there:
        copy_bytes(target, address, size)
    if target != 0:
        mine["rx_target"] += size
    if mine["rx_phase"] <= PHASE_HEADER:
        mine["rx_have"] += size
    mine["rx_need"] -= size
    mine["rx_position"] += size
    return int(size)


# --- markers ---------------------------------------------------------------------------------


@nopython
def _take_marker(qp: int, address: int, count: int) -> int:
    """Take bytes of a marker: how many. One between FPDUs counts as part of the later one."""
    mine = qp_at(qp)[0]
    marker = mine["rx_header"] + RX_MARKER
    size = min(count, MARKER_SIZE - mine["rx_marker"])
    copy_bytes(marker + mine["rx_marker"], address, size)
    mine["rx_marker"] += size
    if mine["crc"]:
        mine["rx_crc"] = update(mine["rx_crc"], address, size)
    if mine["rx_marker"] == MARKER_SIZE:
        if load_16_be(marker + FPDUPTR) != mine["rx_position"]:
            mine["rx_fault"] = MARKER_OR_LENGTH
        if mine["rx_position"] > 0:
            mine["rx_position"] += MARKER_SIZE
        mine["rx_marker"], mine["rx_to_marker"] = 0, MARKER_GAP
    return int(size)


@nopython
def _spoilt_marker(qp: int) -> int:
    """Without a CRC, which would say whether the marker itself is spoilt, it is believed."""
    mine = qp_at(qp)[0]
    if mine["rx_fault"] == MARKER_OR_LENGTH and not mine["crc"]:
        return violate(qp, MARKER_OR_LENGTH, False)
    return 0


# --- phases ----------------------------------------------------------------------------------


@nopython
def _advance(qp: int) -> int:
    """Go on after all bytes of a phase came: 0, or why not."""
    mine = qp_at(qp)[0]
    phase = mine["rx_phase"]
    if phase == PHASE_START:
        return _begin(qp)
    if phase == PHASE_HEADER:
        fault = mine["rx_fault"]
        if fault == 0:
            fault = place(qp)
        if fault != 0:
            return _spoil(qp, fault)
        mine["rx_phase"] = PHASE_PAYLOAD
        return 0
    if phase == PHASE_PAYLOAD:
        if mine["rx_left"] > 0:
            next_piece(qp)
            return 0
        _want_trailer(qp, PHASE_PAD, -(LENGTH_SIZE + mine["rx_length"]) & 3)
        return 0
    if phase == PHASE_CRC:
        return _complete(qp)
    _want_trailer(qp, PHASE_CRC, CRC_SIZE)
    return 0


@nopython
def _want_trailer(qp: int, phase: int, length: int) -> None:
    mine = qp_at(qp)[0]
    mine["rx_phase"] = phase
    mine["rx_need"], mine["rx_target"] = length, mine["rx_header"] + RX_TRAILER


@nopython
def _begin(qp: int) -> int:
    """The length and what kind of segment it is are known."""
    mine = qp_at(qp)[0]
    header = mine["rx_header"]
    mine["rx_length"] = load_16_be(header)
    if mine["rx_length"] >= LARGE_SEGMENT:
        mine["rx_large"] += 1
    fault = MARKER_OR_LENGTH
    if mine["rx_length"] >= START_SIZE - LENGTH_SIZE:
        fault = check_control(qp)
    if fault != 0:
        return _spoil(qp, fault)
    opcode = load_8(header + RDMAP_CONTROL) & OPCODE_MASK
    tagged = load_8(header + DDP_CONTROL) & TAGGED
    end = header_end(opcode, tagged, mine["rx_length"])
    if LENGTH_SIZE + mine["rx_length"] < end:
        return _spoil(qp, MARKER_OR_LENGTH)
    mine["rx_phase"] = PHASE_HEADER
    mine["rx_need"] = end - START_SIZE
    return 0


@nopython
def _spoil(qp: int, fault: int) -> int:
    """A header that cannot be: if the CRC tells that it came as it was sent, it is the peer's
    fault, else the network's. Without a CRC it is the peer's at once.
    """
    mine = qp_at(qp)[0]
    if not mine["crc"]:
        return violate(qp, fault, mine["rx_phase"] == PHASE_HEADER)
    mine["rx_fault"] = fault
    mine["rx_has_header"] = mine["rx_phase"] == PHASE_HEADER
    whole = (LENGTH_SIZE + mine["rx_length"] + 3) & ~3
    mine["rx_phase"], mine["rx_target"] = PHASE_SINK, 0
    mine["rx_need"] = whole - mine["rx_have"]
    return 0


@nopython
def _complete(qp: int) -> int:
    """An FPDU is there: what it says takes effect if its CRC is right."""
    mine = qp_at(qp)[0]
    fault = mine["rx_fault"]
    if mine["crc"] and finish(mine["rx_crc"]) != load_32(mine["rx_header"] + RX_TRAILER):
        return violate(qp, CRC_MISMATCH, False)
    if fault != 0:
        return violate(qp, fault, fault != MARKER_OR_LENGTH and mine["rx_has_header"] != 0)
    code = deliver(qp)
    if code & TERMINATED:
        return code
    if code != 0:
        return violate(qp, code, True)
    next_fpdu(qp)
    return 0
