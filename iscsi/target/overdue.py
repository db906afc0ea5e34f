"""Whether an initiator keeps buffers too long: it owes data, or does not take what it asked for.
Each command that waits for data has a limit, which all written data of the connection extends, at a
rate that any working link keeps: so a slow initiator is never late, in whatever order it serves its
R2Ts, and one that answers pings but sends no data is. No clock here: `now` comes in.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from iscsi.wire.target import TargetConnection
from iscsi.wire.target_task import STATE_DATA_OUT, TASK, target_at
from shm.view import window

# Bytes a second that are enough to be in time for ever.
RATE_MIN: Final = 16 << 10
# A table is looked at this often within a limit.
_LOOKS: Final = 8
_LOOK_NS_MAX: Final = 1_000_000_000


class Overdue:
    """One connection's. `limit_ns` 0 switches it off."""

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns
        self._look_at_ns = 0
        self._since: dict[int, tuple[int, int]] = {}  # by task id: when, and bytes taken by then

    def is_due(self, now_ns: int) -> bool:
        """Whether it is time to look again."""
        return self._limit_ns > 0 and now_ns >= self._look_at_ns

    def step(self, waiting: Iterable[int], taken: int, now_ns: int) -> int | None:
        """Look at the ids of the tasks that wait for data, and at how many bytes of data have come
        in all: the id of a task that is too late, or None.
        """
        self._look_at_ns = now_ns + min(self._limit_ns // _LOOKS, _LOOK_NS_MAX)
        start = (now_ns, taken)
        self._since = {task: self._since.get(task, start) for task in waiting}
        for task, (since_ns, before) in self._since.items():
            more_ns = (taken - before) * 1_000_000_000 // RATE_MIN
            if now_ns >= since_ns + self._limit_ns + more_ns:
                return task
        return None


def waiting_for_data(protocol: TargetConnection) -> list[int]:
    """The ids of a connection's tasks to which its initiator owes data."""
    mine = target_at(protocol.address)[0]
    tasks = window(int(mine["tasks"]), int(mine["task_count"]), TASK)
    found: list[int] = tasks["id"][np.flatnonzero(tasks["state"] == STATE_DATA_OUT)].tolist()
    return found


def waiting_to_be_read(port: Any, buffer_held: int) -> list[int]:
    """What stands for the PDU that is to be taken next, while buffers wait for that: a number below
    0, which is another one for each PDU. Sends from buffers are reported as soon as they are out.
    `port`: a PORT, or what says the same of one.
    """
    if not buffer_held or port["tx_sent"] == port["tx_made"]:
        return []
    return [-1 - int(port["tx_sent"])]
