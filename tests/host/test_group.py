"""One thread with channels to two engines of one daemon: one sleep, memory that both know, and
connections that move between them.
"""

import errno
import socket
import threading

import numpy as np
import pytest

import host
import ppe.control
import ppe.cycle.services.datamover  # noqa: F401 - compiles while tests are collected
from host.errors import EngineDied, EngineRefused, NothingOutstanding
from host.group import Group
from shm.operations import CANCELLED, EVENT_DISCONNECTED, FLUSHED
from shm.records import STATE_DEAD
from tests.e2e.raw import RawClient, facts
from tests.e2e.running import RunningEngine, environment_of, wait_until
from tests.host.conftest import INLINE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PATIENCE_S = 20
ENGINES = 2


@pytest.fixture(scope="module", params=["io_uring", "epoll"])
def daemon(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    flags = ("--engines", str(ENGINES), "--readiness", request.param)
    with RunningEngine(directory, *flags) as made:
        yield made


@pytest.fixture
def handle(daemon):
    before = daemon.levels()
    with environment_of(daemon), host.connect(daemon.name) as made:
        yield made
    daemon.assert_settles_at(before)


@pytest.fixture
def pair(handle):
    """Two channels, each to an engine of its own, the second beside the first."""
    first = handle.channel(engine=0)
    return first, handle.channel(engine=1, beside=first)


def test_a_sleep_ends_with_what_comes_from_any_engine(pair):
    group = Group(pair)
    for turn in range(50):
        for channel in pair:
            assert channel.post_nop(turn)
            assert group.wait(timeout_s=PATIENCE_S) == (1, "threshold")
            ((where, done),) = group.poll()
            assert where is channel
            assert done.user_data == turn


def test_a_sleeper_is_woken_by_either_engine(pair):
    group = Group(pair)
    for channel in (*pair, *reversed(pair)):
        listener, port = channel.listen("127.0.0.1", 0)
        assert channel.post_accept(listener, 7)
        made, waits = [], pair[0].counts["waits"]

        def connect_when_it_sleeps(port=port, made=made, waits=waits):
            # The first channel's waiter counts the waits of all.
            wait_until(lambda: pair[0].counts["waits"] > waits, "a wait")
            made.append(socket.create_connection(("127.0.0.1", port), PATIENCE_S))

        thread = threading.Thread(target=connect_when_it_sleeps)
        thread.start()
        assert group.wait(timeout_s=PATIENCE_S).reason == "threshold"
        thread.join(PATIENCE_S)
        ((where, done),) = group.poll()
        assert where is channel
        assert done.check().user_data == 7
        made[0].close()
        channel.close_endpoint(done.endpoint)
        channel.close_endpoint(listener)


def test_a_wait_for_nothing_ends_at_its_deadline_or_is_an_error(pair):
    group = Group(pair)
    assert group.wait(timeout_s=0.05) == (0, "deadline")
    with pytest.raises(NothingOutstanding):
        group.wait()


def test_channels_without_a_common_wake_word_are_no_group(handle, pair):
    with handle.channel(engine=1) as alone:
        with pytest.raises(ValueError, match="no common wake word"):
            Group((pair[0], alone))
        with pytest.raises(ValueError, match="no common wake word"):
            Group(tuple(reversed(pair)))
    with pytest.raises(ValueError, match="no channels"):
        Group(())


def test_a_channel_with_the_wake_word_of_others_goes_last(daemon, handle, pair):
    number = handle._channels[pair[0]][0]
    with pytest.raises(EngineRefused, match="has the wake word of others"):
        handle.order("detach", channel=number)
    with pytest.raises(ValueError, match="opened beside this channel"):
        pair[0].close()
    third = handle.channel(engine=0, beside=pair[1])  # Beside a neighbour is beside the first.
    assert third.wake_owner is pair[0]
    assert Group((*pair, third)).wait(timeout_s=0) == (0, "deadline")


def test_clients_that_come_at_once_go_to_different_engines(daemon):
    with (
        environment_of(daemon),
        host.connect(daemon.name) as one,
        host.connect(daemon.name) as other,
    ):
        assert {one.engine, other.engine} == {0, 1}


def test_there_is_no_engine_with_another_number(handle):
    assert handle.engine_count == ENGINES
    for number in (-1, ENGINES, 1 << 40):
        with pytest.raises(EngineRefused, match="there is no engine"):
            handle.channel(engine=number)


@pytest.mark.parametrize("kind", INLINE[:1])
def test_inline_there_is_one_engine(kind):
    with host.connect(kind) as handle, handle.channel(engine=0) as channel:
        assert (handle.engine, handle.engine_count) == (0, 1)
        with pytest.raises(EngineRefused, match="there is no engine 1"):
            handle.channel(engine=1)
        assert channel.post_nop(3)
        group = Group((channel,))
        assert group.wait(timeout_s=PATIENCE_S).ready == 1
        with handle.channel() as second, pytest.raises(ValueError, match="no common wake word"):
            Group((channel, second))


def echo(channel, endpoint, peer, buffer, data):
    peer.sendall(data)
    assert channel.recv(endpoint, buffer.array[: len(data)], exact=True) == len(data)
    channel.send(endpoint, buffer.array[: len(data)])
    got = b""
    while len(got) < len(data):
        got += peer.recv(1 << 16)
    assert got == data


def test_memory_is_known_to_every_engine_whenever_it_was_made(handle):
    rng = np.random.default_rng(3)
    first = handle.channel(engine=0)
    early = handle.alloc(5 << 20)
    second = handle.channel(engine=1, beside=first)
    late = handle.alloc(6 << 20)
    for channel in (first, second):
        listener, port = channel.listen("127.0.0.1", 0)
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as peer:
            endpoint, _ = channel.accept(listener, timeout_s=PATIENCE_S)
            for buffer in (early, late):
                echo(channel, endpoint, peer, buffer, rng.bytes(50_000))
            channel.close_endpoint(endpoint)
        channel.close_endpoint(listener)
    second.close()
    third = handle.channel(engine=1, beside=first)
    assert third.name_memory(late.address, len(late)) == second.name_memory(late.address, len(late))


def accepted(channel):
    listener, port = channel.listen("127.0.0.1", 0)
    peer = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    endpoint, _ = channel.accept(listener, timeout_s=PATIENCE_S)
    channel.close_endpoint(listener)
    return endpoint, peer


def test_a_connection_moves_with_the_bytes_that_have_come(handle, pair):
    buffer = handle.alloc(1 << 16)
    first, second = pair
    endpoint, peer = accepted(first)
    with peer:
        peer.sendall(b"before" * 100)
        moved = handle.move(first, endpoint, second)
        assert second.recv(moved, buffer.array[:600], exact=True) == 600
        assert buffer.array[:600].tobytes() == b"before" * 100
        echo(second, moved, peer, buffer, b"there" * 1000)
        back = handle.move(second, moved, first)
        echo(first, back, peer, buffer, b"and back" * 1000)
        # The old names name nothing.
        assert first.post_recv(endpoint, buffer.array, 9)
        assert first.complete(9, PATIENCE_S).status == -errno.EBADF
        assert second.post_recv(moved, buffer.array, 9)
        assert second.complete(9, PATIENCE_S).status == -errno.EBADF
        first.close_endpoint(back)
        assert peer.recv(1) == b""


def test_a_connection_in_use_does_not_move_and_is_unharmed(handle, pair):
    buffer = handle.alloc(4096)
    first, second = pair
    endpoint, peer = accepted(first)
    with peer:
        assert first.post_recv(endpoint, buffer.array, 5)
        with pytest.raises(EngineRefused, match="cannot be moved"):
            handle.move(first, endpoint, second)
        assert first.post_cancel(endpoint, 5, 6)
        assert first.complete(5, PATIENCE_S).status == CANCELLED
        first.complete(6, PATIENCE_S)
        echo(first, endpoint, peer, buffer, b"still here")
        listener, _ = first.listen("127.0.0.1", 0)
        for name in (listener, endpoint + 1, 12345):
            with pytest.raises(EngineRefused, match="cannot be moved"):
                handle.move(first, name, second)
        with pytest.raises(EngineRefused, match="cannot be moved"):
            handle.move(second, endpoint, first)  # It is the other channel's.
        first.close_endpoint(listener)
        first.close_endpoint(endpoint)


def test_a_peer_that_hung_up_before_the_move_is_noticed_after_it(handle, pair):
    buffer = handle.alloc(4096)
    first, second = pair
    endpoint, peer = accepted(first)
    peer.sendall(b"last words")
    peer.close()
    moved = handle.move(first, endpoint, second)
    assert second.recv(moved, buffer.array[:10], exact=True, timeout_s=PATIENCE_S) == 10
    assert second.recv(moved, buffer.array[:10], timeout_s=PATIENCE_S) == 0
    assert not [done for done in first.poll() if done.opcode == EVENT_DISCONNECTED]
    second.close_endpoint(moved)


def test_many_moves_leave_nothing_behind(daemon, handle, pair):
    before = daemon.levels()
    for turn in range(100):
        endpoint, peer = accepted(pair[turn % 2])
        with peer:
            moved = handle.move(pair[turn % 2], endpoint, pair[1 - turn % 2])
            pair[1 - turn % 2].close_endpoint(moved)
            assert peer.recv(1) == b""
    daemon.assert_settles_at(before)


def test_whatever_a_client_says_of_engines_is_answered(daemon, handle):
    with environment_of(daemon):
        client = RawClient(facts(daemon))
        nonsense = (-1, 2, 1 << 70, "1", None, [], {}, 1.5, True)
        for value in nonsense:
            assert "error" in client.call("share", region=value, engine=1)[0]
            for field in ("channel", "endpoint", "to"):
                fields = {"channel": 1, "endpoint": 1, "to": 1, field: value}
                assert "error" in client.call("move", **fields)[0]
        client.close()
    assert daemon.is_alive


def test_the_death_of_a_daemon_ends_the_sleep_for_all_its_engines(tmp_path):
    with (
        RunningEngine(tmp_path, "--engines", str(ENGINES)) as made,
        environment_of(made),
        host.connect(made.name) as handle,
    ):
        first = handle.channel(engine=0)
        second = handle.channel(engine=1, beside=first)
        group = Group((first, second))
        listener, _ = second.listen("127.0.0.1", 0)
        assert second.post_accept(listener, 1)
        killer = threading.Timer(0.2, made.kill)
        killer.start()
        assert group.wait(timeout_s=PATIENCE_S).reason == "threshold"
        ((where, done),) = group.poll()
        assert (where, done.user_data, done.status) == (second, 1, FLUSHED)
        with pytest.raises(EngineDied):
            group.wait(timeout_s=PATIENCE_S)
        killer.join()


def test_the_first_channel_that_is_told_of_the_end_ends_the_others(daemon):
    with environment_of(daemon), host.connect(daemon.name) as handle:
        first = handle.channel(engine=0)
        second = handle.channel(engine=1, beside=first)
        group = Group((first, second))
        listener, _ = second.listen("127.0.0.1", 0)
        assert second.post_accept(listener, 1)
        first.mark(STATE_DEAD)  # As the handle's watcher does, one after another.
        assert group.wait(timeout_s=PATIENCE_S).reason == "threshold"
        ((where, done),) = group.poll()
        assert (where, done.user_data, done.status) == (second, 1, FLUSHED)
        with pytest.raises(EngineDied):
            group.wait(timeout_s=PATIENCE_S)
