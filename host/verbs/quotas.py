"""Sharing one supply of something among services: each has a reserve that nobody can take from it
and a limit; what lies between is borrowed from what nobody has reserved, or from the idle reserves
of those that lend, and is given back on request. The rule: a reserve is always honoured, by
borrowers giving back if need be, and no more is ever handed out than there is.
"""

import errno
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

Reclaim = Callable[[str, int], int]  # resource and count: how many were given back


@dataclass(frozen=True, slots=True)
class Quota:
    """What one service may have of a supply. `lends`: its idle reserve may be borrowed."""

    reserve: int = 0
    limit: int = 0  # 0: no more than the reserve
    lends: bool = True

    @property
    def most(self) -> int:
        """The most it may hold."""
        return max(self.limit, self.reserve)

    def __post_init__(self) -> None:
        if self.reserve < 0 or self.limit < 0:
            raise ValueError(f"a quota of {self.reserve} to {self.limit}: neither is negative")


@dataclass(slots=True)
class ShareCounters:
    """What became of one service's requests for one supply."""

    used: int = 0
    used_max: int = 0
    taken: int = 0
    borrowed: int = 0  # how often something beyond the reserve was handed out
    refused: int = 0
    reclaimed: int = 0  # what it gave back on request

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


@dataclass(slots=True, eq=False)
class _Holder:
    quota: Quota
    reclaim: Reclaim | None
    counters: ShareCounters = field(default_factory=ShareCounters)

    @property
    def idle_reserve(self) -> int:
        return max(self.quota.reserve - self.counters.used, 0)


class Share:
    """One supply of `total`, shared by holders that are known by name."""

    def __init__(self, resource: str, total: int) -> None:
        if total < 1:
            raise ValueError(f"a supply of {total} {resource}: at least 1")
        self.resource, self.total = resource, total
        self._holders: dict[str, _Holder] = {}

    def add(self, name: str, quota: Quota, reclaim: Reclaim | None = None) -> None:
        """A new holder. Raises ValueError if the reserves would exceed the supply."""
        if name in self._holders:
            raise ValueError(f"{name!r} has a share of {self.resource} already")
        reserved = sum(each.quota.reserve for each in self._holders.values())
        if reserved + quota.reserve > self.total:
            raise ValueError(
                f"{name!r} wants {quota.reserve} {self.resource} reserved, of {self.total} there "
                f"are {self.total - reserved} left to reserve"
            )
        self._holders[name] = _Holder(quota, reclaim)

    def remove(self, name: str) -> None:
        """A holder goes. Raises ValueError while it holds something."""
        holder = self._holders[name]
        if holder.counters.used:
            raise ValueError(f"{name!r} still holds {holder.counters.used} {self.resource}")
        del self._holders[name]

    @property
    def used(self) -> int:
        """What all hold together."""
        return sum(each.counters.used for each in self._holders.values())

    def counters(self, name: str) -> ShareCounters:
        """Of one holder."""
        return self._holders[name].counters

    def take(self, name: str, count: int = 1) -> None:
        """Have `count` more. Raises OSError ENOBUFS, changing nothing."""
        if count < 1:
            raise ValueError(f"{count} {self.resource}: at least 1")
        mine = self._holders[name]
        counters = mine.counters
        if not self._may(mine, count):
            counters.refused += 1
            raise OSError(
                errno.ENOBUFS,
                f"{name!r} holds {counters.used} {self.resource} (reserve {mine.quota.reserve}, "
                f"limit {mine.quota.most}) and gets no {count} more: {self.used} of {self.total} "
                "are in use",
            )
        if counters.used + count > mine.quota.reserve:
            counters.borrowed += 1
        counters.used += count
        counters.taken += count
        counters.used_max = max(counters.used_max, counters.used)

    def give(self, name: str, count: int = 1) -> None:
        """Give `count` back. Raises ValueError for more than it holds."""
        counters = self._holders[name].counters
        if not 1 <= count <= counters.used:
            raise ValueError(f"{name!r} gives back {count} of {counters.used} {self.resource}")
        counters.used -= count

    def _may(self, mine: _Holder, count: int) -> bool:
        after = mine.counters.used + count
        if after > mine.quota.most:
            return False
        if after <= mine.quota.reserve:
            return self._honour(mine, count)
        kept = sum(
            each.idle_reserve
            for each in self._holders.values()
            if each is not mine and not each.quota.lends
        )
        return self.total - self.used - kept >= count

    def _honour(self, mine: _Holder, count: int) -> bool:
        """Whether the reserve is there, after borrowers gave back what is missing."""
        for each in list(self._holders.values()):
            missing = count - (self.total - self.used)
            if missing <= 0:
                break
            over = each.counters.used - each.quota.reserve
            if each is mine or over <= 0 or each.reclaim is None:
                continue
            before = each.counters.used
            each.reclaim(self.resource, min(missing, over))
            each.counters.reclaimed += before - each.counters.used
        return self.total - self.used >= count
