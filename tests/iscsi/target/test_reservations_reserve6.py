"""RESERVE(6) and RELEASE(6) (SPC-2), and how they meet persistent reservations (SPC-4 §5.13.3)."""

import pytest

from iscsi.wire.sense import Asc
from tests.iscsi.target.reserving import CONFLICT, REGISTER, WE, World, sense_code

RESERVE_6 = bytes((0x16, 0, 0, 0, 0, 0))
RELEASE_6 = bytes((0x17, 0, 0, 0, 0, 0))
RESERVE_10 = bytes((0x56, *bytes(9)))
MODE_SENSE = bytes((0x1A, 0, 0x3F, 0, 255, 0))


@pytest.fixture
def world():
    return World()


@pytest.mark.parametrize("reserve", [RESERVE_6, RESERVE_10])
def test_a_unit_reserved_for_one_is_shut_to_the_others(world, reserve):
    assert world.a.run(reserve).status == 0
    assert world.a.run(reserve).status == 0
    assert [peer.is_gated for peer in world.peers] == [False, True, True]
    assert (world.a.reads, world.a.writes, world.a.run(MODE_SENSE).status) == (True, True, 0)
    for cdb in (reserve, bytes(6), MODE_SENSE):
        assert world.b.run(cdb).status == CONFLICT, cdb
    assert not world.b.reads
    assert world.b.run(bytes((0x12, 0, 0, 0, 96, 0))).status == 0


def test_only_the_holder_releases(world):
    world.a.run(RESERVE_6)
    assert world.b.run(RELEASE_6).status == 0
    assert not world.b.reads
    assert world.a.run(RELEASE_6).status == 0
    assert world.b.reads
    assert not any(peer.is_gated for peer in world.peers)


def test_a_lost_nexus_and_a_reset_release(world):
    world.a.run(RESERVE_6)
    world.a.nexus.detach()
    assert world.b.writes
    world.b.run(RESERVE_6)
    world.unit.reservations.reset()
    assert world.c.writes
    assert world.c.is_gated  # until nothing of the lost one is worked on any more
    world.a.nexus.end()
    assert not world.c.is_gated


def test_one_that_is_lost_with_nothing_under_way_leaves_no_gate_shut(world):
    world.a.run(RESERVE_6)
    world.a.nexus.tasks = None
    world.a.nexus.detach()
    assert not world.b.is_gated


def test_the_two_kinds_of_reservation_exclude_each_other(world):
    world.a.run(RESERVE_6)
    for peer in world.peers[:2]:
        assert peer.out(REGISTER, 0, 1).status == CONFLICT
        assert peer.run(bytes((0x5E, *bytes(7), 64, 0))).status == CONFLICT
    world.a.run(RELEASE_6)
    world.b.register()
    assert world.a.run(RESERVE_6).status == CONFLICT
    assert world.b.run(RESERVE_6).status == CONFLICT
    world.b.reserve(WE)
    assert (world.b.run(RESERVE_6).status, world.b.run(RELEASE_6).status) == (0, 0)
    assert world.a.run(RELEASE_6).status == CONFLICT
    assert world.unit.reservations.reserved_by is None


@pytest.mark.parametrize("byte", [0x01, 0x02, 0x10, 0x1E])
def test_reserving_parts_or_for_others_is_refused(world, byte):
    for operation in (0x16, 0x17):
        answer = world.a.run(bytes((operation, byte, 0, 0, 0, 0)))
        assert sense_code(answer) == Asc.INVALID_FIELD_IN_CDB
