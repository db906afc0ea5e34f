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
from shm.records import NEVER, SLOT_SIZE, cqe_at
from shm.view import opener
from shm.wait import THRESHOLD, TICK


@nopython
def _predict(conn: int) -> tuple[int, int]:
    """A target never knows what its initiator sends next."""
    return 0, 0


TARGET_PUMP: Final = make_pump(rx_bytes, tx_next, tx_take, tx_done, _predict)

SERVER: Final = record(
    Field("context", "<i8"),  # the channel's CONTEXT
    Field("touched", "<i8"),  # address of int64: pumps to look at
    Field("touched_count", "<i8"),
    Field("attention", "<i8"),  # address of int64: pumps that Python must look at
    Field("attention_count", "<i8"),
    Field("cold", "<i8"),  # address of CQE: completions for Python
    Field("cold_count", "<i8"),
    Field("cold_capacity", "<i8"),
    Field("sweeping", "<i8"),  # 1 while a NOP is under way whose completion covers silent sends
    Field("rounds", "<i8"),
    Field("store", "<i8"),  # STORE of the file workers
    Field("wake_endpoint", "<i8"),  # receives bytes that only end a sleep
    Field("wake_address", "<i8"),  # where they go
    Field("wake_length", "<i8"),
    Field("wake_due", "<i8"),  # 1: its receive is to be posted
    Field("kicked", "<i8"),  # set by other threads: Python has something to do
    # With a datamover: LENDING, and 1 while operations of Python's that found no room hold answers
    # back, because these may promise what those say.
    Field("lending", "<i8"),
    Field("held", "<i8"),
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
    context = mine["context"]
    pump = storage.finish(mine["store"])
    while pump != 0:
        _touch(server, pump)
        pump = storage.finish(mine["store"])
    for _ in range(DRAIN_MAX):
        if mine["cold_count"] == mine["cold_capacity"]:
            return
        found = native.next_completion(context)
        if found == 0:
            return
        cqe = cqe_at(found)[0]
        pump = 0 if cqe["flags"] & UNSOLICITED != 0 else pump_of(cqe["user_data"])
        if _is_movers(cqe["opcode"]):
            _feed_mover(server, found)
        elif pump != 0:
            _feed(server, pump, found)
        elif cqe["user_data"] == SWEEP:
            mine["sweeping"] = 0
        elif cqe["user_data"] == WAKE:
            mine["wake_due"] = 1 if cqe["length"] > 0 else 0
        else:
            copy_bytes(mine["cold"] + SLOT_SIZE * mine["cold_count"], found, SLOT_SIZE)
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
def _feed_mover(server: int, completion: int) -> None:
    """One completion of a datamover endpoint. What a failed one used comes back all the same."""
    mine, cqe = server_at(server)[0], cqe_at(completion)[0]
    pump = mover_pump.pump_named(mine["lending"], cqe["endpoint"])
    if cqe["opcode"] == MOVER_RECEIVE:
        mover_pump.received(mine["lending"], pump, completion)
    elif pump != 0:
        mover_pump.event(pump, completion)
    if cqe["opcode"] == MOVER_ABORT:
        mine["kicked"] = 1  # Answers may have waited for that.
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
    may_answer = _has_fenced(server)
    count, kept = mine["touched_count"], 0
    for place in range(count):
        pump = load_64(mine["touched"] + 8 * place)
        its = pump_at(pump)[0]
        if its["error"] == 0:
            storage.begin(mine["store"], pump, its["conn"])
            its["eager"] = target_at(its["conn"])[0]["buffer_held"]
        if its["mode"] == MOVER_MODE:
            mover_pump.send(pump, may_answer)
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
        _sweep(server)
    mine["touched_count"] = kept


@nopython
def _has_fenced(server: int) -> bool:
    """Post what ends or fences something, of every connection, before any of them answers."""
    mine = server_at(server)[0]
    if mine["lending"] == 0:
        return True
    mover_pump.lend_spare(mine["lending"])
    if mine["held"]:
        return False
    for place in range(mine["touched_count"]):
        pump = load_64(mine["touched"] + 8 * place)
        if pump_at(pump)[0]["mode"] == MOVER_MODE and not mover_pump.post_fences(pump):
            return False
    return True


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
            mine["context"],
            mine["wake_endpoint"],
            WAKE,
            mine["wake_address"],
            mine["wake_length"],
            0,
        )
        mine["wake_due"] = 1 if posted == 0 else 0


@nopython
def _sweep(server: int) -> None:
    """Ask for a completion when many sends have none of their own, so that room comes back."""
    mine = server_at(server)[0]
    channel = host_channel_at(context_at(mine["context"])[0]["channel"])[0]
    silent = channel["outstanding"] - channel["signalled"]
    if mine["sweeping"] == 0 and silent * SWEEP_SHARE > channel["limit"]:
        mine["sweeping"] = native.post_nop(mine["context"], SWEEP, 0)


@entry("int64(intp, int64, int64)")
def serve(server: int, deadline_ns: int, tick_at_ns: int) -> int:
    """Move data until Python is needed: CALLED, or a reason of `shm.wait`. Sleeps when idle."""
    mine = server_at(server)[0]
    context = mine["context"]
    channel = host_channel_at(context_at(context)[0]["channel"])[0]
    flushed = channel["posted"]
    while True:
        mine["rounds"] += 1
        _drain(server)
        _progress(server)
        _listen_for_wakes(server)
        if channel["posted"] != flushed:  # An idle server must not ring the engine's bell.
            native.flush(context)
            flushed = channel["posted"]
        if mine["cold_count"] > 0 or mine["attention_count"] > 0:
            return CALLED
        if load_relaxed(server + KICKED) != 0 or storage.store_at(mine["store"])[0]["at_rest"]:
            return CALLED
        if monotonic_ns() >= tick_at_ns:
            return TICK
        if not storage.may_sleep(mine["store"]):
            continue
        reason = native.wait_n(context, 1, NEVER, deadline_ns, tick_at_ns)
        storage.is_awake(mine["store"])
        if reason != THRESHOLD:
            return reason
        if mine["held"]:
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
        mover_pump.send(pump, _has_fenced(server) and mover_pump.post_fences(pump))
    else:
        TARGET_PUMP.send(pump)
    native.flush(its["context"])
    if its["error"] == 0:
        its["error"] = error
    port = port_at(its["conn"])[0]
    is_out = its["tx_length"] == 0 and port["tx_taken"] == port["tx_made"]
    return bool(is_out and is_empty(its["conn"] + READY))


assert SWEEP < PUMP_ADDRESS_MIN
