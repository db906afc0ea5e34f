"""Looks from time to time how much room thin units take, those of them that have a threshold: a
file system is asked in a worker's thread, because it may keep whoever asks waiting. What was
reached is told to initiators by the unit, and to the operator by `reached`.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from iscsi.target.backends import Usage
from iscsi.target.thresholds import Reached
from iscsi.target.units import LogicalUnit, Target

log: Final = logging.getLogger(__name__)

Submit = Callable[[Callable[[], Any], Callable[["Future[Any]"], None]], None]


class RoomWatch:
    """`submit` runs a function in a worker's thread, and another with its outcome in the server's,
    where everything else here happens.
    """

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._asked: set[LogicalUnit] = set()
        self.reached: Callable[[LogicalUnit, Reached], None] = _log

    def look(self, targets: Iterable[Target]) -> None:
        """Measure every unit of these that has something to be reached."""
        for unit in {unit for target in targets for unit in target.units.values()}:
            if unit.thresholds is None or not unit.thresholds.is_watching:
                continue
            if unit.backend.memory:
                self._notice(unit, unit.backend.usage())
            elif unit not in self._asked:
                self._asked.add(unit)
                self._submit(unit.backend.usage, partial(self._measured, unit))

    def _measured(self, unit: LogicalUnit, future: "Future[Usage | None]") -> None:
        self._asked.discard(unit)
        if future.cancelled() or not unit.places:
            return
        error = future.exception()
        if error is None:
            self._notice(unit, future.result())
        else:  # Reads and writes will find it out, and say so.
            log.info("%s: how much room is left cannot be told: %s", place_of(unit), error)

    def _notice(self, unit: LogicalUnit, usage: Usage | None) -> None:
        for reached in () if usage is None else unit.notice(usage):
            self.reached(unit, reached)


def place_of(unit: LogicalUnit) -> str:
    """A unit as an operator knows it."""
    return ", ".join(f"{target.name} LUN {lun}" for target, lun in unit.places)


def _log(unit: LogicalUnit, reached: Reached) -> None:
    usage = reached.usage
    log.warning(
        "%s: threshold reached: %d bytes used, %d available",
        place_of(unit),
        usage.used,
        usage.available,
    )
