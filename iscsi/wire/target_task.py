"""The target's records for a connection in the full feature phase, and its task table.
A task is found by the tag its initiator chose, through a hash table of bounded chains; the command
window never promises more than the table holds (RFC 7143 §4.2.2.1).
"""

import errno
from dataclasses import dataclass, field
from typing import Final

from iscsi.wire import sequencing as sn
from iscsi.wire.keys import ConnectionParams, SessionParams
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
    round_up,
    token_of,
)
from shm.jit import nopython
from shm.layout import Field, offset, record
from shm.memory import load_32, store_32
from shm.pool import POOL, give, pool_at, take
from shm.view import opener

TARGET: Final = record(
    Field("port", PORT),
    Field("exp_cmd_sn", "<i8"),
    Field("max_cmd_sn", "<i8"),
    Field("stat_sn", "<i8"),  # of the next response
    Field("first_burst_length", "<i8"),
    Field("max_burst_length", "<i8"),
    Field("immediate_data", "<i8"),
    Field("initial_r2t", "<i8"),
    Field("max_outstanding_r2t", "<i8"),
    Field("tasks", "<i8"),  # addresses
    Field("task_count", "<i8"),
    Field("cold_areas", "<i8"),
    Field("cold_length", "<i8"),  # bytes of one task's cold area
    Field("buckets", "<i8"),  # int32 each: index of the first task of a chain, plus 1
    Field("bucket_mask", "<i8"),
    Field("luns", "<i8"),
    Field("lun_count", "<i8"),
    Field("nexus", "<i8"),  # int64 per LUN: not 0 sends this session's commands to the cold code
    Field("has_aborted", "<i8"),  # 1 once a task was aborted: its data may still be on the way
    Field("commands", "<i8"),
    Field("rejects", "<i8"),
    Field("cold", QUEUE),  # addresses of tasks for the cold code
    Field("task_pool", POOL),
    size=PORT.itemsize + 20 * 8 + QUEUE.itemsize + POOL.itemsize,
)
TASK: Final = record(
    Field("state", "<i8"),
    Field("itt", "<i8"),
    Field("id", "<i8"),  # generation << 16 | index: what the cold code answers with
    Field("chain", "<i8"),  # address of the next task in the same bucket
    Field("lun", "<i8"),  # the eight-byte field
    Field("lun_number", "<i8"),  # -1 for a field that names no unit
    Field("flags", "<i8"),  # byte 1 of the SCSI Command
    Field("is_immediate", "<i8"),
    Field("is_cold", "<i8"),
    Field("expected_length", "<i8"),  # expected data transfer length
    Field("direction", "<i8"),  # of the data that is really moved: FLAG_READ, FLAG_WRITE or 0
    Field("transfer", "<i8"),  # bytes that are really moved
    Field("data_address", "<i8"),
    Field("cold_address", "<i8"),  # this task's area for data of cold commands
    Field("cdb0", "<i8"),
    Field("cdb1", "<i8"),
    # Sending.
    Field("queued", "<i8"),  # 1 while it has an entry in the ready queue
    Field("cold_queued", "<i8"),  # the same for the cold queue
    Field("tx_pending", "<i8"),  # PDUs with cold data whose sending was not reported
    Field("sent", "<i8"),
    Field("burst_sent", "<i8"),  # bytes of the Data-In sequence under way
    Field("data_in_sn", "<i8"),
    Field("r2t_sn", "<i8"),  # of the next R2T
    Field("r2t_offset", "<i8"),  # end of what was asked for
    # Receiving.
    Field("received", "<i8"),  # bytes of the initiator's buffer seen, wanted or not
    Field("unsolicited", "<i8"),  # 1 while unsolicited Data-Out is to come
    Field("data_out_sn", "<i8"),
    Field("r2t_done", "<i8"),  # R2Ts answered
    Field("burst_end", "<i8"),  # where the oldest open R2T ends
    # The response.
    Field("status", "<i8"),
    Field("sense", "<i8"),  # key << 16 | code of sense made by compiled code
    Field("sense_length", "<i8"),  # bytes of the cold area that are the response's data segment
    Field("residual_flags", "<i8"),
    Field("residual_count", "<i8"),
    size=320,
)
target_at = opener(TARGET)
task_at = opener(TASK)

TASK_SIZE: Final = TASK.itemsize
COLD: Final = offset(TARGET, "cold")
TASK_POOL: Final = offset(TARGET, "task_pool")
CDB: Final = offset(TASK, "cdb0")
# Tasks and control slots beyond the window, for immediate requests.
IMMEDIATE_RESERVE: Final = 8
WINDOW_MAX: Final = 1 << 12
HASH: Final = 0x9E3779B1  # 2^32 over the golden ratio: neighbouring tags spread out

