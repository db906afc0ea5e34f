"""The asyncio bridge: the same channel, waited for in an event loop.

The wait arms the channel exactly as a sleeping thread would, but for an eventfd that the loop
watches; an inline engine is watched through its poller's own descriptor.
"""

import asyncio
import os

from host import doors
from host.channel import Channel, Completion, WaitResult
from host.errors import EngineDied


class AsyncChannel:
    """A channel's waits as coroutines. Use it in the loop of the thread that opened the channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None
        self._descriptor = channel.watch_descriptor
        os.set_blocking(self._descriptor, False)
        self._loop.add_reader(self._descriptor, self._on_ready)

    def _on_ready(self) -> None:
        if not self.channel.is_inline:
            self._drain()
        elif self._waiting is None:
            self.channel.progress()  # Level-triggered: take what the kernel has, or it comes again.
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _drain(self) -> None:
        """Empty the wake socket; at its end the engine is gone and there is nothing to watch."""
        while True:
            try:
                if not os.read(self._descriptor, 4096):
                    self._loop.remove_reader(self._descriptor)
                    return
            except BlockingIOError:
                return

    async def wait_n(self, n: int) -> WaitResult:
        """Sleep, without holding the loop up, until `n` completions can be polled."""
        context = self.channel.context
        while True:
            if self.channel.is_inline:
                self.channel.progress()
            ready = self.channel.ready(n)
            if ready >= n or self.channel.outstanding == 0:
                return WaitResult(ready, "threshold")
            if not self.channel.is_running:
                raise EngineDied("the engine went away while this channel waited: connect again")
            if not self.channel.is_inline and not doors.arm_async(context, n):
                clamped = min(n, self.channel.outstanding)
                if self.channel.ready(n) >= clamped:
                    return WaitResult(self.channel.ready(n), "threshold")
                continue
            self._waiting = self._loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
                if not self.channel.is_inline:
                    doors.disarm_async(context)

    async def complete(self, user_data: int) -> Completion:
        """Wait for the completion with this user_data; others stay for `channel.poll`."""
        while True:
            found = self.channel.pick(user_data)
            if found is not None:
                return found
            await self.wait_n(self.channel.backlog + 1)

    def close(self) -> None:
        """Watch the channel no more."""
        self._loop.remove_reader(self._descriptor)
