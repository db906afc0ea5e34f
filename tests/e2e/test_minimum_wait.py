"""An engine keeps the time of its hosts' short minimum waits (docs/decisions/0019)."""

import contextlib
import socket
import threading
import time

import pytest

import host
from tests.e2e.honest import PATIENCE_S
from tests.e2e.running import environment_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LATER_S = 0.02  # by then the host sleeps, and its minimum wait is over


@pytest.fixture
def connections(engine):
    """A channel with a receive posted on each of two connections, and their peers' sockets."""
    with (
        environment_of(engine),
        host.connect(engine.name) as handle,
        handle.channel() as channel,
        socket.create_server(("127.0.0.1", 0)) as listener,
        contextlib.ExitStack() as peers,
    ):
        sockets = []
        for number in range(2):
            endpoint = channel.connect("127.0.0.1", listener.getsockname()[1])
            sockets.append(peers.enter_context(listener.accept()[0]))
            channel.post_recv(endpoint, handle.alloc(64), number)
        yield channel, sockets


@pytest.mark.parametrize("min_wait_s", [0.0005, 0.0])
def test_who_waits_for_two_is_woken_by_the_engine_for_the_one_that_came(
    engine, connections, min_wait_s
):
    """When the wait begins nothing is there, so the host sleeps without a timer of its own."""
    channel, sockets = connections

    def send():
        time.sleep(LATER_S)
        sockets[0].sendall(b"x")

    sender = threading.Thread(target=send)
    before = engine.counters()["wakes"]
    sender.start()
    waited = channel.wait_n(2, min_wait_s=min_wait_s, timeout_s=PATIENCE_S)
    sender.join()
    assert waited == (1, "min_wait")
    assert engine.counters()["wakes"] == before + 1
