"""What a cold SCSI command is, what an answer is, and what a row of the command table says. A row's
function does the command and nothing else: every check that commands share is made in `dispatch`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from iscsi.target.nexus import Nexus
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire.sense import Asc, ScsiStatus, Sense, SenseKey, encode_sense


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Command:
    """One command on its way. `data` is what was written with it: at most `expected_length` bytes.

    `unit` is the unit the LUN names, or None if there is no such unit. `flags` is byte 1 of the
    SCSI Command PDU: R, W and the task attribute (RFC 7143 §11.3.1).
    """

    cdb: bytes
    target: Target
    lun: int | None
    nexus: Nexus = field(default_factory=Nexus)
    data: bytes | memoryview = b""
    expected_length: int = 0
    flags: int = 0
    immediate: bool = False
    # Asked by a slow command between its steps, in any thread: nobody waits for it any more.
    abandoned: Callable[[], bool] = _never
    unit: LogicalUnit | None = field(init=False)

    def __post_init__(self) -> None:
        # Once: a unit may be taken from the target while a worker is busy with it.
        unit = None if self.lun is None else self.target.units.get(self.lun)
        object.__setattr__(self, "unit", unit)

    def number(self, offset: int, length: int) -> int:
        """A big-endian field of the CDB."""
        return int.from_bytes(self.cdb[offset : offset + length], "big")

    @property
    def present(self) -> LogicalUnit:
        """The unit, for a command that is not served where there is none."""
        assert self.unit is not None, "dispatch refuses commands for units that are not there"
        return self.unit


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer: data with GOOD, or sense with CHECK CONDITION, or another status alone.

    `moved`: the bytes the command itself wanted to move, where that is another number than the
    length of `data` (a write) or than what was sent with it; the residual is made of it.
    `is_over`: the answer is given once this says that the work the command ended is over.
    """

    status: int = ScsiStatus.GOOD
    data: bytes | memoryview = b""
    sense: Sense | None = None
    moved: int | None = None
    is_over: Callable[[], bool] | None = None

    def encoded_sense(self, *, descriptor: bool = False) -> bytes:
        """The sense as it is sent; empty if there is none."""
        if self.sense is None:
            return b""
        return encode_sense(
            self.sense.key,
            self.sense.code,
            information=self.sense.information,
            specific=self.sense.specific,
            descriptor=descriptor,
        )


GOOD: Final = Answer()
BUSY: Final = Answer(ScsiStatus.BUSY)
TASK_SET_FULL: Final = Answer(ScsiStatus.TASK_SET_FULL)
CONDITION_MET: Final = Answer(ScsiStatus.CONDITION_MET)
RESERVATION_CONFLICT: Final = Answer(ScsiStatus.RESERVATION_CONFLICT)


def refuse(
    code: int,
    key: SenseKey = SenseKey.ILLEGAL_REQUEST,
    *,
    information: int | None = None,
    specific: bytes | None = None,
) -> Answer:
    """CHECK CONDITION with this sense; `code` is ASC << 8 | ASCQ."""
    sense = Sense(key, code >> 8, code & 0xFF, information, specific=specific)
    return Answer(ScsiStatus.CHECK_CONDITION, sense=sense)


INVALID_FIELD: Final = refuse(Asc.INVALID_FIELD_IN_CDB)
INVALID_PARAMETER: Final = refuse(Asc.INVALID_FIELD_IN_PARAMETER_LIST)
INVALID_OPCODE: Final = refuse(Asc.INVALID_OPERATION_CODE)
PARAMETER_LIST_LENGTH_ERROR: Final = refuse(Asc.PARAMETER_LIST_LENGTH_ERROR)
LBA_OUT_OF_RANGE: Final = refuse(Asc.LBA_OUT_OF_RANGE)


class Access(Enum):
    """What a command does to the medium; WRITE is refused on a write-protected unit."""

    NONE = auto()
    READ = auto()
    WRITE = auto()


class Reservation(Enum):
    """How a command of another nexus behaves on a reserved unit (SPC-4 table 66, SBC-3 table 13).

    ALWAYS_ALLOWED: whatever is reserved. PERSISTENT_ALLOWED: allowed by every persistent
    reservation, but not by RESERVE(6). READ_LIKE: conflicts with exclusive access only.
    WRITE_LIKE and CONFLICTS: conflict with both kinds; CONFLICTS moves no medium data.
    """

    ALWAYS_ALLOWED = auto()
    PERSISTENT_ALLOWED = auto()
    READ_LIKE = auto()
    WRITE_LIKE = auto()
    CONFLICTS = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """A command of the table.

    `usage`: hexadecimal, one digit pair per CDB byte after the operation code: the bits it looks
    at. `allocation`: offset and length of its allocation length. `reservation`: a class, or what
    decides it from the CDB. `slow`: may run in a worker thread,
    always or where the function says so.
    """

    run: Callable[[Command], Answer]
    usage: str
    allocation: tuple[int, int] | None = None
    access: Access = Access.NONE
    needs_medium: bool = True
    reservation: Reservation | Callable[[Command], Reservation] = Reservation.CONFLICTS
    slow: bool | Callable[[Command], bool] = False
    # Served while the medium is sanitized, and after that failed (SBC-3 §4.11.4).
    during_sanitize: bool = False
    # What it changes is not the medium, but others notice: refused to who may only read.
    is_for_writers: bool | Callable[[Command], bool] = False
    # Run in the server's thread when the checks are done; an answer of it is the command's.
    prepare: Callable[[Command], Answer | None] | None = None
    # First block and count of what the command must find whole: no WRITE of which a part has come
    # may be under way there, so that nobody's block ends up made of two.
    whole: Callable[[Command], tuple[int, int]] | None = None
    # The bytes it moves, of what counts as a read or a write command (SPC-4 table 375); None says
    # that this one is not counted, because it cannot be done.
    moves: Callable[[Command], int | None] | None = None
    # Whether a unit has this command at all; None: every unit has.
    offered: Callable[[LogicalUnit], bool] | None = None

    def is_slow(self, command: Command) -> bool:
        """Whether a worker thread is to run this very command."""
        return self.slow if isinstance(self.slow, bool) else self.slow(command)

    def needs_writer(self, command: Command) -> bool:
        """Whether an initiator that may only read is not to do this."""
        found = self.is_for_writers
        return found if isinstance(found, bool) else found(command)

    def is_offered(self, unit: LogicalUnit | None) -> bool:
        """Whether this unit has the command."""
        return self.offered is None or (unit is not None and self.offered(unit))

    def reservation_of(self, command: Command) -> Reservation:
        """How this very command behaves on a reserved unit."""
        if isinstance(self.reservation, Reservation):
            return self.reservation
        return self.reservation(command)


Rows = Mapping[tuple[int, int | None], Row]
