"""The hot state of a session that outlives its connections: the jobs, and the commands to be sent
again. A connection is attached to it while there is one.
"""

import ctypes
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from iscsi.session import doors, jobs
from iscsi.session.memory import aligned_zeros
from iscsi.session.replay import changes, is_replayable
from iscsi.wire.initiator import fail_all
from iscsi.wire.initiator_task import (
    KIND_SCSI,
    STATE_ACTIVE,
    STATE_FREE,
    TASK,
    initiator_at,
)
from iscsi.wire.port import build_queue
from iscsi.wire.sequencing import distance
from shm.view import address_of, window
from shm.wait import REASON_NAMES

COALESCE_NS: Final = 1_000_000
SPARE_TASKS: Final = 8  # for pings, logout and task management, above the queue depth


@dataclass(frozen=True, slots=True)
class LostCommand:
    """A command without an answer when its connection ended, and what it takes to repeat it."""

    user_data: int
    cdb: bytes
    fields: dict[str, int]


class Worker:
    """A WORKER record, its queue and its REPLAY table. `settle` accounts what is complete."""

    def __init__(self, depth: int) -> None:
        self._count = depth + SPARE_TASKS
        queue = jobs.WORKER.itemsize
        replays = queue + 8 * jobs.JOBS_MAX
        self._memory = aligned_zeros(replays + self._count * jobs.REPLAY_SIZE)
        self.address = address_of(self._memory)
        self.record: Any = jobs.worker_at(self.address)[0]
        mine = self.record
        mine["depth"], mine["coalesce_ns"], mine["gate"] = depth, COALESCE_NS, jobs.SHUT
        mine["replays"], mine["replay_count"] = self.address + replays, self._count
        build_queue(self.address + jobs.WORKER_JOBS, self.address + queue, jobs.JOBS_MAX)
        self.replays: NDArray[Any] = self._memory[replays:].view(jobs.REPLAY)
        self._order = 0
        self.settle: Callable[[], None] = self._settle_jobs

    def coalesce(self, count: int, limit_us: int) -> None:
        """Have a wait be for `count` completions of commands, or for one after `limit_us`."""
        self.record["coalesce"], self.record["coalesce_ns"] = count, 1000 * limit_us

    def hot(self, name: str) -> int:
        """One word of the WORKER record."""
        return int(self.record[name])

    @property
    def wait_ends(self) -> dict[str, int]:
        """How often a wait ended for each reason."""
        return {name: self.hot(f"ended_{name}") for name in REASON_NAMES.values()}

    def attach(self, context: int, endpoint: int, conn: int, pump: int) -> None:
        """Work over this connection from here on."""
        mine = self.record
        mine["context"], mine["endpoint"], mine["pump"] = context, endpoint, pump
        mine["conn"] = conn

    def detach(self) -> None:
        """There is no connection; jobs wait."""
        for name in ("conn", "endpoint", "pump", "express"):
            self.record[name] = 0

    def open_gate(self) -> None:
        """Let commands be submitted, those to be sent again first."""
        self.record["gate"] = jobs.OPEN

    def shut_gate(self) -> None:
        """Let only the express job be submitted."""
        self.record["gate"] = jobs.SHUT

    def has_work(self, pings: int = 0) -> bool:
        """Whether a command is outstanding, besides so many pings, or waits to be submitted."""
        queue = self.record["jobs"]
        return bool(self.record["outstanding"] > pings or queue["head"] != queue["tail"])

    @property
    def is_stuck(self) -> bool:
        """Whether something waits for the command window alone.

        Not what is put off: it holds up those behind it for as long as `patience` says.
        """
        express = self.hot("express")
        if express and jobs.job_at(express)[0]["blocks_left"]:
            return True
        if self.record["gate"] != jobs.OPEN or np.any(self.replays["state"] == jobs.HELD):
            return False
        queue = self.record["jobs"]
        return bool(queue["head"] != queue["tail"] or np.any(self.replays["state"] == jobs.READY))

    # --- loads -----------------------------------------------------------------------------

    def adopt_load(self, settle: Callable[[], None]) -> None:
        """Completions belong to a load now, which `settle` lets account them."""
        self.record["load"], self.settle = 1, settle

    @contextmanager
    def load_suspended(self) -> Iterator[None]:
        """Completions are of jobs for a while: those of recovery's own commands."""
        load, settle = self.record["load"], self.settle
        self.record["load"], self.settle = 0, self._settle_jobs
        try:
            yield
        finally:
            self.record["load"], self.settle = load, settle

    def end_load(self) -> None:
        """The load is over: what it left behind is forgotten."""
        if not self.record["load"]:
            return
        self.record["load"], self.settle = 0, self._settle_jobs
        self.record["outstanding"] = self.record["replays_used"] = self.record["held"] = 0
        self.replays["state"] = jobs.VACANT

    def _settle_jobs(self) -> None:
        doors.settle(self.address)

    # --- when the connection is lost -------------------------------------------------------

    def salvage(self) -> None:
        """Take every unanswered command off a connection that has ended.

        Those that may be sent again wait for the next connection in the order of their CmdSN; the
        jobs of the others end with UNKNOWN_OUTCOME. The endpoint must be closed.
        """
        conn = self.hot("conn")
        if conn == 0:
            return
        lost, express = list(_unanswered(conn)), self.hot("express")
        fail_all(conn, -errno.ECONNABORTED)
        self.settle()
        self.detach()
        for command in lost:
            if command.user_data == express != 0:
                doors.end_command(self.address, express, -errno.ECONNABORTED)
            else:
                self._salvage(command)
        if express and jobs.job_at(express)[0]["state"] == jobs.ACTIVE:
            # It was not even sent: the window was closed.
            doors.give_up(self.address, express, -errno.ECONNABORTED)

    def _salvage(self, command: LostCommand) -> None:
        if command.user_data == 0:
            return
        if not self.record["load"]:
            job: Any = jobs.job_at(command.user_data)[0]
            if job["failed"]:
                doors.end_command(self.address, command.user_data, int(job["result"]))
                return
            if not is_replayable(command.cdb):
                _keep_cdb(command)
                doors.end_command(self.address, command.user_data, -jobs.UNKNOWN_OUTCOME)
                return
        self.hold(command)

    def give_up_changes(self) -> None:
        """End the jobs whose commands wait to be sent again and change something."""
        for entry in self.replays[self.replays["state"] == jobs.READY]:
            user_data, cdb = int(entry["user_data"]), _cdb_of(entry)
            if changes(cdb) and not self.record["load"]:
                ctypes.memmove(user_data + jobs.JOB_CDB, cdb, 16)
                doors.give_up(self.address, user_data, -jobs.UNKNOWN_OUTCOME)

    def hold(self, command: LostCommand) -> None:
        """Have a command sent again, behind those that wait for it already."""
        free = np.flatnonzero(self.replays["state"] == jobs.VACANT)
        entry = self.replays[int(free[0])]
        for name, value in command.fields.items():
            entry[name] = value
        entry["user_data"], entry["order"] = command.user_data, self._next_order()
        entry["due_ns"] = 0
        entry["state"] = jobs.READY
        self.record["replays_used"] += 1

    def _next_order(self) -> int:
        # Above every CmdSN, by which `jobs.hold` orders: those were not executed, so any order is
        # right among them and the lost ones, as changes that overlap are never under way together.
        self._order += 1
        return (1 << 32) + self._order

    def waiting(self) -> Iterator[Any]:
        """The commands held for the session to look at; each is a record to be changed."""
        for index in np.flatnonzero(self.replays["state"] == jobs.HELD):
            yield self.replays[int(index)]

    def refuse(self, entry: Any, sense: bytes) -> None:
        """End the job of a held command with the status it was answered with."""
        user_data = int(entry["user_data"])
        job: Any = jobs.job_at(user_data)[0]
        job["failed"], job["blocks_left"], job["result"] = 1, 0, 0
        job["status"], job["response"] = entry["status"], 0
        ctypes.memmove(user_data + jobs.JOB_CDB, _cdb_of(entry), 16)
        ctypes.memmove(user_data + jobs.JOB_SENSE, sense, len(sense))
        job["sense_length"] = len(sense)
        doors.give_up(self.address, user_data, 0)


