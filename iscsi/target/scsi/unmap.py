"""UNMAP (SBC-3 §5.23) and GET LBA STATUS (SBC-3 §5.5): only thin units unmap, and what they say is
unmapped is what their backend really gave back. All descriptors are checked before the first is
done.
"""

import struct
from collections.abc import Iterator
from typing import Final

from iscsi.target.scsi import medium
from iscsi.target.scsi.command import (
    GOOD,
    INVALID_PARAMETER,
    LBA_OUT_OF_RANGE,
    PARAMETER_LIST_LENGTH_ERROR,
    Access,
    Answer,
    Command,
    Reservation,
    Row,
)
from iscsi.target.scsi.medium import Span
from iscsi.target.units import LogicalUnit

_ANCHOR: Final = 0x01
_HEADER: Final = 8
_DESCRIPTOR: Final = 16
# Descriptors of one GET LBA STATUS answer at most, whatever its allocation length.
_MAX_STATUSES: Final = 4096
_LONGEST: Final = 0xFFFFFFFF
_MAPPED: Final = 0
_DEALLOCATED: Final = 1


def _is_thin(unit: LogicalUnit) -> bool:
    return unit.is_thin


def _spans(data: bytes) -> list[Span]:
    """The descriptors of an UNMAP parameter list; a last one that is cut off is left out."""
    length = int.from_bytes(data[2:4], "big")
    medium.require(length <= len(data) - _HEADER, PARAMETER_LIST_LENGTH_ERROR)
    places = range(_HEADER, _HEADER + length - _DESCRIPTOR + 1, _DESCRIPTOR)
    return [Span(*struct.unpack_from(">QI", data, at)) for at in places]


@medium.on_medium
def _unmap(command: Command) -> Answer:
    unit, length = command.present, command.number(7, 2)
    medium.require(not command.cdb[1] & _ANCHOR)
    if length == 0:
        return GOOD
    medium.require(_HEADER <= length <= len(command.data), PARAMETER_LIST_LENGTH_ERROR)
    spans = _spans(bytes(command.data[:length]))
    medium.require(len(spans) <= unit.limits.unmap_descriptors, INVALID_PARAMETER)
    medium.require(sum(span.count for span in spans) <= unit.limits.unmap, INVALID_PARAMETER)
    for span in spans:
        medium.require_range(unit, span)
    for span in spans:
        for piece in medium.steps(command, span):
            with medium.turn(command, unit):
                medium.discard(unit, piece)
    return medium.done(length)


# --- GET LBA STATUS ------------------------------------------------------------------------------


def _whole_blocks(unit: LogicalUnit, first: int) -> Iterator[tuple[int, bool]]:
    """Numbers of blocks with whether they are mapped: a block is if any byte of it is."""
    size = unit.block_size
    at, done = first * size, first
    for length, mapped in unit.backend.extents(at, unit.backend.size - at):
        at += length
        # A mapped piece takes the block it ends in, an unmapped one leaves it to its successor.
        end = -(-at // size) if mapped else at // size
        if end > done:
            yield end - done, mapped
            done = end
    if done < unit.blocks:
        yield unit.blocks - done, False


def _statuses(unit: LogicalUnit, first: int, most: int) -> list[tuple[Span, int]]:
    """At most `most` runs of blocks that have the same provisioning status, from `first` on."""
    found: list[tuple[Span, int]] = []
    for count, mapped in _whole_blocks(unit, first):
        end = first + count
        while first < end:
            if len(found) == most:
                return found
            run = Span(first, min(end - first, _LONGEST))
            found.append((run, _MAPPED if mapped else _DEALLOCATED))
            first = run.end
    return found


@medium.on_medium
def _get_lba_status(command: Command) -> Answer:
    unit, first = command.present, command.number(2, 8)
    medium.require(first < unit.blocks, LBA_OUT_OF_RANGE)
    most = min(_MAX_STATUSES, max(1, (command.number(10, 4) - 8) // _DESCRIPTOR))
    try:
        found = _statuses(unit, first, most)
    except OSError as error:
        return medium.medium_error(error, first, writing=False)
    descriptors = b"".join(
        span.first.to_bytes(8, "big") + span.count.to_bytes(4, "big") + bytes((status, 0, 0, 0))
        for span, status in found
    )
    # PARAMETER DATA LENGTH counts what follows it.
    return Answer(data=(len(descriptors) + 4).to_bytes(4, "big") + bytes(4) + descriptors)


ROWS: Final = {
    (0x42, None): Row(
        _unmap,
        "01000000001fffff00",
        access=Access.WRITE,
        reservation=Reservation.WRITE_LIKE,
        slow=True,
        moves=lambda command: 0,
        offered=_is_thin,
    ),
    (0x9E, 0x12): Row(
        _get_lba_status,
        "12ffffffffffffffffffffffff0000",
        (10, 4),
        access=Access.READ,
        reservation=Reservation.READ_LIKE,
    ),
}
