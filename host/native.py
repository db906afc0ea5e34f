"""The channel for compiled code: post, poll, `wait_n`, with addresses in this process's memory.

Every function takes `context`, the address of a CONTEXT record; a worker in compiled code uses
these, `host.channel` wraps the same for Python. Nothing here blocks but `wait_n`, and it returns on
signals and ticks so that Python gets to look.
"""

from typing import Final

from host.records import MAPPING_SIZE, context_at, mapping_at
from shm.atomics import load_acquire
from shm.call import call_address
from shm.channel import (
    H_CONSUMER,
    H_PRODUCER,
    H_RINGER,
    H_WAITER,
    UNSIGNALLED,
    fill,
    host_channel_at,
    prepare,
    submit,
)
from shm.channel import consume_completion as _consume
from shm.channel import next_completion as _next
from shm.doorbell import ring_if_needed
from shm.jit import nopython
from shm.libc import monotonic_ns
from shm.memory import copy_bytes
from shm.operations import (
    ACCEPT,
    CANCEL,
    CLOSE,
    MORE,
    NOP,
    RECEIVE,
    RECEIVE_EXACT,
    SEND,
    SHUTDOWN,
    SOCKET_ADDRESS_MAX,
)
from shm.records import STATE_RUNNING, waiter_at, wqe_at
from shm.ring import claim, is_published, ready
from shm.wait import DEADLINE, MIN_WAIT, PEER, SIGNAL, THRESHOLD, TICK, spin_n
from shm.wait import wait_n as _wait_n

__all__ = ["MORE", "RECEIVE_EXACT", "UNSIGNALLED"]

_INTERRUPTED: Final = 3  # ppe.cycle.cycle.INTERRUPTED; the engine's answer to a Unix signal
_ADDRESS_OFFSET: Final = 8


@nopython
def region_of(context: int, address: int, length: int) -> int:
    """Index of the mapping that holds `length` bytes at `address`, or -1."""
    mine = context_at(context)[0]
    for index in range(mine["mapping_count"]):
        mapping = mapping_at(mine["mappings"] + index * MAPPING_SIZE)[0]
        into = address - mapping["address"]
        if into >= 0 and into + length <= mapping["size"]:
            return index
    return -1


@nopython
def _post_transfer(
    context: int,
    opcode: int,
    flags: int,
    endpoint: int,
    user_data: int,
    address: int,
    length: int,
) -> int:
    """1 posted, 0 no room, -14 (EFAULT) for memory the engine does not share."""
    mine = context_at(context)[0]
    index = region_of(context, address, length)
    if index < 0:
        return -14
    channel = mine["channel"]
    if not prepare(channel, 1):
        return 0
    mapping = mapping_at(mine["mappings"] + index * MAPPING_SIZE)[0]
    offset = address - mapping["address"] + mapping["offset"]
    fill(channel, opcode, flags, endpoint, user_data, mapping["region"], offset, length)
    submit(channel, 1)
    return 1


@nopython
def post_send(
    context: int, endpoint: int, user_data: int, address: int, length: int, flags: int
) -> int:
    """Post a send of `length` bytes at `address`: 1, 0 (no room) or -EFAULT. Rings no bell."""
    return _post_transfer(context, SEND, flags, endpoint, user_data, address, length)


@nopython
def post_recv(
    context: int, endpoint: int, user_data: int, address: int, length: int, flags: int
) -> int:
    """Post a receive into `address`, RECEIVE_EXACT or any bytes: 1, 0 or -EFAULT."""
    return _post_transfer(context, RECEIVE, flags, endpoint, user_data, address, length)


@nopython
def post_plain(
    context: int, opcode: int, flags: int, endpoint: int, user_data: int, arg0: int
) -> int:
    """Post an operation without memory (nop, accept, shutdown, close, cancel): 1 or 0."""
    channel = context_at(context)[0]["channel"]
    if not prepare(channel, 1):
        return 0
    slot = fill(channel, opcode, flags, endpoint, user_data, 0, 0, 0)
    wqe_at(slot)[0]["arg0"] = arg0
    submit(channel, 1)
    return 1


@nopython
def post_nop(context: int, user_data: int, flags: int) -> int:
    """Post the operation that completes at once: 1 or 0."""
    channel = context_at(context)[0]["channel"]
    if not prepare(channel, 1):
        return 0
    fill(channel, NOP, flags, 0, user_data, 0, 0, 0)
    submit(channel, 1)
    return 1


@nopython
def post_cancel(context: int, endpoint: int, user_data: int, target: int) -> int:
    """Post the cancellation of the endpoint's operation whose user_data is `target`: 1 or 0."""
    return post_plain(context, CANCEL, 0, endpoint, user_data, target)


@nopython
def post_accept(context: int, endpoint: int, user_data: int) -> int:
    """Post an accept on a listener: 1 or 0."""
    return post_plain(context, ACCEPT, 0, endpoint, user_data, 0)


