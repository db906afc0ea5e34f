"""The units of a target that an engine serves by itself: what its table says follows what the
server's own says, in the order of the channel, so that it holds before any answer made afterwards.
Where a unit's blocks lie changes only once no command uses them. In the server's thread.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import numpy as np

from host.channel import Completion
from iscsi.target.activity import Counts
from iscsi.target.backends import RamBackend
from iscsi.target.unit_posts import (
    AT_ONCE,
    BLOCKS,
    COUNT_BYTES,
    UNIT_CLOSED,
    UNIT_POST,
    UNIT_READ_ONLY,
    post_fence,
    post_unit,
)
from iscsi.target.units import LogicalUnit, Target
from shm.view import address_of

log: Final = logging.getLogger(__name__)

NUMBERS: Final = 1 << 15  # of FENCEs under way
Over = Callable[[Completion], None]


@dataclass(frozen=True, slots=True)
class Shape:
    """Where a unit's blocks and their map lie, as the engine names memory."""

    region: int
    offset: int
    length: int
    block_size: int
    granularity: int
    map_region: int = 0
    map_offset: int = 0
    map_length: int = 0


@dataclass(slots=True)
class Place:
    """What the engine's table says of a LUN, and what is to become of it."""

    shape: Shape | None = None
    flags: int = UNIT_CLOSED
    is_changing: bool = False  # closed until nothing uses `shape` any more
    closers: int = 0  # who wants it closed until something is over
    counted: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


class Ring(Protocol):
    """What is needed of the server."""

    def post_first(self, post: Callable[[], bool]) -> None:
        """Post now, or before anything is answered."""

    def post_later(self, post: Callable[[], bool]) -> None:
        """Post now, or when there is room."""


class Fences:
    """FENCEs under way, by the number that their completion bears."""

    def __init__(self, kind: int, kind_bits: int) -> None:
        self._kind, self._bits = kind, kind_bits
        self._waiting: dict[int, Over] = {}
        self._next = 0

    def enter(self, over: Over) -> int:
        """The user_data of a FENCE after which `over` is called."""
        while self._next in self._waiting:
            self._next = (self._next + 1) % NUMBERS
        number, self._next = self._next, (self._next + 1) % NUMBERS
        self._waiting[number] = over
        return number << self._bits | self._kind

    def complete(self, done: Completion) -> None:
        """One is over."""
        self._waiting.pop(done.user_data >> self._bits)(done)


