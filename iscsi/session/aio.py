"""A session in an event loop: it performs the same steps as `initiator`, by awaiting.

The loop watches the channel's descriptor; when it is readable, compiled code takes everything that
came. A cancelled wait has the target abort its open commands and returns when they have ended,
because until then the target may still fill the caller's memory. A lost connection is made again by
a task of the session's own; jobs wait for it.
"""

import asyncio
import contextlib
import os
from time import monotonic_ns
from typing import Any, Final, TypeVar

from host import doors as host_doors
from host.errors import EngineDied
from iscsi.session import commands, doors, jobs, leaving, unit
from iscsi.session.aio_login import AsyncLogin
from iscsi.session.core import Engine, SessionCore
from iscsi.session.errors import ConnectionLost, SessionClosed
from iscsi.session.options import Options, Timeouts
from iscsi.session.recovery import Recovery
from iscsi.session.replay import Turn
from iscsi.session.steps import (
    AwaitControl,
    AwaitTurn,
    Complete,
    Connect,
    Finish,
    Receive,
    Send,
    Sleep,
    Step,
    Steps,
)
from iscsi.wire.discovery import DiscoveredTarget
from iscsi.wire.port import ControlPdu
from iscsi.wire.url import IscsiUrl

R = TypeVar("R")
WATCH_S: Final = 0.1
# An inline engine on io_uring: its ring's descriptor does not become readable for completions that
# wait for this thread to fetch them, so the loop looks by itself while something is under way.
LOOK_S: Final = 0.001


