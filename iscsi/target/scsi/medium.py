"""What the commands on the medium share: the blocks a CDB names, and reading and writing them in
pieces of bounded size. Whatever keeps a command from going on is raised as `Refused` with the sense
to answer; `on_medium` turns it into the answer.
"""

import contextlib
import errno
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from iscsi.target.scsi.command import INVALID_FIELD, LBA_OUT_OF_RANGE, Answer, Command, refuse
from iscsi.target.units import LogicalUnit
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey

# Bytes of one step of a long command: what another thread may have to wait for.
PIECE: Final = 1 << 20
PROTECT: Final = 0xE0  # RDPROTECT, WRPROTECT, VRPROTECT, ORPROTECT: no unit has protection data
FUA: Final = 0x08
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE: Final = (errno.EROFS, errno.EPERM)


class Refused(Exception):
    """A command cannot go on; `answer` is what it ends with."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


def on_medium(run: Callable[[Command], Answer]) -> Callable[[Command], Answer]:
    """A row's function that may raise `Refused`, made into one that answers it."""

    @functools.wraps(run)
    def guarded(command: Command) -> Answer:
        try:
            return run(command)
        except Refused as refused:
            return refused.answer

    return guarded


@dataclass(frozen=True, slots=True)
class Span:
    """`count` blocks from block `first`."""

    first: int
    count: int

    @property
    def end(self) -> int:
        """The first block behind it."""
        return self.first + self.count

    def pieces(self, block_size: int) -> Iterator["Span"]:
        """The same blocks in spans that end at multiples of PIECE bytes: unmapping in pieces gives
        back as much as unmapping at once.
        """
        step, first = PIECE // block_size, self.first
        while first < self.end:
            end = min((first // step + 1) * step, self.end)
            yield Span(first, end - first)
            first = end


def steps(command: Command, span: Span) -> Iterator[Span]:
    """A span of the unit in pieces. Refused with TASK ABORTED once nobody waits for the command."""
    for piece in span.pieces(command.present.block_size):
        require_wanted(command)
        yield piece


def require_wanted(command: Command) -> None:
    """Refused once the command was aborted: what it has not done yet is not done any more."""
    if command.abandoned():
        raise Refused(Answer(ScsiStatus.TASK_ABORTED))


@contextlib.contextmanager
def turn(command: Command, unit: LogicalUnit) -> Iterator[None]:
    """Change a unit in a worker, one after another. Refused once it is sanitized: a command that
    came before writes nothing behind that.
    """
    with unit.medium_lock:
        require_wanted(command)
        if unit.condition is not None:
            raise Refused(refuse(Asc.SANITIZE_IN_PROGRESS, SenseKey.NOT_READY))
        yield


@dataclass(frozen=True, slots=True)
class Form:
    """Where CDBs of one length keep the logical block address and the number of blocks."""

    lba: tuple[int, int]
    count: tuple[int, int]


CDB_10: Final = Form((2, 4), (7, 2))
CDB_12: Final = Form((2, 4), (6, 4))
CDB_16: Final = Form((2, 8), (10, 4))


def span_of(command: Command, form: Form, *, zero_is_rest: bool = False) -> Span:
    """The blocks a command names. Refused: LOGICAL BLOCK ADDRESS OUT OF RANGE.

    `zero_is_rest`: no blocks means all from the first to the end of the medium.
    """
    span = Span(command.number(*form.lba), command.number(*form.count))
    require_range(command.present, span)
    if zero_is_rest and span.count == 0:
        return Span(span.first, command.present.blocks - span.first)
    return span


def require_range(unit: LogicalUnit, span: Span) -> None:
    """Refused if blocks lie beyond the end; none at all may lie right behind it."""
    if span.end > unit.blocks:
        raise Refused(LBA_OUT_OF_RANGE)


def require(is_true: bool, answer: Answer = INVALID_FIELD) -> None:
    """Refused with `answer` unless something holds."""
    if not is_true:
        raise Refused(answer)


def require_data(command: Command, length: int) -> None:
    """Refused unless exactly `length` bytes are written with the command.

    A residual would say that the rest was left out; these commands do all or nothing.
    """
    require(command.expected_length == length and len(command.data) == length)


def done(moved: int) -> Answer:
    """GOOD for a command that wanted `moved` bytes written with it: what more or less was expected
    is the residual.
    """
    return Answer(moved=moved)


def medium_error(error: OSError, lba: int | None, *, writing: bool) -> Answer:
    """The sense of a backend's error (SBC-3 §4.7.3.6, §4.18.1)."""
    if error.errno in _NO_ROOM:
        return refuse(Asc.SPACE_ALLOCATION_FAILED, SenseKey.DATA_PROTECT, information=lba)
    if error.errno in _NOT_WRITABLE:
        return refuse(Asc.WRITE_PROTECTED, SenseKey.DATA_PROTECT)
    code = Asc.WRITE_ERROR if writing else Asc.UNRECOVERED_READ_ERROR
    return refuse(code, SenseKey.MEDIUM_ERROR, information=lba)


# --- the blocks ----------------------------------------------------------------------------------


def read(unit: LogicalUnit, span: Span) -> memoryview | bytes:
    """The blocks' bytes, perhaps the medium itself: use them before the next write."""
    size = unit.block_size
    try:
        return unit.backend.read(span.first * size, span.count * size)
    except OSError as error:
        raise Refused(medium_error(error, span.first, writing=False)) from error


def write(unit: LogicalUnit, first: int, data: Any, *, durable: bool = False) -> None:
    """Write whole blocks from block `first`."""
    try:
        unit.backend.write(first * unit.block_size, data, durable=durable)
    except OSError as error:
        raise Refused(medium_error(error, first, writing=True)) from error


def zero(unit: LogicalUnit, span: Span) -> None:
    """Fill blocks with zeros that stay mapped."""
    size = unit.block_size
    try:
        unit.backend.zero(span.first * size, span.count * size)
    except OSError as error:
        raise Refused(medium_error(error, span.first, writing=True)) from error


def discard(unit: LogicalUnit, span: Span) -> None:
    """Unmap blocks; they read as zeros."""
    size = unit.block_size
    try:
        unit.backend.discard(span.first * size, span.count * size)
    except OSError as error:
        raise Refused(medium_error(error, span.first, writing=True)) from error


def flush(unit: LogicalUnit) -> None:
    """Have everything written reach the medium."""
    try:
        unit.backend.flush()
    except OSError as error:
        raise Refused(medium_error(error, None, writing=True)) from error


def first_difference(one: Any, other: Any) -> int | None:
    """Offset of the first byte in which two buffers of the same length differ, or None."""
    left, right = np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)
    if np.array_equal(left, right):
        return None
    return int(np.argmax(left != right))


def miscompare(offset: int) -> Answer:
    """MISCOMPARE at a byte of the written data (SBC-3 §5.2, §5.25)."""
    return refuse(Asc.MISCOMPARE_DURING_VERIFY, SenseKey.MISCOMPARE, information=offset)
