"""The 48-byte Basic Header Segment: one table of fields per PDU type (RFC 7143 §11), from which
the Python codec and the offset constants for nopython code are both derived.
All numbers are big-endian; reserved bits are sent as zero and ignored on receipt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from iscsi.wire.errors import LocalProtocolError, RejectReason, RemoteProtocolError

Buffer = bytes | bytearray | memoryview

BHS_LENGTH: Final = 48
DIGEST_LENGTH: Final = 4
MAX_DATA_SEGMENT_LENGTH: Final = 0xFFFFFF
MAX_AHS_LENGTH: Final = 255 * 4
RESERVED_TAG: Final = 0xFFFFFFFF  # ITT of unsolicited PDUs, TTT where no transfer is named


class Opcode(IntEnum):
    """RFC 7143 §11.2.1.2. Bit 5 is set in everything a target sends."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


OPCODE_MASK: Final = 0x3F
IMMEDIATE: Final = 0x40  # byte 0 of requests

# Byte 1, where every PDU keeps its flags.
FLAG_FINAL: Final = 0x80
FLAG_TRANSIT: Final = 0x80
FLAG_CONTINUE: Final = 0x40
FLAG_READ: Final = 0x40
FLAG_WRITE: Final = 0x20
FLAG_ACKNOWLEDGE: Final = 0x40  # Data-In A bit
FLAG_BIDI_OVERFLOW: Final = 0x10
FLAG_BIDI_UNDERFLOW: Final = 0x08
FLAG_OVERFLOW: Final = 0x04
FLAG_UNDERFLOW: Final = 0x02
FLAG_STATUS: Final = 0x01  # Data-In S bit
ATTRIBUTE_MASK: Final = 0x07
FUNCTION_MASK: Final = 0x7F  # TMF function, logout reason
CSG_SHIFT: Final = 2
STAGE_MASK: Final = 0x03


class TaskAttribute(IntEnum):
    """SCSI task attributes (RFC 7143 §11.3.1)."""

    UNTAGGED = 0
    SIMPLE = 1
    ORDERED = 2
    HEAD_OF_QUEUE = 3
    ACA = 4


class TaskFunction(IntEnum):
    """Task management functions (RFC 7143 §11.5.1); from QUERY TASK on those of RFC 7144, for
    sessions that agreed on iSCSIProtocolLevel 2.
    """

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8
    QUERY_TASK = 9
    QUERY_TASK_SET = 10
    I_T_NEXUS_RESET = 11
    QUERY_ASYNCHRONOUS_EVENT = 12


class TaskFunctionResponse(IntEnum):
    """Task management responses (RFC 7143 §11.6.1); SUCCEEDED, which is a query's yes, RFC 7144."""

    COMPLETE = 0
    TASK_DOES_NOT_EXIST = 1
    LUN_DOES_NOT_EXIST = 2
    TASK_STILL_ALLEGIANT = 3
    REASSIGNMENT_NOT_SUPPORTED = 4
    NOT_SUPPORTED = 5
    AUTHORIZATION_FAILED = 6
    SUCCEEDED = 7
    REJECTED = 255


class ScsiResponseCode(IntEnum):
    """iSCSI service responses (RFC 7143 §11.4.3)."""

    COMPLETED = 0x00
    TARGET_FAILURE = 0x01


class LogoutReason(IntEnum):
    """RFC 7143 §11.14.1."""

    CLOSE_SESSION = 0
    CLOSE_CONNECTION = 1
    REMOVE_FOR_RECOVERY = 2


class LogoutResponseCode(IntEnum):
    """RFC 7143 §11.15.1."""

    CLOSED = 0
    CID_NOT_FOUND = 1
    RECOVERY_NOT_SUPPORTED = 2
    CLEANUP_FAILED = 3


class AsyncEvent(IntEnum):
    """RFC 7143 §11.9.1."""

    SCSI_EVENT = 0
    LOGOUT_REQUESTED = 1
    CONNECTION_DROPPED = 2
    SESSION_DROPPED = 3
    NEGOTIATION_REQUESTED = 4
    TASKS_TERMINATED = 5
    VENDOR_SPECIFIC = 255


class SnackType(IntEnum):
    """RFC 7143 §11.16.1."""

    DATA_OR_R2T = 0
    STATUS = 1
    DATA_ACK = 2
    R_DATA = 3


class AhsType(IntEnum):
    """Additional header segments (RFC 7143 §11.2.2.1)."""

    EXTENDED_CDB = 1
    BIDI_READ_LENGTH = 2


