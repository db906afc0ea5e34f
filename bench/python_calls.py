"""Entries from one interpreted Python process to another: through our ring, and through iceoryx2.

Both senders write the entry's number into its 56-byte payload and hand it over; both receivers read
it back and check the order. The one rule: neither side does anything the other need not do.
"""

import ctypes
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

from bench.reference_build import ReferenceMissing
from bench.ring_pair import CAPACITY, CONSUMER_AT, IN, OUT, PAIR, PRODUCER_AT, Side
from shm.jit import entry
from shm.records import SLOT_SIZE
from shm.ring import poll, post_burst
from shm.segment import DIRECTORY
from shm.view import window

STOP: Final = -1
HELLO: Final = 0
READY, CONNECTED = 1, 2  # what the receiver says in the pair's `armed` word
WARMUP: Final = 2_000  # entries
LOOK_EVERY: Final = 512  # entries between looks at the clock
LOOK_MASK: Final = 0xFFFF  # of empty polls, likewise
READY_TIMEOUT_S: Final = 20
SILENCE_TIMEOUT_S: Final = 20
WORDS: Final = SLOT_SIZE // 8

Options = dict[str, Any]
Outcome = dict[str, float]


@entry("int64(intp, intp, int64)")
def ring_post(side: int, entries: int, count: int) -> int:
    """Post as many of `count` entries as fit. Return how many."""
    return post_burst(side + PRODUCER_AT, entries, count)


@entry("int64(intp, intp, int64)")
def ring_poll(side: int, out: int, limit: int) -> int:
    """Take up to `limit` entries. Return how many."""
    return poll(side + CONSUMER_AT, out, limit)


class Payload(ctypes.Structure):
    """What travels: as many bytes as a slot of ours carries."""

    _fields_ = (("number", ctypes.c_int64), ("rest", ctypes.c_int64 * 6))


class Meter:
    """The warm-up's end, and a bound on silence, for a receiver that counts by itself."""

    def __init__(self) -> None:
        self._start_ns, self._first = 0, 0
        self._quiet_at, self._quiet_since = -1, 0.0  # no count: the first look begins a silence

    def warm(self, count: int) -> None:
        """Note that the warm-up is over, `count` entries having come."""
        self._start_ns, self._first = time.perf_counter_ns(), count

    def nothing(self, count: int) -> None:
        """Note that after `count` entries nothing is there; TimeoutError when that lasts."""
        if count != self._quiet_at:
            self._quiet_at, self._quiet_since = count, time.monotonic()
        elif time.monotonic() - self._quiet_since > SILENCE_TIMEOUT_S:
            raise TimeoutError("the sender fell silent")

    def outcome(self, count: int) -> Outcome:
        """Entries and nanoseconds after the warm-up; `count` came in all."""
        if self._start_ns == 0:
            raise RuntimeError(f"only {count} entries came: the warm-up takes {WARMUP}")
        return {"entries": count - self._first, "ns": time.perf_counter_ns() - self._start_ns}


def _end(meter: Meter, count: int, number: int) -> Outcome:
    """Answer an entry that is not the next one: STOP ends the run, anything else is an error."""
    if number == STOP:
        return meter.outcome(count)
    raise RuntimeError(f"entry {number} came where {count + 1} was due")


def _words(side: Side, place: int, count: int) -> memoryview:
    return window(side.address + place, count * WORDS, "<i8").data


def receive_from_ring(side: Side, batch: int) -> Outcome:
    """Take entries off the ring, up to `batch` at a call, until STOP."""
    words, address, out = _words(side, IN, batch), side.address, side.address + IN
    meter = Meter()
    _say(side, READY)
    count, empty, cold = 0, 0, True
    while True:
        got = ring_poll(address, out, batch)
        if got == 0:
            empty += 1
            if empty & LOOK_MASK == 0:
                meter.nothing(count)
            continue
        for place in range(1, WORDS * got, WORDS):
            number = words[place]
            if number != count + 1:
                return _end(meter, count, number)
            count = number
        if cold and count >= WARMUP:
            meter.warm(count)
            cold = False


