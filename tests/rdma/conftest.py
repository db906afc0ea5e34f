"""The engines and the RNICs that the conformance suite runs against: a daemon that sleeps and an
engine in this thread, with the software RNIC, or with another provider that `PPE_RDMA_PROVIDER`
names (a device that a provider of its own has added).
"""

import contextlib
import os

import pytest

import host
import host.inline  # compiles while tests are collected, where no timeout runs
import host.verbs
from ppe.cycle.services import rdma  # noqa: F401 - likewise, and for the daemon's cache
from tests.e2e.running import RunningEngine, environment_of
from tests.rdma import pairs

PROVIDER = os.environ.get("PPE_RDMA_PROVIDER", "iwarp")
KINDS = ("inline", "daemon")
iwarp_only = pytest.mark.skipif(PROVIDER != "iwarp", reason="about the bytes of iWARP's segments")


@pytest.fixture(scope="session")
def daemon(tmp_path_factory):
    """Start one daemon for the whole session."""
    with RunningEngine(tmp_path_factory.mktemp("rdma")) as engine:
        yield engine


@pytest.fixture(params=KINDS)
def kind(request):
    """Name each kind of engine."""
    if request.param == "daemon":
        request.getfixturevalue("daemon")
    return request.param


@pytest.fixture
def engine(kind, request):
    """Give a handle to each kind of engine; a daemon must settle at what it held before."""
    with contextlib.ExitStack() as stack:
        if kind == "inline":
            yield stack.enter_context(host.connect("inline:"))
            return
        running = request.getfixturevalue("daemon")
        before = running.levels()
        stack.callback(lambda: running.assert_settles_at(before))
        stack.enter_context(environment_of(running))
        yield stack.enter_context(host.connect(running.name))


@pytest.fixture
def provider():
    """Name the provider under test."""
    return PROVIDER


@pytest.fixture
def sides(engine, provider):
    """Give two sides on one engine; at the end no post is left without its completion."""
    with pairs.two_sides(engine, provider) as both:
        yield both
        for side in both:
            side.device.close()
            side.device.progress()
            side.cq.poll_cq(1 << 16)
            assert side.cq.outstanding == 0
            assert side.channel.counts["outstanding"] == 0


@pytest.fixture
def joined(sides):
    """Give two sides and their connected queue pairs: active, passive, and both queue pairs."""
    active, passive = sides
    ours, theirs = active.qp(), passive.qp()
    pairs.connect(active, passive, ours, theirs)
    return active, passive, ours, theirs
