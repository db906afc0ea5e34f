"""A receive reaches the device with its token, from a queue of its own or a shared one."""

import errno

import pytest

from ppe.cycle.rnic.verbs.send import SEND_BIT
from tests.ppe.rnic.verbs import doors, fake
from tests.ppe.rnic.verbs.requests import Request


def post(qp, **fields):
    return doors.ask(doors.POST_RECV, qp.rq, Request(**fields).address, 0)


@pytest.fixture
def qp():
    return fake.QueuePair()


def test_a_receive_arrives_with_its_token_and_gather_list(qp):
    sges = [(0x1000, 100, 0xFFFFFFFF), (0x2000, 200, 1)]
    assert post(qp, token=SEND_BIT - 1, sges=sges) == 0
    (seen,) = qp.receive_queue.posted
    assert (seen.recv["wr_id"], seen.sges) == (SEND_BIT - 1, sges)
    assert seen.recv["next"] == 0


@pytest.mark.parametrize("token", [-1, SEND_BIT])
def test_a_token_that_could_be_taken_for_a_send_is_refused(qp, token):
    assert post(qp, token=token) == -errno.EINVAL
    assert qp.receive_queue.posted == []


def test_a_gather_list_beyond_the_limit_is_refused(qp):
    assert post(qp, sges=[(0, 1, 0)] * 5) == -errno.EINVAL


def test_a_full_queue_takes_no_more(qp):
    assert [post(qp) for _ in range(5)] == [0] * 4 + [-errno.ENOMEM]


def test_what_the_device_refuses_costs_no_place(qp):
    qp.receive_queue.state["answer"] = -errno.ENOMEM
    assert post(qp) == -errno.ENOMEM
    qp.receive_queue.state["answer"] = 0
    assert [post(qp) for _ in range(4)] == [0] * 4
