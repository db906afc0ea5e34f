"""The units of a target at every engine that serves them by itself: one table for each lane, over
the same memory. What is to be over is over when it is at all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from iscsi.target.engine_units import EngineUnits, Fences
from iscsi.target.lanes import Lane
from iscsi.target.units import Target


class SpreadUnits:
    """Makes a table at each of `lanes`. Raises what `make_table` raises."""

    def __init__(
        self, engine: Any, lanes: Sequence[Lane], fences: Fences, target: Target, *, unit_data: int
    ) -> None:
        self._at = {
            lane: EngineUnits(
                lane.channel,
                lane,
                fences,
                target,
                engine.make_table(lane.channel, int(target.table.size)),
                unit_data,
            )
            for lane in lanes
        }

    def table_at(self, lane: Lane) -> int:
        """The name of the table at a lane's engine."""
        return self._at[lane].table

    def serves(self, lun: int) -> bool:
        """Whether any engine has this unit, be it open or not."""
        return any(units.serves(lun) for units in self._at.values())

    def write(self, lun: int) -> None:
        """Have every table say of a LUN what the server's says."""
        for units in self._at.values():
            units.write(lun)

    def fence(self, lun: int, blocks: tuple[int, int] | None = None) -> Callable[[], bool]:
        """Close a unit at every engine until nothing that it does there by itself is under way, or
        with `blocks` (first, count) no WRITE of those; whether that is over. Each opens when it has
        done, so whoever needs all of them closed at once also keeps the unit out of its normal
        state.
        """
        return _all([units.fence(lun, blocks) for units in self._at.values()])

    def ask_counts(self) -> Callable[[], bool]:
        """Have every engine say what it served, for the server's table; whether all have."""
        return _all([units.ask_counts() for units in self._at.values()])


def _all(waits: list[Callable[[], bool]]) -> Callable[[], bool]:
    """Whether all are over; each is asked until it says so."""

    def is_over() -> bool:
        waits[:] = [each for each in waits if not each()]
        return not waits

    return is_over
