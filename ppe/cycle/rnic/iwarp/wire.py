"""The headers of iWARP on the wire, and the codes of a Terminate: offsets, opcodes and lengths.

All numbers are in network order; an FPDU is two bytes of ULPDU_Length, the ULPDU (a DDP segment),
up to three of padding and four of CRC, which alone is stored as a little-endian word (RFC 5044 §4).
"""

from typing import Final

from shm.jit import nopython

# --- MPA (RFC 5044 §4.1, §4.3) -----------------------------------------------------------------
LENGTH_SIZE: Final = 2
CRC_SIZE: Final = 4
MARKER_SIZE: Final = 4
MARKER_SPACING: Final = 512  # bytes of TCP stream from the start of one to the start of the next
MARKER_GAP: Final = MARKER_SPACING - MARKER_SIZE
FPDUPTR: Final = 2  # offset in a marker, behind 16 reserved bits
ULPDU_MAX: Final = 0xFFFF
# FPDUPTR has 16 bits, so with markers an FPDU must end before what they can count.
ULPDU_MAX_WITH_MARKERS: Final = 64_512

# --- DDP (RFC 5041 §4), from the start of the FPDU -----------------------------------------------
DDP_CONTROL: Final = 2
RDMAP_CONTROL: Final = 3
TAGGED: Final = 0x80
LAST: Final = 0x40
DDP_VERSION_MASK: Final = 0x03
DDP_VERSION: Final = 0x01
STAG: Final = 4  # tagged
TO: Final = 8
TAGGED_END: Final = 16
RSVD_ULP: Final = 4  # untagged
QN: Final = 8
MSN: Final = 12
MO: Final = 16
UNTAGGED_END: Final = 20
TAGGED_SIZE: Final = TAGGED_END - LENGTH_SIZE
UNTAGGED_SIZE: Final = UNTAGGED_END - LENGTH_SIZE

QN_SEND: Final = 0
QN_REQUEST: Final = 1
QN_TERMINATE: Final = 2
QN_ATOMIC_RESPONSE: Final = 3  # RFC 7306 §5.2.2

# --- RDMAP (RFC 5040 §4, RFC 7306 §4) ------------------------------------------------------------
RDMAP_VERSION_SHIFT: Final = 6
RDMAP_VERSION: Final = 1
OPCODE_MASK: Final = 0x0F
OP_WRITE: Final = 0x0
OP_READ_REQUEST: Final = 0x1
OP_READ_RESPONSE: Final = 0x2
OP_SEND: Final = 0x3
OP_SEND_INV: Final = 0x4
OP_SEND_SE: Final = 0x5
OP_SEND_SE_INV: Final = 0x6
OP_TERMINATE: Final = 0x7
OP_IMMEDIATE: Final = 0x8
OP_IMMEDIATE_SE: Final = 0x9
OP_ATOMIC_REQUEST: Final = 0xA
OP_ATOMIC_RESPONSE: Final = 0xB

# Read Request (RFC 5040 §4.4), from the start of the FPDU.
SINK_STAG: Final = 20
SINK_TO: Final = 24
READ_SIZE: Final = 32
SOURCE_STAG: Final = 36
SOURCE_TO: Final = 40
READ_REQUEST_SIZE: Final = 28

# Atomic Request and Response (RFC 7306 §5.2), Immediate Data (§6.1).
ATOMIC_OPCODE: Final = 20  # 28 reserved bits, then four of AOpCode
ATOMIC_REQUEST_ID: Final = 24
ATOMIC_STAG: Final = 28
ATOMIC_TO: Final = 32
ATOMIC_DATA: Final = 40  # to add, or to put there
ATOMIC_MASK: Final = 48
ATOMIC_COMPARE: Final = 56
ATOMIC_COMPARE_MASK: Final = 64
ATOMIC_REQUEST_SIZE: Final = 52
ATOMIC_RESPONSE_ID: Final = 20
ATOMIC_VALUE: Final = 24
ATOMIC_RESPONSE_SIZE: Final = 12
FETCH_ADD: Final = 0
SWAP: Final = 1
CMP_SWAP: Final = 2
IMMEDIATE_DATA: Final = 20
IMMEDIATE_SIZE: Final = 8