class AsyncSession(commands.Commands):
    """A logged-in session of the running loop. Made by `open`. Its SCSI commands are those of
    `commands.Commands`, to be awaited.
    """

    def __init__(self, engine: Engine, url: str | IscsiUrl, options: Options) -> None:
        self.core = SessionCore(engine, url, options)
        self.recovery = Recovery(self.core)
        self._loop = asyncio.get_running_loop()
        self._login = AsyncLogin(self.core)
        self._jobs: dict[int, asyncio.Future[None]] = {}
        self._controls: dict[int, asyncio.Future[None]] = {}
        self._descriptor = -1
        self._watchdog: asyncio.TimerHandle | None = None
        self._looker: asyncio.TimerHandle | None = None
        self._due: asyncio.TimerHandle | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._is_closing = False
        self.core.on_channel_change += [self._login.end, self._end_work]
        info = getattr(engine, "info", {})
        self._must_look = self.core.channel.is_inline and info.get("readiness") != "epoll"

    @classmethod
    async def open(cls, engine: Engine, url: str | IscsiUrl, **options: Any) -> "AsyncSession":
        """Connect and log in. Raises what `InitiatorSession` raises."""
        session = cls(engine, url, Options(**options))
        try:
            await session.perform(session.core.opening())
            session._begin_work()
        except BaseException:
            session._login.end()
            session._end_work()
            session.core.free()
            raise
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
                if isinstance(step, Connect | Send | Receive | Complete):
                    self.core.drop_endpoint()  # Before its memory goes back.
                error = raised

    _run = perform

    async def _do(self, step: Step) -> Any:
        match step:
            case Finish(job):
                return await self._finish(job)
            case AwaitControl(tag):
                return await self._await_control(tag)
            case Connect() | Send() | Receive() | Complete():
                if isinstance(step, Connect):
                    self._end_work()
                return await self._login.do(step)
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case AwaitTurn(turn):
                return await self._await_turn(turn)

    async def _await_turn(self, turn: Turn) -> None:
        future = self._loop.create_future()
        turn.on_free = lambda: None if future.done() else future.set_result(None)
        try:
            await future
        finally:
            turn.on_free = None

    # --- jobs ------------------------------------------------------------------------------

    async def _finish(self, job: int) -> None:
        if job == self.core.worker.hot("express"):
            self._begin_work()  # The login of a recovery is over; others do not end one.
        if jobs.job_at(job)[0]["state"] == jobs.DONE:
            return
        future = self._jobs[job] = self._loop.create_future()
        self._advance()
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            await self._cancel(job, future)
            raise

    async def _cancel(self, job: int, future: "asyncio.Future[None]") -> None:
        """End a job early: its memory is the caller's again when this returns."""
        if future.done():
            return
        doors.cancel_rest(self.core.worker.address, job)
        self.core.abort(job)
        self._advance()
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(future)

    async def _await_control(self, tag: int) -> ControlPdu:
        """Raises what ends the connection."""
        core, controls = self.core, self.core.controls
        while True:
            self._advance()
            found = controls.answer(tag)
            if found is not None:
                return found
            if core.lost is not None or core.controls is not controls or core.down is not None:
                raise core.lost or core.down or ConnectionLost("the connection was lost")
            future = self._controls[tag] = self._loop.create_future()
            try:
                await future
            finally:
                self._controls.pop(tag, None)

    async def transfer(self, **what: Any) -> int:
        """Read or write blocks at shared memory: `Procedures.transfer`."""
        return await self.perform(self.core.transfer(**what))

    async def discover(self) -> list[DiscoveredTarget]:
        """SendTargets=All, on a session whose URL names no target."""
        return await self.perform(self.core.discovery())

    async def examine(self) -> unit.UnitFacts:
        """What a block device needs to know, and what recovery compares with."""
        self.recovery.facts = await self.perform(unit.examine(self.core))
        return self.recovery.facts

    @property
    def timeouts(self) -> Timeouts:
        """The time limits in force. Assign others to change them."""
        return self.core.timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        self.core.timeouts = timeouts

    # --- readiness -------------------------------------------------------------------------

    def _begin_work(self) -> None:
        """Watch the channel: commands may come and go."""
        if self._descriptor >= 0 or self.core.is_closed:
            return
        self._login.end()
        self._descriptor = self.core.channel.watch_descriptor()
        os.set_blocking(self._descriptor, False)
        self._loop.add_reader(self._descriptor, self._on_ready)
        self._look_after()
        self._advance()

    def _end_work(self) -> None:
        """Watch the channel no more."""
        for timer in (self._watchdog, self._looker, self._due):
            if timer is not None:
                timer.cancel()
        self._watchdog = self._looker = self._due = None
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            self._descriptor = -1

    def _on_ready(self) -> None:
        if not self.core.channel.is_inline:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._descriptor, 4096):
                    pass
        self._advance()

    def _advance(self) -> None:
        """Take everything that came and post what follows, until there is nothing left to do."""
        core = self.core
        if core.lost is None and core.down is None and not core.is_closed and not self._login.is_on:
            try:
                self._exchange()
            except Exception as error:
                self._lose(error)
        self._begin_recovery()  # Also where a call that was torn off has hung up.
        self._settle()
        busy = bool(self._jobs or self._controls) and core.down is None and core.lost is None
        if self._must_look and self._looker is None and busy:
            self._looker = self._loop.call_later(LOOK_S, self._look)

    def _exchange(self) -> None:
        core = self.core
        while True:
            reason = doors.advance(core.worker.address)
            if reason:
                self._look_by(core.attend(reason))
                continue
            if core.channel.is_inline:
                return
            if not core.channel.is_running:
                raise EngineDied("the engine went away")
            if host_doors.arm_async(core.channel.context, 1):
                return

    def _lose(self, error: Exception) -> None:
        """The connection is over: have it made again, or end everything."""
        core = self.core
        with contextlib.suppress(Exception):  # It is in `core.lost`, for everyone who asks.
            core.lose(error)
        for future in self._controls.values():
            if not future.done():
                future.set_result(None)
        self._begin_recovery()

    def _begin_recovery(self) -> None:
        core = self.core
        if core.down is None or core.lost is not None or core.is_closed or self._is_closing:
            return
        if not core.is_recovering and self._recovering is None:
            self._recovering = self._loop.create_task(self._recover())

    async def _recover(self) -> None:
        core = self.core
        try:
            await self.perform(self.recovery.recovering())
        except asyncio.CancelledError:
            core.break_off(SessionClosed("the session was closed"))
            raise
        except Exception as error:
            core.break_off(error)
        finally:
            self._recovering = None
            self._login.end()
            if core.lost is None:
                self._begin_work()
            self._advance()

    def _look(self) -> None:
        self._looker = None
        self._advance()

    def _look_by(self, due_ns: int) -> None:
        """Look again when something is due, if that is before the watchdog looks anyway."""
        seconds = (due_ns - monotonic_ns()) / 1e9
        if seconds < WATCH_S and self._due is None:
            self._due = self._loop.call_later(max(seconds, 0), self._on_due)

    def _on_due(self) -> None:
        self._due = None
        self._attend()
        self._advance()

    def _settle(self) -> None:
        """Wake the owners of jobs and answers that came."""
        ended = [job for job in self._jobs if jobs.job_at(job)[0]["state"] == jobs.DONE]
        for job in ended:
            future = self._jobs.pop(job)
            if not future.done():
                future.set_result(None)
        for tag, future in self._controls.items():
            if not future.done() and (self.core.controls.has(tag) or self.core.lost is not None):
                future.set_result(None)

    def _attend(self) -> None:
        core = self.core
        if core.lost is None and core.down is None and not core.is_closed:
            try:
                self._look_by(core.attend(0))
            except Exception as error:
                self._lose(error)

    def _look_after(self) -> None:
        """Ten times a second: pings, late commands, whatever is due."""
        self._watchdog = self._loop.call_later(WATCH_S, self._look_after)
        self._attend()
        self._advance()

    # --- the end ---------------------------------------------------------------------------

    async def reconnect(self) -> None:
        """Log out, or hang up, and make the connection again now. Raises why that cannot be."""
        core = self.core
        core.check_usable()
        if core.down is None:
            with contextlib.suppress(Exception):
                await self._log_out_briefly()
            if core.down is None:
                self._lose(ConnectionLost("a reconnection was asked for"))
        if self._recovering is not None:
            await asyncio.wait([self._recovering])
        core.check_usable()

    async def _log_out_briefly(self) -> None:
        """Log out, and leave it to the target to hang up, each for a moment."""
        core = self.core
        async with asyncio.timeout(leaving.LOGOUT_S):
            await self.perform(core.logging_out())
        end = self._loop.time() + leaving.HANG_UP_S
        while leaving.awaits_hang_up(core) and self._loop.time() < end:
            await asyncio.sleep(LOOK_S)
            self._advance()

    async def close(self) -> None:
        """Log out if the target still answers, and give everything back. Idempotent."""
        core = self.core
        if core.is_closed:
            return
        self._is_closing = True
        try:
            if self._recovering is not None:
                self._recovering.cancel()
                await asyncio.wait([self._recovering])
            if core.lost is None and core.down is None and core.channel.is_running:
                with contextlib.suppress(Exception):
                    await self._log_out_briefly()
        finally:
            core.break_off(SessionClosed("the session was closed"))
            self._settle()
            self._login.end()
            self._end_work()
            core.free()