STATE_FREE: Final = 0
STATE_DATA_OUT: Final = 1  # collecting data
STATE_COLD: Final = 2  # the cold code's turn
STATE_DATA_IN: Final = 3
STATE_RESPOND: Final = 4
STATE_SENT: Final = 5  # answered; its cold area is still being sent

ENOENT: Final = errno.ENOENT


@nopython
def _bucket(conn: int, itt: int) -> int:
    mine = target_at(conn)[0]
    return int(mine["buckets"] + 4 * (((itt * HASH) & 0xFFFFFFFF) >> 16 & mine["bucket_mask"]))


@nopython
def _chained(conn: int, bucket: int) -> int:
    index = load_32(bucket)
    return int(target_at(conn)[0]["tasks"] + TASK_SIZE * (index - 1)) if index else 0


@nopython
def task_of(conn: int, itt: int) -> int:
    """Address of the open task with this tag, or 0."""
    address = _chained(conn, _bucket(conn, itt))
    while address and task_at(address)[0]["itt"] != itt:
        address = int(task_at(address)[0]["chain"])
    return address


@nopython
def new_task(conn: int, itt: int) -> int:
    """Address of a task for a tag that no open task has, everything else zero; 0 if none is free.

    `queued` and `cold_queued` outlive a task: an entry an aborted one left behind serves the next.
    """
    mine = target_at(conn)[0]
    index = take(conn + TASK_POOL)
    if index < 0:
        return 0
    address = int(mine["tasks"] + TASK_SIZE * index)
    task, bucket = task_at(address)[0], _bucket(conn, itt)
    task["itt"] = itt
    task["id"] += 1 << 16
    task["chain"] = _chained(conn, bucket)
    store_32(bucket, index + 1)
    _clear_progress(address)
    return address


@nopython
def _clear_progress(address: int) -> None:
    task = task_at(address)[0]
    task["is_cold"] = 0
    task["direction"] = 0
    task["transfer"] = 0
    task["data_address"] = 0
    task["tx_pending"] = 0
    task["sent"] = 0
    task["burst_sent"] = 0
    task["data_in_sn"] = 0
    task["r2t_sn"] = 0
    task["r2t_offset"] = 0
    task["received"] = 0
    task["unsolicited"] = 0
    task["data_out_sn"] = 0
    task["r2t_done"] = 0
    task["burst_end"] = 0
    task["status"] = 0
    task["sense"] = 0
    task["sense_length"] = 0
    task["residual_flags"] = 0
    task["residual_count"] = 0