class EngineUnits:
    """One target's. `table` is what `make_table` gave."""

    def __init__(
        self, channel: Any, ring: Ring, fences: Fences, target: Target, table: int, unit_data: int
    ) -> None:
        self._channel, self._ring, self._fences = channel, ring, fences
        self._target, self.table, self._unit_data = target, table, unit_data
        self._places: dict[int, Place] = {}
        for lun in target.units:
            self.write(lun)

    def serves(self, lun: int) -> bool:
        """Whether the engine has this unit, be it open or not."""
        place = self._places.get(lun)
        return place is not None and (place.shape is not None or place.is_changing)

    def write(self, lun: int) -> None:
        """Have the engine's table say of a LUN what the server's says."""
        if not 0 <= lun < self._target.table.size:
            return
        place = self._places.setdefault(lun, Place())
        if place.is_changing:
            return  # It is looked at again when nothing uses it.
        unit = self._target.units.get(lun)
        shape = None if unit is None else self._shape(unit)
        if place.shape is not None and shape != place.shape:
            place.is_changing = True
            self._post_unit(lun, place.shape, UNIT_CLOSED)
            self._post_fence(lun, lambda _: self._changed(lun, place))
            return
        flags = UNIT_CLOSED
        if unit is not None and shape is not None:
            # Where TAS is 1 this process ends tasks, and so must know them all.
            is_open = unit.is_normal and not unit.task_aborted_status and not place.closers
            flags = UNIT_READ_ONLY * unit.write_protected | (0 if is_open else UNIT_CLOSED)
        if (shape, flags) != (place.shape, place.flags):
            place.shape, place.flags = shape, flags
            self._post_unit(lun, shape, flags)

    def _changed(self, lun: int, place: Place) -> None:
        place.is_changing = False
        self._post_unit(lun, None, UNIT_CLOSED)
        place.shape, place.flags = None, UNIT_CLOSED
        self.write(lun)

    def fence(self, lun: int, blocks: tuple[int, int] | None = None) -> Callable[[], bool]:
        """Close a unit until nothing that the engine does there by itself is under way, or with
        `blocks` (first, count) no WRITE of those; whether that is over.
        """
        if not self.serves(lun):
            return lambda: True
        place = self._places[lun]
        place.closers += 1
        self.write(lun)
        ended: list[bool] = []

        def over(_: Completion) -> None:
            place.closers -= 1
            ended.append(True)
            self.write(lun)

        first, count = blocks or (0, 0)
        self._post_fence(lun, over, 0 if blocks is None else BLOCKS, first, count)
        return lambda: bool(ended)

    def _shape(self, unit: LogicalUnit) -> Shape | None:
        """None for a unit that the engine cannot serve: its blocks are not in shared memory."""
        record = unit.record
        length = record.block_count * record.block_size
        if not record.memory or not length:
            return None
        try:
            region, offset = self._channel.name_memory(record.memory, length)
            found = Shape(region, offset, length, record.block_size, record.granularity)
            if not record.allocation:
                return found
            size = -(-length // record.granularity)
            region, offset = self._channel.name_memory(record.allocation, size)
            return replace(found, map_region=region, map_offset=offset, map_length=size)
        except ValueError:
            return None

    def _post_unit(self, lun: int, shape: Shape | None, flags: int) -> None:
        record = np.zeros(1, UNIT_POST)
        mine = record[0]
        mine["table"], mine["user_data"], mine["lun"] = self.table, self._unit_data, lun
        mine["flags"], mine["block_size"], mine["granularity"] = flags, 512, 1
        for name in () if shape is None else Shape.__slots__:
            mine[name] = getattr(shape, name)
        context = self._channel.context
        self._ring.post_first(lambda: post_unit(context, address_of(record)) > 0)

    def _post_fence(
        self, lun: int, over: Over, flags: int = 0, first: int = 0, count: int = 0
    ) -> None:
        user_data, context = self._fences.enter(over), self._channel.context
        post = self._ring.post_later if flags & AT_ONCE else self._ring.post_first
        post(lambda: post_fence(context, self.table, user_data, lun, flags, first, count) > 0)

    # --- numbers ---------------------------------------------------------------------------

    def ask_counts(self) -> Callable[[], bool]:
        """Add what the engine has served to the server's table; whether that is done."""
        asked = [lun for lun, place in self._places.items() if place.shape is not None]
        left = {(lun, flag) for lun in asked for flag in (0, COUNT_BYTES)}
        for lun, flag in sorted(left):
            self._post_fence(lun, self._counter(lun, flag, left), flag | AT_ONCE)
        return lambda: not left

    def _counter(self, lun: int, flag: int, left: set[tuple[int, int]]) -> Over:
        def over(done: Completion) -> None:
            left.discard((lun, flag))
            if done.status == 0:
                self._count(lun, 2 if flag else 0, (done.arg0, done.arg1))

        return over

    def _count(self, lun: int, first: int, numbers: tuple[int, int]) -> None:
        counted = self._places[lun].counted
        more = [0, 0, 0, 0]
        for index, number in enumerate(numbers, first):
            more[index], counted[index] = number - counted[index], number
        if lun in self._target.units:
            entry = self._target.entry(lun)
            (Counts.of(entry) + Counts(*more)).write_to(entry)


def share_map(engine: Any, unit: LogicalUnit) -> None:
    """Have a thin unit's map lie in memory that the engine shares, if its blocks do."""
    backend = unit.backend
    if isinstance(backend, RamBackend) and backend.is_thin:
        backend.share_map(engine)
