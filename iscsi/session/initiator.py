"""A session that blocks: it performs the steps of `core` and `unit` in the calling thread.

Waits return to Python ten times a second, so Ctrl-C works everywhere; no Python runs per PDU or per
completion. A session belongs to the thread that opened it.
"""

import socket
from collections.abc import Callable, Generator
from time import monotonic_ns
from typing import Any, Final, TypeVar

from numpy.typing import NDArray

from host.channel import TICK_NS
from host.errors import EngineDied
from iscsi.session import doors, jobs, unit
from iscsi.session.core import Engine, Options, SessionCore
from iscsi.session.errors import CommandTimeout, ConnectionLost, LoginTimeout
from iscsi.session.outcome import CommandResult, error_of_job
from iscsi.session.steps import AwaitControl, Connect, Finish, Receive, Send, Step, Steps
from iscsi.wire.discovery import DiscoveredTarget
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import ControlPdu
from iscsi.wire.scsi_data import BlockLimits, Capacity, InquiryData
from iscsi.wire.url import IscsiUrl
from shm.view import address_of

R = TypeVar("R")
DRAIN_S: Final = 1.0  # for what is under way when a wait is interrupted
LOGOUT_S: Final = 2.0


class InitiatorSession:
    """A logged-in session over one connection.

    Raises UrlError, NotSupported, OSError (refused, unreachable, timed out), LoginTimeout,
    LoginRejected, TooManyRedirects, RemoteProtocolError, and host errors.
    """

    def __init__(self, engine: Engine, url: str | IscsiUrl, **options: Any) -> None:
        self.core = SessionCore(engine, url, Options(**options))
        self._deadline: int | None = None
        try:
            self._deadline = monotonic_ns() + int(self.core.options.login_timeout_s * 1e9)
            self.perform(self.core.opening())
        except BaseException:
            self.core.free()
            raise
        finally:
            self._deadline = None

    # --- performing steps ------------------------------------------------------------------

    def perform(self, steps: Steps[R]) -> R:
        """Run a procedure, waiting where it has to."""
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

    def _do(self, step: Step) -> Any:
        match step:
            case Finish(job):
                return self._finish(job)
            case AwaitControl():
                return self._await_control()
            case Connect(host, port):
                return self._connect(host, port)
            case Send(endpoint, data):
                return self._stream(endpoint, data, is_send=True)
            case Receive(endpoint, into):
                return self._stream(endpoint, into, is_send=False)

    def _left_s(self) -> float:
        assert self._deadline is not None, "connections are made in the constructor"
        return max((self._deadline - monotonic_ns()) / 1e9, 0.001)

    def _connect(self, host: str, port: int) -> int:
        core = self.core
        try:
            core.endpoint = core.channel.connect(host, port, timeout_s=self._left_s())
        except socket.gaierror as error:
            raise ConnectionLost(f"host {host!r} has no address: {error.strerror}") from error
        return core.endpoint

    def _stream(self, endpoint: int, array: NDArray[Any], *, is_send: bool) -> None:
        channel, left_s = self.core.channel, self._left_s()
        try:
            if is_send:
                channel.send(endpoint, array, left_s)
            else:
                channel.recv(endpoint, array, exact=True, timeout_s=left_s)
        except TimeoutError as error:
            raise LoginTimeout(
                f"the target did not finish the login in {self.core.options.login_timeout_s:g} s"
            ) from error

    def _finish(self, job: int) -> None:
        """Work until the job has ended. An interruption ends it early and is raised again."""
        worker = self.core.connection.worker
        try:
            self.drive(lambda deadline, tick: doors.run(worker, job, deadline, tick))
        except Exception:
            raise
        except BaseException:
            self._abandon(job)
            raise

    def _await_control(self) -> ControlPdu:
        worker = self.core.connection.worker
        try:
            while True:
                found = self.core.answer()
                if found is not None:
                    return found
                self.drive(
                    lambda deadline, tick: doors.run(worker, 0, deadline, tick), until_control=True
                )
        except Exception:
            raise
        except BaseException:
            self.core.break_off(ConnectionLost("the connection was closed by an interruption"))
            raise

    def drive(
        self,
        step: Callable[[int, int], int],
        timeout_ns: int | None = None,
        *,
        until_control: bool = False,
    ) -> None:
        """Call a door that works until it is FINISHED, and look at whatever it comes back for.

        `step(deadline_ns, tick_at_ns)` returns a reason of `jobs`. The timeout counts from the last
        command that ended. Whatever is raised has ended the connection.
        """
        try:
            self._drive(step, timeout_ns, until_control)
        except Exception as error:
            raise self.core.break_off(error) from None

    def _drive(
        self, step: Callable[[int, int], int], timeout_ns: int | None, until_control: bool
    ) -> None:
        mine = self.core.connection
        limit_ns = timeout_ns or int(self.core.options.timeout_s * 1e9)
        now, seen = monotonic_ns(), mine.hot("completions")
        deadline = now + limit_ns
        while True:
            reason = step(deadline, now + TICK_NS)
            now = monotonic_ns()
            if reason == jobs.FINISHED:
                return
            if reason == jobs.CONTROL:
                self.core.take_controls()
                if until_control:
                    return
            elif reason == jobs.BROKEN:
                raise self.core.connection_error()
            elif reason == jobs.ENGINE_GONE:
                raise EngineDied("the engine went away during a command: open the device again")
            elif reason == jobs.TIMED_OUT and mine.hot("completions") == seen:
                raise CommandTimeout(
                    f"the target at {mine.portal.address} made no progress for "
                    f"{limit_ns / 1e9:g} s; the connection was closed"
                )
            if mine.hot("completions") == seen:
                self._nudge()
            else:
                deadline, seen = now + limit_ns, mine.hot("completions")

    def _nudge(self) -> None:
        """Learn what was sent of commands that ended early, by an answer to a NOP-Out.

        Sends ask for no completion of their own: any answer tells. A target that refuses a write
        before it has all the data sends nothing more by itself.
        """
        mine = self.core.connection
        if mine.unsent and mine.hot("outstanding") and not mine.has_ping:
            mine.ping()

    def _abandon(self, job: int) -> None:
        """Submit no more of a job and wait a moment for what is under way, or else hang up."""
        core = self.core
        if core.lost is not None:
            return
        worker = core.connection.worker
        doors.cancel_rest(worker, job)
        now = monotonic_ns()
        deadline = now + int(DRAIN_S * 1e9)
        reason = jobs.LOOK
        while reason == jobs.LOOK:
            reason = doors.run(worker, job, deadline, monotonic_ns() + TICK_NS)
        if reason != jobs.FINISHED:
            core.break_off(
                ConnectionLost("the connection was closed because a wait was interrupted")
            )

    # --- commands --------------------------------------------------------------------------

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
        """One SCSI command of 16 bytes; see `SessionCore.command`."""
        return self.perform(self.core.command(cdb, length=length, data=data, lun=lun))

    def test_unit_ready(self) -> None:
        """TEST UNIT READY, again through unit attentions. Raises ScsiError when it is not."""
        from iscsi.wire.scsi import test_unit_ready

        self.perform(unit.patiently(self.core, test_unit_ready()))

    def inquiry(self, lun: int | None = None) -> InquiryData:
        """Standard INQUIRY data."""
        return self.perform(unit.inquiry(self.core, lun))

    def vpd(self, page: int, lun: int | None = None) -> bytes:
        """The body of a VPD page."""
        return self.perform(unit.vpd(self.core, page, lun))

    def block_limits(self, lun: int | None = None) -> BlockLimits:
        """VPD page B0, zeros where the unit does not have it."""
        return self.perform(unit.block_limits(self.core, lun))

    def read_capacity(self, lun: int | None = None) -> Capacity:
        """READ CAPACITY (16), else (10)."""
        return self.perform(unit.read_capacity(self.core, lun))

    def report_luns(self) -> list[int]:
        """The target's LUNs."""
        return self.perform(unit.report_luns(self.core))

    def synchronize_cache(self) -> None:
        """Have everything written reach the medium."""
        self.perform(unit.synchronize_cache(self.core))

    def ping(self) -> None:
        """NOP-Out and its answer."""
        self.perform(self.core.ping())

    def discover(self) -> list[DiscoveredTarget]:
        """SendTargets=All, on a session whose URL names no target."""
        return self.perform(self.core.discovery())

    def transfer(
        self,
        *,
        is_write: bool,
        lba: int,
        blocks: int,
        block_size: int,
        per_command: int,
        address: int,
    ) -> int:
        """Read or write blocks at shared memory, several commands at once. Bytes moved.

        Raises the error of the first command that failed; others may have moved data.
        """
        job = self.core.transfer_job(
            is_write=is_write,
            lba=lba,
            blocks=blocks,
            block_size=block_size,
            per_command=per_command,
            address=address,
        )
        where = address_of(job)
        doors.start(self.core.connection.worker, where)
        self._finish(where)
        error = error_of_job(where, self.core.lost)
        if error is not None:
            raise error
        return int(jobs.job_at(where)[0]["bytes"])

    # --- the end ---------------------------------------------------------------------------

    def logout(self) -> None:
        """Log out and close."""
        self.perform(self.core.logging_out())
        self.core.free()

    def close(self) -> None:
        """Log out if the target still answers, and give everything back. Idempotent."""
        if self.core.is_closed:
            return
        try:
            if self.core.lost is None and self.core.channel.is_running:
                self._log_out_briefly()
        finally:
            self.core.free()

    def _log_out_briefly(self) -> None:
        steps: Generator[Step, Any, None] = self.core.logging_out()
        try:
            next(steps)
            deadline = monotonic_ns() + int(LOGOUT_S * 1e9)
            worker = self.core.connection.worker
            while monotonic_ns() < deadline and self.core.answer() is None:
                self.drive(
                    lambda deadline, tick: doors.run(worker, 0, deadline, tick),
                    int(LOGOUT_S * 1e9),
                    until_control=True,
                )
        except Exception as error:
            self.core.break_off(error)
        finally:
            steps.close()

    def __enter__(self) -> "InitiatorSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