@nopython
def post_shutdown(context: int, endpoint: int, user_data: int) -> int:
    """Post a half close behind everything sent: 1 or 0."""
    return post_plain(context, SHUTDOWN, 0, endpoint, user_data, 0)


@nopython
def post_close(context: int, endpoint: int, user_data: int) -> int:
    """Post the end of an endpoint: 1 or 0."""
    return post_plain(context, CLOSE, 0, endpoint, user_data, 0)


@nopython
def post_address(
    context: int, opcode: int, flags: int, user_data: int, arg0: int, address: int, size: int
) -> int:
    """Post a connect or listen with the socket address at `address` (`size` bytes): 1 or 0."""
    channel = context_at(context)[0]["channel"]
    if size > SOCKET_ADDRESS_MAX or not prepare(channel, 2):
        return 0
    slot = fill(channel, opcode, flags, 0, user_data, 0, 0, 0)
    wqe_at(slot)[0]["arg0"] = arg0
    copy_bytes(claim(channel + H_PRODUCER, 1) + _ADDRESS_OFFSET, address, size)
    submit(channel, 2)
    return 1


@nopython
def flush(context: int) -> int:
    """Ring the engine's bell if the channel is parked. Call once after a batch of posts."""
    mine = context_at(context)[0]
    if mine["run"] != 0:
        return 0  # The engine is this thread: it looks when it runs.
    return ring_if_needed(mine["channel"] + H_RINGER)


@nopython
def next_completion(context: int) -> int:
    """Address of the next completion, in place, or 0. An inline engine runs one pass first."""
    mine = context_at(context)[0]
    found = _next(mine["channel"])
    if found == 0 and mine["run"] != 0:
        call_address(mine["run"], mine["engine"], mine["channel"] + H_CONSUMER, 1, -1)
        found = _next(mine["channel"])
    return found


@nopython
def consume_completion(context: int) -> None:
    """Give the slot of the completion back that `next_completion` showed."""
    _consume(context_at(context)[0]["channel"])


@nopython
def is_running(context: int) -> bool:
    """Whether the engine is there."""
    state = waiter_at(context_at(context)[0]["channel"] + H_WAITER)[0]["state"]
    return bool(load_acquire(state) == STATE_RUNNING)


@nopython
def ready_count(context: int, limit: int) -> int:
    """How many completions, up to `limit`, could be polled now."""
    return ready(context_at(context)[0]["channel"] + H_CONSUMER, limit)


@nopython
def clamp(context: int, n: int) -> int:
    """`n` brought into what can arrive: at least 1, at most the completions outstanding."""
    channel = host_channel_at(context_at(context)[0]["channel"])[0]
    return int(max(1, min(n, channel["signalled"])))


@nopython
def wait_n(context: int, n: int, min_wait_at_ns: int, deadline_ns: int, tick_at_ns: int) -> int:
    """Sleep until `n` completions are there; after `min_wait_at_ns` one is enough.

    Absolute CLOCK_MONOTONIC times, NEVER for none. `n` is clamped to what is outstanding. Returns
    the reason (shm.wait): THRESHOLD, MIN_WAIT, DEADLINE, PEER, SIGNAL or TICK. Consumes nothing.
    """
    mine = context_at(context)[0]
    want = clamp(context, n)
    consumer, waiter = mine["channel"] + H_CONSUMER, mine["channel"] + H_WAITER
    if mine["run"] != 0:
        return _wait_inline(context, want, min_wait_at_ns, deadline_ns, tick_at_ns)
    if mine["spin_rounds"] > 0 and spin_n(consumer, want, mine["spin_rounds"]):
        return THRESHOLD
    return _wait_n(consumer, waiter, want, min_wait_at_ns, deadline_ns, tick_at_ns)


@nopython
def _wait_inline(context: int, n: int, min_wait_at: int, deadline: int, tick_at: int) -> int:
    """The inline wait: the caller's own thread runs the cycle, or sleeps in its poller."""
    mine = context_at(context)[0]
    consumer = mine["channel"] + H_CONSUMER
    want = n
    while True:
        if is_published(consumer, want - 1):
            return THRESHOLD if want == n else MIN_WAIT
        now = monotonic_ns()
        if now >= deadline:
            return DEADLINE
        if not is_running(context):
            return PEER
        if want > 1 and now >= min_wait_at:
            want = 1
            continue
        if now >= tick_at:
            return TICK
        until = min(deadline, tick_at)
        if want > 1:
            until = min(until, min_wait_at)
        if run_until(context, want, until) == SIGNAL:
            return SIGNAL


@nopython
def run_until(context: int, n: int, until_ns: int) -> int:
    """Run an inline engine until `n` entries are there or the time is over: SIGNAL, or another."""
    mine = context_at(context)[0]
    consumer = mine["channel"] + H_CONSUMER
    outcome = call_address(mine["run"], mine["engine"], consumer, n, until_ns)
    return SIGNAL if outcome == _INTERRUPTED else THRESHOLD
