"""Task attributes (SAM-5 §8.6) as far as compiled code has to do with them: it numbers commands in
the order in which their turns come, and serves none itself while one that is not SIMPLE is open.
Who waits for whom is for the cold code.
"""

from typing import Final

from iscsi.wire import bhs
from iscsi.wire.target_task import target_at, task_at
from shm.jit import nopython

ORDERED: Final = int(bhs.TaskAttribute.ORDERED)
HEAD_OF_QUEUE: Final = int(bhs.TaskAttribute.HEAD_OF_QUEUE)


@nopython
def take_turn(conn: int, address: int) -> None:
    """A command's turn has come: it is in its task set now, behind those that came before."""
    mine, task = target_at(conn)[0], task_at(address)[0]
    mine["arrivals"] += 1
    task["arrival"] = mine["arrivals"]
    attribute = task["flags"] & bhs.ATTRIBUTE_MASK
    if attribute in (ORDERED, HEAD_OF_QUEUE):
        task["is_ordered"] = 1
        mine["ordered"] += 1
