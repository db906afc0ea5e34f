"""EXTENDED COPY(LID1) and RECEIVE COPY RESULTS (SPC-4 §6.4, §6.18): the target copies blocks
between its units by itself. Units are found by their identification only among those of the target
that the I_T nexus is logged in to, and used with that nexus' rights: a copy reaches nothing that a
READ and a WRITE of its sender would not.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final
from weakref import WeakKeyDictionary

from iscsi.target.nexus import Nexus
from iscsi.target.scsi import copy_parameters, medium
from iscsi.target.scsi.command import (
    GOOD,
    INVALID_FIELD,
    PARAMETER_LIST_LENGTH_ERROR,
    Answer,
    Command,
    Reservation,
    Row,
    refuse,
)
from iscsi.target.scsi.copy_parameters import (
    MAX_COPIES,
    CopyList,
    CopyTarget,
    ListIdUsage,
    Segment,
)
from iscsi.target.scsi.inquiry import unit_designators
from iscsi.target.scsi.medium import Refused, Span
from iscsi.target.units import LogicalUnit
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey

# Results kept for a nexus until they are asked for, the oldest given up first.
MAX_RESULTS: Final = 32
_IN_PROGRESS: Final = 0
_COMPLETED: Final = 1
_FAILED: Final = 2
_HELD_FOR_READ: Final = 0x80  # HDD
_UNREACHABLE: Final = refuse(Asc.UNREACHABLE_COPY_TARGET, SenseKey.COPY_ABORTED)
_NOT_THERE: Final = refuse(Asc.COPY_TARGET_DEVICE_NOT_REACHABLE, SenseKey.COPY_ABORTED)
_BEYOND: Final = refuse(Asc.NO_ADDITIONAL_SENSE, SenseKey.COPY_ABORTED)
_SAME_LIST_ID: Final = refuse(Asc.OPERATION_IN_PROGRESS)


@dataclass(slots=True)
class Result:
    """How far a copy is, and how it ended."""

    status: int = _IN_PROGRESS
    segments: int = 0
    copied: int = 0  # bytes
    answer: Answer = GOOD


@dataclass
class _Results:
    """What each nexus may ask for, by list identifier. Worker threads write here: one lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    kept: WeakKeyDictionary[Nexus, dict[int, Result]] = field(default_factory=WeakKeyDictionary)
    running: int = 0

    def begin(self, nexus: Nexus, copy: CopyList) -> Result:
        """Room for one more copy. Refused: too many, or its list identifier is in use."""
        with self.lock:
            if self.running >= MAX_COPIES:
                raise Refused(Answer(ScsiStatus.BUSY))
            result = Result()
            if copy.usage is not ListIdUsage.DISABLED:
                own = self.kept.setdefault(nexus, {})
                earlier = own.pop(copy.list_id, None)
                if earlier is not None and earlier.status == _IN_PROGRESS:
                    own[copy.list_id] = earlier
                    raise Refused(_SAME_LIST_ID)
                ended = [key for key, held in own.items() if held.status != _IN_PROGRESS]
                if len(own) >= MAX_RESULTS and ended:
                    del own[ended[0]]
                own[copy.list_id] = result
            self.running += 1
            return result

    def end(self, result: Result, answer: Answer) -> None:
        """Note how a copy ended."""
        with self.lock:
            result.status = _COMPLETED if answer.status == ScsiStatus.GOOD else _FAILED
            result.answer = answer
            self.running -= 1

    def find(self, nexus: Nexus, list_id: int) -> Result | None:
        """A snapshot of a copy, if its list identifier is known."""
        with self.lock:
            found = self.kept.get(nexus, {}).get(list_id)
            return None if found is None else replace(found)

    def drop(self, nexus: Nexus, list_id: int) -> None:
        """Forget a copy that has ended."""
        with self.lock:
            self.kept.get(nexus, {}).pop(list_id, None)


_results: Final = _Results()


@dataclass(frozen=True, slots=True)
class _Move:
    """A checked segment: bytes from one unit to another."""

    source: LogicalUnit
    destination: LogicalUnit
    source_at: int
    destination_at: int
    length: int


# --- finding the units and checking the segments -------------------------------------------------


def _unit_of(command: Command, wanted: CopyTarget) -> LogicalUnit:
    """The unit a target descriptor names, of those this nexus can address."""
    for unit in tuple(command.target.units.values()):
        if wanted.designator in unit_designators(unit):
            medium.require(wanted.block_size == unit.block_size, _NOT_THERE)
            return unit
    raise Refused(_NOT_THERE)


def _require_usable(command: Command, unit: LogicalUnit, kind: Reservation) -> None:
    """Refused unless a READ or a WRITE of this nexus would be let through to the unit."""
    medium.require(unit.is_normal, _NOT_THERE)
    medium.require(not unit.reservations.conflicts(command, kind), _NOT_THERE)
    if kind is Reservation.WRITE_LIKE:
        denied = unit.write_protected or command.nexus.read_only
        protected = refuse(Asc.WRITE_PROTECTED, SenseKey.DATA_PROTECT)
        medium.require(not denied, protected)


