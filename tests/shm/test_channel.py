"""The completion contract: each accepted post ends in exactly one completion."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.channel import (
    CAPACITY_MAX,
    CAPACITY_MIN,
    COVERED,
    UNSIGNALLED,
    UNSOLICITED,
    channel_size,
    outstanding_limit,
)
from shm.records import CHANNEL, NEVER, SLOT_SIZE
from tests.shm import channel_doors as doors
from tests.shm.channel_doors import EVENT, OPCODE, PlainChannel

steps = st.lists(
    st.one_of(
        st.tuples(st.just("post"), st.booleans(), st.integers(1, 3)),
        st.tuples(st.just("take"), st.none(), st.none()),
        st.tuples(st.just("end"), st.booleans(), st.integers(0, 5)),
        st.tuples(st.just("notify"), st.none(), st.none()),
        st.tuples(st.just("reap"), st.none(), st.none()),
    ),
    max_size=120,
)


class Ledger:
    """What the contract says, beside a channel: who is posted, in flight, ended, and seen."""

    def __init__(self, work, event):
        self.channel = PlainChannel(work, event, ledger=True)
        self.posted, self.inflight, self.events = deque(), [], deque()
        self.next_number, self.silent, self.owed = 0, 0, 0

    def post(self, signalled, slots):
        flags = 0 if signalled else UNSIGNALLED
        if self.channel.post(self.next_number, flags, slots):
            self.posted.append((self.next_number, signalled, slots))
            self.next_number += 1
            self.owed += 1

    def take(self):
        taken = self.channel.take()
        if taken is None:
            return
        slots, wqe = taken
        number, signalled, wanted = self.posted.popleft()
        assert (int(wqe["user_data"]), slots) == (number, wanted)
        self.inflight.append((number, signalled, int(wqe["ticket"])))

    def end(self, fail, which):
        if not self.inflight:
            return
        number, signalled, ticket = self.inflight.pop(which % len(self.inflight))
        if signalled or fail:
            flags = 0 if signalled else COVERED
            doors.complete(self.channel.engine, number, ticket, -5 if fail else 0, flags)
            self.events.append((number, -5 if fail else 0, self.silent + 1))
            self.silent = 0
        else:
            doors.complete_silently(self.channel.engine)
            self.silent += 1

    def notify(self):
        if doors.notify(self.channel.engine, 1000):
            self.events.append((1000, 0, 0))

    def reap(self):
        cqe = self.channel.reap()
        if cqe is None:
            assert not self.events
            return
        number, status, released = self.events.popleft()
        assert (cqe["user_data"], cqe["status"], cqe["released"]) == (number, status, released)
        assert cqe["opcode"] == (EVENT if number == 1000 else OPCODE)
        self.owed -= released


@given(steps=steps, capacities=st.sampled_from([(8, 8), (8, 16), (32, 8), (8, 64)]))
@settings(deadline=None, max_examples=200)
def test_every_accepted_post_ends_in_exactly_one_completion(steps, capacities):
    ledger = Ledger(*capacities)
    for kind, *what in steps:
        getattr(ledger, kind)(*(value for value in what if value is not None))
        state = ledger.channel.host_state[0]
        assert state["outstanding"] == ledger.owed
        assert 0 <= ledger.owed <= outstanding_limit(capacities[1])
        assert ledger.channel.engine_state["inflight"][0] == len(ledger.inflight)
    while ledger.posted or ledger.inflight:
        ledger.take()
        ledger.end(False, 0)
        ledger.reap()
    while ledger.events:
        ledger.reap()
    state = ledger.channel.host_state[0]
    assert state["outstanding"] == ledger.silent == ledger.owed
    assert state["signalled"] == 0
    assert state["free_count"] == outstanding_limit(capacities[1])
    assert not ledger.channel.ledger["opcode"].any()


def test_a_post_that_might_find_no_event_slot_is_refused_and_changes_nothing():
    channel = PlainChannel(32, 8)
    limit = outstanding_limit(8)
    assert [channel.post(number) for number in range(limit + 1)] == [True] * limit + [False]
    before = channel.memory.tobytes()
    assert not channel.post(99)
    assert channel.memory.tobytes() == before
    assert channel.host_state["refused"][0] == 2


def test_a_full_work_ring_refuses_until_the_engine_takes():
    channel = PlainChannel(8, 64)
    assert sum(channel.post(number) for number in range(20)) == 8
    assert channel.take()[1]["user_data"] == 0
    assert channel.post(50)
    assert not channel.post(51)


def test_unsignalled_posts_are_released_by_the_next_signalled_one():
    channel = PlainChannel()
    for number in range(3):
        assert channel.post(number, UNSIGNALLED)
        channel.take()
        doors.complete_silently(channel.engine)
    assert channel.reap() is None
    assert channel.post(3)
    channel.take()
    doors.complete(channel.engine, 3, 0, 0, 0)
    assert channel.reap()["released"] == 4
    assert channel.host_state["outstanding"][0] == 0


def test_unsolicited_events_find_room_even_when_every_credit_is_used():
    channel = PlainChannel(8, 8)
    for number in range(outstanding_limit(8)):
        assert channel.post(number)
        channel.take()
    assert doors.notify(channel.engine, 1)
    event = channel.reap()
    assert (event["flags"], event["released"]) == (UNSOLICITED, 0)
    assert channel.host_state["outstanding"][0] == outstanding_limit(8)


def test_events_nobody_reaps_stop_the_channel_and_are_not_dropped():
    channel = PlainChannel(8, 8)
    told = 0
    while doors.notify(channel.engine, told):
        told += 1
        assert told <= 8
    assert told == 8
    assert not doors.notify(channel.engine, 99)
    channel.post(1)
    assert channel.take() is None
    assert [channel.reap()["user_data"] for _ in range(told)] == list(range(told))
    assert channel.take()[1]["user_data"] == 1


# --- a host that does not keep the contract ----------------------------------------------------


def overposted(channel, count):
    """Publish `count` entries in the work ring behind the library's back."""
    for position in range(count):
        slot = channel.work_slots[position % len(channel.work_slots)]
        slot["user_data"], slot["slots"] = position, 1
        slot["sequence"] = position + 1


