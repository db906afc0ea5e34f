"""What one call costs as Python sees it: `make bench-calls`.

Each call works on prepared objects of this process; an inline engine stands in for the daemon, so
nothing here measures the way to another core.
"""

from collections.abc import Iterator
from typing import Any

import pytest

import host
from bench.python_calls import ring_poll, ring_post
from bench.ring_pair import BURST_MAX, CONSUMER_AT, IN, OUT, PRODUCER_AT, Side, make_pair
from host.channel import Channel
from iscsi.wire import bhs
from shm.records import consumer_at, producer_at


@pytest.fixture
def channel() -> Iterator[Channel]:
    """A channel of an inline engine that never sleeps."""
    with host.connect("inline:?idle=spin") as engine, engine.channel() as opened:
        yield opened


@pytest.fixture
def loop() -> Iterator[Side]:
    """A ring whose consumer reads what its own producer posts."""
    side = Side(make_pair(), True)
    producer = producer_at(side.address + PRODUCER_AT)[0]
    consumer = consumer_at(side.address + CONSUMER_AT)[0]
    consumer["slots"], consumer["head"] = producer["slots"], producer["head"]
    yield side
    side.close()


def test_post_nop_and_poll(benchmark: Any, channel: Channel) -> None:
    """The shortest operation there and back."""

    def call() -> None:
        channel.post_nop(1)
        assert channel.poll()

    benchmark(call)


def test_poll_of_an_empty_ring(benchmark: Any, channel: Channel) -> None:
    """A pass of the engine that finds nothing, included."""
    assert benchmark(channel.poll) == []


def test_post_send_refused(benchmark: Any, channel: Any) -> None:
    """Of an endpoint that does not exist: the whole way through the call, none through a socket."""
    with host.connect("inline:?idle=spin") as engine, engine.channel() as opened:
        data = engine.alloc(64)

        def call() -> None:
            opened.post_send(0, data)
            opened.poll()

        benchmark(call)


@pytest.mark.parametrize("count", [1, 32, BURST_MAX])
def test_ring_burst_and_poll(benchmark: Any, loop: Side, count: int) -> None:
    """Entries into a ring and out of it, without an engine."""
    address = loop.address

    def call() -> None:
        ring_post(address, address + OUT, count)
        assert ring_poll(address, address + IN, count) == count

    benchmark(call)


def test_bhs_encode(benchmark: Any) -> None:
    """A SCSI command's header from its fields."""
    made = benchmark(bhs.encode, bhs.Opcode.SCSI_COMMAND, itt=1, cmd_sn=7)
    assert len(made) == bhs.BHS_LENGTH
