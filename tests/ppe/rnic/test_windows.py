"""Memory windows, and work that a queue pair does on its own memory: what fails ends the stream."""

import errno

import pytest

from ppe.cycle.rnic.iwarp.core import CODE_MASK, ERROR, TERMINATE
from ppe.cycle.rnic.memory import INVALID_STAG, NOT_ASSOCIATED
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    WC_LOC_PROT_ERR,
    WC_MW_BIND_ERR,
    WC_SUCCESS,
    WC_WR_FLUSH_ERR,
    WR_BIND_MW,
    WR_LOCAL_INV,
    WR_RDMA_WRITE,
    WR_SEND,
)
from tests.ppe.rnic import core_door as door
from tests.ppe.rnic import doors
from tests.ppe.rnic.joined import CLIENT, PD, Pair, QueuePair


@pytest.fixture
def pair():
    return Pair().open()


def window_of(rnic, pd=PD):
    return rnic.memory(door.ALLOCATE_WINDOW, pd, CLIENT)


def bind(pair, region, window, *, start=0, length=10, access=ACCESS_REMOTE_READ):
    """Bind a window on the left side; its completion."""
    pair.left.post(
        WR_BIND_MW,
        bind_window=window,
        bind_lkey=region.key,
        bind_addr=region.iova + start,
        bind_length=length,
        bind_access=access,
    )
    pair.carry()
    (found,) = pair.left.completions() or pair.left.end()[-1:]
    return found


def remote(rnic, stag, iova, qp=1, access=ACCESS_REMOTE_READ):
    return doors.ask(doors.REMOTE, rnic.table, PD, qp, stag, iova, 1, access)


def test_a_window_shows_its_part_to_its_stream_only(pair):
    rnic = pair.left_rnic
    region = rnic.region(100)
    bound = bind(pair, region, window_of(rnic), start=10)["imm"]
    assert remote(rnic, bound, region.iova + 10) == region.address + 10
    assert remote(rnic, bound, region.iova + 20) < 0
    assert remote(rnic, bound, region.iova + 9) < 0
    assert remote(rnic, bound, region.iova + 10, qp=2) == -NOT_ASSOCIATED
    assert remote(rnic, bound, region.iova + 10, access=ACCESS_REMOTE_WRITE) < 0


def test_a_window_is_no_local_memory(pair):
    region = pair.left_rnic.region(100)
    bound = bind(pair, region, window_of(pair.left_rnic))["imm"]
    assert pair.left.try_post(WR_SEND, [(region.iova, 1, bound)]) == -errno.EINVAL


def test_a_window_ends_with_its_region(pair):
    rnic = pair.left_rnic
    region = rnic.region(100)
    bound = bind(pair, region, window_of(rnic))["imm"]
    assert rnic.memory(door.INVALIDATE, region.key, PD) == 0
    assert remote(rnic, bound, region.iova) == -INVALID_STAG
    assert rnic.memory(door.DEREGISTER, region.key, CLIENT) == -errno.EBUSY
    assert rnic.memory(door.DEREGISTER, bound, CLIENT) == 0
    assert rnic.memory(door.DEREGISTER, region.key, CLIENT) == 0


def test_a_window_is_bound_again_under_another_name(pair):
    rnic = pair.left_rnic
    region = rnic.region(100)
    first = bind(pair, region, window_of(rnic))["imm"]
    assert rnic.memory(door.INVALIDATE, first, PD) == 0
    second = bind(pair, region, first, start=50)["imm"]
    assert second not in (0, first)
    assert remote(rnic, first, region.iova) == -INVALID_STAG
    assert remote(rnic, second, region.iova + 50) == region.address + 50


@pytest.mark.parametrize(
    "changed",
    [
        {"start": 91},
        {"length": 0},
        {"length": -1},
        {"access": 0},
        {"access": ACCESS_LOCAL_WRITE},
        {"access": ACCESS_REMOTE_READ | ACCESS_MW_BIND},
        {"window": 12345},
        {"window": "region"},
        {"window": "foreign"},
        {"region": ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ},  # that lets no window be bound
        {"region": ACCESS_MW_BIND, "access": ACCESS_REMOTE_WRITE},
        {"pd": PD + 1},
    ],
)
def test_a_window_that_cannot_be_bound_ends_the_stream(pair, changed):
    rnic = pair.left_rnic
    access = changed.pop("region", ACCESS_LOCAL_WRITE | ACCESS_MW_BIND)
    region = rnic.region(100, access, pd=changed.pop("pd", PD))
    names = {"region": region.key, "foreign": window_of(rnic, PD + 1)}
    window = changed.pop("window", window_of(rnic))
    found = bind(pair, region, names.get(window, window), **changed)
    assert found["status"] == WC_MW_BIND_ERR
    assert pair.right.state == ERROR
    assert int(pair.right.record["terminated"]) & CODE_MASK == 0x0000
    assert region.uses == 0


def test_a_window_that_is_bound_is_not_bound_again(pair):
    region = pair.left_rnic.region(100)
    bound = bind(pair, region, window_of(pair.left_rnic))["imm"]
    assert bind(pair, region, bound)["status"] == WC_MW_BIND_ERR


def test_a_clients_windows_go_with_its_regions(pair):
    rnic = pair.left_rnic
    bind(pair, rnic.region(100), window_of(rnic))
    assert doors.ask(doors.REMOVE_CLIENT, rnic.table, CLIENT, 0, 0, 0, 0, 0) == 0


@pytest.mark.parametrize("stag", [1, "foreign", "twice"])
def test_an_stag_that_cannot_be_invalidated_ends_the_stream(pair, stag):
    rnic = pair.left_rnic
    region = rnic.region(8, pd=PD + (stag == "foreign"))
    before = pair.left.post(WR_RDMA_WRITE)
    asked = [region.key] * 2 if stag == "twice" else [stag if stag == 1 else region.key]
    tokens = [pair.left.post(WR_LOCAL_INV, invalidate_rkey=each) for each in asked]
    behind = pair.left.post(WR_SEND)
    while pair.left.data_to_send():
        pass
    assert pair.left.state == TERMINATE
    found = [(each["token"], each["status"]) for each in pair.left.completions()]
    found += [(each["token"], each["status"]) for each in pair.left.end()]
    expected = [(before, WC_SUCCESS), *[(token, WC_SUCCESS) for token in tokens[:-1]]]
    assert found == [*expected, (tokens[-1], WC_MW_BIND_ERR), (behind, WC_WR_FLUSH_ERR)]


def test_memory_that_was_invalidated_is_not_sent(pair):
    region = pair.left_rnic.region(500, fill=b"s" * 500)
    pair.left.post(WR_SEND, [region.piece()])
    assert pair.left_rnic.memory(door.INVALIDATE, region.key, PD) == 0
    assert b"ssss" not in pair.left.data_to_send()
    assert pair.left.end()[0]["status"] == WC_LOC_PROT_ERR


def test_queue_pairs_of_one_rnic_have_numbers_of_their_own(pair):
    """What a window belongs to is the number, so two of them do not share one."""
    other = QueuePair(pair.left_rnic, pair.left.spec, number=9)
    region = pair.left_rnic.region(100)
    bound = bind(pair, region, window_of(pair.left_rnic))["imm"]
    assert remote(pair.left_rnic, bound, region.iova, qp=int(other.record["number"])) < 0