def test_a_host_that_posts_more_than_it_may_only_fills_its_own_channel():
    channel = PlainChannel(32, 8)
    overposted(channel, 32)
    taken = []
    while (found := channel.take()) is not None:
        taken.append(int(found[1]["user_data"]))
    assert taken == list(range(len(taken)))
    assert 0 < len(taken) <= 8 - (8 >> 3)
    for number in taken:  # whatever was taken finds its event slot
        doors.complete(channel.engine, number, 0, 0, 0)
    assert channel.take() is None
    assert sorted(channel.event_slots["sequence"].tolist()) == [0] * (8 - len(taken)) + list(
        range(1, len(taken) + 1)
    )


@pytest.mark.parametrize("slots", [0, 5, 8, 255])
def test_a_slot_count_out_of_range_ends_one_operation_with_an_error(slots):
    channel = PlainChannel()
    overposted(channel, 8)  # so that the slots it claims are there
    channel.work_slots["slots"][0] = slots
    assert channel.take()[0] == -1
    assert channel.engine_state["inflight"][0] == 1
    doors.complete(channel.engine, 0, 0, -22, 0)
    assert channel.take()[0] == 1


def test_an_operation_whose_further_slots_are_not_there_ends_with_an_error():
    channel = PlainChannel()
    overposted(channel, 2)
    channel.work_slots["slots"][0] = 3
    count, wqe = channel.take()
    assert (count, wqe["user_data"]) == (-1, 0)
    assert channel.take()[0] == 1


