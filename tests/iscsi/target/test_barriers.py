"""What is posted to one engine holds before another's answers: barriers by themselves, with two
channels whose engine takes operations only when it is told to.
"""

import numpy as np
import pytest

import host
from host import doors as host_doors
from iscsi.target import barriers
from iscsi.target.barriers import BARRIER, LANE, LANE_SIZE
from shm.jit import entry
from shm.view import address_of

PATIENCE_S = 10


@entry("void(intp, int64)")
def raise_barriers(lanes, count):
    barriers.raise_barriers(lanes, count)


@entry("void(intp)")
def barrier_passed(lane):
    barriers.barrier_passed(lane)


@entry("boolean(intp, int64, intp)")
def others_know(lanes, count, lane):
    return barriers.others_know(lanes, count, lane)


class Two:
    """The lanes of two channels."""

    def __init__(self, channels):
        self.channels = channels
        self.records = np.zeros(2, LANE)
        for place, channel in enumerate(channels):
            self.records[place]["context"] = channel.context
        self.at = address_of(self.records)

    def fence(self, place):
        self.records[place]["fences"] += 1

    def know(self, but=None):
        """Whether all engines know, or all but one lane's."""
        return others_know(self.at, 2, 0 if but is None else self.at + LANE_SIZE * but)

    def raise_all(self):
        raise_barriers(self.at, 2)

    def outstanding(self):
        return [host_doors.outstanding(channel.context)[0] for channel in self.channels]

    def take(self, place):
        """Have the engine take what was posted, and hear of it."""
        channel = self.channels[place]
        assert channel.wait(timeout_s=PATIENCE_S).ready == 1
        (done,) = channel.poll()
        assert done.user_data == BARRIER
        barrier_passed(self.at + LANE_SIZE * place)


@pytest.fixture
def two():
    with host.connect("inline:") as engine, engine.channel() as one, engine.channel() as other:
        yield Two((one, other))


def test_without_fences_everybody_knows_and_nothing_is_posted(two):
    two.raise_all()
    assert two.know()
    assert two.outstanding() == [0, 0]


def test_a_fence_holds_the_answers_of_the_others_until_its_engine_has_taken_it(two):
    two.fence(1)
    assert not two.know(but=0)
    assert two.know(but=1), "in its own ring the order holds it"
    two.raise_all()
    assert two.outstanding() == [0, 1]
    assert not two.know(but=0)
    two.take(1)
    assert two.know()


def test_a_fence_behind_a_barrier_needs_one_of_its_own(two):
    two.fence(0)
    two.raise_all()
    two.fence(0)
    two.raise_all()
    assert two.outstanding() == [1, 0], "one at a time"
    two.take(0)
    assert not two.know(but=1)
    two.raise_all()
    two.take(0)
    assert two.know()


def test_a_barrier_without_room_is_raised_later(two):
    channel = two.channels[0]
    while channel.post_nop(1):
        pass
    two.fence(0)
    two.raise_all()
    assert two.records[0]["barrier"] == 0
    assert not two.know(but=1)
    channel.wait_n(channel.limit, timeout_s=PATIENCE_S)
    assert {done.user_data for done in channel.poll(channel.limit)} == {1}
    two.raise_all()
    two.take(0)
    assert two.know()


def test_with_one_lane_nothing_is_waited_for(two):
    two.fence(0)
    raise_barriers(two.at, 1)
    assert two.outstanding() == [0, 0]
    assert others_know(two.at, 1, 0)
