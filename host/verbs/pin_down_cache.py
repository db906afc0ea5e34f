"""The pin-down cache: registrations outlive their use, and are looked up by the memory they
cover. One strategy of `host.verbs.registration`.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from host.verbs.memory import MemoryRegion, ProtectionDomain, span_of
from host.verbs.registration import Counters, Lease, Memory, flat
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
)


@dataclass(slots=True, eq=False)
class _Entry:
    """A cached registration."""

    start: int
    end: int
    access: int
    region: MemoryRegion
    users: int = 0
    gone: bool = False  # its memory went away: no more hits, taken back with the last lease


class PinDownCache:
    """Registrations are kept after their use, for the next use of memory inside them (Tezuka et
    al., "Pin-down cache", 1998). The least recently used go when a limit is reached.

    `watch`: have the handle's buffers tell when they are freed, and forget them then.
    """

    def __init__(
        self,
        pd: ProtectionDomain,
        *,
        max_regions: int = 1024,
        max_bytes: int = 1 << 30,
        watch: bool = True,
    ) -> None:
        if max_regions < 1 or max_bytes < 1:
            raise ValueError(f"a cache of {max_regions} regions, {max_bytes} bytes keeps nothing")
        self._pd, self.counters = pd, Counters()
        self._max_regions, self._max_bytes = max_regions, max_bytes
        self._starts: list[int] = []
        self._entries: list[_Entry] = []  # by start
        self._longest = 0
        self._idle: OrderedDict[_Entry, None] = OrderedDict()  # oldest first
        self._leased: dict[Lease, _Entry] = {}
        self._watched = pd.device.engine.on_free if watch else None
        if self._watched is not None:
            self._watched.append(self.forget)

    @property
    def regions(self) -> int:
        """How many registrations it holds."""
        return len(self._entries)

    def acquire(self, memory: Memory, access: int = ACCESS_LOCAL_WRITE) -> Lease:
        """A cached registration that covers it with at least these rights, or a new one."""
        array = flat(memory)
        start, size = span_of(array)
        entry = self._find(start, start + size, access)
        if entry is None:
            self.counters.misses += 1
            entry = self._add(array, start, size, access)
        else:
            self.counters.hits += 1
        entry.users += 1
        self._idle.pop(entry, None)
        self.counters.leases += 1
        region = entry.region
        place = start, region.remote(start)
        lease = Lease(array, *place, region.lkey, region.rkey, self._release)
        self._leased[lease] = entry
        return lease

    def _find(self, start: int, end: int, access: int) -> _Entry | None:
        place = bisect_right(self._starts, start) - 1
        while place >= 0 and self._starts[place] + self._longest >= end:
            entry = self._entries[place]
            if entry.end >= end and entry.access & access == access and not entry.gone:
                return entry
            place -= 1
        return None

    def _add(self, array: NDArray[Any], start: int, size: int, access: int) -> _Entry:
        self._make_room(size)
        region = self._pd.reg_mr(array, access)
        self.counters.registrations += 1
        self.counters.pinned(size)
        entry = _Entry(start, start + size, access, region)
        is_over = (
            len(self._entries) >= self._max_regions or self.counters.bytes_pinned > self._max_bytes
        )
        if is_over:
            entry.gone = True  # Everything else is in use: it goes with its lease.
            self.counters.bypasses += 1
            return entry
        place = bisect_left(self._starts, start)
        self._starts.insert(place, start)
        self._entries.insert(place, entry)
        self._longest = max(self._longest, size)
        return entry

    def _make_room(self, size: int) -> None:
        """Let the least recently used go until one more of `size` bytes is within the limits."""
        while self._idle and (
            len(self._entries) >= self._max_regions
            or self.counters.bytes_pinned + size > self._max_bytes
        ):
            self.counters.evictions += 1
            self._remove(next(iter(self._idle)))

    def _remove(self, entry: _Entry) -> None:
        self._idle.pop(entry, None)
        place = bisect_left(self._starts, entry.start)
        while place < len(self._entries) and self._entries[place].start == entry.start:
            if self._entries[place] is entry:
                del self._starts[place], self._entries[place]
                break
            place += 1
        self._deregister(entry)

    def _deregister(self, entry: _Entry) -> None:
        entry.region.dereg()
        self.counters.deregistrations += 1
        self.counters.pinned(entry.start - entry.end)

    def _release(self, lease: Lease) -> None:
        entry = self._leased.pop(lease)
        entry.users -= 1
        self.counters.leases -= 1
        if entry.users > 0:
            return
        if entry.gone:
            self._remove(entry)
        else:
            self._idle[entry] = None

    def forget(self, address: int, size: int) -> None:
        """Take back what overlaps that memory: at once, or with its last lease."""
        place = bisect_left(self._starts, address + size) - 1
        found = []
        while place >= 0 and self._starts[place] + self._longest > address:
            if self._entries[place].end > address and not self._entries[place].gone:
                found.append(self._entries[place])
            place -= 1
        for entry in found:
            self.counters.invalidations += 1
            if entry.users == 0:
                self._remove(entry)
            else:
                entry.gone = True

    def close(self) -> None:
        """Take everything back. Raises ValueError while something is leased."""
        if self._leased:
            raise ValueError(f"{len(self._leased)} leases of this cache are in use")
        if self._watched is not None and self.forget in self._watched:
            self._watched.remove(self.forget)
        for entry in list(self._entries):
            self._remove(entry)
