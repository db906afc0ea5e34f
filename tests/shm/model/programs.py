"""The small programs that are checked: each states its bounds and what must hold at its end.

The tracked payload words of an entry all hold its number, so that a torn or overwritten entry
shows. Loss, duplication and disorder show as a wrong number; a lost wake-up shows
as a state in which somebody sleeps for ever.
"""

from collections.abc import Callable, Iterable
from typing import Any

from shm.records import NEVER, STATE_DEAD, STATE_RUNNING, WAKE_FUTEX
from shm.ring import WORDS
from shm.wait import DEADLINE, GATHERING, MIN_WAIT, PEER, SIGNAL, THRESHOLD
from tests.shm.model.machine import Model, Ring, Thread
from tests.shm.model.source import Mutation, Source
from tests.shm.model.steps import (
    EVENTFD,
    PLAIN,
    PRIMITIVES,
    PRIVATE,
    Current,
    Private,
    Record,
    Steps,
    Violation,
    eventfd_await,
    store,
)

HEAD, NEED_DOORBELL, EVENT_HEAD = 0x100, 0x108, 0x110
WAKE_AT, WAKE_KIND, WAKE_SEQ, STATE = 0x118, 0x120, 0x128, 0x130
ENOUGH_AT, ENOUGH_POSITION, ALARM = 0x138, 0x140, 0x148
SLOTS, EVENTS = 0x400, 0x800
BELL, WAKE = 3, 4  # descriptors
TRACKED = (1, 2)  # words of a slot's payload

PRODUCER, CONSUMER, WAKER, WAITER, RINGER = (PRIVATE + 0x100 * i for i in range(5))
ENTRY, OUT = PRIVATE + 0x1000, PRIVATE + 0x2000
HOST, ENGINE = PRIVATE + 0x4000, PRIVATE + 0x5000

NAMES = {
    HEAD: "head",
    NEED_DOORBELL: "need_doorbell",
    EVENT_HEAD: "event_head",
    WAKE_AT: "wake_at",
    WAKE_KIND: "wake_kind",
    WAKE_SEQ: "wake_seq",
    STATE: "state",
    ENOUGH_AT: "enough_at",
    ENOUGH_POSITION: "enough_position",
    EVENTFD + 8 * BELL: "bell",
    EVENTFD + 8 * WAKE: "wake eventfd",
}
WAKE_WORDS = {WAKE_AT: NEVER, WAKE_KIND: WAKE_FUTEX, WAKE_SEQ: 0, STATE: STATE_RUNNING}


def source(mutations: Iterable[Mutation] = ()) -> Source:
    """The shipped functions over the model's memory, with these faults."""
    return Source(PRIMITIVES, PLAIN, mutations)


def slot_words(base: int, capacity: int, tracked: Iterable[int] = TRACKED) -> dict[int, int]:
    """The sequence and tracked words of `capacity` empty slots at `base`."""
    return {base + 64 * slot + 8 * w: 0 for slot in range(capacity) for w in (0, *tracked)}


def names(capacity: int) -> dict[int, str]:
    """What traces call the words."""
    found = dict(NAMES)
    for base, kind in ((SLOTS, "slot"), (EVENTS, "event")):
        for slot in range(capacity):
            for word in range(WORDS + 1):
                part = f"word{word - 1}" if word else "sequence"
                found[base + 64 * slot + 8 * word] = f"{kind}[{slot}].{part}"
    return found


class Uncounted(Record):
    """A record whose statistics stay 0, so that counting does not multiply the states."""

    def __getitem__(self, name: str) -> int:
        return self.get(name, 0)

    def __setitem__(self, name: str, value: int) -> None:
        if name in self:
            super().__setitem__(name, value)


def producer_record(capacity: int, slots: int = SLOTS, head: int = HEAD) -> Record:
    """A PRODUCER at its beginning."""
    return Record("producer", slots=slots, head=head, capacity=capacity, position=0, head_seen=0)


def consumer_record(capacity: int, slots: int = SLOTS, head: int = HEAD) -> Record:
    """A CONSUMER at its beginning."""
    return Record(
        "consumer", slots=slots, head=head, capacity=capacity, position=0, head_published=0
    )


