"""Persistent reservations as the commands of three initiators see them, without a server
(SPC-4 §5.13): what each service action changes, whom it tells, and whom it stops.
"""

import numpy as np
import pytest

from iscsi.target.nexus import Nexus, transport_id
from iscsi.target.scsi.pr_unit import port_of
from iscsi.target.units import Target
from iscsi.wire.sense import Asc
from tests.iscsi.target.reserving import (
    CLEAR,
    CONFLICT,
    EA,
    EA_AR,
    EA_RO,
    KEYS,
    MOVE,
    PREEMPT,
    REGISTER,
    REGISTER_ANYHOW,
    RELEASE,
    RESERVE,
    TYPES,
    WE,
    WE_AR,
    WE_RO,
    Peer,
    World,
    moving,
    parameters,
    sense_code,
)


@pytest.fixture
def world():
    return World()


# --- registering --------------------------------------------------------------------------------


def test_a_key_is_registered_changed_and_given_up(world):
    a = world.a.register()
    assert a.keys == [0xA1]
    assert a.out(REGISTER, 0xA1, 0xA2).status == 0
    assert a.keys == [0xA2]
    assert a.out(REGISTER, 0xA2, 0).status == 0
    assert a.keys == []


def test_registering_names_the_key_that_is_there(world):
    assert world.a.out(REGISTER, 0x99, 0xA1).status == CONFLICT
    world.a.register()
    assert world.a.out(REGISTER, 0, 0xA2).status == CONFLICT
    assert world.a.out(REGISTER, 0x99, 0).status == CONFLICT
    assert world.a.keys == [0xA1]


def test_the_existing_key_may_be_ignored(world):
    world.a.register()
    assert world.a.out(REGISTER_ANYHOW, 0x99, 0xA2).status == 0
    assert world.a.keys == [0xA2]
    assert world.a.out(REGISTER_ANYHOW, 0x99, 0).status == 0
    assert world.a.out(REGISTER_ANYHOW, 0x99, 0).status == 0
    assert world.a.keys == []


def test_each_nexus_has_a_registration_of_its_own(world):
    for peer in world.peers:
        peer.register()
    assert world.a.keys == list(KEYS)
    world.b.out(REGISTER, 0xB2, 0)
    assert world.a.keys == [0xA1, 0xC3]


def test_the_generation_counts_registrations_but_not_reservations(world):
    a = world.a.register()
    assert a.generation == 1
    a.reserve(WE)
    a.out(RELEASE, kind=WE)
    a.out(REGISTER, 0x99, 1)  # conflicts
    assert a.generation == 1
    a.out(REGISTER, 0xA1, 0xA1)
    a.out(CLEAR)
    assert a.generation == 3


def test_a_registration_outlives_its_session(world):
    world.a.register().reserve(EA)
    world.a.nexus.detach()
    assert world.b.held == (0xA1, EA)
    assert not world.b.reads
    again = Peer(world.target, 0)
    assert again.reads
    other_port = Nexus(again.nexus.initiator_name, again.nexus.isid + 1)
    other_port.attach(world.target, None)
    again.nexus = other_port
    assert not again.reads


def test_further_ports_are_registered_by_their_transport_ids(world):
    ids = world.b.nexus.transport_id + transport_id("iqn.2026-01.org.example:absent", 7)
    tail = len(ids).to_bytes(4, "big") + ids
    assert world.a.out(REGISTER, 0, 0xA1, flags=8, tail=tail).status == 0
    assert world.a.keys == [0xA1] * 3
    assert world.b.out(RESERVE, 0xA1, kind=WE).status == 0
    assert sense_code(world.b.out(REGISTER, 0xA1, 5, flags=8, tail=tail)) == (
        Asc.INVALID_FIELD_IN_CDB
    )


@pytest.mark.parametrize(
    "ids",
    [
        b"\x45\0\0\x14" + b"iqn.2026-01.org.example:cut",
        b"\x45\0\0\x14" + b"no port name".ljust(20, b"\0"),
        b"\x05\0\0\x14" + b"iqn.2026-01.a:b".ljust(20, b"\0"),
        b"\x06\0\0\x14" + b"iqn.2026-01.a:b,i,0x1".ljust(20, b"\0"),
        bytes(24),
        b"\x45",
    ],
)
def test_a_transport_id_that_names_no_iscsi_port_registers_nobody(world, ids):
    tail = len(ids).to_bytes(4, "big") + ids
    answer = world.a.out(REGISTER, 0, 0xA1, flags=8, tail=tail)
    assert sense_code(answer) == Asc.INVALID_FIELD_IN_PARAMETER_LIST
    assert world.a.keys == []


