"""Commands that the unit did not execute now but may later: busy, task set full, unit attention.
Each is sent again after a pause, for a bounded time; a full task set makes the queue shorter, which
grows again while all goes well. An attention that tells more than that ends the session.
"""

from collections.abc import Collection
from typing import Any, Final

from iscsi.session import jobs
from iscsi.session.attention import grave
from iscsi.session.options import Timeouts, nanoseconds
from iscsi.session.worker import Worker
from iscsi.wire.errors import ScsiError
from iscsi.wire.scsi import decode_lun
from iscsi.wire.sense import Asc, SenseKey, decode_sense, encode_sense

ATTENTIONS_MAX: Final = 64  # in a row, without a command that ends well
FIRST_PAUSE_NS: Final = 5_000_000
LONGEST_PAUSE_NS: Final = 1_000_000_000
GROW_AFTER_NS: Final = 1_000_000_000
FAR_NS: Final = 1 << 62


class Patience:
    """Looks at the commands a `Worker` holds. `attentions` are the codes seen last; `reserved` the
    units that RESERVE holds, for the session to change; `removable`: the device's medium can go.
    """

    def __init__(self, worker: Worker, depth: int, reserved: Collection[int] = ()) -> None:
        self._worker, self._depth = worker, depth
        self._reserved, self.removable = reserved, False
        self._since_ns = 0  # the unit has been busy since then; 0: it is not
        self._grow_at_ns = 0
        self.attentions: list[int] = []

    @property
    def capacity_changed(self) -> bool:
        """Whether the unit said that its capacity is another one now."""
        return Asc.CAPACITY_DATA_CHANGED in self.attentions

    def look(self, now: int, timeouts: Timeouts) -> int:
        """Send again what is due. When to look again (nanoseconds). Raises ScsiError in a load,
        ReservationLost and UnitChanged.
        """
        mine = self._worker.record
        if mine["retries"] == 0:
            self._since_ns = 0
        self._grow(now)
        if mine["replays_used"] == 0:
            mine["held"] = 0
            return FAR_NS
        mine["held"] = 0
        due = FAR_NS
        for entry in self._worker.waiting():
            if entry["due_ns"] == 0:
                self._judge(entry, now, timeouts)
            if entry["state"] == jobs.HELD:
                if entry["due_ns"] <= now:
                    entry["state"] = jobs.READY
                    due = now
                else:
                    due = min(due, int(entry["due_ns"]))
        return due

    def _judge(self, entry: Any, now: int, timeouts: Timeouts) -> None:
        """Say when a command is sent again, or that it is not."""
        retries = int(self._worker.record["retries"])
        self._since_ns = self._since_ns or now
        since, count = self._put_off(entry, now)
        if entry["asc"] >= 0:
            self._notice(int(entry["asc"]), int(entry["lun"]))
            entry["due_ns"] = now
            if count > ATTENTIONS_MAX + self._depth:
                self._refuse(entry)
            return
        if now - since > nanoseconds(timeouts.command_s):
            self._refuse(entry)
            return
        if entry["status"] == jobs.TASK_SET_FULL:
            self._shrink(now)
        pause = min(FIRST_PAUSE_NS << min(retries // self._depth, 10), LONGEST_PAUSE_NS)
        entry["due_ns"] = now + pause

    def _notice(self, code: int, field: int) -> None:
        """A unit has news. Raises what it means, if more than that."""
        self.attentions = [*self.attentions[-ATTENTIONS_MAX:], code]
        lun = decode_lun(field & (1 << 64) - 1)
        error = grave(code, -1 if lun is None else lun, self._reserved, removable=self.removable)
        if error is not None:
            raise error

    def _put_off(self, entry: Any, now: int) -> tuple[int, int]:
        """Since when the commands of a job are put off, and how often, without one that ended
        well; those of a load count together.
        """
        if self._worker.record["load"]:
            return self._since_ns, int(self._worker.record["retries"])
        job: Any = jobs.job_at(int(entry["user_data"]))[0]
        if not job["put_off_ns"] or job["put_off_commands"] != job["commands"]:
            job["put_off_ns"], job["put_off_commands"] = now, job["commands"]
            job["put_off_count"] = 0
        job["put_off_count"] += 1
        return int(job["put_off_ns"]), int(job["put_off_count"])

    def _refuse(self, entry: Any) -> None:
        asc = int(entry["asc"])
        sense = encode_sense(SenseKey.UNIT_ATTENTION, asc) if asc >= 0 else b""
        if self._worker.record["load"]:
            raise ScsiError(int(entry["status"]), decode_sense(sense), "a load")
        self._worker.refuse(entry, sense)

    def _shrink(self, now: int) -> None:
        """Have no more commands outstanding than the target took."""
        mine = self._worker.record
        waiting = int(mine["replays_used"])
        mine["depth"] = max(1, min(int(mine["depth"]), int(mine["outstanding"]) - waiting))
        self._grow_at_ns = now + GROW_AFTER_NS

    def _grow(self, now: int) -> None:
        mine = self._worker.record
        if mine["depth"] < self._depth and now >= self._grow_at_ns:
            mine["depth"] = min(self._depth, int(mine["depth"]) + max(1, self._depth // 8))
            self._grow_at_ns = now + GROW_AFTER_NS
