"""The handle of an engine in another process: its control socket, channels and memory.

A watcher thread does nothing but wait for the control socket to hang up. When it does, every
channel is marked dead and its waiter woken: the death of an engine is noticed at once.
"""

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from host.channel import RING_CAPACITY, Channel, PostingChannel
from host.errors import (
    EngineDied,
    EngineForbidden,
    EngineMismatch,
    EngineNotRunning,
    EngineRefused,
    WrongThread,
)
from host.memory import ARENA_SIZE, Arenas, Buffer
from shm import messages
from shm.channel import channel_size, initialise
from shm.records import LAYOUT_HASH, STATE_DEAD, VERSION
from shm.rendezvous import NAME_FORM, socket_candidates
from shm.segment import KIND_CHANNEL, Segment, create, map_descriptor, publish


def _dial(name: str) -> socket.socket:
    if not NAME_FORM.fullmatch(name):
        raise EngineNotRunning(f"{name!r} cannot name an engine: use a-z 0-9 _ - or inline:")
    tried = socket_candidates(name)
    for path in tried:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            connection.close()
        except PermissionError as error:
            connection.close()
            raise EngineForbidden(
                f"{path} is not open to uid {os.geteuid()}: run as the engine's user"
            ) from error
        else:
            return connection
    places = " or ".join(str(path) for path in tried)
    raise EngineNotRunning(
        f"no engine named {name!r} listens at {places}: start it with "
        f"`ppe up --name {name}`, or use inline:"
    )


