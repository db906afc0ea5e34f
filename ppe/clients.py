"""Clients as the control plane knows them: their channels, regions and mappings.

A client belongs to one engine. Whatever it handed over is checked here before the engine hears of
it: memory must be ordinary shared memory of the announced size; bells and wake sockets are made
here, because whoever shares a descriptor's flags could make the engine block on it.
"""

import contextlib
import errno
import os
import socket
import stat
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iscsi.wire.mover_spec import MoverSpec
from ppe.cycle.control_port import EngineSilent
from ppe.cycle.guard import Guards
from ppe.engine_thread import EngineThread
from shm.channel import ENGINE_CHANNEL, bind_engine, channel_size
from shm.segment import DIRECTORY, KIND_CHANNEL, Segment, check_header, map_descriptor, round_up


class Refused(Exception):
    """A client's request that is not granted; the text goes back to it."""


@dataclass(slots=True)
class Mapping:
    """One mapped segment of a client and its entry in the guard table."""

    segment: Segment
    guard: int


@dataclass(slots=True)
class ChannelHold:
    """What the control plane keeps for a channel."""

    mapping: Mapping
    bell: int
    wake: socket.socket


@dataclass(slots=True)
class Client:
    """One connected host process."""

    connection: socket.socket
    number: int
    pid: int
    uid: int
    engine: EngineThread
    channels: dict[int, ChannelHold] = field(default_factory=dict)
    regions: dict[int, Mapping] = field(default_factory=dict)
    memory: int = 0
    greeted: bool = False


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Pid and uid of whoever connected (SO_PEERCRED)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("3i", raw)
    return pid, uid


def _check_memory(descriptor: int, size: int) -> None:
    facts = os.fstat(descriptor)
    # Anything but tmpfs could make the engine wait for a disk or for another process.
    if not stat.S_ISREG(facts.st_mode) or facts.st_dev != DIRECTORY.stat().st_dev:
        raise Refused("memory must be a POSIX shared memory segment")
    if facts.st_size != round_up(size) or size <= 0:
        raise Refused(f"the segment has {facts.st_size} bytes, {size} were announced")
    if facts.st_blocks * 512 < size:
        raise Refused("the segment has holes: allocate it in full first (posix_fallocate)")


