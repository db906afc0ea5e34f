"""Jobs: what a session's user asked for, cut into SCSI commands and completed in compiled code.

A JOB is one command, or one read or write of any length; a WORKER is the hot state of a session and
outlives its connections. Every job ends once, after the last of its commands has; a failed one
submits no more of them. A command to be sent again (its connection was lost, or the unit was busy)
waits in a REPLAY and stays counted as outstanding.
"""

import errno
from typing import Final

from host import native
from host.pump import COALESCED, pump_at
from iscsi.session import pump as pump_of_role
from iscsi.wire import bhs
from iscsi.wire.initiator_post import attach_ahs, block_cdb, completed_next, release, submit
from iscsi.wire.initiator_task import KIND_SCSI, fail_all, task_at
from iscsi.wire.port import EVENTS, QUEUE, first, is_empty, pop, push
from iscsi.wire.sense import SENSE_DESCRIPTOR, ScsiStatus, SenseKey
from shm.jit import nopython
from shm.layout import Field, offset, record
from shm.memory import copy_bytes, load_8
from shm.records import NEVER, cqe_at
from shm.view import opener
from shm.wait import DEADLINE, PEER, SIGNAL, TICK

SENSE_MAX: Final = 252
SENSE_ROOM: Final = 256

JOB: Final = record(
    Field("state", "<i8"),
    Field("kind", "<i8"),
    Field("flags", "<i8"),  # FLAG_READ or FLAG_WRITE, and the task attribute
    Field("lun", "<i8"),  # the eight-byte field
    Field("lba", "<i8"),  # of the next command
    Field("blocks_left", "<i8"),  # not submitted yet; for a COMMAND 1, then 0
    Field("blocks_per_command", "<i8"),
    Field("block_size", "<i8"),
    Field("address", "<i8"),  # of the next command's data
    Field("expected_length", "<i8"),  # of a COMMAND
    Field("cdb0", "<i8"),
    Field("cdb1", "<i8"),
    Field("outstanding", "<i8"),  # commands submitted and not completed
    Field("commands", "<i8"),  # completed well
    Field("bytes", "<i8"),  # moved by them
    # Of the first command that failed, or of a COMMAND in any case:
    Field("failed", "<i8"),
    Field("result", "<i8"),  # -errno, or a Violation, when there was no response
    Field("response", "<i8"),
    Field("status", "<i8"),
    Field("residual_flags", "<i8"),
    Field("residual_count", "<i8"),
    Field("received", "<i8"),
    Field("sense_length", "<i8"),
    Field("ahs", "<i8"),  # address of a COMMAND's additional header segments, for a long CDB
    Field("ahs_length", "<i8"),
    size=256,  # and SENSE_ROOM bytes of sense data behind it
)
WORKER: Final = record(
    Field("pump", "<i8"),
    Field("context", "<i8"),
    Field("conn", "<i8"),
    Field("endpoint", "<i8"),
    Field("depth", "<i8"),  # commands outstanding at most
    Field("outstanding", "<i8"),
    Field("finished", "<i8"),  # jobs that ended
    Field("completions", "<i8"),  # SCSI commands that ended, but for the express ones
    Field("waits", "<i8"),
    Field("coalesce_ns", "<i8"),  # how long a wait for header and data holds out for both
    Field("cdb0", "<i8"),  # scratch for one CDB
    Field("cdb1", "<i8"),
    Field("gate", "<i8"),  # OPEN, or SHUT: only the express job's commands are submitted
    Field("express", "<i8"),  # a job that passes the gate and the depth: recovery's own
    Field("load", "<i8"),  # 1: completions belong to a load's slots and not to jobs
    Field("retries", "<i8"),  # commands held since the last one that ended well
    Field("held", "<i8"),  # commands held that Python has not looked at
    Field("replays", "<i8"),  # address of REPLAY[replay_count]
    Field("replay_count", "<i8"),
    Field("replays_used", "<i8"),
    Field("jobs", QUEUE),  # those with something left to submit
    size=256,
)
# A command to be submitted again.
REPLAY: Final = record(
    Field("state", "<i8"),  # VACANT, HELD or READY
    Field("user_data", "<i8"),  # its job, or a load's slot
    Field("order", "<i8"),  # entries are submitted by it
    Field("flags", "<i8"),
    Field("lun", "<i8"),
    Field("cdb0", "<i8"),
    Field("cdb1", "<i8"),
    Field("expected_length", "<i8"),
    Field("address", "<i8"),
    Field("ahs", "<i8"),
    Field("ahs_length", "<i8"),
    Field("status", "<i8"),  # why it is held
    Field("asc", "<i8"),  # ASC and ASCQ of a unit attention
    Field("due_ns", "<i8"),  # for Python: when to make it ready
    size=128,
)
job_at = opener(JOB)
worker_at = opener(WORKER)
replay_at = opener(REPLAY)
REPLAY_SIZE: Final = REPLAY.itemsize
REPLAY_CDB: Final = offset(REPLAY, "cdb0")
JOB_SENSE: Final = JOB.itemsize
JOBS_MAX: Final = 1024  # jobs with something left to submit
JOB_SIZE: Final = JOB.itemsize + SENSE_ROOM
JOB_CDB: Final = offset(JOB, "cdb0")
WORKER_CDB: Final = offset(WORKER, "cdb0")
WORKER_JOBS: Final = offset(WORKER, "jobs")

