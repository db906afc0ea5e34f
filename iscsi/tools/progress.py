"""How far a long copy is: a bar on a terminal's stderr, nothing elsewhere."""

import sys
from typing import Any


class Progress:
    """A bar for `total` bytes, from its first `show` to `end`. The drawing is rich's, which is not
    loaded where nobody looks.
    """

    def __init__(self, total: int, what: str = "") -> None:
        self._total, self._what = max(total, 1), what
        self._on = sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def show(self, done: int) -> None:
        """Say how far it is."""
        if not self._on:
            return
        if self._bar is None:
            self._begin()
        self._bar.update(self._task, completed=done)

    def _begin(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(self._what, total=self._total)
        self._bar.start()

    def end(self) -> None:
        """Leave the bar as it is. Idempotent."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
