"""Orders of the control plane: channels and regions come and go. It posts on channel 0.

The engine alone writes its tables; the control plane prepares what it can in its own memory and
waits for the answer before it unmaps or closes anything.
"""

import errno
from typing import Final

from ppe.cycle import guard
from ppe.cycle.accounts import (
    CHANNEL_STATS,
    CHANNEL_STATS_SIZE,
    ERROR_CLIENT_FAULT,
    INDEX,
)
from ppe.cycle.endpoints import (
    endpoint_id,
    endpoint_of,
    find_endpoint,
    flush_endpoint,
    free_endpoint,
    is_idle,
    new_endpoint,
    queue_receive,
)
from ppe.cycle.operations import channel_row_of, finish, mark_dirty, operation_of, refuse
from ppe.cycle.readiness import poller
from ppe.cycle.readiness.events import READ, TAG_DOORBELL, make_tag
from ppe.cycle.records import (
    CONNECTED,
    CONTROL_CHANNEL,
    FREE,
    NONE,
    POOL,
    RINGS,
    TABLE,
    endpoint_at,
    engine_at,
    operation_at,
    region_at,
    row_at,
)
from ppe.cycle.regions import add_region, region_of, remove_region, resolve
from ppe.cycle.services.mover_records import ACTION_BITS, ORDER, START, USES, mover_at
from ppe.cycle.services.stream import release
from ppe.cycle.stages.channels import activate, channel_stats_of, deactivate
from ppe.cycle.transport import tcp
from shm.atomics import load_relaxed, store_relaxed
from shm.call import call_address
from shm.channel import ENGINE_CHANNEL, notify
from shm.counters import count
from shm.error_log import log_error
from shm.jit import nopython
from shm.layout import offset
from shm.libc import monotonic_ns
from shm.memory import copy_bytes, zero_bytes
from shm.operations import (
    CONTROL_ADD_REGION,
    CONTROL_ADOPT,
    CONTROL_ATTACH,
    CONTROL_DETACH,
    CONTROL_ENABLE_MOVER,
    CONTROL_FAULT,
    CONTROL_MAKE_POOL,
    CONTROL_MAKE_TABLE,
    CONTROL_RDMA,
    CONTROL_REMOVE_REGION,
    CONTROL_TAKE_OUT,
    CONTROL_VERBS,
    INDEX_MASK,
)
from shm.records import wqe_at

PRIVILEGED: Final = 1 << 8  # flag of CONTROL_ATTACH
RINGS_SIZE: Final = ENGINE_CHANNEL.itemsize
ENOBUFS: Final = -errno.ENOBUFS
EBUSY: Final = -errno.EBUSY
EBADF: Final = -errno.EBADF
EFAULT: Final = -errno.EFAULT
ENOTCONN: Final = -errno.ENOTCONN
EINVAL: Final = -errno.EINVAL
EOPNOTSUPP: Final = -errno.EOPNOTSUPP
_FAULTS = INDEX["client_faults"]
_CLIENT, _PID = offset(CHANNEL_STATS, "client"), offset(CHANNEL_STATS, "pid")


@nopython
def on_work(engine: int, channel: int, wqe: int) -> int:
    """Carry out one order and answer it at once."""
    entry = wqe_at(wqe)[0]
    opcode = entry["opcode"]
    status, answer = EOPNOTSUPP, 0
    if opcode == CONTROL_ATTACH:
        status = attach(engine, wqe)
    elif opcode == CONTROL_DETACH:
        status = detach(engine, entry["endpoint"])
    elif opcode == CONTROL_ADD_REGION:
        answer = add_region(engine, entry["arg2"], entry["arg0"], entry["arg1"])
        status = ENOBUFS if answer == NONE else 0
    elif opcode == CONTROL_REMOVE_REGION:
        status = _remove_region(engine, entry["region"])
    elif opcode == CONTROL_ENABLE_MOVER:
        status = _enable_mover(engine, wqe)
    elif opcode == CONTROL_MAKE_POOL:
        index = new_endpoint(engine, entry["arg0"], NONE, POOL)
        status = ENOBUFS if index == NONE else 0
        answer = 0 if index == NONE else endpoint_id(engine, index)
    elif opcode == CONTROL_MAKE_TABLE:
        index = new_endpoint(engine, entry["arg0"], NONE, TABLE)
        status = ENOBUFS if index == NONE else 0
        answer = 0 if index == NONE else endpoint_id(engine, index)
        if index != NONE:
            table = endpoint_at(endpoint_of(engine, index))[0]
            table["table"] = entry["arg1"]
            table["table_size"] = entry["length"]
    elif opcode == CONTROL_TAKE_OUT:
        answer = _take_out(engine, entry["arg1"], entry["endpoint"])
        status = min(answer, 0)
    elif opcode == CONTROL_ADOPT:
        answer = _adopt(engine, entry["arg1"], entry["arg0"])
        status = min(answer, 0)
    elif opcode == CONTROL_RDMA:
        answer = call_address(engine_at(engine)[0]["rdma"], engine, wqe, 0, ORDER)
        status = min(answer, 0)
    elif opcode == CONTROL_VERBS:
        answer = call_address(engine_at(engine)[0]["verbs"], engine, wqe, 0, ORDER)
        status = min(answer, 0)
    if status < 0:
        return refuse(engine, channel, wqe, status)
    finish(engine, channel, opcode, 0, 0, entry["user_data"], 0, 0, 0, answer, 0, 0)
    return 1


