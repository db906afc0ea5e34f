"""Persistent reservations that survive the target's end (APTPL, SPC-4 §5.13.5), and files that say
nothing or nonsense: what was reserved is never forgotten silently.
"""

import contextlib
import json

import pytest

from iscsi.target.scsi import pr_store
from iscsi.target.scsi.pr_state import EMPTY, Port, ReservationType, State
from iscsi.wire.sense import Asc, SenseKey
from tests.iscsi.target.reserving import (
    CLEAR,
    CONFLICT,
    EA,
    KEYS,
    REGISTER,
    TYPES,
    WE,
    Peer,
    World,
    sense_code,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "unit.reservations"


def world_at(path):
    """The unit after a start of the target."""
    return World(reservations_path=str(path))


@pytest.mark.parametrize("kind", TYPES)
def test_a_reservation_survives_a_restart(path, kind):
    before = world_at(path)
    before.a.register(flags=1).reserve(kind)
    before.b.register(flags=1)
    after = world_at(path)
    assert after.unit.reservations.state.keys == before.unit.reservations.state.keys
    assert after.a.held == before.a.held
    assert after.a.generation == 0
    assert (after.a.writes, after.c.writes) == (True, False)
    assert after.c.is_gated
    assert after.a.ask(2)[3] == 0x81


def test_without_aptpl_nothing_survives(path):
    before = world_at(path)
    before.a.register(flags=1).reserve(EA)
    before.b.register()  # the last registration decides
    after = world_at(path)
    assert (after.a.keys, after.a.held) == ([], None)
    assert after.c.writes


def test_nothing_is_written_for_reservations_that_need_not_survive(path):
    world = world_at(path)
    world.a.register().reserve(WE)
    assert not path.exists()


def test_what_was_given_up_does_not_come_back(path):
    before = world_at(path)
    before.a.register(flags=1).reserve(EA)
    before.a.out(CLEAR)
    after = world_at(path)
    assert (after.a.keys, after.a.held) == ([], None)


def test_nothing_changes_when_it_cannot_be_stored(path, caplog):
    world = world_at(path)
    world.a.register(flags=1)
    path.unlink()
    path.mkdir()  # a file cannot take the place of a directory
    answer = world.a.out(REGISTER, KEYS[0], 0xD4, flags=1)
    assert (answer.sense.key, sense_code(answer)) == (
        SenseKey.HARDWARE_ERROR,
        Asc.INTERNAL_TARGET_FAILURE,
    )
    assert world.a.keys == [KEYS[0]]
    assert list(path.parent.iterdir()) == [path]
    assert "could not be stored" in caplog.text


def test_a_file_that_may_be_ahead_is_written_again(path, monkeypatch):
    world = world_at(path)
    world.a.register(flags=1)

    def fail(directory):
        raise OSError(f"{directory} is on a disk that dies")

    with monkeypatch.context() as broken:
        broken.setattr(pr_store, "_sync_directory", fail)
        assert world.a.out(REGISTER, KEYS[0], 0, flags=1).status != 0
    assert world.a.keys == [KEYS[0]]
    assert world.a.out(REGISTER, KEYS[0], KEYS[0], flags=1).status == 0
    assert world_at(path).a.keys == [KEYS[0]]


@pytest.mark.parametrize("cut", [0, 1, 40, -2])
def test_a_damaged_file_shuts_the_unit_instead_of_opening_it(path, caplog, cut):
    world_at(path).a.register(flags=1).reserve(EA)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    after = world_at(path)
    assert str(path) in caplog.text
    assert all(peer.is_gated and not peer.reads and not peer.writes for peer in after.peers)
    assert sense_code(after.a.out(REGISTER, 0, 1)) == Asc.INTERNAL_TARGET_FAILURE
    assert sense_code(after.a.run(bytes((0x5E, *bytes(7), 64, 0)))) == Asc.INTERNAL_TARGET_FAILURE
    assert after.a.run(bytes((0x16, *bytes(5)))).status == CONFLICT
    assert after.a.run(bytes((0x12, 0, 0, 0, 96, 0))).status == 0
    assert path.read_bytes() == whole[:cut]


def test_every_changed_byte_of_a_file_is_noticed_or_means_the_same(path):
    before = world_at(path)
    before.a.register(flags=1).reserve(EA)
    state = pr_store.load(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in (0x01, 0x20):
            path.write_bytes(whole[:at] + bytes((whole[at] ^ bit,)) + whole[at + 1 :])
            with contextlib.suppress(pr_store.StoreError):
                assert pr_store.load(path) == state


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": 2},
        {"type": "5"},
        {"holder": None},
        {"holder": 1},
        {"holder": 0, "type": 7},
        {"registrations": []},
        {"registrations": 5},
        {"registrations": [{"key": "0x0"}]},
    ],
)
def test_a_well_formed_file_that_makes_no_sense_is_refused(path, wrong):
    before = world_at(path)
    before.a.register(flags=1).reserve(EA)
    document = json.loads(path.read_text())
    document["reservations"] |= wrong
    document["digest"] = pr_store._digest(document["reservations"])
    path.write_text(json.dumps(document))
    with pytest.raises(pr_store.StoreError):
        pr_store.load(path)


def test_a_file_of_another_version_is_refused_by_name(path):
    pr_store.save(path, EMPTY)
    document = json.loads(path.read_text())
    document["format"] = "persistent-reservations-9"
    path.write_text(json.dumps(document))
    with pytest.raises(pr_store.StoreError, match="another version"):
        pr_store.load(path)


def test_no_file_means_no_reservations(path):
    assert pr_store.load(path) == EMPTY


def test_a_file_that_cannot_be_read_is_no_missing_one(path):
    path.mkdir()
    with pytest.raises(pr_store.StoreError):
        pr_store.load(path)


def test_a_state_is_saved_and_loaded_whole(path):
    names = [pr_store.parse_initiator_port(f"iqn.2026-01.a:b{n},i,0x{n:012x}") for n in range(99)]
    keys = {Port(name, "iqn.2026-01.a:t", 1 + n % 3): n + 1 for n, name in enumerate(names)}
    held = ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY
    state = State(keys, held, list(keys)[57], persists=True)
    pr_store.save(path, state)
    assert pr_store.load(path) == state
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_session_that_comes_after_the_restart_is_known_again(path):
    world_at(path).a.register(flags=1).reserve(EA)
    after = world_at(path)
    again = Peer(after.target, 0)
    assert again.reads
    assert not again.is_gated