def tasks_of(conn: int) -> NDArray[Any]:
    """The task table of a connection, as it lies in memory."""
    mine = initiator_at(conn)[0]
    count = int(mine["task_count"])
    return window(int(mine["tasks"]), count * TASK.itemsize, np.uint8).view(TASK)


def active_commands(conn: int) -> list[Any]:
    """SCSI commands without an answer, in the order they were sent."""
    table = tasks_of(conn)
    found = np.flatnonzero((table["state"] == STATE_ACTIVE) & (table["kind"] == KIND_SCSI))
    first = int(initiator_at(conn)[0]["cmd_sn"])
    rows = [table[int(index)] for index in found]
    return sorted(rows, key=lambda task: distance(first, int(task["cmd_sn"])))


def lost_command(task: Any) -> LostCommand:
    """What it takes to send a task's command again."""
    names = ("flags", "lun", "cdb0", "cdb1", "expected_length", "ahs", "ahs_length")
    fields = {name: int(task[name]) for name in (*names, "runs", "run_count")}
    fields["address"] = int(task["data_address"])
    return LostCommand(int(task["user_data"]), _cdb_of(task), fields)


def _cdb_of(record: Any) -> bytes:
    """The first 16 bytes of a task's or entry's CDB."""
    return np.array([record["cdb0"], record["cdb1"]], np.int64).tobytes()


def _unanswered(conn: int) -> Iterator[LostCommand]:
    for task in active_commands(conn):
        yield lost_command(task)
        task["state"] = STATE_FREE


def _keep_cdb(command: LostCommand) -> None:
    """Have the job name the command that failed."""
    ctypes.memmove(command.user_data + jobs.JOB_CDB, command.cdb, 16)


__all__ = ["SPARE_TASKS", "LostCommand", "Worker", "active_commands", "lost_command", "tasks_of"]
