"""The programs of `wait_any`: two producers, each with a ring of its own, and one sleeper for both.

Both wakers change one futex word. Entries of a ring arrive whole and in order, as everywhere.
"""

from collections.abc import Callable, Iterable
from typing import Any

from shm.records import NEVER, STATE_DEAD, STATE_RUNNING, WAKE_FUTEX, WATCHED_SIZE
from shm.wait import DEADLINE, PEER, SIGNAL, THRESHOLD
from tests.shm.model.machine import Model, Ring, Thread
from tests.shm.model.programs import (
    CONSUMER,
    EVENT_HEAD,
    EVENTS,
    HEAD,
    OUT,
    PRODUCER,
    SLOTS,
    STATE,
    WAITER,
    WAKE_AT,
    WAKE_KIND,
    WAKE_WORDS,
    WAKER,
    consumer_record,
    expect,
    names,
    poster,
    producer_record,
    slot_words,
    waiter_record,
    waker_record,
)
from tests.shm.model.source import Source
from tests.shm.model.steps import PRIMITIVES, PRIVATE, Private, Record, Steps, Violation

WATCHED = PRIVATE + 0x7000
CONSUMER_2, WAITER_2 = PRIVATE + 0x8000, PRIVATE + 0x8100
WAKE_AT_2, WAKE_KIND_2, STATE_2 = 0x138, 0x140, 0x148
WORDS_2 = {WAKE_AT_2: NEVER, WAKE_KIND_2: WAKE_FUTEX, STATE_2: STATE_RUNNING}
NAMES_2 = {WAKE_AT_2: "wake_at'", WAKE_KIND_2: "wake_kind'", STATE_2: "state'"}
CONSUMERS = (CONSUMER, CONSUMER_2)


def _second(record: Record) -> Record:
    """A WAITER or WAKER of the second ring; the futex word is that of the first."""
    record.update(wake_at=WAKE_AT_2, wake_kind=WAKE_KIND_2)
    if "state" in record:
        record.update(state=STATE_2)
    return record


def _named(record: Record, name: str) -> Record:
    record.name = name
    return record


def _sleeper_records(capacity: int) -> dict[int, Record]:
    return {
        CONSUMER: consumer_record(capacity),
        WAITER: waiter_record(),
        CONSUMER_2: _named(consumer_record(capacity, EVENTS, EVENT_HEAD), "consumer'"),
        WAITER_2: _named(_second(waiter_record()), "waiter'"),
        WATCHED: Record("watched", consumer=CONSUMER, waiter=WAITER),
        WATCHED + WATCHED_SIZE: Record("watched'", consumer=CONSUMER_2, waiter=WAITER_2),
    }


def _model(
    code: Source,
    batches: tuple[Iterable[int], Iterable[int]],
    consume: Callable[[Private], Steps],
    capacity: int,
    **more: Any,
) -> Model:
    first = {PRODUCER: producer_record(capacity), WAKER: waker_record()}
    second = {
        PRODUCER: producer_record(capacity, EVENTS, EVENT_HEAD),
        WAKER: _second(waker_record()),
    }
    return Model(
        threads=[
            Thread("producer", poster(code, batches[0]), first),
            Thread("producer'", poster(code, batches[1]), second),
            Thread("consumer", consume, _sleeper_records(capacity)),
        ],
        memory={
            HEAD: 0,
            EVENT_HEAD: 0,
            **WAKE_WORDS,
            **WORDS_2,
            **slot_words(SLOTS, capacity, (1,)),
            **slot_words(EVENTS, capacity, (1,)),
        },
        names={**names(capacity), **NAMES_2},
        rings=[
            Ring(SLOTS, capacity, "consumer", "consumer"),
            Ring(EVENTS, capacity, "consumer", "consumer'"),
        ],
        tracked=(1,),
        **more,
    )


def sleeping_for_two(
    code: Source,
    batches: tuple[Iterable[int], Iterable[int]],
    capacity: int = 2,
    deadline: int = NEVER,
    **more: Any,
) -> Model:
    """Sleeps until there is something anywhere and takes all there is, until all has come."""
    wait_any, poll = code["wait.wait_any"], code["ring.poll"]
    total = sum(sum(tuple(sizes)) for sizes in batches)

    def consume(private: Private) -> Steps:
        taken = [0, 0]
        while sum(taken) < total:
            reason = SIGNAL
            while reason == SIGNAL:
                reason = yield from wait_any(WATCHED, 2, deadline, NEVER)
            if reason == DEADLINE and deadline != NEVER:
                return
            if reason != THRESHOLD:
                raise Violation(f"reason {reason} for no reason")
            found = 0
            for place, consumer in enumerate(CONSUMERS):
                count = yield from poll(consumer, OUT, capacity)
                for entry in range(count):
                    expect(private, OUT + 64 * entry, taken[place] + entry + 1)
                taken[place] += count
                found += count
            if found == 0:
                raise Violation("threshold with nothing there")

    return _model(code, batches, consume, capacity, **more)


def sleeping_with_lag(code: Source) -> Model:
    """Takes one entry, so few that its producer does not hear of it, and sleeps: for a batch that
    needs the slot.
    """
    wait_any, poll = code["wait.wait_any"], code["ring.poll"]

    def consume(private: Private) -> Steps:
        for count in (1, 0):
            reason = yield from wait_any(WATCHED, 2, NEVER, NEVER)
            if reason != THRESHOLD:
                raise Violation(f"reason {reason} for no reason")
            yield from poll(CONSUMER, OUT, count)

    return _model(code, ((1, 16), ()), consume, 16)


def closing_one_of_two(code: Source) -> Model:
    """Somebody closes the second channel under a sleep for both."""
    wait_any, wake = code["wait.wait_any"], code["wait.wake"]
    store_release = PRIMITIVES["store_release"]

    def close(private: Private) -> Steps:
        yield from store_release(STATE_2, STATE_DEAD)
        yield from wake(WAKER)

    def consume(private: Private) -> Steps:
        reason = yield from wait_any(WATCHED, 2, NEVER, NEVER)
        if reason != PEER:
            raise Violation(f"reason {reason} instead of peer")

    model = _model(code, ((), ()), consume, 2)
    model.threads[1] = Thread("closer", close, {WAKER: _second(waker_record())})
    return model


assert STATE in WAKE_WORDS
assert WAKE_AT in WAKE_WORDS
assert WAKE_KIND in WAKE_WORDS
