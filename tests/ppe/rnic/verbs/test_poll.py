"""Completions come back in the verbs manual's order, each token once, whatever the device omits."""

import errno
import random

import pytest

from ppe.cycle.rnic.verbs.send import SEND_BIT
from shm import verbs_numbers as c
from tests.ppe.rnic.verbs import doors, fake
from tests.ppe.rnic.verbs.requests import Request, completions, flushed, next_completion


@pytest.fixture
def qp():
    return fake.QueuePair()


def post(qp, token, *, opcode=c.WR_SEND, signalled=True, expected=0):
    flags = c.SEND_SIGNALED if signalled else 0
    request = Request(opcode, token=token, flags=flags)
    assert doors.ask(doors.POST_SEND, qp.address, request.address, 0) == expected


def receive(qp, token):
    request = Request(token=token)
    assert doors.ask(doors.POST_RECV, qp.rq, request.address, 0) == 0


def tokens(found):
    return [one.token for one in found]


def test_an_empty_queue_gives_nothing(qp):
    assert next_completion(qp.cq.address) is None


def test_a_completion_says_what_the_device_said(qp):
    post(qp, 77, opcode=c.WR_RDMA_READ)
    qp.cq.complete(SEND_BIT, opcode=c.WC_RDMA_READ, byte_len=4096)
    (one,) = completions(qp.cq.address)
    assert (one.token, one.status, one.opcode, one.byte_len) == (77, 0, c.WC_RDMA_READ, 4096)
    assert one.qp == qp.address


def test_unsignalled_sends_give_their_tokens_back_before_the_one_that_covers_them(qp):
    for token in (1, 2, 3):
        post(qp, token, signalled=token == 3)
    assert completions(qp.cq.address) == []
    qp.cq.complete(SEND_BIT | 2)
    found = completions(qp.cq.address)
    assert tokens(found) == [1, 2, 3]
    assert [one.flags for one in found] == [c.WC_UNSIGNALLED, c.WC_UNSIGNALLED, 0]
    assert {one.status for one in found} == {0}


def test_an_unsignalled_send_behind_a_signalled_one_stays_until_it_is_covered(qp):
    post(qp, 1)
    post(qp, 2, signalled=False)
    qp.cq.complete(SEND_BIT)
    assert tokens(completions(qp.cq.address)) == [1]
    post(qp, 3)
    qp.cq.complete(SEND_BIT | 2)
    assert tokens(completions(qp.cq.address)) == [2, 3]


def test_a_send_that_the_device_completes_before_an_earlier_read_waits_for_it():
    qp = fake.QueuePair(iwarp=True)
    post(qp, 1, opcode=c.WR_RDMA_READ, signalled=False)
    post(qp, 2)
    qp.cq.complete(SEND_BIT | 1)
    assert completions(qp.cq.address) == []
    qp.cq.complete(SEND_BIT)
    found = completions(qp.cq.address)
    assert [(one.token, one.flags) for one in found] == [(1, c.WC_UNSIGNALLED), (2, 0)]


def test_a_failure_is_shown_though_nobody_asked_to_see_a_completion(qp):
    post(qp, 1, opcode=c.WR_RDMA_WRITE, signalled=False)
    qp.cq.complete(SEND_BIT, status=c.WC_REM_ACCESS_ERR, opcode=99, vendor_err=0x101)
    (one,) = completions(qp.cq.address)
    assert (one.status, one.vendor_err, one.flags) == (c.WC_REM_ACCESS_ERR, 0x101, 0)
    assert one.opcode == c.WC_RDMA_WRITE  # the device's own word on it is not valid then


def test_after_a_failure_nothing_more_is_posted(qp):
    post(qp, 1)
    qp.cq.complete(SEND_BIT, status=c.WC_RETRY_EXC_ERR)
    completions(qp.cq.address)
    post(qp, 2, expected=-errno.ENOTCONN)


def test_a_completion_makes_room_for_as_many_posts_as_it_covers(qp):
    for token in range(8):
        post(qp, token, signalled=token == 7)
    post(qp, 8, expected=-errno.ENOMEM)
    qp.cq.complete(SEND_BIT | 7)
    assert tokens(completions(qp.cq.address)) == list(range(8))
    for token in range(8):
        post(qp, token)


def test_a_receive_says_who_sent_what_and_how_much(qp):
    receive(qp, 9)
    qp.cq.complete(9, opcode=c.WC_RECV, byte_len=123)
    (one,) = completions(qp.cq.address)
    assert (one.token, one.opcode, one.byte_len, one.qp) == (9, c.WC_RECV, 123, qp.address)


def test_immediate_data_comes_as_a_number(qp):
    receive(qp, 9)
    qp.cq.complete(
        9, opcode=c.WC_RECV_RDMA_WITH_IMM, wc_flags=c.WC_WITH_IMM, imm_data=bytes([1, 2, 3, 4])
    )
    (one,) = completions(qp.cq.address)
    assert (one.opcode, one.flags, one.imm) == (
        c.WC_RECV_RDMA_WITH_IMM,
        c.WC_WITH_IMM,
        0x01020304,
    )


