"""Which of an initiator's commands have which tags: the ISER_TASK beside a task, and what looks
through all of them. The rest of its lower half is `iscsi.wire.iser.initiator`.
"""

from iscsi.wire.initiator_task import (
    STATE_DONE,
    STATE_FREE,
    TASK_SIZE,
    initiator_at,
    task_at,
)
from iscsi.wire.iser.records import (
    ISER_TASK_SIZE,
    TAG_KEPT,
    TAG_LIVE,
    TAG_NONE,
    TAG_RELEASED,
    iser_at,
    iser_task_at,
)
from shm.jit import nopython


@nopython
def iser_task_of(iser: int, address: int) -> int:
    """Address of the ISER_TASK beside a task."""
    mine = iser_at(iser)[0]
    index = (address - initiator_at(mine["conn"])[0]["tasks"]) // TASK_SIZE
    return int(mine["tasks"] + ISER_TASK_SIZE * index)


@nopython
def names_tag(iser: int, stag: int) -> bool:
    """Whether an open command named a tag that is kept."""
    mine = iser_at(iser)[0]
    tasks = initiator_at(mine["conn"])[0]["tasks"]
    for index in range(mine["task_count"]):
        its = iser_task_at(mine["tasks"] + ISER_TASK_SIZE * index)[0]
        if its["tag_state"] != TAG_KEPT or its["write_stag"] != stag:
            continue
        state = task_at(tasks + TASK_SIZE * index)[0]["state"]
        if state != STATE_FREE and state != STATE_DONE:
            return True
    return False


@nopython
def tag_left(iser: int) -> int:
    """A tag that is still open, once, for whoever ends the connection; 0: there is none. If it was
    being invalidated it may be gone already.
    """
    mine = iser_at(iser)[0]
    for index in range(mine["task_count"]):
        its = iser_task_at(mine["tasks"] + ISER_TASK_SIZE * index)[0]
        if its["tag_state"] == TAG_LIVE or its["tag_state"] == TAG_RELEASED:
            its["tag_state"] = TAG_NONE
            return int(its["write_stag"])
    return 0
