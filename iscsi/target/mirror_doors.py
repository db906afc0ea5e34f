"""Doors into the upper half of a datamover's target (`iscsi.wire.target_mirror`), for what Python
does with a connection whose PDUs the engine makes and takes.
"""

from iscsi.wire import target_mirror
from shm.jit import entry


@entry("void(intp, int64, int64)")
def set_gate(conn: int, lun: int, gate: int) -> None:
    """Door to `target_mirror.set_gate`, for a target of any kind."""
    target_mirror.set_gate(conn, lun, gate)


@entry("int64(intp, int64, int64, int64)")
def ask_abort(conn: int, itt: int, ref_cmd_sn: int, cmd_sn: int) -> int:
    """Door to `target_mirror.ask_abort`."""
    return target_mirror.ask_abort(conn, itt, ref_cmd_sn, cmd_sn)


@entry("int64(intp, int64, int64, int64)")
def ask_tasks(conn: int, lun: int, itt: int, flags: int) -> int:
    """Door to `target_mirror.ask_tasks`."""
    return target_mirror.ask_tasks(conn, lun, itt, flags)


@entry("int64(intp, int64)")
def tasks_answer(conn: int, number: int) -> int:
    """Door to `target_mirror.tasks_answer`."""
    return target_mirror.tasks_answer(conn, number)


@entry("int64(intp)")
def unsettled(conn: int) -> int:
    """Door to `target_mirror.unsettled`."""
    return target_mirror.unsettled(conn)


@entry("int64(intp, int64)")
def abort_answer(conn: int, number: int) -> int:
    """Door to `target_mirror.abort_answer`."""
    return target_mirror.abort_answer(conn, number)
