"""What every part of the server stands on: its lanes, its connections, and the ways in which
other threads reach its own. Only the server's thread touches connections; others use `call`.
"""

import logging
import os
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from host.channel import Completion
from host.errors import HostError
from iscsi.target.buffers import DataBuffers
from iscsi.target.config import ServedPortal, ServerConfig
from iscsi.target.connection import Connection, Phase
from iscsi.target.engine_units import Fences, share_map
from iscsi.target.exclusive import Exclusive
from iscsi.target.lanes import Lane, Lanes
from iscsi.target.lending import Lending
from iscsi.target.placement import ENGINE, STREAM
from iscsi.target.portals import Listening
from iscsi.target.pump import SERVER, touch
from iscsi.target.spread_units import SpreadUnits
from iscsi.target.units import LogicalUnit, Target, by_name, require_own_files
from iscsi.target.wake import Waker
from iscsi.target.workers import FileWorkers, SlowCommands
from shm.records import CQE
from shm.segment import SegmentError
from shm.view import address_of

if TYPE_CHECKING:
    from iscsi.target.rdma import RdmaService

log: Final = logging.getLogger(__name__)
T = TypeVar("T")
COLD_MAX: Final = 256
CALL_S: Final = 30.0
CHANNEL_WORK: Final = 1024
# The low bits of a user_data of Python's own operations; the rest is a slot, or a place.
KIND_BITS: Final = 4
ACCEPT, LOGIN_HEADER, LOGIN_DATA, LOGIN_SEND, SHUTDOWN, CLOSE, LISTEN, UNIT, FENCE = range(1, 10)
LOGIN_MEMORY, LOGIN_BEGUN = 10, 11  # over RDMA: it is registered; full operation has begun
NO_MEMORY: Final = (MemoryError, SegmentError, HostError, OSError)


