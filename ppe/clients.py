"""Clients as the control plane knows them: their channels, regions and mappings.

A client has one engine by default, and may open channels to the others. Whatever it handed over is
checked here before an engine hears of it: memory must be ordinary shared memory of the announced
size; bells and wake sockets are made here, because whoever shares a descriptor's flags could make
the engine block on it.
"""

import contextlib
import errno
import os
import socket
import stat
import struct
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from iscsi.wire.mover_spec import MoverSpec
from ppe.cycle.control_port import EngineSilent
from ppe.cycle.guard import Guards
from ppe.engine_thread import EngineThread
from shm.channel import ENGINE_CHANNEL, bind_engine, channel_size, share_wake
from shm.segment import DIRECTORY, KIND_CHANNEL, Segment, check_header, map_descriptor, round_up

ROW_BITS: Final = 16


class Refused(Exception):
    """A client's request that is not granted; the text goes back to it."""


@dataclass(slots=True)
class Mapping:
    """One mapped segment of a client and its entry in the guard table."""

    segment: Segment
    guard: int


@dataclass(slots=True)
class Region:
    """A client's memory as engines know it: each has an id of its own for it. Clients name it by
    the id of their own engine.
    """

    mapping: Mapping
    ids: dict[int, int]  # by the engine's number


@dataclass(slots=True)
class ChannelHold:
    """What the control plane keeps for a channel: row `row` of an engine. `beside`: the channel in
    whose memory its wake word lies, if not in its own.
    """

    engine: EngineThread
    row: int
    mapping: Mapping
    bell: int
    wake: socket.socket
    beside: "ChannelHold | None"


@dataclass(slots=True)
class Client:
    """One connected host process."""

    connection: socket.socket
    number: int
    pid: int
    uid: int
    engine: EngineThread
    channels: dict[int, ChannelHold] = field(default_factory=dict)  # by number_of
    regions: dict[int, Region] = field(default_factory=dict)  # by the id of its own engine
    memory: int = 0
    greeted: bool = False


