"""An engine of the benchmark's own: the daemon's duty cycle in one pinned thread, without a daemon.

The one rule: it spins only between `start` and `stop`, so a reference that runs meanwhile has both
cores to itself. Everything is called from one controlling thread.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from host.channel import Channel, PostingChannel
from host.memory import Arenas
from ppe.cycle.accounts import ENGINE_INFO, INDEX
from ppe.cycle.control_port import ControlPort
from ppe.cycle.cycle import run
from ppe.cycle.tables import EngineTables, Limits, Settings
from shm.channel import ENGINE_CHANNEL, bind_engine, channel_size, initialise
from shm.records import NEVER
from shm.segment import KIND_CHANNEL, Segment, create, map_descriptor, publish
from shm.view import address_of

LIMITS: Final = Limits(channels=512, endpoints=2048, operations=8192, regions=64)
CAPACITY: Final = 256
CLIENT: Final = 2
START_TIMEOUT_S: Final = 120  # the first start compiles


class PrivateEngine:
    """Tables, control port and the thread that runs the cycle on `core` (negative: anywhere)."""

    def __init__(self, core: int, settings: Settings | None = None) -> None:
        self._core, self._settings = core, settings or Settings()
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._failure: BaseException | None = None
        self._kept: list[NDArray[Any]] = []  # what the engine was given an address of
        self._mapped: list[Segment] = []  # what is ours to unmap
        self.tables: EngineTables
        self.port: ControlPort
        self._thread = threading.Thread(target=self._serve, name="bench-engine", daemon=True)
        self._thread.start()
        self._await_idle(START_TIMEOUT_S)

    def _serve(self) -> None:
        """Make the tables (io_uring wants it in the thread that runs) and run when told."""
        try:
            if self._core >= 0:
                os.sched_setaffinity(0, {self._core})
            self.tables = EngineTables(LIMITS, self._settings)
            self.port = ControlPort(self.tables, inline=False)
            self.port.start()
        except BaseException as error:
            self._failure = error
            self._idle.set()
            return
        self._idle.set()
        while self._orders.get():
            run(self.tables.address, 0, 1, NEVER)
            self._idle.set()

    def _await_idle(self, seconds: float) -> None:
        if not self._idle.wait(seconds):
            raise TimeoutError(f"the engine's thread did not come back within {seconds} s")
        if self._failure is not None:
            raise self._failure

    def start(self) -> None:
        """Let the cycle run."""
        self.tables.stop[:] = 0
        self._idle.clear()
        self._orders.put(True)

    def stop(self) -> None:
        """Have the cycle end, and wait until it has."""
        self.tables.stop[0] = 1
        self.port.wake()
        self._await_idle(10)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the cycle inside the block."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def attach(
        self, segment: Segment, bell: int, client: int = CLIENT, capacity: int = CAPACITY
    ) -> int:
        """Make a prepared channel segment a channel of this engine, which must be running."""
        rings = np.zeros(1, ENGINE_CHANNEL)
        bind_engine(address_of(rings), segment.address, capacity, capacity, -1)
        number = len(self._kept) + 1
        self.port.attach(number, rings, bell, client, os.getpid(), True)
        self._kept.append(rings)
        return number

    def attach_inherited(self, descriptor: int, bell: int) -> int:
        """Attach a channel whose descriptors were inherited from the host's process."""
        segment = map_descriptor(descriptor, channel_size(CAPACITY, CAPACITY))
        self._mapped.append(segment)
        return self.attach(segment, bell)

    def register(self, segment: Segment) -> int:
        """Lend the engine, which must be running, a region of memory."""
        return self.port.add_region(CLIENT, segment.address, segment.size)

    def counter(self, name: str) -> int:
        """One of the engine's counters, by its name in the accounts."""
        layout = self.tables.layout
        values = layout.part(self.tables.accounts.array, "values").view(np.int64)
        return int(values[INDEX[name]])

    @property
    def info(self) -> dict[str, int]:
        """The engine's own account of its passes."""
        row = self.tables.layout.rows(self.tables.accounts.array, "info", ENGINE_INFO)[0]
        return {name: int(row[name]) for name in ENGINE_INFO.names or ()}

    def close(self) -> None:
        """End the thread and give everything back. The cycle must be stopped."""
        self._orders.put(False)
        self._thread.join(10)
        for segment in self._mapped:
            segment.close()
        self.port.close()
        self.tables.close()


class HostEnd:
    """The host's end of one channel: its segment, its bell, and the channel a client would have."""

    def __init__(self, arenas: Arenas | None = None, capacity: int = CAPACITY) -> None:
        self.segment = create(channel_size(capacity, capacity), KIND_CHANNEL, header=True)
        initialise(self.segment.address, capacity, capacity)
        publish(self.segment)
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        shared = (capacity, capacity)
        self.arenas = arenas or Arenas(_no_memory)
        self.channel = Channel(self, self.arenas, self.segment.array, shared, self.bell, -1)

    @property
    def context(self) -> int:
        """What compiled host code takes."""
        return self.channel.context

    def forget(self, channel: PostingChannel) -> None:
        """Nothing to detach: the engine is closed first."""

    def close(self) -> None:
        """Give the segment and the bell back."""
        self.segment.close()
        os.close(self.bell)


def _no_memory(segment: Segment) -> int:
    raise MemoryError(f"this channel moves no memory, {segment.size} bytes were asked for")
