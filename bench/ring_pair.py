"""Two rings between two processes, one each way, in one segment: what the ring benchmarks run on.

The one rule: each process keeps its SIDE in private memory, as an engine and its client do; only
slots, heads and the words of PAIR are shared.
"""

from typing import Any, Final

import numpy as np

from host.channel import RING_CAPACITY
from shm.layout import Field, offset, record
from shm.records import (
    CONSUMER,
    NEVER,
    PRODUCER,
    SLOT,
    SLOT_SIZE,
    WAITER,
    WAKER,
    consumer_at,
    producer_at,
    waiter_at,
    waker_at,
)
from shm.segment import Segment, create, map_descriptor
from shm.view import address_of, window

CAPACITY: Final = RING_CAPACITY  # what a channel has unless its user says otherwise
BURST_MAX: Final = 64

PAIR: Final = record(
    Field("there_head", "<i8", own_span=True),
    Field("back_head", "<i8", own_span=True),
    Field("wake_at", "<i8", own_span=True),
    Field("wake_kind", "<i8"),
    Field("wake_seq", "<i4", own_span=True),
    Field("state", "<i8"),
    Field("armed", "<i8", own_span=True),  # the round whose wait is about to begin
    Field("woken", "<i8", own_span=True),  # the round whose wait has ended
    Field("woken_at_ns", "<i8"),
    Field("slept", "<i8"),  # sleeps in that wait
    size=896,
)
SIDE: Final = record(
    Field("producer", PRODUCER),
    Field("consumer", CONSUMER),
    Field("waker", WAKER),
    Field("waiter", WAITER),
    Field("pair", "<i8"),  # address of PAIR
    Field("out", (SLOT, (BURST_MAX,))),  # entries to post
    Field("in", (SLOT, (BURST_MAX,))),  # entries polled
    size=4 * 64 + 8 + 2 * BURST_MAX * SLOT_SIZE,
)
PRODUCER_AT: Final = offset(SIDE, "producer")
CONSUMER_AT: Final = offset(SIDE, "consumer")
WAKER_AT: Final = offset(SIDE, "waker")
WAITER_AT: Final = offset(SIDE, "waiter")
PAIR_AT: Final = offset(SIDE, "pair")
OUT: Final = offset(SIDE, "out")
IN: Final = offset(SIDE, "in")


def pair_size(capacity: int = CAPACITY) -> int:
    """Bytes of a segment for two rings of `capacity` slots."""
    return PAIR.itemsize + 2 * capacity * SLOT_SIZE


def make_pair(capacity: int = CAPACITY) -> Segment:
    """Make the segment; its descriptor is what the other process inherits."""
    return create(pair_size(capacity))


class Side:
    """One process's end of a pair. `first` is whether this is the side that made it."""

    def __init__(self, segment: Segment, first: bool, capacity: int = CAPACITY) -> None:
        self.segment, self.first, self.capacity = segment, first, capacity
        self._memory = np.zeros(SIDE.itemsize // 8 + 16, np.int64)
        self.address = -(-address_of(self._memory) // 128) * 128
        self.state: Any = window(self.address, 1, SIDE)[0]
        self.reset()

    @classmethod
    def inherited(cls, descriptor: int, capacity: int = CAPACITY) -> "Side":
        """Open the other end of a pair whose descriptor this process was given."""
        return cls(map_descriptor(descriptor, pair_size(capacity)), False, capacity)

    def reset(self) -> None:
        """Begin anew with empty rings. Both sides do it, the first one first, while nobody runs."""
        base = self.segment.address
        if self.first:
            self.segment.array[:] = 0
            window(base, 1, PAIR)[0]["wake_at"] = NEVER
        there, back = base + PAIR.itemsize, base + PAIR.itemsize + self.capacity * SLOT_SIZE
        mine, other = (there, back) if self.first else (back, there)
        heads = ("there_head", "back_head") if self.first else ("back_head", "there_head")
        self.state["pair"] = base
        producer = producer_at(self.address + PRODUCER_AT)[0]
        consumer = consumer_at(self.address + CONSUMER_AT)[0]
        producer["slots"], producer["head"] = mine, base + offset(PAIR, heads[0])
        consumer["slots"], consumer["head"] = other, base + offset(PAIR, heads[1])
        for record_ in (producer, consumer):
            record_["capacity"], record_["position"] = self.capacity, 0
        producer["head_seen"], consumer["head_published"] = 0, 0
        waker, waiter = waker_at(self.address + WAKER_AT)[0], waiter_at(self.address + WAITER_AT)[0]
        for word in ("wake_at", "wake_seq", "wake_kind"):
            waker[word] = waiter[word] = base + offset(PAIR, word)
        waiter["state"] = base + offset(PAIR, "state")
        waker["descriptor"], waker["checked"] = -1, 0
        for count in ("waits", "sleeps"):
            waiter[count] = 0
        waker["wakes"] = 0

    def close(self) -> None:
        """Unmap."""
        self.segment.close()
