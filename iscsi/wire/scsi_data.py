"""Parameter data of the SCSI commands in `scsi`: INQUIRY and its VPD pages, capacities, LUN lists
and mode data (SPC-4, SBC-3). Builders give the whole data; the caller cuts it to the allocation
length. Parsers take short data and raise RemoteProtocolError only when what they return is missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from iscsi.wire import scsi
from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError

VERSION_SPC_4: Final = 0x06
# iSCSI, SPC-4, SBC-3, SAM-5 without a revision claimed (SPC-4 table 142).
VERSION_DESCRIPTORS: Final = (0x0960, 0x0460, 0x04C0, 0x00A0)
STANDARD_INQUIRY_LENGTH: Final = 96
DEVICE_TYPE_MASK: Final = 0x1F
NO_LOGICAL_UNIT: Final = 0x7F  # peripheral byte where no LUN is
_DPO_FUA: Final = 0x10
_WRITE_PROTECT: Final = 0x80


class VpdPage(IntEnum):
    """Vital product data pages."""

    SUPPORTED_PAGES = 0x00
    UNIT_SERIAL_NUMBER = 0x80
    DEVICE_IDENTIFICATION = 0x83
    EXTENDED_INQUIRY = 0x86
    MODE_PAGE_POLICY = 0x87
    BLOCK_LIMITS = 0xB0
    BLOCK_DEVICE_CHARACTERISTICS = 0xB1
    LOGICAL_BLOCK_PROVISIONING = 0xB2


class ModePage(IntEnum):
    """Mode pages served here."""

    READ_WRITE_ERROR_RECOVERY = 0x01
    CACHING = 0x08
    CONTROL = 0x0A
    INFORMATIONAL_EXCEPTIONS = 0x1C
    ALL = 0x3F


@dataclass(frozen=True, slots=True)
class InquiryData:
    """Standard INQUIRY data, as far as a block initiator uses it."""

    device_type: int
    qualifier: int = 0
    removable: bool = False
    version: int = VERSION_SPC_4
    vendor: str = ""
    product: str = ""
    revision: str = ""
    target_port_groups: int = 0  # TPGS: 1 is implicit
    third_party_copy: bool = False
    several_ports: bool = False  # MULTIP


@dataclass(frozen=True, slots=True)
class Capacity:
    """Size of a LUN: `blocks` is the number of blocks, not the last address."""

    blocks: int
    block_size: int
    physical_exponent: int = 0
    thin: bool = False


@dataclass(frozen=True, slots=True)
class Designator:
    """One identifier of VPD page 83 (SPC-4 §7.8.6). `association` 0 is the LUN, 1 the port."""

    kind: int
    value: bytes
    code_set: int = 1
    association: int = 0


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """VPD page B0 (SBC-3 §6.6.4), in blocks; zero means not reported."""

    max_transfer_length: int = 0
    optimal_transfer_length: int = 0
    optimal_granularity: int = 0
    max_compare_and_write_length: int = 0
    max_prefetch_length: int = 0
    max_unmap_length: int = 0
    max_unmap_descriptors: int = 0
    unmap_granularity: int = 0
    unmap_alignment: int | None = None
    max_write_same_length: int = 0
    max_atomic_length: int = 0
    atomic_alignment: int = 0
    atomic_granularity: int = 0
    max_atomic_length_with_boundary: int = 0
    max_atomic_boundary: int = 0
    write_same_non_zero: bool = False


def _need(data: bytes, length: int, what: str) -> None:
    if len(data) < length:
        raise RemoteProtocolError(f"{what}: {len(data)} bytes, at least {length} expected")


def _ascii(text: str, width: int) -> bytes:
    return text.encode("ascii", "replace").ljust(width)[:width]


def _text(raw: bytes) -> str:
    return raw.decode("ascii", "replace").strip(" \0")


def build_inquiry(inquiry: InquiryData) -> bytes:
    """96 bytes of standard data (SPC-4 §6.6.2)."""
    data = bytearray(STANDARD_INQUIRY_LENGTH)
    data[0] = inquiry.qualifier << 5 | inquiry.device_type
    data[1] = 0x80 * inquiry.removable
    data[2] = inquiry.version
    data[3] = 0x12  # HISUP, response data format 2
    data[4] = STANDARD_INQUIRY_LENGTH - 5
    data[5] = inquiry.target_port_groups << 4 | 0x08 * inquiry.third_party_copy
    data[6] = 0x10 * inquiry.several_ports
    data[7] = 0x02  # CMDQUE
    data[8:16] = _ascii(inquiry.vendor, 8)
    data[16:32] = _ascii(inquiry.product, 16)
    data[32:36] = _ascii(inquiry.revision, 4)
    for i, descriptor in enumerate(VERSION_DESCRIPTORS):
        data[58 + 2 * i : 60 + 2 * i] = descriptor.to_bytes(2, "big")
    return bytes(data)


def parse_inquiry(data: bytes) -> InquiryData:
    """Read standard data of at least 5 bytes; missing strings are empty."""
    _need(data, 5, "INQUIRY")
    return InquiryData(
        device_type=data[0] & DEVICE_TYPE_MASK,
        qualifier=data[0] >> 5,
        removable=bool(data[1] & 0x80),
        version=data[2],
        vendor=_text(data[8:16]),
        product=_text(data[16:32]),
        revision=_text(data[32:36]),
    )


def build_vpd(page: int, body: bytes, device_type: int = 0) -> bytes:
    """A VPD page: its four-byte header, then `body` (SPC-4 §7.8)."""
    return bytes((device_type, page)) + len(body).to_bytes(2, "big") + body


def parse_vpd(page: int, data: bytes) -> bytes:
    """Body of a VPD page; RemoteProtocolError if it is another page than asked for."""
    _need(data, 4, f"VPD page {page:02x}")
    if data[1] != page:
        raise RemoteProtocolError(f"VPD page {data[1]:02x} instead of {page:02x}")
    return data[4 : 4 + int.from_bytes(data[2:4], "big")]


def build_designators(designators: Iterable[Designator]) -> bytes:
    """Body of VPD page 83; protocol identifier iSCSI where a port or target is named."""
    out = bytearray()
    for item in designators:
        protocol = 0x50 if item.association else 0
        port_bit = 0x80 if item.association else 0
        out += bytes((protocol | item.code_set, port_bit | item.association << 4 | item.kind, 0))
        out += bytes((len(item.value),)) + item.value
    return bytes(out)


def parse_designators(body: bytes) -> list[Designator]:
    """Designators of page 83; one that runs past the end stops the list."""
    found: list[Designator] = []
    at = 0
    while at + 4 <= len(body) and at + 4 + body[at + 3] <= len(body):
        value = body[at + 4 : at + 4 + body[at + 3]]
        association = body[at + 1] >> 4 & 0x03
        found.append(Designator(body[at + 1] & 0x0F, value, body[at] & 0x0F, association))
        at += 4 + len(value)
    return found


# Offset in the body and length of each number of page B0; the unmap alignment has a bit of its own.
_BLOCK_LIMITS: Final = {
    "max_compare_and_write_length": (1, 1),
    "optimal_granularity": (2, 2),
    "max_transfer_length": (4, 4),
    "optimal_transfer_length": (8, 4),
    "max_prefetch_length": (12, 4),
    "max_unmap_length": (16, 4),
    "max_unmap_descriptors": (20, 4),
    "unmap_granularity": (24, 4),
    "max_write_same_length": (32, 8),
    "max_atomic_length": (40, 4),
    "atomic_alignment": (44, 4),
    "atomic_granularity": (48, 4),
    "max_atomic_length_with_boundary": (52, 4),
    "max_atomic_boundary": (56, 4),
}
_UNMAP_ALIGNMENT: Final = 28
_UNMAP_ALIGNMENT_VALID: Final = 1 << 31


def build_block_limits(limits: BlockLimits) -> bytes:
    """Body of VPD page B0: 60 bytes."""
    body = bytearray(0x3C)
    body[0] = limits.write_same_non_zero
    for name, (offset, length) in _BLOCK_LIMITS.items():
        body[offset : offset + length] = getattr(limits, name).to_bytes(length, "big")
    if limits.unmap_alignment is not None:
        word = _UNMAP_ALIGNMENT_VALID | limits.unmap_alignment
        body[_UNMAP_ALIGNMENT : _UNMAP_ALIGNMENT + 4] = word.to_bytes(4, "big")
    return bytes(body)


def parse_block_limits(body: bytes) -> BlockLimits:
    """Read page B0; fields a short page lacks are zero."""
    full = body.ljust(0x3C, b"\0")
    numbers = {
        name: int.from_bytes(full[offset : offset + length], "big")
        for name, (offset, length) in _BLOCK_LIMITS.items()
    }
    word = int.from_bytes(full[_UNMAP_ALIGNMENT : _UNMAP_ALIGNMENT + 4], "big")
    alignment = word & ~_UNMAP_ALIGNMENT_VALID if word & _UNMAP_ALIGNMENT_VALID else None
    return BlockLimits(unmap_alignment=alignment, write_same_non_zero=bool(full[0] & 1), **numbers)


def build_block_characteristics(rotation_rate: int = 1, *, erases: bool = False) -> bytes:
    """Body of VPD page B1 (SBC-3 §6.6.3); rotation rate 1 means no spindle. `erases`: SANITIZE can
    erase blocks and keys, and reads are good afterwards (WABEREQ and WACEREQ 01b).
    """
    body = rotation_rate.to_bytes(2, "big") + bytes(1) + bytes((0x50 * erases,))
    return body.ljust(0x3C, b"\0")


def parse_rotation_rate(body: bytes) -> int:
    """Medium rotation rate of page B1; 0 if it is not reported."""
    return int.from_bytes(body[:2], "big")


def build_provisioning(*, thin: bool, threshold_exponent: int = 0) -> bytes:
    """Body of VPD page B2 (SBC-3 §6.6.4): thin units unmap by UNMAP and both WRITE SAMEs, and what
    is unmapped reads as zeros.
    """
    return bytes((threshold_exponent, 0xE4, 0x02, 0)) if thin else bytes(4)


def build_capacity_10(capacity: Capacity) -> bytes:
    """8 bytes; FFFFFFFF for a LUN too large, which sends the initiator to READ CAPACITY(16)."""
    last = min(capacity.blocks - 1, 0xFFFFFFFF)
    return last.to_bytes(4, "big") + capacity.block_size.to_bytes(4, "big")


def build_capacity_16(capacity: Capacity) -> bytes:
    """32 bytes (SBC-3 §5.13.2)."""
    data = bytearray(32)
    data[0:8] = (capacity.blocks - 1).to_bytes(8, "big")
    data[8:12] = capacity.block_size.to_bytes(4, "big")
    data[13] = capacity.physical_exponent
    data[14] = 0xC0 * capacity.thin  # LBPME, LBPRZ
    return bytes(data)


def parse_capacity_10(data: bytes) -> Capacity:
    """Read 8 bytes. `blocks` is 2^32 when the LUN needs READ CAPACITY(16)."""
    _need(data, 8, "READ CAPACITY(10)")
    return _capacity(int.from_bytes(data[:4], "big") + 1, int.from_bytes(data[4:8], "big"))


def parse_capacity_16(data: bytes) -> Capacity:
    """Read at least 12 of the 32 bytes."""
    _need(data, 12, "READ CAPACITY(16)")
    full = data.ljust(32, b"\0")
    blocks, block_size = int.from_bytes(full[:8], "big") + 1, int.from_bytes(full[8:12], "big")
    return _capacity(blocks, block_size, full[13] & 0x0F, bool(full[14] & 0x80))


def _capacity(blocks: int, block_size: int, exponent: int = 0, thin: bool = False) -> Capacity:
    if block_size == 0:
        raise RemoteProtocolError("READ CAPACITY: the block size is 0")
    return Capacity(blocks, block_size, exponent, thin)


def build_luns(luns: Iterable[int]) -> bytes:
    """REPORT LUNS data: length, four reserved bytes, then 8 bytes a LUN (SPC-4 §6.33)."""
    entries = b"".join(scsi.encode_lun(lun).to_bytes(8, "big") for lun in luns)
    return len(entries).to_bytes(4, "big") + bytes(4) + entries


def parse_luns(data: bytes) -> tuple[list[int], int]:
    """LUN numbers present, and the bytes a complete list needs (for a second, larger request).

    LUN forms without a plain number are left out.
    """
    _need(data, 8, "REPORT LUNS")
    length = int.from_bytes(data[:4], "big")
    end = min(len(data), 8 + length)
    fields = (int.from_bytes(data[at : at + 8], "big") for at in range(8, end - 7, 8))
    return [lun for lun in map(scsi.decode_lun, fields) if lun is not None], 8 + length


def mode_page(page: int, *, write_cache: bool = False) -> bytes:
    """Current values of one mode page; LocalProtocolError if it is not served."""
    if page == ModePage.CACHING:
        return bytes((page, 0x12, 0x04 * write_cache)).ljust(20, b"\0")
    if page == ModePage.CONTROL:
        return bytes((page, 0x0A, 0x02, 0x10)).ljust(12, b"\0")  # GLTSD; reordering allowed
    raise LocalProtocolError(f"mode page {page:02x} is not served")


def build_mode_data(pages: bytes, *, ten: bool = False, read_only: bool = False) -> bytes:
    """MODE SENSE(6) or (10) data without block descriptors (SPC-4 §7.5.5)."""
    device_specific = _DPO_FUA | _WRITE_PROTECT * read_only
    if ten:
        return (len(pages) + 6).to_bytes(2, "big") + bytes((0, device_specific, 0, 0, 0, 0)) + pages
    return bytes((len(pages) + 3, 0, device_specific, 0)) + pages


def is_write_protected(mode_data: bytes, *, ten: bool = False) -> bool:
    """The WP bit of MODE SENSE data."""
    at = 3 if ten else 2
    _need(mode_data, at + 1, "MODE SENSE")
    return bool(mode_data[at] & _WRITE_PROTECT)
