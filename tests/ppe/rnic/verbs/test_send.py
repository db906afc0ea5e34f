"""What is posted to a verbs device arrives there as libibverbs would have it, or is refused."""

import errno

import pytest

from ppe.cycle.rnic.verbs import records, send
from shm import verbs_numbers as c
from tests.ppe.rnic.verbs import doors, fake
from tests.ppe.rnic.verbs.requests import Request

SGES = [(0x7F0000001000, 4096, 0xAABBCCDD), (0x7F0000002000, 12, 7)]
FLAGS = c.SEND_SIGNALED | c.SEND_FENCE | c.SEND_SOLICITED


def post(qp, *args, **fields):
    return doors.ask(doors.POST_SEND, qp.address, Request(*args, **fields).address, 0)


@pytest.fixture
def qp():
    return fake.QueuePair()


def test_a_send_arrives_with_its_gather_list_and_flags(qp):
    assert post(qp, c.WR_SEND, sges=SGES, flags=FLAGS, token=5) == 0
    (seen,) = qp.queue.posted
    assert seen.sges == SGES
    assert (seen.send["opcode"], seen.send["send_flags"]) == (c.WR_SEND, FLAGS)
    assert seen.send["next"] == 0


def test_every_send_has_a_position_of_its_own_in_its_wr_id(qp):
    for _ in range(3):
        assert post(qp, c.WR_SEND) == 0
    assert [int(seen.send["wr_id"]) & ~send.SEND_BIT for seen in qp.queue.posted] == [0, 1, 2]
    assert all(int(seen.send["wr_id"]) & send.SEND_BIT for seen in qp.queue.posted)


@pytest.mark.parametrize("opcode", [c.WR_RDMA_WRITE, c.WR_RDMA_READ, c.WR_RDMA_WRITE_WITH_IMM])
def test_a_write_or_read_names_the_peers_memory(qp, opcode):
    assert post(qp, opcode, sges=SGES[:1], remote_addr=-4096, rkey=0xFEDCBA98) == 0
    (seen,) = qp.queue.posted
    assert (seen.send["remote_addr"], seen.send["rkey"]) == (-4096, 0xFEDCBA98)


@pytest.mark.parametrize("opcode", [c.WR_RDMA_WRITE_WITH_IMM, c.WR_SEND_WITH_IMM])
def test_immediate_data_is_in_network_order(qp, opcode):
    assert post(qp, opcode, imm=0x01020304) == 0
    assert qp.queue.posted[0].imm_data == bytes([1, 2, 3, 4])


@pytest.mark.parametrize("opcode", [c.WR_SEND_WITH_INV, c.WR_LOCAL_INV])
def test_an_rkey_to_invalidate_is_a_number_of_this_machine(qp, opcode):
    assert post(qp, opcode, invalidate_rkey=0x01020304) == 0
    assert qp.queue.posted[0].imm_data == bytes([4, 3, 2, 1])
    assert qp.queue.posted[0].send["rkey"] == 0x01020304  # where libsiw looks, rdma-core 44


@pytest.mark.parametrize("opcode", [c.WR_ATOMIC_CMP_AND_SWP, c.WR_ATOMIC_FETCH_AND_ADD])
def test_an_atomic_has_its_operands_and_its_own_place_for_the_rkey(qp, opcode):
    fields = {"remote_addr": 0x8000, "rkey": 0x99, "compare_add": -2, "swap": 3}
    assert post(qp, opcode, sges=SGES[1:], **fields) == 0
    (seen,) = qp.queue.posted
    assert {name: int(seen.atomic[name]) for name in fields} == fields


def test_nothing_of_an_earlier_request_is_left_in_the_next_one(qp):
    post(qp, c.WR_ATOMIC_CMP_AND_SWP, remote_addr=-1, rkey=-1, compare_add=-1, swap=-1)
    post(qp, c.WR_SEND)
    seen = qp.queue.posted[1]
    assert seen.imm_data == bytes(4)
    assert {int(seen.atomic[n]) for n in ("remote_addr", "rkey", "compare_add", "swap")} == {0}


def test_inline_data_is_one_piece_without_a_key(qp):
    assert post(qp, c.WR_SEND, flags=c.SEND_INLINE, inline_address=0x5000, inline_length=64) == 0
    (seen,) = qp.queue.posted
    assert seen.sges == [(0x5000, 64, 0)]
    assert seen.send["send_flags"] == c.SEND_INLINE