def waker_record() -> Record:
    """A WAKER at its beginning, with an eventfd."""
    return Record(
        "waker",
        wake_at=WAKE_AT,
        wake_seq=WAKE_SEQ,
        wake_kind=WAKE_KIND,
        checked=0,
        descriptor=WAKE,
        wakes=0,
    )


def waiter_record() -> Record:
    """A WAITER at its beginning; its statistics are left out of the state."""
    return Uncounted("waiter", wake_at=WAKE_AT, wake_seq=WAKE_SEQ, wake_kind=WAKE_KIND, state=STATE)


def ringer_record() -> Record:
    """A RINGER at its beginning."""
    return Uncounted("ringer", need_doorbell=NEED_DOORBELL, descriptor=BELL)


def fill_entry(number: int, at: int = ENTRY) -> Steps:
    """Write entry `number` into private memory."""
    for word in Current.tracked:
        yield from store(at + 8 * word, number)


def expect(private: Private, at: int, number: int) -> None:
    """Entry `number`, whole, stands at `at`; then forget it, so that it cannot pass twice."""
    found = [private.words.pop(at + 8 * word, 0) for word in Current.tracked]
    if found != [number] * len(found):
        raise Violation(f"entry {number} was expected and {found} was read")


def two_threads(
    capacity: int,
    produce: Callable[[Private], Steps],
    consume: Callable[[Private], Steps],
    words: dict[int, int] | None = None,
    tracked: tuple[int, ...] = TRACKED,
    time_words: dict[str, int] | None = None,
    **more: Any,
) -> Model:
    """A producer and a consumer of one ring; with `time_words` the one keeps the other's time."""
    producer = {
        PRODUCER: producer_record(capacity),
        WAKER: waker_record(),
        RINGER: ringer_record(),
    }
    consumer = {CONSUMER: consumer_record(capacity), WAITER: waiter_record()}
    producer[WAKER].update(time_words or {})
    consumer[WAITER].update(time_words or {})
    return Model(
        threads=[
            Thread("producer", produce, producer),
            Thread("consumer", consume, consumer),
        ],
        memory={HEAD: 0, **(words or {}), **slot_words(SLOTS, capacity, tracked)},
        names=names(capacity),
        rings=[Ring(SLOTS, capacity, "consumer", "consumer")],
        tracked=tracked,
        **more,
    )


def at_most(wakes: int) -> Callable[[dict[str, Any], dict[int, int]], str | None]:
    """The check that no more than `wakes` wake-ups were spent."""

    def check(records: dict[str, Any], memory: dict[int, int]) -> str | None:
        spent = records["producer"]["waker"]["wakes"]
        return f"{spent} wake-ups where {wakes} do" if spent > wakes else None

    return check


def over(wakes: int) -> Callable[[dict[str, Any], dict[int, int]], str | None]:
    """The check of `at_most`, and that no wait left its time behind."""
    check_wakes = at_most(wakes)

    def check(records: dict[str, Any], memory: dict[int, int]) -> str | None:
        left = None if memory[ENOUGH_AT] == NEVER else "a wait left its time behind"
        return left or check_wakes(records, memory)

    return check


# --- the ring --------------------------------------------------------------------------------


def ring_by_ones(
    code: Source, capacity: int = 2, entries: int = 4, limit: int = 2, **more: Any
) -> Model:
    """Post one by one around the ring; poll up to `limit`."""
    post, poll = code["ring.post"], code["ring.poll"]

    def produce(private: Private) -> Steps:
        for number in range(1, entries + 1):
            yield from fill_entry(number)
            while not (yield from post(PRODUCER, ENTRY, 1)):
                pass

    def consume(private: Private) -> Steps:
        taken = 0
        while taken < entries:
            count = yield from poll(CONSUMER, OUT, limit)
            for place in range(count):
                expect(private, OUT + 64 * place, taken + place + 1)
            taken += count

    return two_threads(capacity, produce, consume, **more)


def ring_by_bursts(code: Source, capacity: int = 2, entries: int = 4, **more: Any) -> Model:
    """Post bursts of up to three, of which some do not fit."""
    post_burst, poll = code["ring.post_burst"], code["ring.poll"]

    def produce(private: Private) -> Steps:
        done = 0
        while done < entries:
            count = min(3, entries - done)
            for place in range(count):
                yield from fill_entry(done + place + 1, ENTRY + 64 * place)
            done += yield from post_burst(PRODUCER, ENTRY, count)

    def consume(private: Private) -> Steps:
        taken = 0
        while taken < entries:
            count = yield from poll(CONSUMER, OUT, 2)
            for place in range(count):
                expect(private, OUT + 64 * place, taken + place + 1)
            taken += count

    return two_threads(capacity, produce, consume, **more)