def send_to_ring(side: Side, batch: int, seconds: float) -> None:
    """Post numbered entries for so long, then STOP; `batch` at a call."""
    words, address, entries = _words(side, OUT, batch), side.address, side.address + OUT
    _await(side, READY)
    number, end_ns = 0, time.perf_counter_ns() + int(seconds * 1e9)
    while time.perf_counter_ns() < end_ns:
        for _ in range(max(LOOK_EVERY // batch, 1)):
            for place in range(1, WORDS * batch, WORDS):
                number += 1
                words[place] = number
            _hand_over(address, entries, batch)
    words[1] = STOP
    _hand_over(address, entries, 1)


def _hand_over(address: int, entries: int, count: int) -> None:
    done = ring_post(address, entries, count)
    while done < count:
        done += ring_post(address, entries + done * SLOT_SIZE, count - done)


def import_iceoryx2() -> Any:
    """Import the binding, its log quiet. Raises ReferenceMissing when it is not installed."""
    try:
        import iceoryx2
    except ImportError as error:
        raise ReferenceMissing("iceoryx2 is not installed: make setup-bench") from error
    iceoryx2.set_log_level_from_env_or(iceoryx2.LogLevel.Error)
    return iceoryx2


@cache
def open_service(name: str) -> tuple[Any, Any, Any]:
    """The binding, this process's node, and the service `name`, kept open from the first call on.

    The sender opens it before the receiver is told to: two that create it at once may miss each
    other. Raises ReferenceMissing.
    """
    iox = import_iceoryx2()
    config = iox.config.default()
    where = config.global_cfg
    where.prefix, where.root_path = iox.FileName.new(name), iox.Path.new(str(_folder(name)))
    node = iox.NodeBuilder.new().config(config).create(iox.ServiceType.Ipc)
    service = (
        node.service_builder(iox.ServiceName.new(name))
        .publish_subscribe(Payload)
        .enable_safe_overflow(False)
        .subscriber_max_buffer_size(CAPACITY)
        .open_or_create()
    )
    return iox, node, service


def _folder(name: str) -> Path:
    return Path(tempfile.gettempdir()) / name


def sweep_iceoryx2(name: str) -> None:
    """Remove what the binding leaves behind of service `name`; both processes are done with it."""
    open_service.cache_clear()
    shutil.rmtree(_folder(name), ignore_errors=True)
    for path in DIRECTORY.glob(f"{name}*"):
        path.unlink(missing_ok=True)


def receive_from_iceoryx2(side: Side, service: str) -> Outcome:
    """Take samples off the subscriber's queue until STOP."""
    subscriber = open_service(service)[2].subscriber_builder().create()
    meter = Meter()
    _say(side, READY)
    count, empty, cold = 0, 0, True
    while True:
        sample = subscriber.receive()
        if sample is None:
            empty += 1
            if empty & LOOK_MASK == 0:
                meter.nothing(count)
            continue
        number = sample.payload().contents.number
        sample.delete()
        if number == HELLO:
            _say(side, CONNECTED)
            continue
        if number != count + 1:
            return _end(meter, count, number)
        count = number
        if cold and count >= WARMUP:
            meter.warm(count)
            cold = False


def send_to_iceoryx2(side: Side, service: str, way: str, seconds: float) -> None:
    """Publish numbered samples for so long, then STOP; `way` is which call of the binding."""
    iox, _node, opened = open_service(service)
    publisher = (
        opened.publisher_builder()
        .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered)
        .create()
    )
    payload = Payload()
    hand_over = WAYS[way](publisher, payload)
    _await(side, READY)
    publisher.update_connections()
    # Until the receiver has opened its end, a sample that finds no room is dropped, not retried.
    _await(side, CONNECTED, hand_over)
    number, end_ns = 0, time.perf_counter_ns() + int(seconds * 1e9)
    while time.perf_counter_ns() < end_ns:
        for _ in range(LOOK_EVERY):
            number += 1
            payload.number = number
            hand_over()
    payload.number = STOP
    hand_over()


def _by_loan(publisher: Any, payload: Payload) -> Callable[[], None]:
    def hand_over() -> None:
        publisher.loan_uninit().write_payload(payload).send()

    return hand_over


def _by_copy(publisher: Any, payload: Payload) -> Callable[[], None]:
    def hand_over() -> None:
        publisher.send_copy(payload)

    return hand_over


WAYS: Final = {"loan": _by_loan, "copy": _by_copy}
RECEIVERS: Final[dict[str, Callable[..., Outcome]]] = {
    "ring": receive_from_ring,
    "iceoryx2": receive_from_iceoryx2,
}


def _say(side: Side, state: int) -> None:
    window(side.segment.address, 1, PAIR)[0]["armed"] = state


def _await(side: Side, state: int, nudge: Callable[[], None] = lambda: None) -> None:
    shared = window(side.segment.address, 1, PAIR)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while int(shared[0]["armed"]) != state:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the receiver did not say {state}")
        nudge()
        time.sleep(0.001)
