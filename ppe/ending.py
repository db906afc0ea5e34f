"""How a command ends that is told to: SIGTERM and SIGHUP unwind it as Ctrl-C does, so that what it
started ends with it. One rule: a signal that is ignored, or has a handler, stays as it is.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """The process was told to end, by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    for each in SIGNALS:  # Told twice is told: nothing interrupts the tidying up.
        signal.signal(each, signal.SIG_IGN)
    raise Ended(number)


@contextmanager
def orderly() -> Iterator[None]:
    """Raise Ended inside the block where the default is to drop dead."""
    mine = [each for each in SIGNALS if signal.getsignal(each) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        mine = []  # Handlers belong to the main thread.
    for each in mine:
        signal.signal(each, _end)
    try:
        yield
    finally:
        for each in mine:
            signal.signal(each, signal.SIG_DFL)


def die_of(number: int) -> NoReturn:
    """End the process by the signal itself, so that whoever waits for it sees what ended it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # Not reached unless the signal is blocked.
