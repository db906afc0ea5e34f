"""What a queue pair tells its host, and how it ends: by the peer's orderly close, by a Terminate of
either side, or because its connection broke. Every work request has its completion then.
"""

import errno
from typing import Final

from ppe.cycle.endpoints import endpoint_id, endpoint_of
from ppe.cycle.operations import finish, free_operation, operation_of
from ppe.cycle.records import DOMAIN, NONE, endpoint_at, engine_at, operation_at
from ppe.cycle.rnic import memory
from ppe.cycle.services import rdma_core as core
from ppe.cycle.services.mover_records import END, TOLD
from ppe.cycle.services.rdma_events import finish_wc, tell_event
from ppe.cycle.services.rdma_records import HELD_OVER, HELD_STATE, held_at, rnic_at
from ppe.cycle.services.stream_ends import break_endpoint
from ppe.cycle.transport import tcp
from shm.atomics import store_release
from shm.call import call_address
from shm.jit import nopython
from shm.operations import CANCELLED, END_OF_STREAM
from shm.verbs import (
    EVENT_DISCONNECTED,
    EVENT_HAS_TERMINATE,
    EVENT_IS_OURS,
    EVENT_QP_ACCESS_ERR,
    EVENT_QP_FATAL,
    EVENT_QP_REQ_ERR,
    EVENT_SRQ_LIMIT_REACHED,
    EVENT_TERMINATE_SHIFT,
    TERMINATE_MASK,
)
from shm.verbs_numbers import WC_WR_FLUSH_ERR

EPROTO: Final = -errno.EPROTO
# Terminates that say that the other side had no right, or asked for what cannot be: layer, type.
_PROTECTION: Final = (0x01, 0x11)
_OPERATION: Final = (0x02, 0x12)


@nopython
def tell(engine: int, index: int) -> None:
    """Complete work requests that are over in the manual's order; a datamover takes its own."""
    if endpoint_at(endpoint_of(engine, index))[0]["mover"] != 0:
        call_address(engine_at(engine)[0]["iser"], engine, index, 0, TOLD)
        return
    wc = rnic_at(engine_at(engine)[0]["rnic"])[0]["wc"]
    held = held_at(endpoint_at(endpoint_of(engine, index))[0]["qp"])[0]
    qp = held["core"]
    while core.wc_next(qp, wc):
        finish_wc(engine, index)
    if held["shared"] != NONE and core.limit_reached(core.rq_of(qp)):
        tell_event(engine, held["shared"], EVENT_SRQ_LIMIT_REACHED)


@nopython
def end_of_stream(engine: int, index: int) -> None:
    """The peer has closed: in order, or in the middle of something."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    held = held_at(endpoint["qp"])[0]
    tcp.half_close(engine, index)  # Its end is ours.
    if core.is_between_messages(held["core"]):
        _tell_once(engine, index, EVENT_DISCONNECTED)
        break_endpoint(engine, index, CANCELLED)
    else:
        _tell_once(engine, index, EVENT_QP_FATAL)
        break_endpoint(engine, index, END_OF_STREAM)


@nopython
def end_violated(engine: int, index: int) -> None:
    """After a Terminate, ours or the peer's: what is over is told, the rest flushed."""
    tell(engine, index)
    tcp.half_close(engine, index)
    _tell_once(engine, index, EVENT_QP_FATAL)
    break_endpoint(engine, index, EPROTO)


@nopython
def event_of(qp: int, event: int) -> int:
    """An asynchronous event's word: what it is, and the Terminate it is about."""
    sent, came = core.terminate_sent(qp), core.terminate_came(qp)
    if sent == 0 and came == 0:
        return event
    code = (sent if sent != 0 else came) & TERMINATE_MASK
    kind = event
    if code >> 8 in _PROTECTION:
        kind = EVENT_QP_ACCESS_ERR
    elif code >> 8 in _OPERATION:
        kind = EVENT_QP_REQ_ERR
    kind |= EVENT_HAS_TERMINATE
    if sent != 0:
        kind |= EVENT_IS_OURS
    return int(kind | (code << EVENT_TERMINATE_SHIFT))


@nopython
def _tell_once(engine: int, index: int, event: int) -> None:
    """Announce a queue pair's end; that of a datamover's connection is told as over a stream."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    held = held_at(endpoint["qp"])[0]
    if endpoint["mover"] != 0:
        return
    endpoint["announced"] = 1
    if held["told_event"] == 0:
        held["told_event"] = 1
        tell_event(engine, index, event_of(held["core"], event))


@nopython
def end(engine: int, index: int, status: int) -> int:
    """The connection is over, or its owner closes it: every work request has its completion."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["qp"] == 0:
        return 0  # A protection domain has nothing outstanding.
    held = held_at(endpoint["qp"])[0]
    if endpoint["descriptor"] == NONE:
        _flush_shared(engine, index)
        return 0
    if endpoint["mover"] != 0:
        core.end(held["core"], WC_WR_FLUSH_ERR)
        return call_address(engine_at(engine)[0]["iser"], engine, index, status, END)
    tell(engine, index)
    core.end(held["core"], WC_WR_FLUSH_ERR)
    tell(engine, index)
    return 0


@nopython
def _flush_shared(engine: int, index: int) -> None:
    """A shared receive queue goes: its receives come back flushed."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    rq = held_at(endpoint["qp"])[0]["core"]
    token = core.rq_withdraw(rq)
    while token >= 0:
        operation = operation_at(operation_of(engine, token))[0]
        finish(
            engine,
            endpoint["channel"],
            operation["opcode"],
            0,
            0,
            operation["user_data"],
            operation["ticket"],
            CANCELLED,
            0,
            0,
            0,
            WC_WR_FLUSH_ERR,
        )
        free_operation(engine, token)
        token = core.rq_withdraw(rq)


@nopython
def release(engine: int, index: int) -> int:
    """The row is about to be freed: the control plane has its memory back, a client its own."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] == DOMAIN:
        table = rnic_at(engine_at(engine)[0]["rnic"])[0]["table"]
        memory.remove_client(table, endpoint_id(engine, index))
    if endpoint["qp"] != 0:
        store_release(endpoint["qp"] + HELD_STATE, HELD_OVER)
    return 0
