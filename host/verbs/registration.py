"""Registration strategies behind one interface, so that an endpoint can choose by how its buffers
are used again: registered on the fly, kept in a pin-down cache, taken from a pool that is
registered once, lent through memory windows, or paged on demand where a device can.

The rule of all: memory is registered exactly as long as a lease on it, or the strategy itself,
needs it, and never longer than the memory is there.
"""

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from host.memory import Buffer
from host.verbs.cq import CompletionQueue
from host.verbs.memory import MemoryRegion, ProtectionDomain, span_of
from host.verbs.qp import QueuePair
from host.verbs.work import SendWr, Sge
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_ON_DEMAND,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    WR_LOCAL_INV,
)

Memory = Buffer | NDArray[Any]
REMOTE = ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE | ACCESS_REMOTE_ATOMIC


@dataclass(slots=True)
class Counters:
    """What a strategy has done, and what it holds now."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    invalidations: int = 0  # because the memory went away
    bypasses: int = 0  # leases that the limits kept out of the cache
    registrations: int = 0
    deregistrations: int = 0
    bytes_copied: int = 0
    bytes_pinned: int = 0
    bytes_pinned_max: int = 0
    leases: int = 0

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)

    def pinned(self, change: int) -> None:
        """More or less memory is registered."""
        self.bytes_pinned += change
        self.bytes_pinned_max = max(self.bytes_pinned_max, self.bytes_pinned)


@dataclass(slots=True, eq=False)
class Lease:
    """The use of registered memory for a while. `addr` and `lkey`, and for peers `remote_addr` and
    `rkey`, name `array`, which is the caller's memory, or a place of the pool's that stands for
    it: then `load` before the data is sent, `store` after it came.
    """

    array: NDArray[Any]
    addr: int
    remote_addr: int
    lkey: int
    rkey: int
    _end: Callable[["Lease"], None] = field(repr=False)
    _memory: NDArray[Any] | None = field(repr=False, default=None)
    released: bool = False

    @property
    def length(self) -> int:
        """Bytes."""
        return int(self.array.nbytes)

    def sge(self, offset: int = 0, length: int | None = None) -> Sge:
        """A piece of it, for a work request of ours."""
        size = self.length - offset if length is None else length
        return Sge(self.addr + offset, size, self.lkey)

    def load(self) -> None:
        """Copy the caller's memory into the pool's; nothing if they are the same."""
        if self._memory is not None:
            np.copyto(self.array, self._memory)

    def store(self) -> None:
        """The other way."""
        if self._memory is not None:
            np.copyto(self._memory, self.array)

    def release(self) -> None:
        """The end of the use. Raises ValueError the second time."""
        if self.released:
            raise ValueError("this lease was released already")
        self.released = True
        self._end(self)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.released:
            self.release()


class Registrar(Protocol):
    """A strategy. `close` gives everything back; nothing may be leased any more then."""

    counters: Counters

    def acquire(self, memory: Memory, access: int = ACCESS_LOCAL_WRITE) -> Lease:
        """The use of memory with these rights. Raises ValueError, OSError as `reg_mr` does."""

    def forget(self, address: int, size: int) -> None:
        """That memory is about to go away, or to be somebody else's."""

    def close(self) -> None:
        """Give everything back."""


def flat(memory: Memory) -> NDArray[Any]:
    """Memory as the bytes it is."""
    array = memory.lend() if isinstance(memory, Buffer) else memory
    span_of(array)
    return array.reshape(-1).view(np.uint8)


