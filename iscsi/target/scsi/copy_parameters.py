"""Parameter data of EXTENDED COPY(LID1) (SPC-4 §6.4) and what the copy manager says of itself: its
operating parameters (SPC-4 §6.18.4) and VPD page 8F (SPC-4 §7.8.17). Parsing knows no units; what
breaks a rule is `Refused`.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from iscsi.target.scsi import medium
from iscsi.target.scsi.command import INVALID_PARAMETER, PARAMETER_LIST_LENGTH_ERROR, refuse
from iscsi.wire.scsi_data import Designator
from iscsi.wire.sense import Asc

EXTENDED_COPY: Final = 0x83
RECEIVE_COPY_RESULTS: Final = 0x84
COPY_STATUS: Final = 0x00  # service actions of RECEIVE COPY RESULTS
OPERATING_PARAMETERS: Final = 0x03
FAILED_SEGMENT_DETAILS: Final = 0x04

MAX_TARGETS: Final = 16
MAX_SEGMENTS: Final = 64
HEADER: Final = 16
_TARGET_LENGTH: Final = 32
_SEGMENT_LENGTH: Final = 28
MAX_LIST: Final = MAX_TARGETS * _TARGET_LENGTH + MAX_SEGMENTS * _SEGMENT_LENGTH
MAX_COPIES: Final = 8  # at the same time, of the whole target
MAX_SEGMENT_BYTES: Final = 0xFFFF * 4096
_IDENTIFICATION: Final = 0xE4
_BLOCK_TO_BLOCK: Final = 0x02
_GRANULARITY: Final = 9  # of counting what was copied: 512 bytes

_TOO_MANY_TARGETS: Final = refuse(Asc.TOO_MANY_TARGET_DESCRIPTORS)
_TOO_MANY_SEGMENTS: Final = refuse(Asc.TOO_MANY_SEGMENT_DESCRIPTORS)
_UNKNOWN_TARGET: Final = refuse(Asc.UNSUPPORTED_TARGET_DESCRIPTOR)
_UNKNOWN_SEGMENT: Final = refuse(Asc.UNSUPPORTED_SEGMENT_DESCRIPTOR)


class ListIdUsage(IntEnum):
    """Whether a copy has a list identifier to ask for it by (SPC-4 table 127)."""

    HOLD = 0
    RESERVED = 1
    DISCARD = 2
    DISABLED = 3


@dataclass(frozen=True, slots=True)
class CopyTarget:
    """A unit by its identification."""

    designator: Designator
    block_size: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Blocks from one target descriptor's unit to another's. `counts_destination`: `count` is in
    blocks of the destination (DC).
    """

    source: int
    destination: int
    count: int
    source_lba: int
    destination_lba: int
    counts_destination: bool


@dataclass(frozen=True, slots=True)
class CopyList:
    """A whole parameter list."""

    list_id: int
    usage: ListIdUsage
    targets: tuple[CopyTarget, ...]
    segments: tuple[Segment, ...]


def _number(data: bytes, offset: int, length: int) -> int:
    return int.from_bytes(data[offset : offset + length], "big")


def parse(data: bytes) -> CopyList:
    """The parameter list of EXTENDED COPY(LID1); Refused if it is not one we can do."""
    medium.require(len(data) >= HEADER, PARAMETER_LIST_LENGTH_ERROR)
    targets, segments, inline = _number(data, 2, 2), _number(data, 8, 4), _number(data, 12, 4)
    fits = HEADER + targets + segments + inline <= len(data) and targets + segments <= MAX_LIST
    medium.require(fits, PARAMETER_LIST_LENGTH_ERROR)
    usage = ListIdUsage(data[1] >> 3 & 3)
    medium.require(usage is not ListIdUsage.RESERVED, INVALID_PARAMETER)
    medium.require(usage is not ListIdUsage.DISABLED or data[0] == 0, INVALID_PARAMETER)
    medium.require(inline == 0, INVALID_PARAMETER)
    body = data[HEADER : HEADER + targets + segments]
    return CopyList(data[0], usage, _targets(body[:targets]), _segments(body[targets:]))


def _targets(data: bytes) -> tuple[CopyTarget, ...]:
    medium.require(len(data) <= MAX_TARGETS * _TARGET_LENGTH, _TOO_MANY_TARGETS)
    found = []
    for at in range(0, len(data), _TARGET_LENGTH):
        medium.require(data[at] == _IDENTIFICATION, _UNKNOWN_TARGET)
        found.append(_target(data[at : at + _TARGET_LENGTH]))
    return tuple(found)


