"""Commands that must find their blocks at rest, COMPARE AND WRITE above all. Those on a file wait
until the reads and writes that workers are doing have ended, and nothing new begins meanwhile;
others for whatever they say. In the server's thread.
"""

import logging
from collections.abc import Callable
from typing import Final

from iscsi.target.backends.medium import Medium

log: Final = logging.getLogger(__name__)


class Exclusive:
    """What waits for which medium, in the order in which it came."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Medium, Callable[[], None]]] = []
        self._until: list[tuple[Callable[[], bool], Callable[[], None]]] = []

    def run(self, medium: Medium, function: Callable[[], None]) -> None:
        """Run `function` when no worker is busy with the medium, now if none is."""
        if medium.jobs == 0:
            function()
            return
        medium.hold(True)
        self._waiting.append((medium, function))

    def run_when(self, is_due: Callable[[], bool], function: Callable[[], None]) -> None:
        """Run `function` when `is_due`, which is asked at least at each tick of the server."""
        self._until.append((is_due, function))

    @property
    def is_waiting(self) -> bool:
        """Whether something has to be asked again and again."""
        return bool(self._until)

    def stop(self) -> None:
        """Run what waits to be due: its sessions are over, so it only tidies up."""
        waiting, self._until = self._until, []
        for _, function in waiting:
            _run(function)

    def look(self) -> None:
        """Run what can be run now."""
        for waiting in list(self._until):
            is_due, function = waiting
            if is_due():
                self._until.remove(waiting)
                _run(function)
        ready = [found for found in self._waiting if found[0].jobs == 0]
        self._waiting = [found for found in self._waiting if found not in ready]
        for medium, function in ready:
            _run(function)
            medium.hold(False)


def _run(function: Callable[[], None]) -> None:
    """An error of this program ends what waited, not the server."""
    try:
        function()
    except Exception:
        log.exception("what waited for its blocks failed")
