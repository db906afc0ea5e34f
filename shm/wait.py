"""Sleeping until N entries are in a ring, and waking exactly the sleeper whose N was reached.

Why no wake is lost. Two holes must be closed.

A. The waiter stores `wake_at` and then loads a slot; the producer stores that slot and then loads
   `wake_at`. A CPU may do each side's load before its store is visible, and then both miss. A full
   fence between store and load on both sides makes that impossible: whoever's fence comes second
   sees the other's store. So either the waiter finds the entry, or the producer finds `wake_at`.
B. The producer may wake after the waiter's re-check and before the kernel has queued it. The
   producer therefore changes the futex word before it wakes, and the waiter sleeps only while the
   word is what it was before it armed: the kernel compares under its own lock and answers EAGAIN.
   (An eventfd closes the same hole by being sticky.)

The producer wakes only when its position passes `wake_at`, so N entries cost one wake-up, and
entries short of N disturb nobody. Only the waiter writes `wake_at`; a producer that cleared it
could erase a newer arming.

Several rings, one sleep (`wait_any`). Each ring has its own `wake_at`, and hole A is closed for
each pair by itself. All producers change the same futex word, always by a read-modify-write, and
the waiter reads that word before it arms the first ring: whichever ring is crossed after its
arming, the word is another than the one the waiter sleeps on, so hole B is closed for all of them.

Who keeps the time of a minimum wait. A timer in the kernel, armed for a tenth of a millisecond and
cancelled, costs a sleeper more than his sleep does (docs/decisions/0019). A producer that polls a
clock anyway keeps it for him: the waiter stores `enough_at` before he arms and looks, behind the
fence, whether an entry is there. If so he sleeps by his own timer; if not, whoever publishes the
first one sees `enough_at` behind his fence (hole A again), and wakes him when it is time.
"""

from typing import Final

from shm.atomics import (
    fence,
    fetch_add_32,
    load_acquire,
    load_acquire_32,
    load_relaxed,
    pause,
    store_relaxed,
)
from shm.jit import nopython
from shm.libc import EAGAIN, EINTR, futex_wait, futex_wake, monotonic_ns, wake_signal
from shm.records import (
    NEVER,
    STATE_RUNNING,
    WAKE_EVENTFD,
    WAKE_FUTEX,
    WATCHED_SIZE,
    consumer_at,
    producer_at,
    waiter_at,
    waker_at,
    watched_at,
)
from shm.ring import is_published, publish_head

# Why a wait ended.
THRESHOLD: Final = 1  # N entries are there
MIN_WAIT: Final = 2  # the minimum wait passed and at least one is there
DEADLINE: Final = 3
PEER: Final = 4  # the channel is closing or its other side died
SIGNAL: Final = 5  # a Unix signal: the caller looks at it and comes back
TICK: Final = 6  # the periodic look around: the caller comes back
REASON_NAMES: Final = {
    THRESHOLD: "threshold",
    MIN_WAIT: "min_wait",
    DEADLINE: "deadline",
    PEER: "peer",
    SIGNAL: "signal",
    TICK: "tick",
}


# How far ahead a producer keeps a waiter's time: it does not sleep meanwhile.
KEPT_NS: Final = 1_000_000

# What `keep_time` found.
NOBODY: Final = 0
GATHERING: Final = 1  # ask again
WOKEN: Final = 2


@nopython
def arm(consumer: int, waiter: int, want: int) -> bool:
    """Ask to be woken at `want` entries. Return False if they are there already, after all."""
    # SYNC POINT: pairs with the fence in `wake_if_crossed`; closes hole A.
    store_relaxed(waiter_at(waiter)[0]["wake_at"], consumer_at(consumer)[0]["position"] + want)
    fence()
    return not is_published(consumer, want - 1)


@nopython
def disarm(waiter: int) -> None:
    """Ask for no wake-up any more."""
    store_relaxed(waiter_at(waiter)[0]["wake_at"], NEVER)


