"""PREEMPT, PREEMPT AND ABORT and REGISTER AND MOVE (SPC-4 §5.13.8, §5.13.11.4): how a reservation
changes hands against, or with, the will of its holder.
"""

import pytest

from iscsi.wire.sense import Asc
from tests.iscsi.target.reserving import (
    CONFLICT,
    EA,
    EA_AR,
    EA_RO,
    MOVE,
    PREEMPT,
    PREEMPT_AND_ABORT,
    RELEASE,
    WE,
    WE_AR,
    WE_RO,
    World,
    moving,
    sense_code,
)


@pytest.fixture
def world():
    return World()


# --- preempting -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [WE, EA, WE_RO, EA_RO])
def test_preempting_the_holder_takes_its_reservation(world, kind):
    for peer in world.peers:
        peer.register()
    world.b.reserve(kind)
    assert world.a.out(PREEMPT, action_key=0xB2, kind=EA_RO).status == 0
    assert world.a.held == (0xA1, EA_RO)
    assert world.a.keys == [0xA1, 0xC3]
    assert world.b.attention() == Asc.REGISTRATIONS_PREEMPTED
    assert world.c.attention() == (None if kind == EA_RO else Asc.RESERVATIONS_RELEASED)
    assert (world.b.is_gated, world.b.reads) == (True, False)
    assert world.b.ended == []


def test_preempting_a_mere_registration_leaves_the_reservation(world):
    for peer in world.peers:
        peer.register()
    world.a.reserve(WE_RO)
    assert world.b.out(PREEMPT, action_key=0xC3, kind=EA).status == 0
    assert world.a.held == (0xA1, WE_RO)
    assert world.c.attention() == Asc.REGISTRATIONS_PREEMPTED
    assert world.a.attention() is None
    assert world.c.is_gated


def test_preempting_ones_own_key_ends_ones_own_registration_too(world):
    world.a.register()
    world.b.register(key=0xA1)
    assert world.a.out(PREEMPT, action_key=0xA1, kind=WE).status == 0
    assert world.a.keys == []
    assert world.b.attention() == Asc.REGISTRATIONS_PREEMPTED
    assert world.a.attention() is None


def test_preempting_nobody_conflicts(world):
    world.a.register()
    assert world.a.out(PREEMPT, action_key=0x77, kind=WE).status == CONFLICT
    assert sense_code(world.a.out(PREEMPT, action_key=0, kind=WE)) == (
        Asc.INVALID_FIELD_IN_PARAMETER_LIST
    )
    assert world.b.out(PREEMPT, action_key=0xA1, kind=WE).status == CONFLICT


@pytest.mark.parametrize("kind", [WE_AR, EA_AR])
def test_key_zero_preempts_all_other_holders(world, kind):
    for peer in world.peers:
        peer.register()
    world.a.reserve(kind)
    assert world.b.out(PREEMPT, action_key=0xC3, kind=WE).status == 0
    assert (world.a.held, world.a.keys) == ((0, kind), [0xA1, 0xB2])
    assert world.b.out(PREEMPT, action_key=0, kind=WE).status == 0
    assert (world.b.held, world.b.keys) == ((0xB2, WE), [0xB2])
    assert world.a.attention() == Asc.REGISTRATIONS_PREEMPTED


def test_the_holder_may_change_its_type_by_preempting_itself(world):
    world.a.register().reserve(WE)
    world.b.register()
    assert world.a.out(PREEMPT, action_key=0xA1, kind=EA_RO).status == 0
    assert world.a.held == (0xA1, EA_RO)
    assert world.b.attention() == Asc.RESERVATIONS_RELEASED


def test_preempt_and_abort_ends_the_tasks_of_the_preempted_only(world):
    for peer in world.peers:
        peer.register()
    world.b.reserve(WE)
    answer = world.a.out(PREEMPT_AND_ABORT, action_key=0xB2, kind=WE)
    assert answer.status == 0
    assert answer.is_over()
    assert [peer.ended for peer in world.peers] == [[], [0], []]


@pytest.mark.parametrize("is_lost", [False, True])
def test_preempt_and_abort_is_over_when_nothing_reaches_the_medium_any_more(world, is_lost):
    for peer in world.peers:
        peer.register()
    world.b.reserve(WE)
    world.b.jobs = 1
    if is_lost:
        world.b.nexus.detach()
    answer = world.a.out(PREEMPT_AND_ABORT, action_key=0xB2, kind=WE)
    assert not answer.is_over()
    world.b.jobs = 0
    assert answer.is_over()
    world.c.nexus.detach()
    assert world.unit.reservations._lost == []


# --- moving -------------------------------------------------------------------------------------


def test_a_reservation_moves_with_a_registration_for_the_receiver(world):
    world.a.register().reserve(WE)
    assert world.a.out_raw(MOVE, moving(world.a, world.b.nexus, flags=2)).status == 0
    assert world.b.held == (0xD4, WE)
    assert world.b.keys == [0xD4]
    assert (world.b.writes, world.a.writes) == (True, False)
    assert [peer.is_gated for peer in world.peers] == [True, False, True]


def test_the_mover_may_stay_registered(world):
    world.a.register().reserve(WE)
    assert world.a.out_raw(MOVE, moving(world.a, world.b.nexus)).status == 0
    assert world.b.keys == [0xA1, 0xD4]


def test_only_a_single_holder_can_move_a_reservation(world):
    world.a.register()
    world.b.register()
    assert world.a.out_raw(MOVE, moving(world.a, world.b.nexus)).status == CONFLICT
    world.a.reserve(WE_AR)
    assert world.a.out_raw(MOVE, moving(world.a, world.b.nexus)).status == CONFLICT
    world.a.out(RELEASE, kind=WE_AR)
    assert world.b.attention() == Asc.RESERVATIONS_RELEASED
    world.b.reserve(WE)
    assert world.a.out_raw(MOVE, moving(world.a, world.b.nexus)).status == CONFLICT
    assert world.b.out_raw(MOVE, moving(world.b, world.a.nexus, key=9)).status == CONFLICT
    assert world.c.out_raw(MOVE, moving(world.c, world.a.nexus)).status == CONFLICT


def test_a_move_to_nowhere_is_refused(world):
    world.a.register().reserve(WE)
    for data in (
        moving(world.a, world.a.nexus),
        moving(world.a, world.b.nexus, action_key=0),
        moving(world.a, world.b.nexus, port=9),
    ):
        assert sense_code(world.a.out_raw(MOVE, data)) == Asc.INVALID_FIELD_IN_PARAMETER_LIST
    assert sense_code(world.a.out_raw(MOVE, moving(world.a, world.b.nexus)[:-4])) == (
        Asc.PARAMETER_LIST_LENGTH_ERROR
    )
    assert world.a.held == (0xA1, WE)
