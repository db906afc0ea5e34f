"""The steps of a login in an event loop: single operations on the session's channel, each waited
for in the login's time. While it is on nobody else takes completions from that channel.
"""

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from host.aio import AsyncChannel
from host.channel import resolve
from iscsi.session.core import SessionCore
from iscsi.session.errors import ConnectionLost, LoginTimeout
from iscsi.session.options import LONGEST_S
from iscsi.session.steps import Complete, Connect, Receive, Send

if TYPE_CHECKING:
    from host.verbs import CompletionQueue
    from host.verbs.work import WorkCompletion


class AsyncLogin:
    """Begun by a `Connect`; `end` it when the login is over or was given up."""

    def __init__(self, core: SessionCore) -> None:
        self._core = core
        self._bridge: AsyncChannel | None = None
        self._end, self._limit_s = 0.0, 0.0
        self._own = 0

    @property
    def is_on(self) -> bool:
        """Whether a login is under way."""
        return self._bridge is not None

    def end(self) -> None:
        """Leave the channel to others. Idempotent."""
        if self._bridge is not None:
            self._bridge.close()
            self._bridge = None

    async def do(self, step: Connect | Send | Receive | Complete) -> Any:
        """Perform a step. Raises LoginTimeout."""
        if isinstance(step, Connect):
            self._limit_s = self._core.login_limit_s
            self._end = asyncio.get_running_loop().time() + self._limit_s
            self._bridge = self._bridge or AsyncChannel(self._core.channel)
        try:
            async with asyncio.timeout_at(self._end):
                return await self._perform(step)
        except TimeoutError as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise LoginTimeout(
                f"the target did not finish the login in {self._limit_s:.3g} s"
            ) from error

    async def _perform(self, step: Connect | Send | Receive | Complete) -> Any:
        channel, own = self._core.channel, self._next_own()
        match step:
            case Connect(host, port):
                return await self._connect(host, port)
            case Complete(queue, wr_id, None):
                return await self._work(queue, wr_id)
            case Complete(queue, wr_id, float(seconds)):
                return await self._work_within(queue, wr_id, seconds)
            case Send(endpoint, data):
                self._posted(channel.post_send(endpoint, data, own))
            case Receive(endpoint, into):
                self._posted(channel.post_recv(endpoint, into, own, exact=True))
        return await self._complete(own)

    def _next_own(self) -> int:
        self._own += 1
        return self._own

    def _posted(self, posted: bool) -> None:
        if not posted:
            raise BlockingIOError("the channel's ring is full")

    async def _complete(self, own: int) -> Any:
        assert self._bridge is not None, "only a login waits for single operations"
        return (await self._bridge.complete(own)).check()

    async def _work(self, queue: "CompletionQueue", wr_id: int) -> "WorkCompletion":
        assert self._bridge is not None, "only a login waits for single work requests"
        while (found := queue.take(wr_id)) is None:
            await self._bridge.wait_n(1)
        return found

    async def _work_within(
        self, queue: "CompletionQueue", wr_id: int, seconds: float
    ) -> "WorkCompletion | None":
        try:
            async with asyncio.timeout(seconds) as limit:
                return await self._work(queue, wr_id)
        except TimeoutError:
            if not limit.expired():
                raise
            return None

    async def _connect(self, host: str, port: int) -> int:
        core, loop = self._core, asyncio.get_running_loop()
        try:
            addresses = await loop.run_in_executor(None, resolve, host, port)
        except (socket.gaierror, UnicodeError) as error:  # The latter: what no name can be.
            raise ConnectionLost(f"host {host!r} has no address: {error}") from error
        failed: OSError = OSError(f"{host} has no address")
        for address in addresses:
            own, limit_s = self._next_own(), min(self._limit_s, LONGEST_S)
            self._posted(core.channel.post_connect(address, own, timeout_s=limit_s))
            try:
                core.endpoint = (await self._complete(own)).endpoint
            except OSError as error:
                text = f"{address[0]} port {port}: {error.strerror}"
                failed = type(error)(error.errno, text)
            else:
                return core.endpoint
        raise failed