def test_registering_for_all_ports_covers_the_others_of_the_target(world):
    world.target.portal_groups = lambda: (1, 2)
    world.a.register(flags=4)
    assert world.a.keys == [0xA1, 0xA1]
    status = world.a.ask(3)
    assert [status[at + 19] for at in (8, 8 + 24 + len(world.a.nexus.transport_id))] == [1, 2]


def test_registrations_are_bounded(world):
    ids = b"".join(transport_id("iqn.2026-01.a:b", n) for n in range(1200))
    tail = len(ids).to_bytes(4, "big") + ids
    answer = world.a.out(REGISTER, 0, 1, flags=8, tail=tail)
    assert sense_code(answer) == Asc.INSUFFICIENT_REGISTRATION_RESOURCES
    assert world.a.keys == []


# --- reserving, and whom it stops ------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_stops_exactly_whom_the_standard_says(world, kind):
    world.a.register()
    world.b.register()
    world.a.reserve(kind)
    is_shared = kind >= WE_RO
    lets_read = kind in (WE, WE_RO, WE_AR)
    assert (world.a.reads, world.a.writes) == (True, True)
    assert (world.b.reads, world.b.writes) == (is_shared or lets_read, is_shared)
    assert (world.c.reads, world.c.writes) == (lets_read, False)
    assert [peer.is_gated for peer in world.peers] == [False, not is_shared, True]


@pytest.mark.parametrize("kind", TYPES)
def test_what_only_asks_is_always_allowed(world, kind):
    world.a.register().reserve(kind)
    for cdb in (
        bytes(6),  # TEST UNIT READY
        bytes((0x12, 0, 0, 0, 96, 0)),
        bytes((0x03, 0, 0, 0, 18, 0)),
        bytes((0xA0, *bytes(8), 64, 0, 0)),
        bytes((0x25, *bytes(9))),
        bytes((0x5E, *bytes(7), 64, 0)),
    ):
        assert world.c.run(cdb).status == 0, cdb


@pytest.mark.parametrize("kind", TYPES)
def test_asking_for_modes_and_commands_is_allowed_where_reading_is(world, kind):
    world.a.register().reserve(kind)
    for cdb in (
        bytes((0x1A, 0, 0x3F, 0, 255, 0)),
        bytes((0xA3, 0x0C, *bytes(4), 0, 0, 9, 0, 0, 0)),
    ):
        assert (world.c.run(cdb).status == 0) == world.c.reads, cdb
        assert world.a.run(cdb).status == 0
    mode_select = world.c.run(bytes((0x15, 0x10, 0, 0, 0, 0)))
    assert mode_select.status == CONFLICT


def test_a_conflict_comes_before_all_unit_attentions_but_those_of_resets(world):
    world.a.register().reserve(EA)
    world.b.nexus.raise_attention(0, Asc.RESERVATIONS_RELEASED)
    assert not world.b.reads
    assert world.b.run(bytes((0x28, *bytes(9)))).status == CONFLICT
    assert sense_code(world.b.run(bytes(6))) == Asc.RESERVATIONS_RELEASED
    world.b.nexus.raise_attention(0, Asc.DEVICE_RESET_OCCURRED)
    assert sense_code(world.b.run(bytes((0x28, *bytes(9))))) == Asc.DEVICE_RESET_OCCURRED
    assert world.b.run(bytes((0x28, *bytes(9)))).status == CONFLICT


def test_a_reservation_needs_a_registration_and_its_key(world):
    assert world.a.out(RESERVE, kind=WE).status == CONFLICT
    assert world.a.out(RELEASE, kind=WE).status == CONFLICT
    world.a.register()
    assert world.a.out(RESERVE, 0x99, kind=WE).status == CONFLICT
    assert world.a.held is None


@pytest.mark.parametrize("kind", TYPES)
def test_reserving_again_is_no_error_but_otherwise_is(world, kind):
    world.a.register().reserve(kind).reserve(kind)
    world.b.register()
    other = WE if kind != WE else EA
    assert world.a.out(RESERVE, kind=other).status == CONFLICT
    expected = 0 if kind in (WE_AR, EA_AR) else CONFLICT
    assert world.b.out(RESERVE, kind=kind).status == expected
    assert world.a.held == (0 if kind in (WE_AR, EA_AR) else 0xA1, kind)


