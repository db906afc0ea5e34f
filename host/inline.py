"""The same API without a daemon: the engine's layers run in the caller's own thread.

The baseline that asymmetric multiprocessing is compared with, and the way to use the library
without setting anything up. The one module outside `ppe` that imports the cycle, and only when an
inline engine is asked for. Channel and engine must stay in one thread.
"""

import os
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import numpy as np

from host.channel import RING_CAPACITY, Channel, PostingChannel
from host.errors import EngineRefused, WrongThread
from host.memory import ARENA_SIZE, Arenas, Buffer
from iscsi.wire.mover_spec import MoverSpec
from ppe.cycle.control_port import ControlPort
from ppe.cycle.cycle import run
from ppe.cycle.movers import Movers
from ppe.cycle.records import IDLE_NAMES
from ppe.cycle.rnics import Rnics
from ppe.cycle.tables import EngineTables, Limits, Settings
from shm.channel import ENGINE_CHANNEL, bind_engine, channel_size, initialise
from shm.segment import KIND_CHANNEL, Segment, create, publish

CLIENT = 2
# Host and engine take turns in one thread, so nobody would ring for a parked channel.
NEVER_PARK_US = 1 << 40
MOVERS_BYTES_MAX = 1 << 30
RNICS_BYTES_MAX = 1 << 30
LIMITS = Limits(channels=16, endpoints=1024, operations=16384, regions=256)


