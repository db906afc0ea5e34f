"""The hot loops of the wake-up benchmark: one process sleeps in `wait_n`, the other wakes it.

As in the C reference, the waker reads in /proc that the sleeper sleeps, lets it settle, reads the
clock and posts; the sleeper reads the clock as the first thing it does awake.
"""

from typing import Final

from bench.libc import read_at_start, yield_core
from bench.ring_pair import CONSUMER_AT, IN, OUT, PAIR, PAIR_AT, PRODUCER_AT, WAITER_AT, WAKER_AT
from bench.workers import GONE, WRONG
from shm.atomics import load_acquire, store_relaxed, store_release
from shm.jit import entry, nopython
from shm.layout import offset
from shm.libc import monotonic_ns
from shm.memory import load_8, load_64, store_64
from shm.records import NEVER, waiter_at
from shm.ring import poll, post
from shm.wait import THRESHOLD, wait_n, wake_if_crossed

ARMED, WOKEN = offset(PAIR, "armed"), offset(PAIR, "woken")
WOKEN_AT, SLEPT = offset(PAIR, "woken_at_ns"), offset(PAIR, "slept")
STAT_SIZE: Final = 512
CLOSING_BRACKET, ASLEEP = ord(")"), ord("S")


@entry("int64(intp, int64, int64, int64)")
def sleep_rounds(side: int, rounds: int, n: int, deadline_ns: int) -> int:
    """Sleep until `n` entries are there, take them, tell; `rounds` times. Return rounds or GONE."""
    pair = load_64(side + PAIR_AT)
    waiter = waiter_at(side + WAITER_AT)[0]
    for number in range(1, rounds + 1):
        before = waiter["sleeps"]
        store_release(pair + ARMED, number)
        reason = wait_n(side + CONSUMER_AT, side + WAITER_AT, n, NEVER, deadline_ns, NEVER)
        woken_at = monotonic_ns()
        if reason != THRESHOLD:
            return GONE
        store_relaxed(pair + WOKEN_AT, woken_at)
        store_relaxed(pair + SLEPT, waiter["sleeps"] - before)
        store_release(pair + WOKEN, number)
        if poll(side + CONSUMER_AT, side + IN, n) != n:
            return WRONG
    return rounds


@nopython
def is_asleep(stat: int, line: int) -> bool:
    """Whether the thread of the open /proc stat file sleeps; its state follows the (name)."""
    length = read_at_start(stat, line, STAT_SIZE)
    place = length - 1
    while place > 0 and load_8(line + place) != CLOSING_BRACKET:
        place -= 1
    return place > 0 and place + 2 < length and load_8(line + place + 2) == ASLEEP


@nopython
def until_asleep(stat: int, line: int, settle_ns: int, deadline_ns: int) -> bool:
    """Watch until the sleeper sleeps and some time has passed. False at the deadline."""
    while not is_asleep(stat, line):
        if monotonic_ns() > deadline_ns:
            return False
        yield_core()
    settled = monotonic_ns() + settle_ns
    while monotonic_ns() < settled:
        pass
    return True


@nopython
def reaches(address: int, number: int, deadline_ns: int) -> bool:
    """Wait, giving the core away, until a word says `number`. False at the deadline."""
    while load_acquire(address) != number:
        if monotonic_ns() > deadline_ns:
            return False
        yield_core()
    return True


@entry("int64(intp, int64, intp, intp, int64, int64, int64, int64, int64)")
def wake_rounds(
    side: int,
    stat: int,
    line: int,
    samples: int,
    rounds: int,
    warmup: int,
    n: int,
    settle_ns: int,
    deadline_ns: int,
) -> int:
    """Wake the sleeper `rounds` times with `n` posts each; ns from the last post to its clock.

    Returns the samples written: rounds past the warm-up whose wait slept. Or GONE.
    """
    pair = load_64(side + PAIR_AT)
    taken = 0
    for number in range(1, rounds + 1):
        if not reaches(pair + ARMED, number, deadline_ns):
            return GONE
        if not until_asleep(stat, line, settle_ns, deadline_ns):
            return GONE
        start = 0
        for ahead in range(n):
            store_64(side + OUT + 8, ahead)
            if ahead == n - 1:
                start = monotonic_ns()
            post(side + PRODUCER_AT, side + OUT, 1)
            wake_if_crossed(side + PRODUCER_AT, side + WAKER_AT)
        if not reaches(pair + WOKEN, number, deadline_ns):
            return GONE
        if number > warmup and load_64(pair + SLEPT) > 0:
            store_64(samples + 8 * taken, load_64(pair + WOKEN_AT) - start)
            taken += 1
    return taken
