"""Sleeping until a solicited completion is in the event ring (the verbs manual's
`req_notify(solicited_only)`): one whose sender asked for it, or one that failed.

The proof is `shm.wait`'s. A solicited-only waiter stores a `wake_at` that no position reaches,
then, behind the fence, looks through the entries that are there. The engine publishes such an entry
and then, behind its fence, looks at `wake_at`. Whoever's fence comes second sees the other's store,
and the futex word changes before the wake. A waiter for N entries is not disturbed: its `wake_at`
lies below SOLICITED_ONLY, and only a crossing wakes it.
"""

from typing import Final

from shm.atomics import fence, load_acquire, load_acquire_32, load_relaxed, store_relaxed
from shm.channel import SOLICITED, UNSOLICITED
from shm.jit import nopython
from shm.records import (
    NEVER,
    STATE_RUNNING,
    WAKE_FUTEX,
    consumer_at,
    cqe_at,
    producer_at,
    waiter_at,
    waker_at,
)
from shm.ring import is_published, publish_head, slot_of
from shm.wait import PEER, THRESHOLD, disarm, sleep_armed, wake

SOLICITED_ONLY: Final = 1 << 62  # beyond every position, and not NEVER


@nopython
def has_solicited(consumer: int) -> bool:
    """Whether an entry that is there would wake a solicited-only waiter."""
    ahead = 0
    capacity = consumer_at(consumer)[0]["capacity"]
    while ahead < capacity and is_published(consumer, ahead):
        if cqe_at(slot_of(consumer, ahead))[0]["flags"] & (SOLICITED | UNSOLICITED) != 0:
            return True
        ahead += 1
    return False


@nopython
def arm_solicited(consumer: int, waiter: int) -> bool:
    """Ask to be woken by a solicited completion. False: one is there already."""
    # SYNC POINT: pairs with the fence in `wake_if_solicited`; closes hole A of `shm.wait`.
    store_relaxed(waiter_at(waiter)[0]["wake_at"], SOLICITED_ONLY)
    fence()
    return not has_solicited(consumer)


@nopython
def wake_if_solicited(producer: int, waker: int) -> int:
    """`wait.wake_if_crossed`, after a solicited completion was among what was published."""
    mine = waker_at(waker)[0]
    old, new = mine["checked"], producer_at(producer)[0]["position"]
    mine["checked"] = new
    # SYNC POINT: pairs with the fences in `arm_solicited` and in `wait.arm`.
    fence()
    wake_at = load_relaxed(mine["wake_at"])
    if wake_at != SOLICITED_ONLY and not old < wake_at <= new:
        return 0
    wake(waker)
    return 1


@nopython
def wait_solicited(consumer: int, waiter: int, deadline_ns: int, tick_at_ns: int) -> int:
    """Sleep until a solicited completion is there. The reason, as of `wait.wait_n`."""
    mine = waiter_at(waiter)[0]
    mine["waits"] += 1
    publish_head(consumer)
    store_relaxed(mine["wake_kind"], WAKE_FUTEX)
    while True:
        seen = load_acquire_32(mine["wake_seq"])  # Before arming: hole B.
        if not arm_solicited(consumer, waiter):
            reason = THRESHOLD
            break
        if load_acquire(mine["state"]) != STATE_RUNNING:
            reason = PEER
            break
        reason = sleep_armed(waiter, seen, deadline_ns, tick_at_ns)
        if reason != 0:
            break
    disarm(waiter)
    return reason


assert SOLICITED_ONLY < NEVER