COMMAND: Final = 0
BLOCKS: Final = 1

FREE: Final = 0
ACTIVE: Final = 1
DONE: Final = 2

VACANT: Final = 0
HELD: Final = 1
READY: Final = 2

OPEN: Final = 0
SHUT: Final = 1

# Why `run` came back.
FINISHED: Final = 1
LOOK: Final = 2  # a signal or the periodic tick: look at it and come back
CONTROL: Final = 3  # a control PDU waits for the session
BROKEN: Final = 4  # the connection is over: the pump's error says why
TIMED_OUT: Final = 5
ENGINE_GONE: Final = 6
PAUSED: Final = 7  # a command is held: the session decides whether it is sent again

# Results of jobs without a response, as -errno.
ECANCELED: Final = errno.ECANCELED
EAGAIN: Final = errno.EAGAIN
UNKNOWN_OUTCOME: Final = errno.EREMOTEIO
TIMED_OUT_RESULT: Final = errno.ETIMEDOUT

BUSY: Final = int(ScsiStatus.BUSY)
TASK_SET_FULL: Final = int(ScsiStatus.TASK_SET_FULL)
CHECK_CONDITION: Final = int(ScsiStatus.CHECK_CONDITION)
UNIT_ATTENTION: Final = int(SenseKey.UNIT_ATTENTION)
EVENTS_PER_VISIT: Final = 256
_DIRECTION: Final = bhs.FLAG_READ | bhs.FLAG_WRITE


@nopython
def start(worker: int, job: int) -> None:
    """Put a job that is filled in among those to submit from. There must be room."""
    mine = job_at(job)[0]
    mine["state"] = ACTIVE
    push(worker + WORKER_JOBS, job)


@nopython
def _submit_command(worker: int, job: int) -> int:
    """Submit the next command of a job: 1, 0 to try again later, or what is wrong with it."""
    hot, mine = worker_at(worker)[0], job_at(job)[0]
    if mine["kind"] == COMMAND:
        blocks, length, cdb = 1, mine["expected_length"], job + JOB_CDB
    else:
        blocks = min(mine["blocks_left"], mine["blocks_per_command"])
        length, cdb = blocks * mine["block_size"], worker + WORKER_CDB
        block_cdb(cdb, mine["flags"] & bhs.FLAG_WRITE != 0, mine["lba"], blocks)
    tag = submit(hot["conn"], mine["lun"], cdb, mine["flags"], length, mine["address"], job)
    if tag == -EAGAIN:
        return 0
    if tag < 0:
        return tag
    if mine["ahs_length"] > 0:
        attach_ahs(hot["conn"], tag, mine["ahs"], mine["ahs_length"])
    mine["lba"] += blocks
    mine["blocks_left"] -= blocks
    mine["address"] += length
    mine["outstanding"] += 1
    hot["outstanding"] += 1
    return 1


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
        tag = submit(
            hot["conn"],
            mine["lun"],
            entry + REPLAY_CDB,
            mine["flags"],
            mine["expected_length"],
            mine["address"],
            mine["user_data"],
        )
        if tag < 0:
            return -EAGAIN
        if mine["ahs_length"] > 0:
            attach_ahs(hot["conn"], tag, mine["ahs"], mine["ahs_length"])
        vacate(worker, entry)
        done += 1
        entry = _next_replay(worker)
    return done


