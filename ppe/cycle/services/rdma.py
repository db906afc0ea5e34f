"""The RDMA service: queue pairs over the transport seam, driven by the software RNIC
(`ppe.cycle.rnic.iwarp`). A host posts work requests of the verbs manual and gets work completions.
Its functions are compiled when this module is imported, and called through one address.
"""

import ctypes
import errno
from typing import Final

from ppe.cycle.accounts import E_BYTES_IN
from ppe.cycle.endpoints import endpoint_id, endpoint_of, queue_receive, queue_transmit, stats_of
from ppe.cycle.operations import (
    channel_row_of,
    complete_now,
    finish,
    free_operation,
    new_operation,
    refuse,
)
from ppe.cycle.records import (
    CALLS_PER_VISIT,
    CONNECTED,
    DOMAIN,
    NONE,
    SHARED,
    endpoint_at,
    engine_at,
    row_at,
)
from ppe.cycle.regions import resolve
from ppe.cycle.rnic import memory, windows
from ppe.cycle.rnic.records import SGE_SIZE, WR_SGES, sge_at, wr_at
from ppe.cycle.services import rdma_core as core
from ppe.cycle.services.mover_records import (
    ACTION_BITS,
    ACTION_MASK,
    END,
    ORDER,
    RECEIVE,
    RELEASE,
    TRANSMIT,
    WORK,
)
from ppe.cycle.services.rdma_ends import end, release
from ppe.cycle.services.rdma_events import (
    fill_wr,
    finish_now,
    has_its_slots,
    sges_of,
)
from ppe.cycle.services.rdma_io import progress, receive_once
from ppe.cycle.services.rdma_orders import order, uses
from ppe.cycle.services.rdma_records import held_at, rnic_at
from ppe.cycle.services.stream_ends import table_full
from shm.atomics import load_relaxed
from shm.jit import callback, nopython
from shm.operations import (
    RDMA_ALLOC_MW,
    RDMA_DEREGISTER,
    RDMA_QUERY,
    RDMA_RECEIVE,
    RDMA_REGISTER,
    RDMA_SRQ_LIMIT,
    RDMA_START,
)
from shm.records import wqe_at
from shm.verbs import SGES_MAX, slots_for
from shm.verbs_numbers import (
    WC_LOC_LEN_ERR,
    WC_LOC_PROT_ERR,
    WC_LOC_QP_OP_ERR,
    WC_WR_FLUSH_ERR,
)

EINVAL: Final = -errno.EINVAL
EFAULT: Final = -errno.EFAULT
EACCES: Final = -errno.EACCES
ENOTCONN: Final = -errno.ENOTCONN
EMSGSIZE: Final = -errno.EMSGSIZE
EOPNOTSUPP: Final = -errno.EOPNOTSUPP
SLOTS_MASK: Final = 7
PARTS: Final = ctypes.c_int64


# --- memory ------------------------------------------------------------------------------------


@nopython
def _register(engine: int, channel: int, wqe: int, index: int) -> int:
    """Region, offset and arg0: the memory; arg1 what its owner calls it (iova); arg2 the rights.
    The completion's arg0 is the STag.
    """
    entry = wqe_at(wqe)[0]
    client = row_at(channel_row_of(engine, channel))[0]["client"]
    address = resolve(engine, client, entry["region"], entry["offset"], entry["arg0"])
    if address == 0:
        return refuse(engine, channel, wqe, EFAULT)
    table = rnic_at(engine_at(engine)[0]["rnic"])[0]["table"]
    domain = endpoint_id(engine, index)
    length, iova, access = entry["arg0"], entry["arg1"], entry["arg2"]
    stag = memory.register(table, domain, domain, address, length, iova, access)
    if stag < 0:
        return refuse(engine, channel, wqe, stag)
    return _answer(engine, channel, wqe, stag, 0, 0)


@nopython
def _deregister(engine: int, channel: int, wqe: int, index: int) -> int:
    """arg0: the STag. -EBUSY while work under way needs it."""
    table = rnic_at(engine_at(engine)[0]["rnic"])[0]["table"]
    stag = wqe_at(wqe)[0]["arg0"]
    status = memory.deregister(table, stag, endpoint_id(engine, index))
    if status < 0:
        return refuse(engine, channel, wqe, status)
    return complete_now(engine, channel, wqe, 0)


