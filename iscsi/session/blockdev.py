"""A LUN as a block device, blocking or in asyncio.

Memory from `alloc` is read into and written from in place; other memory goes through a buffer of
the device's own, and `copied_bytes` counts what that cost. An error of the target never leaves the
device unusable, and a lost connection is made again; only when that is given up every later call
raises why.
"""

import asyncio
import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from numpy.typing import NDArray

import host
from host.memory import Buffer
from iscsi.session import commands, doors, unit
from iscsi.session.aio import AsyncSession
from iscsi.session.errors import SessionClosed
from iscsi.session.gather import (
    COPY_BELOW,
    COPY_BELOW_ALONE,
    Gather,
    Piece,
    check_overlaps,
    gathers,
)
from iscsi.session.geometry import BOUNCE_SIZE, Geometry, as_bytes, geometry_of
from iscsi.session.initiator import InitiatorSession
from iscsi.session.job_records import JOBS_MAX
from iscsi.session.options import Timeouts
from iscsi.session.steps import Steps
from iscsi.wire.discovery import DiscoveredTarget
from iscsi.wire.mover import VECTORS_MAX
from iscsi.wire.scsi_data import InquiryData
from iscsi.wire.url import IscsiUrl, TargetNameError, parse_url
from shm.view import address_of

DISCOVER: Final = "discover"
ASYNC_INLINE: Final = host.INLINE + "?readiness=epoll"


def _unit_url(url: str | IscsiUrl) -> IscsiUrl:
    parsed = parse_url(url) if isinstance(url, str) else url
    if parsed.target is None:
        wanted = "iscsi://host[:port]/target-name/lun"
        raise TargetNameError(f"{parsed} names no target: expected {wanted}")
    return parsed