@pytest.mark.parametrize("kind", [0, 2, 4, 9, 15])
def test_an_unknown_type_or_scope_is_refused(world, kind):
    world.a.register()
    assert sense_code(world.a.out(RESERVE, kind=kind)) == Asc.INVALID_FIELD_IN_CDB
    assert sense_code(world.a.out(RESERVE, kind=WE, scope=1)) == Asc.INVALID_FIELD_IN_CDB
    assert world.a.held is None


@pytest.mark.parametrize("kind", TYPES)
def test_a_release_tells_the_registered_where_access_was_shared(world, kind):
    for peer in world.peers[:2]:
        peer.register()
    world.a.reserve(kind)
    assert world.a.out(RELEASE, kind=kind).status == 0
    assert world.b.attention() == (Asc.RESERVATIONS_RELEASED if kind >= WE_RO else None)
    assert (world.a.attention(), world.c.attention()) == (None, None)
    assert world.c.writes
    assert not any(peer.is_gated for peer in world.peers)


def test_a_release_of_another_type_is_an_error_of_the_holder_only(world):
    world.a.register().reserve(WE)
    world.b.register()
    assert sense_code(world.a.out(RELEASE, kind=EA)) == Asc.INVALID_RELEASE_OF_RESERVATION
    assert world.b.out(RELEASE, kind=EA).status == 0
    assert world.a.held == (0xA1, WE)


@pytest.mark.parametrize("kind", TYPES)
def test_unregistering_the_holder_ends_the_reservation(world, kind):
    world.a.register()
    world.b.register()
    world.a.reserve(kind)
    assert world.a.out(REGISTER, 0xA1, 0).status == 0
    if kind in (WE_AR, EA_AR):  # the other one holds it too
        assert world.b.held == (0, kind)
        assert world.b.out(REGISTER, 0xB2, 0).status == 0
    assert world.b.held is None
    told = Asc.RESERVATIONS_RELEASED if kind in (WE_RO, EA_RO) else None
    assert world.b.attention() == told


def test_clear_ends_everything_and_tells_the_registered(world):
    for peer in world.peers[:2]:
        peer.register()
    world.b.reserve(EA_RO)
    assert world.a.out(CLEAR, 0x99).status == CONFLICT
    assert world.a.out(CLEAR).status == 0
    assert (world.a.keys, world.a.held) == ([], None)
    assert world.b.attention() == Asc.RESERVATIONS_PREEMPTED
    assert world.c.attention() is None
    assert world.c.writes


# --- what is asked and how ------------------------------------------------------------------


def test_answers_are_cut_to_the_allocation_length_and_say_how_long_they_are(world):
    for peer in world.peers:
        peer.register()
    assert world.a.ask(0, 12) == bytes((0, 0, 0, 3, 0, 0, 0, 24, 0, 0, 0, 0))
    assert world.a.ask(0, 0) == b""
    world.a.reserve(WE)
    assert world.a.ask(1, 8) == bytes((0, 0, 0, 3, 0, 0, 0, 16))


def test_full_status_names_every_nexus_and_the_holder(world):
    world.a.register()
    world.b.register().reserve(EA)
    status = world.c.ask(3)
    assert int.from_bytes(status[4:8], "big") == len(status) - 8
    found, at = {}, 8
    while at < len(status):
        length = int.from_bytes(status[at + 20 : at + 24], "big")
        key = int.from_bytes(status[at : at + 8], "big")
        port = int.from_bytes(status[at + 18 : at + 20], "big")
        found[key] = (status[at + 12], status[at + 13], port, status[at + 24 : at + 24 + length])
        at += 24 + length
    assert found == {
        0xA1: (0, 0, 1, world.a.nexus.transport_id),
        0xB2: (1, EA, 1, world.b.nexus.transport_id),
    }


def test_capabilities_tell_what_can_be_stored(world, tmp_path):
    assert world.a.ask(2) == bytes((0, 8, 0x1C, 0x80, 0xEA, 1, 0, 0))
    stored = World(reservations_path=str(tmp_path / "r"))
    assert stored.a.ask(2) == bytes((0, 8, 0x1D, 0x80, 0xEA, 1, 0, 0))
    stored.a.register(flags=1)
    assert stored.a.ask(2)[3] == 0x81


@pytest.mark.parametrize("action", range(4, 32))
def test_an_unknown_service_action_of_in_is_refused(world, action):
    answer = world.a.run(bytes((0x5E, action, *bytes(5), 0, 64, 0)))
    assert sense_code(answer) == Asc.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("action", range(8, 32))