@nopython
def _alloc_window(engine: int, channel: int, wqe: int, index: int) -> int:
    """The completion's arg0 is the STag of a window that is bound to nothing."""
    table = rnic_at(engine_at(engine)[0]["rnic"])[0]["table"]
    domain = endpoint_id(engine, index)
    stag = windows.allocate(table, domain, domain)
    if stag < 0:
        return refuse(engine, channel, wqe, stag)
    return _answer(engine, channel, wqe, stag, 0, 0)


@nopython
def _answer(engine: int, channel: int, wqe: int, arg0: int, arg1: int, arg2: int) -> int:
    """Complete an operation at once, with numbers."""
    entry = wqe_at(wqe)[0]
    finish(
        engine,
        channel,
        entry["opcode"],
        entry["flags"],
        entry["endpoint"],
        entry["user_data"],
        entry["ticket"],
        0,
        0,
        arg0,
        arg1,
        arg2,
    )
    return 1


# --- work requests -------------------------------------------------------------------------------


@nopython
def _post_receive(engine: int, channel: int, wqe: int, place: int) -> int:
    """A receive for a queue pair, or for those that share a queue."""
    index = place >> 3
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    held = held_at(endpoint["qp"])[0]
    is_shared = endpoint["state"] == SHARED
    if not is_shared and endpoint["state"] != CONNECTED:
        return finish_now(engine, channel, wqe, index, WC_WR_FLUSH_ERR)
    count = sges_of(wqe)
    if held["shared"] != NONE or count > SGES_MAX or place & SLOTS_MASK != slots_for(count):
        return finish_now(engine, channel, wqe, index, WC_LOC_QP_OP_ERR)
    operation = new_operation(engine, wqe, index, 0)
    if operation == NONE:
        return table_full(engine, channel, wqe)
    wr = rnic_at(engine_at(engine)[0]["rnic"])[0]["wr"]
    fill_wr(wr, wqe, operation)
    rq = held["core"] if is_shared else core.rq_of(held["core"])
    outcome = core.post_recv(rq, wr)
    if outcome < 0:
        free_operation(engine, operation)
        return finish_now(engine, channel, wqe, index, _why(engine, outcome))
    return 1


@nopython
def _why(engine: int, outcome: int) -> int:
    """The status of the work request in the engine's WR, which the RNIC did not take."""
    if outcome == ENOTCONN:
        return WC_WR_FLUSH_ERR
    if outcome == EMSGSIZE:
        return WC_LOC_LEN_ERR
    if outcome in (EFAULT, EACCES):
        return WC_LOC_PROT_ERR
    rnic = rnic_at(engine_at(engine)[0]["rnic"])[0]
    for which in range(wr_at(rnic["wr"])[0]["sge_count"]):
        sge = sge_at(rnic["wr"] + WR_SGES + which * SGE_SIZE)[0]
        if sge["length"] > 0 and memory.find(rnic["table"], sge["lkey"]) == 0:
            return WC_LOC_PROT_ERR
    return WC_LOC_QP_OP_ERR


@nopython
def _post_send(engine: int, channel: int, wqe: int, place: int) -> int:
    """A work request for a send queue."""
    index = place >> 3
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    held = held_at(endpoint["qp"])[0]
    if endpoint["state"] != CONNECTED or endpoint["shut"] != NONE:
        return finish_now(engine, channel, wqe, index, WC_WR_FLUSH_ERR)
    if held["started"] == 0 or not has_its_slots(wqe, place & SLOTS_MASK):
        return finish_now(engine, channel, wqe, index, WC_LOC_QP_OP_ERR)
    operation = new_operation(engine, wqe, index, 0)
    if operation == NONE:
        return table_full(engine, channel, wqe)
    wr = rnic_at(engine_at(engine)[0]["rnic"])[0]["wr"]
    fill_wr(wr, wqe, operation)
    outcome = core.post_send(held["core"], wr)
    if outcome < 0:
        free_operation(engine, operation)
        return finish_now(engine, channel, wqe, index, _why(engine, outcome))
    queue_transmit(engine, index)  # Also if nothing can be sent now: it may be over already.
    return 1


