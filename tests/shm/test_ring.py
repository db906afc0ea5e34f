"""The ring against its specification: a bounded first-in first-out queue."""

import re
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm import ring
from shm.atomics import load_acquire, store_release
from shm.jit import JIT_DISABLED, nopython, python_version
from shm.records import SLOT_SIZE
from shm.view import address_of
from tests.shm import doors
from tests.shm.doors import PlainRing

CAPACITIES = [1, 2, 8, 16, 64]
LIES = [-1, 1 << 40, -(1 << 62), -(1 << 63), (1 << 63) - 1]
FORMS = {
    "compiled": (doors.post, doors.post_burst, doors.poll),
    "python": tuple(python_version(f) for f in (ring.post, ring.post_burst, ring.poll)),
}

both = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)

operations = st.lists(
    st.one_of(
        st.tuples(st.just("post"), st.integers(0, 2**62)),
        st.tuples(st.just("burst"), st.lists(st.integers(0, 2**62), min_size=1, max_size=12)),
        st.tuples(st.just("poll"), st.integers(0, 70)),
    ),
    max_size=60,
)


def lag(capacity):
    """How many consumed slots the consumer may not have handed back yet."""
    return max(capacity >> ring.HEAD_LAG_SHIFT, 1) - 1


@both
@given(capacity=st.sampled_from(CAPACITIES), steps=operations)
@settings(deadline=None, max_examples=150)
def test_ring_delivers_in_order_and_loses_nothing(form, capacity, steps):
    queue, model = PlainRing(capacity, *form), deque()
    for kind, what in steps:
        if kind == "poll":
            limit = min(what, 2 * capacity)
            assert queue.poll(limit) == [model.popleft() for _ in range(min(limit, len(model)))]
            continue
        numbers = [what] if kind == "post" else what[: 2 * capacity]
        done = int(queue.post(what)) if kind == "post" else queue.post_burst(numbers)
        model.extend(numbers[:done])
        assert len(model) <= capacity
        if done < len(numbers):  # full, as far as the producer could hear
            assert len(model) >= capacity - lag(capacity)


@given(sizes=st.lists(st.integers(1, 4), max_size=40), room=st.sampled_from([4, 8, 32]))
@settings(deadline=None)
def test_operations_of_several_slots_arrive_whole(sizes, room):
    queue, model, number = PlainRing(room), deque(), 0
    for slots in sizes:
        number += 100
        while not queue.post(number, slots):
            expected, count = model.popleft()
            assert doors.is_published(queue.consumer_at, count - 1)
            assert queue.poll(count) == [expected + 10 * place for place in range(count)]
        model.append((number, slots))
    for expected, count in model:
        assert queue.poll(count) == [expected + 10 * place for place in range(count)]
    assert queue.poll(1) == []


@both
def test_post_to_a_full_ring_changes_nothing(form):
    queue = PlainRing(8, *form)
    for number in range(8):
        assert queue.post(number)
    before = queue.slots.tobytes(), queue.producer.tobytes(), queue.head.tobytes()
    assert not queue.post(99)
    assert queue.post_burst([99, 98]) == 0
    assert (queue.slots.tobytes(), queue.producer.tobytes(), queue.head.tobytes()) == before


def test_an_operation_that_does_not_fit_whole_is_not_posted_at_all():
    queue = PlainRing(8)
    for number in range(6):
        assert queue.post(number)
    assert not queue.post(50, slots=3)
    assert queue.post(60, slots=2)
    assert queue.poll(16) == [0, 1, 2, 3, 4, 5, 60, 70]


@both
@pytest.mark.parametrize("lie", LIES)
def test_a_consumer_that_lies_about_head_cannot_make_the_producer_overwrite(form, lie):
    queue = PlainRing(8, *form)
    for number in range(8):
        assert queue.post(number)
    queue.head[0] = lie
    with np.errstate(over="ignore"):
        assert not queue.post(99)
        assert queue.post_burst([99]) == 0
    assert queue.slots["word0"].tolist() == list(range(8))


@pytest.mark.parametrize("lie", LIES)
def test_after_a_lie_an_honest_head_still_counts(lie):
    queue = PlainRing(8)
    for number in range(8):
        assert queue.post(number)
    queue.head[0] = lie
    assert not queue.post(8)
    queue.head[0] = 3
    assert [queue.post(number) for number in range(8, 12)] == [True, True, True, False]


