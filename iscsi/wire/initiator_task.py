"""The initiator's records for a connection in the full feature phase, and its task table.
A task's tag carries a generation, so a late PDU never reaches a later task; a task ends once, after
its response came and everything it had to send was sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from iscsi.wire import tx
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.mover import VECTOR, VECTORS_MAX
from iscsi.wire.port import (
    PORT,
    QUEUE,
    READY,
    TOKEN_TASK,
    PortLimits,
    build_pool,
    build_port,
    build_queue,
    plan,
    port_at,
    port_parts,
    push,
    queue_at,
    round_up,
    token_of,
)
from iscsi.wire.runs import find
from shm.jit import nopython
from shm.layout import Field, offset, record
from shm.pool import POOL, give, take
from shm.view import opener

INITIATOR: Final = record(
    Field("port", PORT),
    Field("cmd_sn", "<i8"),  # of the next non-immediate command
    Field("exp_cmd_sn", "<i8"),
    Field("max_cmd_sn", "<i8"),
    Field("exp_stat_sn", "<i8"),
    Field("stat_sn_reach", "<i8"),  # how far from the next one a StatSN may be; 0: none other
    Field("first_burst_length", "<i8"),
    Field("max_burst_length", "<i8"),
    Field("immediate_data", "<i8"),
    Field("initial_r2t", "<i8"),
    Field("max_outstanding_r2t", "<i8"),
    Field("tasks", "<i8"),  # addresses
    Field("r2ts", "<i8"),
    Field("senses", "<i8"),
    Field("task_count", "<i8"),
    Field("active", "<i8"),  # tasks of every kind that have not ended
    Field("last", "<i8"),  # address of the task submitted last
    Field("pings", "<i8"),  # NOP-Ins of the target that were answered
    Field("is_mirror", "<i8"),  # 1: PDUs are somebody else's business (iscsi.wire.initiator_mirror)
    # Of a datamover: address of VECTOR[vectors_max], for one gather list that is being checked.
    Field("vectors", "<i8"),
    Field("vectors_max", "<i8"),  # entries of a gather list at most, also of each task; 0: none
    Field("completed", QUEUE),  # task addresses
    Field("task_pool", POOL),
    size=PORT.itemsize + 20 * 8 + QUEUE.itemsize + POOL.itemsize,
)
TASK: Final = record(
    Field("state", "<i8"),
    Field("kind", "<i8"),
    Field("itt", "<i8"),
    Field("generation", "<i8"),
    Field("user_data", "<i8"),
    Field("flags", "<i8"),  # FLAG_READ or FLAG_WRITE, and the task attribute
    Field("lun", "<i8"),  # the eight-byte field
    Field("cmd_sn", "<i8"),
    Field("expected_length", "<i8"),  # expected data transfer length
    Field("data_address", "<i8"),
    Field("cdb0", "<i8"),  # the CDB's bytes as they lie in memory
    Field("cdb1", "<i8"),
    # Sending.
    Field("queued", "<i8"),  # 1 while it has an entry in the ready queue
    Field("stage", "<i8"),
    Field("tx_pending", "<i8"),  # PDUs with its data whose sending was not reported
    Field("sent", "<i8"),  # bytes of immediate and unsolicited data
    Field("data_out_sn", "<i8"),
    Field("r2ts", "<i8"),  # address of its R2T ring
    Field("r2t_head", "<i8"),
    Field("r2t_count", "<i8"),
    Field("r2t_sent", "<i8"),  # bytes sent of the oldest R2T
    Field("r2t_sn", "<i8"),  # of the next R2T
    Field("r2t_offset", "<i8"),  # end of what the R2Ts asked for
    # Receiving.
    Field("received", "<i8"),
    Field("data_in_sn", "<i8"),  # of the next Data-In
    # The result.
    Field("result", "<i8"),  # 0: there is a response; else why there is none, as -errno
    Field("response", "<i8"),
    Field("status", "<i8"),
    Field("residual_flags", "<i8"),  # FLAG_OVERFLOW, FLAG_UNDERFLOW
    Field("residual_count", "<i8"),
    Field("sense_address", "<i8"),
    Field("sense_length", "<i8"),
    Field("ahs", "<i8"),  # address of the additional header segments, which the caller keeps
    Field("ahs_length", "<i8"),
    Field("sense_home", "<i8"),  # for a datamover: where the session wants its sense data
    # Data in several pieces (`iscsi.wire.runs`); with a count of 0 it lies at `data_address`.
    Field("runs", "<i8"),
    Field("run_count", "<i8"),
    Field("vectors", "<i8"),  # for a datamover: address of VECTOR[vectors_max] of the task's own
    size=320,
)
# One R2T that was not answered entirely.
R2T: Final = record(
    Field("ttt", "<i8"),
    Field("lun", "<i8"),
    Field("offset", "<i8"),
    Field("length", "<i8"),
    size=32,
)
initiator_at = opener(INITIATOR)
task_at = opener(TASK)
r2t_at = opener(R2T)

TASK_SIZE: Final = TASK.itemsize
R2T_SIZE: Final = R2T.itemsize
COMPLETED: Final = offset(INITIATOR, "completed")
TASK_POOL: Final = offset(INITIATOR, "task_pool")
SENSE_ROOM: Final = 256  # SenseLength and up to 252 bytes of sense data (SPC-4 §4.5.1)
TASKS_MAX: Final = 1 << 12
VECTOR_SIZE: Final = VECTOR.itemsize
R2T_MAX: Final = 64

STATE_FREE: Final = 0
STATE_ACTIVE: Final = 1
STATE_ENDED: Final = 2  # has its response; something is still being sent or received
STATE_CANCELLED: Final = 3  # the same without a response: what still comes is thrown away
STATE_DONE: Final = 4  # in the completion queue, until released

KIND_SCSI: Final = 0
KIND_NOP: Final = 1
KIND_CONTROL: Final = 2

STAGE_NONE: Final = 0
STAGE_COMMAND: Final = 1
STAGE_UNSOLICITED: Final = 2


@nopython
def new_task(conn: int, kind: int, user_data: int) -> int:
    """Address of a task with a fresh tag, everything else zero; 0 if all are taken."""
    mine = initiator_at(conn)[0]
    index = take(conn + TASK_POOL)
    if index < 0:
        return 0
    address = int(mine["tasks"] + TASK_SIZE * index)
    task = task_at(address)[0]
    task["generation"] += 1
    task["itt"] = (task["generation"] & 0xFFFF) << 16 | index
    begin_task(conn, address, kind, user_data)
    return address


@nopython
def begin_task(conn: int, address: int, kind: int, user_data: int) -> None:
    """Make a free task active, everything but its tag zero."""
    task = task_at(address)[0]
    task["state"] = STATE_ACTIVE
    task["kind"] = kind
    task["user_data"] = user_data
    task["stage"] = STAGE_NONE
    _clear_progress(address)
    initiator_at(conn)[0]["active"] += 1


@nopython
def _clear_progress(address: int) -> None:
    task = task_at(address)[0]
    task["flags"] = 0
    task["ahs_length"] = 0
    task["run_count"] = 0
    task["expected_length"] = 0
    task["tx_pending"] = 0
    task["sent"] = 0
    task["data_out_sn"] = 0
    task["r2t_head"] = 0
    task["r2t_count"] = 0
    task["r2t_sent"] = 0
    task["r2t_sn"] = 0
    task["r2t_offset"] = 0
    task["received"] = 0
    task["data_in_sn"] = 0
    task["result"] = 0
    task["response"] = 0
    task["status"] = 0
    task["residual_flags"] = 0
    task["residual_count"] = 0
    task["sense_length"] = 0


@nopython
def piece_at(address: int, start: int) -> tuple[int, int]:
    """Where byte `start` of a command's data lies, and how many bytes lie there in one piece."""
    task = task_at(address)[0]
    if task["run_count"] == 0:
        return int(task["data_address"] + start), int(task["expected_length"] - start)
    return find(task["runs"], task["run_count"], start)


