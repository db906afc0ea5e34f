"""Commands to be sent again, in compiled code: kept when the unit did not execute them (busy, task
set full, unit attention) or when their connection was lost, submitted before all others. One rule:
a command in a REPLAY stays counted as outstanding, for its job and for the worker.
"""

from iscsi.session.job_records import (
    BUSY,
    CHECK_CONDITION,
    EAGAIN,
    HELD,
    OPEN,
    READY,
    REPLAY_CDB,
    REPLAY_SIZE,
    TASK_SET_FULL,
    UNIT_ATTENTION,
    VACANT,
    job_at,
    replay_at,
    worker_at,
)
from iscsi.wire.initiator_post import attach_ahs, submit, submit_runs
from iscsi.wire.initiator_task import task_at
from iscsi.wire.sense import SENSE_DESCRIPTOR
from shm.jit import nopython
from shm.memory import load_8


@nopython
def _next_replay(worker: int) -> int:
    """Address of the first command to be sent again, by its order; 0 if there is none."""
    hot = worker_at(worker)[0]
    found = 0
    for index in range(hot["replay_count"]):
        entry = hot["replays"] + REPLAY_SIZE * index
        if replay_at(entry)[0]["state"] == READY and (
            found == 0 or replay_at(entry)[0]["order"] < replay_at(found)[0]["order"]
        ):
            found = entry
    return int(found)


@nopython
def resubmit(worker: int) -> int:
    """Submit commands again as far as the target's window allows: how many, or -EAGAIN.

    They pass the depth, because they are counted already; whoever submits others does this first.
    """
    hot = worker_at(worker)[0]
    done = 0
    if hot["replays_used"] == 0 or hot["conn"] == 0 or hot["gate"] != OPEN:
        return 0
    entry = _next_replay(worker)
    while entry != 0:
        mine = replay_at(entry)[0]
        tag = _submit_again(hot["conn"], entry)
        if tag < 0:
            return -EAGAIN
        if mine["ahs_length"] > 0:
            attach_ahs(hot["conn"], tag, mine["ahs"], mine["ahs_length"])
        vacate(worker, entry)
        done += 1
        entry = _next_replay(worker)
    return done


@nopython
def _submit_again(conn: int, entry: int) -> int:
    mine = replay_at(entry)[0]
    cdb, length = entry + REPLAY_CDB, mine["expected_length"]
    lun, flags, user_data = mine["lun"], mine["flags"], mine["user_data"]
    if mine["run_count"] > 0:
        runs, count = mine["runs"], mine["run_count"]
        return submit_runs(conn, lun, cdb, flags, length, runs, count, user_data)
    return submit(conn, lun, cdb, flags, length, mine["address"], user_data)


@nopython
def vacate(worker: int, entry: int) -> None:
    """Forget a command that waited to be sent again."""
    replay_at(entry)[0]["state"] = VACANT
    worker_at(worker)[0]["replays_used"] -= 1


@nopython
def attention_of(task: int) -> int:
    """ASC and ASCQ if the command ended with a unit attention, else -1."""
    mine = task_at(task)[0]
    sense = mine["sense_address"] + 2
    if mine["status"] != CHECK_CONDITION or mine["sense_length"] < 4:
        return -1
    if load_8(sense) & 0x7F >= SENSE_DESCRIPTOR:
        key, code = load_8(sense + 1), load_8(sense + 2) << 8 | load_8(sense + 3)
    elif mine["sense_length"] < 14:
        return -1
    else:
        key, code = load_8(sense + 2), load_8(sense + 12) << 8 | load_8(sense + 13)
    return code if key & 0x0F == UNIT_ATTENTION else -1


@nopython
def hold(worker: int, task: int) -> bool:
    """Keep a command that was not executed (busy, task set full, unit attention) to be sent again.

    False for all others, and when there is no place. It stays counted as outstanding.
    """
    hot, its = worker_at(worker)[0], task_at(task)[0]
    if its["result"] != 0 or its["response"] != 0 or its["status"] == 0:
        return False
    attention = attention_of(task)
    if its["status"] not in (BUSY, TASK_SET_FULL) and attention < 0:
        return False
    for index in range(hot["replay_count"]):
        entry = hot["replays"] + REPLAY_SIZE * index
        mine = replay_at(entry)[0]
        if mine["state"] == VACANT:
            _fill_replay(entry, task)
            mine["state"], mine["status"], mine["asc"] = HELD, its["status"], attention
            mine["due_ns"] = 0
            hot["replays_used"] += 1
            hot["held"] += 1
            hot["retries"] += 1
            return True
    return False


@nopython
def _fill_replay(entry: int, task: int) -> None:
    mine, its = replay_at(entry)[0], task_at(task)[0]
    mine["user_data"], mine["order"] = its["user_data"], its["cmd_sn"]
    mine["flags"], mine["lun"] = its["flags"], its["lun"]
    mine["cdb0"], mine["cdb1"] = its["cdb0"], its["cdb1"]
    mine["expected_length"], mine["address"] = its["expected_length"], its["data_address"]
    mine["ahs"], mine["ahs_length"] = its["ahs"], its["ahs_length"]
    mine["runs"], mine["run_count"] = its["runs"], its["run_count"]


@nopython
def drop_replays(worker: int, job: int) -> None:
    """Do not send a job's commands again that wait for it."""
    hot = worker_at(worker)[0]
    for index in range(hot["replay_count"]):
        entry = hot["replays"] + REPLAY_SIZE * index
        if replay_at(entry)[0]["state"] != VACANT and replay_at(entry)[0]["user_data"] == job:
            vacate(worker, entry)
            forget_command(worker, job)


@nopython
def forget_command(worker: int, job: int) -> None:
    """A command of a job will have no answer: count it out."""
    worker_at(worker)[0]["outstanding"] -= 1
    job_at(job)[0]["outstanding"] -= 1
