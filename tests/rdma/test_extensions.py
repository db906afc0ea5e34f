"""RFC 7306 between peers that agreed on it: atomics and immediate data; refused at the post where
they did not. Also markers, CRC off and every way of saying ready, which only MPA has.
"""

import itertools

import numpy as np
import pytest

from host.verbs import ConnParam, Rtr, SendWr
from shm.verbs_numbers import (
    WC_RECV_RDMA_WITH_IMM,
    WC_WITH_IMM,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_ATOMIC_SWAP,
    WR_IMMEDIATE,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND_WITH_IMM,
)
from tests.rdma.conftest import PROVIDER
from tests.rdma.pairs import connect, receive, send

pytestmark = pytest.mark.skipif(PROVIDER != "iwarp", reason="the software RNIC's own")
MASK_64 = (1 << 64) - 1


@pytest.fixture
def extended(sides):
    """Give two sides whose queue pairs know RFC 7306."""
    active, passive = sides
    ours, theirs = active.qp(), passive.qp()
    param = ConnParam(extensions=True)
    connect(active, passive, ours, theirs, asked=param, granted=param)
    return active, passive, ours, theirs


def word(side, at):
    """Return the 8 bytes at an offset as a number."""
    return int(side.array[at : at + 8].view("<u8")[0])


def set_word(side, at, value):
    """Write 8 bytes."""
    side.array[at : at + 8].view("<u8")[0] = value


@pytest.mark.parametrize(
    ("opcode", "compare_add", "swap", "before", "after"),
    [
        (WR_ATOMIC_FETCH_AND_ADD, 5, 0, 37, 42),
        (WR_ATOMIC_FETCH_AND_ADD, 1, 0, MASK_64, 0),
        (WR_ATOMIC_CMP_AND_SWP, 37, 99, 37, 99),
        (WR_ATOMIC_CMP_AND_SWP, 36, 99, 37, 37),
        (WR_ATOMIC_SWAP, 0, 99, 37, 99),
    ],
)
def test_an_atomic_changes_eight_bytes_and_brings_what_was_there(
    extended, opcode, compare_add, swap, before, after
):
    active, passive, ours, _ = extended
    set_word(passive, 64, before)
    wr = SendWr(
        opcode,
        [active.mr.sge(8, 8)],
        remote_addr=passive.mr.remote_addr + 64,
        rkey=passive.mr.rkey,
        compare_add=compare_add,
        swap=swap,
    )
    assert ours.post_send(wr)
    active.one().check()
    assert word(active, 8) == before
    assert word(passive, 64) == after


def test_a_write_with_immediate_uses_up_a_receive_and_says_so(extended):
    active, passive, ours, theirs = extended
    sent = active.fill(0, 5000)
    receive(passive, theirs, 0, 0, wr_id=3)
    where = {"remote_addr": passive.mr.remote_addr, "rkey": passive.mr.rkey}
    send(active, ours, 0, 5000, opcode=WR_RDMA_WRITE_WITH_IMM, imm_data=0xDEADBEEF, **where)
    active.one().check()
    came = passive.one().check()
    assert (came.wr_id, came.opcode) == (3, WC_RECV_RDMA_WITH_IMM)
    assert came.wc_flags & WC_WITH_IMM
    assert came.imm_data == 0xDEADBEEF
    assert np.array_equal(passive.array[:5000], sent)


def test_immediate_data_alone_is_eight_bytes(extended):
    active, passive, ours, theirs = extended
    receive(passive, theirs, 0, 0)
    assert ours.post_send(SendWr(WR_IMMEDIATE, imm_data=0x0123456789ABCDEF))
    active.one().check()
    assert passive.one().check().immediate == 0x0123456789ABCDEF


@pytest.mark.parametrize(
    "opcode",
    [WR_RDMA_WRITE_WITH_IMM, WR_IMMEDIATE, WR_ATOMIC_CMP_AND_SWP, WR_ATOMIC_SWAP, WR_SEND_WITH_IMM],
)
def test_what_the_peer_does_not_know_is_refused_at_the_post(joined, opcode):
    active, _, ours, _ = joined
    with pytest.raises(OSError, match="needs RFC 7306"):
        ours.post_send(SendWr(opcode, [active.mr.sge(0, 8)]))
    assert active.channel.counts["outstanding"] == 0


