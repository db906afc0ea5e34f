"""The SCSI commands that compiled code does not serve (SPC-4, SBC-3): who the unit is, how large,
and what it can do. Plain functions of a command and a unit; they hold no state and move no data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from iscsi.target.units import RamDisk, Target
from iscsi.wire import scsi_data as data
from iscsi.wire.scsi import SERVICE_ACTION_MASK
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey, encode_sense

VENDOR: Final = "PPE"
PRODUCT: Final = "RAM disk"
REVISION: Final = "0001"

TEST_UNIT_READY: Final = 0x00
REQUEST_SENSE: Final = 0x03
INQUIRY: Final = 0x12
MODE_SENSE_6: Final = 0x1A
START_STOP_UNIT: Final = 0x1B
PREVENT_ALLOW: Final = 0x1E
READ_CAPACITY_10: Final = 0x25
VERIFY_10: Final = 0x2F
SYNCHRONIZE_CACHE_10: Final = 0x35
MODE_SENSE_10: Final = 0x5A
VERIFY_16: Final = 0x8F
SYNCHRONIZE_CACHE_16: Final = 0x91
SERVICE_ACTION_IN_16: Final = 0x9E
READ_CAPACITY_16: Final = 0x10  # its service action
REPORT_LUNS: Final = 0xA0
MAINTENANCE_IN: Final = 0xA3
REPORT_SUPPORTED_OPCODES: Final = 0x0C  # its service action

SAVING_NOT_SUPPORTED: Final = 0x3900
LOGICAL_BLOCK_PROVISIONING: Final = 0xB2
_BYTCHK: Final = 0x06
_NOT_THERE: Final = data.InquiryData(0x1F, qualifier=3, vendor=VENDOR, product="no unit here")
# A unit attention does not stop these (SPC-4 §5.13); they also work where there is no unit.
ALWAYS_SERVED: Final = frozenset((INQUIRY, REPORT_LUNS, REQUEST_SENSE))


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer: data with GOOD, or sense with CHECK CONDITION."""

    status: int = ScsiStatus.GOOD
    data: bytes = b""
    sense: bytes = b""


@dataclass(frozen=True, slots=True)
class Command:
    """One command on its way: its CDB, the target, and the unit its LUN names, if there is one."""

    cdb: bytes
    target: Target
    lun: int | None
    portal_group_tag: int = 1
    unit: RamDisk | None = field(init=False)

    def __post_init__(self) -> None:
        unit = None if self.lun is None else self.target.units.get(self.lun)
        object.__setattr__(self, "unit", unit)

    def number(self, offset: int, length: int) -> int:
        """A big-endian field of the CDB."""
        return int.from_bytes(self.cdb[offset : offset + length], "big")


GOOD: Final = Answer()


def refuse(code: int, key: SenseKey = SenseKey.ILLEGAL_REQUEST) -> Answer:
    """CHECK CONDITION with this sense; `code` is ASC << 8 | ASCQ."""
    return Answer(ScsiStatus.CHECK_CONDITION, sense=encode_sense(key, code))


INVALID_FIELD: Final = refuse(Asc.INVALID_FIELD_IN_CDB)
INVALID_OPCODE: Final = refuse(Asc.INVALID_OPERATION_CODE)


def execute(command: Command) -> Answer:
    """Do a command. Data comes whole: the caller cuts it to `allocation_length`."""
    operation = command.cdb[0]
    if command.unit is None and operation not in ALWAYS_SERVED:
        return refuse(Asc.LUN_NOT_SUPPORTED)
    row = _ROWS.get((operation, _service_action(command.cdb)))
    if row is None:
        has_actions = operation in _WITH_SERVICE_ACTION
        return INVALID_FIELD if has_actions else INVALID_OPCODE
    answer = row.run(command)
    if row.allocation is None:
        return answer
    return Answer(answer.status, answer.data[: command.number(*row.allocation)], answer.sense)


def _service_action(cdb: bytes) -> int | None:
    return cdb[1] & SERVICE_ACTION_MASK if cdb[0] in _WITH_SERVICE_ACTION else None


# --- who is there ----------------------------------------------------------------------------


def _inquiry(command: Command) -> Answer:
    evpd, page = command.cdb[1] & 1, command.cdb[2]
    if command.cdb[1] & 2 or (page and not evpd):
        return INVALID_FIELD
    if not evpd:
        here = data.InquiryData(0, vendor=VENDOR, product=PRODUCT, revision=REVISION)
        return Answer(data=data.build_inquiry(here if command.unit else _NOT_THERE))
    build = _VPD.get(page)
    if command.unit is None or command.lun is None or build is None:
        return INVALID_FIELD
    return Answer(data=data.build_vpd(page, build(command, command.unit, command.lun)))