def test_an_rkey_that_the_peer_invalidated_is_named(qp):
    receive(qp, 9)
    qp.cq.complete(
        9, opcode=c.WC_RECV, wc_flags=c.WC_WITH_INV | 1, imm_data=bytes([0x78, 0x56, 0x34, 0x12])
    )
    (one,) = completions(qp.cq.address)
    assert (one.invalidated_rkey, one.flags, one.imm) == (0x12345678, c.WC_WITH_INV, 0)


def test_a_flushed_receive_says_nothing_but_that(qp):
    receive(qp, 9)
    qp.cq.complete(9, status=c.WC_WR_FLUSH_ERR, byte_len=55, opcode=3, wc_flags=2)
    (one,) = completions(qp.cq.address)
    assert (one.status, one.opcode, one.byte_len, one.flags) == (
        c.WC_WR_FLUSH_ERR,
        c.WC_RECV,
        0,
        0,
    )


def test_a_receive_that_came_back_makes_room(qp):
    for token in range(4):
        receive(qp, token)
    qp.cq.complete(0, opcode=c.WC_RECV)
    completions(qp.cq.address)
    receive(qp, 4)


def test_a_completion_of_nobody_is_dropped_and_counted(qp):
    post(qp, 1)
    qp.cq.complete(SEND_BIT, qp_num=fake.QP_NUM + 1)
    qp.cq.complete(SEND_BIT | 5)
    qp.cq.complete(SEND_BIT)
    assert tokens(completions(qp.cq.address)) == [1]
    assert qp.cq.own["strays"] == 2


def test_a_completion_that_comes_twice_gives_its_token_back_once(qp):
    post(qp, 1)
    post(qp, 2)
    qp.cq.complete(SEND_BIT)
    qp.cq.complete(SEND_BIT)
    assert tokens(completions(qp.cq.address)) == [1]


def test_a_refused_post_that_the_device_completes_all_the_same_is_nobodys(qp):
    qp.queue.state["answer"] = errno.ENOTCONN
    post(qp, 1, expected=-errno.ENOTCONN)
    qp.queue.state["answer"] = 0
    post(qp, 2)
    qp.cq.complete(SEND_BIT, status=c.WC_WR_FLUSH_ERR)
    qp.cq.complete(SEND_BIT | 1, status=c.WC_WR_FLUSH_ERR)
    assert tokens(completions(qp.cq.address)) == [2]


def test_a_device_that_cannot_be_polled_says_so(qp):
    qp.cq.state["answer"] = -1
    assert next_completion(qp.cq.address) == -errno.EIO


def test_more_completions_than_one_poll_takes_all_come():
    qp = fake.QueuePair(sends=64)
    for token in range(50):
        post(qp, token)
        qp.cq.complete(SEND_BIT | token)
    assert tokens(completions(qp.cq.address)) == list(range(50))


def test_what_a_device_never_completes_is_flushed_in_order(qp):
    post(qp, 1, signalled=False)
    post(qp, 2)
    post(qp, 3)
    qp.cq.complete(SEND_BIT | 1)
    assert tokens(completions(qp.cq.address)) == [1, 2]
    post(qp, 4, signalled=False)
    found = flushed(qp.address)
    assert [(one.token, one.status) for one in found] == [
        (3, c.WC_WR_FLUSH_ERR),
        (4, c.WC_WR_FLUSH_ERR),
    ]
    assert flushed(qp.address) == []


@pytest.mark.parametrize("solicited_only", [0, 1])
def test_a_notification_is_asked_for_as_wished(qp, solicited_only):
    assert doors.ask(doors.REQ_NOTIFY, qp.cq.address, solicited_only, 0) == 0
    assert qp.cq.state["asked"] == solicited_only + 1


def test_a_notification_that_is_refused_is_told(qp):
    qp.cq.state["answer"] = errno.EBADF
    assert doors.ask(doors.REQ_NOTIFY, qp.cq.address, 0, 0) == -errno.EBADF


@pytest.mark.parametrize("seed", range(20))
def test_tokens_come_back_once_and_in_order_under_any_mixture(seed):
    """A device that completes reads late, sends at once, and unsignalled ones never."""
    chance, qp = random.Random(seed), fake.QueuePair(sends=16, iwarp=True)
    sent, back, late = [], [], []

    def complete_reads():
        chance.shuffle(late)
        for place in late:
            qp.cq.complete(SEND_BIT | place)
        late.clear()

    def take_back():
        back.extend(tokens(completions(qp.cq.address)))
        assert back == sent[: len(back)]
        qp.cq.state["waiting"] = qp.cq.state["taken"] = 0

    for position in range(60):
        if len(sent) - len(back) == 16 or chance.random() < 0.3:
            complete_reads()
            take_back()
        is_read = chance.random() < 0.4
        signalled = chance.random() < 0.5 or position % 8 == 7
        post(qp, position, opcode=c.WR_RDMA_READ if is_read else c.WR_SEND, signalled=signalled)
        sent.append(position)
        if is_read:
            late.append(position)
        elif signalled:
            qp.cq.complete(SEND_BIT | position)
        take_back()
    complete_reads()
    take_back()
    back += tokens(flushed(qp.address))
    assert back == sent
