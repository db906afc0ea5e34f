"""SANITIZE (SBC-3 §5.20, §4.11): overwrite, block erase, crypto erase, and leaving a failure. The
operation runs in a thread of its own and ends for no reset, abort or lost session; `stop` ends it,
which only the closing of the server may do, and leaves the unit failed.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

import numpy as np

from iscsi.target.scsi import medium
from iscsi.target.scsi.command import (
    BUSY,
    GOOD,
    INVALID_FIELD,
    INVALID_PARAMETER,
    Access,
    Answer,
    Command,
    Reservation,
    Row,
)
from iscsi.target.scsi.medium import Refused, Span
from iscsi.target.units import LogicalUnit
from iscsi.wire.sense import Asc, ScsiStatus, Sense, SenseKey, progress

log: Final = logging.getLogger(__name__)

_IMMED: Final = 0x80
_RESERVED: Final = 0x40
_AUSE: Final = 0x20  # ALLOW UNRESTRICTED SANITIZE EXIT
_INVERT: Final = 0x80
_TEST: Final = 0x60
_COUNT: Final = 0x1F
_HEADER: Final = 4
_TICK_SECONDS: Final = 0.05

OVERWRITE: Final = 0x01
BLOCK_ERASE: Final = 0x02
CRYPTO_ERASE: Final = 0x03
EXIT_FAILURE_MODE: Final = 0x1F

# Commands without IMMED at a time: each keeps a worker that others may need.
MAX_WAITING: Final = 2

# A step of the operation: how much of it is done then, 0 to 1.
Steps = Callable[[LogicalUnit], Iterator[float]]


class Sanitizing:
    """One sanitize operation of a unit, and its `condition` until it succeeded or was left.

    `unrestricted`: a failure may be left without another sanitize operation (AUSE).
    """

    def __init__(self, unit: LogicalUnit, steps: Steps, *, unrestricted: bool) -> None:
        self.unit, self.steps, self.unrestricted = unit, steps, unrestricted
        self.done = 0.0
        self.has_failed = False
        self.is_waited_for = False
        self._end = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sanitize", daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether it goes on."""
        return not self._end.is_set()

    def begin(self) -> None:
        """Close the unit for everybody, and start. In the server's thread."""
        self.unit.condition = self
        self.unit.refresh_gate()
        # A WRITE that began before, and whose data comes now, must not write behind us.
        self.unit.refuse_writes(SenseKey.NOT_READY, Asc.SANITIZE_IN_PROGRESS)
        self.unit.settle()
        self._thread.start()

    def wait(self, command: Command) -> None:
        """Sleep until it has ended, or nobody is there any more to be told. In a worker."""
        while not self._end.wait(_TICK_SECONDS):
            medium.require_wanted(command)

    def stop(self) -> None:
        """End it before its end, because the backend is about to be closed."""
        self._stop.set()
        self._thread.join()

    def __call__(self) -> Sense | None:
        """What keeps commands from the unit; opens it once all is well. In the server's thread."""
        if self.is_running:
            asc, ascq = divmod(Asc.SANITIZE_IN_PROGRESS, 0x100)
            return Sense(SenseKey.NOT_READY, asc, ascq, specific=progress(self.done))
        if self.has_failed:
            asc, ascq = divmod(Asc.SANITIZE_FAILED, 0x100)
            return Sense(SenseKey.MEDIUM_ERROR, asc, ascq)
        self.leave()
        return None

    def leave(self) -> None:
        """Open the unit again."""
        if self.unit.condition is self:
            self.unit.condition = None
            self.unit.refresh_gate()

    def _run(self) -> None:
        # What is not known to have come to its end has failed, whatever ended it.
        self.has_failed = True
        try:
            self.has_failed = not self._work()
        except Refused as refused:
            log.error("a sanitize operation failed: %s", refused.answer.sense)
        except Exception:
            log.exception("a sanitize operation ended by an error of this program")
        finally:
            self._end.set()

    def _work(self) -> bool:
        """Whether it came to its end: all the steps, and the least time it is to take."""
        began = time.monotonic()
        while self._is_used():
            if self._stop.wait(_TICK_SECONDS):
                return False
        for done in self.steps(self.unit):
            self.done = done * self._share(began)
            if self._stop.is_set():
                return False
        medium.flush(self.unit)
        while self._share(began) < 1:
            self.done = self._share(began)
            if self._stop.wait(_TICK_SECONDS):
                return False
        return True

    def _is_used(self) -> bool:
        """Whether a worker or an engine still moves data of commands that began before."""
        files, settled = self.unit.backend.medium, self.unit.settled
        return (files is not None and files.jobs > 0) or (settled is not None and not settled())

    def _share(self, began: float) -> float:
        """The part of the least time that is over, 0 to 1."""
        least = self.unit.sanitize_min_seconds
        return 1.0 if least <= 0 else min(1.0, (time.monotonic() - began) / least)


_begun: Final[WeakSet[Sanitizing]] = WeakSet()


def _waiting() -> int:
    """Operations whose command keeps a worker."""
    return sum(state.is_running and state.is_waited_for for state in _begun)


def stop(unit: LogicalUnit) -> None:
    """End a sanitize operation that goes on, before the unit's backend is closed."""
    state = unit.condition
    if isinstance(state, Sanitizing) and state.is_running:
        log.warning("a sanitize operation is given up at %.0f %%", 100 * state.done)
        state.stop()


# --- what is done to the blocks ------------------------------------------------------------------


def _whole(unit: LogicalUnit) -> Iterator[tuple[Span, float]]:
    """The medium in pieces, each with the part that is done after it."""
    for piece in Span(0, unit.blocks).pieces(unit.block_size):
        # What was being written when the operation began is over.
        with unit.medium_lock:
            yield piece, piece.end / unit.blocks


