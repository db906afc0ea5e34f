"""Changes while the server serves, and what can be asked of it: targets, units, portals, draining,
statistics. Each may be called from any thread; it is done in the server's, between two commands.
"""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, Final

from host.channel import Completion, resolve
from iscsi.target import control
from iscsi.target.access import AccessPolicy
from iscsi.target.announce import logout_request
from iscsi.target.config import ServedPortal, ServerConfig
from iscsi.target.connection import Connection, Phase
from iscsi.target.logins import Logins
from iscsi.target.placement import ENGINE
from iscsi.target.portals import Listening, describe_failure
from iscsi.target.room import RoomWatch
from iscsi.target.scsi import sanitize
from iscsi.target.server_core import CALL_S, KIND_BITS, LISTEN, run_call
from iscsi.target.statistics import room_statistics, session_statistics, unit_statistics
from iscsi.target.thresholds import Threshold
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire.names import Portal
from iscsi.wire.sense import Asc

LEAVE_S: Final = 10.0  # what sessions are given to log out
REVOKE_S: Final = 1.0  # the same, for those that may not be here any more
_LOOK_S: Final = 0.02
WATCH_NS: Final = 500_000_000  # between two looks at what nobody tells the server
# What of a ServerConfig may be another while the server serves. The first are counts that memory
# was set aside for, and so may not become more than they were when it started.
LIVE_COUNTS: Final = ("max_connections", "max_logins")
LIVE_LIMITS: Final = (
    *LIVE_COUNTS,
    "login_timeout_s",
    "nop_interval_s",
    "nop_timeout_s",
    "data_timeout_s",
    "advertise",
)


