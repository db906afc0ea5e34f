"""Task management (RFC 7143 §11.5, SAM-5 §7): what a function ends, whom it tells, and when it may
be answered. A function has acted before its response is made: tasks that somebody else still works
on are ended at once, but the response waits until that work is over.
"""

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from iscsi.target.connection import Connection, Phase
from iscsi.target.mirror_doors import abort_answer, ask_abort, ask_tasks, tasks_answer
from iscsi.target.scsi.pr_unit import reservations_of
from iscsi.target.units import LogicalUnit
from iscsi.wire.bhs import Header, TaskFunction, TaskFunctionResponse
from iscsi.wire.errors import RemoteProtocolError
from iscsi.wire.scsi import decode_lun
from iscsi.wire.sense import Asc, SenseKey
from iscsi.wire.target import TargetConnection
from iscsi.wire.target_task import STATE_FREE, STATE_SENT, TASK, target_at
from shm.view import window

_EVERY_UNIT: Final = None
_NOT_THERE: Final[Mapping[bool, TaskFunctionResponse]] = {
    True: TaskFunctionResponse.COMPLETE,
    False: TaskFunctionResponse.TASK_DOES_NOT_EXIST,
}
_QUERIED: Final[Mapping[bool, TaskFunctionResponse]] = {
    True: TaskFunctionResponse.SUCCEEDED,
    False: TaskFunctionResponse.COMPLETE,
}


@dataclass(frozen=True, slots=True)
class Managed:
    """A function that has acted. `touched`: the sessions of which it ended tasks, and the LUN;
    `ends`: the sessions that end once its response is sent.
    """

    itt: int
    response: TaskFunctionResponse
    touched: tuple[tuple[Connection, int | None], ...] = ()
    ends: tuple[Connection, ...] = ()
    additional: int = 0  # what a query found, 24 bits

    @property
    def is_over(self) -> bool:
        """Whether nobody works any more on what it ended."""
        return not any(
            session.protocol is not None and session.protocol.aborted_work(lun)
            for session, lun in self.touched
        )


@dataclass(frozen=True, slots=True)
class LateAnswer:
    """A command that was done, and is answered by `give` when the work it ended is over."""

    is_done: Callable[[], bool]
    give: Callable[[], None]

    @property
    def is_over(self) -> bool:
        """Whether it can be answered."""
        return self.is_done()


@dataclass(slots=True)
class Asking:
    """A function of which the engine knows how it ends: `hear` gives that, once it is known."""

    hear: Callable[[], Managed | None]
    _heard: Managed | None = None

    @property
    def is_over(self) -> bool:
        """Whether it can be answered."""
        if self._heard is None:
            self._heard = self.hear()
        return self._heard is not None and self._heard.is_over

    @property
    def answered(self) -> Managed:
        """What became of it, once it is over."""
        assert self._heard is not None, "it is asked only when it is over"
        return self._heard


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and the sessions of the server."""

    connection: Connection
    header: Header
    sessions: tuple[Connection, ...]

    @property
    def lun(self) -> int | None:
        return decode_lun(self.header.lun)

    @property
    def unit(self) -> LogicalUnit | None:
        """The unit that is named, if there is one."""
        target, lun = self.connection.target, self.lun
        return None if target is None or lun is None else target.units.get(lun)

    def managed(
        self,
        response: TaskFunctionResponse = TaskFunctionResponse.COMPLETE,
        touched: Iterable[tuple[Connection, int | None]] = (),
        ends: Iterable[Connection] = (),
    ) -> Managed:
        """What became of it."""
        return Managed(self.header.itt, response, tuple(touched), tuple(ends))

    def places(self, unit: LogicalUnit) -> list[tuple[Connection, int]]:
        """Every session that sees a unit, and the LUN it sees it at."""
        return [
            (session, lun)
            for session in self.sessions
            if session.target is not None and session.protocol is not None
            for lun, known in session.target.units.items()
            if known is unit
        ]

    def abort(self, session: Connection, lun: int | None) -> int:
        """End a session's tasks; of the asking one only those that came before the request."""
        before = self.header.cmd_sn if session is self.connection else None
        return _protocol(session).abort_lun(lun, before=before)

    def abort_at(self, session: Connection, lun: int) -> None:
        """End a session's tasks at a unit; where TAS is 1, those of others with TASK ABORTED."""
        if session is self.connection:
            self.abort(session, lun)
        else:
            session.nexus.abort_tasks(lun)


