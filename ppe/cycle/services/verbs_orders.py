"""What the control plane orders of the service of verbs devices. It makes and ends the device's
objects itself, which waits for the kernel; here they come into the engine's tables and leave them.

The one rule: a queue leaves in three steps. STOP: the engine posts to it no more. Then the control
plane ends it at the device. LET_GO: what it completed last is taken, and its owner may close it.
"""

import errno
from typing import Final

from ppe.cycle.endpoints import endpoint_id, endpoint_of, find_endpoint, free_endpoint
from ppe.cycle.records import (
    CONNECTED,
    DOMAIN,
    NONE,
    SHARED,
    WATCHED,
    endpoint_at,
    engine_at,
)
from ppe.cycle.rnic import memory
from ppe.cycle.rnic.records import mr_at
from ppe.cycle.rnic.verbs import keys
from ppe.cycle.rnic.verbs.records import QP_ERROR, QP_READY, cq_at, qp_at
from ppe.cycle.services.rdma_events import tell_event
from ppe.cycle.services.rdma_orders import domain_of, place
from ppe.cycle.services.rdma_records import held_at, rnic_at
from ppe.cycle.services.stream_ends import release
from ppe.cycle.services.verbs_ends import end_connection, poll, take_back
from ppe.cycle.transport import tcp
from shm.jit import nopython
from shm.layout import Field, record
from shm.memory import load_64, store_64
from shm.records import wqe_at
from shm.verbs import (
    ORDER_CLOSE,
    ORDER_CQ,
    ORDER_DEREGISTER,
    ORDER_DOMAIN,
    ORDER_LET_GO,
    ORDER_QP,
    ORDER_READY,
    ORDER_REGISTER,
    ORDER_SRQ,
    ORDER_STOP,
    ORDER_TELL,
    ORDER_WATCH,
)
from shm.view import opener

ENOBUFS: Final = -errno.ENOBUFS
EBADF: Final = -errno.EBADF
EINVAL: Final = -errno.EINVAL
CQS_MAX: Final = 64
EVERYTHING: Final = 1 << 30

# Memory that a device has registered, as it comes into the table.
REGISTRATION: Final = record(
    Field("address", "<i8"),
    Field("length", "<i8"),
    Field("iova", "<i8"),
    Field("access", "<i8"),
    Field("lkey", "<i8"),
    Field("handle", "<i8"),
    size=64,
)
registration_at = opener(REGISTRATION)


@nopython
def order(engine: int, wqe: int) -> int:
    """Carry out the order that `flags` names: an id, a key or 0, or -errno."""
    entry = wqe_at(wqe)[0]
    which, service = entry["flags"], engine_at(engine)[0]["verbs"]
    if which == ORDER_DOMAIN:
        held = held_at(entry["arg0"])[0]
        held["domain"], held["shared"], held["engaged"] = NONE, NONE, 1
        return place(engine, entry["arg1"], DOMAIN, entry["arg0"], service)
    if which == ORDER_SRQ:
        return _share(engine, wqe)
    if which == ORDER_QP:
        return _make_qp(engine, wqe)
    if which == ORDER_CQ:
        return _change_cqs(engine, entry["arg0"], entry["user_data"] != 0)
    if which == ORDER_WATCH:
        return _watch(engine, entry["arg1"], entry["arg0"])
    if which in (ORDER_REGISTER, ORDER_DEREGISTER):
        return _change_memory(engine, wqe)
    index = find_endpoint(engine, entry["arg1"], entry["endpoint"])
    if index == NONE or endpoint_at(endpoint_of(engine, index))[0]["service"] != service:
        return EBADF
    if which == ORDER_CLOSE and endpoint_at(endpoint_of(engine, index))[0]["state"] == WATCHED:
        release(engine, index)
        return 0
    return _change(engine, index, which, entry["arg0"])


@nopython
def _change_cqs(engine: int, cq: int, is_over: bool) -> int:
    """Poll this completion queue, too; or no more."""
    rnic = rnic_at(engine_at(engine)[0]["rnic"])[0]
    count = rnic["cq_count"]
    if not is_over:
        if count == CQS_MAX:
            return ENOBUFS
        store_64(rnic["cqs"] + 8 * count, cq)
        rnic["cq_count"] = count + 1
        return 0
    for which in range(count):
        place = rnic["cqs"] + 8 * which
        if load_64(place) == cq:
            store_64(place, load_64(rnic["cqs"] + 8 * (count - 1)))
            rnic["cq_count"] = count - 1
            return 0
    return EINVAL