class LiveChanges(Logins):
    """The part of the server that an operator talks to. `watchers` are called in its thread, about
    twice a second.
    """

    def __init__(self, engine: Any, config: ServerConfig) -> None:
        super().__init__(engine, config)
        self._started_with = config
        self.room = RoomWatch(self._slow.submit)
        self.watchers: list[Callable[[], None]] = []
        self._watch_at_ns = 0
        self._has_counted: Callable[[], bool] = lambda: True
        self._seen = 0  # PDUs of all connections

    def _watch(self) -> None:
        now = time.monotonic_ns()
        if now < self._watch_at_ns:
            return
        self._watch_at_ns = now + WATCH_NS
        self.room.look(self._targets.values())
        if self._has_counted() and self._is_busy():
            self._has_counted = self._ask_counts()
        for watcher in self.watchers:
            watcher()

    def set_limits(self, **limits: Any) -> None:
        """Change some of LIVE_LIMITS: for logins, sessions and discoveries from now on. Sessions
        that are there stay as they are. Raises ValueError, and then nothing has changed.
        """
        for name in limits:
            if name not in LIVE_LIMITS:
                raise ValueError(f"{name} changes only with a restart")
        for name in LIVE_COUNTS:
            most = getattr(self._started_with, name)
            if limits.get(name, 0) > most:
                raise ValueError(
                    f"{name} above {most}, with which the server started, needs a restart"
                )

        def change() -> None:
            self.config = replace(self.config, **limits)

        self.call(change)

    def _wait(self, what: str, is_true: Callable[[], bool], timeout_s: float) -> None:
        """Wait in another thread for something to become true in the server's."""
        deadline = time.monotonic() + timeout_s
        while not self.call(is_true):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"not within {timeout_s} s: {what}")
            time.sleep(_LOOK_S)

    # --- targets and units -----------------------------------------------------------------

    def add_target(self, target: Target) -> None:
        """Serve one more target. Raises ValueError for a name that is taken."""

        def add() -> None:
            if target.name in self._targets:
                raise ValueError(f"there is a target called {target.name} already")
            self._adopt(target.units.values())
            self._hand_units_over(target)
            self._targets[target.name] = target

        self.call(add)

    def remove_target(self, name: str, timeout_s: float = LEAVE_S) -> Target:
        """Serve a target no more: its sessions are asked to log out, then ended. KeyError.

        Returns it when nobody uses its units any more; its backends are the caller's to close.
        """

        def remove() -> tuple[Target, list[Connection]]:
            target = self._targets.pop(name)
            its = [found for found in self.connections if found.target is target]
            for connection in its:
                self._ask_to_leave(connection, timeout_s)
            return target, its

        target, connections = self.call(remove)
        gone = lambda: not any(found in self.connections for found in connections)  # noqa: E731
        self._wait(f"the sessions of {name} are gone", gone, timeout_s + CALL_S)
        for unit in target.units.values():
            if all(place is target for place, _ in unit.places):
                sanitize.stop(unit)
        return target

    def _target(self, name: str) -> Target:
        if name not in self._targets:
            raise KeyError(f"there is no target called {name}")
        return self._targets[name]

    def _unit(self, name: str, lun: int) -> LogicalUnit:
        target = self._target(name)
        if lun not in target.units:
            raise KeyError(f"{name} has no LUN {lun}")
        return target.units[lun]

    def add_unit(self, name: str, lun: int, unit: LogicalUnit) -> None:
        """Serve one more unit of a target; its sessions are told. KeyError, ValueError."""

        def add() -> None:
            target = self._target(name)
            self._adopt([unit])
            target.add_unit(lun, unit)

        self.call(add)

    def remove_unit(self, name: str, lun: int, timeout_s: float = CALL_S) -> LogicalUnit:
        """Serve a unit no more: its commands end, its sessions are told. KeyError.

        Returns it when no worker uses it any more; its backend is the caller's to close.
        """

        def remove() -> tuple[LogicalUnit, list[Connection]]:
            self._unit(name, lun)
            target = self._target(name)
            its = [found for found in self._sessions.values() if found.target is target]
            for connection in its:
                if connection.protocol is not None:
                    connection.protocol.abort_lun(lun)
                    self._touch(connection)
            gone = target.engine.fence(lun) if target.engine is not None else None
            unit = target.remove_unit(lun)
            if gone is not None:
                unit.settled = gone
            return unit, its

        unit, connections = self.call(remove)

        def is_idle() -> bool:
            medium = unit.backend.medium
            return (medium is None or not medium.jobs) and not any(
                found.protocol is not None and found.protocol.aborted_work(lun)
                for found in connections
                if not found.moves  # What an engine still sends is waited for below.
            )

        self._wait(f"nobody works on LUN {lun}", is_idle, timeout_s)
        if unit.backend.memory and not unit.places:
            self._stop_sending(unit, lun, connections, timeout_s)
        if not unit.places:
            sanitize.stop(unit)
        return unit

    def _stop_sending(
        self, unit: LogicalUnit, lun: int, connections: list[Connection], timeout_s: float
    ) -> None:
        """Wait until nothing is sent from a removed unit's memory any more: it will be another's.
        Initiators that take nothing, and do not say that they have all, are disconnected.
        """
        start, end = unit.backend.memory, unit.backend.memory + unit.backend.size

        settled = unit.settled
        marks = self.call(lambda: {found: found.made for found in connections})

        def sending() -> list[Connection]:
            is_over = settled is None or settled()
            return [
                found
                for found in connections
                if found.protocol is not None
                and (
                    found.sends_from(start, end, marks[found])
                    or (found.moves and (not is_over or found.protocol.aborted_work(lun) > 0))
                )
            ]

        def ask() -> None:
            for connection in sending():
                if connection.phase is Phase.FULL:
                    control.ask_for_life(connection)
                    self._touch(connection)

        def hang_up() -> None:
            for connection in sending():
                self._close(connection)

        self.call(ask)
        what = "nothing is sent from the unit's memory"
        try:
            self._wait(what, lambda: not sending(), REVOKE_S)
        except TimeoutError:
            self.call(hang_up)
            self._wait(what, lambda: not sending(), timeout_s)

    def resize_unit(self, name: str, lun: int, size: int) -> None:
        """Change a unit's size, in bytes; its sessions are told. KeyError, ValueError, OSError.

        A file is left alone until no worker is busy with it.
        """
        answer: Future[None] = Future()

        def resize() -> None:
            unit = self._unit(name, lun)
            medium = unit.backend.medium
            change = partial(run_call, answer, lambda: unit.resize(size))
            if medium is not None:
                self._exclusive.run(medium, change)
            elif unit.is_served_by_engine:
                self._change_alone(unit, change)
            else:
                change()

        self.call(resize)
        answer.result(CALL_S)

    def _change_alone(self, unit: LogicalUnit, change: Callable[[], None]) -> None:
        """Change a unit when nothing that an engine does there by itself is under way."""
        unit.awaiting_writes += 1
        unit.refresh_gate()

        def run() -> None:
            try:
                change()
            finally:
                unit.awaiting_writes -= 1
                unit.refresh_gate()

        self._exclusive.run_when(unit.fence(), run)

    def set_thresholds(self, name: str, lun: int, wanted: Iterable[Threshold]) -> None:
        """Change a unit's thresholds, as they also are after a reset; its sessions are told. What
        an initiator set is gone. KeyError, ValueError where nobody can tell how much it takes.
        """
        descriptors = tuple(wanted)

        def change() -> None:
            unit = self._unit(name, lun)
            if unit.thresholds is None:
                raise ValueError(f"{name} LUN {lun} is not thin: it has no thresholds")
            before = unit.thresholds.descriptors
            unit.thresholds.set_defaults(descriptors)
            if unit.thresholds.descriptors != before:
                unit.broadcast(Asc.MODE_PARAMETERS_CHANGED)

        self.call(change)

    def set_access(self, access: AccessPolicy, timeout_s: float = REVOKE_S) -> None:
        """Judge by another policy from now on. Sessions that it would not let in are asked to log
        out and then ended; the others may write or not as it says. Secrets count at the next login.
        """

        def change() -> None:
            self.access = access
            for connection in list(self._logins):
                self._close(connection)  # Half judged by the old one: these try again.
            for connection in self._sessions.values():
                if connection.phase is Phase.FULL:
                    self._judge_again(connection, timeout_s)

        self.call(change)
        waits = self.call(self._unsettled)
        what = "the engine knows who may do what"
        self._wait(what, lambda: all(is_over() for is_over in waits), CALL_S)

    def _unsettled(self) -> list[Callable[[], bool]]:
        """Whether engines have done what they were told of each session."""
        nexuses = [connection.nexus for connection in self._sessions.values()]
        return [nexus.settled for nexus in nexuses if nexus.settled is not None]

    def _judge_again(self, connection: Connection, timeout_s: float) -> None:
        target, result = connection.target, connection.result
        assert target is not None, "a session of SendTargets alone has no place among these"
        assert result is not None, "it logged in"
        grant = self.access.grant_of_session(target.name, result.initiator_name, connection.peer[0])
        if grant is None:
            self._ask_to_leave(connection, timeout_s)
            return
        connection.nexus.read_only = grant.read_only
        for lun in target.units:
            connection.nexus.refresh_gate(lun)

    # --- portals ---------------------------------------------------------------------------

    def add_portal(self, portal: Portal | ServedPortal) -> tuple[str, int]:
        """Listen on one more portal: its host, and the port it got. Raises OSError.

        Not from the server's own thread, which has to go on for that.
        """
        served = portal if isinstance(portal, ServedPortal) else ServedPortal(portal)
        host, port = served.portal.host, served.portal.port
        address = resolve(host, port, passive=True)[0]
        answer: Future[int] = Future()

        def begin() -> None:
            self._make_ready_for(served)
            place = max(self._listening, default=-1) + 1
            while place in self._beginning:
                place += 1
            self._beginning[place] = served, answer
            data = place << KIND_BITS | LISTEN
            lane = self._lanes.first
            lane.post(lambda: bool(lane.channel.post_listen(address, data)))

        self.call(begin)
        return host, answer.result(CALL_S)

    def _listened(self, place: int, done: Completion) -> None:
        served, answer = self._beginning.pop(place)
        if done.status < 0:
            answer.set_exception(describe_failure(served.portal, -done.status))
            return
        self._listening[place] = Listening(served, done.endpoint, done.arg0, self.config)
        self._accept(place)
        answer.set_result(done.arg0)

    def remove_portal(self, host: str, port: int) -> None:
        """Listen there no more; who came by it stays. KeyError."""

        def remove() -> None:
            places = [
                place
                for place, found in self._listening.items()
                if (found.portal.host, found.port) == (host, port)
            ]
            if not places:
                raise KeyError(f"no portal {host}:{port}")
            listener = self._listening.pop(places[0]).listener
            lane = self._lanes.first
            lane.post(lambda: bool(lane.channel.post_close(listener, 0)))

        self.call(remove)

    # --- leaving ---------------------------------------------------------------------------

    def _ask_to_leave(self, connection: Connection, timeout_s: float) -> None:
        """Ask a session to log out (RFC 7143 §11.9.1), and end it when it did not."""
        deadline = time.monotonic_ns() + int(timeout_s * 1e9)
        connection.deadline_ns = min(connection.deadline_ns, deadline)
        if connection.phase is Phase.FULL:
            control.announce(connection, logout_request(timeout_s))
            self._touch(connection)

    def drain(self, timeout_s: float = LEAVE_S) -> bool:
        """Let nobody in any more, ask all sessions to log out, and wait until they are gone.

        Whether all went by themselves; those that did not are ended.
        """

        def begin() -> None:
            self.draining = True
            for connection in self.connections:
                self._ask_to_leave(connection, timeout_s)

        before = self.counts["timeouts in full"]
        self.call(begin)
        self._wait("all are gone", lambda: not self.connections, timeout_s + CALL_S)
        return self.counts["timeouts in full"] == before

    # --- numbers ---------------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, int]:
        """How many LUNs it serves, to how many sessions of a target. In the server's thread."""
        targets = self._targets.values()
        luns = sum(len(target.units) for target in targets)
        return luns, sum(len(target.nexuses) for target in targets)

    def statistics(self) -> dict[str, Any]:
        """Plain numbers of the server, its sessions and its units, all of the same moment but how
        much room thin units take: their file systems are asked in this thread, afterwards.
        """
        counted = self.call(self._ask_counts)
        if threading.get_ident() != self._thread:
            self._wait("the engine's numbers", counted, CALL_S)
        found, units = self.call(lambda: (self._statistics(), self._units()))
        for each in (unit for target in found["targets"] for unit in target["units"]):
            each.update(room_statistics(units.pop(0)))
        return found

    def _is_busy(self) -> bool:
        """Whether anything came since this was asked the last time, where an engine counts."""
        before, self._seen = self._seen, sum(found.made for found in self._pumps.values())
        return self.config.placement == ENGINE and self._seen != before

    def _ask_counts(self) -> Callable[[], bool]:
        """Have engines say what they served by themselves; whether all have."""
        tables = [target.engine for target in self._targets.values() if target.engine is not None]
        waits = [each.ask_counts() for each in tables]
        return lambda: all(is_over() for is_over in waits)

    def _units(self) -> list[LogicalUnit]:
        """In the order of the statistics."""
        targets = self._targets.values()
        return [
            unit
            for target in targets
            for _, unit in sorted(target.units.items(), key=lambda item: item[0])
        ]

    def _statistics(self) -> dict[str, Any]:
        return {
            "portals": [
                {"host": found.portal.host, "port": found.port, "tag": found.tag}
                for found in self._listening.values()
            ],
            "counts": dict(self.counts),
            "draining": self.draining,
            "engines": [
                {"engine": lane.engine, "connections": lane.connections} for lane in self._lanes.all
            ],
            "files": self.file_counts,
            "buffers": {"taken": self.buffers.taken, "refused": self.buffers.refused},
            "sessions": [session_statistics(found) for found in self._pumps.values()],
            "targets": [
                {
                    "name": target.name,
                    "alias": target.alias,
                    "sessions": len(target.nexuses),
                    "units": [
                        unit_statistics(target, lun, unit)
                        for lun, unit in sorted(target.units.items())
                    ],
                }
                for target in self._targets.values()
            ],
        }
