"""The hot loops of the ring benchmarks: ask and answer, produce and consume.

They do what the C and C++ references do, word for word: one clock read per `group` round trips, the
same copies, no pause in a polling loop. Every wait is bounded, so a dead peer ends them.
"""

import errno
from typing import Final

from bench.ring_pair import CONSUMER_AT, IN, OUT, PRODUCER_AT
from shm.atomics import cycles
from shm.jit import entry, nopython
from shm.libc import monotonic_ns
from shm.memory import load_64, store_64
from shm.records import SLOT_SIZE
from shm.ring import is_published, poll, post, post_burst

SPINS_MAX: Final = 1 << 31  # some seconds
LOOK_EVERY: Final = 4096  # samples between looks at the wall clock
STOP: Final = -1
GONE: Final = -errno.ETIMEDOUT
WRONG: Final = -errno.EBADMSG


@nopython
def send(side: int, number: int) -> bool:
    """Post one entry whose first payload word is `number`. False: nobody makes room."""
    store_64(side + OUT + 8, number)
    for _ in range(SPINS_MAX):  # noqa: SIM110 - compiled code has no generators
        if post(side + PRODUCER_AT, side + OUT, 1):
            return True
    return False


@nopython
def receive(side: int) -> bool:
    """Poll until one entry is there. False: nobody sends."""
    for _ in range(SPINS_MAX):  # noqa: SIM110
        if poll(side + CONSUMER_AT, side + IN, 1) != 0:
            return True
    return False


@entry("int64(intp)")
def answer(side: int) -> int:
    """Send every entry back until one says STOP. Return the entries answered, or GONE."""
    answered = 0
    while True:
        if not receive(side):
            return GONE
        number = load_64(side + IN + 8)
        if number == STOP:
            return answered
        if not send(side, number):
            return GONE
        answered += 1


@entry("int64(intp, intp, int64, int64, int64, int64)")
def ask(side: int, ticks: int, limit: int, warmup: int, group: int, deadline_ns: int) -> int:
    """Time round trips into int64 `ticks`, one sample per `group`, and send STOP at the end.

    Returns the samples taken, GONE, or WRONG when an entry was lost or out of order.
    """
    taken, number = -warmup, 0
    last = cycles()
    while taken < limit:
        number += 1
        if not send(side, number) or not receive(side):
            return GONE
        if load_64(side + IN + 8) != number:
            return WRONG
        if number % group != 0:
            continue
        now = cycles()
        if taken >= 0:
            store_64(ticks + 8 * taken, now - last)
        taken += 1
        last = now
        if taken % LOOK_EVERY == 0:
            if monotonic_ns() > deadline_ns:
                break
            last = cycles()
    send(side, STOP)
    return max(taken, 0)


@nopython
def send_burst(side: int, count: int, number: int) -> bool:
    """Post `count` entries, the first of them numbered. False: nobody makes room."""
    store_64(side + OUT + 8, number)
    done = 0
    for _ in range(SPINS_MAX):
        done += post_burst(side + PRODUCER_AT, side + OUT + done * SLOT_SIZE, count - done)
        if done == count:
            return True
    return False


@entry("int64(intp, int64, int64)")
def produce(side: int, burst: int, entries: int) -> int:
    """Post `entries` entries in bursts. Return how many, or GONE."""
    done = 0
    while done < entries:
        done += burst
        if not send_burst(side, burst, done):
            return GONE
    return done


@nopython
def receive_burst(side: int, count: int) -> bool:
    """Wait until `count` entries are there, then copy them out. False: nobody sends.

    As the reference waits for a whole batch, so does this: it looks at the last slot alone, and
    takes no line away from a producer that is about to write it.
    """
    for _ in range(SPINS_MAX):
        if is_published(side + CONSUMER_AT, count - 1):
            return poll(side + CONSUMER_AT, side + IN, count) == count
    return False


@entry("int64(intp, intp, int64, int64, int64, int64)")
def consume(side: int, ticks: int, limit: int, warmup: int, group: int, burst: int) -> int:
    """Take bursts; time each `group` of them into `ticks`. Samples, GONE or WRONG.

    Takes exactly (warmup + limit) * group bursts, so the producer knows when it is done.
    """
    taken, bursts = -warmup, 0
    last = cycles()
    while taken < limit:
        if not receive_burst(side, burst):
            return GONE
        bursts += 1
        if load_64(side + IN + 8) != bursts * burst:
            return WRONG
        if bursts % group != 0:
            continue
        now = cycles()
        if taken >= 0:
            store_64(ticks + 8 * taken, now - last)
        taken += 1
        last = now
    return taken