@pytest.mark.parametrize("slots", [2, 3, 4])
def test_an_operation_of_several_slots_is_copied_whole(slots):
    channel = PlainChannel()
    for number in range(3):
        assert channel.post(number, 0, slots) or channel.take()
    channel = PlainChannel()
    for start in range(0, 12, slots):
        doors.prepare(channel.host, slots)
        for place in range(1, slots):
            channel.work_slots["user_data"][(start + place) % 8] = 100 + start + place
        doors.fill_and_submit(channel.host, start, 0, slots)
        assert channel.take()[0] == slots
        assert channel.out["user_data"][:slots].tolist() == [
            start,
            *(100 + start + place for place in range(1, slots)),
        ]
        doors.complete(channel.engine, start, 0, 0, 0)
        assert channel.reap()["user_data"] == start


def test_what_the_engine_took_does_not_change_when_the_host_writes_again():
    channel = PlainChannel()
    overposted(channel, 1)
    _, wqe = channel.take()
    channel.work_slots[:] = np.frombuffer(b"\xff" * channel.work_slots.nbytes, np.uint8).view(
        channel.work_slots.dtype
    )
    assert channel.out[0] == wqe
    assert channel.take() is None


@pytest.mark.parametrize("lie", [-1, 1, 1 << 40, -(1 << 63), (1 << 63) - 1])
def test_a_lie_about_the_event_head_makes_no_room(lie):
    channel = PlainChannel(8, 8)
    channel.shared["event_head"] = lie
    told = sum(doors.notify(channel.engine, number) for number in range(20))
    assert told <= 8 + (lie == 1)
    assert doors.event_room(channel.engine) <= 0


@given(
    noise=st.binary(min_size=0, max_size=64),
    at=st.integers(0, CHANNEL.itemsize + 16 * SLOT_SIZE - 64),
    honest=st.integers(0, 6),
)
@settings(deadline=None, max_examples=150)
def test_scribbling_over_the_shared_pages_never_breaks_the_engines_accounts(noise, at, honest):
    channel = PlainChannel(8, 8)
    for number in range(honest):
        channel.post(number)
    channel.memory[at : at + len(noise)] = np.frombuffer(noise, np.uint8)
    inflight = 0
    for _ in range(40):  # a bounded number of passes
        if channel.take() is not None:
            inflight += 1
        if inflight and _ % 3 == 0:
            doors.complete(channel.engine, 0, 0, 0, 0)
            inflight -= 1
        doors.notify(channel.engine, 0)
        mine = channel.engine_state[0]
        assert mine["inflight"] == inflight
        used = mine["producer"]["position"] - mine["producer"]["head_seen"]
        assert 0 <= used <= 8 - inflight


@pytest.mark.parametrize("ticket", [0, 3, 7, 8, 2**31, 2**32 - 1])
def test_a_ticket_that_was_not_given_out_strikes_nothing(ticket):
    channel = PlainChannel(8, 8, ledger=True)
    assert channel.post(1)
    taken = int(channel.take()[1]["ticket"])
    assert channel.ledger["opcode"][taken] == OPCODE
    if ticket == taken:
        ticket = 0
    doors.complete(channel.engine, 1, ticket, 0, 0)
    channel.reap()
    assert channel.ledger["opcode"][taken] == OPCODE
    assert channel.host_state["free_count"][0] == outstanding_limit(8) - 1


# --- set-up ------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -8, 1, 4, 12, CAPACITY_MAX * 2])
def test_a_capacity_that_cannot_be_is_refused(capacity):
    with pytest.raises(ValueError, match="work ring capacity"):
        channel_size(capacity, 8)
    with pytest.raises(ValueError, match="event ring capacity"):
        channel_size(8, capacity)


def test_a_channels_size_is_its_words_and_its_slots():
    smallest = channel_size(CAPACITY_MIN, CAPACITY_MIN)
    assert smallest == CHANNEL.itemsize + 2 * CAPACITY_MIN * SLOT_SIZE


def test_a_fresh_channel_is_not_armed_and_not_parked():
    channel = PlainChannel()
    assert channel.shared["wake_at"][0] == NEVER
    assert channel.shared["need_doorbell"][0] == 0
    assert channel.reap() is None
    assert channel.take() is None