class Registry:
    """Attaches and detaches what clients ask for, on their engine."""

    def __init__(self, memory_limit: int) -> None:
        self._guards = Guards()
        self._memory_limit = memory_limit
        self._rows: dict[EngineThread, list[int]] = {}

    def add_engine(self, engine: EngineThread) -> None:
        """Rows 1.. of the engine's channel table are for clients."""
        count = int(engine.tables.limits.channels)
        self._rows[engine] = list(range(count - 1, 0, -1))

    def load(self, engine: EngineThread) -> int:
        """How many client channels an engine has."""
        return int(engine.tables.limits.channels) - 1 - len(self._rows[engine])

    def _map(self, client: Client, descriptor: int, size: int) -> Mapping:
        """Map a client's segment under guard. The descriptor stays the caller's."""
        _check_memory(descriptor, size)
        if client.memory + round_up(size) > self._memory_limit:
            raise Refused(
                f"a client may share {self._memory_limit >> 20} MiB and this one has "
                f"{client.memory >> 20}: free some, or start the engine with "
                "--limit-client-memory-bytes"
            )
        segment = map_descriptor(descriptor, round_up(size))
        segment.descriptor = -1  # The mapping is enough, and descriptors are scarce.
        try:
            guard = self._guards.add(segment.address, segment.size, client.number)
        except OSError as error:
            segment.close()
            raise Refused(str(error)) from error
        client.memory += segment.size
        return Mapping(segment, guard)

    def _unmap(self, client: Client, mapping: Mapping) -> None:
        self._guards.remove(mapping.guard)
        client.memory -= mapping.segment.size
        mapping.segment.close()

    def attach(
        self, client: Client, work: Any, events: Any, descriptors: list[int]
    ) -> tuple[int, list[int]]:
        """Make a channel. Returns its number and the two descriptors the client gets."""
        if len(descriptors) != 1 or not isinstance(work, int) or not isinstance(events, int):
            raise Refused("attach needs two capacities and one descriptor")
        try:
            size = channel_size(work, events)
        except ValueError as error:
            raise Refused(str(error)) from error
        if not self._rows[client.engine]:
            raise Refused("every channel of this engine is in use: raise --limit-channels")
        with contextlib.ExitStack() as undo:
            mapping = self._map(client, descriptors[0], size)
            undo.callback(self._unmap, client, mapping)
            try:
                check_header(mapping.segment, KIND_CHANNEL)
            except OSError as error:
                raise Refused(str(error.strerror)) from error
            bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, bell)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(ours.close)
            undo.callback(theirs.close)
            ours.shutdown(socket.SHUT_RD)
            given = os.dup(bell)
            undo.callback(os.close, given)
            try:
                row = self._attach_row(client, mapping, (work, events), bell, ours.fileno())
            except EngineSilent:
                undo.pop_all()  # It may still attach, and then it touches this memory.
                raise
            undo.pop_all()
        client.channels[row] = ChannelHold(mapping, bell, ours)
        return row, [given, theirs.detach()]

    def _attach_row(
        self, client: Client, mapping: Mapping, capacities: tuple[int, int], bell: int, wake: int
    ) -> int:
        rings = np.zeros(1, ENGINE_CHANNEL)
        bind_engine(int(rings.ctypes.data), mapping.segment.address, *capacities, wake)
        row = self._rows[client.engine].pop()
        try:
            client.engine.port.attach(row, rings, bell, client.number, client.pid, client.uid == 0)
        except OSError:
            self._rows[client.engine].append(row)
            raise
        return row

    def detach(self, client: Client, row: Any) -> None:
        """End a channel: its endpoints first, then its memory."""
        if row not in client.channels:
            raise Refused(f"channel {row} is not this client's")
        hold = client.channels.pop(row)
        client.engine.port.detach(row)
        client.engine.movers.forget(row)
        self._unmap(client, hold.mapping)
        hold.wake.close()
        os.close(hold.bell)
        self._rows[client.engine].append(row)

    def register(self, client: Client, size: Any, descriptors: list[int]) -> int:
        """Make a region of a segment. Returns its id."""
        if len(descriptors) != 1 or not isinstance(size, int):
            raise Refused("register needs a size and one descriptor")
        mapping = self._map(client, descriptors[0], size)
        try:
            region = client.engine.port.add_region(
                client.number, mapping.segment.address, mapping.segment.size
            )
        except OSError as error:
            self._unmap(client, mapping)
            raise Refused("every region of this engine is in use: raise --limit-regions") from error
        client.regions[region] = mapping
        return region

    def unregister(self, client: Client, region: Any) -> bool:
        """Forget a region. False while an operation uses it."""
        if region not in client.regions:
            raise Refused(f"region {region} is not this client's")
        if not client.engine.port.remove_region(region):
            return False
        self._unmap(client, client.regions.pop(region))
        return True

    def enable_mover(self, client: Client, row: Any, message: dict[str, Any]) -> None:
        """Have a connection of a channel become a datamover's (`iscsi.wire.mover_spec`)."""
        if row not in client.channels:
            raise Refused(f"channel {row} is not this client's")
        home = message.get("home")
        if not isinstance(home, list) or len(home) != 3 or home[0] not in client.regions:
            raise Refused("home is no (region, offset, length) of this client")
        names = ("endpoint", "words", "pool", "table")
        numbers = {name: message.get(name, 0) for name in names}
        if any(type(value) is not int or value < 0 for value in (*home, *numbers.values())):
            raise Refused("home, endpoint, words, pool and table are numbers")
        try:
            spec = MoverSpec.from_message(message)
            client.engine.movers.enable(
                row,
                numbers["endpoint"],
                spec,
                tuple(home),
                numbers["words"],
                numbers["pool"],
                numbers["table"],
            )
        except (ValueError, MemoryError, OSError) as error:
            raise Refused(f"this connection cannot be a datamover's: {error}") from error

    def make_pool(self, client: Client, row: Any) -> int:
        """An endpoint without a connection, for buffers. Its id."""
        if row not in client.channels:
            raise Refused(f"channel {row} is not this client's")
        try:
            return client.engine.port.make_pool(row)
        except OSError as error:
            raise Refused("every endpoint of this engine is in use") from error

    def make_table(self, client: Client, row: Any, count: Any) -> int:
        """A table of units that the engine serves itself. Its id."""
        if row not in client.channels or type(count) is not int:
            raise Refused(f"channel {row} is not this client's, or {count} is no number")
        try:
            return client.engine.movers.make_table(row, count)
        except (ValueError, OSError) as error:
            raise Refused(f"no table of units: {error}") from error

    def rdma(self, client: Client, row: Any, message: dict[str, Any]) -> dict[str, Any]:
        """What a client asks of its engine's RNIC (`ppe.cycle.rnics`)."""
        if row not in client.channels:
            raise Refused(f"channel {row} is not this client's")
        try:
            return client.engine.rnics.call(row, message)
        except (ValueError, MemoryError, OSError) as error:
            raise Refused(f"the RNIC refuses: {error}") from error

    def end(self, client: Client) -> None:
        """Take everything back from a client that left or died."""
        for row in list(client.channels):
            self.detach(client, row)
        for region in list(client.regions):
            if not client.engine.port.remove_region(region):
                # Cannot be: its channels are gone. Unmapping under an operation would be worse.
                raise OSError(errno.EBUSY, f"region {region} is in use without a channel")
            self._unmap(client, client.regions.pop(region))
        with contextlib.suppress(OSError):
            client.connection.close()
