"""WRITEs of compiled code that are under way at a target, for commands that must not see or leave a
half of one: which of them has put a part of its data into a unit's memory already, and ending those
whose unit is about to lose its data.
"""

from typing import Final

from iscsi.wire import bhs
from iscsi.wire.mover import REFUSE
from iscsi.wire.port import port_at
from iscsi.wire.rx import forget_place
from iscsi.wire.sense import ScsiStatus
from iscsi.wire.target_command import end_spoiled, stop_get
from iscsi.wire.target_posts import add_abort, mirror_at
from iscsi.wire.target_task import (
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

CHECK_CONDITION: Final = int(ScsiStatus.CHECK_CONDITION)
WRITE: Final = bhs.FLAG_WRITE


@nopython
def _is_write(address: int, lun_number: int) -> bool:
    """Whether a task is a WRITE that compiled code serves at a unit."""
    task = task_at(address)[0]
    if task["state"] != STATE_DATA_OUT and task["state"] != STATE_STORAGE:
        return False
    if task["unit"] == 0 or task["lun_number"] != lun_number:
        return False
    return bool(task["direction"] == WRITE)


@nopython
def half_written(conn: int, lun_number: int, start: int, end: int) -> int:
    """WRITEs that have put a part of their data, but not all, into memory at `start` to `end`."""
    mine, port = target_at(conn)[0], port_at(conn)[0]
    count = 0
    for index in range(mine["task_count"]):
        address = int(mine["tasks"] + TASK_SIZE * index)
        if not _is_write(address, lun_number):
            continue
        task = task_at(address)[0]
        has_begun = task["received"] or task["post"] or port["rx_object"] == address
        if task["medium"] or not has_begun:
            continue
        place = task["data_address"]
        if place < end and start < place + task["transfer"]:
            count += 1
    return count


@nopython
def refuse_writes(conn: int, lun_number: int, sense: int) -> int:
    """End the WRITEs at a unit whose data is not all there, or waits for its file, with this sense
    (key << 16 | code): nothing of it reaches the medium any more. How many there were.

    Those that somebody works on already are not touched.
    """
    mine = target_at(conn)[0]
    count = 0
    for index in range(mine["task_count"]):
        address = int(mine["tasks"] + TASK_SIZE * index)
        if not _is_write(address, lun_number) or task_at(address)[0]["workers"]:
            continue
        count += 1
        if task_at(address)[0]["state"] == STATE_STORAGE:
            _refuse_waiting(conn, address, sense)
        else:
            _refuse_coming(conn, address, sense)
    # Those that the engine serves by itself; the others' GETs were stopped above.
    if mine["mirror"] and mirror_at(mine["mirror"])[0]["serves_units"]:
        add_abort(mine["mirror"], lun_number, -1, REFUSE, sense)
    return count


@nopython
def _refuse_waiting(conn: int, address: int, sense: int) -> None:
    """All of its data is there, or none was asked for: answer it now."""
    task = task_at(address)[0]
    task["medium"] = 0
    task["status"] = CHECK_CONDITION
    task["sense"] = sense
    task["state"] = STATE_RESPOND
    set_residual(address, 0)
    make_ready(conn, address)


@nopython
def _refuse_coming(conn: int, address: int, sense: int) -> None:
    """Throw away what is still to come; the response waits for the end of its bursts."""
    task = task_at(address)[0]
    if task["spoiled"] == 0:
        task["spoiled"] = 1
        task["spoiled_sense"] = sense
        stop_get(conn, address)
    if port_at(conn)[0]["rx_object"] == address:
        forget_place(conn)
    elif task["unsolicited"] == 0:
        end_spoiled(conn, address)