@nopython
def task_of(conn: int, itt: int) -> int:
    """Address of the task in use with this tag, or 0."""
    mine = initiator_at(conn)[0]
    index = itt & 0xFFFF
    if index >= mine["task_count"]:
        return 0
    address = int(mine["tasks"] + TASK_SIZE * index)
    task = task_at(address)[0]
    return address if task["itt"] == itt and task["state"] != STATE_FREE else 0


@nopython
def free_task(conn: int, address: int) -> None:
    """Give a task back. Its tag is dead from here on."""
    mine = initiator_at(conn)[0]
    task_at(address)[0]["state"] = STATE_FREE
    give(conn + TASK_POOL, (address - mine["tasks"]) // TASK_SIZE)


@nopython
def make_ready(conn: int, address: int) -> None:
    """Put a task in line for sending, once."""
    task = task_at(address)[0]
    if task["queued"] == 0:
        task["queued"] = 1
        push(conn + READY, token_of(TOKEN_TASK, address))


@nopython
def complete_if_over(conn: int, address: int) -> None:
    """Complete an ended task when neither sending nor receiving touches its buffer any more."""
    task = task_at(address)[0]
    if task["state"] != STATE_ENDED and task["state"] != STATE_CANCELLED:
        return
    if task["queued"] or task["tx_pending"] or port_at(conn)[0]["rx_object"] == address:
        return
    complete(conn, address)


@nopython
def complete(conn: int, address: int) -> None:
    """End a task: the user sees it in the completion queue; control tasks have none."""
    mine = initiator_at(conn)[0]
    mine["active"] -= 1
    if task_at(address)[0]["kind"] == KIND_CONTROL:
        free_task(conn, address)
        return
    task_at(address)[0]["state"] = STATE_DONE
    push(conn + COMPLETED, address)


@nopython
def fail_all(conn: int, result: int) -> None:
    """Complete every task that has not ended with `result` (-errno), and forget what was to send.

    For a connection that is over: no byte is being sent or received any more.
    """
    mine, port = initiator_at(conn)[0], port_at(conn)[0]
    tx.forget_all(conn)
    port["rx_object"] = 0
    ready = queue_at(conn + READY)[0]
    ready["head"] = ready["tail"]
    for index in range(mine["task_count"]):
        address = mine["tasks"] + TASK_SIZE * index
        task = task_at(address)[0]
        task["queued"] = 0
        if task["state"] == STATE_ACTIVE:
            task["result"] = result
        if task["state"] != STATE_FREE and task["state"] != STATE_DONE:
            complete(conn, address)


# --- the block of memory ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InitiatorLimits:
    """What bounds an initiator connection: tasks of every kind, its port, and for a datamover the
    entries of a gather list (0: data in several pieces cannot be named over it).
    """

    task_count: int = 128
    port: PortLimits = field(default_factory=PortLimits)
    vectors: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.task_count <= TASKS_MAX:
            raise ValueError(f"task_count {self.task_count} is outside 1..{TASKS_MAX}")
        if not 0 <= self.vectors <= VECTORS_MAX:
            raise ValueError(f"vectors {self.vectors} is outside 0..{VECTORS_MAX}")


def _parts(limits: InitiatorLimits, max_outstanding_r2t: int) -> dict[str, int]:
    count = limits.task_count
    return {
        "initiator": INITIATOR.itemsize,
        **port_parts(limits.port, count),
        "tasks": count * TASK_SIZE,
        "r2ts": count * min(max_outstanding_r2t, R2T_MAX) * R2T_SIZE,
        "senses": count * SENSE_ROOM,
        "vectors": (count + 1) * limits.vectors * VECTOR_SIZE,
        "completed": 8 * round_up(count),
        "task_free": 4 * count,
        "task_taken": count,
    }


def initiator_size(session: SessionParams, limits: InitiatorLimits) -> int:
    """Bytes of an initiator connection's block, which starts on a multiple of 64."""
    return plan(_parts(limits, session.max_outstanding_r2t)).size


def build_initiator(
    conn: int,
    session: SessionParams,
    connection: ConnectionParams,
    limits: InitiatorLimits,
    *,
    cmd_sn: int,
    max_cmd_sn: int,
    exp_stat_sn: int,
) -> None:
    """Make an initiator connection, just after its login, in zeroed memory at `conn`.

    The serial numbers are those a LoginResult names: the first command's CmdSN (RFC 7143 §4.2.2),
    the window the target granted, and the StatSN it will use next.
    """
    r2t_max = min(session.max_outstanding_r2t, R2T_MAX)
    layout = plan(_parts(limits, session.max_outstanding_r2t))
    at = {name: conn + start for name, start in layout.offsets.items()}
    count = limits.task_count
    build_port(conn, at, limits.port, connection, count)
    mine = initiator_at(conn)[0]
    mine["cmd_sn"] = mine["exp_cmd_sn"] = cmd_sn
    mine["max_cmd_sn"], mine["exp_stat_sn"] = max_cmd_sn, exp_stat_sn
    for name in ("first_burst_length", "max_burst_length", "immediate_data", "initial_r2t"):
        mine[name] = getattr(session, name)
    mine["max_outstanding_r2t"], mine["task_count"] = r2t_max, count
    for name in ("tasks", "r2ts", "senses", "vectors"):
        mine[name] = at[name]
    mine["vectors_max"] = limits.vectors
    build_queue(conn + COMPLETED, at["completed"], count)
    build_pool(conn + TASK_POOL, at["task_free"], at["task_taken"], count)
    _build_tasks(at, count, r2t_max, limits.vectors)


def _build_tasks(at: Mapping[str, int], count: int, r2t_max: int, vectors: int) -> None:
    for index in range(count):
        task = task_at(at["tasks"] + TASK_SIZE * index)[0]
        task["r2ts"] = at["r2ts"] + index * r2t_max * R2T_SIZE
        task["sense_address"] = at["senses"] + index * SENSE_ROOM
        task["vectors"] = at["vectors"] + (1 + index) * vectors * VECTOR_SIZE
