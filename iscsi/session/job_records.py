"""The records of a session's compiled code (JOB, WORKER, REPLAY), their states, and why the code
comes back to Python. Private memory of the host: an engine never sees it.
"""

import errno
from typing import Final

from iscsi.wire.port import QUEUE
from iscsi.wire.sense import ScsiStatus, SenseKey
from shm.layout import Field, offset, record
from shm.view import opener
from shm.wait import REASON_NAMES

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
    # For data in several pieces, addresses: PART of the next command and of those behind it, or 0,
    # and its RUN records and theirs.
    Field("parts", "<i8"),
    Field("runs", "<i8"),
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
    Field("queued", "<i8"),  # 1 while it is among those to submit from
    # For Python: how long its commands have been put off without one that ended well.
    Field("put_off_ns", "<i8"),  # since when
    Field("put_off_count", "<i8"),
    Field("put_off_commands", "<i8"),  # `commands` at that time
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
    Field("coalesce_ns", "<i8"),  # how long a wait for several completions holds out for them
    Field("coalesce", "<i8"),  # completions of commands that a datamover's wait is for, at most
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
    # How often a wait ended for each reason (`shm.wait`), in the order of their numbers.
    *(Field(f"ended_{name}", "<i8") for name in REASON_NAMES.values()),
    size=320,
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
    Field("runs", "<i8"),  # its RUN records, if its data lies in several pieces
    Field("run_count", "<i8"),
    Field("status", "<i8"),  # why it is held
    Field("asc", "<i8"),  # ASC and ASCQ of a unit attention
    Field("due_ns", "<i8"),  # for Python: when to make it ready
    size=128,
)
# One command of a job whose data lies in several pieces.
PART: Final = record(Field("blocks", "<i8"), Field("run_count", "<i8"), size=16)
job_at = opener(JOB)
worker_at = opener(WORKER)
replay_at = opener(REPLAY)
part_at = opener(PART)
PART_SIZE: Final = PART.itemsize
REPLAY_SIZE: Final = REPLAY.itemsize
REPLAY_CDB: Final = offset(REPLAY, "cdb0")
JOB_SENSE: Final = JOB.itemsize
JOBS_MAX: Final = 1024  # jobs with something left to submit
JOB_SIZE: Final = JOB.itemsize + SENSE_ROOM
JOB_CDB: Final = offset(JOB, "cdb0")
WORKER_CDB: Final = offset(WORKER, "cdb0")
WORKER_JOBS: Final = offset(WORKER, "jobs")
WORKER_ENDED: Final = offset(WORKER, f"ended_{REASON_NAMES[1]}")

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
