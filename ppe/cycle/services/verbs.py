"""The service of verbs devices: a host posts work requests of the verbs manual, the engine gives
them to the device and polls its completion queues (`ppe.cycle.rnic.verbs`). The endpoint's service
decides between this one and the software RNIC's: they are called alike and share their words.
"""

import ctypes
import errno
from typing import Final

from ppe.cycle import libc
from ppe.cycle.endpoints import endpoint_id, endpoint_of
from ppe.cycle.operations import complete_with, free_operation, new_operation, refuse
from ppe.cycle.records import (
    CONNECTED,
    CONTROL_CHANNEL,
    DOMAIN,
    NONE,
    SHARED,
    WATCHED,
    endpoint_at,
    engine_at,
)
from ppe.cycle.rnic import memory
from ppe.cycle.rnic.records import wr_at
from ppe.cycle.rnic.verbs import receive, send
from ppe.cycle.rnic.verbs.loans import give_back, lend
from ppe.cycle.rnic.verbs.records import cq_at, qp_at
from ppe.cycle.services.mover_records import (
    ACTION_BITS,
    ACTION_MASK,
    END,
    ORDER,
    POLL,
    RECEIVE,
    RELEASE,
    TRANSMIT,
    USES,
    WORK,
)
from ppe.cycle.services.rdma_events import (
    fill_wr,
    finish_now,
    has_its_slots,
    sges_of,
    tell_event,
)
from ppe.cycle.services.rdma_records import held_at, rnic_at
from ppe.cycle.services.stream_ends import table_full
from ppe.cycle.services.verbs_ends import PER_PASS, arm, end, end_sending, poll, release
from ppe.cycle.services.verbs_orders import order
from shm.call import call_address
from shm.jit import callback, nopython
from shm.memory import load_64
from shm.operations import RDMA_QUERY, RDMA_RECEIVE
from shm.records import wqe_at
from shm.verbs import EVENT_NEWS, SGES_MAX, slots_for
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    WC_LOC_LEN_ERR,
    WC_LOC_PROT_ERR,
    WC_LOC_QP_OP_ERR,
    WC_WR_FLUSH_ERR,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_RDMA_READ,
)

EINVAL: Final = -errno.EINVAL
EMSGSIZE: Final = -errno.EMSGSIZE
ENOMEM: Final = -errno.ENOMEM
ENOTCONN: Final = -errno.ENOTCONN
EOPNOTSUPP: Final = -errno.EOPNOTSUPP
SLOTS_MASK: Final = 7
EVENT_SIZE: Final = 8  # of struct ib_uverbs_comp_event_desc: the handle of a completion queue
PARTS: Final = ctypes.c_int64


@nopython
def _lend(engine: int, index: int, loans: int, access: int) -> int:
    """Lend what the engine's WR names: 0, or the status of a work request that cannot be posted."""
    held = held_at(endpoint_at(endpoint_of(engine, index))[0]["qp"])[0]
    rnic = rnic_at(engine_at(engine)[0]["rnic"])[0]
    domain = endpoint_id(engine, held["domain"])
    outcome = lend(loans, rnic["table"], domain, rnic["wr"], access)
    if outcome == 0:
        return 0
    if outcome == EMSGSIZE:
        return WC_LOC_LEN_ERR
    return WC_LOC_QP_OP_ERR if outcome == ENOMEM else WC_LOC_PROT_ERR


@nopython
def _take_back(engine: int, index: int, outcome: int) -> int:
    """The device did not take the engine's WR: the loan is over, and this is its status."""
    wr = wr_at(rnic_at(engine_at(engine)[0]["rnic"])[0]["wr"])[0]
    free_operation(engine, give_back(wr["token"]))
    return WC_WR_FLUSH_ERR if outcome == ENOTCONN else WC_LOC_QP_OP_ERR


@nopython
def _post_receive(engine: int, channel: int, wqe: int, place: int) -> int:
    """A receive for a queue pair, or for those that share a queue."""
    index = place >> ACTION_BITS
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    held = held_at(endpoint["qp"])[0]
    is_shared = endpoint["state"] == SHARED
    if held["stopped"] != 0 or (not is_shared and endpoint["state"] != CONNECTED):
        return finish_now(engine, channel, wqe, index, WC_WR_FLUSH_ERR)
    count = sges_of(wqe)
    if held["shared"] != NONE or count > SGES_MAX or place & SLOTS_MASK != slots_for(count):
        return finish_now(engine, channel, wqe, index, WC_LOC_QP_OP_ERR)
    operation = new_operation(engine, wqe, index, 0)
    if operation == NONE:
        return table_full(engine, channel, wqe)
    wr = rnic_at(engine_at(engine)[0]["rnic"])[0]["wr"]
    fill_wr(wr, wqe, operation)
    refused = _lend(engine, index, held["receives"], ACCESS_LOCAL_WRITE)
    if refused != 0:
        free_operation(engine, operation)
        return finish_now(engine, channel, wqe, index, refused)
    rq = held["core"] if is_shared else qp_at(held["core"])[0]["rq"]
    outcome = receive.post_recv(rq, wr)
    if outcome < 0:
        return finish_now(engine, channel, wqe, index, _take_back(engine, index, outcome))
    return 1