def _portal_options(options: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether the portals are to be asked for, and the options without that wish."""
    asks = options.get("portals") == DISCOVER
    return asks, {**options, "portals": ()} if asks else options


def _portal_of(url: IscsiUrl) -> IscsiUrl:
    return replace(url, target=None, lun=None)


def _others(found: list[DiscoveredTarget], url: IscsiUrl) -> tuple[str, ...]:
    """The addresses of the URL's target in a list of targets."""
    return tuple(
        portal.address for one in found if one.name == url.target for portal in one.portals
    )


class Device(commands.Commands):
    """What both kinds of device have: the unit's shape, its commands, its limits in time."""

    def __init__(
        self,
        session: InitiatorSession | AsyncSession,
        facts: unit.UnitFacts,
        engine: Any,
        owns_engine: bool,
    ) -> None:
        self.core = session.core
        self._engine, self._owns_engine = engine, owns_engine
        self.inquiry: InquiryData = facts.inquiry
        self.core.limits, self.core.capacity = facts.limits, facts.capacity
        self.core.patience.removable = facts.inquiry.removable
        self.geometry: Geometry = geometry_of(facts, self.core.options.command_bytes)
        self.copied_bytes = 0

    @property
    def timeouts(self) -> Timeouts:
        """The time limits in force. Assign others to change them while the device is used."""
        return self.core.timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        self.core.timeouts = timeouts

    @property
    def recoveries(self) -> int:
        """How often the connection was lost and made again."""
        return self.core.recoveries

    @property
    def block_size(self) -> int:
        """Bytes of one block."""
        return self.geometry.block_size

    @property
    def block_count(self) -> int:
        """How many blocks there are."""
        return self.geometry.block_count

    @property
    def size(self) -> int:
        """Bytes of the device."""
        return self.geometry.size

    @property
    def url(self) -> str:
        """Where it is, without credentials."""
        return str(self.core.url)

    def alloc(self, size: int) -> Buffer:
        """Memory that is read into and written from without a copy; `free` it before `close`."""
        buffer: Buffer = self._engine.alloc(size)
        return buffer

    def _check_open(self) -> None:
        if self.core.is_closed:
            raise SessionClosed("this device is closed")

    def _is_shared(self, address: int, size: int) -> bool:
        self._check_open()
        return bool(doors.is_shared(self.core.channel.context, address, size))

    def _pieces(self, lba: int, arrays: list[NDArray[Any]]) -> list[Piece]:
        """Arrays as pieces of one transfer from `lba` on. Raises ValueError, OutOfRange."""
        blocks = self.geometry.blocks_of(sum(array.nbytes for array in arrays))
        self.geometry.check(lba, blocks)
        lies = [(address_of(array), array.nbytes) for array in arrays if array.nbytes]
        is_alone = self.core.url.is_iser and len(lies) > 1
        least = COPY_BELOW_ALONE if is_alone else COPY_BELOW
        return [
            Piece(address, size, size >= least and self._is_shared(address, size))
            for address, size in lies
        ]

    def _gathers(self, pieces: list[Piece], bounce_size: int) -> Iterator[Gather]:
        per_command = self.geometry.blocks_per_command
        most = 1 if self.core.url.is_iser else VECTORS_MAX  # a tag opens one piece of memory
        return gathers(pieces, self.block_size, per_command, bounce_size, most)

    def _what(self, lba: int, blocks: int, address: int, is_write: bool) -> dict[str, Any]:
        """The arguments of a transfer."""
        return {
            "is_write": is_write,
            "lba": lba,
            "blocks": blocks,
            "block_size": self.block_size,
            "per_command": self.geometry.blocks_per_command,
            "address": address,
        }


class BlockDevice(Device):
    """An open LUN. Made by `iscsi.open`; belongs to the thread that opened it.

    Its connection is looked after during its calls only: one that was lost in between is made again
    by the next call, and a target that asks for signs of life gets none meanwhile. Who cannot have
    that (because of a RESERVE, which ends with the connection) calls `session.ping` now and then,
    or uses `iscsi.aopen`, whose loop looks after the connection all the time.
    """

    def __init__(self, session: InitiatorSession, engine: Any, *, owns_engine: bool) -> None:
        super().__init__(session, session.examine(), engine, owns_engine)
        self.session = session
        self._bounce: Buffer | None = None

    def _run(self, steps: Steps[Any]) -> Any:
        self._check_open()
        return self.session.perform(steps)

    def read(self, lba: int, blocks: int) -> bytes:
        """`blocks` blocks from `lba`. Raises OutOfRange, ScsiError, ConnectionLost, ..."""
        self.geometry.check(lba, blocks)
        found = bytearray(blocks * self.block_size)
        self.readinto(lba, found)
        return bytes(found)

    def readinto(self, lba: int, buffer: Any) -> int:
        """Fill a Buffer, array or other writable memory from `lba`. Bytes read.

        Raises ValueError for memory that is not whole blocks.
        """
        array = as_bytes(buffer, writable=True)
        return self._move(lba, address_of(array), array.nbytes, is_write=False)

    def write(self, lba: int, data: Any) -> int:
        """Write whole blocks of bytes, an array or a Buffer from `lba` on. Bytes written."""
        array = as_bytes(data, writable=False)
        return self._move(lba, address_of(array), array.nbytes, is_write=True)

    def _move(self, lba: int, address: int, size: int, *, is_write: bool) -> int:
        blocks = self.geometry.blocks_of(size)
        self.geometry.check(lba, blocks)
        if self._is_shared(address, size):
            return self._transfer(lba, blocks, address, is_write)
        step = max(BOUNCE_SIZE // self.block_size, 1)
        bounce = self._bounce_buffer(min(size, step * self.block_size))
        for done in range(0, blocks, step):
            count = min(step, blocks - done)
            theirs, length = address + done * self.block_size, count * self.block_size
            if is_write:
                ctypes.memmove(bounce.address, theirs, length)
            self._transfer(lba + done, count, bounce.address, is_write)
            if not is_write:
                ctypes.memmove(theirs, bounce.address, length)
            self.copied_bytes += length
        return size

    def readv(self, lba: int, buffers: Iterable[Any]) -> int:
        """Fill several pieces of writable memory one after the other from `lba`. Bytes read.

        They may be of any lengths that are whole blocks together. Raises ValueError if they are
        not, or overlap.
        """
        arrays = [as_bytes(buffer, writable=True) for buffer in buffers]
        pieces = self._pieces(lba, arrays)
        check_overlaps(pieces)
        return self._move_pieces(lba, pieces, is_write=False)

    def writev(self, lba: int, buffers: Iterable[Any]) -> int:
        """Write several pieces of memory one after the other from `lba` on. Bytes written.

        They may be of any lengths that are whole blocks together. Raises ValueError if not.
        """
        arrays = [as_bytes(buffer, writable=False) for buffer in buffers]
        return self._move_pieces(lba, self._pieces(lba, arrays), is_write=True)

    def _move_pieces(self, lba: int, pieces: list[Piece], *, is_write: bool) -> int:
        moved, step = 0, max(BOUNCE_SIZE, self.block_size)
        for gather in self._gathers(pieces, step):
            base = self._bounce_buffer(gather.bounce).address if gather.bounce else 0
            gather.place(base)
            if is_write:
                gather.copy_in(base)
            what = self._what(lba, gather.blocks, 0, is_write)
            moved += self.session.transfer(**what, gather=gather)
            if not is_write:
                gather.copy_out(base)
            self.copied_bytes += gather.bounce
            lba += gather.blocks
        return moved

    def _transfer(self, lba: int, blocks: int, address: int, is_write: bool) -> int:
        return self.session.transfer(**self._what(lba, blocks, address, is_write))

    def _bounce_buffer(self, size: int) -> Buffer:
        if self._bounce is None or len(self._bounce) < size:
            if self._bounce is not None:
                self._bounce.free()
                self._bounce = None
            self._bounce = self._engine.alloc(size)
        return self._bounce

    def flush(self) -> None:
        """Have everything written reach the medium (SYNCHRONIZE CACHE)."""
        self._check_open()
        self.synchronize_cache()

    def reconnect(self) -> None:
        """Drop the connection and make it again now; nothing is lost by it."""
        self._check_open()
        self.session.reconnect()

    def close(self) -> None:
        """Log out and give everything back, memory from `alloc` excepted. Idempotent."""
        self.session.close()
        if self._bounce is not None:
            self._bounce.free()
            self._bounce = None
        if self._owns_engine:
            self._engine.close()

    def __enter__(self) -> "BlockDevice":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open(url: str | IscsiUrl, engine: Any = host.INLINE, **options: Any) -> BlockDevice:
    """Open the LUN a URL names, through an engine's handle or the engine of that name.

    `options` are those of `iscsi.session.options.Options` (queue_depth, timeouts, recovery, ...);
    `portals="discover"` asks the portal for the target's other ones. Raises UrlError, NotSupported,
    OSError, LoginTimeout, LoginRejected, NoSuchUnit, ScsiError, RemoteProtocolError and host
    errors; nothing is left behind.
    """
    parsed = _unit_url(url)
    owns_engine = isinstance(engine, str)
    handle = host.connect(engine) if owns_engine else engine
    session = None
    asks, options = _portal_options(options)
    try:
        if asks:
            with InitiatorSession(handle, _portal_of(parsed), **options) as asked:
                options["portals"] = _others(asked.discover(), parsed)
        session = InitiatorSession(handle, parsed, **options)
        return BlockDevice(session, handle, owns_engine=owns_engine)
    except BaseException:
        if session is not None:
            session.close()
        if owns_engine:
            handle.close()
        raise


class AsyncBlockDevice(Device):
    """An open LUN in an event loop; any number of reads and writes may be under way.

    Made by `iscsi.aopen`. Writes of the same blocks take place in the order of their calls; reads
    are ordered by nobody.
    """

    def __init__(
        self, session: AsyncSession, facts: unit.UnitFacts, engine: Any, *, owns_engine: bool
    ) -> None:
        super().__init__(session, facts, engine, owns_engine)
        self.session = session
        self._places = asyncio.Semaphore(JOBS_MAX)  # A call has one job at a time.

    def _run(self, steps: Steps[Any]) -> Any:
        self._check_open()
        return self._perform(steps)

    async def _perform(self, steps: Steps[Any]) -> Any:
        async with self._places:
            return await self.session.perform(steps)

    async def read(self, lba: int, blocks: int) -> bytes:
        """`blocks` blocks from `lba`."""
        self.geometry.check(lba, blocks)
        found = bytearray(blocks * self.block_size)
        await self.readinto(lba, found)
        return bytes(found)

    async def readinto(self, lba: int, buffer: Any) -> int:
        """Fill writable memory from `lba`. Bytes read."""
        array = as_bytes(buffer, writable=True)
        return await self._move(lba, address_of(array), array.nbytes, is_write=False)

    async def write(self, lba: int, data: Any) -> int:
        """Write whole blocks from `lba` on. Bytes written."""
        array = as_bytes(data, writable=False)
        return await self._move(lba, address_of(array), array.nbytes, is_write=True)

    async def _move(self, lba: int, address: int, size: int, *, is_write: bool) -> int:
        blocks = self.geometry.blocks_of(size)
        self.geometry.check(lba, blocks)
        if self._is_shared(address, size):
            return await self._transfer(lba, blocks, address, is_write)
        with self._engine.alloc(size) as bounce:
            if is_write:
                ctypes.memmove(bounce.address, address, size)
            await self._transfer(lba, blocks, bounce.address, is_write)
            if not is_write:
                ctypes.memmove(address, bounce.address, size)
        self.copied_bytes += size
        return size

    async def readv(self, lba: int, buffers: Iterable[Any]) -> int:
        """Fill several pieces of memory: `BlockDevice.readv`."""
        arrays = [as_bytes(buffer, writable=True) for buffer in buffers]
        pieces = self._pieces(lba, arrays)
        check_overlaps(pieces)
        return await self._move_pieces(lba, pieces, is_write=False)

    async def writev(self, lba: int, buffers: Iterable[Any]) -> int:
        """Write several pieces of memory: `BlockDevice.writev`."""
        arrays = [as_bytes(buffer, writable=False) for buffer in buffers]
        return await self._move_pieces(lba, self._pieces(lba, arrays), is_write=True)

    async def _move_pieces(self, lba: int, pieces: list[Piece], *, is_write: bool) -> int:
        size = sum(piece.length for piece in pieces)
        (gather,) = self._gathers(pieces, size)  # Its writes keep their order with others' so.
        with self._engine.alloc(max(gather.bounce, 1)) as bounce:
            gather.place(bounce.address)
            if is_write:
                gather.copy_in(bounce.address)
            what = self._what(lba, gather.blocks, 0, is_write)
            moved: int = await self._perform(self.core.transfer(**what, gather=gather))
            if not is_write:
                gather.copy_out(bounce.address)
        self.copied_bytes += gather.bounce
        return moved

    async def _transfer(self, lba: int, blocks: int, address: int, is_write: bool) -> int:
        what = self._what(lba, blocks, address, is_write)
        moved: int = await self._perform(self.core.transfer(**what))
        return moved

    async def flush(self) -> None:
        """Have everything written reach the medium."""
        await self.synchronize_cache()

    async def reconnect(self) -> None:
        """Drop the connection and make it again now; nothing is lost by it."""
        self._check_open()
        await self.session.reconnect()

    async def close(self) -> None:
        """Log out and give everything back. Idempotent."""
        await self.session.close()
        if self._owns_engine:
            self._engine.close()

    async def __aenter__(self) -> "AsyncBlockDevice":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def aopen(url: str | IscsiUrl, engine: Any = host.INLINE, **options: Any) -> AsyncBlockDevice:
    """`open` for asyncio: login and inquiry hold the loop up no more than reads do."""
    parsed = _unit_url(url)
    owns_engine = isinstance(engine, str)
    # An event loop can watch an inline engine's epoll descriptor, and not its io_uring.
    name = ASYNC_INLINE if engine == host.INLINE else engine
    handle = host.connect(name) if owns_engine else engine
    session = None
    asks, options = _portal_options(options)
    try:
        if asks:
            asked = await AsyncSession.open(handle, _portal_of(parsed), **options)
            try:
                options["portals"] = _others(await asked.discover(), parsed)
            finally:
                await asked.close()
        session = await AsyncSession.open(handle, parsed, **options)
        facts = await session.examine()
        return AsyncBlockDevice(session, facts, handle, owns_engine=owns_engine)
    except BaseException:
        if session is not None:
            await session.close()
        if owns_engine:
            handle.close()
        raise
