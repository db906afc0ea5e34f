"""INQUIRY: who a unit is and what it can do (SPC-4 §6.6, §7.8, SBC-3 §6.6). Every limit that a VPD
page tells is one that the commands keep.
"""

from collections.abc import Callable, Mapping
from typing import Final

from iscsi.target.scsi.command import (
    INVALID_FIELD,
    Answer,
    Command,
    Reservation,
    Row,
    Rows,
)
from iscsi.target.scsi.copy_parameters import third_party_copy_page
from iscsi.target.units import VENDOR, LogicalUnit
from iscsi.wire import scsi_data as data

_NOT_THERE: Final = data.InquiryData(0x1F, qualifier=3, vendor=VENDOR, product="no unit here")
_EVPD: Final = 0x01
_CMDDT: Final = 0x02
_IMPLICIT_TPGS: Final = 1


def _inquiry(command: Command) -> Answer:
    evpd, page = command.cdb[1] & _EVPD, command.cdb[2]
    if command.cdb[1] & _CMDDT or (page and not evpd):
        return INVALID_FIELD
    unit = command.unit
    if not evpd:
        return Answer(data=data.build_inquiry(_standard(command)))
    build = _PAGES.get(page)
    if unit is None or build is None:
        return INVALID_FIELD
    return Answer(data=data.build_vpd(page, build(command, unit)))


def _standard(command: Command) -> data.InquiryData:
    unit = command.unit
    if unit is None:
        return _NOT_THERE
    return data.InquiryData(
        0,
        removable=unit.removable,
        vendor=unit.vendor,
        product=unit.product,
        revision=unit.revision,
        target_port_groups=_IMPLICIT_TPGS,
        third_party_copy=True,
        several_ports=len({command.nexus.portal_group_tag, *command.target.portal_groups()}) > 1,
    )


def unit_designators(unit: LogicalUnit) -> tuple[data.Designator, ...]:
    """What names the unit itself, whichever port it is seen through."""
    return (
        data.Designator(1, f"{unit.vendor:8}{unit.serial}".encode(), code_set=2),
        data.Designator(3, unit.naa.to_bytes(8, "big")),
    )


def _identification(command: Command, unit: LogicalUnit) -> bytes:
    """The unit by T10 vendor and NAA identifiers; the port by number, group and name; the target
    by name (SPC-4 §7.8.6).
    """
    nexus, name = command.nexus, command.target.name
    return data.build_designators(
        (
            *unit_designators(unit),
            data.Designator(4, bytes(2) + nexus.relative_port.to_bytes(2, "big"), association=1),
            data.Designator(5, bytes(2) + nexus.portal_group_tag.to_bytes(2, "big"), association=1),
            data.Designator(
                8, _padded(f"{name},t,0x{nexus.portal_group_tag:04x}"), 3, association=1
            ),
            data.Designator(8, _padded(name), 3, association=2),
        )
    )


def _padded(name: str) -> bytes:
    """A SCSI name string: with a NUL, to a multiple of four bytes (SPC-4 §7.8.6.11)."""
    raw = name.encode() + b"\0"
    return raw.ljust(-(-len(raw) // 4) * 4, b"\0")


def _extended(command: Command, unit: LogicalUnit) -> bytes:
    """Page 86 (SPC-4 §7.8.7): simple, ordered and head-of-queue tasks (`iscsi.target.turns`), no
    protection, LUICLR.
    """
    body = bytearray(60)
    body[1] = 0x07  # HEADSUP, ORDSUP, SIMPSUP
    body[2] = int(unit.backend.write_cache)  # V_SUP
    body[3] = 0x01  # LUICLR
    return bytes(body)


def _mode_page_policy(command: Command, unit: LogicalUnit) -> bytes:
    """Page 87 (SPC-4 §7.8.9): every mode page is shared by all nexuses."""
    return bytes((0x3F, 0xFF, 0x00, 0))


def _block_limits(command: Command, unit: LogicalUnit) -> bytes:
    limits = unit.limits
    thin = unit.is_thin
    grain = max(1, unit.backend.granularity // unit.block_size)
    return data.build_block_limits(
        data.BlockLimits(
            max_transfer_length=limits.transfer,
            optimal_transfer_length=min(limits.transfer, limits.optimal_transfer),
            optimal_granularity=max(1, 4096 // unit.block_size),
            max_compare_and_write_length=limits.compare_and_write,
            max_prefetch_length=0,
            max_unmap_length=limits.unmap if thin else 0,
            max_unmap_descriptors=limits.unmap_descriptors if thin else 0,
            unmap_granularity=grain if thin else 0,
            unmap_alignment=0 if thin else None,
            max_write_same_length=limits.write_same,
            max_atomic_length=limits.atomic,
            atomic_alignment=limits.atomic_alignment,
            atomic_granularity=limits.atomic_granularity,
            max_atomic_length_with_boundary=0,
            max_atomic_boundary=0,
        )
    )


_THIRD_PARTY_COPY_PAGE: Final = 0x8F
_PAGES: Final[Mapping[int, Callable[[Command, LogicalUnit], bytes]]] = {
    data.VpdPage.SUPPORTED_PAGES: lambda command, unit: bytes(sorted(_PAGES)),
    data.VpdPage.UNIT_SERIAL_NUMBER: lambda command, unit: unit.serial.encode(),
    data.VpdPage.DEVICE_IDENTIFICATION: _identification,
    data.VpdPage.EXTENDED_INQUIRY: _extended,
    data.VpdPage.MODE_PAGE_POLICY: _mode_page_policy,
    _THIRD_PARTY_COPY_PAGE: lambda command, unit: third_party_copy_page(),
    data.VpdPage.BLOCK_LIMITS: _block_limits,
    data.VpdPage.BLOCK_DEVICE_CHARACTERISTICS: lambda command, unit: (
        data.build_block_characteristics(erases=unit.is_thin)
    ),
    data.VpdPage.LOGICAL_BLOCK_PROVISIONING: lambda command, unit: data.build_provisioning(
        thin=unit.is_thin, threshold_exponent=unit.threshold_exponent
    ),
}

ROWS: Final[Rows] = {
    (0x12, None): Row(
        _inquiry,
        "01ffffff00",
        (3, 2),
        needs_medium=False,
        reservation=Reservation.ALWAYS_ALLOWED,
        during_sanitize=True,
    ),
}