@dataclass(frozen=True, slots=True)
class Field:
    """`bits` at byte `offset`; a field narrower than a byte ends `shift` bits above bit zero."""

    name: str
    offset: int
    bits: int
    shift: int = 0
    default: int = 0

    @property
    def span(self) -> slice:
        """The bytes that hold the field."""
        return slice(self.offset, self.offset + (self.bits + self.shift + 7) // 8)

    def get(self, header: Buffer) -> int:
        """Value of the field in a header of at least 48 bytes."""
        return int.from_bytes(header[self.span], "big") >> self.shift & ((1 << self.bits) - 1)

    def put(self, header: bytearray, value: int) -> None:
        """Store `value`, leaving neighbouring bits alone; LocalProtocolError if it does not fit."""
        if not 0 <= value < 1 << self.bits:
            raise LocalProtocolError(f"{self.name}={value} does not fit in {self.bits} bits")
        span = self.span
        old = int.from_bytes(header[span], "big") & ~(((1 << self.bits) - 1) << self.shift)
        header[span] = (old | value << self.shift).to_bytes(span.stop - span.start, "big")


def _flag(name: str, mask: int, default: int = 0) -> Field:
    return Field(name, 1, 1, mask.bit_length() - 1, default)


_FINAL = _flag("final", FLAG_FINAL, 1)
_CONTINUE = _flag("continued", FLAG_CONTINUE)
_RESIDUAL_FLAGS = (_flag("overflow", FLAG_OVERFLOW), _flag("underflow", FLAG_UNDERFLOW))
_IMMEDIATE = Field("immediate", 0, 1, 6)
_LUN = Field("lun", 8, 64)
_ITT = Field("itt", 16, 32)
_NO_ITT = Field("itt", 16, 32, default=RESERVED_TAG)
_TTT = Field("ttt", 20, 32, default=RESERVED_TAG)
_CID = Field("cid", 20, 16)
_EXP_STAT_SN = Field("exp_stat_sn", 28, 32)
_REQUEST_SNS = (Field("cmd_sn", 24, 32), _EXP_STAT_SN)
_RESPONSE_SNS = (
    Field("stat_sn", 24, 32),
    Field("exp_cmd_sn", 28, 32),
    Field("max_cmd_sn", 32, 32),
)
_DATA_SN = Field("data_sn", 36, 32)
_BUFFER_OFFSET = Field("buffer_offset", 40, 32)
_RESIDUAL = Field("residual_count", 44, 32)
_LOGIN = (
    _flag("transit", FLAG_TRANSIT),
    _CONTINUE,
    Field("csg", 1, 2, CSG_SHIFT),
    Field("nsg", 1, 2),
    Field("version_max", 2, 8),
    Field("isid", 8, 48),
    Field("tsih", 14, 16),
    _ITT,
)
_COMMON = (Field("total_ahs_words", 4, 8), Field("data_segment_length", 5, 24))

_TABLE: Final[dict[Opcode, tuple[Field, ...]]] = {
    Opcode.NOP_OUT: (_IMMEDIATE, _FINAL, _LUN, _NO_ITT, _TTT, *_REQUEST_SNS),
    Opcode.SCSI_COMMAND: (
        _IMMEDIATE,
        _FINAL,
        _flag("read", FLAG_READ),
        _flag("write", FLAG_WRITE),
        Field("attribute", 1, 3, default=TaskAttribute.SIMPLE),
        _LUN,
        _ITT,
        Field("expected_data_transfer_length", 20, 32),
        *_REQUEST_SNS,
        Field("cdb", 32, 128),
    ),
    Opcode.TASK_MANAGEMENT_REQUEST: (
        _IMMEDIATE,
        _FINAL,
        Field("function", 1, 7),
        _LUN,
        _ITT,
        Field("referenced_task_tag", 20, 32, default=RESERVED_TAG),
        *_REQUEST_SNS,
        Field("ref_cmd_sn", 32, 32),
        Field("exp_data_sn", 36, 32),
    ),
    Opcode.LOGIN_REQUEST: (
        _IMMEDIATE,
        *_LOGIN,
        Field("version_min", 3, 8),
        _CID,
        *_REQUEST_SNS,
    ),
    Opcode.TEXT_REQUEST: (_IMMEDIATE, _FINAL, _CONTINUE, _LUN, _ITT, _TTT, *_REQUEST_SNS),
    Opcode.DATA_OUT: (_FINAL, _LUN, _ITT, _TTT, _EXP_STAT_SN, _DATA_SN, _BUFFER_OFFSET),
    Opcode.LOGOUT_REQUEST: (
        _IMMEDIATE,
        _FINAL,
        Field("logout_reason", 1, 7),
        _ITT,
        _CID,
        *_REQUEST_SNS,
    ),
    Opcode.SNACK_REQUEST: (
        _FINAL,
        Field("snack_type", 1, 4),
        _LUN,
        _NO_ITT,
        _TTT,
        _EXP_STAT_SN,
        Field("beg_run", 40, 32),
        Field("run_length", 44, 32),
    ),
    Opcode.NOP_IN: (_FINAL, _LUN, _NO_ITT, _TTT, *_RESPONSE_SNS),
    Opcode.SCSI_RESPONSE: (
        _FINAL,
        _flag("bidi_overflow", FLAG_BIDI_OVERFLOW),
        _flag("bidi_underflow", FLAG_BIDI_UNDERFLOW),
        *_RESIDUAL_FLAGS,
        Field("response", 2, 8),
        Field("status", 3, 8),
        _ITT,
        Field("snack_tag", 20, 32),
        *_RESPONSE_SNS,
        Field("exp_data_sn", 36, 32),
        Field("bidi_residual_count", 40, 32),
        _RESIDUAL,
    ),
    Opcode.TASK_MANAGEMENT_RESPONSE: (
        _FINAL,
        Field("response", 2, 8),
        Field("additional_response", 8, 24),  # RFC 7144
        _ITT,
        *_RESPONSE_SNS,
    ),
    Opcode.LOGIN_RESPONSE: (
        *_LOGIN,
        Field("version_active", 3, 8),
        *_RESPONSE_SNS,
        Field("status_class", 36, 8),
        Field("status_detail", 37, 8),
    ),
    Opcode.TEXT_RESPONSE: (_FINAL, _CONTINUE, _LUN, _ITT, _TTT, *_RESPONSE_SNS),
    Opcode.DATA_IN: (
        _FINAL,
        _flag("acknowledge", FLAG_ACKNOWLEDGE),
        *_RESIDUAL_FLAGS,
        _flag("has_status", FLAG_STATUS),
        Field("status", 3, 8),
        _LUN,
        _ITT,
        _TTT,
        *_RESPONSE_SNS,
        _DATA_SN,
        _BUFFER_OFFSET,
        _RESIDUAL,
    ),
    Opcode.LOGOUT_RESPONSE: (
        _FINAL,
        Field("response", 2, 8),
        _ITT,
        *_RESPONSE_SNS,
        Field("time2wait", 40, 16),
        Field("time2retain", 42, 16),
    ),
    Opcode.R2T: (
        _FINAL,
        _LUN,
        _ITT,
        _TTT,
        *_RESPONSE_SNS,
        Field("r2t_sn", 36, 32),
        _BUFFER_OFFSET,
        Field("desired_data_transfer_length", 44, 32),
    ),
    Opcode.ASYNC_MESSAGE: (
        _FINAL,
        _LUN,
        _NO_ITT,
        *_RESPONSE_SNS,
        Field("async_event", 36, 8),
        Field("async_vcode", 37, 8),
        Field("parameter1", 38, 16),
        Field("parameter2", 40, 16),
        Field("parameter3", 42, 16),
    ),
    Opcode.REJECT: (_FINAL, Field("reject_reason", 2, 8), _NO_ITT, *_RESPONSE_SNS, _DATA_SN),
}

LAYOUTS: Final[Mapping[Opcode, Mapping[str, Field]]] = MappingProxyType(
    {op: MappingProxyType({f.name: f for f in (*_COMMON, *rows)}) for op, rows in _TABLE.items()}
)


def offset_of(name: str) -> int:
    """Byte offset of a field, which is the same in every PDU that has it."""
    offsets = {rows[name].offset for rows in LAYOUTS.values() if name in rows}
    assert len(offsets) == 1, f"{name} has no single offset: {offsets}"
    return offsets.pop()


# What nopython code reads and writes with. Values come from the table above.
OFFSET_FLAGS: Final = offset_of("final")
OFFSET_RESPONSE: Final = offset_of("response")
OFFSET_STATUS: Final = offset_of("status")
OFFSET_REJECT_REASON: Final = offset_of("reject_reason")
OFFSET_TOTAL_AHS_WORDS: Final = offset_of("total_ahs_words")
OFFSET_DATA_SEGMENT_LENGTH: Final = offset_of("data_segment_length")  # three bytes
OFFSET_LUN: Final = offset_of("lun")
OFFSET_ISID: Final = offset_of("isid")
OFFSET_TSIH: Final = offset_of("tsih")
OFFSET_ITT: Final = offset_of("itt")
OFFSET_TTT: Final = offset_of("ttt")
OFFSET_CID: Final = offset_of("cid")
OFFSET_EXPECTED_DATA_TRANSFER_LENGTH: Final = offset_of("expected_data_transfer_length")
OFFSET_REFERENCED_TASK_TAG: Final = offset_of("referenced_task_tag")
OFFSET_SNACK_TAG: Final = offset_of("snack_tag")
OFFSET_CMD_SN: Final = offset_of("cmd_sn")
OFFSET_STAT_SN: Final = offset_of("stat_sn")
OFFSET_EXP_STAT_SN: Final = offset_of("exp_stat_sn")
OFFSET_EXP_CMD_SN: Final = offset_of("exp_cmd_sn")
OFFSET_MAX_CMD_SN: Final = offset_of("max_cmd_sn")
OFFSET_REF_CMD_SN: Final = offset_of("ref_cmd_sn")
OFFSET_CDB: Final = offset_of("cdb")
OFFSET_DATA_SN: Final = offset_of("data_sn")
OFFSET_R2T_SN: Final = offset_of("r2t_sn")
OFFSET_EXP_DATA_SN: Final = offset_of("exp_data_sn")
OFFSET_ASYNC_EVENT: Final = offset_of("async_event")
OFFSET_STATUS_CLASS: Final = offset_of("status_class")
OFFSET_BUFFER_OFFSET: Final = offset_of("buffer_offset")
OFFSET_BEG_RUN: Final = offset_of("beg_run")
OFFSET_RUN_LENGTH: Final = offset_of("run_length")
OFFSET_BIDI_RESIDUAL_COUNT: Final = offset_of("bidi_residual_count")
OFFSET_RESIDUAL_COUNT: Final = offset_of("residual_count")
OFFSET_DESIRED_DATA_TRANSFER_LENGTH: Final = offset_of("desired_data_transfer_length")
OFFSET_TIME2WAIT: Final = offset_of("time2wait")
OFFSET_TIME2RETAIN: Final = offset_of("time2retain")


@dataclass(frozen=True, slots=True)
class Header:
    """A decoded BHS: every field of its PDU type is an integer attribute (`header.itt`)."""

    opcode: Opcode
    fields: Mapping[str, int]

    def __getattr__(self, name: str) -> int:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(f"{self.opcode.name} has no field {name!r}") from None

    @property
    def cdb_bytes(self) -> bytes:
        """The 16 CDB bytes of a SCSI Command."""
        return self.cdb.to_bytes(16, "big")


def encode(opcode: Opcode, **fields: int) -> bytearray:
    """A 48-byte header of this type; fields not named take the table's default.

    LocalProtocolError for a name the PDU does not have or a value that does not fit.
    """
    layout = LAYOUTS[opcode]
    header = bytearray(BHS_LENGTH)
    header[0] = opcode
    for name in fields:
        if name not in layout:
            raise LocalProtocolError(f"{opcode.name} has no field {name!r}")
    for name, field in layout.items():
        field.put(header, fields.get(name, field.default))
    return header


def decode(header: Buffer) -> Header:
    """Read a header of exactly 48 bytes; RemoteProtocolError for an unknown opcode or length."""
    if len(header) != BHS_LENGTH:
        raise RemoteProtocolError(f"a BHS is {BHS_LENGTH} bytes, not {len(header)}")
    code = header[0] & OPCODE_MASK
    try:
        opcode = Opcode(code)
    except ValueError:
        raise RemoteProtocolError(
            f"unknown opcode 0x{code:02x}", RejectReason.COMMAND_NOT_SUPPORTED
        ) from None
    raw = bytes(header)
    return Header(opcode, {name: field.get(raw) for name, field in LAYOUTS[opcode].items()})


def padded(length: int) -> int:
    """`length` rounded up to the four-byte boundary segments are padded to (RFC 7143 §11.1)."""
    return (length + 3) & ~3


def total_ahs_length(header: Buffer) -> int:
    """Bytes of additional header segments after this BHS (the field counts four-byte words)."""
    return header[OFFSET_TOTAL_AHS_WORDS] * 4


def data_segment_length(header: Buffer) -> int:
    """Bytes of data in the PDU, without padding."""
    start = OFFSET_DATA_SEGMENT_LENGTH
    return int.from_bytes(header[start : start + 3], "big")


def encode_pdu(opcode: Opcode, data: Buffer = b"", **fields: int) -> bytes:
    """Header, data and padding as one byte string, without digests."""
    header = encode(opcode, data_segment_length=len(data), **fields)
    return b"".join((header, data, bytes(padded(len(data)) - len(data))))
