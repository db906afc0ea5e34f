"""The target's pump and its place in the server's loop: how bytes move between a posted stream and
a connection in the full feature phase, or operations between it and a datamover (`mover_pump`).
Compiled; Python sees only what needs it.
"""

from typing import Final

from host import native
from host.pump import MOVER as MOVER_MODE
from host.pump import PUMP_ADDRESS_MIN, make_pump, pump_at, pump_of
from host.records import context_at
from iscsi.target import mover_pump, storage
from iscsi.target.barriers import (
    BARRIER,
    LANE_SIZE,
    barrier_passed,
    flush,
    is_held,
    lane_at,
    others_know,
    raise_barriers,
)
from iscsi.wire.port import EVENTS, READY, is_empty, port_at
from iscsi.wire.target_rx import rx_bytes
from iscsi.wire.target_task import COLD, target_at
from iscsi.wire.target_tx import tx_done, tx_next, tx_take
from shm.atomics import load_relaxed
from shm.channel import UNSOLICITED, host_channel_at
from shm.jit import entry, nopython
from shm.layout import Field, offset, record
from shm.libc import monotonic_ns
from shm.memory import copy_bytes, load_64, store_64
from shm.operations import (
    MOVER_ABORT,
    MOVER_FENCE,
    MOVER_FIRST,
    MOVER_LAST,
    MOVER_RECEIVE,
    MOVER_UNIT,
)
from shm.records import SLOT_SIZE, cqe_at
from shm.view import opener
from shm.wait import THRESHOLD, TICK


@nopython
def _predict(conn: int) -> tuple[int, int]:
    """A target never knows what its initiator sends next."""
    return 0, 0


TARGET_PUMP: Final = make_pump(rx_bytes, tx_next, tx_take, tx_done, _predict)

SERVER: Final = record(
    Field("lanes", "<i8"),  # address of LANE[lane_count]
    Field("lane_count", "<i8"),
    Field("group", "<i8"),  # the GROUP of their channels
    Field("touched", "<i8"),  # address of int64: pumps to look at
    Field("touched_count", "<i8"),
    Field("attention", "<i8"),  # address of int64: pumps that Python must look at
    Field("attention_count", "<i8"),
    Field("cold", "<i8"),  # address of CQE: completions for Python
    Field("cold_count", "<i8"),
    Field("cold_capacity", "<i8"),
    Field("rounds", "<i8"),
    Field("store", "<i8"),  # STORE of the file workers
    Field("wake_endpoint", "<i8"),  # receives bytes that only end a sleep
    Field("wake_address", "<i8"),  # where they go
    Field("wake_length", "<i8"),
    Field("wake_due", "<i8"),  # 1: its receive is to be posted
    Field("kicked", "<i8"),  # set by other threads: Python has something to do
    Field("moves", "<i8"),  # 1: engines make and take the PDUs of what has logged in
    Field("parting", "<i8"),  # 1: Python waits to post the last of a connection, behind a barrier
    size=192,
)
server_at = opener(SERVER)
KICKED: Final = offset(SERVER, "kicked")

# `busy` of a PUMP: in which of the two lists it is.
TOUCHED: Final = 1
ATTENTION: Final = 2
PARTING: Final = 4  # Python has stopped it, and waits for nothing but the end of its stream
# Why `serve` returns, besides the reasons of `shm.wait`.
CALLED: Final = 100  # there are completions or pumps for Python
DRAIN_MAX: Final = 512  # completions taken before what they caused is sent
SWEEP: Final = 15  # user_data of the NOP
WAKE: Final = 14  # user_data of the receive that ends a sleep
SWEEP_SHARE: Final = 4  # post it when a quarter of the channel's room holds unsignalled sends


@nopython
def _touch(server: int, pump: int) -> None:
    mine, its = server_at(server)[0], pump_at(pump)[0]
    if its["busy"] & TOUCHED == 0:
        its["busy"] |= TOUCHED
        store_64(mine["touched"] + 8 * mine["touched_count"], pump)
        mine["touched_count"] += 1


@nopython
def _call_for(server: int, pump: int) -> None:
    """Have Python look at a pump."""
    mine, its = server_at(server)[0], pump_at(pump)[0]
    if its["busy"] & ATTENTION == 0:
        its["busy"] |= ATTENTION
        store_64(mine["attention"] + 8 * mine["attention_count"], pump)
        mine["attention_count"] += 1


@nopython
def _drain(server: int) -> None:
    """Take completions: feed the pumps, keep the others for Python."""
    mine = server_at(server)[0]
    pump = storage.finish(mine["store"])
    while pump != 0:
        _touch(server, pump)
        pump = storage.finish(mine["store"])
    for place in range(mine["lane_count"]):
        _drain_lane(server, mine["lanes"] + place * LANE_SIZE)


