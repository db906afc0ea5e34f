"""The block of memory of a target's connection in the full feature phase: how large it is, and how
it is filled in before the first byte. Nothing grows afterwards.
"""

from dataclasses import dataclass, field

from iscsi.wire import sequencing as sn
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import (
    PortLimits,
    build_pool,
    build_port,
    build_queue,
    plan,
    port_parts,
    round_up,
)
from iscsi.wire.target_task import (
    CDB_MORE_LENGTH,
    COLD,
    IMMEDIATE_RESERVE,
    STORAGE,
    TARGET,
    TASK_POOL,
    TASK_SIZE,
    WINDOW_MAX,
    target_at,
    task_at,
)


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
        "cdb_areas": count * CDB_MORE_LENGTH,
        "held": 8 * round_up(limits.window),
        "buckets": 4 * round_up(4 * count),
        "nexus": 8 * max(1, lun_count),
        "cold": 8 * round_up(count),
        "storage": 8 * round_up(count),
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
    buffers: int = 0,
    buffer_quota: int = 0,
) -> None:
    """Make a target connection, just after its login, in zeroed memory at `conn`.

    `luns` is the address of `lun_count` LUN records; `cmd_sn` the first command's CmdSN and
    `stat_sn` the next StatSN, as a LoginResult names them. `buffers`: a BUFFERS record, of which
    the connection uses up to `buffer_quota` bytes.
    """
    layout = plan(_parts(limits, lun_count))
    at = {name: conn + start for name, start in layout.offsets.items()}
    count = limits.task_count
    build_port(conn, at, limits.port, connection, count)
    mine = target_at(conn)[0]
    mine["exp_cmd_sn"], mine["max_cmd_sn"] = cmd_sn, (cmd_sn + limits.window - 1) & sn.MASK
    mine["stat_sn"] = stat_sn
    for name in ("first_burst_length", "max_burst_length", "immediate_data", "initial_r2t"):
        mine[name] = getattr(session, name)
    mine["max_outstanding_r2t"] = session.max_outstanding_r2t
    for name in ("tasks", "cold_areas", "buckets", "nexus", "held"):
        mine[name] = at[name]
    mine["task_count"], mine["cold_length"] = count, limits.cold_length
    mine["bucket_mask"] = round_up(4 * count) - 1
    mine["held_mask"] = round_up(limits.window) - 1
    mine["luns"], mine["lun_count"] = luns, lun_count
    mine["buffers"], mine["buffer_quota"] = buffers, buffer_quota
    build_queue(conn + COLD, at["cold"], count)
    build_queue(conn + STORAGE, at["storage"], count)
    build_pool(conn + TASK_POOL, at["task_free"], at["task_taken"], count)
    for index in range(count):
        task = task_at(at["tasks"] + TASK_SIZE * index)[0]
        task["id"] = index
        task["cold_address"] = at["cold_areas"] + index * limits.cold_length
        task["cdb_more"] = at["cdb_areas"] + index * CDB_MORE_LENGTH
