"""Tasks that end because of another nexus while the Control mode page says TAS 1: each with TASK
ABORTED status (SAM-5 §5.6) instead of silence. Nothing that comes late for one reaches the medium.
"""

from typing import Final

from iscsi.wire.port import port_at
from iscsi.wire.rx import forget_place
from iscsi.wire.sense import ScsiStatus
from iscsi.wire.target_command import end_spoiled, spoil
from iscsi.wire.target_task import (
    STATE_COLD,
    STATE_DATA_IN,
    STATE_DATA_OUT,
    STATE_RESPOND,
    STATE_STORAGE,
    TASK_SIZE,
    make_ready,
    set_residual,
    target_at,
    task_at,
)
from shm.jit import nopython

TASK_ABORTED: Final = int(ScsiStatus.TASK_ABORTED)


@nopython
def end_aborted(conn: int, lun_number: int) -> int:
    """End a connection's tasks for one LUN with TASK ABORTED; how many there were.

    A command whose turn has not come is in no task set yet, and one whose status is known ends with
    it. Work that somebody does on them is still to be waited for (`target_task.aborted_work`).
    """
    mine = target_at(conn)[0]
    count = 0
    for index in range(mine["task_count"]):
        address = int(mine["tasks"] + TASK_SIZE * index)
        task = task_at(address)[0]
        if task["lun_number"] != lun_number:
            continue
        if task["state"] == STATE_DATA_OUT:
            _end_coming(conn, address)
            count += 1
        elif task["state"] in (STATE_COLD, STATE_STORAGE, STATE_DATA_IN):
            _end_now(conn, address)
            count += 1
    return count


@nopython
def _end_coming(conn: int, address: int) -> None:
    """Throw away what is still to come; the response waits for the end of its bursts, as after any
    other fault (RFC 7143 §7.8).
    """
    spoil(conn, address, 0)
    if port_at(conn)[0]["rx_object"] == address:
        forget_place(conn)
    elif task_at(address)[0]["unsolicited"] == 0:
        end_spoiled(conn, address)


@nopython
def _end_now(conn: int, address: int) -> None:
    """Its initiator owes nothing. Data-In that is out already counts as moved."""
    task = task_at(address)[0]
    task["medium"] = 0
    task["status"] = TASK_ABORTED
    task["sense"] = 0
    task["sense_length"] = 0
    set_residual(address, task["sent"])
    task["state"] = STATE_RESPOND
    make_ready(conn, address)
