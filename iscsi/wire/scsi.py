"""SCSI commands this project sends and serves (SPC-4, SBC-3): operation codes, CDB builders and
one parser, and LUN addressing (SAM-5 §4.7). CDBs are 16 bytes, zero-filled, as a BHS carries them.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError
from iscsi.wire.sense import ScsiStatus as ScsiStatus  # noqa: PLC0414 (for its readers)

CDB_LENGTH: Final = 16
SERVICE_ACTION_MASK: Final = 0x1F
READ_CAPACITY_16_ACTION: Final = 0x10
FUA: Final = 0x08  # byte 1 of READ and WRITE 10/12/16
DPO: Final = 0x10
EVPD: Final = 0x01
MAX_LUN: Final = 0x3FFF
MAX_PERIPHERAL_LUN: Final = 0xFF
LUN_METHOD_FLAT: Final = 1


class Operation(IntEnum):
    """Operation codes (SPC-4 annex F.3, SBC-3 §5)."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    INQUIRY = 0x12
    MODE_SENSE_6 = 0x1A
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    SYNCHRONIZE_CACHE_10 = 0x35
    MODE_SENSE_10 = 0x5A
    READ_16 = 0x88
    WRITE_16 = 0x8A
    SYNCHRONIZE_CACHE_16 = 0x91
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0


@dataclass(frozen=True, slots=True)
class Part:
    """A field of a CDB: `length` bytes from `offset`, big-endian."""

    offset: int
    length: int

    def get(self, cdb: bytes) -> int:
        """The field's value."""
        return int.from_bytes(cdb[self.offset : self.offset + self.length], "big")


# Where each command keeps its logical block address and its length. The length counts blocks for
# READ, WRITE and SYNCHRONIZE CACHE, and is the allocation length in bytes for the others.
LBA: Final = {
    Operation.READ_CAPACITY_10: Part(2, 4),
    Operation.READ_10: Part(2, 4),
    Operation.WRITE_10: Part(2, 4),
    Operation.SYNCHRONIZE_CACHE_10: Part(2, 4),
    Operation.READ_16: Part(2, 8),
    Operation.WRITE_16: Part(2, 8),
    Operation.SYNCHRONIZE_CACHE_16: Part(2, 8),
    Operation.SERVICE_ACTION_IN_16: Part(2, 8),
}
LENGTH: Final = {
    Operation.REQUEST_SENSE: Part(4, 1),
    Operation.INQUIRY: Part(3, 2),
    Operation.MODE_SENSE_6: Part(4, 1),
    Operation.READ_10: Part(7, 2),
    Operation.WRITE_10: Part(7, 2),
    Operation.SYNCHRONIZE_CACHE_10: Part(7, 2),
    Operation.MODE_SENSE_10: Part(7, 2),
    Operation.READ_16: Part(10, 4),
    Operation.WRITE_16: Part(10, 4),
    Operation.SYNCHRONIZE_CACHE_16: Part(10, 4),
    Operation.SERVICE_ACTION_IN_16: Part(10, 4),
    Operation.REPORT_LUNS: Part(6, 4),
}


@dataclass(frozen=True, slots=True)
class Cdb:
    """A parsed command. Fields a command does not have are zero.

    `option` is byte 1 (FUA, DPO, EVPD, service action); `page` is the VPD or mode page, or the
    SELECT REPORT of REPORT LUNS.
    """

    operation: Operation
    lba: int = 0
    length: int = 0
    option: int = 0
    page: int = 0
    subpage: int = 0

    @property
    def service_action(self) -> int:
        """Service action of a SERVICE ACTION IN command."""
        return self.option & SERVICE_ACTION_MASK

    @property
    def is_evpd(self) -> bool:
        """True for an INQUIRY that asks for a VPD page."""
        return bool(self.option & EVPD)


def parse_cdb(cdb: bytes | bytearray | memoryview) -> Cdb:
    """Take a CDB of 16 bytes apart; RemoteProtocolError for an operation not in `Operation`,
    which a target answers with ILLEGAL REQUEST, INVALID OPERATION CODE.
    """
    raw = bytes(cdb)
    if len(raw) < CDB_LENGTH:
        raise RemoteProtocolError(f"a CDB is at least {CDB_LENGTH} bytes, not {len(raw)}")
    try:
        operation = Operation(raw[0])
    except ValueError:
        raise RemoteProtocolError(f"operation code 0x{raw[0]:02x} is not known") from None
    lba = LBA[operation].get(raw) if operation in LBA else 0
    length = LENGTH[operation].get(raw) if operation in LENGTH else 0
    page = subpage = 0
    if operation in (Operation.INQUIRY, Operation.REPORT_LUNS):
        page = raw[2]
    elif operation in (Operation.MODE_SENSE_6, Operation.MODE_SENSE_10):
        page, subpage = raw[2] & 0x3F, raw[3]
    return Cdb(operation, lba, length, raw[1], page, subpage)