def manage(
    connection: Connection, header: Header, sessions: Iterable[Connection]
) -> Managed | Asking:
    """Carry a Task Management Function Request out. RemoteProtocolError in a discovery session."""
    if connection.target is None:
        raise RemoteProtocolError("task management in a discovery session")
    asked = _Asked(connection, header, tuple(sessions))
    if connection.nexus.read_only and header.function in _ENDS_TASKS_OF_OTHERS:
        return asked.managed(TaskFunctionResponse.AUTHORIZATION_FAILED)
    function = _FUNCTIONS.get(header.function)
    if function is None and connection.nexus.protocol_level > 1:
        function = _MORE_FUNCTIONS.get(header.function)
    if function is not None:
        return function(asked)
    if header.function == TaskFunction.TASK_REASSIGN:
        return asked.managed(TaskFunctionResponse.REASSIGNMENT_NOT_SUPPORTED)
    known = header.function in set(TaskFunction)
    response = TaskFunctionResponse.NOT_SUPPORTED if known else TaskFunctionResponse.REJECTED
    return asked.managed(response)


def _protocol(connection: Connection) -> TargetConnection:
    assert connection.protocol is not None, "only the full feature phase has tasks"
    return connection.protocol


def _abort_task(asked: _Asked) -> Managed | Asking:
    """One task of this session; one that is on its way counts as received (RFC 7143 §11.5.5)."""
    header, protocol = asked.header, _protocol(asked.connection)
    if protocol.abort_task(header.referenced_task_tag):
        return asked.managed(touched=[(asked.connection, asked.lun)])
    if asked.connection.moves:
        tag, before = header.referenced_task_tag, header.ref_cmd_sn
        number = ask_abort(protocol.address, tag, before, header.cmd_sn)
        return _ask(asked, number, abort_answer, _NOT_THERE)
    if protocol.count_as_received(header.ref_cmd_sn, header.cmd_sn):
        return asked.managed()
    return asked.managed(TaskFunctionResponse.TASK_DOES_NOT_EXIST)


def _ask(
    asked: _Asked,
    number: int,
    answer_of: Callable[[int, int], int],
    responses: Mapping[bool, TaskFunctionResponse],
) -> Asking:
    """Answer by what an engine says of a question's number: whether there are such tasks."""
    address = _protocol(asked.connection).address

    def hear() -> Managed | None:
        if number == 0:
            return asked.managed(TaskFunctionResponse.REJECTED)
        found = answer_of(address, number)
        return None if found == -errno.EAGAIN else asked.managed(responses[found > 0])

    return Asking(hear)


def _abort_task_set(asked: _Asked) -> Managed:
    """This session's tasks for one unit. CLEAR TASK SET is the same: by TST every I_T nexus has a
    task set of its own (RFC 7143 §11.5.1, SAM-5 §7.5).
    """
    if asked.unit is None:
        return asked.managed(TaskFunctionResponse.LUN_DOES_NOT_EXIST)
    asked.abort(asked.connection, asked.lun)
    return asked.managed(touched=[(asked.connection, asked.lun)])


def _reset_unit(asked: _Asked, unit: LogicalUnit, code: Asc) -> list[tuple[Connection, int]]:
    """End all tasks of a unit and what they set up, and tell every session (SAM-5 §6.3.3)."""
    touched = asked.places(unit)
    for session, lun in touched:
        asked.abort_at(session, lun)
    unit.reset()
    for session, lun in touched:
        session.nexus.raise_attention(lun, code)
    return touched


def _logical_unit_reset(asked: _Asked) -> Managed:
    unit = asked.unit
    if unit is None:
        return asked.managed(TaskFunctionResponse.LUN_DOES_NOT_EXIST)
    return asked.managed(touched=_reset_unit(asked, unit, Asc.DEVICE_RESET_OCCURRED))


def _reset_target(asked: _Asked) -> tuple[list[tuple[Connection, int | None]], list[Connection]]:
    """Reset every unit of the target, and end the asking session's tasks of units that are not
    there. (Others' are answered in the moment in which they come.)
    """
    target = asked.connection.target
    assert target is not None, "discovery sessions were sent away"
    touched: list[tuple[Connection, int | None]] = []
    for unit in dict.fromkeys(target.units.values()):
        touched += _reset_unit(asked, unit, Asc.BUS_RESET_OCCURRED)
    asked.abort(asked.connection, _EVERY_UNIT)
    return touched, [each for each in asked.sessions if each.target is target]