class EngineHandle:
    """A connection to an engine's control plane. Made by `host.connect(name)`."""

    inline = False

    def __init__(self, name: str, arena_size: int = ARENA_SIZE) -> None:
        self._pid, self._name = os.getpid(), name
        self._connection = _dial(name)
        self._calls = 0
        self._lock = threading.Lock()
        self._channels: dict[PostingChannel, tuple[int, Segment, int, int]] = {}
        self._dead = False
        self._stale: set[PostingChannel] = set()  # channels of an engine that is gone
        self._arenas = Arenas(self._register, arena_size)
        try:
            self.info = self._hello()
        except BaseException:
            self._connection.close()
            raise
        self._start_watching()

    def _hello(self) -> dict[str, Any]:
        return self._call({"call": "hello", "version": VERSION, "layout": LAYOUT_HASH})

    def _start_watching(self) -> None:
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        name = f"ppe-watch-{self._name}"
        self._watcher = threading.Thread(target=self._watch, name=name, daemon=True)
        self._watcher.start()

    def reopen(self) -> None:
        """Connect to the engine that now has the name of one that died, with the same memory.

        Buffers stay valid; channels do not: close them and open others. Does nothing while the
        engine is there. Raises what `host.connect` raises, and the handle stays as it was.
        """
        if not self._dead:
            return
        old, self._connection = self._connection, _dial(self._name)
        try:
            self.info = self._hello()
            self._arenas.register_again()
        except BaseException:
            self._connection.close()
            self._connection = old
            raise
        old.close()
        self._watcher.join()
        os.close(self._stop_read)
        os.close(self._stop_write)
        self._stale |= set(self._channels)
        self._dead = False
        self._start_watching()

    def _call(
        self, message: dict[str, Any], descriptors: list[int] | None = None
    ) -> dict[str, Any]:
        answer, received = self._call_with_descriptors(message, descriptors)
        messages.close_all(received)
        return answer

    def _call_with_descriptors(
        self, message: dict[str, Any], descriptors: list[int] | None = None
    ) -> tuple[dict[str, Any], list[int]]:
        """One question and its answer. Raises by what the engine says."""
        with self._lock:
            self._calls += 1
            try:
                messages.send(self._connection, {**message, "id": self._calls}, descriptors or [])
                answer, received = messages.receive(self._connection)
                while answer.get("id") != self._calls:  # of a call that Ctrl-C ended
                    messages.close_all(received)
                    answer, received = messages.receive(self._connection)
            except messages.ControlClosed as error:
                raise EngineDied("the engine closed the control socket: connect again") from error
        if "error" in answer:
            messages.close_all(received)
            kind = {"mismatch": EngineMismatch, "forbidden": EngineForbidden}
            raise kind.get(str(answer.get("kind")), EngineRefused)(answer["error"])
        return answer, received

    def _watch(self) -> None:
        poller = select.poll()
        poller.register(self._connection.fileno(), select.POLLRDHUP)
        poller.register(self._stop_read, select.POLLIN)
        ready = dict(poller.poll())
        if self._stop_read in ready:
            return
        self._dead = True
        for channel in list(self._channels):
            channel.mark(STATE_DEAD)

    @property
    def _is_inherited(self) -> bool:
        """Whether this is a forked child's copy of its parent's handle."""
        return os.getpid() != self._pid

    @property
    def is_running(self) -> bool:
        """Whether the engine's control socket is open."""
        return not self._dead

    def _register(self, segment: Segment) -> int:
        if self._is_inherited:
            raise WrongThread("this engine handle is the parent's: connect again in the child")
        answer = self._call({"call": "register", "size": segment.size}, [segment.descriptor])
        return int(answer["region"])

    def alloc(self, size: int) -> Buffer:
        """A buffer the engine may touch. Raises ValueError, SegmentError or EngineRefused."""
        return self._arenas.alloc(size)

    def channel(self, work: int = RING_CAPACITY, events: int = RING_CAPACITY) -> Channel:
        """Open a channel for the calling thread; capacities are powers of two.

        Raises ValueError for capacities that cannot be, EngineRefused when the engine is full.
        """
        if self._is_inherited:
            raise WrongThread("this engine handle is the parent's: connect again in the child")
        size = channel_size(work, events)
        segment = create(size, KIND_CHANNEL, header=True)
        initialise(segment.address, work, events)
        publish(segment)
        try:
            answer, (bell, wake) = self._call_with_descriptors(
                {"call": "attach", "work": work, "events": events}, [segment.descriptor]
            )
        except BaseException:
            segment.close()
            raise
        channel = Channel(self, self._arenas, segment.array, (work, events), bell, wake)
        self._channels[channel] = (int(answer["channel"]), segment, bell, wake)
        if self._dead:
            channel.mark(STATE_DEAD)
        return channel

    def forget(self, channel: PostingChannel) -> None:
        """Detach a closed channel; the engine lets go of its endpoints before this returns."""
        number, segment, bell, wake = self._channels.pop(channel)
        if not self._is_inherited:  # Else all of it is the parent's, and not even mapped here.
            if channel not in self._stale:
                with contextlib.suppress(EngineDied, EngineRefused):
                    self._call({"call": "detach", "channel": number})
            segment.close()
        self._stale.discard(channel)
        os.close(bell)
        os.close(wake)

    def enable_mover(
        self, channel: PostingChannel, endpoint: int, message: dict[str, Any], **place: Any
    ) -> None:
        """Have the engine take over a connection of this channel (`iscsi.wire.mover_spec`).

        `place`: home, words and pool, by region. Raises EngineRefused.
        """
        number = self._channels[channel][0]
        self._call({"call": "mover", "channel": number, "endpoint": endpoint, **message, **place})

    def make_pool(self, channel: PostingChannel) -> int:
        """An endpoint without a connection: buffers for several datamover endpoints."""
        return int(self._call({"call": "pool", "channel": self._channels[channel][0]})["pool"])

    def make_table(self, channel: PostingChannel, count: int) -> int:
        """A table of `count` units that the engine serves itself. Raises EngineRefused."""
        number = self._channels[channel][0]
        return int(self._call({"call": "table", "channel": number, "count": count})["table"])

    def rdma(self, channel: PostingChannel, do: str, **fields: Any) -> dict[str, Any]:
        """Ask something of the engine's RNIC for a channel (`ppe.cycle.rnics`).

        Raises EngineRefused.
        """
        number = self._channels[channel][0]
        return self._call({"call": "rdma", "channel": number, "do": do, **fields})

    @property
    def on_free(self) -> list[Callable[[int, int], None]]:
        """Who is told the address and size of each buffer that is freed."""
        return self._arenas.on_free

    def accounts(self) -> list[Segment]:
        """The accounts of each of its engines, mapped read-only; close them when done."""
        answer, descriptors = self._call_with_descriptors({"call": "accounts"})
        sizes = answer["sizes"]
        return [
            map_descriptor(descriptor, size, writable=False)
            for descriptor, size in zip(descriptors, sizes, strict=True)
        ]

    def order(self, call: str, **fields: Any) -> dict[str, Any]:
        """Ask the control plane something by name (`stat`, `stop`, ...)."""
        return self._call({"call": call, **fields})

    def close(self) -> None:
        """Close every channel and the connection. Idempotent."""
        for channel in list(self._channels):
            channel.close()
        if self._connection.fileno() >= 0:
            if not self._is_inherited:
                os.write(self._stop_write, b".")
                self._watcher.join()
            self._connection.close()
            os.close(self._stop_read)
            os.close(self._stop_write)
            if not self._is_inherited:
                self._arenas.close()

    def __enter__(self) -> "EngineHandle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
