"""The asyncio bridge: the same channel, waited for in an event loop.

The wait arms the channel exactly as a sleeping thread would, but for a socket that the loop
watches; an inline engine is watched through its poller's own descriptor and runs in the loop. Any
number of tasks may wait: the channel is armed for the one that needs least, and all look when it
rings.
"""

import asyncio
import os
from typing import Final

from host import doors
from host.channel import Channel, Completion, WaitResult
from host.errors import EngineDied, NothingOutstanding
from shm.records import STATE_DEAD

# An inline engine has deadlines that its poller's descriptor does not tell of.
INLINE_TICK_S: Final = 0.02

# Bridges to channels of one inline engine: a pass run for one may complete another's operations.
_bridges: dict[int, list["AsyncChannel"]] = {}


class AsyncChannel:
    """A channel's waits as coroutines. Use it in the loop of the thread that opened the channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._loop = asyncio.get_running_loop()
        # Who waits, and the position of the event ring that is enough for each.
        self._waiting: dict[asyncio.Future[None], int] = {}
        # A copy: the loop knows readers by their number, and inline channels share one poller.
        self._descriptor = os.dup(channel.watch_descriptor())
        self._closed = False
        os.set_blocking(self._descriptor, False)
        self._loop.add_reader(self._descriptor, self._on_ready)
        _bridges.setdefault(channel.engine_address, []).append(self)

    def _on_ready(self) -> None:
        if self.channel.is_inline:
            self._run_inline()  # Level-triggered: take what the kernel has, or it comes again.
        else:
            self._drain()
        self._wake()

    def _wake(self) -> None:
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)

    def _drain(self) -> None:
        """Empty the wake socket; at its end the engine is gone and there is nothing to watch."""
        while True:
            try:
                if os.read(self._descriptor, 4096):
                    continue
            except BlockingIOError:
                return
            except OSError:
                pass  # As good as the end.
            self._loop.remove_reader(self._descriptor)
            self.channel.mark(STATE_DEAD)  # The handle's watcher may not have noticed yet.
            return

    def _run_inline(self) -> None:
        doors.run_inline(self.channel.context, self.channel.event_capacity)
        for bridge in _bridges.get(self.channel.engine_address, []):
            if bridge is not self and bridge._waiting and bridge.channel.ready(1) > 0:
                bridge._wake()

    async def wait_n(self, n: int) -> WaitResult:
        """Sleep, without holding the loop up, until `n` completions can be polled.

        `n` is clamped to what is outstanding. Raises ValueError for n < 1, NothingOutstanding,
        EngineDied.
        """
        if n < 1:
            raise ValueError(f"wait_n of {n}: at least 1")
        channel = self.channel
        while True:
            if self._closed:
                raise ValueError("this bridge is closed")
            if channel.is_inline:
                self._run_inline()
            ready = channel.ready(channel.event_capacity)
            if ready >= min(n, channel.backlog + channel.outstanding) and ready > 0:
                return WaitResult(ready, "threshold")
            if not channel.is_running:
                channel.progress()
                if channel.backlog == 0:
                    raise EngineDied(
                        "the engine went away while this channel waited: connect again"
                    )
                return WaitResult(channel.backlog, "peer")
            if channel.outstanding == 0:
                raise NothingOutstanding("wait_n would sleep for ever: nothing is outstanding")
            await self._sleep(min(n - channel.backlog, channel.outstanding))

    async def _sleep(self, want: int) -> None:
        """Sleep until `want` entries are in the ring, or somebody moved something."""
        channel = self.channel
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting[future] = channel.position + want
        tick = None
        try:
            if channel.is_inline:
                tick = self._loop.call_later(INLINE_TICK_S, self._wake)
            else:
                least = max(min(self._waiting.values()) - channel.position, 1)
                if not doors.arm_async(channel.context, least):
                    self._wake()
                    await asyncio.sleep(0)  # Whoever has enough must get to run.
                    return
            await future
        finally:
            del self._waiting[future]
            if tick is not None:
                tick.cancel()
            elif not self._waiting and not channel.is_closed:
                doors.disarm_async(channel.context)

    async def complete(self, user_data: int) -> Completion:
        """Wait for the completion with this user_data; others stay for `channel.poll`.

        Raises NothingOutstanding when it cannot come, EngineDied.
        """
        channel = self.channel
        while True:
            if self._closed:
                raise ValueError("this bridge is closed")
            if channel.is_inline:
                self._run_inline()
            before = channel.position, channel.backlog
            found = channel.pick(user_data)
            if (channel.position, channel.backlog) != before:
                self._wake()  # What others wait for has moved from the ring to the backlog.
            if found is not None:
                return found
            if channel.outstanding == 0 and not channel.is_running:
                raise EngineDied("the engine of this channel is gone: connect again")
            if channel.outstanding == 0:
                raise NothingOutstanding(f"no operation with user_data {user_data} is outstanding")
            await self._sleep(1)

    def close(self) -> None:
        """Watch the channel no more. Idempotent; call it before the channel's own close."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        _bridges[self.channel.engine_address].remove(self)
        if not _bridges[self.channel.engine_address]:
            del _bridges[self.channel.engine_address]
        self._wake()