def _build(operation: Operation, *, lba: int = 0, length: int = 0, option: int = 0) -> bytearray:
    cdb = bytearray(CDB_LENGTH)
    cdb[0] = operation
    cdb[1] = option
    for table, value in ((LBA, lba), (LENGTH, length)):
        if operation in table:
            part = table[operation]
            if not 0 <= value < 1 << 8 * part.length:
                raise LocalProtocolError(f"{value} does not fit in {operation.name}")
            cdb[part.offset : part.offset + part.length] = value.to_bytes(part.length, "big")
    return cdb


def test_unit_ready() -> bytes:
    """TEST UNIT READY (SPC-4 §6.47)."""
    return bytes(_build(Operation.TEST_UNIT_READY))


test_unit_ready.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest thinks


def request_sense(allocation_length: int = 252) -> bytes:
    """REQUEST SENSE, fixed format (SPC-4 §6.39)."""
    return bytes(_build(Operation.REQUEST_SENSE, length=allocation_length))


def inquiry(vpd_page: int | None = None, allocation_length: int = 255) -> bytes:
    """INQUIRY for standard data, or for a VPD page (SPC-4 §6.6)."""
    cdb = _build(Operation.INQUIRY, length=allocation_length, option=int(vpd_page is not None))
    cdb[2] = vpd_page or 0
    return bytes(cdb)


def report_luns(allocation_length: int = 16 * 1024, select_report: int = 0) -> bytes:
    """REPORT LUNS (SPC-4 §6.33)."""
    cdb = _build(Operation.REPORT_LUNS, length=allocation_length)
    cdb[2] = select_report
    return bytes(cdb)


def mode_sense_6(page: int, subpage: int = 0, allocation_length: int = 255) -> bytes:
    """MODE SENSE(6), current values (SPC-4 §6.13)."""
    cdb = _build(Operation.MODE_SENSE_6, length=allocation_length)
    cdb[2:4] = page, subpage
    return bytes(cdb)


def mode_sense_10(page: int, subpage: int = 0, allocation_length: int = 255) -> bytes:
    """MODE SENSE(10), current values (SPC-4 §6.14)."""
    cdb = _build(Operation.MODE_SENSE_10, length=allocation_length)
    cdb[2:4] = page, subpage
    return bytes(cdb)


def read_capacity_10() -> bytes:
    """READ CAPACITY(10) (SBC-3 §5.12): 8 bytes of data."""
    return bytes(_build(Operation.READ_CAPACITY_10))


def read_capacity_16(allocation_length: int = 32) -> bytes:
    """READ CAPACITY(16), a service action of 9Eh (SBC-3 §5.13): 32 bytes of data."""
    return bytes(
        _build(
            Operation.SERVICE_ACTION_IN_16,
            length=allocation_length,
            option=READ_CAPACITY_16_ACTION,
        )
    )


def read_10(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """READ(10): at most 65,535 blocks below 2^32 (SBC-3 §5.8)."""
    return bytes(_build(Operation.READ_10, lba=lba, length=blocks, option=FUA * fua))


def write_10(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """WRITE(10) (SBC-3 §5.32)."""
    return bytes(_build(Operation.WRITE_10, lba=lba, length=blocks, option=FUA * fua))


def read_16(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """READ(16) (SBC-3 §5.10)."""
    return bytes(_build(Operation.READ_16, lba=lba, length=blocks, option=FUA * fua))


def write_16(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """WRITE(16) (SBC-3 §5.34)."""
    return bytes(_build(Operation.WRITE_16, lba=lba, length=blocks, option=FUA * fua))


def synchronize_cache_10(lba: int = 0, blocks: int = 0) -> bytes:
    """SYNCHRONIZE CACHE(10); zero blocks means to the end of the medium (SBC-3 §5.21)."""
    return bytes(_build(Operation.SYNCHRONIZE_CACHE_10, lba=lba, length=blocks))


def synchronize_cache_16(lba: int = 0, blocks: int = 0) -> bytes:
    """SYNCHRONIZE CACHE(16) (SBC-3 §5.22)."""
    return bytes(_build(Operation.SYNCHRONIZE_CACHE_16, lba=lba, length=blocks))


def encode_lun(lun: int) -> int:
    """The 8-byte LUN field as an integer: peripheral method below 256, flat space above."""
    if not 0 <= lun <= MAX_LUN:
        raise LocalProtocolError(f"LUN {lun} is outside 0..{MAX_LUN}")
    method = 0 if lun <= MAX_PERIPHERAL_LUN else LUN_METHOD_FLAT
    return (method << 14 | lun) << 48


def decode_lun(field: int) -> int | None:
    """The LUN number of an 8-byte field; None for a form with no plain number (another bus, the
    logical unit or extended methods, or a second addressing level).
    """
    first, rest = field >> 48 & 0xFFFF, field & 0xFFFF_FFFF_FFFF
    method, value = first >> 14, first & MAX_LUN
    if rest:
        return None
    if method == LUN_METHOD_FLAT:
        return value
    return value if method == 0 and value <= MAX_PERIPHERAL_LUN else None
