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
from ppe.cycle.endpoints import endpoint_of, flush_endpoint
from ppe.cycle.operations import channel_row_of, finish, mark_dirty, operation_of, refuse
from ppe.cycle.readiness import poller
from ppe.cycle.readiness.events import READ, TAG_DOORBELL, make_tag
from ppe.cycle.records import (
    CONTROL_CHANNEL,
    FREE,
    NONE,
    RINGS,
    endpoint_at,
    engine_at,
    operation_at,
    region_at,
    row_at,
)
from ppe.cycle.regions import add_region, region_of, remove_region
from ppe.cycle.services.stream import release
from ppe.cycle.stages.channels import activate, channel_stats_of, deactivate
from shm.atomics import load_relaxed, store_relaxed
from shm.channel import ENGINE_CHANNEL, notify
from shm.counters import count
from shm.error_log import log_error
from shm.jit import nopython
from shm.layout import offset
from shm.libc import monotonic_ns
from shm.memory import copy_bytes, zero_bytes
from shm.operations import (
    CONTROL_ADD_REGION,
    CONTROL_ATTACH,
    CONTROL_DETACH,
    CONTROL_FAULT,
    CONTROL_REMOVE_REGION,
    INDEX_MASK,
)
from shm.records import wqe_at

PRIVILEGED: Final = 1 << 8  # flag of CONTROL_ATTACH
RINGS_SIZE: Final = ENGINE_CHANNEL.itemsize
ENOBUFS: Final = -errno.ENOBUFS
EBUSY: Final = -errno.EBUSY
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
    # `dirty` stays: in this very pass the row may still be listed for the channel it was before.
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
            release(engine, number)
    deactivate(engine, index)
    poller.remove(engine, row["doorbell"], make_tag(TAG_DOORBELL, 0, index))
    row["client"] = 0
    store_relaxed(channel_stats_of(engine, index) + _CLIENT, 0)
    return 0


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