@both
@pytest.mark.parametrize("sequence", [0, 1, 2, 17, -1, 1 << 62, -(1 << 63)])
def test_an_entry_whose_sequence_is_not_the_next_one_is_not_there(form, sequence):
    queue = PlainRing(8, *form)
    for number in range(9):
        assert queue.post(number)
        assert queue.poll(1) == [number]
    queue.slots["sequence"][1] = sequence  # the next position is 9, so 10 would publish it
    assert queue.poll(8) == []
    queue.slots["sequence"][1] = 10
    assert len(queue.poll(1)) == 1


def test_claim_and_commit_fill_a_slot_in_place():
    queue = PlainRing(8)
    assert doors.free_slots(queue.producer_at, 2) == 8
    for place in range(2):
        slot = doors.claim(queue.producer_at, place)
        assert slot == address_of(queue.slots) + place * SLOT_SIZE
        for word in range(7):
            queue.slots[f"word{word}"][place] = 5 + place + word
    assert queue.poll(2) == []
    assert not doors.is_published(queue.consumer_at, 0)
    doors.commit(queue.producer_at, 2)
    assert doors.ready(queue.consumer_at, 8) == 2
    assert queue.poll(8) == [5, 6]


def test_claim_wraps_around_the_end_of_the_slots():
    queue = PlainRing(8)
    for number in range(7):
        queue.post(number)
    queue.poll(7)
    first = address_of(queue.slots)
    assert doors.claim(queue.producer_at, 0) == first + 7 * SLOT_SIZE
    assert doors.claim(queue.producer_at, 1) == first
    assert doors.slot_of(queue.consumer_at, 1) == first


def test_head_is_published_an_eighth_of_the_ring_at_a_time_or_when_asked():
    queue = PlainRing(32)
    for number in range(32):
        assert queue.post(number)
    assert queue.poll(3) == [0, 1, 2]
    assert queue.head[0] == 0
    assert not queue.post(99)
    assert queue.poll(1) == [3]
    assert queue.head[0] == 4
    assert queue.poll(1) == [4]
    doors.publish_head(queue.consumer_at)
    assert queue.head[0] == 5


def test_ready_consumes_nothing():
    queue = PlainRing(8)
    queue.post_burst([1, 2, 3])
    assert [doors.ready(queue.consumer_at, limit) for limit in (0, 2, 8)] == [0, 2, 3]
    assert queue.poll(8) == [1, 2, 3]


def test_release_skips_entries_that_were_read_in_place():
    queue = PlainRing(8)
    queue.post_burst([1, 2, 3])
    doors.release(queue.consumer_at, 2)
    assert queue.poll(8) == [3]


# --- what the compiler makes of the copy ---------------------------------------------------------


@nopython
def take_and_publish(target, source):
    if load_acquire(source) == 77:
        ring.copy_entry(target, source)
        store_release(target, 99)


@pytest.mark.skipif(JIT_DISABLED, reason="there is no assembly without the compiler")
def test_a_wide_copy_stays_between_the_acquire_before_it_and_the_publication_after_it():
    slots = np.zeros((2, 8), np.int64)
    slots[0] = (77, *range(1, 8))
    take_and_publish(address_of(slots) + 64, address_of(slots))
    assert slots[1].tolist() == [99, *range(1, 8)]
    (text,) = take_and_publish.inspect_asm().values()
    body = re.search(r"^_ZN.*?:\n(.*?)\.Lfunc_end0", text, re.DOTALL | re.MULTILINE)[1]
    publication = body.index("$99, (%r")
    acquire = re.search(r"\t(mov|cmp)\w*\t[^\n]* ?\(%r\w+\)", body).start()
    moves = list(re.finditer(r"\tv?mov\w+\t(?:%(\w+), )?\d+\(%r\w+\)(?:, %(\w+))?\n", body))
    registers = [move[1] or move[2] for move in moves]
    assert sum("mm" in name for name in registers) >= 4  # two wide loads and two wide stores
    assert all(acquire < move.start() < publication for move in moves)