def test_a_send_with_immediate_does_not_exist_on_iwarp(extended):
    active, _, ours, _ = extended
    send(active, ours, 0, 8, opcode=WR_SEND_WITH_IMM)
    assert active.one().status_name == "local QP operation error"


def test_an_atomic_needs_eight_bytes_to_return_into(extended):
    active, _, ours, _ = extended
    with pytest.raises(OSError, match="8 bytes into one piece"):
        ours.post_send(SendWr(WR_ATOMIC_SWAP, [active.mr.sge(0, 4)]))


@pytest.mark.parametrize(
    ("crc", "ours_want", "theirs_want"), list(itertools.product([False, True], repeat=3))
)
def test_data_is_right_with_and_without_crc_and_markers(sides, crc, ours_want, theirs_want):
    active, passive = sides
    ours, theirs = active.qp(), passive.qp()
    asked = ConnParam(crc=crc, markers=ours_want)
    granted = ConnParam(crc=crc, markers=theirs_want)
    agreed, _ = connect(active, passive, ours, theirs, asked=asked, granted=granted)
    assert (agreed.crc, agreed.markers_rx, agreed.markers_tx) == (crc, ours_want, theirs_want)
    sent = active.fill(0, 200_001)
    where = {"remote_addr": passive.mr.remote_addr, "rkey": passive.mr.rkey}
    send(active, ours, 0, 200_001, opcode=WR_RDMA_WRITE, **where)
    receive(passive, theirs, 300_000, 5000)
    send(active, ours, 0, 5000)
    send(active, ours, 400_000, 200_001, opcode=WR_RDMA_READ, **where)
    for wc in active.take(3):
        wc.check()
    passive.one().check()
    assert np.array_equal(passive.array[:200_001], sent)
    assert np.array_equal(passive.array[300_000:305_000], sent[:5000])
    assert np.array_equal(active.array[400_000:600_001], sent)


@pytest.mark.parametrize("rtr", [Rtr.NONE, Rtr.SEND, Rtr.WRITE, Rtr.READ])
def test_every_way_of_saying_ready_works_and_uses_up_no_receive(sides, rtr):
    active, passive = sides
    ours, theirs = active.qp(), passive.qp()
    receive(passive, theirs, 0, 8, wr_id=6)
    agreed, granted = connect(active, passive, ours, theirs, asked=ConnParam(rtr=rtr))
    assert agreed.rtr == granted.rtr == rtr
    receive(active, ours, 0, 8)
    if rtr:
        passive.fill(0, 8)
        send(passive, theirs, 8, 8)
        active.one().check()
        passive.one().check()
    send(active, ours, 0, 8)
    active.one().check()
    assert passive.one().check().wr_id == 6


def test_without_peer_to_peer_mode_the_passive_side_waits_for_the_first_message(sides):
    active, passive = sides
    ours, theirs = active.qp(), passive.qp()
    connect(active, passive, ours, theirs, asked=ConnParam(rtr=Rtr.NONE))
    receive(active, ours, 0, 8)
    send(passive, theirs, 0, 8)
    assert active.nothing()
    receive(passive, theirs, 0, 8)
    send(active, ours, 0, 8)
    assert {wc.is_receive for wc in active.take(2)} == {True, False}
    passive.take(2)


def test_revision_1_connects_too(sides):
    active, passive = sides
    ours, theirs = active.qp(), passive.qp()
    asked = ConnParam(revision=1, private_data=b"old")
    agreed, granted = connect(active, passive, ours, theirs, asked=asked)
    assert (agreed.revision, granted.revision, granted.private_data) == (1, 1, b"old")
    receive(passive, theirs, 0, 8)
    send(active, ours, 0, 8)
    passive.one().check()
    active.one().check()


@pytest.mark.parametrize("mulpdu", [128, 1400, 65535])
def test_segments_may_be_as_short_or_long_as_they_can_be(sides, mulpdu):
    active, passive = sides
    ours, theirs = active.qp(), passive.qp()
    param = ConnParam(mulpdu=mulpdu)
    connect(active, passive, ours, theirs, asked=param, granted=param)
    sent = active.fill(0, 131_073)
    receive(passive, theirs, 0, 131_073)
    send(active, ours, 0, 131_073)
    active.one().check()
    passive.one().check()
    assert np.array_equal(passive.array[:131_073], sent)
