"""What a block device wants to know of its logical unit, asked in order: is it there, is it ready,
how large is it, how much may one command move, and who is it. Procedures of steps.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic_ns
from typing import Any, Final, Protocol

from iscsi.session.attention import is_attention
from iscsi.session.errors import NoSuchUnit, UnitChanged
from iscsi.session.options import Timeouts, nanoseconds
from iscsi.session.outcome import CommandResult
from iscsi.session.steps import Sleep, Steps
from iscsi.wire import scsi, scsi_data
from iscsi.wire.errors import RemoteProtocolError, ScsiError
from iscsi.wire.scsi_data import BlockLimits, Capacity, InquiryData, VpdPage
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey
from iscsi.wire.url import IscsiUrl

# A unit attention is reported once each; a target has a handful of them after a login.
ATTENTIONS_MAX: Final = 16
READ_CAPACITY_10_MAX: Final = 1 << 32
ABSENT_QUALIFIER: Final = 3
BLOCK_DEVICE_TYPES: Final = (0x00, 0x07, 0x0E)  # disk, optical memory, simplified disk
FIRST_PAUSE_S: Final = 0.01
LONGEST_PAUSE_S: Final = 1.0
_LATER: Final = (ScsiStatus.BUSY, ScsiStatus.TASK_SET_FULL)


class Commander(Protocol):
    """What the procedures here need of a session."""

    @property
    def url(self) -> IscsiUrl:
        """Which target and unit."""

    @property
    def timeouts(self) -> Timeouts:
        """How long a busy unit is asked again."""

    def command(
        self, cdb: bytes, *, length: int = 0, data: Any = b"", lun: int | None = None
    ) -> Steps[CommandResult]:
        """One SCSI command."""

    def pass_over(self, error: ScsiError, lun: int | None = None) -> None:
        """Raise what a unit attention means, if it must not be ignored."""


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """A logical unit that is ready for reads and writes. `names` are its serial number and its
    designators (VPD pages 80 and 83), by which it is known again.
    """

    inquiry: InquiryData
    capacity: Capacity
    limits: BlockLimits
    names: tuple[bytes, ...] = ()


def patiently(
    core: Commander,
    cdb: bytes,
    length: int = 0,
    lun: int | None = None,
    data: Any = b"",
) -> Steps[bytes]:
    """A command sent again while it reports unit attentions, or while the unit is busy. Its data.

    Neither executed it (SAM-5 §5.14, §5.3.1). Raises the last ScsiError after 16 attentions, or
    after `timeouts.command_s` of being busy, and ReservationLost.
    """
    attentions, pause = 0, FIRST_PAUSE_S
    end = monotonic_ns() + nanoseconds(core.timeouts.command_s)
    while True:
        try:
            result = yield from core.command(cdb, length=length, lun=lun, data=data)
        except ScsiError as error:
            if is_attention(error) and attentions < ATTENTIONS_MAX:
                core.pass_over(error, lun)
                attentions += 1
                continue
            if error.status not in _LATER or monotonic_ns() > end:
                raise
        else:
            return result.data
        yield Sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def answers(core: Commander) -> Steps[None]:
    """See that the unit takes commands, with a medium or without."""
    try:
        yield from patiently(core, scsi.test_unit_ready())
    except ScsiError as error:
        if error.sense is None or error.sense.code >> 8 != Asc.MEDIUM_NOT_PRESENT >> 8:
            raise


def inquiry(core: Commander, lun: int | None = None) -> Steps[InquiryData]:
    """Standard INQUIRY data. Raises NoSuchUnit when the target has no such unit."""
    data = yield from patiently(core, scsi.inquiry(allocation_length=255), 255, lun)
    found = scsi_data.parse_inquiry(data)
    if found.qualifier == ABSENT_QUALIFIER or found.device_type == 0x1F:
        number = core.url.lun or 0 if lun is None else lun
        raise NoSuchUnit(f"{core.url.target} has no LUN {number}: `ppe iscsi ls -s` lists them")
    return found


def vpd(core: Commander, page: int, lun: int | None = None) -> Steps[bytes]:
    """The body of a VPD page. Raises ScsiError where the unit does not have it."""
    data = yield from patiently(core, scsi.inquiry(page, 1024), 1024, lun)
    return scsi_data.parse_vpd(page, data)


def _page(core: Commander, page: int, lun: int | None = None) -> Steps[bytes]:
    """The body of a VPD page, empty where the unit does not have it or says nonsense there.

    Raises ScsiError for any other trouble: that it cannot tell now is not that it has none.
    """
    try:
        data = yield from patiently(core, scsi.inquiry(page, 1024), 1024, lun)
    except ScsiError as error:
        if error.sense is None or error.sense.key != SenseKey.ILLEGAL_REQUEST:
            raise
        return b""
    try:
        return scsi_data.parse_vpd(page, data)
    except RemoteProtocolError:
        return b""


def block_limits(core: Commander, lun: int | None = None) -> Steps[BlockLimits]:
    """VPD page B0, or no limits where the unit does not have the page."""
    try:
        pages = yield from _page(core, VpdPage.SUPPORTED_PAGES, lun)
        if VpdPage.BLOCK_LIMITS not in pages:
            return BlockLimits()
        body = yield from _page(core, VpdPage.BLOCK_LIMITS, lun)
    except ScsiError:
        return BlockLimits()
    return scsi_data.parse_block_limits(body) if body else BlockLimits()


def read_capacity(core: Commander, lun: int | None = None) -> Steps[Capacity]:
    """READ CAPACITY(16), or (10) where the unit does not know that."""
    try:
        data = yield from patiently(core, scsi.read_capacity_16(), 32, lun)
        return scsi_data.parse_capacity_16(data)
    except ScsiError as error:
        if error.sense is None or error.sense.code != Asc.INVALID_OPERATION_CODE:
            raise
    data = yield from patiently(core, scsi.read_capacity_10(), 8, lun)
    return scsi_data.parse_capacity_10(data)


def report_luns(core: Commander) -> Steps[list[int]]:
    """The LUNs of the target, by REPORT LUNS to LUN 0; a long list is asked for twice."""
    length = 4096
    data = yield from patiently(core, scsi.report_luns(length), length, 0)
    luns, needed = scsi_data.parse_luns(data)
    if needed > length:
        length = min(needed, 1 << 20)
        data = yield from patiently(core, scsi.report_luns(length), length, 0)
        luns, _ = scsi_data.parse_luns(data)
    return luns


def synchronize_cache(core: Commander, cdb: bytes | None = None) -> Steps[None]:
    """SYNCHRONIZE CACHE, of the whole unit unless `cdb` says otherwise; one that has no such
    command has no cache.
    """
    cdb = cdb or scsi.synchronize_cache_10()
    try:
        yield from patiently(core, cdb)
    except ScsiError as error:
        if error.sense is None or error.sense.code != Asc.INVALID_OPERATION_CODE:
            raise
        if cdb[0] != scsi.synchronize_cache_10()[0]:
            # It may know the short form, which can name all blocks but not these.
            yield from synchronize_cache(core)


def names(core: Commander) -> Steps[tuple[bytes, ...]]:
    """Serial number and designators of the unit, as far as it has them. Raises ScsiError where it
    cannot tell now.
    """
    found: list[bytes] = []
    pages = yield from _page(core, VpdPage.SUPPORTED_PAGES)
    if VpdPage.UNIT_SERIAL_NUMBER in pages:
        found.append((yield from _page(core, VpdPage.UNIT_SERIAL_NUMBER)))
    if VpdPage.DEVICE_IDENTIFICATION in pages:
        body = yield from _page(core, VpdPage.DEVICE_IDENTIFICATION)
        with suppress(RemoteProtocolError):  # Nonsense tells nothing.
            found += sorted(
                bytes((item.kind,)) + item.value
                for item in scsi_data.parse_designators(body)
                if item.association == 0  # The others name the port, which may be another one.
            )
    return tuple(found)


def _missing(core: Commander) -> NoSuchUnit:
    return NoSuchUnit(
        f"{core.url.target} has no LUN {core.url.lun or 0}: `ppe iscsi ls -s` lists them"
    )


def examine(core: Commander) -> Steps[UnitFacts]:
    """Everything a block device starts with. Raises NoSuchUnit, ScsiError."""
    found = yield from _examine(core)
    with suppress(ScsiError):  # A unit can be used without a name.
        found = replace(found, names=(yield from names(core)))
    return found


def _examine(core: Commander) -> Steps[UnitFacts]:
    """All but the names."""
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
            raise _missing(core) from error
        raise
    capacity = yield from read_capacity(core)
    limits = yield from block_limits(core)
    return UnitFacts(found, capacity, limits)


def examine_again(core: Commander, before: UnitFacts) -> Steps[UnitFacts]:
    """Examine the unit after a reconnection. Raises UnitChanged if it is not the one it was."""
    now = yield from _examine(core)
    now = replace(now, names=(yield from names(core)))
    same = replace(now.inquiry, revision=before.inquiry.revision)  # Firmware may be updated.
    # Where it could not tell its names when it was opened there is nothing to compare.
    if same != before.inquiry or (before.names and now.names != before.names):
        raise UnitChanged(
            f"after the reconnection another unit answers as LUN {core.url.lun or 0} of "
            f"{core.url.target}: {now.inquiry.vendor} {now.inquiry.product}, "
            f"{len(now.names)} names; open the device again"
        )
    if (now.capacity.blocks, now.capacity.block_size) != (
        before.capacity.blocks,
        before.capacity.block_size,
    ):
        raise UnitChanged(
            f"after the reconnection LUN {core.url.lun or 0} of {core.url.target} has "
            f"{now.capacity.blocks} blocks of {now.capacity.block_size} bytes and not "
            f"{before.capacity.blocks} of {before.capacity.block_size}: open the device again"
        )
    return now