# Terminate (RFC 5040 §4.8), offsets in its payload.
TERMINATE_CONTROL_SIZE: Final = 4
TERMINATE_HEADERS: Final = 2  # offset of the byte with the bits of HdrCt
HDRCT_M: Final = 0x80  # the length of the DDP segment follows
HDRCT_D: Final = 0x40  # the DDP header does
HDRCT_R: Final = 0x20  # the RDMAP header does
TERMINATE_MAX: Final = TERMINATE_CONTROL_SIZE + 2 + UNTAGGED_SIZE + READ_REQUEST_SIZE

HEADER_MAX: Final = UNTAGGED_END + ATOMIC_REQUEST_SIZE

# --- why streams end: layer << 12 | etype << 8 | error code (RFC 5040 §4.8, 5041 §7, 5044 §8) -----
LOCAL_CATASTROPHIC: Final = 0x0000
REMOTE_PROTECTION: Final = 0x0100  # and the reasons of `rnic.memory`
CANNOT_INVALIDATE_PROTECTED: Final = 0x0109
INVALID_RDMAP_VERSION: Final = 0x0205
UNEXPECTED_OPCODE: Final = 0x0206
CATASTROPHIC_FOR_STREAM: Final = 0x0207
CANNOT_INVALIDATE: Final = 0x0209
DDP_INVALID_STAG: Final = 0x1100
DDP_BASE_OR_BOUNDS: Final = 0x1101
DDP_NOT_ASSOCIATED: Final = 0x1102
DDP_TO_WRAP: Final = 0x1103
DDP_TAGGED_VERSION: Final = 0x1104
INVALID_QN: Final = 0x1201
NO_BUFFER: Final = 0x1202
INVALID_MSN: Final = 0x1203
INVALID_MO: Final = 0x1204
MESSAGE_TOO_LONG: Final = 0x1205
DDP_UNTAGGED_VERSION: Final = 0x1206
STREAM_LOST: Final = 0x2001
CRC_MISMATCH: Final = 0x2002
MARKER_OR_LENGTH: Final = 0x2003
NO_MATCHING_RTR: Final = 0x2007  # RFC 6581 §9


@nopython
def as_ddp(reason: int) -> int:
    """Why a tagged segment may not be placed, as DDP says it (RFC 5041 §7.1).

    `reason` is one of `rnic.memory`. DDP knows no access rights: they stay RDMAP's.
    """
    if reason == 0x0100:
        return DDP_INVALID_STAG
    if reason == 0x0101:
        return DDP_BASE_OR_BOUNDS
    if reason == 0x0103:
        return DDP_NOT_ASSOCIATED
    if reason == 0x0104:
        return DDP_TO_WRAP
    return reason


@nopython
def header_end(opcode: int, tagged: int, ulpdu_length: int) -> int:
    """Where the payload of a segment begins, from the start of its FPDU.

    What has a fixed length belongs to the header; of a Terminate, as much as can be one.
    """
    if tagged:
        return TAGGED_END
    if opcode == OP_READ_REQUEST:
        return UNTAGGED_END + READ_REQUEST_SIZE
    if opcode == OP_ATOMIC_REQUEST:
        return UNTAGGED_END + ATOMIC_REQUEST_SIZE
    if opcode == OP_ATOMIC_RESPONSE:
        return UNTAGGED_END + ATOMIC_RESPONSE_SIZE
    if opcode in (OP_IMMEDIATE, OP_IMMEDIATE_SE):
        return UNTAGGED_END + IMMEDIATE_SIZE
    if opcode == OP_TERMINATE:
        least = UNTAGGED_END + TERMINATE_CONTROL_SIZE
        return max(least, min(LENGTH_SIZE + ulpdu_length, UNTAGGED_END + TERMINATE_MAX))
    return UNTAGGED_END


@nopython
def is_tagged(opcode: int) -> bool:
    """Whether messages of this kind use the tagged buffer model (RFC 5040 §4.1)."""
    return opcode in (OP_WRITE, OP_READ_RESPONSE)


@nopython
def queue_of(opcode: int) -> int:
    """The DDP queue that untagged messages of this kind use."""
    if opcode in (OP_READ_REQUEST, OP_ATOMIC_REQUEST):
        return QN_REQUEST
    if opcode == OP_TERMINATE:
        return QN_TERMINATE
    return QN_ATOMIC_RESPONSE if opcode == OP_ATOMIC_RESPONSE else QN_SEND