def _identification(command: Command, unit: RamDisk, lun: int) -> bytes:
    """The unit by T10 vendor and NAA identifiers, the port by name and number (SPC-4 §7.8.6)."""
    target = command.target
    port = f"{target.name},t,0x{command.portal_group_tag:04x}".encode() + b"\0"
    return data.build_designators(
        (
            data.Designator(1, f"{VENDOR:8}{target.serial(lun)}".encode(), code_set=2),
            data.Designator(3, target.naa(lun).to_bytes(8, "big")),
            data.Designator(4, bytes((0, 0, 0, 1)), association=1),
            data.Designator(8, port.ljust(-(-len(port) // 4) * 4, b"\0"), 3, association=1),
        )
    )


def _limits(command: Command, unit: RamDisk, lun: int) -> bytes:
    granularity = max(1, 4096 // unit.block_size)
    return data.build_block_limits(data.BlockLimits(optimal_granularity=granularity))


_VPD: Final[Mapping[int, Callable[[Command, RamDisk, int], bytes]]] = {
    data.VpdPage.SUPPORTED_PAGES: lambda command, unit, lun: bytes(sorted(_VPD)),
    data.VpdPage.UNIT_SERIAL_NUMBER: lambda command, unit, lun: command.target.serial(lun).encode(),
    data.VpdPage.DEVICE_IDENTIFICATION: _identification,
    data.VpdPage.BLOCK_LIMITS: _limits,
    data.VpdPage.BLOCK_DEVICE_CHARACTERISTICS: lambda command, unit, lun: (
        data.build_block_characteristics()
    ),
    LOGICAL_BLOCK_PROVISIONING: lambda command, unit, lun: bytes(4),
}


def _report_luns(command: Command) -> Answer:
    select, allocation = command.cdb[2], command.number(6, 4)
    if select not in (0, 1, 2) or allocation < 16:
        return INVALID_FIELD
    numbers = sorted(command.target.units) if select != 1 else ()
    return Answer(data=data.build_luns(numbers))


def _request_sense(command: Command) -> Answer:
    """Nothing is wrong; a pending unit attention was answered before this is asked."""
    if command.cdb[1] & 1:
        return INVALID_FIELD
    if command.unit is None:
        return Answer(data=encode_sense(SenseKey.ILLEGAL_REQUEST, Asc.LUN_NOT_SUPPORTED))
    return Answer(data=encode_sense(SenseKey.NO_SENSE))


# --- how large, and in what mode ---------------------------------------------------------------


def _unit(command: Command) -> RamDisk:
    assert command.unit is not None, "execute refuses commands for units that are not there"
    return command.unit


def _read_capacity_10(command: Command) -> Answer:
    if command.number(2, 4) or command.cdb[8] & 1:
        return INVALID_FIELD
    unit = _unit(command)
    return Answer(data=data.build_capacity_10(data.Capacity(unit.blocks, unit.block_size)))


def _read_capacity_16(command: Command) -> Answer:
    if command.number(2, 8) or command.cdb[14] & 1:
        return INVALID_FIELD
    unit = _unit(command)
    exponent = (4096 // unit.block_size).bit_length() - 1
    capacity = data.Capacity(unit.blocks, unit.block_size, exponent)
    return Answer(data=data.build_capacity_16(capacity))


def _mode_sense(command: Command) -> Answer:
    """Current, changeable (nothing is) and default values of the caching and control pages."""
    control, page, subpage = command.cdb[2] >> 6, command.cdb[2] & 0x3F, command.cdb[3]
    if control == 3:
        return refuse(SAVING_NOT_SUPPORTED)
    served = [data.ModePage.CACHING, data.ModePage.CONTROL]
    pages = served if page == data.ModePage.ALL else [known for known in served if known == page]
    if not pages or subpage not in (0, 0xFF):
        return INVALID_FIELD
    body = b"".join(map(data.mode_page, pages))
    if control == 1:
        body = b"".join(
            raw[:2] + bytes(len(raw) - 2) for raw in (data.mode_page(known) for known in pages)
        )
    ten = command.cdb[0] == MODE_SENSE_10
    return Answer(data=data.build_mode_data(body, ten=ten, read_only=_unit(command).read_only))


def _in_range(command: Command, first: int, count: int) -> Answer:
    blocks = _unit(command).blocks
    return GOOD if first <= blocks and count <= blocks - first else refuse(Asc.LBA_OUT_OF_RANGE)


def _range_10(command: Command) -> Answer:
    return _in_range(command, command.number(2, 4), command.number(7, 2))


def _range_16(command: Command) -> Answer:
    return _in_range(command, command.number(2, 8), command.number(10, 4))


def _verify(command: Command) -> Answer:
    """Memory needs no check of its own; comparing with sent data is not served yet."""
    if command.cdb[1] & (_BYTCHK | 0xE0):
        return INVALID_FIELD
    return _range_10(command) if command.cdb[0] == VERIFY_10 else _range_16(command)


def _good(command: Command) -> Answer:
    return GOOD


def _prevent_allow(command: Command) -> Answer:
    """A medium that cannot be removed: allowing is no news, preventing cannot be asked for."""
    return INVALID_FIELD if command.cdb[4] & 3 else GOOD


def _start_stop(command: Command) -> Answer:
    """Starting a unit that runs is nothing; it can neither be ejected nor stopped for good."""
    return INVALID_FIELD if command.cdb[4] & 2 else GOOD


# --- what it can do -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A command: what runs it, where its allocation length lies, and the CDB bits it looks at."""

    run: Callable[[Command], Answer]
    usage: str  # hexadecimal, one digit pair per CDB byte after the operation code
    allocation: tuple[int, int] | None = None


def _hot(command: Command) -> Answer:
    """READ and WRITE reach the cold code only while a unit is not in its normal state."""
    return Answer(ScsiStatus.BUSY)


def _report_opcodes(command: Command) -> Answer:
    """REPORT SUPPORTED OPERATION CODES (SPC-4 §6.34): all, or one of them."""
    options, timeouts = command.cdb[2] & 7, bool(command.cdb[2] & 0x80)
    operation, action = command.cdb[3], command.number(4, 2)
    if options == 0:
        entries = b"".join(_descriptor(*key, timeouts) for key in _ROWS)
        return Answer(data=len(entries).to_bytes(4, "big") + entries)
    has_actions = operation in _WITH_SERVICE_ACTION
    if options > 3 or (options == 1 and has_actions) or (options == 2 and not has_actions):
        return INVALID_FIELD
    row = _ROWS.get((operation, action if has_actions else None))
    if row is None:
        return Answer(data=bytes((0, 1, 0, 0)))
    usage = bytes((operation,)) + bytes.fromhex(row.usage)
    head = bytes((0, 0x80 * timeouts | 3)) + len(usage).to_bytes(2, "big")
    return Answer(data=head + usage + _no_timeouts(timeouts))


def _descriptor(operation: int, action: int | None, timeouts: bool) -> bytes:
    length = 1 + len(_ROWS[operation, action].usage) // 2
    flags = 2 * timeouts | (action is not None)
    head = bytes((operation, 0)) + (action or 0).to_bytes(2, "big") + bytes((0, flags))
    return head + length.to_bytes(2, "big") + _no_timeouts(timeouts)


def _no_timeouts(wanted: bool) -> bytes:
    return (10).to_bytes(2, "big") + bytes(10) if wanted else b""


_WITH_SERVICE_ACTION: Final = frozenset((SERVICE_ACTION_IN_16, MAINTENANCE_IN))
_ROWS: Final[Mapping[tuple[int, int | None], Row]] = {
    (TEST_UNIT_READY, None): Row(_good, "0000000000"),
    (REQUEST_SENSE, None): Row(_request_sense, "010000ff00", (4, 1)),
    (0x08, None): Row(_hot, "1fffffff00"),
    (0x0A, None): Row(_hot, "1fffffff00"),
    (INQUIRY, None): Row(_inquiry, "01ffffff00", (3, 2)),
    (MODE_SENSE_6, None): Row(_mode_sense, "08ffffff00", (4, 1)),
    (START_STOP_UNIT, None): Row(_start_stop, "010000f300"),
    (PREVENT_ALLOW, None): Row(_prevent_allow, "0000000300"),
    (READ_CAPACITY_10, None): Row(_read_capacity_10, "00ffffffff00000100"),
    (0x28, None): Row(_hot, "f8ffffffff00ffff00"),
    (0x2A, None): Row(_hot, "f8ffffffff00ffff00"),
    (VERIFY_10, None): Row(_verify, "f6ffffffff00ffff00"),
    (SYNCHRONIZE_CACHE_10, None): Row(_range_10, "02ffffffff00ffff00"),
    (MODE_SENSE_10, None): Row(_mode_sense, "18ffff000000ffff00", (7, 2)),
    (0x88, None): Row(_hot, "f8ffffffffffffffffffffffff0000"),
    (0x8A, None): Row(_hot, "f8ffffffffffffffffffffffff0000"),
    (VERIFY_16, None): Row(_verify, "f6ffffffffffffffffffffffff0000"),
    (SYNCHRONIZE_CACHE_16, None): Row(_range_16, "02ffffffffffffffffffffffff0000"),
    (SERVICE_ACTION_IN_16, READ_CAPACITY_16): Row(
        _read_capacity_16, "10ffffffffffffffffffffffff0100", (10, 4)
    ),
    (REPORT_LUNS, None): Row(_report_luns, "00ff000000ffffffff0000", (6, 4)),
    (MAINTENANCE_IN, REPORT_SUPPORTED_OPCODES): Row(
        _report_opcodes, "0c87ffffffffffffff0000", (6, 4)
    ),
    (0xA8, None): Row(_hot, "f8ffffffffffffffff0000"),
    (0xAA, None): Row(_hot, "f8ffffffffffffffff0000"),
}
