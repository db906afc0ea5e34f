"""The program of both directions at once: a channel whose host sleeps and whose engine parks.

It runs the source of `shm.channel` too, which fills and reads slots in place.
"""

from collections.abc import Callable

from shm.records import NEVER
from shm.wait import THRESHOLD
from tests.shm.model.machine import Model, Ring, Thread
from tests.shm.model.programs import (
    BELL,
    CONSUMER,
    ENGINE,
    EVENT_HEAD,
    EVENTS,
    HEAD,
    HOST,
    NEED_DOORBELL,
    OUT,
    PRODUCER,
    RINGER,
    SLOTS,
    WAITER,
    WAKE_WORDS,
    WAKER,
    Uncounted,
    consumer_record,
    names,
    producer_record,
    ringer_record,
    slot_words,
    waiter_record,
    waker_record,
)
from tests.shm.model.source import Source
from tests.shm.model.steps import (
    EVENTFD,
    PLAIN,
    PRIMITIVES,
    Private,
    Steps,
    Violation,
    eventfd_await,
)

# The fields of WQE and CQE that the model keeps, each in a payload word of its own.
CHANNEL_FIELDS = {"slots": 1, "released": 1, "user_data": 2}


def _channel_host(code: Source, posts: int, deep: int) -> Callable[[Private], Steps]:
    prepare, fill = code["channel.prepare"], code["channel.fill"]
    submit, ring = code["channel.submit"], code["doorbell.ring_if_needed"]
    following, consume = code["channel.next_completion"], code["channel.consume_completion"]
    wait_n = code["wait.wait_n"]
    get_field = PRIMITIVES["get_field"]
    shared_at = PLAIN["cqe_at"]

    def host(private: Private) -> Steps:
        posted = done = 0
        while done < posts:
            while posted < posts and posted - done < deep and (yield from prepare(HOST, 1)):
                posted += 1
                yield from fill(HOST, 1, 0, 1, posted, 0, 0, 0)
                yield from submit(HOST, 1)
                yield from ring(RINGER)
            reason = yield from wait_n(CONSUMER, WAITER, posted - done, NEVER, NEVER, NEVER)
            if reason != THRESHOLD:
                raise Violation(f"reason {reason}")
            while at := (yield from following(HOST)):
                done += 1
                if (yield from get_field(shared_at(at)[0], "user_data")) != done:
                    raise Violation(f"completion {done} was expected")
                yield from consume(HOST)
        if private.records[HOST]["outstanding"] or private.records[HOST]["signalled"]:
            raise Violation("credits are left over")

    return host


def _channel_engine(code: Source, posts: int) -> Callable[[Private], Steps]:
    take, complete = code["channel.take"], code["channel.complete"]
    park, unpark = code["doorbell.park"], code["doorbell.unpark"]
    wake_if_crossed = code["wait.wake_if_crossed"]

    def engine(private: Private) -> Steps:
        done = 0
        while done < posts:
            taken = 0
            while (slots := (yield from take(ENGINE, OUT))) != 0:
                taken += 1
                if slots != 1:
                    raise Violation(f"an operation of {slots} slots")
                number = private.words.get(OUT + 16, 0)
                yield from complete(ENGINE, 1, 0, 1, number, 0, 0, 0, 0, 0, 0)
            yield from wake_if_crossed(PRODUCER, WAKER)
            done += taken
            if taken == 0 and (yield from park(CONSUMER, NEED_DOORBELL)):
                yield from eventfd_await(BELL)
                yield from unpark(NEED_DOORBELL)

    return engine


def channel(code: Source, posts: int = 2, deep: int = 2, capacity: int = 2) -> Model:
    """The host posts and sleeps, the engine parks and completes, over `shm.channel` itself."""
    offsets = {name: code[f"channel.{name}"] for name in ("H_PRODUCER", "H_CONSUMER")}
    offsets |= {name: code[f"channel.{name}"] for name in ("E_PRODUCER", "E_CONSUMER")}
    host_consumer = consumer_record(capacity, EVENTS, EVENT_HEAD)
    engine_producer = producer_record(capacity, EVENTS, EVENT_HEAD)
    # The first member of a HOST_CHANNEL is its producer, of an ENGINE_CHANNEL its consumer, so
    # those two share an address with the record they are in: one record with the fields of both.
    own = {"outstanding": 0, "signalled": 0, "limit": capacity}
    host = {
        HOST: Uncounted("host", **producer_record(capacity), **own),
        HOST + offsets["H_CONSUMER"]: host_consumer,
        WAITER: waiter_record(),
        RINGER: ringer_record(),
    }
    own = {"inflight": 0, "silent": 0, "reserve": 0}
    engine = {
        ENGINE: Uncounted("consumer", **consumer_record(capacity), **own),
        ENGINE + offsets["E_PRODUCER"]: engine_producer,
        WAKER: waker_record(),
    }
    assert offsets["H_PRODUCER"] == offsets["E_CONSUMER"] == 0
    aliases = {
        "host": {CONSUMER: HOST + offsets["H_CONSUMER"]},
        "engine": {
            CONSUMER: ENGINE + offsets["E_CONSUMER"],
            PRODUCER: ENGINE + offsets["E_PRODUCER"],
        },
    }

    def with_aliases(name: str, program: Callable[[Private], Steps]) -> Callable[[Private], Steps]:
        def start(private: Private) -> Steps:
            for alias, target in aliases[name].items():
                private.records[alias] = private.records[target]
            yield from program(private)

        return start

    bells = {NEED_DOORBELL: 0, EVENTFD + 8 * BELL: 0}
    return Model(
        threads=[
            Thread("host", with_aliases("host", _channel_host(code, posts, deep)), host),
            Thread("engine", with_aliases("engine", _channel_engine(code, posts)), engine),
        ],
        memory={
            HEAD: 0,
            EVENT_HEAD: 0,
            **WAKE_WORDS,
            **bells,
            **slot_words(SLOTS, capacity),
            **slot_words(EVENTS, capacity),
        },
        names=names(capacity),
        rings=[
            Ring(SLOTS, capacity, "engine", "consumer"),
            Ring(EVENTS, capacity, "host", "consumer"),
        ],
        fields=CHANNEL_FIELDS,
    )