def _erase(unit: LogicalUnit) -> Iterator[float]:
    """Zeros everywhere, unmapped where the unit is thin."""
    for piece, done in _whole(unit):
        if unit.is_thin:
            medium.discard(unit, piece)
        else:
            medium.zero(unit, piece)
        yield done


def _overwrite(block: bytes, count: int, *, invert: bool) -> Steps:
    """`count` passes of `block` over the medium, each the inverse of the last with `invert`."""

    def steps(unit: LogicalUnit) -> Iterator[float]:
        pattern = np.frombuffer(block, np.uint8)
        for number in range(count):
            for piece, done in _whole(unit):
                medium.write(unit, piece.first, np.tile(pattern, piece.count))
                yield (number + done) / count
            if invert:
                pattern = np.invert(pattern)

    return steps


@dataclass(frozen=True, slots=True)
class _Pattern:
    """The parameter list of OVERWRITE (SBC-3 table 107)."""

    block: bytes
    count: int
    invert: bool


def _pattern(command: Command) -> _Pattern:
    """The parameter list; Refused if it is not one."""
    size, length = command.present.block_size, command.number(7, 2)
    medium.require(_HEADER < length <= size + _HEADER)
    medium.require(len(command.data) >= length)
    data = bytes(command.data[:length])
    pattern, stated = data[_HEADER:], int.from_bytes(data[2:4], "big")
    medium.require(not data[0] & _TEST and data[0] & _COUNT != 0, INVALID_PARAMETER)
    medium.require(0 < stated <= len(pattern), INVALID_PARAMETER)
    pattern = pattern[:stated]
    block = (pattern * -(-size // len(pattern)))[:size]
    return _Pattern(block, data[0] & _COUNT, bool(data[0] & _INVERT))


# --- commands ------------------------------------------------------------------------------------


def _admit(command: Command) -> None:
    """Refused unless a SANITIZE may begin now; a failed one may be repeated."""
    medium.require(not command.cdb[1] & _RESERVED and not any(command.cdb[2:7]))
    state = command.present.condition
    if state is None:
        return
    sense = state()
    running = isinstance(state, Sanitizing) and state.is_running
    if sense is not None and (running or not isinstance(state, Sanitizing)):
        raise Refused(Answer(ScsiStatus.CHECK_CONDITION, sense=sense))


def _begin(steps_of: Callable[[Command], Steps]) -> Callable[[Command], Answer | None]:
    """Check and start; the answer with IMMED, else None, for `_wait` to give it at the end."""

    def begin(command: Command) -> Answer | None:
        try:
            _admit(command)
            steps = steps_of(command)
        except Refused as refused:
            return refused.answer
        immediately = bool(command.cdb[1] & _IMMED)
        if not immediately and _waiting() >= MAX_WAITING:
            return BUSY
        unrestricted = bool(command.cdb[1] & _AUSE)
        state = Sanitizing(command.present, steps, unrestricted=unrestricted)
        state.is_waited_for = not immediately
        _begun.add(state)
        state.begin()
        return medium.done(command.number(7, 2)) if immediately else None

    return begin


@medium.on_medium
def _wait(command: Command) -> Answer:
    """Answer when the operation has ended (SBC-3 §5.20.1, IMMED 0)."""
    state = command.present.condition
    if isinstance(state, Sanitizing):
        try:
            state.wait(command)
        finally:
            state.is_waited_for = False
        if state.has_failed:
            return Answer(ScsiStatus.CHECK_CONDITION, sense=state())
    return medium.done(command.number(7, 2))


def _overwrite_steps(command: Command) -> Steps:
    pattern = _pattern(command)
    return _overwrite(pattern.block, pattern.count, invert=pattern.invert)


def _erase_steps(command: Command) -> Steps:
    """Block and crypto erase. No key is kept that could be thrown away: the data itself goes."""
    medium.require(command.number(7, 2) == 0)
    return _erase


@medium.on_medium
def _exit_failure_mode(command: Command) -> Answer:
    """Leave a failed operation, if it was begun with AUSE (SBC-3 §5.20.5)."""
    medium.require(command.number(7, 2) == 0)
    _admit(command)
    state = command.present.condition
    if isinstance(state, Sanitizing):
        medium.require(state.unrestricted, INVALID_FIELD)
        state.leave()
    return GOOD


def _is_thin(unit: LogicalUnit) -> bool:
    return unit.is_thin


def _row(
    action: int, steps_of: Callable[[Command], Steps], *, offered: Callable[[LogicalUnit], bool]
) -> Row:
    return Row(
        _wait,
        f"{0xA0 | action:02x}0000000000ffff00",
        access=Access.WRITE,
        reservation=Reservation.WRITE_LIKE,
        slow=True,
        during_sanitize=True,
        prepare=_begin(steps_of),
        offered=offered,
    )


ROWS: Final = {
    (0x48, OVERWRITE): _row(OVERWRITE, _overwrite_steps, offered=lambda unit: True),
    # Blocks are erased by unmapping them, which only thin units do.
    (0x48, BLOCK_ERASE): _row(BLOCK_ERASE, _erase_steps, offered=_is_thin),
    (0x48, CRYPTO_ERASE): _row(CRYPTO_ERASE, _erase_steps, offered=_is_thin),
    (0x48, EXIT_FAILURE_MODE): Row(
        _exit_failure_mode,
        "bf0000000000ffff00",
        access=Access.WRITE,
        reservation=Reservation.WRITE_LIKE,
        during_sanitize=True,
    ),
}
