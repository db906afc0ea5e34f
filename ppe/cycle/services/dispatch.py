"""Which service an operation or an endpoint belongs to. The datamover and RDMA are called through
addresses, so the duty cycle is compiled without them, and an engine that moves no iSCSI and has no
queue pairs never loads them.
"""

import errno
from typing import Final

from ppe.cycle.endpoints import endpoint_of, find_endpoint
from ppe.cycle.operations import refuse
from ppe.cycle.records import NONE, POOL, TABLE, endpoint_at, engine_at
from ppe.cycle.services import stream
from ppe.cycle.services.mover_records import ACTION_BITS, RECEIVE, TRANSMIT, WORK
from shm.call import call_address
from shm.jit import nopython
from shm.operations import MOVER_FIRST, MOVER_LAST, MOVER_RECEIVE, RDMA_FIRST, RDMA_LAST
from shm.records import wqe_at

EINVAL: Final = -errno.EINVAL
EBADF: Final = -errno.EBADF


@nopython
def on_work(engine: int, channel: int, wqe: int, slots: int) -> int:
    """Do or queue one operation. It has exactly one completion, now or later."""
    opcode = wqe_at(wqe)[0]["opcode"]
    is_rdma = opcode >= RDMA_FIRST and opcode <= RDMA_LAST
    if not is_rdma and (opcode < MOVER_FIRST or opcode > MOVER_LAST):
        return stream.on_work(engine, channel, wqe, slots)
    index = find_endpoint(engine, channel, wqe_at(wqe)[0]["endpoint"])
    if index == NONE:
        return refuse(engine, channel, wqe, EBADF)
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    what = (index << ACTION_BITS | slots) << ACTION_BITS | WORK
    if is_rdma:
        mine, service = engine_at(engine)[0], endpoint["service"]
        is_rnic = service != 0 and (service == mine["rdma"] or service == mine["verbs"])
        if endpoint["mover"] != 0 or not is_rnic:
            return refuse(engine, channel, wqe, EINVAL)
        return call_address(service, engine, channel, wqe, what)
    is_mover = endpoint["mover"] != 0 or endpoint["state"] in (POOL, TABLE)
    if not is_mover:
        return refuse(engine, channel, wqe, EINVAL)
    service = engine_at(engine)[0]["datamover"]
    if endpoint["qp"] != 0 and wqe_at(wqe)[0]["opcode"] != MOVER_RECEIVE:
        service = engine_at(engine)[0]["iser"]
    return call_address(service, engine, channel, wqe, what)


@nopython
def on_receive(engine: int, index: int) -> int:
    """The endpoint's transport may have bytes."""
    service = endpoint_at(endpoint_of(engine, index))[0]["service"]
    if service != 0:
        return call_address(service, engine, index, 0, RECEIVE)
    return stream.on_receive(engine, index)


@nopython
def on_transmit(engine: int, index: int) -> int:
    """The endpoint has something to send, and its transport takes bytes."""
    service = endpoint_at(endpoint_of(engine, index))[0]["service"]
    if service != 0:
        return call_address(service, engine, index, 0, TRANSMIT)
    return stream.on_transmit(engine, index)
