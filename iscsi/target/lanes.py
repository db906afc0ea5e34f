"""The lanes of a server: what it has at each engine. A connection belongs to one lane for its whole
life, the one with the fewest connections when it was accepted.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.group import Group
from iscsi.target.barriers import LANE
from iscsi.target.lending import Lending
from shm.view import address_of

Post = Callable[[], bool]


class Lane:
    """One engine: its number, the channel there, what waits for room in that, how many connections
    it has, and with a datamover the buffers lent there.
    """

    def __init__(self, engine: int, channel: Any, record: NDArray[Any]) -> None:
        self.engine, self.channel, self._record = engine, channel, record
        self.lending: Lending | None = None
        self.connections = 0
        self._unposted: deque[Post] = deque()

    def lend(self, lending: Lending) -> None:
        """Have buffers at this engine for PDUs that the server must see."""
        self.lending = lending
        self._record[0]["lending"] = lending.address

    @property
    def address(self) -> int:
        """The LANE record."""
        return address_of(self._record)

    @property
    def is_waiting(self) -> bool:
        """Whether something found no room yet."""
        return bool(self._unposted)

    def post(self, post: Post) -> None:
        """Post now, or when there is room again; in this order."""
        if self._unposted or not post():
            self._unposted.append(post)

    def post_later(self, post: Post) -> None:
        """The same, for what nobody's answer depends on."""
        self.post(post)

    def post_first(self, post: Post) -> None:
        """The same for what ends or fences something: before anything is answered at any engine."""

        def fence() -> bool:
            if not post():
                return False
            self._record[0]["fences"] += 1
            return True

        self.post(fence)
        if self._unposted:
            self._record[0]["held"] = 1

    def retry(self) -> None:
        """Post what waits, as far as there is room."""
        while self._unposted and self._unposted[0]():
            self._unposted.popleft()
        if not self._unposted:
            self._record[0]["held"] = 0


class Lanes:
    """One lane for each of `count` engines of a handle, 0 for all of them; the first is the
    handle's own engine. Their channels have one wake word. Raises what `channel` raises.
    """

    def __init__(self, engine: Any, count: int, work: int, events: int) -> None:
        there = int(engine.engine_count)
        if count > there:
            raise ValueError(
                f"engines: {count} are wanted and the process of this one has {there}: start it "
                f"with `ppe up --engines {count}`, or want fewer"
            )
        first = int(engine.engine)
        numbers = [(first + place) % there for place in range(count or there)]
        self._records = np.zeros(len(numbers), LANE)
        self.all: list[Lane] = []
        try:
            for place, number in enumerate(numbers):
                self._open(engine, place, number, work, events)
            self._group = Group([lane.channel for lane in self.all])
        except BaseException:
            self.close()
            raise

    def _open(self, engine: Any, place: int, number: int, work: int, events: int) -> None:
        if place == 0:
            channel = engine.channel(work=work, events=events)
        else:
            beside = self.all[0].channel
            channel = engine.channel(work=work, events=events, engine=number, beside=beside)
        record = self._records[place : place + 1]
        record[0]["context"], record[0]["number"] = channel.context, place
        self.all.append(Lane(number, channel, record))

    @property
    def first(self) -> Lane:
        """That of the listeners, and of what ends the server's sleep."""
        return self.all[0]

    @property
    def address(self) -> int:
        """LANE[count]."""
        return address_of(self._records)

    @property
    def group(self) -> int:
        """The GROUP of their channels."""
        return self._group.address

    @property
    def is_waiting(self) -> bool:
        """Whether something found no room yet, anywhere."""
        return any(lane.is_waiting for lane in self.all)

    def least_loaded(self) -> Lane:
        """The lane of the next connection; of equals the first."""
        return min(self.all, key=lambda lane: lane.connections)

    def close(self) -> None:
        """Close the channels, the first last: its wake word is that of all. Idempotent."""
        for lane in reversed(self.all):
            lane.channel.close()

    def free(self) -> None:
        """Give the memory back; the channels are closed. Idempotent."""
        for lane in self.all:
            if lane.lending is not None:
                lane.lending.free()