class InlineHandle:
    """An engine that lives in the calling thread. Made by `host.connect("inline:")`."""

    inline = True

    def __init__(self, query: str = "", arena_size: int = ARENA_SIZE) -> None:
        options = {name: values[-1] for name, values in parse_qs(query).items()}
        idle = options.pop("idle", "sleep")
        readiness = options.pop("readiness", "auto")
        if options or idle not in IDLE_NAMES or readiness not in ("auto", "io_uring", "epoll"):
            raise ValueError(
                f"inline:?{query}: the options are idle={'|'.join(IDLE_NAMES)} and "
                "readiness=auto|io_uring|epoll"
            )
        self._thread, self._pid = threading.get_ident(), os.getpid()
        self._tables = EngineTables(
            LIMITS, Settings(idle=idle, readiness=readiness, park_after_us=NEVER_PARK_US)
        )
        self._port = ControlPort(self._tables, inline=True)
        self._port.start()
        self._rnics = Rnics(self._port, RNICS_BYTES_MAX, RNICS_BYTES_MAX)
        self._movers = Movers(self._port, MOVERS_BYTES_MAX, MOVERS_BYTES_MAX, self._rnics)
        self._arenas = Arenas(self._register, arena_size)
        self._channels: dict[PostingChannel, tuple[int, Segment, int]] = {}
        self._numbers = list(range(LIMITS.channels - 1, 0, -1))
        self._closed = False
        self.info: dict[str, Any] = {
            "pid": os.getpid(),
            "readiness": self._tables.poller_name,
            "idle": idle,
        }

    @property
    def is_running(self) -> bool:
        """Whether it was not closed."""
        return not self._closed

    def reopen(self) -> None:
        """Do nothing: this engine lives as long as its handle."""

    @property
    def tables(self) -> EngineTables:
        """The engine's tables, for experiments that look inside."""
        return self._tables

    def _check(self) -> None:
        if threading.get_ident() != self._thread or os.getpid() != self._pid:
            raise WrongThread("an inline engine runs in the thread that made it: connect here")

    def _register(self, segment: Segment) -> int:
        self._check()
        return self._port.add_region(CLIENT, segment.address, segment.size)

    def alloc(self, size: int) -> Buffer:
        """A buffer the engine may touch."""
        return self._arenas.alloc(size)

    @property
    def engine(self) -> int:
        """The number of its only engine."""
        return 0

    @property
    def engine_count(self) -> int:
        """How many engines there are in this thread."""
        return 1

    def channel(
        self,
        work: int = RING_CAPACITY,
        events: int = RING_CAPACITY,
        *,
        engine: int | None = None,
    ) -> Channel:
        """Open a channel; capacities are powers of two."""
        self._check()
        if engine not in (None, 0):
            raise EngineRefused(f"there is no engine {engine}: inline there is one")
        if not self._numbers:
            raise EngineRefused(f"an inline engine has {LIMITS.channels - 1} channels")
        segment = create(channel_size(work, events), KIND_CHANNEL, header=True)
        initialise(segment.address, work, events)
        publish(segment)
        bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        rings = np.zeros(1, ENGINE_CHANNEL)
        bind_engine(int(rings.ctypes.data), segment.address, work, events, -1)
        number = self._numbers.pop()
        self._port.attach(number, rings, bell, CLIENT, os.getpid(), True)
        channel = Channel(self, self._arenas, segment.array, (work, events), bell, -1)
        channel.run_inline(run.address, self._tables.address, self._tables.watch_descriptor)
        self._channels[channel] = (number, segment, bell)
        return channel

    def forget(self, channel: PostingChannel) -> None:
        """Detach a closed channel."""
        if os.getpid() != self._pid:
            self._channels.pop(channel)
            return  # A forked child: sockets, rings and the poller are the parent's.
        self._check()
        number, segment, bell = self._channels.pop(channel)
        self._rnics.leave(number)
        self._port.detach(number)
        self._rnics.left(number)
        self._movers.forget(number)
        self._numbers.append(number)
        segment.close()
        os.close(bell)

    def enable_mover(
        self, channel: PostingChannel, endpoint: int, message: dict[str, Any], **place: Any
    ) -> None:
        """Have the engine take over a connection of this channel (`iscsi.wire.mover_spec`).

        `place`: home, words and pool, by region. Raises EngineRefused.
        """
        self._check()
        number = self._channels[channel][0]
        home = tuple(place["home"])
        try:
            spec = MoverSpec.from_message(message)
            pool, table = place.get("pool", 0), place.get("table", 0)
            self._movers.enable(CLIENT, number, endpoint, spec, home, place["words"], pool, table)
        except (ValueError, MemoryError, OSError) as error:
            raise EngineRefused(f"this connection cannot be a datamover's: {error}") from error

    def make_pool(self, channel: PostingChannel) -> int:
        """An endpoint without a connection: buffers for several datamover endpoints."""
        self._check()
        return self._port.make_pool(self._channels[channel][0])

    def make_table(self, channel: PostingChannel, count: int) -> int:
        """A table of `count` units that the engine serves itself. Raises EngineRefused."""
        self._check()
        try:
            return self._movers.make_table(self._channels[channel][0], count)
        except (ValueError, OSError) as error:
            raise EngineRefused(f"no table of units: {error}") from error

    def rdma(self, channel: PostingChannel, do: str, **fields: Any) -> dict[str, Any]:
        """Ask something of the engine's RNIC for a channel (`ppe.cycle.rnics`).

        Raises EngineRefused.
        """
        self._check()
        try:
            return self._rnics.call(CLIENT, self._channels[channel][0], {"do": do, **fields})
        except (ValueError, MemoryError, OSError) as error:
            raise EngineRefused(f"the RNIC refuses: {error}") from error

    @property
    def on_free(self) -> list[Callable[[int, int], None]]:
        """Who is told the address and size of each buffer that is freed."""
        return self._arenas.on_free

    def accounts(self) -> list[Segment]:
        """The engine's accounts, as a daemon's are given; do not close them."""
        return [self._tables.accounts]

    def close(self) -> None:
        """Close every channel and the engine. Idempotent."""
        if self._closed:
            return
        if os.getpid() == self._pid:
            self._check()
        for channel in list(self._channels):
            channel.close()
        self._closed = True
        if os.getpid() != self._pid:
            return  # Closing the poller's copy would take the parent's sockets out of it.
        self._rnics.close()
        self._arenas.close()
        self._port.close()
        self._tables.close()

    def __enter__(self) -> "InlineHandle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
