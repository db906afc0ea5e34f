"""What a block device wants to know of its logical unit, asked in order: is it there, is it ready,
how large is it, how much may one command move. Procedures of steps, like those of `core`.
"""

from dataclasses import dataclass
from typing import Final

from iscsi.session.core import SessionCore
from iscsi.session.errors import NoSuchUnit
from iscsi.session.steps import Steps
from iscsi.wire import scsi, scsi_data
from iscsi.wire.errors import RemoteProtocolError, ScsiError
from iscsi.wire.scsi_data import BlockLimits, Capacity, InquiryData, VpdPage
from iscsi.wire.sense import Asc, SenseKey

# A unit attention is reported once each; a target has a handful of them after a login.
ATTENTIONS_MAX: Final = 16
READ_CAPACITY_10_MAX: Final = 1 << 32
ABSENT_QUALIFIER: Final = 3
BLOCK_DEVICE_TYPES: Final = (0x00, 0x07, 0x0E)  # disk, optical memory, simplified disk


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """A logical unit that is ready for reads and writes."""

    inquiry: InquiryData
    capacity: Capacity
    limits: BlockLimits


def is_attention(error: ScsiError) -> bool:
    """Whether a command failed only to report a unit attention."""
    return error.sense is not None and error.sense.key == SenseKey.UNIT_ATTENTION


def patiently(
    core: SessionCore, cdb: bytes, length: int = 0, lun: int | None = None
) -> Steps[bytes]:
    """A command that moves little, sent again while it reports unit attentions. Its data."""
    for _ in range(ATTENTIONS_MAX):
        try:
            result = yield from core.command(cdb, length=length, lun=lun)
        except ScsiError as error:
            if not is_attention(error):
                raise
            last = error
            continue
        return result.data
    raise last


def inquiry(core: SessionCore, lun: int | None = None) -> Steps[InquiryData]:
    """Standard INQUIRY data. Raises NoSuchUnit when the target has no such unit."""
    data = yield from patiently(core, scsi.inquiry(allocation_length=255), 255, lun)
    found = scsi_data.parse_inquiry(data)
    if found.qualifier == ABSENT_QUALIFIER or found.device_type == 0x1F:
        number = core.url.lun or 0 if lun is None else lun
        raise NoSuchUnit(f"{core.url.target} has no LUN {number}: `ppe iscsi ls -s` lists them")
    return found


def vpd(core: SessionCore, page: int, lun: int | None = None) -> Steps[bytes]:
    """The body of a VPD page. Raises ScsiError where the unit does not have it."""
    data = yield from patiently(core, scsi.inquiry(page, 1024), 1024, lun)
    return scsi_data.parse_vpd(page, data)


def block_limits(core: SessionCore, lun: int | None = None) -> Steps[BlockLimits]:
    """VPD page B0, or no limits where the unit does not have the page."""
    try:
        pages = yield from vpd(core, VpdPage.SUPPORTED_PAGES, lun)
        if VpdPage.BLOCK_LIMITS not in pages:
            return BlockLimits()
        body = yield from vpd(core, VpdPage.BLOCK_LIMITS, lun)
    except (ScsiError, RemoteProtocolError):
        return BlockLimits()
    return scsi_data.parse_block_limits(body)


def read_capacity(core: SessionCore, lun: int | None = None) -> Steps[Capacity]:
    """READ CAPACITY(16), or (10) where the unit does not know that."""
    try:
        data = yield from patiently(core, scsi.read_capacity_16(), 32, lun)
        return scsi_data.parse_capacity_16(data)
    except ScsiError as error:
        if error.sense is None or error.sense.code != Asc.INVALID_OPERATION_CODE:
            raise
    data = yield from patiently(core, scsi.read_capacity_10(), 8, lun)
    return scsi_data.parse_capacity_10(data)


def report_luns(core: SessionCore) -> Steps[list[int]]:
    """The LUNs of the target, by REPORT LUNS to LUN 0; a long list is asked for twice."""
    length = 4096
    data = yield from patiently(core, scsi.report_luns(length), length, 0)
    luns, needed = scsi_data.parse_luns(data)
    if needed > length:
        length = min(needed, 1 << 20)
        data = yield from patiently(core, scsi.report_luns(length), length, 0)
        luns, _ = scsi_data.parse_luns(data)
    return luns


def synchronize_cache(core: SessionCore) -> Steps[None]:
    """SYNCHRONIZE CACHE of the whole unit; one that has no such command has no cache."""
    try:
        yield from patiently(core, scsi.synchronize_cache_10())
    except ScsiError as error:
        if error.sense is None or error.sense.code != Asc.INVALID_OPERATION_CODE:
            raise


def examine(core: SessionCore) -> Steps[UnitFacts]:
    """Everything a block device starts with. Raises NoSuchUnit, ScsiError."""
    try:
        found = yield from inquiry(core)
        if found.device_type not in BLOCK_DEVICE_TYPES:
            raise NoSuchUnit(
                f"LUN {core.url.lun or 0} of {core.url.target} is no block device but of type "
                f"0x{found.device_type:02x}"
            )
        yield from patiently(core, scsi.test_unit_ready())
    except ScsiError as error:
        if error.sense is not None and error.sense.code == Asc.LUN_NOT_SUPPORTED:
            raise NoSuchUnit(
                f"{core.url.target} has no LUN {core.url.lun or 0}: `ppe iscsi ls -s` lists them"
            ) from error
        raise
    capacity = yield from read_capacity(core)
    limits = yield from block_limits(core)
    return UnitFacts(found, capacity, limits)