@nopython
def attach(engine: int, wqe: int) -> int:
    """Make row `endpoint` a channel from the ENGINE_CHANNEL prepared at arg0."""
    entry = wqe_at(wqe)[0]
    index = entry["endpoint"]
    if index >= engine_at(engine)[0]["channel_count"]:
        return EINVAL
    address = channel_row_of(engine, index)
    row = row_at(address)[0]
    if row["client"] != 0:
        return EBUSY
    copy_bytes(address + RINGS, entry["arg0"], RINGS_SIZE)
    row["client"] = entry["arg2"]
    row["doorbell"] = entry["arg1"]
    row["active_at"] = NONE
    # `dirty` and `gathering` stay: in this very pass the row may still be listed for the channel it
    # was before.
    row["dead"] = 0
    row["endpoints"] = 0
    row["privileged"] = 1 if entry["flags"] & PRIVILEGED != 0 else 0
    stats = channel_stats_of(engine, index)
    zero_bytes(stats, CHANNEL_STATS_SIZE)
    store_relaxed(stats + _CLIENT, entry["arg2"])
    store_relaxed(stats + _PID, entry["length"])
    tag = make_tag(TAG_DOORBELL, 0, index)
    outcome = poller.add(engine, row["doorbell"], READ, tag)
    if outcome < 0:
        row["client"] = 0
        store_relaxed(stats + _CLIENT, 0)
        return outcome
    activate(engine, index)
    return 0


@nopython
def detach(engine: int, index: int) -> int:
    """Close everything a channel owns and free its row. Its memory is not touched again."""
    mine = engine_at(engine)[0]
    if index >= mine["channel_count"]:
        return EINVAL
    row = row_at(channel_row_of(engine, index))[0]
    if row["client"] == 0:
        return EINVAL
    row["dead"] = 1
    for number in range(mine["endpoint_count"]):
        endpoint = endpoint_at(endpoint_of(engine, number))[0]
        if endpoint["state"] != FREE and endpoint["channel"] == index:
            flush_endpoint(engine, number, 0)
    # What queue pairs rest on goes after all of them have ended.
    for number in range(mine["endpoint_count"]):
        endpoint = endpoint_at(endpoint_of(engine, number))[0]
        if endpoint["state"] != FREE and endpoint["channel"] == index:
            release(engine, number)
    deactivate(engine, index)
    poller.remove(engine, row["doorbell"], make_tag(TAG_DOORBELL, 0, index))
    row["client"] = 0
    store_relaxed(channel_stats_of(engine, index) + _CLIENT, 0)
    return 0


@nopython
def _enable_mover(engine: int, wqe: int) -> int:
    """Make a connected stream a datamover endpoint by the MOVER prepared at arg0.

    arg1: its channel; region, offset, length: the host's block of memory; arg2: id of the pool its
    buffers come from, user_data: of the table with its units, or 0.
    """
    entry = wqe_at(wqe)[0]
    channel = entry["arg1"]
    index = find_endpoint(engine, channel, entry["endpoint"])
    if index == NONE:
        return EBADF
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != CONNECTED:
        return ENOTCONN
    # Over RDMA it is a queue pair already, which `start` looks at.
    is_rdma = mover_at(entry["arg0"])[0]["iser"] != 0
    service = endpoint["service"]
    is_other = service != 0
    if is_rdma:
        is_other = service not in (engine_at(engine)[0]["rdma"], engine_at(engine)[0]["verbs"])
    if is_other or endpoint["mover"] != 0 or not is_idle(engine, index):
        return EBUSY
    client = row_at(channel_row_of(engine, channel))[0]["client"]
    home = resolve(engine, client, entry["region"], entry["offset"], entry["length"])
    if home == 0:
        return EFAULT
    pool = index
    if entry["arg2"] != 0:
        pool = find_endpoint(engine, channel, entry["arg2"])
        if pool == NONE or endpoint_at(endpoint_of(engine, pool))[0]["state"] != POOL:
            return EBADF
    table = NONE
    if entry["user_data"] != 0:
        table = find_endpoint(engine, channel, entry["user_data"])
        if table == NONE or endpoint_at(endpoint_of(engine, table))[0]["state"] != TABLE:
            return EBADF
    mover = mover_at(entry["arg0"])[0]
    mover["table"] = table
    mover["home"] = home
    mover["home_size"] = entry["length"]
    mover["words"] = home + mover["words"]
    mover["pool"] = pool
    mover["pool_generation"] = endpoint_at(endpoint_of(engine, pool))[0]["generation"]
    mover["ahead"] = engine_at(engine)[0]["staging_size"]
    endpoint["mover"] = entry["arg0"]
    if is_rdma:
        status = EBUSY
        if endpoint["qp"] != 0:
            status = call_address(engine_at(engine)[0]["iser"], engine, index, 0, START)
        if status < 0:
            endpoint["mover"] = 0
        return status
    endpoint["service"] = engine_at(engine)[0]["datamover"]
    endpoint["readable"] = max(endpoint["readable"], 1)  # Bytes may have come already.
    queue_receive(engine, index)
    return 0


