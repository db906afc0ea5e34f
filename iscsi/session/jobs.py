"""Jobs: what a session's user asked for, cut into SCSI commands and completed in compiled code.

A JOB is one command, or one read or write of any length; a WORKER is the hot state of a session and
outlives its connections. Every job ends once, after the last of its commands has; a failed one
submits no more of them. A command to be sent again (its connection was lost, or the unit was busy)
waits in a REPLAY and stays counted as outstanding.
"""

from typing import Final

from host import native
from host.pump import COALESCED, MOVER, pump_at
from iscsi.session import pump as pump_of_role
from iscsi.session.job_records import (
    ACTIVE,
    BLOCKS,
    BROKEN,
    COMMAND,
    CONTROL,
    DONE,
    EAGAIN,
    ECANCELED,
    ENGINE_GONE,
    FINISHED,
    FREE,
    HELD,
    JOB_CDB,
    JOB_SENSE,
    JOB_SIZE,
    JOBS_MAX,
    LOOK,
    OPEN,
    PART_SIZE,
    PAUSED,
    READY,
    REPLAY,
    REPLAY_SIZE,
    SENSE_MAX,
    SHUT,
    TASK_SET_FULL,
    TIMED_OUT,
    TIMED_OUT_RESULT,
    UNKNOWN_OUTCOME,
    VACANT,
    WORKER,
    WORKER_CDB,
    WORKER_ENDED,
    WORKER_JOBS,
    job_at,
    part_at,
    replay_at,
    worker_at,
)
from iscsi.session.repeats import (
    drop_replays,
    forget_command,
    hold,
    resubmit,
    vacate,
)
from iscsi.wire import bhs
from iscsi.wire.initiator_post import (
    attach_ahs,
    block_cdb,
    completed_next,
    release,
    submit,
    submit_runs,
)
from iscsi.wire.initiator_task import KIND_SCSI, fail_all, task_at
from iscsi.wire.port import EVENTS, first, is_empty, pop, port_at, push
from iscsi.wire.runs import RUN_SIZE, run_at
from shm.jit import nopython
from shm.memory import copy_bytes, load_64, store_64
from shm.records import NEVER, cqe_at
from shm.wait import DEADLINE, PEER, SIGNAL, TICK

EVENTS_PER_VISIT: Final = 256


@nopython
def start(worker: int, job: int) -> None:
    """Put a job that is filled in among those to submit from. There must be room."""
    mine = job_at(job)[0]
    mine["state"], mine["queued"] = ACTIVE, 1
    push(worker + WORKER_JOBS, job)


@nopython
def _next_part(job: int) -> tuple[int, int]:
    """Blocks of a transfer's next command, and how many runs its data is; 0: it goes on at the
    job's `address`, as it does for one.
    """
    mine = job_at(job)[0]
    if mine["parts"] == 0:
        return int(min(mine["blocks_left"], mine["blocks_per_command"])), 0
    part = part_at(mine["parts"])[0]
    mine["address"] = run_at(mine["runs"])[0]["address"]
    return int(part["blocks"]), int(part["run_count"])


@nopython
def _submit_command(worker: int, job: int) -> int:
    """Submit the next command of a job: 1, 0 to try again later, or what is wrong with it."""
    hot, mine = worker_at(worker)[0], job_at(job)[0]
    run_count = 0
    if mine["kind"] == COMMAND:
        blocks, length, cdb = 1, mine["expected_length"], job + JOB_CDB
    else:
        blocks, run_count = _next_part(job)
        length, cdb = blocks * mine["block_size"], worker + WORKER_CDB
        block_cdb(cdb, mine["flags"] & bhs.FLAG_WRITE != 0, mine["lba"], blocks)
    if run_count > 1:
        tag = submit_runs(
            hot["conn"], mine["lun"], cdb, mine["flags"], length, mine["runs"], run_count, job
        )
    else:
        tag = submit(hot["conn"], mine["lun"], cdb, mine["flags"], length, mine["address"], job)
    # On a connection that is over the job waits for the next one.
    if tag == -EAGAIN or port_at(hot["conn"])[0]["error"] != 0:
        return 0
    if tag < 0:
        return tag
    if mine["ahs_length"] > 0:
        attach_ahs(hot["conn"], tag, mine["ahs"], mine["ahs_length"])
    mine["lba"] += blocks
    mine["blocks_left"] -= blocks
    mine["address"] += length
    if run_count > 0:
        mine["parts"] += PART_SIZE
        mine["runs"] += RUN_SIZE * run_count
    mine["outstanding"] += 1
    hot["outstanding"] += 1
    return 1


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
            mine["queued"] = 0
            end_if_over(worker, job)
    return done