def test_inline_data_of_no_bytes_has_no_piece(qp):
    assert post(qp, c.WR_SEND, flags=c.SEND_INLINE, inline_address=0x5000) == 0
    assert qp.queue.posted[0].sges == []


def test_a_window_is_bound_by_its_index_and_gets_the_next_key(qp):
    doors.ask(doors.PUT, qp.windows, 0x1234, 0x7000)
    doors.ask(doors.PUT, qp.regions, 0x55, 0x8000)
    fields = {"bind_addr": 0x10000, "bind_length": 4096, "bind_access": c.ACCESS_REMOTE_WRITE}
    assert post(qp, c.WR_BIND_MW, bind_window=0x1234FF, bind_lkey=0x55, **fields) == 0
    seen = qp.queue.posted[0].bind
    assert [int(seen[n]) for n in ("mw", "mr", "rkey")] == [0x7000, 0x8000, 0x123400]
    assert [int(seen[n]) for n in ("addr", "length", "access")] == list(fields.values())


@pytest.mark.parametrize("known", ["windows", "regions"])
def test_a_bind_of_what_is_not_the_devices_is_refused(qp, known):
    doors.ask(doors.PUT, getattr(qp, known), 0, 0x7000)
    assert post(qp, c.WR_BIND_MW, bind_window=0, bind_lkey=0) == -errno.ENOENT
    assert qp.queue.posted == []


REFUSED = [
    ({"opcode": 10}, errno.EOPNOTSUPP),
    ({"opcode": -1}, errno.EOPNOTSUPP),
    ({"opcode": c.WR_ATOMIC_SWAP}, errno.EOPNOTSUPP),
    ({"opcode": c.WR_IMMEDIATE}, errno.EOPNOTSUPP),
    ({"opcode": c.WR_ATOMIC_CMP_AND_SWP, "masked": 1}, errno.EOPNOTSUPP),
    ({"opcode": c.WR_SEND, "sges": SGES * 3}, errno.EINVAL),
    ({"opcode": c.WR_SEND, "flags": 1 << 4}, errno.EINVAL),
    ({"opcode": c.WR_SEND, "flags": c.SEND_INLINE, "inline_length": 65}, errno.EINVAL),
    ({"opcode": c.WR_SEND, "flags": c.SEND_INLINE, "inline_length": -1}, errno.EINVAL),
    ({"opcode": c.WR_RDMA_READ, "flags": c.SEND_INLINE, "inline_length": 1}, errno.EINVAL),
]


@pytest.mark.parametrize(("fields", "error"), REFUSED)
def test_what_the_device_cannot_do_is_refused_and_never_reaches_it(qp, fields, error):
    assert post(qp, fields.pop("opcode"), **fields) == -error
    assert qp.queue.posted == []
    assert post(qp, c.WR_SEND) == 0  # and it costs no place in the queue


def test_an_opcode_that_the_device_lacks_is_refused():
    qp = fake.QueuePair(opcodes=1 << c.WR_SEND)
    assert post(qp, c.WR_RDMA_READ) == -errno.EOPNOTSUPP
    assert post(qp, c.WR_SEND) == 0


def test_a_full_queue_takes_no_more(qp):
    assert [post(qp, c.WR_SEND) for _ in range(9)] == [0] * 8 + [-errno.ENOMEM]
    assert len(qp.queue.posted) == 8


def test_a_queue_of_an_odd_depth_takes_exactly_that_many():
    qp = fake.QueuePair(sends=5)
    assert [post(qp, c.WR_SEND) for _ in range(6)] == [0] * 5 + [-errno.ENOMEM]


@pytest.mark.parametrize("state", [0, records.QP_ERROR])
def test_without_a_connection_nothing_is_posted(qp, state):
    qp.own["state"] = state
    assert post(qp, c.WR_SEND) == -errno.ENOTCONN
    assert qp.queue.posted == []


@pytest.mark.parametrize("sign", [1, -1])  # rxe answers with errno, siw with -errno
@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EINVAL, errno.ENOTCONN])
def test_the_devices_refusal_is_told_whatever_its_sign(qp, error, sign):
    qp.queue.state["answer"] = sign * error
    assert post(qp, c.WR_SEND) == -error


def test_reads_are_always_signalled_at_an_iwarp_device():
    qp = fake.QueuePair(iwarp=True)
    post(qp, c.WR_RDMA_READ)
    post(qp, c.WR_RDMA_WRITE)
    assert [int(seen.send["send_flags"]) for seen in qp.queue.posted] == [c.SEND_SIGNALED, 0]
