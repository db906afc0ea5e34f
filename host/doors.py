"""The doors from Python into `host.native`: few, so that little is compiled at import."""

from host import native
from host.records import context_at
from shm.atomics import fetch_add_32, store_release
from shm.call import call_address
from shm.channel import H_CONSUMER, H_WAITER, host_channel_at
from shm.jit import entry
from shm.libc import futex_wake, monotonic_ns, wake_signal
from shm.memory import copy_bytes
from shm.records import SLOT_SIZE, waiter_at
from shm.wait import arm_eventfd, disarm


@entry("int64(intp, int64, int64, int64, int64, int64, int64)")
def post_transfer(
    context: int, opcode: int, flags: int, endpoint: int, user_data: int, address: int, length: int
) -> int:
    """Post one send or receive and ring: 1, 0 (no room) or -EFAULT."""
    posted = native._post_transfer(context, opcode, flags, endpoint, user_data, address, length)
    if posted > 0:
        native.flush(context)
    return posted


@entry("int64(intp, int64, int64, int64, int64, int64)")
def post_plain(
    context: int, opcode: int, flags: int, endpoint: int, user_data: int, arg0: int
) -> int:
    """Post one operation without memory and ring: 1 or 0."""
    posted = native.post_plain(context, opcode, flags, endpoint, user_data, arg0)
    if posted > 0:
        native.flush(context)
    return posted


@entry("int64(intp, int64, int64)")
def post_nops(context: int, first_user_data: int, count: int) -> int:
    """Post up to `count` nops with consecutive user_data and ring once. Return how many."""
    done = 0
    while done < count and native.post_nop(context, first_user_data + done, 0) > 0:
        done += 1
    if done > 0:
        native.flush(context)
    return done


@entry("int64(intp, int64, int64, int64, int64, intp, int64)")
def post_address(
    context: int, opcode: int, flags: int, user_data: int, arg0: int, address: int, size: int
) -> int:
    """Post one connect or listen and ring: 1 or 0."""
    posted = native.post_address(context, opcode, flags, user_data, arg0, address, size)
    if posted > 0:
        native.flush(context)
    return posted


@entry("int64(intp, intp, int64)")
def poll(context: int, out: int, limit: int) -> int:
    """Move up to `limit` completions to `out` (CQE records). Return how many."""
    done = 0
    while done < limit:
        found = native.next_completion(context)
        if found == 0:
            break
        copy_bytes(out + done * SLOT_SIZE, found, SLOT_SIZE)
        native.consume_completion(context)
        done += 1
    return done


@entry("int64(intp, int64, int64, int64, int64)")
def wait_n(context: int, n: int, min_wait_at_ns: int, deadline_ns: int, tick_at_ns: int) -> int:
    """`native.wait_n`: the reason."""
    return native.wait_n(context, n, min_wait_at_ns, deadline_ns, tick_at_ns)


@entry("int64(intp, int64, int64)")
def wait_group(group: int, deadline_ns: int, tick_at_ns: int) -> int:
    """`native.wait_group`: the reason."""
    return native.wait_group(group, deadline_ns, tick_at_ns)


@entry("int64(intp, int64)")
def ready_count(context: int, limit: int) -> int:
    """Completions, up to `limit`, that could be polled now."""
    return native.ready_count(context, limit)


@entry("int64(intp, int64)")
def run_inline(context: int, n: int) -> int:
    """Let an inline engine work until it finds nothing more to do, or `n` completions are there."""
    mine = context_at(context)[0]
    return call_address(
        mine["run"], mine["engine"], mine["channel"] + H_CONSUMER, n, monotonic_ns()
    )


@entry("boolean(intp, int64)")
def arm_async(context: int, n: int) -> bool:
    """Ask for the channel's eventfd at `n` completions. False: they are there, or nobody comes."""
    channel = context_at(context)[0]["channel"]
    want = native.clamp(context, n)
    return arm_eventfd(channel + H_CONSUMER, channel + H_WAITER, want)


@entry("void(intp)")
def disarm_async(context: int) -> None:
    """Ask for nothing any more."""
    disarm(context_at(context)[0]["channel"] + H_WAITER)


@entry("void(intp, int64, int64)")
def mark_state(channel: int, state: int, descriptor: int) -> None:
    """Set the shared state of the host's channel and wake whoever waits in it, any thread."""
    waiter = waiter_at(channel + H_WAITER)[0]
    # SYNC POINT: a waiter that sees the changed futex word sees the state; pairs with `wait_n`.
    store_release(waiter["state"], state)
    fetch_add_32(waiter["wake_seq"], 1)
    futex_wake(waiter["wake_seq"], 1)
    if descriptor >= 0:
        wake_signal(descriptor)


@entry("UniTuple(int64,2)(intp)")
def outstanding(context: int) -> tuple[int, int]:
    """Posts whose completion was not polled: all of them, and the signalled ones."""
    channel = host_channel_at(context_at(context)[0]["channel"])[0]
    return channel["outstanding"], channel["signalled"]
