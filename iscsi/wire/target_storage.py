"""Tasks whose data goes to or comes from a file, for whoever does that: which is next, that
somebody works on one, and what became of it. No input or output here. What is pinned keeps its
memory, aborted or not, until it is unpinned.
"""

import errno
from typing import Final

from iscsi.wire import bhs
from iscsi.wire.port import is_empty, pop, push
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey
from iscsi.wire.target_task import (
    STATE_COLD,
    STATE_DATA_IN,
    STATE_RESPOND,
    STATE_STORAGE,
    STORAGE,
    free_if_sent,
    make_ready,
    set_residual,
    target_at,
    task_at,
)
from shm.jit import nopython

CHECK_CONDITION: Final = int(ScsiStatus.CHECK_CONDITION)
ENOSPC: Final = errno.ENOSPC
# What a file's -errno becomes (SBC-3 §4.13 and §4.7.3.7).
READ_FAILED: Final = SenseKey.MEDIUM_ERROR << 16 | Asc.UNRECOVERED_READ_ERROR
WRITE_FAILED: Final = SenseKey.MEDIUM_ERROR << 16 | Asc.WRITE_ERROR
NO_SPACE: Final = SenseKey.DATA_PROTECT << 16 | Asc.SPACE_ALLOCATION_FAILED


@nopython
def wait_for_storage(conn: int, address: int) -> None:
    """Put a task in line for `storage_next`, once."""
    task = task_at(address)[0]
    if task["storage_queued"] == 0:
        task["storage_queued"] = 1
        push(conn + STORAGE, address)


@nopython
def storage_next(conn: int) -> int:
    """Address of the next TASK whose data is to be read from or written to `medium`, or 0.

    A write's `transfer` bytes lie at `data_address`; a read's belong there, once `hold_buffer` has
    found a place. A write that has no buffer either is to be asked for its data when it has
    (`target_command.data_may_come`). Ends in `storage_done`; `wait_for_storage` puts it back.
    """
    while not is_empty(conn + STORAGE):
        address = pop(conn + STORAGE)
        task_at(address)[0]["storage_queued"] = 0
        if task_at(address)[0]["state"] == STATE_STORAGE:
            return address
    return 0


@nopython
def storage_done(conn: int, address: int, result: int) -> None:
    """A task from `storage_next` is done: 0, or the -errno that becomes its sense."""
    task = task_at(address)[0]
    task["medium"] = 0
    is_read = task["direction"] == bhs.FLAG_READ
    if result == 0:
        task["state"] = STATE_DATA_IN if is_read else STATE_RESPOND
    else:
        task["status"] = CHECK_CONDITION
        task["sense"] = READ_FAILED if is_read else WRITE_FAILED
        if result == -ENOSPC:
            task["sense"] = NO_SPACE
        set_residual(address, 0)
        task["state"] = STATE_RESPOND
    make_ready(conn, address)


@nopython
def pin(conn: int, address: int) -> None:
    """Somebody else works on a task's data: it and its buffer stay, even if it is aborted."""
    task_at(address)[0]["tx_pending"] += 1
    task_at(address)[0]["workers"] += 1
    target_at(conn)[0]["jobs"] += 1


@nopython
def unpin(conn: int, address: int) -> bool:
    """The work is over. Whether the task was not aborted meanwhile; else it is given back now."""
    task = task_at(address)[0]
    task["tx_pending"] -= 1
    task["workers"] -= 1
    target_at(conn)[0]["jobs"] -= 1
    free_if_sent(conn, address)
    return bool(task["state"] in (STATE_STORAGE, STATE_COLD))