@nopython
def wake_if_crossed(producer: int, waker: int) -> int:
    """After publishing: wake the waiter if its `wake_at` was passed. Return the wakes done, 0 or 1.

    May be called once for many publications; the engine does so at the end of a pass.
    """
    mine = waker_at(waker)[0]
    old, new = mine["checked"], producer_at(producer)[0]["position"]
    if old == new:
        return 0
    mine["checked"] = new
    # SYNC POINT: pairs with the fence in `arm`; closes hole A.
    fence()
    if not old < load_relaxed(mine["wake_at"]) <= new:
        return 0
    wake(waker)
    return 1


@nopython
def wake(waker: int) -> None:
    """Wake the waiter, whatever it waits for: the word changes first, which closes hole B."""
    mine = waker_at(waker)[0]
    fetch_add_32(mine["wake_seq"], 1)
    if load_relaxed(mine["wake_kind"]) == WAKE_EVENTFD and mine["descriptor"] >= 0:
        wake_signal(mine["descriptor"])
    else:
        futex_wake(mine["wake_seq"], 1)
    mine["wakes"] += 1


@nopython
def is_time_kept(waker: int) -> bool:
    """Whether a waiter may have left its minimum wait to this producer."""
    mine = waker_at(waker)[0]
    return bool(mine["enough_at"] != 0 and load_relaxed(mine["enough_at"]) != NEVER)


@nopython
def keep_time(producer: int, waker: int, now_ns: int) -> int:
    """Wake the waiter if an entry is there and his minimum wait is over: WOKEN. GATHERING: it will
    be, within KEPT_NS; NOBODY: no more is to be done until something is published.

    To be asked first after `wake_if_crossed`, or `wake_if_solicited`: they have the fence.
    """
    mine = waker_at(waker)[0]
    enough_at = load_relaxed(mine["enough_at"])
    if enough_at == NEVER:
        return NOBODY
    if producer_at(producer)[0]["position"] < load_relaxed(mine["enough_position"]):
        return NOBODY
    if now_ns >= enough_at:
        wake(waker)
        return WOKEN
    return GATHERING if enough_at - now_ns <= KEPT_NS else NOBODY


@nopython
def _leave_time(consumer: int, waiter: int, min_wait_at_ns: int) -> bool:
    """Leave the minimum wait to the producer, if he keeps time and it is short."""
    mine = waiter_at(waiter)[0]
    if mine["enough_at"] == 0 or min_wait_at_ns == NEVER:
        return False
    if min_wait_at_ns - monotonic_ns() > KEPT_NS:
        return False
    store_relaxed(mine["enough_position"], consumer_at(consumer)[0]["position"] + 1)
    # SYNC POINT: stored before `arm`'s fence, as `wake_at` is; closes hole A for the first entry.
    store_relaxed(mine["enough_at"], min_wait_at_ns)
    return True


@nopython
def wait_n(
    consumer: int, waiter: int, n: int, min_wait_at_ns: int, deadline_ns: int, tick_at_ns: int
) -> int:
    """Sleep until `n` entries are there. Return the reason; consume nothing.

    Times are absolute CLOCK_MONOTONIC nanoseconds, NEVER for none. After `min_wait_at_ns` one entry
    is enough. `n` is at least 1 and at most the capacity: the caller has clamped it.
    """
    mine = waiter_at(waiter)[0]
    mine["waits"] += 1
    publish_head(consumer)  # Whoever sleeps holds no slot back from the producer.
    store_relaxed(mine["wake_kind"], WAKE_FUTEX)
    want = n
    is_kept = n > 1 and _leave_time(consumer, waiter, min_wait_at_ns)
    while True:
        seen = load_acquire_32(mine["wake_seq"])  # Before arming: see hole B.
        if not arm(consumer, waiter, want):
            reason = THRESHOLD if want == n else MIN_WAIT
            break
        if load_acquire(mine["state"]) != STATE_RUNNING:
            reason = PEER
            break
        now = monotonic_ns()
        if now >= deadline_ns:
            reason = DEADLINE
            break
        if want > 1 and now >= min_wait_at_ns:
            want = 1
            continue
        if now >= tick_at_ns:
            reason = TICK
            break
        until = min(deadline_ns, tick_at_ns)
        if want > 1 and (not is_kept or is_published(consumer, 0)):
            until = min(until, min_wait_at_ns)
        outcome = futex_wait(mine["wake_seq"], seen, until)
        if outcome != -EAGAIN:
            mine["sleeps"] += 1
        if outcome == -EINTR:
            reason = SIGNAL
            break
    disarm(waiter)
    if is_kept:
        store_relaxed(mine["enough_at"], NEVER)
    return reason


