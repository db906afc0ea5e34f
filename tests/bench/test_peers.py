"""The other process of a benchmark: it answers, says why it cannot, and never stays behind."""

import os

import pytest

from bench.peers import PeerFailed, peer
from bench.ring_pair import Side, make_pair


@pytest.mark.slow
def test_a_failure_over_there_is_told_and_the_peer_goes_on():
    with peer() as other:
        with pytest.raises(PeerFailed, match="ModuleNotFoundError"):
            other.ask("prepare", module="bench.no_such_module")
        assert other.ask("prepare", module="json") == 0


@pytest.mark.slow
def test_a_peer_that_is_gone_is_noticed():
    with peer() as other:
        assert other.ask("prepare", module="json") == 0
        other._process.kill()
        other._process.wait(10)
        with pytest.raises(PeerFailed):
            other.ask("prepare", module="json")


@pytest.mark.slow
def test_no_peer_outlives_its_block():
    with peer() as other:
        pid = other.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_fresh_pair_begins_empty_on_both_sides():
    side = Side(make_pair(), True)
    side.state["producer"]["position"] = 5
    side.reset()
    assert side.state["producer"]["position"] == 0
    assert side.state["consumer"]["slots"] > side.state["producer"]["slots"]
    side.close()
