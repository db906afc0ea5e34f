"""Handles to every kind of engine: in this thread with either poller, and daemons with either."""

import contextlib

import pytest

import host
import host.inline  # compiles while tests are collected, where no timeout runs
from ppe.cycle.readiness.uring import UringPoller, UringUnavailable
from tests.e2e.running import RunningEngine, environment_of

INLINE = tuple(
    f"inline:?readiness={readiness}&idle={idle}"
    for readiness in ("io_uring", "epoll")
    for idle in ("sleep", "spin")
)
DAEMONS = ("daemon:io_uring", "daemon:epoll")


def has_io_uring():
    """Say whether this kernel offers what the io_uring poller needs."""
    with contextlib.suppress(UringUnavailable):
        UringPoller().close()
        return True
    return False


@pytest.fixture(scope="session")
def daemons(tmp_path_factory):
    """Start a daemon per poller when it is first asked for; stop them at the end."""
    with contextlib.ExitStack() as stack:
        started = {}

        def get(readiness):
            if readiness not in started:
                directory = tmp_path_factory.mktemp(readiness)
                started[readiness] = stack.enter_context(
                    RunningEngine(directory, "--readiness", readiness)
                )
            return started[readiness]

        yield get


def connected(kind, daemons, stack):
    """Connect to the engine that `kind` names and leave the undoing on `stack`."""
    if kind.startswith("inline:"):
        return stack.enter_context(host.connect(kind))
    engine = daemons(kind.partition(":")[2])
    before = engine.levels()
    stack.callback(lambda: engine.assert_settles_at(before))
    stack.enter_context(environment_of(engine))
    return stack.enter_context(host.connect(engine.name))


@pytest.fixture(params=[*INLINE, *DAEMONS])
def kind(request, daemons):
    """Name each kind of engine, its daemon started."""
    if "io_uring" in request.param and not has_io_uring():
        pytest.skip("io_uring is not offered here")
    if request.param.startswith("daemon:"):
        daemons(request.param.partition(":")[2])
    return request.param


@pytest.fixture
def handle(kind, daemons):
    """Give a handle to each kind of engine."""
    with contextlib.ExitStack() as stack:
        yield connected(kind, daemons, stack)


@pytest.fixture
def channel(handle):
    """Give a channel of it; fails if a post was left without its completion."""
    with handle.channel() as channel:
        yield channel
        channel.poll()
        assert channel.counts["outstanding"] == 0
        assert channel.outstanding == 0


@pytest.fixture
def pair(channel):
    """Give two connected endpoints of one channel."""
    listener, port = channel.listen("127.0.0.1", 0)
    client = channel.connect("127.0.0.1", port)
    server, _ = channel.accept(listener, timeout_s=10)
    channel.close_endpoint(listener)
    yield client, server
    for endpoint in (client, server):
        channel.close_endpoint(endpoint)