def ring_of_pairs(code: Source, capacity: int = 4, operations: int = 3) -> Model:
    """Operations of two slots: whoever sees the first slot sees both."""
    post, is_published = code["ring.post"], code["ring.is_published"]
    copy_entry, slot_of, release = (
        code["ring.copy_entry"],
        code["ring.slot_of"],
        code["ring.release"],
    )

    def produce(private: Private) -> Steps:
        for number in range(1, operations + 1):
            yield from fill_entry(2 * number - 1)
            yield from fill_entry(2 * number, ENTRY + 64)
            while not (yield from post(PRODUCER, ENTRY, 2)):
                pass

    def consume(private: Private) -> Steps:
        for number in range(1, operations + 1):
            while not (yield from is_published(CONSUMER, 0)):
                pass
            if not (yield from is_published(CONSUMER, 1)):
                raise Violation("the first slot of an operation is there and the second is not")
            for place in range(2):
                yield from copy_entry(OUT, slot_of(CONSUMER, place))
                expect(private, OUT, 2 * number - 1 + place)
            yield from release(CONSUMER, 2)

    return two_threads(capacity, produce, consume)


def ring_with_a_liar(code: Source, lie: int, capacity: int = 2) -> Model:
    """A consumer that reads nothing and lies about how much it read."""
    post = code["ring.post"]

    def produce(private: Private) -> Steps:
        accepted = 0
        for number in range(1, 2 * capacity + 2):
            yield from fill_entry(number)
            accepted += yield from post(PRODUCER, ENTRY, 1)
        if accepted > capacity:
            raise Violation(f"{accepted} posts into a ring of {capacity} that nobody reads")

    def consume(private: Private) -> Steps:
        yield from store(HEAD, lie)

    return two_threads(capacity, produce, consume)


# --- the wait --------------------------------------------------------------------------------


def sleeper(
    code: Source, wants: Iterable[int], limit: int = 4, min_wait: int = NEVER, deadline: int = NEVER
) -> Callable[[Private], Steps]:
    """A consumer that waits for each of `wants` in turn and then takes as many entries."""
    wait_n, ready, poll = code["wait.wait_n"], code["ring.ready"], code["ring.poll"]
    wanted = tuple(wants)

    def consume(private: Private) -> Steps:
        taken = 0
        for want in wanted:
            reason = SIGNAL
            while reason == SIGNAL:
                reason = yield from wait_n(CONSUMER, WAITER, want, min_wait, deadline, NEVER)
            there = yield from ready(CONSUMER, limit)
            if reason == THRESHOLD and there < want:
                raise Violation(f"threshold of {want} with {there} there")
            if reason == MIN_WAIT and (there < 1 or min_wait == NEVER):
                raise Violation(f"min_wait with {there} there")
            if reason == PEER or (reason == DEADLINE and deadline == NEVER):
                raise Violation(f"reason {reason} for no reason")
            count = yield from poll(CONSUMER, OUT, want)
            for place in range(count):
                expect(private, OUT + 64 * place, taken + place + 1)
            taken += count

    return consume


def poster(code: Source, batches: Iterable[int]) -> Callable[[Private], Steps]:
    """A producer that posts each batch whole and looks for a crossing once after it."""
    post, wake_if_crossed = code["ring.post"], code["wait.wake_if_crossed"]
    sizes = tuple(batches)

    def produce(private: Private) -> Steps:
        number = 0
        for size in sizes:
            for _place in range(size):
                number += 1
                yield from fill_entry(number)
                while not (yield from post(PRODUCER, ENTRY, 1)):
                    pass
            yield from wake_if_crossed(PRODUCER, WAKER)

    return produce


def waits(
    code: Source,
    wants: Iterable[int],
    batches: Iterable[int],
    capacity: int = 4,
    min_wait: int = NEVER,
    deadline: int = NEVER,
    **more: Any,
) -> Model:
    """Waits for `wants` entries in turn against batches, one wake-up at most for each wait."""
    wants = tuple(wants)
    per_wait = 1 if min_wait == NEVER else 2  # the minimum wait arms a second time
    return two_threads(
        capacity,
        poster(code, batches),
        sleeper(code, wants, capacity, min_wait, deadline),
        WAKE_WORDS,
        final=at_most(per_wait * len(wants)),
        **more,
    )


