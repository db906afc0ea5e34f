"""Large payloads over the software RNIC: they come straight to their place, whatever small messages
lie between them, and one that is on its way holds nothing up that goes the other way.
"""

import numpy as np
import pytest

from bench.iscsi_stages import watching
from host.verbs import ConnParam
from shm.verbs_numbers import WR_RDMA_WRITE
from tests.rdma.conftest import PROVIDER
from tests.rdma.pairs import WAIT_S, receive, send
from tests.rdma.raw_peer import SEND, call, fpdu, untagged

pytestmark = pytest.mark.skipif(PROVIDER != "iwarp", reason="about the bytes of iWARP's segments")

LARGE = 256 << 10
ROUNDS = 16
HALF = 20_000  # bytes of a segment of 32 KiB: much more is missing than is received with others


def test_payloads_come_to_their_place_with_small_messages_between_them(joined):
    active, passive, ours, theirs = joined
    wanted = active.fill(0, LARGE)
    with watching(active.engine) as engine:
        for number in range(ROUNDS):
            receive(passive, theirs, 2 * LARGE, 8, wr_id=number)
            send(
                active,
                ours,
                0,
                LARGE,
                opcode=WR_RDMA_WRITE,
                remote_addr=passive.mr.addr + LARGE,
                rkey=passive.mr.rkey,
            )
            send(active, ours, 0, 8)
            passive.one().check()
            for _ in range(2):
                active.one().check()
    assert np.array_equal(passive.array[LARGE : 2 * LARGE], wanted)
    moved = engine.per_command(1)["counters"]
    assert moved["bytes_in"] > ROUNDS * LARGE
    assert moved["bytes_placed"] > 0.75 * moved["bytes_in"]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_messages_leave_although_a_payload_stops_half_way(sides, count):
    _, passive = sides
    theirs = passive.qp()
    with passive.device.listen() as listener, call(listener, passive) as peer:
        peer.start()
        listener.get_request(WAIT_S).accept(theirs, ConnParam())
        peer.reply()
        receive(passive, theirs, 0, 8)
        peer.send(fpdu(untagged(SEND, 0, 1)))
        passive.one().check()
        receive(passive, theirs, 4096, 1 << 15, wr_id=77)
        data = np.random.default_rng(3).bytes((1 << 15) - 64)
        segment = fpdu(untagged(SEND, 0, 2, data))
        peer.send(segment[:HALF])
        assert passive.nothing(), "the message is not whole"
        for number in range(count):
            send(passive, theirs, 0, 8, wr_id=number)
        for _ in range(count):
            assert peer.next_ulpdu()[1] & 15 == SEND
        assert [wc.check().wr_id for wc in passive.take(count)] == list(range(count))
        peer.send(segment[HALF:])
        done = passive.one().check()
        assert (done.wr_id, done.byte_len) == (77, len(data))
        assert passive.array[4096 : 4096 + len(data)].tobytes() == data
