"""The same posts and polls from compiled code: one nopython worker drives both ends."""

import numpy as np
import pytest

from host.native import flush
from host.verbs.native import (
    COMPLETION,
    EVENT,
    next_wc,
    poll_cq,
    post_recv_list,
    post_send,
    post_send_list,
)
from host.verbs.records import SGE, WC, device_at, wc_at
from shm.jit import entry
from shm.libc import monotonic_ns
from shm.verbs_numbers import (
    SEND_SIGNALED,
    WC_RECV,
    WC_WR_FLUSH_ERR,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
)
from tests.rdma.pairs import WAIT_S, receive

WC_SIZE = WC.itemsize
_EINVAL = -22


@entry("int64(intp, intp, intp, intp, intp, int64, intp, int64)")
def talk(
    device: int, qp: int, peer: int, rq: int, sges: int, rounds: int, wc: int, deadline_ns: int
) -> int:
    """Send from a gather list of two, receive into one of one, `rounds` times. Bytes received."""
    total = 0
    for number in range(rounds):
        if post_recv_list(rq, 1000 + number, sges + 32, 1) != 1:
            return -1
        flush(device_at(peer)[0]["context"])
        if post_send_list(qp, WR_SEND, SEND_SIGNALED, number, sges, 2, 0, 0, 0) != 1:
            return -2
        flush(device_at(device)[0]["context"])
        sent, came = 0, 0
        while sent + came < 2:
            if poll_cq(device, wc, 1, 48) == 1:
                if wc_at(wc)[0]["status"] != 0 or wc_at(wc)[0]["wr_id"] != number:
                    return -3
                sent += 1
            if poll_cq(peer, wc, 1, 48) == 1:
                if wc_at(wc)[0]["opcode"] != WC_RECV or wc_at(wc)[0]["wr_id"] != 1000 + number:
                    return -4
                total += wc_at(wc)[0]["byte_len"]
                came += 1
            if monotonic_ns() > deadline_ns:
                return -5
    return total


@entry("int64(intp, intp, intp, intp, int64, int64, int64, int64, int64)")
def move(
    device: int,
    peer: int,
    qp: int,
    wc: int,
    opcode: int,
    address: int,
    length: int,
    keys: int,
    remote: int,
) -> int:
    """One Write or Read, to its end; `keys` is lkey << 32 | rkey. Its status, or -1."""
    posted = post_send(
        qp, opcode, SEND_SIGNALED, 9, address, length, keys >> 32, remote, keys & 0xFFFFFFFF, 0
    )
    if posted != 1:
        return posted
    flush(device_at(device)[0]["context"])
    for _ in range(1 << 24):
        next_wc(peer, wc)  # An inline engine of the other side runs here.
        if next_wc(device, wc) == COMPLETION:
            return int(wc_at(wc)[0]["status"])
    return -1


@entry("int64(intp, intp, int64)")
def next_thing(device: int, wc: int, deadline_ns: int) -> int:
    """Poll until there is a completion or an event: what it is, or -1."""
    while monotonic_ns() < deadline_ns:
        kind = next_wc(device, wc)
        if kind != 0:
            return kind
    return -1


@pytest.fixture
def scratch():
    """Give memory for one work completion."""
    return np.zeros(1, WC)


def deadline():
    return monotonic_ns() + WAIT_S * 1_000_000_000


def test_a_compiled_worker_sends_and_receives(joined, scratch):
    active, passive, ours, theirs = joined
    sges = np.zeros(3, SGE)
    sges[0] = (active.mr.addr, 100, active.mr.lkey)
    sges[1] = (active.mr.addr + 4096, 28, active.mr.lkey)
    sges[2] = (passive.mr.addr, 128, passive.mr.lkey)
    active.fill(0, 8192)
    total = talk(
        active.device.address, ours.qp, passive.device.address, theirs.rq,
        sges.ctypes.data, 50, scratch.ctypes.data, deadline(),
    )  # fmt: skip
    assert total == 50 * 128
    expected = np.concatenate([active.array[:100], active.array[4096:4124]])
    assert np.array_equal(passive.array[:128], expected)
    assert ours.record[0]["sq_posted"] == ours.record[0]["sq_done"] == 50
    assert active.cq.outstanding == passive.cq.outstanding == 0


@pytest.mark.parametrize("opcode", [WR_RDMA_WRITE, WR_RDMA_READ])
def test_a_compiled_worker_moves_data(joined, scratch, opcode):
    active, passive, ours, _ = joined
    size = 100_000
    source, sink = (active, passive) if opcode == WR_RDMA_WRITE else (passive, active)
    pattern = source.fill(0, size)
    keys = active.mr.lkey << 32 | passive.mr.rkey
    keys -= (keys >> 63) << 64
    status = move(
        active.device.address, passive.device.address, ours.qp, scratch.ctypes.data, opcode,
        active.mr.addr, size, keys, passive.mr.remote_addr,
    )  # fmt: skip
    assert status == 0
    if opcode == WR_RDMA_WRITE:  # What was sent is there once a Read behind it is back.
        move(
            active.device.address, passive.device.address, ours.qp, scratch.ctypes.data,
            WR_RDMA_READ, active.mr.addr + 500_000, 8, keys, passive.mr.remote_addr,
        )  # fmt: skip
    assert np.array_equal(sink.array[:size], pattern)


def test_a_compiled_worker_sees_the_end_as_an_event_and_flushed_work(joined, scratch):
    active, passive, ours, theirs = joined
    receive(active, ours, 0, 8, wr_id=5)
    theirs.destroy()
    found = {}
    for _ in range(2):
        kind = next_thing(active.device.address, scratch.ctypes.data, deadline())
        found[kind] = scratch[0].copy()
    assert set(found) == {COMPLETION, EVENT}
    assert found[COMPLETION]["status"] == WC_WR_FLUSH_ERR
    assert found[COMPLETION]["wr_id"] == 5
    assert passive.cq.poll_cq() == []


def test_a_compiled_post_to_a_queue_pair_without_a_connection_is_refused(sides, scratch):
    active, _ = sides
    qp = active.qp()
    status = move(
        active.device.address, active.device.address, qp.qp, scratch.ctypes.data, WR_RDMA_READ,
        active.mr.addr, 8, 0, 0,
    )  # fmt: skip
    assert status == _EINVAL