def _target_warm_reset(asked: _Asked) -> Managed:
    return asked.managed(touched=_reset_target(asked)[0])


def _target_cold_reset(asked: _Asked) -> Managed:
    """The same, and all sessions with the target end, this one after its response is sent."""
    touched, sessions = _reset_target(asked)
    ends = [session for session in sessions if session.phase is Phase.FULL]
    return asked.managed(touched=touched, ends=ends)


# --- what RFC 7144 adds ------------------------------------------------------------------------


def _query(asked: _Asked, tag: int | None = None) -> Managed | Asking:
    """Whether this nexus has a task at a unit: with this tag, or any."""
    if asked.unit is None:
        return asked.managed(TaskFunctionResponse.LUN_DOES_NOT_EXIST)
    mine = target_at(_protocol(asked.connection).address)[0]
    tasks = window(int(mine["tasks"]), int(mine["task_count"]), TASK)
    is_there = (tasks["lun_number"] == asked.lun) & ~np.isin(tasks["state"], _OVER)
    if tag is not None:
        is_there &= tasks["itt"] == tag
    if not is_there.any() and asked.connection.moves and asked.lun is not None:
        address = _protocol(asked.connection).address
        number = ask_tasks(address, asked.lun, -1 if tag is None else tag, 0)
        return _ask(asked, number, tasks_answer, _QUERIED)
    return asked.managed(_QUERIED[bool(is_there.any())])


def _query_task(asked: _Asked) -> Managed | Asking:
    return _query(asked, asked.header.referenced_task_tag)


def _query_asynchronous_event(asked: _Asked) -> Managed:
    """Whether a unit attention waits for this nexus; which one goes into the response: how many
    there are (1, or 2 for more), sense key and code (SAM-5 §7.10).
    """
    nexus, lun = asked.connection.nexus, asked.lun
    if asked.unit is None or lun is None:
        return asked.managed(TaskFunctionResponse.LUN_DOES_NOT_EXIST)
    code = nexus.pending(lun)
    if code is None:
        return asked.managed()
    depth = min(nexus.attentions(lun), 2)
    additional = depth << 20 | SenseKey.UNIT_ATTENTION << 16 | int(code)
    return replace(asked.managed(TaskFunctionResponse.SUCCEEDED), additional=additional)


def _nexus_reset(asked: _Asked) -> Managed:
    """An I_T nexus loss at every unit (SAM-5 §6.3.4), of a nexus that lives on: its tasks end, what
    it held is given back, and it is told so.
    """
    nexus, target = asked.connection.nexus, asked.connection.target
    assert target is not None, "discovery sessions were sent away"
    asked.abort(asked.connection, _EVERY_UNIT)
    for lun, unit in target.units.items():
        unit.prevented_by.discard(nexus)
        held = reservations_of(unit)
        if held.reserved_by is nexus:
            held.reserve(None)
        nexus.raise_attention(lun, Asc.I_T_NEXUS_LOSS)
    return asked.managed(touched=[(asked.connection, _EVERY_UNIT)])


_OVER: Final = (STATE_FREE, STATE_SENT)
# Not for initiators that may only read (RFC 7143 §11.6.1, response 6).
_ENDS_TASKS_OF_OTHERS: Final = frozenset(
    (
        TaskFunction.LOGICAL_UNIT_RESET,
        TaskFunction.TARGET_WARM_RESET,
        TaskFunction.TARGET_COLD_RESET,
    )
)
_FUNCTIONS: Final[Mapping[int, Callable[[_Asked], Managed | Asking]]] = {
    TaskFunction.ABORT_TASK: _abort_task,
    TaskFunction.ABORT_TASK_SET: _abort_task_set,
    TaskFunction.CLEAR_TASK_SET: _abort_task_set,
    TaskFunction.LOGICAL_UNIT_RESET: _logical_unit_reset,
    TaskFunction.TARGET_WARM_RESET: _target_warm_reset,
    TaskFunction.TARGET_COLD_RESET: _target_cold_reset,
}
# For sessions that agreed on iSCSIProtocolLevel 2 (RFC 7144).
_MORE_FUNCTIONS: Final[Mapping[int, Callable[[_Asked], Managed | Asking]]] = {
    TaskFunction.QUERY_TASK: _query_task,
    TaskFunction.QUERY_TASK_SET: _query,
    TaskFunction.I_T_NEXUS_RESET: _nexus_reset,
    TaskFunction.QUERY_ASYNCHRONOUS_EVENT: _query_asynchronous_event,
}
