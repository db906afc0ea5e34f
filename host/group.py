"""Several channels of one thread, each to an engine of its own perhaps, and one sleep for all.

They have one wake word: the first one's, beside which the others were opened. So whichever engine
has something to tell wakes the thread, at the cost of one system call, as with a single channel.
"""

from collections.abc import Sequence
from time import monotonic_ns
from typing import Any, Final

import numpy as np

from host import doors
from host.channel import TICK_NS, Channel
from host.completion import WaitResult
from host.errors import EngineDied, NothingOutstanding
from host.records import GROUP
from shm.records import NEVER, STATE_DEAD, WATCHED
from shm.view import address_of
from shm.wait import PEER, REASON_NAMES, SIGNAL, TICK


class Group:
    """`channels`: the one whose wake word it is, then those opened `beside` it; in any order of
    engines. Raises ValueError for channels that cannot sleep together.
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        if not channels:
            raise ValueError("a group of no channels would sleep for ever")
        first = channels[0]
        if any(channel.wake_owner is not first for channel in channels):
            raise ValueError("these channels have no common wake word: open them beside the first")
        if len(channels) > 1 and any(channel.is_inline for channel in channels):
            raise ValueError("channels of an inline engine run it, so each waits by itself")
        self.channels: Final = tuple(channels)
        self._contexts = np.array([channel.context for channel in channels], np.int64)
        self._watched = np.zeros(len(channels), WATCHED)
        for row, channel in zip(self._watched, channels, strict=True):
            row["consumer"], row["waiter"] = channel.watched
        self._record = np.zeros(1, GROUP)
        mine = self._record[0]
        mine["count"], mine["contexts"] = len(channels), address_of(self._contexts)
        mine["watched"] = address_of(self._watched)

    @property
    def address(self) -> int:
        """The GROUP record, for `host.native.wait_group`. Valid while the channels are open."""
        return address_of(self._record)

    @property
    def ready(self) -> int:
        """How many completions `poll` would give, of all channels."""
        return sum(channel.ready() for channel in self.channels)

    def wait(self, *, timeout_s: float | None = None) -> WaitResult:
        """Sleep until a completion can be polled from one of the channels; consumes nothing.

        Raises NothingOutstanding when nothing could ever come, EngineDied.
        """
        if (found := self._found()) > 0:
            return WaitResult(found, "threshold")
        if timeout_s is None and not any(channel.outstanding for channel in self.channels):
            raise NothingOutstanding("nothing is outstanding on any channel: the sleep has no end")
        now = monotonic_ns()
        deadline = NEVER if timeout_s is None else now + int(timeout_s * 1e9)
        while True:
            reason = doors.wait_group(self.address, deadline, now + TICK_NS)
            if reason not in (TICK, SIGNAL):
                break
            now = monotonic_ns()  # Python has had its look at signals between the two calls.
        found = self._found() if reason == PEER else self.ready
        return WaitResult(found, "threshold" if found else REASON_NAMES[reason])

    def _found(self) -> int:
        """What `poll` would give, the ends of posts whose engine went away among it. Raises
        EngineDied when that leaves nothing.
        """
        if (found := self.ready) > 0:
            return found
        if all(channel.is_running for channel in self.channels):
            return 0
        # They are of one process. Whoever noticed its end tells one channel after another, and
        # the first one told has woken us.
        for channel in self.channels:
            channel.mark(STATE_DEAD)
            channel.progress()
        if not self.ready:
            raise EngineDied("the process of this group's engines went away: connect again")
        return self.ready

    def poll(self) -> list[tuple[Channel, Any]]:
        """What can be taken now, each completion with its channel."""
        return [(channel, done) for channel in self.channels for done in channel.poll()]