@nopython
def _drain_lane(server: int, lane: int) -> None:
    """Those of one engine. Of Python's, `reserved` says which engine's they are."""
    mine, its = server_at(server)[0], lane_at(lane)[0]
    context = its["context"]
    for _ in range(DRAIN_MAX):
        if mine["cold_count"] == mine["cold_capacity"]:
            return
        found = native.next_completion(context)
        if found == 0:
            return
        cqe = cqe_at(found)[0]
        pump = 0 if cqe["flags"] & UNSOLICITED != 0 else pump_of(cqe["user_data"])
        if _is_movers(cqe["opcode"]):
            _feed_mover(server, lane, found)
        elif pump != 0:
            _feed(server, pump, found)
        elif cqe["user_data"] == SWEEP:
            its["sweeping"] = 0
        elif cqe["user_data"] == BARRIER:
            barrier_passed(lane)
            if mine["parting"]:
                mine["parting"], mine["kicked"] = 0, 1
        elif cqe["user_data"] == WAKE:
            mine["wake_due"] = 1 if cqe["length"] > 0 else 0
        else:
            cold = mine["cold"] + SLOT_SIZE * mine["cold_count"]
            copy_bytes(cold, found, SLOT_SIZE)
            cqe_at(cold)[0]["reserved"] = its["number"]
            mine["cold_count"] += 1
        native.consume_completion(context)


@nopython
def _feed(server: int, pump: int, completion: int) -> None:
    """One completion of a pump; one that has failed only counts the end of its stream."""
    if pump_at(pump)[0]["error"] == 0:
        TARGET_PUMP.event(pump, completion)
        _touch(server, pump)
    elif cqe_at(completion)[0]["length"] == 0:
        _call_for(server, pump)


@nopython
def _is_movers(opcode: int) -> bool:
    """Whether a completion belongs to a datamover endpoint. Its user_data is then a task's."""
    if opcode in (MOVER_UNIT, MOVER_FENCE):
        return False
    return bool(MOVER_FIRST <= opcode <= MOVER_LAST)


@nopython
def _feed_mover(server: int, lane: int, completion: int) -> None:
    """One completion of a datamover endpoint. What a failed one used comes back all the same."""
    lending, cqe = lane_at(lane)[0]["lending"], cqe_at(completion)[0]
    pump = mover_pump.pump_named(lending, cqe["endpoint"])
    if cqe["opcode"] == MOVER_RECEIVE:
        mover_pump.received(lending, pump, completion)
    elif pump != 0:
        mover_pump.event(pump, completion)
    if cqe["opcode"] == MOVER_ABORT:
        server_at(server)[0]["kicked"] = 1  # Answers may have waited for that.
    if pump != 0:
        _touch(server, pump)


@nopython
def _needs_python(pump: int) -> bool:
    its = pump_at(pump)[0]
    conn = its["conn"]
    if its["busy"] & PARTING != 0:
        return False
    return bool(its["error"] != 0 or not is_empty(conn + COLD) or not is_empty(conn + EVENTS))


@nopython
def _progress(server: int) -> None:
    """Send and receive for every touched pump; one that found no room stays in the list."""
    mine = server_at(server)[0]
    lanes, lane_count = mine["lanes"], mine["lane_count"]
    has_fenced = _has_fenced(server)
    count, kept = mine["touched_count"], 0
    for place in range(count):
        pump = load_64(mine["touched"] + 8 * place)
        its = pump_at(pump)[0]
        if its["error"] == 0:
            storage.begin(mine["store"], pump, its["conn"])
            its["eager"] = target_at(its["conn"])[0]["buffer_held"]
        if its["mode"] == MOVER_MODE:
            mover_pump.send(pump, has_fenced and others_know(lanes, lane_count, its["lane"]))
        else:
            TARGET_PUMP.send(pump)
            TARGET_PUMP.receive(pump)
        if _needs_python(pump):
            _call_for(server, pump)
        if its["error"] == 0 and _has_more(pump):
            store_64(mine["touched"] + 8 * kept, pump)
            kept += 1
        else:
            its["busy"] &= ~TOUCHED
        _sweep(its["lane"])
    mine["touched_count"] = kept