def kept_waits(
    code: Source,
    wants: Iterable[int],
    batches: Iterable[int],
    capacity: int = 4,
    min_wait: int = 1,
    look: str = "wait.wake_if_crossed",
    **more: Any,
) -> Model:
    """The same where the producer keeps the time of the minimum waits: nobody else ends them.

    `look` is how it looks for a crossing after each batch.
    """
    wants, sizes = tuple(wants), tuple(batches)
    is_time_kept, keep_time = code["wait.is_time_kept"], code["wait.keep_time"]
    post, wake_if_due = code["ring.post"], code[look]

    def produce(private: Private) -> Steps:
        number = 0
        for size in sizes:
            for _place in range(size):
                number += 1
                yield from fill_entry(number)
                yield from post(PRODUCER, ENTRY, 1)
            crossed = yield from wake_if_due(PRODUCER, WAKER)
            if crossed or not (yield from is_time_kept(WAKER)):
                continue
            now = yield from PRIMITIVES["monotonic_ns"]()
            while (yield from keep_time(PRODUCER, WAKER, now)) == GATHERING:
                yield from PRIMITIVES["futex_wait"](ALARM, 0, min_wait)
                now = min_wait

    return two_threads(
        capacity,
        produce,
        sleeper(code, wants, capacity, min_wait),
        {**WAKE_WORDS, ENOUGH_AT: NEVER, ENOUGH_POSITION: 0, ALARM: 0},
        final=over(2 * len(wants)),  # as of a minimum wait that the waiter keeps himself
        time_words={"enough_at": ENOUGH_AT, "enough_position": ENOUGH_POSITION},
        **more,
    )


def solicited_waits(
    code: Source, flags: Iterable[int], wants: int = 0, capacity: int = 4, **more: Any
) -> Model:
    """A wait for a solicited entry (of flags that are not 0), or for `wants` of any kind."""
    post, has_solicited = code["ring.post"], code["solicited.has_solicited"]
    ordinary, solicited = code["wait.wake_if_crossed"], code["solicited.wake_if_solicited"]
    wait_solicited, wait_n = code["solicited.wait_solicited"], code["wait.wait_n"]
    entries = tuple(flags)

    def produce(private: Private) -> Steps:
        for each in entries:
            for word in Current.tracked:
                yield from store(ENTRY + 8 * word, each)
            yield from post(PRODUCER, ENTRY, 1)
            if each:
                yield from solicited(PRODUCER, WAKER)
            else:
                yield from ordinary(PRODUCER, WAKER)

    def consume(private: Private) -> Steps:
        reason = SIGNAL
        while reason == SIGNAL:
            if wants:
                reason = yield from wait_n(CONSUMER, WAITER, wants, NEVER, NEVER, NEVER)
            else:
                reason = yield from wait_solicited(CONSUMER, WAITER, NEVER, NEVER)
        if reason != THRESHOLD:
            raise Violation(f"reason {reason}")
        if not wants and not (yield from has_solicited(CONSUMER)):
            raise Violation("woken, and no solicited entry is there")

    return two_threads(
        capacity, produce, consume, WAKE_WORDS, final=at_most(1), fields={"flags": 1}, **more
    )


def closing(code: Source, entries: int = 1, signals: int = 0) -> Model:
    """Somebody else closes the channel under a wait, after `signals` wake-ups without a change."""
    wait_n, wake = code["wait.wait_n"], code["wait.wake"]
    store_release = PRIMITIVES["store_release"]

    def close(private: Private) -> Steps:
        for _ in range(signals):
            yield from wake(WAKER)
        yield from store_release(STATE, STATE_DEAD)
        yield from wake(WAKER)

    def consume(private: Private) -> Steps:
        reason = yield from wait_n(CONSUMER, WAITER, entries + 1, NEVER, NEVER, NEVER)
        if reason != PEER:
            raise Violation(f"reason {reason} instead of peer")

    model = two_threads(2, poster(code, [1] * entries), consume, WAKE_WORDS)
    model.threads.append(Thread("closer", close, {WAKER: waker_record()}))
    return model


