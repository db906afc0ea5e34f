"""SCSI status and sense data (SAM-5 §5.3, SPC-4 §4.5): fixed and descriptor format, both ways.
Reading never raises: sense comes from devices of every quality, so what is missing reads as zero.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

SENSE_FIXED: Final = 0x70
SENSE_FIXED_DEFERRED: Final = 0x71
SENSE_DESCRIPTOR: Final = 0x72
SENSE_DESCRIPTOR_DEFERRED: Final = 0x73
FIXED_SENSE_LENGTH: Final = 18
_INFORMATION_DESCRIPTOR: Final = 0x00
_INFORMATION_DESCRIPTOR_LENGTH: Final = 12
_SPECIFIC_DESCRIPTOR: Final = 0x02
_SPECIFIC_VALID: Final = 0x80


class ScsiStatus(IntEnum):
    """SAM-5 §5.3.1."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class SenseKey(IntEnum):
    """SPC-4 §4.5.6."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


class Asc(IntEnum):
    """Additional sense codes in use here: ASC in the high byte, ASCQ in the low one."""

    NO_ADDITIONAL_SENSE = 0x0000
    OPERATION_IN_PROGRESS = 0x0016
    NOT_READY_CAUSE_NOT_REPORTABLE = 0x0400
    BECOMING_READY = 0x0401
    INITIALIZING_COMMAND_REQUIRED = 0x0402
    MANUAL_INTERVENTION_REQUIRED = 0x0403
    STANDBY = 0x040B
    SANITIZE_IN_PROGRESS = 0x041B
    WRITE_ERROR = 0x0C00
    UNREACHABLE_COPY_TARGET = 0x0804
    COPY_TARGET_DEVICE_NOT_REACHABLE = 0x0D02
    UNRECOVERED_READ_ERROR = 0x1100
    PARAMETER_LIST_LENGTH_ERROR = 0x1A00
    MISCOMPARE_DURING_VERIFY = 0x1D00
    INVALID_OPERATION_CODE = 0x2000
    ACCESS_DENIED = 0x2002  # no access rights
    LBA_OUT_OF_RANGE = 0x2100
    INVALID_FIELD_IN_CDB = 0x2400
    LUN_NOT_SUPPORTED = 0x2500
    INVALID_FIELD_IN_PARAMETER_LIST = 0x2600
    TOO_MANY_TARGET_DESCRIPTORS = 0x2606
    UNSUPPORTED_TARGET_DESCRIPTOR = 0x2607
    TOO_MANY_SEGMENT_DESCRIPTORS = 0x2608
    UNSUPPORTED_SEGMENT_DESCRIPTOR = 0x2609
    INVALID_RELEASE_OF_RESERVATION = 0x2604
    WRITE_PROTECTED = 0x2700
    SOFTWARE_WRITE_PROTECTED = 0x2702
    SPACE_ALLOCATION_FAILED = 0x2707
    NOT_READY_TO_READY_CHANGE = 0x2800
    POWER_ON_RESET = 0x2900
    POWER_ON_OCCURRED = 0x2901
    BUS_RESET_OCCURRED = 0x2902
    DEVICE_RESET_OCCURRED = 0x2903
    I_T_NEXUS_LOSS = 0x2907
    MODE_PARAMETERS_CHANGED = 0x2A01
    LOG_PARAMETERS_CHANGED = 0x2A02
    RESERVATIONS_PREEMPTED = 0x2A03
    RESERVATIONS_RELEASED = 0x2A04
    REGISTRATIONS_PREEMPTED = 0x2A05
    CAPACITY_DATA_CHANGED = 0x2A09
    COMMAND_SEQUENCE_ERROR = 0x2C00
    SANITIZE_FAILED = 0x3103
    THIN_PROVISIONING_SOFT_THRESHOLD_REACHED = 0x3807
    SAVING_NOT_SUPPORTED = 0x3900
    MEDIUM_NOT_PRESENT = 0x3A00
    MEDIUM_NOT_PRESENT_LOADABLE = 0x3A03
    INQUIRY_DATA_CHANGED = 0x3F03
    REPORTED_LUNS_CHANGED = 0x3F0E
    INTERNAL_TARGET_FAILURE = 0x4400
    INSUFFICIENT_REGISTRATION_RESOURCES = 0x5504
    INSUFFICIENT_RESOURCES = 0x5503
    UNEXPECTED_UNSOLICITED_DATA = 0x0C0C
    INCORRECT_AMOUNT_OF_DATA = 0x0C0D
    PROTOCOL_SERVICE_CRC_ERROR = 0x4705
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = 0x2F00
    DATA_PHASE_ERROR = 0x4B00
    MEDIUM_REMOVAL_PREVENTED = 0x5302


_KEY_NAMES: Final = {int(key): key.name for key in SenseKey}
_ASC_NAMES: Final = {int(code): code.name for code in Asc}


@dataclass(frozen=True, slots=True)
class Sense:
    """One sense. `information` is the LBA or count the device names, if any; `specific` its three
    bytes of sense key specific data (SPC-4 §4.5.2.4), SKSV included.
    """

    key: int
    asc: int = 0
    ascq: int = 0
    information: int | None = None
    deferred: bool = False
    specific: bytes | None = None

    @property
    def code(self) -> int:
        """ASC and ASCQ as one 16-bit number, comparable with `Asc`."""
        return self.asc << 8 | self.ascq

    def __str__(self) -> str:
        key = _KEY_NAMES.get(self.key, f"SENSE KEY {self.key:#x}")
        name = f" {_ASC_NAMES[self.code]}" if self.code in _ASC_NAMES else ""
        where = "" if self.information is None else f", information {self.information:#x}"
        return f"{key}{name} (asc/ascq {self.asc:02x}/{self.ascq:02x}{where})".replace("_", " ")


def encode_sense(
    key: int,
    code: int = 0,
    *,
    information: int | None = None,
    specific: bytes | None = None,
    descriptor: bool = False,
) -> bytes:
    """Current sense in fixed format (18 bytes), or descriptor format (8 bytes and descriptors).

    `code` is ASC << 8 | ASCQ. An information value above 32 bits only fits descriptor format.
    """
    asc, ascq = code >> 8, code & 0xFF
    if descriptor:
        tail = b""
        if information is not None:
            tail = bytes((_INFORMATION_DESCRIPTOR, 10, 0x80, 0)) + information.to_bytes(8, "big")
        if specific is not None:
            tail += bytes((_SPECIFIC_DESCRIPTOR, 6, 0, 0)) + specific + b"\0"
        return bytes((SENSE_DESCRIPTOR, key, asc, ascq, 0, 0, 0, len(tail))) + tail
    sense = bytearray(FIXED_SENSE_LENGTH)
    sense[0] = SENSE_FIXED
    sense[2] = key
    sense[7] = FIXED_SENSE_LENGTH - 8
    sense[12:14] = asc, ascq
    if information is not None and information < 1 << 32:
        sense[0] |= 0x80  # VALID
        sense[3:7] = information.to_bytes(4, "big")
    if specific is not None:
        sense[15:18] = specific
    return bytes(sense)


def progress(done: float) -> bytes:
    """Sense key specific data that says how far an operation is: 0 to 1 (SPC-4 §4.5.2.4.4)."""
    return bytes((_SPECIFIC_VALID,)) + min(0xFFFF, max(0, int(done * 0x10000))).to_bytes(2, "big")


def field_pointer(offset: int, *, in_data: bool = False, bit: int | None = None) -> bytes:
    """Sense key specific data that names a wrong field of the CDB or of the parameter list."""
    head = _SPECIFIC_VALID | (0 if in_data else 0x40) | (0 if bit is None else 0x08 | bit)
    return bytes((head,)) + offset.to_bytes(2, "big")


def decode_sense(raw: bytes | bytearray | memoryview) -> Sense | None:
    """Read either format; None when the buffer holds no sense this standard knows."""
    data = bytes(raw)
    response_code = data[0] & 0x7F if data else 0
    if response_code in (SENSE_FIXED, SENSE_FIXED_DEFERRED) and len(data) >= 3:
        full = data.ljust(FIXED_SENSE_LENGTH, b"\0")
        information = int.from_bytes(full[3:7], "big") if full[0] & 0x80 else None
        deferred = response_code == SENSE_FIXED_DEFERRED
        specific = full[15:18] if full[15] & _SPECIFIC_VALID else None
        return Sense(full[2] & 0x0F, full[12], full[13], information, deferred, specific)
    if response_code in (SENSE_DESCRIPTOR, SENSE_DESCRIPTOR_DEFERRED) and len(data) >= 2:
        full = data.ljust(8, b"\0")
        deferred = response_code == SENSE_DESCRIPTOR_DEFERRED
        return Sense(full[1] & 0x0F, full[2], full[3], *_descriptors(full, deferred))
    return None


def _descriptors(sense: bytes, deferred: bool) -> tuple[int | None, bool, bytes | None]:
    """The first valid information and key specific descriptors within the additional length."""
    information: int | None = None
    specific: bytes | None = None
    at, end = 8, min(len(sense), 8 + sense[7])
    while at + 2 <= end:
        kind, length = sense[at], 2 + sense[at + 1]
        body = sense[at : min(at + length, end)]
        if kind == _INFORMATION_DESCRIPTOR and len(body) >= _INFORMATION_DESCRIPTOR_LENGTH:
            if body[2] & 0x80 and information is None:
                information = int.from_bytes(body[4:12], "big")
        elif kind == _SPECIFIC_DESCRIPTOR and len(body) >= 7 and body[4] & _SPECIFIC_VALID:
            specific = specific or body[4:7]
        at += length
    return information, deferred, specific


def split_sense(segment: bytes | bytearray | memoryview) -> bytes:
    """Sense bytes of a SCSI Response's data segment (RFC 7143 §11.4.7): a two-byte SenseLength,
    then the sense. A length beyond the segment, or a segment of one byte, gives what is there.
    """
    data = bytes(segment)
    if len(data) < 2:
        return b""
    return data[2 : 2 + int.from_bytes(data[:2], "big")]


def join_sense(sense: bytes) -> bytes:
    """Data segment of a SCSI Response that carries `sense`."""
    return len(sense).to_bytes(2, "big") + sense
