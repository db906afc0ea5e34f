"""Watches one connection: is the target alive, does each command end in time, does the target want
the connection to end. It is looked through at least ten times a second while somebody waits, and
never waits itself; time is an argument.

A command that is late is aborted (ABORT TASK), then with its unit (LOGICAL UNIT RESET), then with
the connection. Commands of others that a reset takes along are sent again by the rules of `replay`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from iscsi.session import doors, jobs
from iscsi.session.connection import Connection
from iscsi.session.controls import Controls
from iscsi.session.errors import CommandTimeout, ConnectionLost, PingTimeout, ReservationLost
from iscsi.session.options import Timeouts, nanoseconds
from iscsi.session.replay import is_replayable
from iscsi.session.worker import Worker, active_commands, lost_command, tasks_of
from iscsi.wire import bhs
from iscsi.wire.bhs import Opcode, TaskFunction, TaskFunctionResponse
from iscsi.wire.errors import RemoteProtocolError
from iscsi.wire.initiator_task import KIND_SCSI, STATE_ACTIVE
from iscsi.wire.scsi import encode_lun

TICK_NS: Final = 100_000_000
LOGOUT_NS: Final = 2_000_000_000
_ENDED: Final = (TaskFunctionResponse.COMPLETE, TaskFunctionResponse.TASK_DOES_NOT_EXIST)


@dataclass(slots=True)
class Request:
    """A task management request under way for one command."""

    function: TaskFunction
    itt: int  # of the command
    lun: int  # the eight-byte field
    deadline_ns: int
    is_late: bool  # timed out, and not cancelled by the caller


class Guard:
    """The watch over one connection."""

    def __init__(
        self,
        connection: Connection,
        worker: Worker,
        controls: Controls,
        reserved: Collection[int],
        now: int,
    ) -> None:
        self._connection, self._worker, self._controls = connection, worker, controls
        self._reserved = reserved  # units that RESERVE holds, for the session to change
        self._pdus, self._alive_at = connection.pdus, now
        self._asked_at = 0  # when a ping was sent that decides; 0: none
        table = tasks_of(connection.wire.address)
        self._table = table
        self._seen = np.full(len(table), -1, np.int64)  # tag of the command seen in each place
        self._since = np.zeros(len(table), np.int64)
        self._requests: dict[int, Request] = {}
        self._cancelled: set[int] = set()  # tags of commands whose callers gave them up
        self._held_back = 0  # who wants that no command is sent
        self._shut_here = False
        self._stalled_at = now
        self._completions = worker.hot("completions")
        self._logout_tag: int | None = None
        self._logout_at = 0

    def look(self, now: int, timeouts: Timeouts) -> int:
        """See to everything that is due. When to look again. Raises what ends the connection."""
        self._look_for_life(now, timeouts)
        self._look_for_answers(now, timeouts)
        self._look_for_late_commands(now, timeouts)
        self._abort_cancelled(now, timeouts)
        self._look_for_a_closed_window(now, timeouts)
        self._look_for_the_end(now)
        return now + TICK_NS

    # --- is it alive -----------------------------------------------------------------------

    def _look_for_life(self, now: int, timeouts: Timeouts) -> None:
        mine = self._connection
        if mine.pdus != self._pdus:
            self._pdus, self._alive_at, self._asked_at = mine.pdus, now, 0
        silent_ns = now - self._alive_at
        # Sends ask for no completion of their own: any answer tells. A target that refuses a write
        # before it has all the data sends nothing more by itself.
        if mine.unsent and mine.hot("outstanding") and not mine.has_ping:
            mine.ping()
        if not timeouts.ping_interval_s or silent_ns < nanoseconds(timeouts.ping_interval_s):
            return
        if not self._asked_at:
            self._asked_at = now
            if not mine.has_ping:
                mine.ping()
            return
        if now - self._asked_at > nanoseconds(timeouts.ping_timeout_s * timeouts.ping_count):
            raise PingTimeout(
                f"nothing came from the target at {mine.portal.address} for "
                f"{silent_ns / 1e9:.1f} s, and no answer to a ping"
            )

    # --- late commands ---------------------------------------------------------------------

    def _look_for_late_commands(self, now: int, timeouts: Timeouts) -> None:
        table = self._table
        is_open = (table["state"] == STATE_ACTIVE) & (table["kind"] == KIND_SCSI)
        is_new = is_open & (table["itt"] != self._seen)
        self._since[is_new] = now
        self._seen[:] = np.where(is_open, table["itt"], -1)
        late = is_open & (now - self._since > nanoseconds(timeouts.command_s))
        for index in np.flatnonzero(late):
            task = table[int(index)]
            if not self._is_asked_about(int(task["itt"])):
                self._on_late(task, now, timeouts)

    def _is_asked_about(self, itt: int) -> bool:
        return any(request.itt == itt for request in self._requests.values())

    def _on_late(self, task: Any, now: int, timeouts: Timeouts) -> None:
        user_data = int(task["user_data"])
        if self._worker.record["load"]:
            raise self._too_late(timeouts)
        if user_data:
            doors.give_up(self._worker.address, user_data, -jobs.TIMED_OUT_RESULT)
        self._ask(TaskFunction.ABORT_TASK, task, now, timeouts, is_late=True)

    def _too_late(self, timeouts: Timeouts) -> CommandTimeout:
        return CommandTimeout(
            f"the target at {self._connection.portal.address} did not answer a command for "
            f"{timeouts.command_s:g} s; the connection was closed"
        )

    def _look_for_a_closed_window(self, now: int, timeouts: Timeouts) -> None:
        """Commands that cannot even be sent get as long as those that can."""
        completions = self._worker.hot("completions")
        if not self._worker.is_stuck or completions != self._completions:
            self._stalled_at, self._completions = now, completions
            return
        limit_ns, stalled_ns = nanoseconds(timeouts.command_s), now - self._stalled_at
        if stalled_ns > 3 * limit_ns or (stalled_ns > limit_ns and not self._requests):
            raise CommandTimeout(
                f"the target at {self._connection.portal.address} took no command for "
                f"{timeouts.command_s:g} s: its command window stays closed"
            )

    def abort(self, job: int, now: int, timeouts: Timeouts) -> None:
        """Have the target abort the open commands of a job that its caller gave up."""
        tasks = active_commands(self._connection.wire.address)
        self._cancelled |= {int(task["itt"]) for task in tasks if task["user_data"] == job}
        self._abort_cancelled(now, timeouts)

    def _abort_cancelled(self, now: int, timeouts: Timeouts) -> None:
        """Ask about as many of them as there is room for; the next look asks about the rest."""
        if not self._cancelled:
            return
        tasks = active_commands(self._connection.wire.address)
        self._cancelled &= {int(task["itt"]) for task in tasks}
        for task in tasks:
            itt = int(task["itt"])
            if itt in self._cancelled and not self._is_asked_about(itt):
                self._ask(TaskFunction.ABORT_TASK, task, now, timeouts, is_late=False)

    def _ask(
        self, function: TaskFunction, task: Any, now: int, timeouts: Timeouts, *, is_late: bool
    ) -> None:
        """Send a task management request (RFC 7143 §11.5), immediate so that no window stops it."""
        lun = int(task["lun"]) & (1 << 64) - 1
        is_abort = function is TaskFunction.ABORT_TASK
        header = bhs.encode(
            Opcode.TASK_MANAGEMENT_REQUEST,
            immediate=1,
            function=function,
            lun=lun,
            itt=bhs.RESERVED_TAG,
            referenced_task_tag=int(task["itt"]) if is_abort else bhs.RESERVED_TAG,
            ref_cmd_sn=int(task["cmd_sn"]) if is_abort else 0,
        )
        tag = self._connection.wire.send_control(header)
        if tag is None:
            return  # No place for it now: the next look tries again.
        self._controls.expect(tag)
        if not is_abort:
            self.hold_back()
        limit_ns = nanoseconds(min(timeouts.task_management_s, timeouts.command_s))
        self._requests[tag] = Request(function, int(task["itt"]), lun, now + limit_ns, is_late)

    def _look_for_answers(self, now: int, timeouts: Timeouts) -> None:
        for tag, request in list(self._requests.items()):
            try:
                answer = self._controls.answer(tag)
                response = None if answer is None else answer.header.response
            except RemoteProtocolError:
                response = int(TaskFunctionResponse.REJECTED)
            if response is None and now < request.deadline_ns:
                continue
            del self._requests[tag]
            self._controls.forget(tag)
            if response in _ENDED:
                self._on_ended(request)
            else:
                self._climb(request, now, timeouts)
            if request.function is TaskFunction.LOGICAL_UNIT_RESET:
                self.go_on()

    # A command sent while a reset is under way may be ended by it or not, and nothing tells: so
    # none is sent.

    def hold_back(self) -> None:
        """Let no command be sent until `go_on` was said as often."""
        self._held_back += 1
        if self._worker.record["gate"] == jobs.OPEN:
            self._worker.shut_gate()
            self._shut_here = True

    def go_on(self) -> None:
        """Let commands be sent again, unless something else is in their way."""
        self._held_back -= 1
        if self._shut_here and not self._held_back:
            self._shut_here = False
            if not self._logout_at:
                self._worker.open_gate()

    def _on_ended(self, request: Request) -> None:
        """The target let go of the command, or of all commands of its unit."""
        if request.function is TaskFunction.LOGICAL_UNIT_RESET:
            for lun in self._reserved:
                if encode_lun(lun) == request.lun:
                    raise ReservationLost(
                        f"the reservation of LUN {lun} ended with a reset of the unit, which did "
                        "not answer a command and did not abort it"
                    )
            self.send_ended_again(request.lun, but=request.itt)
        self._connection.wire.cancel(request.itt)

    def send_ended_again(self, lun: int | None, but: int = -1) -> None:
        """The open commands of a unit (None: of all) were ended by a reset: but for one, they are
        sent again where that is right.
        """
        for task in active_commands(self._connection.wire.address):
            is_meant = lun is None or int(task["lun"]) & (1 << 64) - 1 == lun
            if is_meant and task["itt"] != but:
                self._send_again(task)

    def _send_again(self, task: Any) -> None:
        """A reset took this command along: its job's rules decide what becomes of it."""
        lost = lost_command(task)
        if lost.user_data == 0 or jobs.job_at(lost.user_data)[0]["failed"]:
            self._connection.wire.cancel(int(task["itt"]))
            return
        task["user_data"] = 0
        self._connection.wire.cancel(int(task["itt"]))
        if is_replayable(lost.cdb):
            self._worker.hold(lost)
        else:
            doors.end_command(self._worker.address, lost.user_data, -jobs.UNKNOWN_OUTCOME)

    def _climb(self, request: Request, now: int, timeouts: Timeouts) -> None:
        """The next rung: the unit, then the connection."""
        found = [
            task
            for task in active_commands(self._connection.wire.address)
            if task["itt"] == request.itt
        ]
        if not found:
            return  # It was answered after all.
        if request.function is TaskFunction.ABORT_TASK and request.is_late:
            self._ask(TaskFunction.LOGICAL_UNIT_RESET, found[0], now, timeouts, is_late=True)
            return
        raise self._too_late(timeouts)

    # --- the target's wishes ---------------------------------------------------------------

    def _look_for_the_end(self, now: int) -> None:
        """A logout was asked for (RFC 7143 §11.9.1): let commands end, log out, come back."""
        if self._controls.wants_negotiation:
            self._controls.wants_negotiation = False
            self._connection.wire.send_control(
                bhs.encode(Opcode.TEXT_REQUEST, immediate=1, itt=bhs.RESERVED_TAG)
            )
        if self._controls.logout_within_s is None:
            return
        if not self._logout_at:
            self._logout_at = now + int(self._controls.logout_within_s * 1e9)
            self._worker.shut_gate()
        if self._logout_tag is None:
            if active_commands(self._connection.wire.address) and now < self._logout_at:
                return
            header = bhs.encode(Opcode.LOGOUT_REQUEST, immediate=1, itt=bhs.RESERVED_TAG)
            self._logout_tag = self._connection.wire.send_control(header)
            if self._logout_tag is not None:
                self._controls.expect(self._logout_tag)
            self._logout_at = now + LOGOUT_NS
            return
        answer = self._controls.answer(self._logout_tag)
        if answer is not None:
            self._controls.pause_s = answer.header.time2wait
        if answer is not None or now > self._logout_at:
            raise ConnectionLost("the target asked for a logout")