def test_an_unknown_service_action_of_out_is_refused(world, action):
    assert sense_code(world.a.out(action, 0, 1)) == Asc.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("action", range(7))
@pytest.mark.parametrize("length", [0, 23, 25, 28, 0x7FFFFFFF])
def test_a_parameter_list_of_another_length_is_refused(world, action, length):
    world.a.register()
    data = parameters(0xA1, 0).ljust(min(length, 64), b"\0")
    answer = world.a.out_raw(action, data, length=length, kind=WE)
    assert sense_code(answer) == Asc.PARAMETER_LIST_LENGTH_ERROR
    assert world.a.keys == [0xA1]


def test_less_data_than_the_cdb_promises_is_refused(world):
    answer = world.a.out_raw(REGISTER, parameters(0, 1)[:20], length=24)
    assert sense_code(answer) == Asc.PARAMETER_LIST_LENGTH_ERROR


@pytest.mark.parametrize("action", [RESERVE, RELEASE, CLEAR, PREEMPT, REGISTER_ANYHOW])
def test_ports_can_be_listed_for_register_only(world, action):
    ids = world.b.nexus.transport_id
    answer = world.a.out(action, 0, 1, flags=8, tail=len(ids).to_bytes(4, "big") + ids, kind=WE)
    assert sense_code(answer) == Asc.INVALID_FIELD_IN_PARAMETER_LIST


def test_surviving_power_loss_needs_a_place_to_store(world):
    answer = world.a.out(REGISTER, 0, 1, flags=1)
    assert sense_code(answer) == Asc.INVALID_FIELD_IN_PARAMETER_LIST
    assert world.a.keys == []


# --- as a whole -------------------------------------------------------------------------


def test_a_unit_of_two_targets_is_reserved_in_both(world):
    other = Target("iqn.2026-01.org.example:other", {5: world.unit})
    peer = Peer(other, 1)
    peer.words.clear()
    world.a.register().reserve(EA)
    assert peer.words == {5: 1}
    alike = Peer(other, 0)
    assert not alike.reads  # the same initiator port, but another target: another nexus


def test_random_commands_never_break_the_rules_between_state_and_gates(world):
    random = np.random.default_rng(11)
    for _ in range(3000):
        peer = world.peers[random.integers(3)]
        action, kind = int(random.integers(8)), int(random.choice(TYPES))
        key, action_key = (int(random.choice([0, *KEYS, 0x11])) for _ in range(2))
        if random.random() < 0.7:
            key = world.unit.reservations.state.keys.get(port_of(peer.nexus), 0)
        if action == MOVE:
            to = world.peers[random.integers(3)].nexus
            peer.out_raw(MOVE, moving(peer, to, action_key=action_key, key=key, flags=2))
        else:
            peer.out(action, key, action_key, kind=kind)
        state = world.unit.reservations.state
        assert state.holder is None or state.holder in state.keys
        assert state.held is None or state.keys
        assert 0 not in state.keys.values()
        for each in world.peers:
            each.attention()
            assert each.is_gated == world.unit.reservations.restricts(each.nexus)
            assert each.is_gated or (each.reads and each.writes)


def test_whatever_a_peer_sends_is_answered(world):
    """Random parameter lists, half of them cut from a good one: an answer, and no exception."""
    random = np.random.default_rng(23)
    ids = world.b.nexus.transport_id + world.c.nexus.transport_id
    good = parameters(0, 0xA1, flags=8, tail=len(ids).to_bytes(4, "big") + ids)
    seen = set()
    for _ in range(4000):
        data = bytearray(good if random.random() < 0.5 else random.bytes(random.integers(0, 99)))
        for _ in range(random.integers(0, 4)):
            if data:
                data[random.integers(len(data))] = random.integers(256)
        data = bytes(data[: random.integers(len(data) + 1)] if random.random() < 0.3 else data)
        length = len(data) if random.random() < 0.8 else int(random.integers(1 << 32))
        peer = world.peers[random.integers(3)]
        kind, scope = int(random.integers(16)), int(random.integers(2))
        answer = peer.out_raw(int(random.integers(8)), data, kind=kind, scope=scope, length=length)
        seen.add(int(answer.status))
        world.a.run(bytes((0x5E, *random.bytes(8), 0)))
        peer.attention()
    assert seen == {0, 2, CONFLICT}
