"""Two processes, one ring, no tick and no deadline: every sleep must be ended by its own wake-up.

    python -m tests.soak.shm_wait_soak --sleeps 200000 --seconds-max 600

The consumer waits for thresholds that vary, on the futex and now and then on the eventfd, and
checks every entry. The producer knows the thresholds, sees the consumer begin a wait, and posts at
a moment that varies around the arming: at once, some hundred nanoseconds later, microseconds later,
or long after the consumer fell asleep. Nothing wakes a sleeper but the code under test: the
watchdog only looks whether the counts still move, and reports a hang as a failure.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shm.atomics import cycles, load_acquire, load_relaxed, pause, store_relaxed, store_release
from shm.channel import (
    E_PRODUCER,
    E_WAKER,
    ENGINE_CHANNEL,
    H_CONSUMER,
    H_WAITER,
    HOST_CHANNEL,
    bind_engine,
    bind_host,
    channel_size,
    initialise,
)
from shm.jit import entry
from shm.libc import eventfd_drain, futex_wait, monotonic_ns, syscall
from shm.memory import load_64, store_64
from shm.records import (
    NEVER,
    SLOT_SIZE,
    consumer_at,
    producer_at,
    waiter_at,
    waker_at,
)
from shm.ring import claim, commit, free_slots, poll, publish_head
from shm.segment import create, map_descriptor
from shm.view import address_of
from shm.wait import THRESHOLD, arm_eventfd, disarm, wait_n, wake_if_crossed

ROOT = Path(__file__).resolve().parent.parent.parent
MODULE = "tests.soak.shm_wait_soak"
WORK_CAPACITY = 8  # not used
STALL_S = 30.0  # no count moved for so long: a sleeper was lost
LOOK_S = 0.1
MASK = (1 << 62) - 1
# Words of the page behind the channel, and how a consumer ended.
DONE, SLEEPS, WAITS, ENTRIES, WAKES, BY_EVENTFD, RESULT = (8 * word for word in range(7))
WORDS_SIZE = 4096
SYS_POLL = 7  # x86-64
POLLIN = 1
OK, WRONG_REASON, WRONG_COUNT, WRONG_ENTRY = 1, -1, -2, -3


@entry("int64(int64, int64)")
def mixed(seed: int, number: int) -> int:
    """A well mixed non-negative function of both (SplitMix64's finish), the same on both sides."""
    value = (seed + number * 0x1E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0x3F58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x14D049BB133111EB) & MASK
    return value ^ (value >> 31)


@entry("int64(int64, int64, int64)")
def threshold_of(seed: int, round_: int, capacity: int) -> int:
    """How many entries wait number `round_` is for: mostly few, sometimes the whole ring."""
    value = mixed(seed, 2 * round_)
    kind, size = value & 7, value >> 3
    if kind < 3:
        return 1
    if kind < 7:
        return 1 + size % min(8, capacity)
    return 1 + size % capacity


@entry("int64(int64, int64)")
def mark(seed: int, position: int) -> int:
    """What the last word of the entry at `position` holds."""
    return mixed(seed ^ 0x5555, position)


@entry("void(int64, intp)")
def hold_off(value: int, private_word: int) -> None:
    """Wait as `value` says: not at all, up to 2 µs, up to 40 µs, or asleep for up to 150 µs."""
    kind, size = value & 31, value >> 5
    if kind < 8:
        return
    if kind < 24:
        ends = cycles() + size % 6000
        while cycles() < ends:
            pause()
    elif kind < 31:
        ends_ns = monotonic_ns() + size % 40_000
        while monotonic_ns() < ends_ns:
            pause()
    else:
        futex_wait(private_word, 0, monotonic_ns() + size % 150_000)


@entry("int64(intp, intp, int64, int64, int64, intp)")
def produce(engine: int, words: int, seed: int, capacity: int, rounds: int, idle: int) -> int:
    """Post for `rounds` waits, or until the consumer is done. Return the rounds made."""
    producer, waker = engine + E_PRODUCER, engine + E_WAKER
    mine = producer_at(producer)[0]
    target = mine["position"]  # of the rounds so far; the posts may be ahead of it
    first = load_64(idle + 8)
    for round_ in range(first, first + rounds):
        target = load_64(idle + 16) + threshold_of(seed, round_, capacity)
        store_64(idle + 16, target)
        dice = mixed(seed, 2 * round_ + 1)
        ahead = target + (dice & 3) * ((dice >> 2) & 1)  # some rounds begin with entries there
        dice >>= 8
        hold_off(dice, idle)
        while mine["position"] < ahead:
            dice = mixed(seed ^ 0x7777, mine["position"])
            # Never ask for room beyond what the consumer waits for: it gives none before.
            end = target if mine["position"] < target else ahead
            burst = min(1 + (dice & 7), end - mine["position"])
            while free_slots(producer, burst) < burst:
                wake_if_crossed(producer, waker)
                if load_relaxed(words + DONE) != 0:
                    return round_ - first
                pause()
            for _ in range(burst):
                slot = claim(producer, 0)
                store_64(slot + 8, mine["position"])
                store_64(slot + 56, mark(seed, mine["position"]))
                commit(producer, 1)
            # Late now and then: one look for several bursts, as at the end of an engine's pass.
            if (dice >> 3) & 3 or mine["position"] >= ahead:
                wake_if_crossed(producer, waker)
            if (dice >> 5) & 1:
                hold_off(dice >> 6, idle)
        store_relaxed(words + WAKES, waker_at(waker)[0]["wakes"])
        if (dice >> 48) & 1:  # run on: the next posts meet the consumer wherever it is
            continue
        # The consumer hands every slot back when it begins a wait: then it is about to arm.
        while load_acquire(mine["head"]) < target:
            if load_relaxed(words + DONE) != 0:
                return round_ - first
            pause()
    store_64(idle + 8, first + rounds)
    return rounds


@entry("int64(intp, intp, int64, int64, int64, int64, intp)")
def consume(
    host: int, words: int, seed: int, capacity: int, rounds: int, descriptor: int, state: int
) -> int:
    """Make `rounds` waits and check what they waited for. Return OK or what was wrong."""
    consumer, waiter = host + H_CONSUMER, host + H_WAITER
    mine = consumer_at(consumer)[0]
    out = state + 64
    for round_ in range(load_64(state), load_64(state) + rounds):
        want = threshold_of(seed, round_, capacity)
        if mixed(seed ^ 0x3333, round_) % 16 == 0:
            while arm_eventfd(consumer, waiter, want):
                store_64(state + 8, descriptor | POLLIN << 32)  # a struct pollfd
                syscall(SYS_POLL, state + 8, 1, -1, 0, 0, 0)
                if eventfd_drain(descriptor) != 8:
                    return WRONG_REASON
                store_relaxed(words + BY_EVENTFD, load_relaxed(words + BY_EVENTFD) + 1)
            disarm(waiter)
        elif wait_n(consumer, waiter, want, NEVER, NEVER, NEVER) != THRESHOLD:
            return WRONG_REASON
        first = mine["position"]
        if poll(consumer, out, want) != want:
            return WRONG_COUNT
        for place in range(want):
            found = out + place * SLOT_SIZE
            if load_64(found + 8) != first + place or load_64(found + 56) != mark(
                seed, first + place
            ):
                return WRONG_ENTRY
        counts = waiter_at(waiter)[0]
        store_relaxed(words + SLEEPS, counts["sleeps"])
        store_relaxed(words + WAITS, counts["waits"])
        store_relaxed(words + ENTRIES, mine["position"])
    publish_head(consumer)
    store_64(state, load_64(state) + rounds)
    return OK


@entry("void(intp, int64)")
def put(address: int, value: int) -> None:
    """Tell the other processes a word."""
    store_release(address, value)


@entry("int64(intp)")
def get(address: int) -> int:
    """Read a word of the other processes."""
    return load_acquire(address)


@dataclass
class Options:
    """What a run is told; `role` is for the two processes it starts."""

    sleeps: int = 200_000
    seconds_max: float = 600.0
    capacity: int = 64
    seed: int = 1
    role: str = ""
    descriptor: int = -1
    eventfd: int = -1


# One of the two processes: its options, the channel's address, and that of the words behind it.
Role = Callable[[Options, int, int], int]


def arguments(argv: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in asdict(Options()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return Options(**vars(parser.parse_args(argv)))


def run_producer(options: Options, base: int, words: int) -> int:
    """The producer's process."""
    state = np.zeros(1, ENGINE_CHANNEL)
    idle = np.zeros(8, np.int64)
    engine = address_of(state)
    bind_engine(engine, base, WORK_CAPACITY, options.capacity, options.eventfd)
    while get(words + DONE) == 0:
        produce(engine, words, options.seed, options.capacity, 1000, address_of(idle))
    return 0


def run_consumer(options: Options, base: int, words: int) -> int:
    """The consumer's process: it ends when enough waits have slept, or something was wrong."""
    state = np.zeros(1, HOST_CHANNEL)
    memory = np.zeros(8 + 8 * options.capacity, np.int64)
    host = address_of(state)
    bind_host(host, base, WORK_CAPACITY, options.capacity, -1)
    result = OK
    while result == OK and get(words + SLEEPS) < options.sleeps:
        result = consume(
            host,
            words,
            options.seed,
            options.capacity,
            200,
            options.eventfd,
            address_of(memory),
        )
    put(words + RESULT, result)
    put(words + DONE, 1)
    return 0


def _start(
    module: str, options: Options, role: str, descriptor: int, eventfd: int
) -> subprocess.Popen[bytes]:
    told = {**asdict(options), "role": role, "descriptor": descriptor, "eventfd": eventfd}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in told.items()]
    return subprocess.Popen(
        [sys.executable, "-m", module, *flags],
        cwd=ROOT,
        pass_fds=(descriptor, eventfd),
    )


def _watch(options: Options, words: int, children: list[subprocess.Popen[bytes]]) -> str:
    """Look on until the run ends. Return "ok" or what went wrong; touches nobody."""
    began = moved_at = time.monotonic()
    last: tuple[int, ...] = ()
    while get(words + DONE) == 0:
        if died := [child for child in children if child.poll() not in (None, 0)]:
            return f"a process ended with {died[0].returncode}"
        counts = tuple(get(words + word) for word in (SLEEPS, WAITS, ENTRIES, WAKES, BY_EVENTFD))
        now = time.monotonic()
        if counts != last:
            last, moved_at = counts, now
        elif now - moved_at > STALL_S:
            return "hang: a waiter sleeps though its entries are there"
        if now - began > options.seconds_max:
            return "time is up"
        time.sleep(LOOK_S)
    names = {WRONG_REASON: "wrong reason", WRONG_COUNT: "too few", WRONG_ENTRY: "wrong entry"}
    return names.get(get(words + RESULT), "ok")


def soak(options: Options, module: str = MODULE) -> dict[str, Any]:
    """Run both processes to the end and say what was counted; `outcome` is "ok" or a failure.

    `module` is the program whose roles "consumer" and "producer" are run.
    """
    size = channel_size(WORK_CAPACITY, options.capacity)
    segment = create(size + WORDS_SIZE)
    eventfd = os.eventfd(0, 0)
    words = segment.address + size
    initialise(segment.address, WORK_CAPACITY, options.capacity)
    began = time.monotonic()
    children = [
        _start(module, options, role, segment.descriptor, eventfd)
        for role in ("consumer", "producer")
    ]
    try:
        outcome = _watch(options, words, children)
    finally:
        put(words + DONE, 1)
        for child in children:
            try:
                child.wait(2 if outcome_is_bad(words) else 20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
    seconds = time.monotonic() - began
    counts = {
        name: get(words + word)
        for name, word in (
            ("sleeps", SLEEPS),
            ("waits", WAITS),
            ("entries", ENTRIES),
            ("wakes", WAKES),
            ("eventfd_sleeps", BY_EVENTFD),
        )
    }
    os.close(eventfd)
    segment.close()
    return {
        "outcome": outcome,
        "lost": int(outcome.startswith("hang")),
        **counts,
        "seconds": round(seconds, 1),
        "sleeps_per_s": round(counts["sleeps"] / seconds),
        "capacity": options.capacity,
        "seed": options.seed,
    }


def outcome_is_bad(words: int) -> bool:
    """Whether the consumer did not end by itself."""
    return get(words + RESULT) != OK


def program(module: str, producer: Role, consumer: Role, argv: list[str] | None = None) -> int:
    """What a soak's program does: as one of its roles, that role's part; else run both, print one
    JSON object, and return 0 only if no sleeper was left alone.
    """
    options = arguments(argv)
    if not options.role:
        found = soak(options, module)
        print(json.dumps(found))  # noqa: T201 - this is a program
        return 0 if found["outcome"] == "ok" else 1
    size = channel_size(WORK_CAPACITY, options.capacity)
    segment = map_descriptor(os.dup(options.descriptor), size + WORDS_SIZE)
    run = {"producer": producer, "consumer": consumer}[options.role]
    return run(options, segment.address, segment.address + size)


if __name__ == "__main__":
    sys.exit(program(MODULE, run_producer, run_consumer))