@nopython
def unqueue(worker: int, job: int) -> None:
    """Take a job that is over out of those to submit from: its memory is about to go."""
    queue = worker + WORKER_JOBS
    count = worker_at(worker)[0]["jobs"]["tail"] - worker_at(worker)[0]["jobs"]["head"]
    for _ in range(count):
        other = pop(queue)
        if other != job:
            push(queue, other)
    job_at(job)[0]["queued"] = 0


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
        drop_replays(worker, job)
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

    Over a stream with one command at a time its header and data are waited for together, over a
    datamover the completions of several commands; `coalesce_ns` bounds that, because something else
    may have come instead.
    """
    hot = worker_at(worker)[0]
    n, min_wait_at = 1, NEVER
    if pump_at(hot["pump"])[0]["mode"] == COALESCED and pump_at(hot["pump"])[0]["ahead_posted"]:
        n, min_wait_at = 2, now_ns + hot["coalesce_ns"]
    elif pump_at(hot["pump"])[0]["mode"] == MOVER:
        # `wait_n` never waits for more than is outstanding, but lent buffers count there.
        n = max(1, min(hot["outstanding"], hot["coalesce"]))
        if n > 1:
            min_wait_at = now_ns + hot["coalesce_ns"]
    hot["waits"] += 1
    reason = native.wait_n(hot["context"], n, min_wait_at, deadline_ns, tick_at_ns)
    ended = worker + WORKER_ENDED + 8 * (reason - 1)
    store_64(ended, load_64(ended) + 1)
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
        job_at(job)[0]["queued"] = 0
        fail(job, result)
        end_if_over(worker, job)


@nopython
def adopt_task(worker: int, job: int) -> None:
    """Count a task that was made outside `submit_all` (a NOP-Out) as a command of the job."""
    mine = job_at(job)[0]
    mine["state"] = ACTIVE
    mine["outstanding"] += 1
    worker_at(worker)[0]["outstanding"] += 1


__all__ = [
    "ACTIVE",
    "BLOCKS",
    "BROKEN",
    "COMMAND",
    "CONTROL",
    "DONE",
    "ECANCELED",
    "ENGINE_GONE",
    "FINISHED",
    "FREE",
    "HELD",
    "JOBS_MAX",
    "JOB_CDB",
    "JOB_SENSE",
    "JOB_SIZE",
    "LOOK",
    "OPEN",
    "READY",
    "REPLAY",
    "REPLAY_SIZE",
    "SHUT",
    "TASK_SET_FULL",
    "TIMED_OUT_RESULT",
    "UNKNOWN_OUTCOME",
    "VACANT",
    "WORKER",
    "WORKER_CDB",
    "WORKER_JOBS",
    "abort_all",
    "adopt_task",
    "advance",
    "cancel_rest",
    "complete_task",
    "drop_replays",
    "end_command",
    "end_if_over",
    "exchange",
    "fail",
    "hold",
    "job_at",
    "keep_outcome",
    "news",
    "resubmit",
    "start",
    "submit_all",
    "take_completed",
    "unqueue",
    "wait",
    "worker_at",
]