@nopython
def _is_sink(opcode: int) -> bool:
    """Whether a work request writes into the memory that it names."""
    return opcode in (WR_RDMA_READ, WR_ATOMIC_CMP_AND_SWP, WR_ATOMIC_FETCH_AND_ADD)


@nopython
def _post_send(engine: int, channel: int, wqe: int, place: int) -> int:
    """A work request for a send queue."""
    index = place >> ACTION_BITS
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    held = held_at(endpoint["qp"])[0]
    is_over = held["stopped"] != 0 or endpoint["shut"] != NONE
    if endpoint["state"] != CONNECTED or is_over:
        return finish_now(engine, channel, wqe, index, WC_WR_FLUSH_ERR)
    if held["started"] == 0 or not has_its_slots(wqe, place & SLOTS_MASK):
        return finish_now(engine, channel, wqe, index, WC_LOC_QP_OP_ERR)
    operation = new_operation(engine, wqe, index, 0)
    if operation == NONE:
        return table_full(engine, channel, wqe)
    wr = rnic_at(engine_at(engine)[0]["rnic"])[0]["wr"]
    fill_wr(wr, wqe, operation)
    access = ACCESS_LOCAL_WRITE if _is_sink(wr_at(wr)[0]["opcode"]) else 0
    refused = _lend(engine, index, held["sends"], access)
    if refused != 0:
        free_operation(engine, operation)
        return finish_now(engine, channel, wqe, index, refused)
    outcome = send.post_send(held["core"], wr)
    if outcome < 0:
        return finish_now(engine, channel, wqe, index, _take_back(engine, index, outcome))
    return 1


@nopython
def _query(engine: int, channel: int, wqe: int, index: int) -> int:
    """The state; a device tells of no Terminate."""
    qp = held_at(endpoint_at(endpoint_of(engine, index))[0]["qp"])[0]["core"]
    return complete_with(engine, channel, wqe, 0, qp_at(qp)[0]["state"])


@nopython
def _work(engine: int, channel: int, wqe: int, place: int) -> int:
    """One operation on the endpoint `place >> 3`, of `place & 7` slots. Memory and limits are the
    control plane's to change: the kernel has to be asked.
    """
    index = place >> ACTION_BITS
    opcode = wqe_at(wqe)[0]["opcode"]
    state = endpoint_at(endpoint_of(engine, index))[0]["state"]
    if state in (DOMAIN, WATCHED):
        return refuse(engine, channel, wqe, EINVAL)
    if opcode == RDMA_RECEIVE:
        return _post_receive(engine, channel, wqe, place)
    if state == SHARED:
        return refuse(engine, channel, wqe, EINVAL)
    if opcode < RDMA_RECEIVE:
        return _post_send(engine, channel, wqe, place)
    if opcode == RDMA_QUERY:
        return _query(engine, channel, wqe, index)
    return refuse(engine, channel, wqe, EOPNOTSUPP)


@nopython
def _look(engine: int, index: int) -> int:
    """A watched descriptor has news: those of completion queues were the engine's wake-up and are
    taken here, of all others the host is told.
    """
    mine, endpoint = engine_at(engine)[0], endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != WATCHED:
        return 0
    if endpoint["channel"] != CONTROL_CHANNEL:
        tell_event(engine, index, EVENT_NEWS)
        return 1
    rnic = rnic_at(mine["rnic"])[0]
    for which in range(rnic["cq_count"]):
        cq = cq_at(load_64(rnic["cqs"] + 8 * which))[0]
        while libc.read_bytes(cq["descriptor"], mine["message"], EVENT_SIZE) == EVENT_SIZE:
            cq["events"] += 1
    return 1


@nopython
def _poll(engine: int, is_arming: int) -> int:
    return arm(engine) if is_arming != 0 else poll(engine, PER_PASS)


@nopython
def _uses(engine: int, index: int, start: int, end_: int) -> int:
    """1 if memory between two addresses is registered in this domain, or a datamover needs it."""
    if endpoint_at(endpoint_of(engine, index))[0]["mover"] != 0:
        what = (end_ - start) << ACTION_BITS | USES
        return call_address(engine_at(engine)[0]["iser"], engine, index, start, what)
    if endpoint_at(endpoint_of(engine, index))[0]["state"] != DOMAIN:
        return 0
    table = rnic_at(engine_at(engine)[0]["rnic"])[0]["table"]
    return 1 if memory.is_within(table, endpoint_id(engine, index), start, end_) else 0


@callback(PARTS, PARTS, PARTS, PARTS, PARTS)
def serve(engine: int, first: int, second: int, what: int) -> int:
    """What the duty cycle calls, as `rdma.serve` says; and POLL, to arm if `first` is not 0."""
    action = what & ACTION_MASK
    if action == POLL:
        return _poll(engine, first)
    if action == WORK:
        return _work(engine, first, second, what >> ACTION_BITS)
    if action == RECEIVE:
        return _look(engine, first)
    if action == TRANSMIT:
        endpoint = endpoint_at(endpoint_of(engine, first))[0]
        return end_sending(engine, first) if endpoint["qp"] != 0 else 0
    if action == END:
        return end(engine, first, second)
    if action == RELEASE:
        return release(engine, first)
    if action == ORDER:
        return order(engine, first)
    return _uses(engine, first, second, second + (what >> ACTION_BITS))