def event_loop(code: Source, wants: Iterable[int], batches: Iterable[int]) -> Model:
    """A consumer that sleeps on the eventfd in a loop of its own."""
    arm_eventfd, disarm = code["wait.arm_eventfd"], code["wait.disarm"]
    poll, ready = code["ring.poll"], code["ring.ready"]
    wanted = tuple(wants)

    def consume(private: Private) -> Steps:
        taken = 0
        for want in wanted:
            while (yield from arm_eventfd(CONSUMER, WAITER, want)):
                yield from eventfd_await(WAKE)
            yield from disarm(WAITER)
            if (yield from ready(CONSUMER, want)) < want:
                raise Violation(f"not armed, and {want} are not there")
            count = yield from poll(CONSUMER, OUT, want)
            for place in range(count):
                expect(private, OUT + 64 * place, taken + place + 1)
            taken += count

    words = {**WAKE_WORDS, EVENTFD + 8 * WAKE: 0}
    return two_threads(4, poster(code, batches), consume, words, final=at_most(len(wanted)))


def closing_event_loop(code: Source) -> Model:
    """The channel is closed under a consumer that sleeps on the eventfd."""
    arm_eventfd, wake = code["wait.arm_eventfd"], code["wait.wake"]
    store_release, load_acquire = PRIMITIVES["store_release"], PRIMITIVES["load_acquire"]

    def close(private: Private) -> Steps:
        yield from store_release(STATE, STATE_DEAD)
        yield from wake(WAKER)

    def consume(private: Private) -> Steps:
        while (yield from arm_eventfd(CONSUMER, WAITER, 1)):
            yield from eventfd_await(WAKE)
        if (yield from load_acquire(STATE)) != STATE_DEAD:
            raise Violation("not armed, and nothing happened")

    consumer = {CONSUMER: consumer_record(2), WAITER: waiter_record()}
    return Model(
        threads=[
            Thread("closer", close, {WAKER: waker_record()}),
            Thread("consumer", consume, consumer),
        ],
        memory={HEAD: 0, **WAKE_WORDS, EVENTFD + 8 * WAKE: 0, **slot_words(SLOTS, 2)},
        names=names(2),
    )


def changing_kind(code: Source) -> Model:
    """One wait on the eventfd that is given up, then one on the futex, against two posts."""
    arm_eventfd, disarm = code["wait.arm_eventfd"], code["wait.disarm"]
    rest = sleeper(code, [1, 1])

    def consume(private: Private) -> Steps:
        yield from arm_eventfd(CONSUMER, WAITER, 1)
        yield from disarm(WAITER)
        yield from rest(private)

    words = {**WAKE_WORDS, EVENTFD + 8 * WAKE: 0}
    return two_threads(4, poster(code, [1, 1]), consume, words)


# --- the doorbell ----------------------------------------------------------------------------


def parking(code: Source, batches: Iterable[int], capacity: int = 2) -> Model:
    """A consumer that parks whenever it finds nothing, and a producer that rings after a batch."""
    post_burst, ring = code["ring.post_burst"], code["doorbell.ring_if_needed"]
    park, unpark, poll = code["doorbell.park"], code["doorbell.unpark"], code["ring.poll"]
    publish_head = code["ring.publish_head"]
    sizes = tuple(batches)

    def produce(private: Private) -> Steps:
        number = 0
        for size in sizes:
            for place in range(size):
                yield from fill_entry(number + place + 1, ENTRY + 64 * place)
            sent = 0
            while sent < size:
                done = yield from post_burst(PRODUCER, ENTRY + 64 * sent, size - sent)
                sent += done
                if done:
                    yield from ring(RINGER)
            number += size

    def consume(private: Private) -> Steps:
        taken = 0
        while taken < sum(sizes):
            count = yield from poll(CONSUMER, OUT, 2)
            for place in range(count):
                expect(private, OUT + 64 * place, taken + place + 1)
            taken += count
            if count == 0:
                yield from publish_head(CONSUMER)
                if (yield from park(CONSUMER, NEED_DOORBELL)):
                    yield from eventfd_await(BELL)
                    yield from unpark(NEED_DOORBELL)

    words = {NEED_DOORBELL: 0, EVENTFD + 8 * BELL: 0}
    return two_threads(capacity, produce, consume, words)