def _target(data: bytes) -> CopyTarget:
    """An identification descriptor (SPC-4 §6.4.4.3) of a block device."""
    medium.require(len(data) == _TARGET_LENGTH, PARAMETER_LIST_LENGTH_ERROR)
    # Of a block device. NUL is obsolete, and LU ID TYPE is about descriptors that hold a LUN.
    medium.require(not data[1] & 0x1F, INVALID_PARAMETER)
    length = data[7]
    medium.require(length <= 20, INVALID_PARAMETER)
    designator = Designator(
        data[5] & 0x0F, data[8 : 8 + length], data[4] & 0x0F, data[5] >> 4 & 0x03
    )
    return CopyTarget(designator, _number(data, 29, 3))


def _segments(data: bytes) -> tuple[Segment, ...]:
    found: list[Segment] = []
    while data:
        medium.require(len(data) >= 4, PARAMETER_LIST_LENGTH_ERROR)
        medium.require(data[0] == _BLOCK_TO_BLOCK, _UNKNOWN_SEGMENT)
        length = 4 + _number(data, 2, 2)
        medium.require(length == _SEGMENT_LENGTH, INVALID_PARAMETER)
        medium.require(len(data) >= length, PARAMETER_LIST_LENGTH_ERROR)
        medium.require(len(found) < MAX_SEGMENTS, _TOO_MANY_SEGMENTS)
        found.append(_segment(data[:length]))
        data = data[length:]
    return tuple(found)


def _segment(data: bytes) -> Segment:
    """A block device to block device descriptor (SPC-4 §6.4.5.3)."""
    return Segment(
        source=_number(data, 4, 2),
        destination=_number(data, 6, 2),
        count=_number(data, 10, 2),
        source_lba=_number(data, 12, 8),
        destination_lba=_number(data, 20, 8),
        counts_destination=bool(data[1] & 0x02),
    )


# --- what the copy manager says of itself --------------------------------------------------------


def operating_parameters() -> bytes:
    """RECEIVE COPY RESULTS, OPERATING PARAMETERS (SPC-4 §6.18.4)."""
    data = bytearray(44)
    data[4] = 0x01  # SNLID: a copy without a list identifier is possible
    data[8:10] = MAX_TARGETS.to_bytes(2, "big")
    data[10:12] = MAX_SEGMENTS.to_bytes(2, "big")
    data[12:16] = MAX_LIST.to_bytes(4, "big")
    data[16:20] = MAX_SEGMENT_BYTES.to_bytes(4, "big")
    data[34:36] = MAX_COPIES.to_bytes(2, "big")
    data[36] = MAX_COPIES
    data[37] = _GRANULARITY
    codes = bytes((_BLOCK_TO_BLOCK, _IDENTIFICATION))
    data[43] = len(codes)
    data += codes
    data[0:4] = (len(data) - 4).to_bytes(4, "big")
    return bytes(data)


def _descriptor(kind: int, body: bytes) -> bytes:
    """A third-party copy descriptor, padded to a multiple of four bytes."""
    padded = body.ljust(-(-len(body) // 4) * 4, b"\0")
    return kind.to_bytes(2, "big") + len(padded).to_bytes(2, "big") + padded


def third_party_copy_page() -> bytes:
    """Body of VPD page 8F: commands, limits and descriptors (SPC-4 §7.8.17)."""
    actions = bytes((COPY_STATUS, OPERATING_PARAMETERS, FAILED_SEGMENT_DETAILS))
    commands = bytes((EXTENDED_COPY, 1, 0, RECEIVE_COPY_RESULTS, len(actions))) + actions
    limits = bytearray(28)
    limits[4:6] = MAX_TARGETS.to_bytes(2, "big")
    limits[6:8] = MAX_SEGMENTS.to_bytes(2, "big")
    limits[8:12] = MAX_LIST.to_bytes(4, "big")
    general = bytearray(32)
    general[0:4] = MAX_COPIES.to_bytes(4, "big")
    general[4:8] = MAX_COPIES.to_bytes(4, "big")
    general[8:12] = MAX_SEGMENT_BYTES.to_bytes(4, "big")
    general[12] = _GRANULARITY
    return b"".join(
        (
            _descriptor(0x0001, bytes((len(commands),)) + commands),
            _descriptor(0x0004, bytes(limits)),
            _descriptor(0x0008, bytes((2, _BLOCK_TO_BLOCK, _IDENTIFICATION))),
            _descriptor(0x000C, bytes(4)),  # no identifiers besides the descriptors
            _descriptor(0x8001, bytes(general)),
        )
    )
