"""A connection that stays busy leaves the poller until it rests: nothing that comes is missed."""

import select
import socket
import threading

import pytest

import host
import host.inline  # compiles while tests are collected, where no timeout runs
from ppe.cycle.hot import UNWATCH_AFTER
from ppe.cycle.records import ENDPOINT
from shm.view import window
from tests.host.conftest import INLINE, has_io_uring

PATIENCE_S = 20
ROUNDS = 4 * UNWATCH_AFTER
pytestmark = pytest.mark.timeout(120)


class Busy:
    """An inline engine with two connections to plain sockets, and time enough to stay busy."""

    def __init__(self, handle):
        self.handle, self.channel = handle, handle.channel()
        self.engine = handle.tables.engine[0]
        self.engine["hot_cycles"] = 1 << 50
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.endpoints, self.peers = [], []
            for _ in range(2):
                endpoint = self.channel.connect(*listener.getsockname())
                peer, _ = listener.accept()
                peer.settimeout(PATIENCE_S)
                self.endpoints.append(endpoint)
                self.peers.append(peer)
        self.buffer = handle.alloc(1 << 20)

    def receive(self, which=0):
        """One receive's completion."""
        assert self.channel.post_recv(self.endpoints[which], self.buffer.array[:64], 7)
        return self.channel.complete(7, PATIENCE_S)

    def exchange(self, rounds=ROUNDS, which=0):
        """So many messages that one receive each empties."""
        for _ in range(rounds):
            self.peers[which].sendall(b"ask")
            assert self.receive(which).length == 3

    def row(self, which=0):
        """The engine's own record of an endpoint."""
        rows = window(self.engine["endpoints"], self.engine["endpoint_count"], ENDPOINT)
        return rows[self.endpoints[which] & 0xFFFF]

    def is_watched(self, which=0):
        return bool(self.row(which)["watched"])

    def close(self):
        for peer in self.peers:
            peer.close()
        for endpoint in self.endpoints:
            self.channel.close_endpoint(endpoint)
        self.channel.close()
        self.buffer.free()


def read(peer, size):
    """Take so many bytes off a socket; how many there were."""
    got = 0
    while got < size and (data := peer.recv(min(size - got, 1 << 16))):
        got += len(data)
    return got


@pytest.fixture(params=INLINE)
def busy(request):
    if "io_uring" in request.param and not has_io_uring():
        pytest.skip("io_uring is not offered here")
    with host.connect(request.param) as handle:
        made = Busy(handle)
        made.sleeps = "idle=sleep" in request.param
        yield made
        made.close()


def test_a_busy_connection_leaves_the_poller(busy):
    busy.exchange(UNWATCH_AFTER - 1)
    assert busy.is_watched()
    busy.exchange(2)
    assert not busy.is_watched()


def test_another_that_gets_busy_brings_it_back(busy):
    busy.exchange()
    busy.exchange(1, which=1)
    assert busy.is_watched()
    busy.exchange(which=1)
    assert not busy.is_watched(1)
    busy.exchange(1)
    assert busy.is_watched(1)


def test_one_that_rests_is_watched_again(busy):
    busy.exchange()
    busy.engine["hot_cycles"] = 0
    busy.exchange(2)
    busy.channel.poll()
    assert busy.is_watched()


def test_a_sleeper_hears_what_comes_after_a_rest(busy):
    busy.exchange()
    later = threading.Timer(0.2, busy.peers[0].sendall, (b"late",))
    later.start()
    assert busy.receive().length == 4
    later.join()
    assert busy.is_watched() == busy.sleeps


def test_whoever_watches_the_poller_hears_of_it(busy):
    busy.exchange()
    descriptor = busy.channel.watch_descriptor()
    assert busy.is_watched()
    assert busy.channel.post_recv(busy.endpoints[0], busy.buffer.array[:64], 7)
    busy.channel.poll()
    busy.peers[0].sendall(b"news")
    assert select.select([descriptor], [], [], PATIENCE_S)[0]
    assert busy.channel.complete(7, PATIENCE_S).length == 4
    busy.exchange()
    assert busy.is_watched(), "it left the poller although somebody watches that"


def test_what_the_transport_does_not_take_at_once_is_sent_later(busy):
    busy.exchange()
    sends, size = 32, len(busy.buffer.array)
    for number in range(sends):
        assert busy.channel.post_send(busy.endpoints[0], busy.buffer, 100 + number)
    while busy.row()["writable"]:
        busy.channel.progress()
    heard = []
    listener = threading.Thread(target=lambda: heard.append(read(busy.peers[0], sends * size)))
    listener.start()
    for number in range(sends):
        busy.channel.complete(100 + number, PATIENCE_S).check()
    listener.join(PATIENCE_S)
    assert heard == [sends * size]


def test_the_end_of_one_that_is_off_the_poller_is_heard(busy):
    busy.exchange()
    busy.peers[0].close()
    assert busy.receive().length == 0


def test_sending_for_long_keeps_nothing_from_being_received(busy):
    busy.exchange()
    assert not busy.is_watched()
    busy.row()["transmit_queued"] = 1  # As if it were never through.
    busy.peers[0].sendall(b"ask")
    assert busy.receive().length == 3
    busy.row()["transmit_queued"] = 0
