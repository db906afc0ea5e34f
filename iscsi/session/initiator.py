"""A session that blocks: it performs the steps of `core`, `unit` and `recovery` in the calling
thread.

Waits return to Python ten times a second, so Ctrl-C works everywhere; no Python runs per PDU or per
completion. A session belongs to the thread that opened it; between its calls nobody looks after the
connection, and one that was lost meanwhile is made again by the next call.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, TypeVar

from numpy.typing import NDArray

from host.errors import WrongThread
from iscsi.session import commands, doors, jobs, leaving, unit
from iscsi.session.core import Engine, SessionCore
from iscsi.session.errors import ConnectionLost, LoginTimeout
from iscsi.session.guard import TICK_NS
from iscsi.session.options import Options, Timeouts, nanoseconds
from iscsi.session.outcome import CommandResult
from iscsi.session.recovery import Recovery
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
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import ControlPdu
from iscsi.wire.url import IscsiUrl

if TYPE_CHECKING:
    from host.verbs import CompletionQueue
    from host.verbs.work import WorkCompletion

R = TypeVar("R")
DRAIN_NS: Final = 1_000_000_000  # for what is under way when a wait is interrupted
FAR_NS: Final = 1 << 62


class InitiatorSession(commands.Commands):
    """A logged-in session. Its SCSI commands are those of `commands.Commands`; they block and
    return what is said there.

    Raises UrlError, NotSupported, OSError (refused, unreachable, timed out), LoginTimeout,
    LoginRejected, TooManyRedirects, RemoteProtocolError, and host errors.
    """

    def __init__(self, engine: Engine, url: str | IscsiUrl, **options: Any) -> None:
        self.core = SessionCore(engine, url, Options(**options))
        self.recovery = Recovery(self.core)
        self._deadline, self._limit_s = 0, 0.0  # of a login under way
        self._use, self._process = threading.RLock(), os.getpid()
        try:
            self.perform(self.core.opening())
        except BaseException:
            self.core.free()
            raise

    # --- performing steps ------------------------------------------------------------------

    def perform(self, steps: Steps[R]) -> R:
        """Run a procedure, waiting where it has to. WrongThread while another one uses it."""
        with self._in_use():
            return self._perform(steps)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """One thread at a time: the compiled code below knows no lock."""
        if os.getpid() != self._process:
            raise WrongThread("this device was opened before a fork: open one here")
        if not self._use.acquire(blocking=False):
            raise WrongThread("another thread is using this device: open one for each")
        try:
            yield
        finally:
            self._use.release()

    def _perform(self, steps: Steps[R]) -> R:
        answer: Any = None
        error: BaseException | None = None
        while True:
            try:
                step = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            answer, error = None, None
            try:
                answer = self._do(step)
            except BaseException as raised:
                error = raised

    _run = perform

    def _do(self, step: Step) -> Any:
        match step:
            case Finish(job):
                return self._finish(job)
            case AwaitControl(tag):
                return self._await_control(tag)
            case Connect(host, port):
                return self._connect(host, port)
            case Send(endpoint, data):
                return self._stream(endpoint, data, is_send=True)
            case Receive(endpoint, into):
                return self._stream(endpoint, into, is_send=False)
            case Complete(queue, wr_id, seconds):
                return self._complete(queue, wr_id, seconds)
            case Sleep(seconds):
                return time.sleep(seconds)
            case AwaitTurn():
                raise AssertionError("calls of one thread never stand in each other's way")

    def _left_s(self) -> float:
        return max((self._deadline - monotonic_ns()) / 1e9, 0.001)

    def _connect(self, host: str, port: int) -> int:
        core = self.core
        self._limit_s = core.login_limit_s
        self._deadline = monotonic_ns() + nanoseconds(self._limit_s)
        try:
            core.endpoint = core.channel.connect(host, port, timeout_s=self._left_s())
        except (socket.gaierror, UnicodeError) as error:  # The latter: what no name can be.
            raise ConnectionLost(f"host {host!r} has no address: {error}") from error
        return core.endpoint

    def _stream(self, endpoint: int, array: NDArray[Any], *, is_send: bool) -> None:
        channel, left_s = self.core.channel, self._left_s()
        try:
            if is_send:
                channel.send(endpoint, array, left_s)
            else:
                channel.recv(endpoint, array, exact=True, timeout_s=left_s)
        except TimeoutError as error:
            raise self._too_late() from error

    def _complete(
        self, queue: "CompletionQueue", wr_id: int, seconds: float | None
    ) -> "WorkCompletion | None":
        left_s = self._left_s()
        is_early = seconds is not None and seconds < left_s
        try:
            return queue.complete(wr_id, left_s if seconds is None else min(seconds, left_s))
        except TimeoutError as error:
            if is_early and self.core.channel.is_running:
                return None
            raise self._too_late() from error

    def _too_late(self) -> LoginTimeout:
        return LoginTimeout(f"the target did not finish the login in {self._limit_s:.3g} s")

    def _finish(self, job: int) -> None:
        """Work until the job has ended. An interruption ends it early and is raised again."""
        worker = self.core.worker.address
        try:
            self.drive(lambda deadline, tick: doors.run(worker, job, deadline, tick))
        except Exception:
            raise
        except BaseException:
            self._abandon(job)
            raise

    def _await_control(self, tag: int) -> ControlPdu:
        """Work until an answer with this tag has come. Raises what ends the connection."""
        worker, controls = self.core.worker.address, self.core.controls
        try:
            self.drive(
                lambda deadline, tick: doors.run(worker, 0, deadline, tick),
                until=lambda: controls.has(tag),
            )
        except Exception:
            raise
        except BaseException:
            with contextlib.suppress(Exception):  # It is in `lost`; the interruption goes on.
                self.core.lose(ConnectionLost("the connection was closed by an interruption"))
            raise
        found = controls.answer(tag)
        assert found is not None, "it is what was waited for"
        return found

    def drive(
        self,
        step: Callable[[int, int], int],
        until: Callable[[], bool] | None = None,
        seconds: float = 0,
    ) -> None:
        """Call a door that works until it is FINISHED (or `until` is true), seeing to whatever it
        comes back for.

        `step(deadline_ns, tick_at_ns)` returns a reason of `jobs`. A connection that is lost is
        made again, except for who waits `until` something comes on it. `seconds` 0: no limit but
        the session's own. Whatever is raised has ended the session or, with `until`, the wait.
        """
        core = self.core
        end = monotonic_ns() + int(seconds * 1e9) if seconds else FAR_NS
        core.check_usable()
        due = monotonic_ns() + TICK_NS
        while until is None or not until():
            reason = step(FAR_NS, due)
            if reason == jobs.FINISHED:
                return
            try:
                due = core.attend(reason)
            except Exception as error:
                core.lose(error)
            if core.down is not None:
                if until is not None or core.is_recovering:
                    raise core.down
                self._recover()
            if monotonic_ns() > end:
                raise ConnectionLost(f"the target did not answer within {seconds:g} s")

    def _recover(self) -> None:
        """Make the connection again, or end the session with the reason why not."""
        try:
            self.perform(self.recovery.recovering())
        except Exception as error:
            raise self.core.break_off(error) from None

    def _abandon(self, job: int) -> None:
        """Submit no more of a job and wait a moment for what is under way, or else hang up."""
        core = self.core
        if core.lost is not None:
            return
        worker = core.worker.address
        doors.cancel_rest(worker, job)
        deadline = monotonic_ns() + DRAIN_NS
        reason = jobs.LOOK
        while reason == jobs.LOOK and core.down is None:
            reason = doors.run(worker, job, deadline, monotonic_ns() + TICK_NS)
        if reason != jobs.FINISHED and core.down is None:
            with contextlib.suppress(Exception):  # It is in `lost`; the interruption goes on.
                core.lose(ConnectionLost("the connection was closed as a wait was interrupted"))

    # --- the session -----------------------------------------------------------------------

    @property
    def timeouts(self) -> Timeouts:
        """The time limits in force. Assign others to change them, also from a signal handler."""
        return self.core.timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        self.core.timeouts = timeouts

    @property
    def session_params(self) -> SessionParams:
        """What the login agreed on for the session."""
        return self.core.connection.login.session

    @property
    def connection_params(self) -> ConnectionParams:
        """What the login agreed on for the connection."""
        return self.core.connection.login.connection

    def command(
        self, cdb: bytes, *, length: int = 0, data: bytes = b"", lun: int | None = None
    ) -> CommandResult:
        """One SCSI command of 6 to 260 bytes; see `Procedures.command`."""
        return self.perform(self.core.raw_command(cdb, length, data, lun))

    inquiry = commands.Commands.inquire

    def ping(self) -> None:
        """NOP-Out and its answer."""
        self.perform(self.core.ping())

    def discover(self) -> list[DiscoveredTarget]:
        """SendTargets=All, on a session whose URL names no target."""
        return self.perform(self.core.discovery())

    def examine(self) -> unit.UnitFacts:
        """What a block device needs to know, and what recovery compares with."""
        self.recovery.facts = self.perform(unit.examine(self.core))
        return self.recovery.facts

    def transfer(self, **what: Any) -> int:
        """Read or write blocks at shared memory: `Procedures.transfer`."""
        return self.perform(self.core.transfer(**what))

    def reconnect(self) -> None:
        """Log out, or hang up, and make the connection again now.

        Commands never end by this; it raises what makes the new connection impossible.
        """
        core = self.core
        core.check_usable()
        with self._in_use():
            if core.down is None:
                self._log_out_briefly()
                core.lose(ConnectionLost("a reconnection was asked for"))
            self._recover()

    # --- the end ---------------------------------------------------------------------------

    def logout(self) -> None:
        """Log out and close."""
        self.perform(self.core.logging_out())
        self._await_hang_up()
        self.core.free()

    def close(self) -> None:
        """Log out if the target still answers, and give everything back. Idempotent."""
        core = self.core
        if core.is_closed:
            return
        if os.getpid() != self._process:
            core.abandon()  # The connection is the parent's, who still uses it.
            return
        with self._in_use():
            self._close()

    def _close(self) -> None:
        core = self.core
        try:
            if core.lost is None and core.down is None and core.channel.is_running:
                self._log_out_briefly()
        finally:
            core.free()

    def _log_out_briefly(self) -> None:
        """Log out if that takes no longer than a moment; the connection is of no use afterwards."""
        core = self.core
        worker, controls = core.worker.address, core.controls
        steps = core.logging_out()
        # Whatever goes wrong here: it was politeness, and the connection ends anyway.
        with contextlib.suppress(Exception), contextlib.closing(steps):
            step = next(steps)
            assert isinstance(step, AwaitControl), "a logout waits for its answer"
            self.drive(
                lambda deadline, tick: doors.run(worker, 0, deadline, tick),
                until=lambda: controls.has(step.tag),
                seconds=leaving.LOGOUT_S,
            )
            steps.send(controls.answer(step.tag))
        self._await_hang_up()

    def _await_hang_up(self) -> None:
        """Leave it to the target to hang up after its Logout Response, where that matters."""
        core = self.core
        if not leaving.awaits_hang_up(core):
            return
        worker, end = core.worker.address, monotonic_ns() + int(leaving.HANG_UP_S * 1e9)
        reason = jobs.LOOK
        while reason not in (jobs.BROKEN, jobs.ENGINE_GONE) and monotonic_ns() < end:
            reason = doors.run(worker, 0, end, end)

    def __enter__(self) -> "InitiatorSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