@nopython
def vacate(worker: int, entry: int) -> None:
    """Forget a command that waited to be sent again."""
    replay_at(entry)[0]["state"] = VACANT
    worker_at(worker)[0]["replays_used"] -= 1


@nopython
def _submit_express(worker: int) -> int:
    """Submit recovery's own command, which passes the gate and the depth."""
    hot = worker_at(worker)[0]
    job = hot["express"]
    if job == 0 or hot["conn"] == 0 or job_at(job)[0]["blocks_left"] == 0:
        return 0
    submitted = _submit_command(worker, job)
    if submitted < 0:
        fail(job, submitted)
        end_if_over(worker, job)
    return 1 if submitted > 0 else 0


@nopython
def submit_all(worker: int) -> int:
    """Submit from the jobs in turn while depth and the target's window allow. How many."""
    hot = worker_at(worker)[0]
    queue = worker + WORKER_JOBS
    done = _submit_express(worker)
    if hot["gate"] != OPEN or hot["conn"] == 0:
        return done
    again = resubmit(worker)
    if again < 0:
        return done
    done += again
    while hot["outstanding"] < hot["depth"] and not is_empty(queue):
        job = first(queue)
        mine = job_at(job)[0]
        if mine["blocks_left"] > 0:
            submitted = _submit_command(worker, job)
            if submitted == 0:
                break
            if submitted < 0:
                fail(job, submitted)
            else:
                done += 1
        pop(queue)
        if mine["blocks_left"] > 0:
            push(queue, job)
        else:
            end_if_over(worker, job)
    return done


@nopython
def fail(job: int, result: int) -> None:
    """Note why a job fails, unless it has failed before, and submit no more of it."""
    mine = job_at(job)[0]
    mine["blocks_left"] = 0
    if mine["failed"] == 0:
        mine["failed"] = 1
        mine["result"] = result


@nopython
def end_if_over(worker: int, job: int) -> None:
    """End a job with nothing left to submit or to come."""
    mine = job_at(job)[0]
    if mine["state"] == ACTIVE and mine["blocks_left"] == 0 and mine["outstanding"] == 0:
        mine["state"] = DONE
        worker_at(worker)[0]["finished"] += 1


@nopython
def _is_good(job: int, task: int) -> bool:
    """Whether a command did what was asked: GOOD, and for a block transfer all of it."""
    mine = task_at(task)[0]
    if mine["result"] != 0 or mine["response"] != 0 or mine["status"] != 0:
        return False
    if job_at(job)[0]["kind"] == COMMAND:
        return True
    if mine["residual_flags"] != 0 and mine["residual_count"] != 0:
        return False
    return bool(mine["flags"] & bhs.FLAG_READ == 0 or mine["received"] == mine["expected_length"])


@nopython
def keep_outcome(job: int, task: int) -> None:
    """Note how a command ended, for `outcome` to put into words."""
    mine, its = job_at(job)[0], task_at(task)[0]
    mine["result"] = its["result"]
    mine["response"] = its["response"]
    mine["status"] = its["status"]
    mine["residual_flags"] = its["residual_flags"]
    mine["residual_count"] = its["residual_count"]
    mine["received"] = its["received"]
    mine["cdb0"] = its["cdb0"]
    mine["cdb1"] = its["cdb1"]
    size = min(its["sense_length"], SENSE_MAX)
    mine["sense_length"] = size
    copy_bytes(job + JOB_SENSE, its["sense_address"] + 2, size)


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


@nopython
def complete_task(worker: int, task: int) -> None:
    """Account a completed command to its job; one nobody waits for any more has user_data 0."""
    hot, its = worker_at(worker)[0], task_at(task)[0]
    job = its["user_data"]
    if job == 0:
        return
    mine = job_at(job)[0]
    if mine["kind"] == BLOCKS and mine["failed"] == 0 and hold(worker, task):
        return
    hot["outstanding"] -= 1
    mine["outstanding"] -= 1
    counts = its["kind"] == KIND_SCSI and job != hot["express"]
    if counts:
        hot["completions"] += 1
    if _is_good(job, task):
        if counts:
            hot["retries"] = 0
        mine["commands"] += 1
        mine["bytes"] += its["received"] if its["flags"] & bhs.FLAG_READ else its["expected_length"]
        if mine["kind"] == COMMAND:
            keep_outcome(job, task)
    elif mine["failed"] == 0:
        mine["failed"] = 1
        mine["blocks_left"] = 0
        keep_outcome(job, task)
    end_if_over(worker, job)