@nopython
def sleep_armed(waiter: int, seen: int, deadline_ns: int, tick_at_ns: int) -> int:
    """Sleep, armed, until the futex word is not `seen` any more. A reason to end the wait, or 0: it
    is to be looked at what there is.
    """
    mine = waiter_at(waiter)[0]
    now = monotonic_ns()
    if now >= deadline_ns:
        return DEADLINE
    if now >= tick_at_ns:
        return TICK
    outcome = futex_wait(mine["wake_seq"], seen, min(deadline_ns, tick_at_ns))
    if outcome != -EAGAIN:
        mine["sleeps"] += 1
    return SIGNAL if outcome == -EINTR else 0


@nopython
def _arm_all(watched: int, count: int) -> int:
    """Arm every ring at one entry. Return a reason not to sleep, or 0."""
    for place in range(count):
        mine = watched_at(watched + place * WATCHED_SIZE)[0]
        if not arm(mine["consumer"], mine["waiter"], 1):
            return THRESHOLD
        if load_acquire(waiter_at(mine["waiter"])[0]["state"]) != STATE_RUNNING:
            return PEER
    return 0


@nopython
def wait_any(watched: int, count: int, deadline_ns: int, tick_at_ns: int) -> int:
    """Sleep until an entry is in one of the `count` rings of WATCHED[count]. Return the reason.

    All their waiters have the same futex word. Times as of `wait_n`; consumes nothing. A ring that
    is looked at first hides from this call that another one's channel is not running any more.
    """
    first = waiter_at(watched_at(watched)[0]["waiter"])[0]
    first["waits"] += 1
    for place in range(count):
        mine = watched_at(watched + place * WATCHED_SIZE)[0]
        publish_head(mine["consumer"])
        store_relaxed(waiter_at(mine["waiter"])[0]["wake_kind"], WAKE_FUTEX)
    while True:
        seen = load_acquire_32(first["wake_seq"])  # Before the first arming: see hole B.
        reason = _arm_all(watched, count)
        if reason != 0:
            break
        reason = sleep_armed(watched_at(watched)[0]["waiter"], seen, deadline_ns, tick_at_ns)
        if reason != 0:
            break
    for place in range(count):
        disarm(watched_at(watched + place * WATCHED_SIZE)[0]["waiter"])
    return reason


@nopython
def spin_n(consumer: int, n: int, rounds: int) -> bool:
    """Poll up to `rounds` times for `n` entries. Return whether they came."""
    for _ in range(rounds):
        if is_published(consumer, n - 1):
            return True
        pause()
    return False


@nopython
def arm_eventfd(consumer: int, waiter: int, want: int) -> bool:
    """Like `arm`, for a waiter that sleeps in its own event loop on the channel's eventfd.

    Return False, disarmed, if the entries are there or the channel is not running.
    """
    mine = waiter_at(waiter)[0]
    publish_head(consumer)
    store_relaxed(mine["wake_kind"], WAKE_EVENTFD)
    if arm(consumer, waiter, want) and load_acquire(mine["state"]) == STATE_RUNNING:
        return True
    disarm(waiter)
    return False
