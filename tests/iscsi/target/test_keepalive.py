"""When a silent initiator is asked, and when it is given up: by a clock of the test."""

from dataclasses import dataclass

import pytest

from iscsi.target.keepalive import Keepalive, Step

INTERVAL, TIMEOUT = 100, 30


@dataclass
class Port:
    rx_pdus: int = 0
    rx_phase: int = 0
    want_address: int = 0
    want_length: int = 48
    tx_sent: int = 0
    tx_made: int = 0

    def __getitem__(self, name):
        return getattr(self, name)


class Watched:
    """A keepalive and what it looks at; `at(now)` is one look."""

    def __init__(self):
        self.port, self.keepalive = Port(), Keepalive(INTERVAL, TIMEOUT)
        assert self.at(1000) is Step.NOTHING

    def at(self, now):
        return self.keepalive.step(self.port, now)


def test_it_asks_after_the_interval_and_gives_up_after_the_timeout():
    watched = Watched()
    assert [watched.at(now) for now in (1050, 1099)] == [Step.NOTHING] * 2
    assert watched.at(1100) is Step.ASK
    assert [watched.at(now) for now in (1101, 1129)] == [Step.NOTHING] * 2
    assert watched.at(1130) is Step.GIVE_UP


@pytest.mark.parametrize("sign", ["rx_pdus", "rx_phase", "want_address", "want_length"])
@pytest.mark.parametrize("when", [1099, 1129])
def test_any_byte_received_is_a_sign_of_life(sign, when):
    watched = Watched()
    if when > 1100:
        assert watched.at(1100) is Step.ASK
    setattr(watched.port, sign, getattr(watched.port, sign) + 1)
    assert watched.at(1130) is Step.NOTHING
    assert watched.at(1229) is Step.NOTHING
    assert watched.at(1230) is Step.ASK


def test_a_peer_that_still_takes_what_is_queued_lives():
    watched = Watched()
    watched.port.tx_made = 100
    for now in range(1100, 2000, 100):
        watched.port.tx_sent += 5
        assert watched.at(now) is Step.NOTHING
    assert watched.at(2100) is Step.ASK


def test_taking_our_question_is_no_sign_of_life():
    watched = Watched()
    assert watched.at(1100) is Step.ASK
    watched.port.tx_made = watched.port.tx_sent = 1
    assert watched.at(1130) is Step.GIVE_UP


def test_without_an_interval_nothing_happens():
    keepalive = Keepalive(0, TIMEOUT)
    assert {keepalive.step(Port(), now) for now in (1, 10**9, 10**18)} == {Step.NOTHING}


def test_tags_differ_and_are_never_the_reserved_one():
    keepalive = Keepalive(INTERVAL, TIMEOUT)
    tags = [keepalive.next_tag() for _ in range(5)]
    assert len(set(tags)) == 5
    keepalive._tag = 0xFFFFFFFE
    assert keepalive.next_tag() != 0xFFFFFFFF