class OnTheFly:
    """Registered for each lease, taken back with it: nothing is exposed longer than it is used."""

    def __init__(self, pd: ProtectionDomain) -> None:
        self._pd, self.counters = pd, Counters()
        self._regions: dict[Lease, MemoryRegion] = {}

    def acquire(self, memory: Memory, access: int = ACCESS_LOCAL_WRITE) -> Lease:
        """Register it."""
        array = flat(memory)
        region = self._pd.reg_mr(array, access)
        self.counters.misses += 1
        self.counters.registrations += 1
        self.counters.leases += 1
        self.counters.pinned(region.length)
        place = region.addr, region.remote_addr
        lease = Lease(array, *place, region.lkey, region.rkey, self._release)
        self._regions[lease] = region
        return lease

    def _release(self, lease: Lease) -> None:
        region = self._regions.pop(lease)
        region.dereg()
        self.counters.deregistrations += 1
        self.counters.leases -= 1
        self.counters.pinned(-region.length)

    def forget(self, address: int, size: int) -> None:
        """Nothing outlives its lease."""

    def close(self) -> None:
        """Take back what is still leased."""
        for lease in list(self._regions):
            lease.release()


@dataclass(slots=True, eq=False)
class _Slab:
    """One size class: `count` places in one registered buffer."""

    size: int
    buffer: Buffer
    region: MemoryRegion
    free: list[int]


class PreRegistered:
    """Slabs that are registered once; a lease is a place of the smallest class that fits. `take`
    gives a place to work in directly; `acquire` of memory elsewhere lends a place that stands for
    it, to `load` and `store`.
    """

    def __init__(
        self,
        pd: ProtectionDomain,
        classes: Sequence[tuple[int, int]] = ((4096, 64), (65536, 32), (1 << 20, 4)),
        access: int = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE,
    ) -> None:
        if not classes or any(size < 1 or count < 1 for size, count in classes):
            raise ValueError(f"a pool needs classes of (size, count), not {classes}")
        self._access, self.counters = access, Counters()
        self._slabs: list[_Slab] = []
        self._leased: dict[Lease, tuple[_Slab, int] | None] = {}
        for size, count in sorted(classes):
            buffer = pd.device.engine.alloc(size * count)
            region = pd.reg_mr(buffer, access)
            self.counters.registrations += 1
            self.counters.pinned(size * count)
            self._slabs.append(_Slab(size, buffer, region, list(range(count - 1, -1, -1))))

    @property
    def free(self) -> dict[int, int]:
        """How many places of each size are free."""
        return {slab.size: len(slab.free) for slab in self._slabs}

    def take(self, size: int) -> Lease:
        """A place of at least `size` bytes. Raises OSError ENOBUFS when all are taken."""
        for slab in self._slabs:
            if slab.size >= size and slab.free:
                place = slab.free.pop()
                self.counters.hits += 1
                return self._lend(slab, place, size, None)
        self.counters.misses += 1
        raise OSError(errno.ENOBUFS, f"no place of {size} bytes is free in the pool")

    def acquire(self, memory: Memory, access: int = ACCESS_LOCAL_WRITE) -> Lease:
        """Memory of the pool as it is; a place that stands for memory elsewhere."""
        if access & ~self._access:
            raise OSError(errno.EACCES, "the pool was registered without these rights")
        array = flat(memory)
        start, size = span_of(array)
        for slab in self._slabs:
            if slab.region.addr <= start and start + size <= slab.region.addr + slab.region.length:
                self.counters.hits += 1
                self.counters.leases += 1
                keys = slab.region.lkey, slab.region.rkey
                lease = Lease(array, start, slab.region.remote(start), *keys, self._release)
                self._leased[lease] = None
                return lease
        lease = self.take(size)
        lease._memory = array
        self.counters.bytes_copied += size
        return lease

    def _lend(self, slab: _Slab, place: int, size: int, memory: NDArray[Any] | None) -> Lease:
        at = place * slab.size
        array = slab.buffer.array[at : at + size]
        self.counters.leases += 1
        lease = Lease(
            array,
            slab.region.addr + at,
            slab.region.remote_addr + at,
            slab.region.lkey,
            slab.region.rkey,
            self._release,
            memory,
        )
        self._leased[lease] = (slab, place)
        return lease

    def _release(self, lease: Lease) -> None:
        where = self._leased.pop(lease)
        self.counters.leases -= 1
        if where is not None:
            where[0].free.append(where[1])

    def forget(self, address: int, size: int) -> None:
        """The pool's memory is its own."""

    def close(self) -> None:
        """Take everything back. Raises ValueError while something is leased."""
        if self._leased:
            raise ValueError(f"{len(self._leased)} leases of this pool are in use")
        for slab in self._slabs:
            slab.region.dereg()
            slab.buffer.free()
            self.counters.deregistrations += 1
            self.counters.pinned(-slab.region.length)
        self._slabs.clear()


