"""Commands that must find a file at rest, COMPARE AND WRITE above all: they wait until the reads
and writes that workers are doing have ended, and nothing new begins meanwhile. In the server's
thread.
"""

from collections.abc import Callable

from iscsi.target.backends.medium import Medium


class Exclusive:
    """What waits for which medium, in the order in which it came."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Medium, Callable[[], None]]] = []

    def run(self, medium: Medium, function: Callable[[], None]) -> None:
        """Run `function` when no worker is busy with the medium, now if none is."""
        if medium.jobs == 0:
            function()
            return
        medium.hold(True)
        self._waiting.append((medium, function))

    def look(self) -> None:
        """Run what can be run now."""
        ready = [found for found in self._waiting if found[0].jobs == 0]
        self._waiting = [found for found in self._waiting if found not in ready]
        for medium, function in ready:
            try:
                function()
            finally:
                medium.hold(False)