@nopython
def _has_fenced(server: int) -> bool:
    """Post what ends or fences something, of every connection, before any of them answers."""
    mine = server_at(server)[0]
    if mine["moves"] == 0:
        return True
    for place in range(mine["lane_count"]):
        mover_pump.lend_spare(lane_at(mine["lanes"] + place * LANE_SIZE)[0]["lending"])
    is_done = not is_held(mine["lanes"], mine["lane_count"])
    place = 0
    while is_done and place < mine["touched_count"]:
        pump = load_64(mine["touched"] + 8 * place)
        if pump_at(pump)[0]["mode"] == MOVER_MODE:
            is_done = mover_pump.post_fences(pump)
        place += 1
    raise_barriers(mine["lanes"], mine["lane_count"])
    return is_done


@nopython
def _has_more(pump: int) -> bool:
    """Whether something found no room, and is to be tried again when something has happened."""
    its = pump_at(pump)[0]
    if its["tx_length"] > 0 or (its["rx_posted"] < 2 and its["mode"] != MOVER_MODE):
        return True
    return storage.is_waiting(its["conn"])


@nopython
def _listen_for_wakes(server: int) -> None:
    mine = server_at(server)[0]
    if mine["wake_due"]:
        posted = native.post_recv(
            lane_at(mine["lanes"])[0]["context"],
            mine["wake_endpoint"],
            WAKE,
            mine["wake_address"],
            mine["wake_length"],
            0,
        )
        mine["wake_due"] = 1 if posted == 0 else 0


@nopython
def _sweep(lane: int) -> None:
    """Ask for a completion when many sends have none of their own, so that room comes back."""
    mine = lane_at(lane)[0]
    channel = host_channel_at(context_at(mine["context"])[0]["channel"])[0]
    silent = channel["outstanding"] - channel["signalled"]
    if mine["sweeping"] == 0 and silent * SWEEP_SHARE > channel["limit"]:
        mine["sweeping"] = native.post_nop(mine["context"], SWEEP, 0)


@nopython
def _needs_call(server: int) -> bool:
    """Whether there is something for Python. While an engine has not heard yet of all fences, that
    waits: it would add more, and the answers that stand behind these would never go.
    """
    mine = server_at(server)[0]
    is_full = mine["cold_count"] == mine["cold_capacity"]
    if mine["moves"] and not is_full and not others_know(mine["lanes"], mine["lane_count"], 0):
        return False
    if mine["cold_count"] > 0 or mine["attention_count"] > 0:
        return True
    return bool(load_relaxed(server + KICKED) != 0 or storage.store_at(mine["store"])[0]["at_rest"])


@entry("int64(intp, int64, int64)")
def serve(server: int, deadline_ns: int, tick_at_ns: int) -> int:
    """Move data until Python is needed: CALLED, or a reason of `shm.wait`. Sleeps when idle."""
    mine = server_at(server)[0]
    lanes, lane_count = mine["lanes"], mine["lane_count"]
    flush(lanes, lane_count)
    while True:
        mine["rounds"] += 1
        _drain(server)
        _progress(server)
        _listen_for_wakes(server)
        flush(lanes, lane_count)
        if _needs_call(server):
            return CALLED
        if monotonic_ns() >= tick_at_ns:
            return TICK
        if not storage.may_sleep(mine["store"]):
            continue
        reason = native.wait_group(mine["group"], deadline_ns, tick_at_ns)
        storage.is_awake(mine["store"])
        if reason != THRESHOLD:
            return reason
        if is_held(lanes, lane_count):
            return CALLED


@entry("void(intp, intp)")
def touch(server: int, pump: int) -> None:
    """Have the next `serve` look at a pump: Python gave its connection something to send."""
    _touch(server, pump)


@entry("boolean(intp, intp)")
def push_out(server: int, pump: int) -> bool:
    """Post everything there is to send, also on a pump that has failed. Whether nothing is left.

    For the last PDU of a connection; what is received afterwards is not looked at.
    """
    its = pump_at(pump)[0]
    error = its["error"]
    its["error"] = 0
    if its["mode"] == MOVER_MODE:
        mine = server_at(server)[0]
        may_answer = mover_pump.post_fences(pump) and _has_fenced(server)
        if may_answer and not others_know(mine["lanes"], mine["lane_count"], its["lane"]):
            may_answer, mine["parting"] = False, 1
        mover_pump.send(pump, may_answer)
    else:
        TARGET_PUMP.send(pump)
    flush(server_at(server)[0]["lanes"], server_at(server)[0]["lane_count"])
    if its["error"] == 0:
        its["error"] = error
    port = port_at(its["conn"])[0]
    is_out = its["tx_length"] == 0 and port["tx_taken"] == port["tx_made"]
    return bool(is_out and is_empty(its["conn"] + READY))


assert BARRIER < WAKE < SWEEP < PUMP_ADDRESS_MIN
