"""The soak of minimum waits that the producer keeps: one entry comes where several are waited for.

    python -m tests.soak.shm_kept_soak --sleeps 50000 --seconds-max 600

Neither a number that is reached nor a deadline ends any of these waits. Either the waiter finds the
entry when it arms, and sleeps by its own timer, or the producer sees what it is asked for and wakes
it in time. The producer posts at a moment that varies around the arming, as in the wait soak.
"""

import sys

import numpy as np

from shm.atomics import load_acquire, load_relaxed, pause, store_relaxed
from shm.channel import (
    E_PRODUCER,
    E_WAKER,
    ENGINE_CHANNEL,
    H_CONSUMER,
    H_WAITER,
    HOST_CHANNEL,
    bind_engine,
    bind_host,
    leave_time,
)
from shm.jit import entry
from shm.libc import monotonic_ns
from shm.memory import load_64, store_64
from shm.records import NEVER, consumer_at, producer_at, waiter_at, waker_at
from shm.ring import claim, commit, poll
from shm.view import address_of
from shm.wait import GATHERING, MIN_WAIT, is_time_kept, keep_time, wait_n, wake_if_crossed
from tests.soak.shm_wait_soak import (
    DONE,
    ENTRIES,
    OK,
    RESULT,
    SLEEPS,
    WAITS,
    WAKES,
    WORK_CAPACITY,
    WRONG_COUNT,
    WRONG_ENTRY,
    WRONG_REASON,
    Options,
    get,
    hold_off,
    mark,
    mixed,
    program,
    put,
)

MODULE = "tests.soak.shm_kept_soak"
MIN_WAIT_NS_MAX = 300_000  # shorter than what a producer keeps


@entry("int64(intp, intp, int64, int64, intp)")
def produce(engine: int, words: int, seed: int, rounds: int, idle: int) -> int:
    """Post `rounds` entries, one for each wait, and keep the time of each. Return the rounds."""
    producer, waker = engine + E_PRODUCER, engine + E_WAKER
    mine = producer_at(producer)[0]
    for round_ in range(rounds):
        hold_off(mixed(seed, mine["position"]), idle)
        slot = claim(producer, 0)
        store_64(slot + 8, mine["position"])
        store_64(slot + 56, mark(seed, mine["position"]))
        commit(producer, 1)
        if wake_if_crossed(producer, waker) == 0 and is_time_kept(waker):
            while keep_time(producer, waker, monotonic_ns()) == GATHERING:
                pause()
        store_relaxed(words + WAKES, waker_at(waker)[0]["wakes"])
        # The consumer hands the slot back when it begins its next wait: then it is about to arm.
        while load_acquire(mine["head"]) < mine["position"]:
            if load_relaxed(words + DONE) != 0:
                return round_
            pause()
    return rounds


@entry("int64(intp, intp, int64, int64, int64, intp)")
def consume(host: int, words: int, seed: int, capacity: int, rounds: int, out: int) -> int:
    """Make `rounds` waits and check what came. Return OK or what was wrong."""
    consumer, waiter = host + H_CONSUMER, host + H_WAITER
    mine = consumer_at(consumer)[0]
    for _ in range(rounds):
        dice = mixed(seed ^ 0x3333, mine["position"])
        want = 2 + dice % (capacity - 1)
        min_wait_at = monotonic_ns() + (dice >> 8) % MIN_WAIT_NS_MAX
        if wait_n(consumer, waiter, want, min_wait_at, NEVER, NEVER) != MIN_WAIT:
            return WRONG_REASON
        if monotonic_ns() < min_wait_at:
            return WRONG_REASON
        place = mine["position"]
        if poll(consumer, out, capacity) != 1:
            return WRONG_COUNT
        if load_64(out + 8) != place or load_64(out + 56) != mark(seed, place):
            return WRONG_ENTRY
        counts = waiter_at(waiter)[0]
        store_relaxed(words + SLEEPS, counts["sleeps"])
        store_relaxed(words + WAITS, counts["waits"])
        store_relaxed(words + ENTRIES, mine["position"])
    return OK


def run_producer(options: Options, base: int, words: int) -> int:
    """The producer's process."""
    state, idle = np.zeros(1, ENGINE_CHANNEL), np.zeros(8, np.int64)
    bind_engine(address_of(state), base, WORK_CAPACITY, options.capacity, -1)
    while get(words + DONE) == 0:
        produce(address_of(state), words, options.seed, 1000, address_of(idle))
    return 0


def run_consumer(options: Options, base: int, words: int) -> int:
    """The consumer's process: it ends when enough waits have slept, or something was wrong."""
    state = np.zeros(1, HOST_CHANNEL)
    memory = np.zeros(8 * options.capacity, np.int64)
    bind_host(address_of(state), base, WORK_CAPACITY, options.capacity, -1)
    leave_time(address_of(state), base)
    result, out = OK, address_of(memory)
    while result == OK and get(words + SLEEPS) < options.sleeps:
        result = consume(address_of(state), words, options.seed, options.capacity, 200, out)
    put(words + RESULT, result)
    put(words + DONE, 1)
    return 0


if __name__ == "__main__":
    sys.exit(program(MODULE, run_producer, run_consumer))
