"""What the control plane orders of the RDMA service: protection domains, shared receive queues, and
that a connection becomes a queue pair, by blocks of memory it has prepared.
"""

import errno
from typing import Final

from ppe.cycle.endpoints import (
    endpoint_id,
    endpoint_of,
    find_endpoint,
    is_idle,
    new_endpoint,
)
from ppe.cycle.records import (
    CONNECTED,
    DOMAIN,
    NONE,
    SHARED,
    endpoint_at,
    engine_at,
)
from ppe.cycle.rnic import memory
from ppe.cycle.services import rdma_core as core
from ppe.cycle.services.mover_records import ACTION_BITS, USES
from ppe.cycle.services.rdma_records import held_at, rnic_at
from shm.call import call_address
from shm.jit import nopython
from shm.records import wqe_at
from shm.verbs import ORDER_DOMAIN, ORDER_ENABLE, ORDER_SRQ

ENOBUFS: Final = -errno.ENOBUFS
EBUSY: Final = -errno.EBUSY
EBADF: Final = -errno.EBADF
ENOTCONN: Final = -errno.ENOTCONN
EINVAL: Final = -errno.EINVAL


@nopython
def order(engine: int, wqe: int) -> int:
    """Carry out the order that `flags` names: an endpoint's id or 0, or -errno."""
    entry = wqe_at(wqe)[0]
    which = entry["flags"]
    if which == ORDER_DOMAIN:
        return place(engine, entry["arg1"], DOMAIN, 0, engine_at(engine)[0]["rdma"])
    if which == ORDER_SRQ:
        return _share(engine, wqe)
    if which == ORDER_ENABLE:
        return _enable(engine, wqe)
    return EINVAL


@nopython
def place(engine: int, channel: int, state: int, held: int, service: int) -> int:
    """Id of a new endpoint without a socket, of a service."""
    index = new_endpoint(engine, channel, NONE, state)
    if index == NONE:
        return ENOBUFS
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    endpoint["service"] = service
    endpoint["qp"] = held
    return endpoint_id(engine, index)


@nopython
def domain_of(engine: int, channel: int, name: int, service: int) -> int:
    """Index of a channel's protection domain of a service, or -1."""
    index = find_endpoint(engine, channel, name)
    if index == NONE:
        return NONE
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    return index if endpoint["state"] == DOMAIN and endpoint["service"] == service else NONE


@nopython
def _share(engine: int, wqe: int) -> int:
    """A shared receive queue of the HELD at arg0, for channel arg1, in the domain arg2."""
    entry = wqe_at(wqe)[0]
    domain = domain_of(engine, entry["arg1"], entry["arg2"], engine_at(engine)[0]["rdma"])
    if domain == NONE:
        return EBADF
    held = held_at(entry["arg0"])[0]
    held["domain"] = domain
    held["shared"] = NONE
    return place(engine, entry["arg1"], SHARED, entry["arg0"], engine_at(engine)[0]["rdma"])


@nopython
def _enable(engine: int, wqe: int) -> int:
    """Make a connected stream a queue pair by the HELD at arg0: channel arg1, domain arg2, the
    shared receive queue `user_data` or 0.
    """
    entry = wqe_at(wqe)[0]
    channel = entry["arg1"]
    index = find_endpoint(engine, channel, entry["endpoint"])
    if index == NONE:
        return EBADF
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != CONNECTED:
        return ENOTCONN
    if endpoint["service"] != 0 or not is_idle(engine, index):
        return EBUSY
    domain = domain_of(engine, channel, entry["arg2"], engine_at(engine)[0]["rdma"])
    if domain == NONE:
        return EBADF
    held = held_at(entry["arg0"])[0]
    held["shared"] = NONE
    if entry["user_data"] != 0:
        shared = find_endpoint(engine, channel, entry["user_data"])
        if shared == NONE or endpoint_at(endpoint_of(engine, shared))[0]["state"] != SHARED:
            return EBADF
        if endpoint_at(endpoint_of(engine, shared))[0]["service"] != engine_at(engine)[0]["rdma"]:
            return EBADF
        its = held_at(endpoint_at(endpoint_of(engine, shared))[0]["qp"])[0]
        if its["domain"] != domain:
            return EINVAL
        held["shared"] = shared
        core.share_rq(held["core"], its["core"])
    held["domain"] = domain
    endpoint["qp"] = entry["arg0"]
    endpoint["service"] = engine_at(engine)[0]["rdma"]
    return 0


@nopython
def _table(engine: int) -> int:
    return int(rnic_at(engine_at(engine)[0]["rnic"])[0]["table"])


@nopython
def uses(engine: int, index: int, start: int, end: int) -> int:
    """1 if the endpoint still needs memory between two addresses: a domain, what is registered."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["mover"] != 0:
        what = (end - start) << ACTION_BITS | USES
        return call_address(engine_at(engine)[0]["iser"], engine, index, start, what)
    if endpoint["state"] != DOMAIN:
        return 0  # What a queue pair uses is registered in its domain.
    return 1 if memory.is_within(_table(engine), endpoint_id(engine, index), start, end) else 0
