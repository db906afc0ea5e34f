"""A session in an event loop: it performs the same steps as `initiator`, by awaiting.

The loop watches the channel's descriptor; when it is readable, compiled code takes everything that
came. A cancelled wait submits no more of its job and returns when its open commands have ended,
because until then the target may still fill the caller's memory.
"""

import asyncio
import contextlib
import os
import socket
from typing import Any, Final, TypeVar

from host import doors as host_doors
from host.aio import AsyncChannel
from host.channel import resolve
from host.errors import EngineDied
from iscsi.session import doors, jobs
from iscsi.session.core import Engine, Options, SessionCore
from iscsi.session.errors import CommandTimeout, ConnectionLost, LoginTimeout
from iscsi.session.outcome import error_of_job
from iscsi.session.steps import AwaitControl, Connect, Finish, Receive, Send, Step, Steps
from iscsi.wire.port import ControlPdu
from iscsi.wire.url import IscsiUrl
from shm.view import address_of

R = TypeVar("R")
LOGOUT_S: Final = 2.0
WATCH_S: Final = 0.25
# An inline engine on io_uring: its ring's descriptor does not become readable for completions that
# wait for this thread to fetch them, so the loop looks by itself while something is under way.
LOOK_S: Final = 0.001


class AsyncSession:
    """A logged-in session of the running loop. Made by `open`."""

    def __init__(self, engine: Engine, url: str | IscsiUrl, options: Options) -> None:
        self.core = SessionCore(engine, url, options)
        self._loop = asyncio.get_running_loop()
        self._login: AsyncChannel | None = None
        self._own = 0
        self._jobs: dict[int, asyncio.Future[None]] = {}
        self._controls: asyncio.Future[None] | None = None
        self._descriptor = -1
        self._watchdog: asyncio.TimerHandle | None = None
        self._looker: asyncio.TimerHandle | None = None
        info = getattr(engine, "info", {})
        self._must_look = self.core.channel.is_inline and info.get("readiness") != "epoll"
        self._progress = (0, 0.0)

    @classmethod
    async def open(cls, engine: Engine, url: str | IscsiUrl, **options: Any) -> "AsyncSession":
        """Connect and log in. Raises what `InitiatorSession` raises."""
        session = cls(engine, url, Options(**options))
        limit_s = session.core.options.login_timeout_s
        try:
            session._login = AsyncChannel(session.core.channel)
            try:
                async with asyncio.timeout(limit_s):
                    await session.perform(session.core.opening())
            except TimeoutError as error:
                if isinstance(error, OSError) and error.errno:
                    raise
                raise LoginTimeout(
                    f"the target did not finish the login in {limit_s:g} s"
                ) from error
            finally:
                session._login.close()
                session._login = None
        except BaseException:
            session.core.free()
            raise
        session._watch()
        return session

    # --- performing steps ------------------------------------------------------------------

    async def perform(self, steps: Steps[R]) -> R:
        """Run a procedure, awaiting where it has to wait."""
        answer: Any = None
        error: BaseException | None = None
        while True:
            try:
                step = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            answer, error = None, None
            try:
                answer = await self._do(step)
            except BaseException as raised:
                if not isinstance(step, Finish | AwaitControl):
                    self.core.drop_endpoint()  # Before its memory goes back.
                error = raised

    async def _do(self, step: Step) -> Any:
        match step:
            case Finish(job):
                return await self._finish(job)
            case AwaitControl():
                return await self._await_control()
            case Connect(host, port):
                return await self._connect(host, port)
            case Send(endpoint, data):
                own = self._next_own()
                self._posted(self.core.channel.post_send(endpoint, data, own))
                return await self._complete(own)
            case Receive(endpoint, into):
                own = self._next_own()
                self._posted(self.core.channel.post_recv(endpoint, into, own, exact=True))
                return await self._complete(own)

    def _next_own(self) -> int:
        self._own += 1
        return self._own

    def _posted(self, posted: bool) -> None:
        if not posted:
            raise BlockingIOError("the channel's ring is full")

    async def _complete(self, own: int) -> Any:
        assert self._login is not None, "only a login waits for single operations"
        return (await self._login.complete(own)).check()

    async def _connect(self, host: str, port: int) -> int:
        core = self.core
        try:
            addresses = await self._loop.run_in_executor(None, resolve, host, port)
        except socket.gaierror as error:
            raise ConnectionLost(f"host {host!r} has no address: {error.strerror}") from error
        failed: OSError = OSError(f"{host} has no address")
        for address in addresses:
            own = self._next_own()
            limit_s = core.options.login_timeout_s
            self._posted(core.channel.post_connect(address, own, timeout_s=limit_s))
            try:
                core.endpoint = (await self._complete(own)).endpoint
            except OSError as error:
                text = f"{address[0]} port {port}: {error.strerror}"
                failed = type(error)(error.errno, text)
            else:
                return core.endpoint
        raise failed

    async def _finish(self, job: int) -> None:
        if jobs.job_at(job)[0]["state"] == jobs.DONE:
            return
        future = self._jobs[job] = self._loop.create_future()
        self._advance()
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.done():
                doors.cancel_rest(self.core.connection.worker, job)
                self._advance()
                with contextlib.suppress(Exception):
                    await future
            raise

    async def _await_control(self) -> ControlPdu:
        while True:
            self._advance()
            found = self.core.answer()
            if found is not None:
                return found
            if self.core.lost is not None:
                raise self.core.lost
            self._controls = self._loop.create_future()
            self._advance()
            try:
                if self.core.lost is None:
                    await self._controls
            finally:
                self._controls = None

    async def transfer(
        self,
        *,
        is_write: bool,
        lba: int,
        blocks: int,
        block_size: int,
        per_command: int,
        address: int,
    ) -> int:
        """Read or write blocks at shared memory. Bytes moved; raises the first command's error."""
        job = self.core.transfer_job(
            is_write=is_write,
            lba=lba,
            blocks=blocks,
            block_size=block_size,
            per_command=per_command,
            address=address,
        )
        where = address_of(job)
        if len(self._jobs) >= jobs.JOBS_MAX:
            raise BlockingIOError(f"{len(self._jobs)} transfers are under way: await some first")
        doors.start(self.core.connection.worker, where)
        await self._finish(where)
        error = error_of_job(where, self.core.lost)
        if error is not None:
            raise error
        return int(jobs.job_at(where)[0]["bytes"])

    # --- readiness -------------------------------------------------------------------------

    def _watch(self) -> None:
        channel = self.core.channel
        self._descriptor = channel.watch_descriptor
        os.set_blocking(self._descriptor, False)
        self._loop.add_reader(self._descriptor, self._on_ready)
        self._look_after()
        self._advance()

    def _on_ready(self) -> None:
        if not self.core.channel.is_inline:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._descriptor, 4096):
                    pass
        self._advance()

    def _advance(self) -> None:
        """Take everything that came and post what follows, until there is nothing left to do."""
        core = self.core
        if core.lost is not None or core.is_closed:
            return
        try:
            while True:
                reason = doors.advance(core.connection.worker)
                if reason == jobs.BROKEN:
                    raise core.connection_error()
                if reason == jobs.CONTROL:
                    core.take_controls()
                    self._wake_controls()
                    continue
                if core.channel.is_inline:
                    break
                if not core.channel.is_running:
                    raise EngineDied("the engine went away: open the device again")
                if host_doors.arm_async(core.channel.context, 1):
                    break
        except Exception as error:
            core.break_off(error)
            self._wake_controls()
        self._settle()
        if self._must_look and self._looker is None and (self._jobs or self._controls is not None):
            self._looker = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._looker = None
        self._advance()

    def _wake_controls(self) -> None:
        if self._controls is not None and not self._controls.done():
            self._controls.set_result(None)

    def _settle(self) -> None:
        """Wake the owners of jobs that ended."""
        ended = [job for job in self._jobs if jobs.job_at(job)[0]["state"] == jobs.DONE]
        for job in ended:
            future = self._jobs.pop(job)
            if not future.done():
                future.set_result(None)

    def _look_after(self) -> None:
        """Four times a second: give a silent target up, learn what was sent of early failures."""
        core = self.core
        if core.lost is not None or core.is_closed:
            return
        mine, now = core.connection, self._loop.time()
        ended = mine.hot("completions")
        waiting = self._jobs or self._controls is not None
        if ended != self._progress[0] or not waiting:
            self._progress = (ended, now)
        if now - self._progress[1] > core.options.timeout_s:
            core.break_off(
                CommandTimeout(
                    f"the target at {mine.portal.address} made no progress for "
                    f"{core.options.timeout_s:g} s; the connection was closed"
                )
            )
            self._wake_controls()
            self._settle()
            return
        if mine.unsent and mine.hot("outstanding") and not mine.has_ping:
            mine.ping()
            self._advance()
        self._watchdog = self._loop.call_later(WATCH_S, self._look_after)

    async def close(self) -> None:
        """Log out if the target still answers, and give everything back. Idempotent."""
        if self.core.is_closed:
            return
        try:
            if self.core.lost is None and self.core.channel.is_running:
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(LOGOUT_S):
                        await self.perform(self.core.logging_out())
        finally:
            for timer in (self._watchdog, self._looker):
                if timer is not None:
                    timer.cancel()
            if self._descriptor >= 0:
                self._loop.remove_reader(self._descriptor)
            self.core.break_off(ConnectionLost("the session was closed"))
            self._settle()
            self.core.free()
