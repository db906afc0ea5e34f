"""How work on a verbs device ends: by its completions, by the end of the connection, or because the
device lets go of a queue pair. Every work request has its completion then.
"""

from typing import Final

from ppe.cycle.endpoints import endpoint_id, endpoint_of, finish_operation, set_state
from ppe.cycle.operations import finish, free_operation, operation_of
from ppe.cycle.records import (
    BROKEN,
    CONNECTED,
    DOMAIN,
    NONE,
    SHARED,
    endpoint_at,
    engine_at,
    operation_at,
)
from ppe.cycle.rnic import memory
from ppe.cycle.rnic.records import wc_at
from ppe.cycle.rnic.verbs.loans import give_back, oldest
from ppe.cycle.rnic.verbs.poll import flush_next, req_notify, wc_next
from ppe.cycle.rnic.verbs.records import QP_ERROR, qp_at
from ppe.cycle.services.mover_records import END, TOLD
from ppe.cycle.services.rdma_events import finish_wc, tell_event
from ppe.cycle.services.rdma_records import HELD_OVER, HELD_STATE, held_at, rnic_at
from ppe.cycle.services.stream_ends import break_endpoint
from shm.atomics import store_release
from shm.call import call_address
from shm.jit import nopython
from shm.memory import load_64, zero_bytes
from shm.operations import CANCELLED, END_OF_STREAM
from shm.verbs import EVENT_DISCONNECTED, EVENT_QP_FATAL, WC_MAY_BE_SOLICITED
from shm.verbs_numbers import WC_RECV, WC_SUCCESS, WC_WR_FLUSH_ERR

PER_PASS: Final = 64  # completions taken from one queue in one pass
_WC_SIZE: Final = 64


@nopython
def poll(engine: int, most: int) -> int:
    """Take up to `most` completions from each completion queue: how many there were."""
    rnic = rnic_at(engine_at(engine)[0]["rnic"])[0]
    done = 0
    for which in range(rnic["cq_count"]):
        cq = load_64(rnic["cqs"] + 8 * which)
        taken = 0
        while taken < most:
            qp = wc_next(cq, rnic["wc"])
            if qp <= 0:
                break
            _completed(engine, qp_at(qp)[0]["user"])
            taken += 1
        done += taken
    return done


@nopython
def arm(engine: int) -> int:
    """Have every completion queue announce what comes next, and take what came before that."""
    rnic = rnic_at(engine_at(engine)[0]["rnic"])[0]
    for which in range(rnic["cq_count"]):
        req_notify(load_64(rnic["cqs"] + 8 * which), 0)
    return poll(engine, PER_PASS)


@nopython
def _completed(engine: int, index: int) -> None:
    """Complete the work request that the engine's WC names."""
    wc = wc_at(rnic_at(engine_at(engine)[0]["rnic"])[0]["wc"])[0]
    wc["token"] = give_back(wc["token"])
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["mover"] != 0:
        if endpoint["state"] == CONNECTED:  # What comes later nobody looks at any more.
            call_address(engine_at(engine)[0]["iser"], engine, index, 1, TOLD)
        return
    status = wc["status"]
    if wc["opcode"] & WC_RECV != 0:
        wc["flags"] |= WC_MAY_BE_SOLICITED  # struct ibv_wc has no word for it.
    finish_wc(engine, index)
    if status != WC_SUCCESS and status != WC_WR_FLUSH_ERR:
        end_connection(engine, index, EVENT_QP_FATAL)
    end_sending(engine, index)


@nopython
def end_sending(engine: int, index: int) -> int:
    """Complete a SHUTDOWN once everything that was posted before it is over."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    operation = endpoint["shut"]
    if operation == NONE or oldest(held_at(endpoint["qp"])[0]["sends"]) != 0:
        return 0
    endpoint["shut"] = NONE
    finish_operation(engine, index, operation, 0, 0)
    return 1


@nopython
def end_connection(engine: int, index: int, event: int) -> None:
    """Nothing is posted to the device any more, and the host is told why, once."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    held = held_at(endpoint["qp"])[0]
    qp_at(held["core"])[0]["state"] = QP_ERROR
    if endpoint["mover"] != 0:  # Its end is told as over a stream.
        if endpoint["state"] == CONNECTED:
            why = CANCELLED if event == EVENT_DISCONNECTED else END_OF_STREAM
            break_endpoint(engine, index, why)
        return
    if endpoint["state"] == CONNECTED:
        set_state(engine, index, BROKEN)
    if held["told_event"] == 0:
        held["told_event"] = 1
        endpoint["announced"] = 1
        tell_event(engine, index, event)


@nopython
def end(engine: int, index: int, status: int) -> int:
    """Its owner closes it, or is gone, and the device has let go of it: what the device had comes
    back flushed. A datamover's may end before: what its hosts wait for is over then, with `status`,
    and what the device has is taken back by `take_back`.
    """
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    if endpoint["qp"] == 0 or endpoint["state"] == DOMAIN:
        return 0
    held = held_at(endpoint["qp"])[0]
    if endpoint["mover"] != 0:
        qp_at(held["core"])[0]["state"] = QP_ERROR
        return call_address(engine_at(engine)[0]["iser"], engine, index, status, END)
    if endpoint["state"] == SHARED:
        _flush_shared(engine, index)
        return 0
    wc = rnic_at(engine_at(engine)[0]["rnic"])[0]["wc"]
    while flush_next(held["core"], wc):
        _completed(engine, index)
    while held["shared"] == NONE and oldest(held["receives"]) != 0:
        zero_bytes(wc, _WC_SIZE)
        mine = wc_at(wc)[0]
        mine["token"] = oldest(held["receives"])
        mine["status"] = WC_WR_FLUSH_ERR
        mine["opcode"] = WC_RECV
        _completed(engine, index)
    return 0


@nopython
def take_back(engine: int, index: int) -> None:
    """The device has let go of a datamover's queue pair, and says nothing of it any more."""
    held = held_at(endpoint_at(endpoint_of(engine, index))[0]["qp"])[0]
    wc = rnic_at(engine_at(engine)[0]["rnic"])[0]["wc"]
    while flush_next(held["core"], wc):
        give_back(wc_at(wc)[0]["token"])
    while oldest(held["receives"]) != 0:
        give_back(oldest(held["receives"]))


@nopython
def _flush_shared(engine: int, index: int) -> None:
    """A shared receive queue goes: its receives come back flushed, and are no queue pair's."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    receives = held_at(endpoint["qp"])[0]["receives"]
    while oldest(receives) != 0:
        token = give_back(oldest(receives))
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
