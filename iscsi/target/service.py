"""What the service manager hears of a target server (sd_notify(3)): when it serves, reloads and
ends, how it is doing, and that its loop still turns. Without a service manager nothing is said.
"""

import threading
import time
from typing import Final

from iscsi.target.server import TargetServer
from iscsi.wire.names import Portal
from ppe import notify

_LAST_S: Final = 30.0  # what the end itself may take, besides the sessions


class Service:
    """One server's voice. `tick` comes from the server's thread, the rest from any."""

    def __init__(self, server: TargetServer) -> None:
        self._server = server
        self._said = ""
        self._problem = ""
        self._is_ready = self._is_stopping = False
        self._lock = threading.Lock()
        self._interval_s = notify.watchdog_interval_s()
        self._watchdog_at = 0.0

    @property
    def status(self) -> str:
        """How it is doing, in a line. In the server's thread."""
        luns, sessions = self._server.size
        portals = ", ".join(Portal(host, port).address for host, port in self._server.bound)
        doing = "draining" if self._server.draining else "serving"
        text = f"{doing} {_many(luns, 'LUN')} on {portals or 'no portal'}"
        return f"{text}, {_many(sessions, 'session')}{self._problem}"

    def ready(self) -> None:
        """Initiators can log in. Before `serve`, or in its thread."""
        self._said, self._is_ready = self.status, True
        notify.ready(self._said)

    def reloading(self) -> None:
        """The file is read again, until `reloaded`."""
        if not self._is_stopping:
            now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            notify.notify(f"RELOADING=1\nMONOTONIC_USEC={now_us}\nSTATUS=reading the file again")

    def reloaded(self, problem: str = "") -> None:
        """That is over. A problem stays part of the status until a reload had none."""
        self._problem = f"; the last reload failed: {problem}" if problem else ""
        if not self._is_stopping:
            self._said = ""  # said again at the next tick
            notify.notify("READY=1")

    def stopping(self, within_s: float = 0.0) -> None:
        """It ends, and its sessions are given this long to leave. Only the first time counts."""
        with self._lock:
            if self._is_stopping:
                return
            self._is_stopping = True
        within_us = int((within_s + _LAST_S) * 1e6)
        notify.notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={within_us}")

    def tick(self) -> None:
        """Say what has changed, and that the loop turns. In the server's thread."""
        if self._is_ready and (now := self.status) != self._said:
            self._said = now
            notify.status(now)
        if self._interval_s is not None and time.monotonic() >= self._watchdog_at:
            self._watchdog_at = time.monotonic() + self._interval_s / 2
            notify.watchdog()


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
