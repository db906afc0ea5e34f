"""Whose turn it is (SAM-5 §8): commands of one I_T nexus for one unit are a task set of their own
(TST 001b of the Control mode page), so nobody waits for another initiator. While an ORDERED or HEAD
OF QUEUE one is open, compiled code leaves the whole session to the cold code, which asks here.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from iscsi.target.connection import Connection, Phase
from iscsi.wire.bhs import ATTRIBUTE_MASK, TaskAttribute
from iscsi.wire.sense import ScsiStatus
from iscsi.wire.target import ColdCommand, TargetConnection
from iscsi.wire.target_task import (
    STATE_COLD,
    STATE_DATA_IN,
    STATE_DATA_OUT,
    STATE_STORAGE,
    TASK,
    target_at,
)
from shm.view import window

# An ORDERED command that cannot be done by then ends with BUSY. It may have had to wait for a
# buffer that those hold that wait for it.
ORDER_WAIT_S: Final = 10.0
# What is done, but not answered, is answered first anyway: responses go out in order.
_OPEN: Final = (STATE_DATA_OUT, STATE_COLD, STATE_DATA_IN, STATE_STORAGE)


def _tasks(protocol: TargetConnection) -> np.ndarray[Any, Any]:
    mine = target_at(protocol.address)[0]
    return window(int(mine["tasks"]), int(mine["task_count"]), TASK)


def _task(protocol: TargetConnection, command: ColdCommand) -> Any:
    return _tasks(protocol)[command.task_id & 0xFFFF]


def is_ordered(command: ColdCommand) -> bool:
    """Whether all that came before a command has to be over first."""
    return command.flags & ATTRIBUTE_MASK == TaskAttribute.ORDERED


def must_wait(connection: Connection, command: ColdCommand) -> bool:
    """Whether a command has to wait for others of its task set (SAM-5 §8.6): an ORDERED one for all
    that came before it, any but HEAD OF QUEUE for what is HEAD OF QUEUE or ORDERED and before it.
    """
    protocol = connection.protocol
    assert protocol is not None, "it gave us the command"
    if not target_at(protocol.address)[0]["ordered"] or command.lun is None:
        return False
    attribute = command.flags & ATTRIBUTE_MASK
    if attribute == TaskAttribute.HEAD_OF_QUEUE:
        return False
    tasks = _tasks(protocol)
    own = tasks["arrival"][command.task_id & 0xFFFF]
    is_open = np.isin(tasks["state"], _OPEN) | (tasks["workers"] > 0)
    others = tasks[is_open & (tasks["lun_number"] == command.lun) & (tasks["arrival"] != own)]
    attributes = others["flags"] & ATTRIBUTE_MASK
    is_earlier = (others["arrival"] > 0) & (others["arrival"] < own)
    if np.any((attributes == TaskAttribute.HEAD_OF_QUEUE) & (others["arrival"] > 0)):
        return True
    if attribute == TaskAttribute.ORDERED:
        return bool(np.any(is_earlier)) or _is_being_read(connection, command.lun)
    return bool(np.any(is_earlier & (attributes == TaskAttribute.ORDERED)))


def _is_being_read(connection: Connection, lun: int) -> bool:
    """Whether data of an earlier READ may still be on its way out of the unit's own memory."""
    unit = None if connection.target is None else connection.target.units.get(lun)
    if unit is None or not unit.backend.memory:
        return False
    return connection.sends_from(unit.backend.memory, unit.backend.memory + unit.backend.size)


def wait(
    connection: Connection,
    command: ColdCommand,
    run_when: Callable[[Callable[[], bool], Callable[[], None]], None],
    serve: Callable[[], None],
) -> None:
    """Have a command served when its turn comes; its data stays where it is until then."""
    protocol = connection.protocol
    assert protocol is not None, "it gave us the command"
    protocol.pin(command)
    deadline = time.monotonic() + ORDER_WAIT_S
    is_ordered = command.flags & ATTRIBUTE_MASK == TaskAttribute.ORDERED

    def is_due() -> bool:
        if connection.phase is Phase.CLOSING or _task(protocol, command)["state"] != STATE_COLD:
            return True
        if is_ordered and time.monotonic() >= deadline:
            return True
        return not must_wait(connection, command)

    def go_on() -> None:
        if not protocol.unpin(command) or connection.phase is Phase.CLOSING:
            return  # aborted meanwhile
        if must_wait(connection, command):
            protocol.respond(command.task_id, ScsiStatus.BUSY)
        else:
            serve()

    run_when(is_due, go_on)