class Windows:
    """One registration of a whole buffer; each lease with remote rights is a memory window on a
    piece of it, bound by a work request instead of a registration. `cq` is the queue pair's send
    CQ.
    """

    def __init__(self, qp: QueuePair, cq: CompletionQueue, buffer: Buffer) -> None:
        if not qp.device.query().memory_windows:
            raise OSError(errno.EOPNOTSUPP, f"{qp.device.query().name} has no memory windows")
        self._qp, self._cq, self.counters = qp, cq, Counters()
        access = ACCESS_LOCAL_WRITE | ACCESS_MW_BIND
        self._region = qp.pd.reg_mr(buffer, access)
        self.counters.registrations += 1
        self.counters.pinned(self._region.length)
        self._idle: list[Any] = []
        self._leased: dict[Lease, Any] = {}

    def acquire(self, memory: Memory, access: int = ACCESS_LOCAL_WRITE) -> Lease:
        """Bind a window to a piece of the buffer. Raises ValueError for memory outside it."""
        array = flat(memory)
        start, size = span_of(array)
        region = self._region
        if start < region.addr or start + size > region.addr + region.length:
            raise ValueError("that memory is not of the buffer whose windows these are")
        self.counters.leases += 1
        if not access & REMOTE:
            lease = Lease(array, start, 0, region.lkey, 0, self._release)
            self._leased[lease] = None
            return lease
        window = self._idle.pop() if self._idle else self._qp.pd.alloc_mw()
        wr_id = self._qp.device.ids.new()
        if not self._qp.bind_mw(
            window, Sge(start, size, region.lkey), access & REMOTE, wr_id=wr_id
        ):
            self.counters.leases -= 1
            self._idle.append(window)
            raise BlockingIOError("the send queue is full: poll completions first")
        window.rkey = self._cq.complete(wr_id).check().new_rkey
        self.counters.misses += 1
        place = start, region.remote(start)
        lease = Lease(array, *place, region.lkey, window.rkey, self._release)
        self._leased[lease] = window
        return lease

    def _release(self, lease: Lease) -> None:
        window = self._leased.pop(lease)
        self.counters.leases -= 1
        if window is None:
            return
        wr_id = self._qp.device.ids.new()
        wr = SendWr(WR_LOCAL_INV, wr_id=wr_id, invalidate_rkey=window.rkey)
        if not self._qp.post_send(wr):
            raise BlockingIOError("the send queue is full: poll completions first")
        self._cq.complete(wr_id).check()
        self._idle.append(window)

    def forget(self, address: int, size: int) -> None:
        """The buffer is its owner's, who closes this first."""

    def close(self) -> None:
        """Take everything back. Raises ValueError while something is leased."""
        if self._leased:
            raise ValueError(f"{len(self._leased)} leases of these windows are in use")
        for window in self._idle:
            window.dealloc()
        self._idle.clear()
        self._region.dereg()
        self.counters.deregistrations += 1
        self.counters.pinned(-self._region.length)


class OnDemand(OnTheFly):
    """Registered without pinning, where the device pages on demand. No device here can: what it
    costs was not measured.
    """

    def __init__(self, pd: ProtectionDomain) -> None:
        if not pd.device.query().on_demand_paging:
            raise OSError(
                errno.EOPNOTSUPP,
                f"{pd.device.query().name} does not page on demand: "
                f"{os.strerror(errno.EOPNOTSUPP)}; use another strategy",
            )
        super().__init__(pd)

    def acquire(self, memory: Memory, access: int = ACCESS_LOCAL_WRITE) -> Lease:
        """Register it for paging on demand."""
        return super().acquire(memory, access | ACCESS_ON_DEMAND)