class ServerCore(ABC):
    """The state of a server, and its memory."""

    def __init__(self, engine: Any, config: ServerConfig) -> None:
        self.config = config
        self.access = config.access  # judges logins and SendTargets from now on; may be replaced
        self._engine = engine
        self._targets = by_name(config.targets)
        self._limits = config.limits
        self._slots: list[Connection | None] = [None] * (config.max_connections + config.max_logins)
        self._free_slots = list(range(len(self._slots) - 1, -1, -1))
        self._pumps: dict[int, Connection] = {}
        self._endpoints: dict[tuple[Lane, int], Connection] = {}
        self._sessions: dict[tuple[str, int, str], Connection] = {}
        self._logins: dict[Connection, None] = {}  # oldest first
        self._unfinished: list[Connection] = []  # closed, but a worker still uses their memory
        self._listening: dict[int, Listening] = {}  # by place
        self._beginning: dict[int, tuple[ServedPortal, Future[int]]] = {}  # portals to come
        self._reserved = 0
        self._tsih = 0
        self._calls: deque[Callable[[], None]] = deque()
        self._thread = threading.get_ident()
        self._waker: Waker | None = None
        self._record = np.zeros(1, SERVER)
        self._rdma: dict[Lane, RdmaService] = {}  # of lanes to which somebody came over RDMA
        self._fences = Fences(FENCE, KIND_BITS)
        self.counts: Counter[str] = Counter()
        self.stopping = False
        self.draining = False
        self._lanes = Lanes(engine, config.engines, CHANNEL_WORK, config.ring_capacity)
        try:
            self.buffers = DataBuffers(engine, config.data_buffers)
            self._waker = Waker(engine, self._lanes.first.channel)
            self._files = FileWorkers(config.file_workers, self._waker.descriptor)
        except BaseException:
            self._release()
            raise
        self._slow = SlowCommands(config.slow_workers, self.kick)
        self._exclusive = Exclusive()
        self._lay_out(self._waker)
        try:
            for lane in self._lanes.all if self._moves else ():
                lane.lend(Lending(engine, lane.channel, config.engine_limits))
            for target in self._targets.values():
                self._adopt(target.units.values())
                self._hand_units_over(target)
        except BaseException:
            self._files.stop()
            self._release()
            raise

    def _adopt(self, units: Collection[LogicalUnit]) -> None:
        """Make ready for units, above all for those whose blocks lie in files.

        Raises ValueError when one keeps something where another unit keeps something.
        """
        served = [unit for target in self._targets.values() for unit in target.units.values()]
        require_own_files((*served, *units))
        if any(unit.backend.medium is not None for unit in units):
            self._files.start()
        for unit in units if self.config.placement == ENGINE else ():
            share_map(self._engine, unit)
            unit.refresh_gate()

    def _make_ready_for(self, served: ServedPortal) -> None:
        """Have the engines be ready for what comes to a portal, before anything does: what has to
        be compiled or loaded first would outlast the patience of an initiator.
        """
        for lane in self._lanes.all if served.rdma else ():
            self._engine.rdma(lane.channel, "iser")

    def _hand_units_over(self, target: Target) -> None:
        """Have the engines serve a target's units in memory by themselves, if they are to."""
        if self.config.placement == ENGINE:
            target.engine = SpreadUnits(
                self._engine, self._lanes.all, self._fences, target, unit_data=UNIT
            )

    @property
    def _moves(self) -> bool:
        """Whether engines make and take the PDUs of what has logged in."""
        return self.config.placement != STREAM

    def _units_changed(self, done: Completion) -> None:
        """A change of an engine's table of units is made."""
        if done.status < 0:
            self.counts["units refused"] += 1
            log.error("the engine refuses a unit: %s", os.strerror(-done.status))

    def _lay_out(self, waker: Waker) -> None:
        """The compiled loop's record and lists."""
        self._touched = np.zeros(len(self._slots), np.int64)
        self._attention = np.zeros(len(self._slots), np.int64)
        self._cold = np.zeros(COLD_MAX, CQE)
        mine = self._record[0]
        mine["lanes"], mine["lane_count"] = self._lanes.address, len(self._lanes.all)
        mine["group"], mine["moves"] = self._lanes.group, self._moves
        mine["touched"] = address_of(self._touched)
        mine["attention"] = address_of(self._attention)
        mine["cold"], mine["cold_capacity"] = address_of(self._cold), COLD_MAX
        mine["store"], mine["wake_endpoint"] = self._files.address, waker.endpoint
        mine["wake_address"] = waker.buffer.address
        mine["wake_length"], mine["wake_due"] = len(waker.buffer), 1

    def _release(self) -> None:
        """Give back everything but connections. Idempotent."""
        self._lanes.close()
        for target in self._targets.values():
            target.engine = None
        self._lanes.free()
        if hasattr(self, "buffers"):
            self.buffers.free()
        if self._waker is not None:
            self._waker.close()

    @property
    def connections(self) -> list[Connection]:
        """The connections there are, in any phase."""
        return [connection for connection in self._slots if connection is not None]

    @property
    def bound(self) -> list[tuple[str, int]]:
        """Where it listens: host as it was configured, and the port."""
        return [(found.portal.host, found.port) for found in self._listening.values()]

    @property
    def file_counts(self) -> dict[str, int]:
        """READs and WRITEs of files: served at once, by a worker, and those a worker has now."""
        return self._files.counts

    # --- other threads -----------------------------------------------------------------------

    def stop(self) -> None:
        """Have `serve_forever` return at once. Any thread, also a signal handler."""
        self.stopping = True
        self.kick()

    def kick(self) -> None:
        """Have the server's loop look at what other threads left for it. Any thread."""
        self._record[0]["kicked"] = 1
        if self._waker is not None:
            self._waker.wake()

    def call(self, function: Callable[[], T], timeout_s: float = CALL_S) -> T:
        """Run `function` in the server's thread, between two commands; its result or exception.

        Raises TimeoutError if the server does not come to it; it will then not be run any more.
        """
        if threading.get_ident() == self._thread:
            return function()
        future: Future[T] = Future()
        self._calls.append(lambda: run_call(future, function))
        self.kick()
        try:
            return future.result(timeout_s)
        except TimeoutError:
            if future.cancel():
                raise TimeoutError(f"the server did not answer within {timeout_s} s") from None
            return future.result(timeout_s)

    def _answer_calls(self) -> None:
        self._record[0]["kicked"] = 0
        while self._calls:
            self._calls.popleft()()
        self._slow.collect()

    # --- what the parts use ------------------------------------------------------------------

    def _touch(self, connection: Connection) -> None:
        """Have the compiled loop look at a connection, unless its memory is about to go."""
        if connection.phase is Phase.CLOSING or not connection.pump_address:
            return
        touch(address_of(self._record), connection.pump_address)

    @abstractmethod
    def _send_login(self, connection: Connection) -> None:
        """Go on with a login that waited for the end of the session that it replaces."""

    @abstractmethod
    def _leave(self, connection: Connection) -> None:
        """End a connection once all that was made is posted."""


def run_call(future: "Future[T]", function: Callable[[], T]) -> None:
    """Run a function unless its future was cancelled; what it gives or raises goes there."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:  # The caller asked; the server goes on.
        future.set_exception(error)