@nopython
def _start(engine: int, channel: int, wqe: int, index: int) -> int:
    """Full operation begins: whatever the peer has sent already finds the receives posted."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    held = held_at(endpoint["qp"])[0]
    if endpoint["state"] != CONNECTED or held["started"] != 0:
        return refuse(engine, channel, wqe, EINVAL)
    held["started"] = 1
    endpoint["readable"] = max(endpoint["readable"], 1)
    queue_receive(engine, index)
    queue_transmit(engine, index)
    return complete_now(engine, channel, wqe, 0)


@nopython
def _query(engine: int, channel: int, wqe: int, index: int) -> int:
    """The state, the Terminate that came, the one that was sent."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    qp = held_at(endpoint["qp"])[0]["core"]
    return _answer(
        engine, channel, wqe, core.state_of(qp), core.terminate_came(qp), core.terminate_sent(qp)
    )


@nopython
def _work(engine: int, channel: int, wqe: int, place: int) -> int:
    """One operation on the endpoint `place >> 3`, of `place & 7` slots."""
    index = place >> 3
    opcode = wqe_at(wqe)[0]["opcode"]
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] == DOMAIN:
        if opcode == RDMA_REGISTER:
            return _register(engine, channel, wqe, index)
        if opcode == RDMA_DEREGISTER:
            return _deregister(engine, channel, wqe, index)
        if opcode == RDMA_ALLOC_MW:
            return _alloc_window(engine, channel, wqe, index)
        return refuse(engine, channel, wqe, EINVAL)
    if opcode == RDMA_RECEIVE:
        return _post_receive(engine, channel, wqe, place)
    if endpoint["state"] == SHARED:
        if opcode != RDMA_SRQ_LIMIT:
            return refuse(engine, channel, wqe, EINVAL)
        core.set_limit(held_at(endpoint["qp"])[0]["core"], wqe_at(wqe)[0]["arg0"])
        return complete_now(engine, channel, wqe, 0)
    if opcode < RDMA_RECEIVE:
        return _post_send(engine, channel, wqe, place)
    if opcode == RDMA_START:
        return _start(engine, channel, wqe, index)
    if opcode == RDMA_QUERY:
        return _query(engine, channel, wqe, index)
    return refuse(engine, channel, wqe, EOPNOTSUPP)


# --- the transport -------------------------------------------------------------------------------


@nopython
def _is_running(engine: int, index: int) -> bool:
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["state"] != CONNECTED or endpoint["qp"] == 0:
        return False
    return bool(held_at(endpoint["qp"])[0]["started"] != 0)


@nopython
def _receive(engine: int, index: int) -> int:
    """Take what the transport has, let it take effect, and answer it, all in one visit."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    before = load_relaxed(stats_of(engine, index) + E_BYTES_IN)
    calls = 0
    while _is_running(engine, index) and endpoint["readable"] != 0:
        if calls == CALLS_PER_VISIT:
            queue_receive(engine, index)
            break
        calls += 1
        if not receive_once(engine, index):
            break
    if not _is_running(engine, index):
        return calls
    # Asked in vain: that was no work.
    if load_relaxed(stats_of(engine, index) + E_BYTES_IN) == before:
        return 0
    progress(engine, index)
    return calls


@callback(PARTS, PARTS, PARTS, PARTS, PARTS)
def serve(engine: int, first: int, second: int, what: int) -> int:
    """What the duty cycle calls; one function, so that the protocol is compiled once.

    `what & 7`: WORK: an operation of channel `first`, the WQE at `second`, on the endpoint
    `what >> 6`, of `what >> 3 & 7` slots; ORDER: the control plane's, the WQE at `first`. Else the
    endpoint `first`: RECEIVE, TRANSMIT, END, RELEASE; USES: 1 if it needs memory from `second` on,
    `what >> 3` bytes of it.
    """
    action = what & ACTION_MASK
    if action == RECEIVE:
        return _receive(engine, first)
    if action == TRANSMIT:
        return progress(engine, first) if _is_running(engine, first) else 0
    if action == WORK:
        return _work(engine, first, second, what >> ACTION_BITS)
    if action == END:
        return end(engine, first, second)
    if action == RELEASE:
        return release(engine, first)
    if action == ORDER:
        return order(engine, first)
    return uses(engine, first, second, second + (what >> ACTION_BITS))
