"""What is agreed before a queue pair runs: what cannot be is refused, and its block is enough."""

from dataclasses import replace

import numpy as np
import pytest

from ppe.cycle.rnic.iwarp.spec import MULPDU_DEFAULT, QpSpec
from ppe.cycle.rnic.iwarp.wire import TAGGED_SIZE, UNTAGGED_SIZE
from ppe.cycle.rnic.receive import build_rq, rq_size
from shm.qp_spec import RTR_READ
from shm.verbs_numbers import WR_RDMA_WRITE
from tests.ppe.rnic.joined import QueuePair, Rnic

GOOD = QpSpec(active=False, crc=False, rtr=RTR_READ, ird=3, ord=7, mulpdu=2000)


@pytest.mark.parametrize(
    "changed",
    [
        {"mulpdu": 127},
        {"mulpdu": 65536},
        {"mulpdu": 64513, "markers_tx": True},
        {"rtr": 3},
        {"rtr": -1},
        {"ird": -1},
        {"ird": 0x3FFF},
        {"ord": 0x3FFF},
        {"sq_depth": 0},
        {"sq_depth": 1 << 15},
        {"sges_max": 0},
        {"sges_max": 11},
        {"inline_size": 1025},
        {"ird": 0},  # with a Read as RTR
        {"active": True, "ord": 0},
    ],
)
def test_what_cannot_be_is_refused(changed):
    GOOD.check()
    with pytest.raises(ValueError, match=r"outside|RTR"):
        replace(GOOD, **changed).check()


def test_a_number_below_1_is_refused():
    with pytest.raises(ValueError, match="number 0"):
        QueuePair(Rnic(), QpSpec(), number=0)


@pytest.mark.parametrize(
    "spec",
    [
        QpSpec(),
        QpSpec(markers_tx=True, mulpdu=64512),
        QpSpec(sq_depth=1, ord=0, ird=0, inline_size=0),
        QpSpec(sq_depth=1000, ord=100, ird=100, inline_size=1000),
    ],
)
def test_a_queue_pair_stays_in_its_block(spec):
    left = QueuePair(Rnic(), spec)
    region = left.rnic.region(100_000)
    size = 100_000
    while left.try_post(WR_RDMA_WRITE, [region.piece(0, size)], remote_addr=0, rkey=1) == 0:
        size = 1000
    while left.data_to_send():
        pass
    assert len(left.completions()) == spec.sq_depth
    assert left.is_guarded


def test_the_default_segment_holds_32_kib_of_either_kind():
    assert MULPDU_DEFAULT - TAGGED_SIZE & -8 == MULPDU_DEFAULT - UNTAGGED_SIZE & -8 == 32768


@pytest.mark.parametrize("depth", [0, -1, (1 << 16) + 1])
def test_a_receive_queue_of_no_depth_is_refused(depth):
    with pytest.raises(ValueError, match="receive queue"):
        rq_size(depth)


@pytest.mark.parametrize("sges", [0, 11])
def test_a_receive_queue_of_no_pieces_is_refused(sges):
    memory = np.zeros(rq_size(4), np.uint8)
    with pytest.raises(ValueError, match="pieces"):
        build_rq(memory.ctypes.data, 4, 1, 1, sges_max=sges)
