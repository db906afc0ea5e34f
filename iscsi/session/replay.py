"""Which commands may be sent twice, and which of them may not pass each other.

At error recovery level 0 a lost answer cannot be told from a lost command. Sending again is right
for what changes nothing and for what leaves the same behind however often it is done, as long as no
other change of the same blocks comes between: so changes that overlap wait for each other
(`Ordering`). All other commands end with `UnknownOutcome`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

# Operation codes (SPC-4, SBC-3) of commands that change nothing.
_READS: Final = frozenset(
    {
        *(0x00, 0x03, 0x08, 0x12, 0x1A, 0x25, 0x28, 0x2F, 0x34, 0x37, 0x3C, 0x4D, 0x5A, 0x5E),
        *(0x84, 0x88, 0x8F, 0x90, 0xA0, 0xA8, 0xAF, 0xB7),
    }
)
# WRITE 6/10/12/16, WRITE AND VERIFY, WRITE SAME, UNMAP, SYNCHRONIZE CACHE and WRITE ATOMIC: done
# twice they leave what they leave when done once.
_WRITES: Final = frozenset(
    {*(0x0A, 0x2A, 0xAA, 0x8A), *(0x2E, 0xAE, 0x8E), *(0x41, 0x93), 0x42, *(0x35, 0x91), 0x9C}
)
_SERVICE_ACTION_IN: Final = (0x9E, 0xA3)  # and MAINTENANCE IN: reports, all of them
_VARIABLE_LENGTH: Final = 0x7F
_LONG_READS: Final = frozenset({0x0009, 0x000A})  # READ(32), VERIFY(32)
_LONG_WRITES: Final = frozenset({0x000B, 0x000C, 0x000D})  # WRITE, WRITE AND VERIFY, WRITE SAME
_UNMAP: Final = 0x42
# Where the changes of `_WRITES` keep address and count; those not named change the whole unit.
_PLACES: Final = {
    0x2A: (2, 4, 7, 2),
    0x2E: (2, 4, 7, 2),
    0x41: (2, 4, 7, 2),
    0xAA: (2, 4, 6, 4),
    0xAE: (2, 4, 6, 4),
    0x8A: (2, 8, 10, 4),
    0x8E: (2, 8, 10, 4),
    0x93: (2, 8, 10, 4),
    0x89: (2, 8, 13, 1),
    0x8B: (2, 8, 10, 4),
    0x9C: (2, 8, 12, 2),
}
_TO_THE_END: Final = frozenset({0x41, 0x93})  # a count of zero means so, for WRITE SAME
END: Final = 1 << 64


def changes(cdb: bytes) -> bool:
    """Whether a command may change the unit's data or state."""
    if cdb[0] == _VARIABLE_LENGTH:
        return int.from_bytes(cdb[8:10], "big") not in _LONG_READS
    return cdb[0] not in _READS and cdb[0] not in _SERVICE_ACTION_IN


def is_replayable(cdb: bytes) -> bool:
    """Whether a command whose answer was lost may be sent again. `cdb`: at least 16 bytes."""
    if cdb[0] == _VARIABLE_LENGTH:
        return int.from_bytes(cdb[8:10], "big") in _LONG_READS | _LONG_WRITES
    return cdb[0] in _WRITES or not changes(cdb)


@dataclass(frozen=True, slots=True)
class Extent:
    """Blocks of a unit that a command changes: `start` up to, not including, `end`."""

    lun: int
    start: int = 0
    end: int = END

    def overlaps(self, other: "Extent") -> bool:
        """Whether some block is in both."""
        return self.lun == other.lun and self.start < other.end and other.start < self.end


def extent_of(lun: int, cdb: bytes, data: bytes = b"") -> Extent | None:
    """The blocks a command changes: all of the unit where that cannot be told, None for none.

    `data` is an UNMAP's parameter list; its extent reaches from its first block to its last.
    """
    if not changes(cdb) or cdb[0] in (0x35, 0x91):
        return None
    if cdb[0] == _UNMAP:
        return _unmap_extent(lun, data)
    if cdb[0] not in _PLACES:
        return Extent(lun)
    at, size, count_at, count_size = _PLACES[cdb[0]]
    lba = int.from_bytes(cdb[at : at + size], "big")
    count = int.from_bytes(cdb[count_at : count_at + count_size], "big")
    if count == 0 and cdb[0] in _TO_THE_END:
        return Extent(lun, lba)
    return Extent(lun, lba, lba + count)


def _unmap_extent(lun: int, data: bytes) -> Extent | None:
    places = range(8, len(data) - 15, 16)
    starts = [int.from_bytes(data[at : at + 8], "big") for at in places]
    counts = [int.from_bytes(data[at + 8 : at + 12], "big") for at in places]
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    return Extent(lun, min(starts), max(ends)) if starts else None


@dataclass(slots=True, eq=False)
class Turn:
    """A change's place in the order. `on_free` is called when nothing earlier is in its way."""

    extent: Extent
    before: set["Turn"] = field(default_factory=set)
    on_free: Callable[[], None] | None = None

    @property
    def is_blocked(self) -> bool:
        """Whether an earlier change of the same blocks has not ended."""
        return bool(self.before)


class Ordering:
    """The changes under way: those of the same blocks take place in the order of their calls."""

    def __init__(self) -> None:
        self._open: dict[Turn, None] = {}

    def enter(self, extent: Extent) -> Turn:
        """Take a place behind every open change that overlaps."""
        turn = Turn(extent, {other for other in self._open if other.extent.overlaps(extent)})
        self._open[turn] = None
        return turn

    def leave(self, turn: Turn) -> None:
        """The change is over, or was given up before it began."""
        self._open.pop(turn, None)
        for other in self._open:
            if turn in other.before:
                other.before.discard(turn)
                if not other.before and other.on_free is not None:
                    other.on_free()
