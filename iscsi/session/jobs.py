"""Jobs: what a session's user asked for, cut into SCSI commands and completed in compiled code.

A JOB is one command, or one read or write of any length; a WORKER is the hot state of a session.
Every job ends once, after the last of its commands has; a failed one submits no more of them.
"""

import errno
from typing import Final

from host import native
from host.pump import COALESCED, pump_at
from iscsi.session import pump as pump_of_role
from iscsi.wire import bhs
from iscsi.wire.initiator_post import block_cdb, completed_next, release, submit
from iscsi.wire.initiator_task import fail_all, task_at
from iscsi.wire.port import EVENTS, QUEUE, first, is_empty, pop, push
from shm.jit import nopython
from shm.layout import Field, offset, record
from shm.memory import copy_bytes
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
    size=192,  # and SENSE_ROOM bytes of sense data behind it
)
WORKER: Final = record(
    Field("pump", "<i8"),
    Field("context", "<i8"),
    Field("conn", "<i8"),
    Field("endpoint", "<i8"),
    Field("depth", "<i8"),  # commands outstanding at most
    Field("outstanding", "<i8"),
    Field("finished", "<i8"),  # jobs that ended
    Field("completions", "<i8"),  # commands that ended
    Field("waits", "<i8"),
    Field("coalesce_ns", "<i8"),  # how long a wait for header and data holds out for both
    Field("cdb0", "<i8"),  # scratch for one CDB
    Field("cdb1", "<i8"),
    Field("jobs", QUEUE),  # those with something left to submit
    size=128,
)
job_at = opener(JOB)
worker_at = opener(WORKER)
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

# Why `run` came back.
FINISHED: Final = 1
LOOK: Final = 2  # a signal or the periodic tick: look at it and come back
CONTROL: Final = 3  # a control PDU waits for the session
BROKEN: Final = 4  # the connection is over: the pump's error says why
TIMED_OUT: Final = 5
ENGINE_GONE: Final = 6

ECANCELED: Final = errno.ECANCELED
EAGAIN: Final = errno.EAGAIN
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
    mine["lba"] += blocks
    mine["blocks_left"] -= blocks
    mine["address"] += length
    mine["outstanding"] += 1
    hot["outstanding"] += 1
    return 1


@nopython
def submit_all(worker: int) -> int:
    """Submit from the jobs in turn while depth and the target's window allow. How many."""
    hot = worker_at(worker)[0]
    queue = worker + WORKER_JOBS
    done = 0
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
def complete_task(worker: int, task: int) -> None:
    """Account a completed command to its job."""
    hot, its = worker_at(worker)[0], task_at(task)[0]
    job = its["user_data"]
    mine = job_at(job)[0]
    hot["outstanding"] -= 1
    hot["completions"] += 1
    mine["outstanding"] -= 1
    if _is_good(job, task):
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
    """Account every completed command. How many."""
    conn = worker_at(worker)[0]["conn"]
    done = 0
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
    """What Python must look at before anything else: BROKEN, CONTROL or 0."""
    hot = worker_at(worker)[0]
    if pump_at(hot["pump"])[0]["error"] != 0:
        return BROKEN
    return 0 if is_empty(hot["conn"] + EVENTS) else CONTROL


@nopython
def cancel_rest(worker: int, job: int) -> None:
    """Submit no more of a job; it ends with -ECANCELED when its open commands have."""
    if job_at(job)[0]["state"] == ACTIVE:
        fail(job, -ECANCELED)
        end_if_over(worker, job)


@nopython
def abort_all(worker: int, result: int) -> None:
    """End every job with `result` (-errno): the connection is over."""
    hot = worker_at(worker)[0]
    fail_all(hot["conn"], result)
    take_completed(worker)
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