def number_of(engine: EngineThread, row: int) -> int:
    """What a client calls a channel."""
    return engine.number << ROW_BITS | row


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
                f"a client may share {self._memory_limit >> 20} MiB; this one has "
                f"{client.memory >> 20} and asks for {-(-size >> 20)} more: free some, or start "
                "the engine with a larger --limit-client-memory-bytes"
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

    def _engine(self, client: Client, number: Any) -> EngineThread:
        """The engine a client names, its own for None."""
        if number is None:
            return client.engine
        for engine in self._rows:
            if type(number) is int and engine.number == number:
                return engine
        raise Refused(f"there is no engine {number}: the numbers are 0 to {len(self._rows) - 1}")

    def _hold(self, client: Client, channel: Any) -> ChannelHold:
        """A channel of a client's."""
        hold = client.channels.get(channel) if type(channel) is int else None
        if hold is None:
            raise Refused(f"channel {channel} is not this client's")
        return hold

    def attach(
        self, client: Client, message: dict[str, Any], descriptors: list[int]
    ) -> tuple[int, list[int]]:
        """Make a channel. Returns its number and the two descriptors the client gets. `beside`
        names a channel of the client's whose wake word is to be this one's too.
        """
        work, events = message.get("work"), message.get("events")
        if len(descriptors) != 1 or type(work) is not int or type(events) is not int:
            raise Refused("attach needs two capacities and one descriptor")
        engine = self._engine(client, message.get("engine"))
        beside = message.get("beside")
        neighbour = None if beside is None else self._hold(client, beside)
        if neighbour is not None:
            neighbour = neighbour.beside or neighbour
        try:
            size = channel_size(work, events)
        except ValueError as error:
            raise Refused(str(error)) from error
        if not self._rows[engine]:
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
            hold = ChannelHold(engine, self._rows[engine].pop(), mapping, bell, ours, neighbour)
            undo.callback(self._rows[engine].append, hold.row)
            try:
                self._attach_row(client, hold, (work, events))
            except EngineSilent:
                undo.pop_all()  # It may still attach, and then it touches this memory.
                raise
            undo.pop_all()
        number = number_of(engine, hold.row)
        client.channels[number] = hold
        return number, [given, theirs.detach()]

    def _attach_row(self, client: Client, hold: ChannelHold, capacities: tuple[int, int]) -> None:
        rings = np.zeros(1, ENGINE_CHANNEL)
        shared = hold.mapping.segment.address
        address = int(rings.ctypes.data)
        bind_engine(address, shared, *capacities, hold.wake.fileno())
        if hold.beside is not None:
            share_wake(address, hold.beside.mapping.segment.address)
        hold.engine.port.attach(
            hold.row, rings, hold.bell, client.number, client.pid, client.uid == 0
        )

    def detach(self, client: Client, channel: Any) -> None:
        """End a channel: its endpoints first, then its memory."""
        hold = self._hold(client, channel)
        if any(other.beside is hold for other in client.channels.values()):
            raise Refused(f"channel {channel} has the wake word of others: detach those first")
        del client.channels[channel]
        hold.engine.rnics.leave(hold.row)
        hold.engine.port.detach(hold.row)
        hold.engine.rnics.left(hold.row)
        hold.engine.movers.forget(hold.row)
        self._unmap(client, hold.mapping)
        hold.wake.close()
        os.close(hold.bell)
        self._rows[hold.engine].append(hold.row)

    def register(self, client: Client, size: Any, descriptors: list[int]) -> int:
        """Make a region of a segment. Returns its id."""
        if len(descriptors) != 1 or type(size) is not int:
            raise Refused("register needs a size and one descriptor")
        mapping = self._map(client, descriptors[0], size)
        try:
            region = self._add_region(client, client.engine, mapping)
        except Refused:
            self._unmap(client, mapping)
            raise
        client.regions[region] = Region(mapping, {client.engine.number: region})
        return region

    def _add_region(self, client: Client, engine: EngineThread, mapping: Mapping) -> int:
        segment = mapping.segment
        try:
            return engine.port.add_region(client.number, segment.address, segment.size)
        except OSError as error:
            raise Refused("every region of this engine is in use: raise --limit-regions") from error

    def share(self, client: Client, region: Any, number: Any) -> int:
        """Have another engine know a region of a client's, too. Returns its id there."""
        engine = self._engine(client, number)
        found = client.regions.get(region) if type(region) is int else None
        if found is None:
            raise Refused(f"region {region} is not this client's")
        if engine.number not in found.ids:
            found.ids[engine.number] = self._add_region(client, engine, found.mapping)
        return found.ids[engine.number]

    def unregister(self, client: Client, region: Any) -> bool:
        """Forget a region. False while an operation uses it; those engines that did not use it have
        forgotten it then.
        """
        found = client.regions.get(region) if type(region) is int else None
        if found is None:
            raise Refused(f"region {region} is not this client's")
        for engine in sorted(self._rows, key=lambda each: each is client.engine):
            if engine.number in found.ids:
                if not engine.port.remove_region(found.ids[engine.number]):
                    return False
                del found.ids[engine.number]
        self._unmap(client, client.regions.pop(region).mapping)
        return True

    def move(self, client: Client, channel: Any, endpoint: Any, to: Any) -> int:
        """Have a connection on which nothing is outstanding become an endpoint of another channel
        of the client's, of whatever engine. Returns its id there. One that the other engine has no
        place for is closed.
        """
        source, target = self._hold(client, channel), self._hold(client, to)
        if type(endpoint) is not int or not 0 < endpoint < 1 << 31:
            raise Refused(f"{endpoint} names no endpoint")
        try:
            descriptor = source.engine.port.take_out(source.row, endpoint)
        except OSError as error:
            raise Refused(f"this endpoint cannot be moved: {error.strerror}") from error
        try:
            return target.engine.port.adopt(target.row, descriptor)
        except OSError as error:
            os.close(descriptor)
            raise Refused(f"the other engine has no place for it: {error.strerror}") from error

    def enable_mover(self, client: Client, channel: Any, message: dict[str, Any]) -> None:
        """Have a connection of a channel become a datamover's (`iscsi.wire.mover_spec`)."""
        hold = self._hold(client, channel)
        home = message.get("home")
        known = [found.ids.get(hold.engine.number) for found in client.regions.values()]
        if not isinstance(home, list) or len(home) != 3 or home[0] not in known:
            raise Refused("home is no (region, offset, length) of this client")
        names = ("endpoint", "words", "pool", "table")
        numbers = {name: message.get(name, 0) for name in names}
        if any(type(value) is not int or value < 0 for value in (*home, *numbers.values())):
            raise Refused("home, endpoint, words, pool and table are numbers")
        try:
            spec = MoverSpec.from_message(message)
            hold.engine.movers.enable(
                client.number,
                hold.row,
                numbers["endpoint"],
                spec,
                tuple(home),
                numbers["words"],
                numbers["pool"],
                numbers["table"],
            )
        except (ValueError, MemoryError, OSError) as error:
            raise Refused(f"this connection cannot be a datamover's: {error}") from error

    def make_pool(self, client: Client, channel: Any) -> int:
        """An endpoint without a connection, for buffers. Its id."""
        hold = self._hold(client, channel)
        try:
            return hold.engine.port.make_pool(hold.row)
        except OSError as error:
            raise Refused("every endpoint of this engine is in use") from error

    def make_table(self, client: Client, channel: Any, count: Any) -> int:
        """A table of units that the engine serves itself. Its id."""
        hold = self._hold(client, channel)
        if type(count) is not int:
            raise Refused(f"{count} is no number")
        try:
            return hold.engine.movers.make_table(hold.row, count)
        except (ValueError, OSError) as error:
            raise Refused(f"no table of units: {error}") from error

    def rdma(self, client: Client, channel: Any, message: dict[str, Any]) -> dict[str, Any]:
        """What a client asks of its engine's RNIC (`ppe.cycle.rnics`)."""
        hold = self._hold(client, channel)
        try:
            return hold.engine.rnics.call(client.number, hold.row, message)
        except (ValueError, MemoryError, OSError) as error:
            raise Refused(f"the RNIC refuses: {error}") from error

    def end(self, client: Client) -> None:
        """Take everything back from a client that left or died."""
        # Those that lie beside others came after these.
        for channel in reversed(list(client.channels)):
            self.detach(client, channel)
        for region in list(client.regions):
            if not self.unregister(client, region):
                # Cannot be: its channels are gone. Unmapping under an operation would be worse.
                raise OSError(errno.EBUSY, f"region {region} is in use without a channel")
        with contextlib.suppress(OSError):
            client.connection.close()