@nopython
def _watch(engine: int, channel: int, descriptor: int) -> int:
    """Id of an endpoint for a descriptor, the engine's from now on, whose news a channel is told;
    on the control plane's own channel they wake a sleeping engine.
    """
    name = place(engine, channel, WATCHED, 0, engine_at(engine)[0]["verbs"])
    if name < 0:
        return name
    index = find_endpoint(engine, channel, name)
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    endpoint["descriptor"] = descriptor
    watched = tcp.watch(engine, index)
    if watched < 0:
        endpoint["descriptor"] = NONE
        free_endpoint(engine, index)
        return watched
    return name


@nopython
def _share(engine: int, wqe: int) -> int:
    """A shared receive queue of the HELD at arg0, for channel arg1, in the domain arg2."""
    entry = wqe_at(wqe)[0]
    service = engine_at(engine)[0]["verbs"]
    domain = domain_of(engine, entry["arg1"], entry["arg2"], service)
    if domain == NONE:
        return EBADF
    held = held_at(entry["arg0"])[0]
    held["domain"], held["shared"], held["engaged"] = domain, NONE, 1
    return place(engine, entry["arg1"], SHARED, entry["arg0"], service)


@nopython
def _make_qp(engine: int, wqe: int) -> int:
    """A queue pair of the HELD at arg0: channel arg1, domain arg2, the shared receive queue
    `user_data` or 0. Receives may be posted to it at once.
    """
    entry = wqe_at(wqe)[0]
    channel, service = entry["arg1"], engine_at(engine)[0]["verbs"]
    domain = domain_of(engine, channel, entry["arg2"], service)
    if domain == NONE:
        return EBADF
    held = held_at(entry["arg0"])[0]
    held["domain"], held["shared"] = domain, NONE
    if entry["user_data"] != 0:
        shared = find_endpoint(engine, channel, entry["user_data"])
        if shared == NONE or endpoint_at(endpoint_of(engine, shared))[0]["service"] != service:
            return EBADF
        held["shared"] = shared
    name = place(engine, channel, CONNECTED, entry["arg0"], service)
    if name < 0:
        return name
    qp, cq = qp_at(held["core"])[0], cq_at(held["cq"])[0]
    index = find_endpoint(engine, channel, name)
    entered = keys.put(cq["qps"], qp["qp_num"], held["core"])
    if entered < 0:
        endpoint_at(endpoint_of(engine, index))[0]["qp"] = 0
        free_endpoint(engine, index)
        return entered
    qp["user"] = index
    held["engaged"] = 1
    return name


@nopython
def _change_memory(engine: int, wqe: int) -> int:
    """Enter the REGISTRATION at arg0 into the domain arg2 of channel arg1: its key. Or forget the
    key arg0: -EBUSY while work under way needs it.
    """
    entry = wqe_at(wqe)[0]
    domain = domain_of(engine, entry["arg1"], entry["arg2"], engine_at(engine)[0]["verbs"])
    if domain == NONE:
        return EBADF
    table, owner = rnic_at(engine_at(engine)[0]["rnic"])[0]["table"], endpoint_id(engine, domain)
    if entry["flags"] == ORDER_DEREGISTER:
        return memory.deregister(table, entry["arg0"], owner)
    given = registration_at(entry["arg0"])[0]
    stag = memory.register(
        table, owner, owner, given["address"], given["length"], given["iova"], given["access"]
    )
    if stag > 0:
        row = mr_at(memory.find(table, stag))[0]
        row["lkey"], row["handle"] = given["lkey"], given["handle"]
    return stag


@nopython
def _change(engine: int, index: int, which: int, event: int) -> int:
    """A change of what is there."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["qp"] == 0:
        return EINVAL
    held = held_at(endpoint["qp"])[0]
    is_pair = endpoint["state"] not in (DOMAIN, SHARED)
    if which == ORDER_STOP:
        held["started"] = 0
        held["stopped"] = 1
        if is_pair:
            qp_at(held["core"])[0]["state"] = QP_ERROR
            poll(engine, EVERYTHING)
        return 0
    if which == ORDER_LET_GO:
        if is_pair:
            poll(engine, EVERYTHING)
            _leave(held["cq"], held["core"])
            if endpoint["mover"] != 0:
                take_back(engine, index)
        held["engaged"] = 0
        return 0
    if which == ORDER_TELL and endpoint["state"] == SHARED:
        tell_event(engine, index, event)
        return 0
    if not is_pair or held["engaged"] == 0:
        return EINVAL
    if which == ORDER_READY and endpoint["state"] == CONNECTED:
        qp_at(held["core"])[0]["state"] = QP_READY
        held["started"] = 1
        return 0
    if which == ORDER_TELL:
        end_connection(engine, index, event)
        return 0
    return EINVAL


@nopython
def _leave(cq: int, qp: int) -> None:
    """No completion of a completion queue is this queue pair's any more."""
    own = cq_at(cq)[0]
    keys.remove(own["qps"], qp_at(qp)[0]["qp_num"])
    if own["ready"] == qp:
        own["ready"] = 0