def _move(command: Command, targets: tuple[CopyTarget, ...], segment: Segment) -> _Move:
    """A segment with its units, and its range checked on both."""
    known = max(segment.source, segment.destination) < len(targets)
    medium.require(known, _UNREACHABLE)
    source = _unit_of(command, targets[segment.source])
    destination = _unit_of(command, targets[segment.destination])
    _require_usable(command, source, Reservation.READ_LIKE)
    _require_usable(command, destination, Reservation.WRITE_LIKE)
    counted = destination if segment.counts_destination else source
    move = _Move(
        source,
        destination,
        segment.source_lba * source.block_size,
        segment.destination_lba * destination.block_size,
        segment.count * counted.block_size,
    )
    whole = not move.length % source.block_size and not move.length % destination.block_size
    medium.require(whole, _BEYOND)
    medium.require(move.source_at + move.length <= source.backend.size, _BEYOND)
    medium.require(move.destination_at + move.length <= destination.backend.size, _BEYOND)
    return move


# --- copying -------------------------------------------------------------------------------------


def _pieces(move: _Move) -> Iterator[tuple[int, int]]:
    """Offsets and lengths, from behind where the source would be overwritten before it is read."""
    starts = range(0, move.length, medium.PIECE)
    overlaps = move.source is move.destination and move.source_at < move.destination_at
    for start in reversed(starts) if overlaps else starts:
        yield start, min(medium.PIECE, move.length - start)


def _copy(command: Command, move: _Move, result: Result) -> None:
    """Copy a segment, in pieces; Refused with COPY ABORTED where a backend fails."""
    source, destination = move.source, move.destination
    for start, length in _pieces(move):
        first = Span((move.source_at + start) // source.block_size, length // source.block_size)
        # A copy of the bytes: two locks at once could wait for each other.
        with medium.turn(command, source):
            data = bytes(medium.read(source, first))
        with medium.turn(command, destination):
            at = (move.destination_at + start) // destination.block_size
            medium.write(destination, at, data)
        result.copied += length


def _do(command: Command, copy: CopyList, result: Result) -> Answer:
    try:
        moves = [_move(command, copy.targets, segment) for segment in copy.segments]
        for move in moves:
            _copy(command, move, result)
            result.segments += 1
    except Refused as refused:
        return refused.answer
    return medium.done(command.number(10, 4))


@medium.on_medium
def _extended_copy(command: Command) -> Answer:
    """Do all segments, in order; nothing is copied unless all of them are possible."""
    length = command.number(10, 4)
    if length == 0:
        return GOOD
    medium.require(len(command.data) >= length, PARAMETER_LIST_LENGTH_ERROR)
    copy = copy_parameters.parse(bytes(command.data[:length]))
    result = _results.begin(command.nexus, copy)
    answer = refuse(Asc.INTERNAL_TARGET_FAILURE, SenseKey.HARDWARE_ERROR)
    try:
        answer = _do(command, copy, result)
    finally:
        _results.end(result, answer)
    discards = copy.usage is ListIdUsage.DISCARD and answer.status == ScsiStatus.GOOD
    if discards:
        _results.drop(command.nexus, copy.list_id)
    return answer


# --- RECEIVE COPY RESULTS ------------------------------------------------------------------------


def _copy_status(command: Command) -> Answer:
    """COPY STATUS (SPC-4 §6.18.2): how far the copy with this list identifier is."""
    found = _results.find(command.nexus, command.cdb[2])
    if found is None:
        return INVALID_FIELD
    if found.status == _COMPLETED:
        _results.drop(command.nexus, command.cdb[2])
    body = bytes((found.status,)) + found.segments.to_bytes(2, "big")
    # Transfer count units 01h: KiB.
    body += bytes((1,)) + min(found.copied >> 10, 0xFFFFFFFF).to_bytes(4, "big")
    return Answer(data=len(body).to_bytes(4, "big") + body)


def _operating_parameters(command: Command) -> Answer:
    return Answer(data=copy_parameters.operating_parameters())


def _failed_segment_details(command: Command) -> Answer:
    """FAILED SEGMENT DETAILS (SPC-4 §6.18.5): the sense of a copy that failed, once."""
    found = _results.find(command.nexus, command.cdb[2])
    if found is None or found.status == _IN_PROGRESS:
        return INVALID_FIELD
    if found.status != _FAILED:
        return Answer(data=bytes(4))
    _results.drop(command.nexus, command.cdb[2])
    sense = found.answer.encoded_sense()
    body = bytes(52) + bytes((found.answer.status, 0)) + len(sense).to_bytes(2, "big") + sense
    return Answer(data=len(body).to_bytes(4, "big") + body)


def _receive(run: Callable[[Command], Answer], action: int) -> Row:
    return Row(run, f"{action:02x}ff00000000000000ffffffff0000", (10, 4), needs_medium=False)


ROWS: Final = {
    (copy_parameters.EXTENDED_COPY, 0x00): Row(
        _extended_copy, "1f0000000000000000ffffffff0000", slow=True
    ),
    (copy_parameters.RECEIVE_COPY_RESULTS, copy_parameters.COPY_STATUS): _receive(
        _copy_status, copy_parameters.COPY_STATUS
    ),
    (copy_parameters.RECEIVE_COPY_RESULTS, copy_parameters.OPERATING_PARAMETERS): _receive(
        _operating_parameters, copy_parameters.OPERATING_PARAMETERS
    ),
    (copy_parameters.RECEIVE_COPY_RESULTS, copy_parameters.FAILED_SEGMENT_DETAILS): _receive(
        _failed_segment_details, copy_parameters.FAILED_SEGMENT_DETAILS
    ),
}