@nopython
def take_completed(worker: int) -> int:
    """Account every completed command to its job. How many."""
    conn = worker_at(worker)[0]["conn"]
    done = 0
    if conn == 0 or worker_at(worker)[0]["load"] != 0:
        return 0
    task = completed_next(conn)
    while task != 0:
        complete_task(worker, task)
        release(conn, task)
        done += 1
        task = completed_next(conn)
    return done


@nopython
def exchange(worker: int) -> int:
    """Post what there is to post and take the completions that are there: how many of both."""
    hot = worker_at(worker)[0]
    mine = hot["pump"]
    if hot["conn"] == 0:
        return 0
    moved = pump_of_role.receive(mine) + pump_of_role.send(mine)
    if moved > 0:
        native.flush(hot["context"])
    for _ in range(EVENTS_PER_VISIT):
        completion = native.next_completion(hot["context"])
        if completion == 0:
            break
        moved += 1
        if cqe_at(completion)[0]["endpoint"] == hot["endpoint"]:
            pump_of_role.event(mine, completion)
        native.consume_completion(hot["context"])
    return moved


@nopython
def advance(worker: int) -> int:
    """Do all that can be done without waiting. How many commands ended."""
    done = 0
    while True:
        moved = submit_all(worker) + exchange(worker)
        ended = take_completed(worker)
        done += ended
        if moved + ended == 0:
            return done


@nopython
def wait(worker: int, deadline_ns: int, tick_at_ns: int, now_ns: int) -> int:
    """Sleep until the connection has news: 0, or why the caller has to come back.

    With one command at a time its header and data are waited for together; `coalesce_ns` bounds
    that, because something else may have come instead.
    """
    hot = worker_at(worker)[0]
    n, min_wait_at = 1, NEVER
    if pump_at(hot["pump"])[0]["mode"] == COALESCED and pump_at(hot["pump"])[0]["ahead_posted"]:
        n, min_wait_at = 2, now_ns + hot["coalesce_ns"]
    hot["waits"] += 1
    reason = native.wait_n(hot["context"], n, min_wait_at, deadline_ns, tick_at_ns)
    if reason in (TICK, SIGNAL):
        return LOOK
    if reason == DEADLINE:
        return TIMED_OUT
    return ENGINE_GONE if reason == PEER else 0


@nopython
def news(worker: int) -> int:
    """What Python must look at before anything else: BROKEN, CONTROL, PAUSED or 0."""
    hot = worker_at(worker)[0]
    if hot["conn"] == 0 or pump_at(hot["pump"])[0]["error"] != 0:
        return BROKEN
    if not is_empty(hot["conn"] + EVENTS):
        return CONTROL
    return PAUSED if hot["held"] > 0 else 0


@nopython
def cancel_rest(worker: int, job: int) -> None:
    """Submit no more of a job; it ends with -ECANCELED when its open commands have."""
    if job_at(job)[0]["state"] == ACTIVE:
        fail(job, -ECANCELED)
        drop_replays(worker, job)
        end_if_over(worker, job)


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


@nopython
def end_command(worker: int, job: int, result: int) -> None:
    """End a command that has no answer, and with it its job, by `result` (-errno)."""
    forget_command(worker, job)
    fail(job, result)
    drop_replays(worker, job)
    end_if_over(worker, job)


@nopython
def abort_all(worker: int, result: int) -> None:
    """End every job with `result` (-errno): the session is over."""
    hot = worker_at(worker)[0]
    if hot["conn"] != 0:
        fail_all(hot["conn"], result)
        take_completed(worker)
    if hot["load"] == 0:
        for index in range(hot["replay_count"]):
            entry = hot["replays"] + REPLAY_SIZE * index
            if replay_at(entry)[0]["state"] != VACANT:
                vacate(worker, entry)
                end_command(worker, replay_at(entry)[0]["user_data"], result)
    while not is_empty(worker + WORKER_JOBS):
        job = pop(worker + WORKER_JOBS)
        fail(job, result)
        end_if_over(worker, job)


@nopython
def adopt_task(worker: int, job: int) -> None:
    """Count a task that was made outside `submit_all` (a NOP-Out) as a command of the job."""
    mine = job_at(job)[0]
    mine["state"] = ACTIVE
    mine["outstanding"] += 1
    worker_at(worker)[0]["outstanding"] += 1
