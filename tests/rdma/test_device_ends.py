"""The conformance suite where objects end under work: a channel that goes, and a listener that
rejects with a word.
"""

import pytest

from host.verbs import ConnParam, Rejected
from tests.rdma import pairs
from tests.rdma.conftest import PROVIDER
from tests.rdma.pairs import receive, send


def test_a_channel_that_goes_with_work_under_way_leaves_nothing_at_the_device(engine):
    with pairs.two_sides(engine, PROVIDER) as (active, passive):
        ours, theirs = active.qp(), passive.qp()
        pairs.connect(active, passive, ours, theirs)
        for wr_id in range(4):
            receive(active, ours, 64 * wr_id, 64, wr_id=wr_id)
        receive(passive, theirs, 0, 8)
        active.leave()
        assert passive.event().qp is theirs
        assert passive.one().flushed
    with pairs.two_sides(engine, PROVIDER) as (active, passive):
        ours, theirs = active.qp(), passive.qp()
        pairs.connect(active, passive, ours, theirs)
        receive(passive, theirs, 0, 8)
        send(active, ours, 0, 8)
        active.one().check()
        assert passive.one().check().byte_len == 8


def test_a_rejection_says_why(sides):
    active, passive = sides
    with passive.device.listen(pairs.ADDRESS) as listener, pytest.raises(Rejected) as refused:
        pairs.dial(active, active.qp(), listener, lambda request: request.reject(b"full"))
    # InfiniBand's manager pads to the size of its messages.
    assert refused.value.private_data.rstrip(b"\0") == b"full"


def test_private_data_travels_both_ways(sides):
    active, passive = sides
    asked, granted = ConnParam(private_data=b"hello"), ConnParam(private_data=b"welcome")
    ours, theirs = active.qp(), passive.qp()
    listener = passive.device.listen(pairs.ADDRESS)
    came = []

    def answer(request):
        came.append(request.private_data)
        request.accept(theirs, granted)

    try:
        told = pairs.dial(active, ours, listener, answer, asked)
    finally:
        listener.close()
    assert came[0].rstrip(b"\0") == b"hello"
    assert told.private_data.rstrip(b"\0") == b"welcome"
