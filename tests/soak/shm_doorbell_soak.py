"""The mirror of the wait soak: a consumer that parks whenever it finds nothing, and sleeps.

    python -m tests.soak.shm_doorbell_soak --sleeps 200000 --seconds-max 600

Nothing but the doorbell wakes it. The producer sees the consumer run dry and posts at a moment that
varies around the parking; it never looks whether the consumer is parked, it only rings as it must.
"""

import sys

import numpy as np

from shm.atomics import load_acquire, load_relaxed, pause, store_relaxed
from shm.channel import (
    E_PRODUCER,
    ENGINE_CHANNEL,
    H_CONSUMER,
    HOST_CHANNEL,
    bind_engine,
    bind_host,
)
from shm.doorbell import park, ring_if_needed, unpark
from shm.jit import entry
from shm.layout import offset
from shm.libc import eventfd_drain, syscall
from shm.memory import load_64, store_64
from shm.records import CHANNEL, RINGER, SLOT_SIZE, consumer_at, producer_at, ringer_at
from shm.ring import claim, commit, free_slots, poll, publish_head
from shm.view import address_of
from tests.soak.shm_wait_soak import (
    DONE,
    ENTRIES,
    OK,
    POLLIN,
    RESULT,
    SLEEPS,
    SYS_POLL,
    WAITS,
    WAKES,
    WORK_CAPACITY,
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

MODULE = "tests.soak.shm_doorbell_soak"
BURST_MAX = 8


@entry("int64(intp, intp, intp, int64, int64, intp)")
def produce(engine: int, ringer: int, words: int, seed: int, rounds: int, idle: int) -> int:
    """Post `rounds` bursts, each with one look at the bell. Return the bursts posted."""
    producer = engine + E_PRODUCER
    mine = producer_at(producer)[0]
    for round_ in range(rounds):
        dice = mixed(seed, mine["position"])
        hold_off(dice >> 8, idle)
        burst = 1 + (dice & 255) % BURST_MAX
        while free_slots(producer, burst) < burst:
            if load_relaxed(words + DONE) != 0:
                return round_
            pause()
        for _ in range(burst):
            slot = claim(producer, 0)
            store_64(slot + 8, mine["position"])
            store_64(slot + 56, mark(seed, mine["position"]))
            commit(producer, 1)
        ring_if_needed(ringer)
        store_relaxed(words + WAKES, ringer_at(ringer)[0]["rings"])
        if (dice >> 48) & 1:  # run on: the next posts meet the consumer wherever it is
            continue
        # The consumer hands every slot back when it has run dry: then it is about to park.
        while load_acquire(mine["head"]) < mine["position"]:
            if load_relaxed(words + DONE) != 0:
                return round_
            pause()
    return rounds


@entry("int64(intp, intp, int64, int64, int64, intp, intp)")
def consume(
    host: int, words: int, seed: int, parks: int, bell: int, need_doorbell: int, state: int
) -> int:
    """Take and check entries, and park `parks` times. Return OK or what was wrong."""
    consumer = host + H_CONSUMER
    mine = consumer_at(consumer)[0]
    out = state + 64
    parked = 0
    while parked < parks:
        first = mine["position"]
        count = poll(consumer, out, BURST_MAX)
        for place in range(count):
            found = out + place * SLOT_SIZE
            if load_64(found + 8) != first + place or load_64(found + 56) != mark(
                seed, first + place
            ):
                return WRONG_ENTRY
        if count:
            continue
        publish_head(consumer)
        store_relaxed(words + ENTRIES, mine["position"])
        store_relaxed(words + WAITS, load_relaxed(words + WAITS) + 1)
        if not park(consumer, need_doorbell):
            continue
        parked += 1
        store_64(state + 8, bell | POLLIN << 32)  # a struct pollfd
        if syscall(SYS_POLL, state + 8, 1, 0, 0, 0, 0) == 0:  # not rung yet: this one sleeps
            store_relaxed(words + SLEEPS, load_relaxed(words + SLEEPS) + 1)
            syscall(SYS_POLL, state + 8, 1, -1, 0, 0, 0)
        if eventfd_drain(bell) != 8:
            return WRONG_REASON
        unpark(need_doorbell)
    return OK


def run_producer(options: Options, base: int, words: int) -> int:
    """The producer's process."""
    state, ringer, idle = np.zeros(1, ENGINE_CHANNEL), np.zeros(1, RINGER), np.zeros(8, np.int64)
    bind_engine(address_of(state), base, WORK_CAPACITY, options.capacity, -1)
    ringer[0]["need_doorbell"] = base + offset(CHANNEL, "need_doorbell")
    ringer[0]["descriptor"] = options.eventfd
    while get(words + DONE) == 0:
        produce(address_of(state), address_of(ringer), words, options.seed, 1000, address_of(idle))
    return 0


def run_consumer(options: Options, base: int, words: int) -> int:
    """The consumer's process: it ends when it slept often enough, or something was wrong."""
    state = np.zeros(1, HOST_CHANNEL)
    memory = np.zeros(8 + 8 * BURST_MAX, np.int64)
    bind_host(address_of(state), base, WORK_CAPACITY, options.capacity, -1)
    need, result = base + offset(CHANNEL, "need_doorbell"), OK
    while result == OK and get(words + SLEEPS) < options.sleeps:
        result = consume(
            address_of(state), words, options.seed, 200, options.eventfd, need, address_of(memory)
        )
    put(words + RESULT, result)
    put(words + DONE, 1)
    return 0


if __name__ == "__main__":
    sys.exit(program(MODULE, run_producer, run_consumer))