@nopython
def index_of(conn: int, address: int) -> int:
    """Position of a task in the table."""
    return int((address - target_at(conn)[0]["tasks"]) // TASK_SIZE)


@nopython
def _unchain(conn: int, address: int) -> None:
    bucket = _bucket(conn, task_at(address)[0]["itt"])
    after = int(task_at(address)[0]["chain"])
    before = _chained(conn, bucket)
    if before == address:
        store_32(bucket, index_of(conn, after) + 1 if after else 0)
        return
    while task_at(before)[0]["chain"] != address:
        before = int(task_at(before)[0]["chain"])
    task_at(before)[0]["chain"] = after


@nopython
def close_task(conn: int, address: int) -> None:
    """Forget an open task's tag; its memory returns when its cold area is not being sent."""
    task = task_at(address)[0]
    _unchain(conn, address)
    task["state"] = STATE_SENT
    free_if_sent(conn, address)


@nopython
def free_if_sent(conn: int, address: int) -> None:
    """Give back a closed task of which nothing is being sent."""
    task = task_at(address)[0]
    if task["state"] == STATE_SENT and task["tx_pending"] == 0:
        task["state"] = STATE_FREE
        give(conn + TASK_POOL, index_of(conn, address))


@nopython
def open_window(conn: int) -> None:
    """A non-immediate request is over: one more may come."""
    mine = target_at(conn)[0]
    mine["max_cmd_sn"] = sn.add(mine["max_cmd_sn"], 1)


@nopython
def promised(conn: int) -> int:
    """How many non-immediate requests the initiator may still send."""
    mine = target_at(conn)[0]
    return sn.window_size(mine["exp_cmd_sn"], mine["max_cmd_sn"])


@nopython
def tasks_free(conn: int) -> int:
    """How many tasks are free."""
    return int(pool_at(conn + TASK_POOL)[0]["free_count"])


@nopython
def make_ready(conn: int, address: int) -> None:
    """Put a task in line for sending, once."""
    task = task_at(address)[0]
    if task["queued"] == 0:
        task["queued"] = 1
        push(conn + READY, token_of(TOKEN_TASK, address))


@nopython
def abort(conn: int, address: int) -> None:
    """End an open task without a response (RFC 7143 §11.5.1)."""
    port = port_at(conn)[0]
    target_at(conn)[0]["has_aborted"] = 1
    if port["rx_object"] == address:
        port["rx_object"] = 0
    if not task_at(address)[0]["is_immediate"]:
        open_window(conn)
    close_task(conn, address)


@nopython
def abort_task(conn: int, itt: int) -> int:
    """ABORT TASK: 0, or -ENOENT if there is no such task."""
    address = task_of(conn, itt)
    if address == 0:
        return -ENOENT
    abort(conn, address)
    return 0


@nopython
def abort_lun(conn: int, lun_number: int) -> int:
    """End this connection's tasks for one LUN, or for all with -1. Return how many there were."""
    mine = target_at(conn)[0]
    count = 0
    for index in range(mine["task_count"]):
        address = int(mine["tasks"] + TASK_SIZE * index)
        task = task_at(address)[0]
        if task["state"] in (STATE_FREE, STATE_SENT):
            continue
        if lun_number == -1 or task["lun_number"] == lun_number:
            abort(conn, address)
            count += 1
    return count


# --- the block of memory ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TargetLimits:
    """What bounds a target connection. `window`: commands an initiator may have open, which must be
    the window its login granted; `cold_length`: bytes of data of one command served by cold code.
    """

    window: int = 32
    cold_length: int = 4096
    port: PortLimits = field(
        default_factory=lambda: PortLimits(control_slots=40, control_data_length=2048)
    )

    def __post_init__(self) -> None:
        if not 1 <= self.window <= WINDOW_MAX:
            raise ValueError(f"window {self.window} is outside 1..{WINDOW_MAX}")
        if self.port.control_slots < self.window + IMMEDIATE_RESERVE:
            raise ValueError(f"a window of {self.window} needs {IMMEDIATE_RESERVE} more slots")
        if self.cold_length < 512 or self.cold_length % 8:
            raise ValueError(f"cold_length {self.cold_length} is no multiple of 8 above 511")

    @property
    def task_count(self) -> int:
        """Tasks in the table."""
        return self.window + IMMEDIATE_RESERVE


def _parts(limits: TargetLimits, lun_count: int) -> dict[str, int]:
    count = limits.task_count
    return {
        "target": TARGET.itemsize,
        **port_parts(limits.port, count),
        "tasks": count * TASK_SIZE,
        "cold_areas": count * limits.cold_length,
        "buckets": 4 * round_up(4 * count),
        "nexus": 8 * max(1, lun_count),
        "cold": 8 * round_up(count),
        "task_free": 4 * count,
        "task_taken": count,
    }


def target_size(limits: TargetLimits, lun_count: int) -> int:
    """Bytes of a target connection's block, which starts on a multiple of 64."""
    return plan(_parts(limits, lun_count)).size


def build_target(
    conn: int,
    session: SessionParams,
    connection: ConnectionParams,
    limits: TargetLimits,
    *,
    luns: int,
    lun_count: int,
    cmd_sn: int,
    stat_sn: int,
) -> None:
    """Make a target connection, just after its login, in zeroed memory at `conn`.

    `luns` is the address of `lun_count` LUN records; `cmd_sn` the first command's CmdSN and
    `stat_sn` the next StatSN, as a LoginResult names them.
    """
    layout = plan(_parts(limits, lun_count))
    at = {name: conn + start for name, start in layout.offsets.items()}
    count = limits.task_count
    build_port(conn, at, limits.port, connection, count)
    mine = target_at(conn)[0]
    mine["exp_cmd_sn"], mine["max_cmd_sn"] = cmd_sn, sn.add(cmd_sn, limits.window - 1)
    mine["stat_sn"] = stat_sn
    for name in ("first_burst_length", "max_burst_length", "immediate_data", "initial_r2t"):
        mine[name] = getattr(session, name)
    mine["max_outstanding_r2t"] = session.max_outstanding_r2t
    for name in ("tasks", "cold_areas", "buckets", "nexus"):
        mine[name] = at[name]
    mine["task_count"], mine["cold_length"] = count, limits.cold_length
    mine["bucket_mask"] = round_up(4 * count) - 1
    mine["luns"], mine["lun_count"] = luns, lun_count
    build_queue(conn + COLD, at["cold"], count)
    build_pool(conn + TASK_POOL, at["task_free"], at["task_taken"], count)
    for index in range(count):
        task = task_at(at["tasks"] + TASK_SIZE * index)[0]
        task["id"] = index
        task["cold_address"] = at["cold_areas"] + index * limits.cold_length