@nopython
def _take_out(engine: int, channel: int, name: int) -> int:
    """Let go of a connection on which nothing is outstanding: its descriptor, or -errno."""
    index = find_endpoint(engine, channel, name)
    if index == NONE:
        return EBADF
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != CONNECTED:
        return ENOTCONN
    if endpoint["service"] != 0 or not is_idle(engine, index):
        return EBUSY
    descriptor = tcp.let_go(engine, index)
    free_endpoint(engine, index)
    return descriptor


@nopython
def _adopt(engine: int, channel: int, descriptor: int) -> int:
    """Make a connected socket an endpoint of a channel: its id, or -errno, and the socket stays the
    caller's.
    """
    if row_at(channel_row_of(engine, channel))[0]["client"] == 0:
        return EINVAL
    index = new_endpoint(engine, channel, descriptor, CONNECTED)
    if index == NONE:
        return ENOBUFS
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    endpoint["user_data"] = 0
    endpoint["writable"] = 1
    endpoint["readable"] = 1  # Bytes may have come before this engine was watching.
    watched = tcp.watch(engine, index)
    if watched < 0:
        endpoint["descriptor"] = -1
        free_endpoint(engine, index)
        return watched
    return endpoint_id(engine, index)


@nopython
def _remove_region(engine: int, region_id: int) -> int:
    """Forget a region unless an operation still uses it."""
    mine = engine_at(engine)[0]
    index = region_id & INDEX_MASK
    if index >= mine["region_count"]:
        return EINVAL
    region = region_at(region_of(engine, index))[0]
    start, size = region["address"], region["size"]
    for number in range(mine["operation_count"]):
        operation = operation_at(operation_of(engine, number))[0]
        at = operation["address"]
        if at != 0 and at >= start and at < start + size:
            return EBUSY
    for number in range(mine["endpoint_count"]):
        endpoint = endpoint_at(endpoint_of(engine, number))[0]
        service = endpoint["service"] if endpoint["table"] == 0 else mine["datamover"]
        if endpoint["state"] == FREE or service == 0:
            continue
        what = size << ACTION_BITS | USES
        if call_address(service, engine, number, start, what) != 0:
            return EBUSY
    return 0 if remove_region(engine, region_id) else EINVAL


@nopython
def step(engine: int) -> int:
    """Stop serving clients whose memory went away under the engine, and tell the control plane."""
    mine = engine_at(engine)[0]
    faults = load_relaxed(mine["faults"])
    if faults == mine["faults_seen"]:
        return 0
    mine["faults_seen"] = faults
    done = 0
    for entry in range(guard.entry_count()):
        client = guard.faulted_client(entry)
        if client != 0:
            done += _end_client(engine, client)
    return done


@nopython
def _end_client(engine: int, client: int) -> int:
    mine = engine_at(engine)[0]
    done = 0
    for index in range(mine["channel_count"]):
        row = row_at(channel_row_of(engine, index))[0]
        if row["client"] == client and row["dead"] == 0:
            row["dead"] = 1
            deactivate(engine, index)
            done += 1
    if done > 0:
        count(mine["counters"], _FAULTS, 1)
        log_error(mine["errors"], ERROR_CLIENT_FAULT, 0, client, monotonic_ns())
        rings = channel_row_of(engine, CONTROL_CHANNEL) + RINGS
        if notify(rings, CONTROL_FAULT, 0, client, 0, 0):
            mark_dirty(engine, CONTROL_CHANNEL)
    return done
