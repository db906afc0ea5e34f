"""Memory of datamover endpoints: the next connection has that of one that is over, what the engine
refuses is given back, and what it may still take over is not.
"""

import errno

import numpy as np
import pytest

from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.mover_spec import INITIATOR, MoverSpec
from iscsi.wire.port import PortLimits
from ppe.cycle.control_port import EngineSilent
from ppe.cycle.movers import Movers
from ppe.cycle.services.mover_records import MOVER, MOVER_OVER
from shm.view import window

HOME = (1, 0, 4096)
MIB = 1 << 20
CLIENT = 2


def spec(tasks=16):
    return MoverSpec(
        INITIATOR, SessionParams(), ConnectionParams(), PortLimits(), (tasks,), (1, 32, 1)
    )


class Port:
    """A control port whose engine answers what the test says."""

    def __init__(self):
        self.tables = self
        self.movers, self.error = [], None

    def load_datamover(self):
        pass

    def enable_mover(self, channel, endpoint, mover, home, pool, *rest):
        self.movers.append(mover)
        if self.error:
            raise self.error

    def end(self, mover):
        """The endpoint is over."""
        window(mover, 1, MOVER)[0]["state"] = MOVER_OVER


@pytest.fixture
def port():
    return Port()


def enable_until_refused(movers, client, why):
    def enable_many():
        for _ in range(1000):
            movers.enable(client, 1, 1, spec(), HOME, 0)

    with pytest.raises(MemoryError, match=why):
        enable_many()


def test_memory_of_a_connection_that_is_over_is_the_next_ones(port):
    movers = Movers(port, 64 * MIB, 64 * MIB)
    for _ in range(100):
        movers.enable(CLIENT, 1, 1, spec(), HOME, 0)
        port.end(port.movers[-1])
    assert len(set(port.movers)) == 1
    movers.enable(CLIENT, 1, 1, spec(), HOME, 0)
    movers.enable(CLIENT, 1, 2, spec(), HOME, 0)
    assert len(set(port.movers[-2:])) == 2, "the first of them still runs"


def test_memory_is_clean_for_the_next_connection(port):
    movers = Movers(port, 64 * MIB, 64 * MIB)
    movers.enable(CLIENT, 1, 1, spec(), HOME, 0)
    mover = port.movers[0]
    fresh = window(mover, MOVER.itemsize + spec().size, np.uint8).copy()
    window(mover + MOVER.itemsize, spec().size, np.uint8)[:] = 0xFF
    port.end(mover)
    movers.enable(CLIENT, 1, 1, spec(), HOME, 0)
    assert port.movers[1] == mover
    assert np.array_equal(window(mover, fresh.size, np.uint8), fresh)


def test_connections_together_stay_below_the_limit(port):
    movers = Movers(port, 4 * MIB, 4 * MIB)
    enable_until_refused(movers, CLIENT, "4 MiB")
    assert movers.bytes <= 4 * MIB
    port.end(port.movers[3])
    movers.enable(CLIENT, 1, 1, spec(), HOME, 0)
    assert port.movers[-1] == port.movers[3]


def test_what_is_kept_for_the_next_connection_makes_room_for_one_of_another_size(port):
    movers = Movers(port, 4 * MIB, 4 * MIB)
    enable_until_refused(movers, CLIENT, "4 MiB")
    for mover in port.movers:
        port.end(mover)
    movers.enable(CLIENT, 1, 1, spec(tasks=1024), HOME, 0)
    assert spec(tasks=1024).size > MIB
    assert movers.bytes <= 4 * MIB


def test_one_client_cannot_take_the_memory_of_the_others(port):
    movers = Movers(port, 64 * MIB, 2 * MIB)
    enable_until_refused(movers, CLIENT, "2 MiB .* --limit-client-connection-bytes")
    count = len(port.movers)
    enable_until_refused(movers, CLIENT + 1, "2 MiB")
    assert len(port.movers) == 2 * count, "the other has as much"
    port.end(port.movers[0])
    with pytest.raises(MemoryError, match="2 MiB"):
        movers.enable(CLIENT + 1, 1, 1, spec(), HOME, 0)
    movers.enable(CLIENT, 1, 1, spec(), HOME, 0)
    assert port.movers[-1] == port.movers[0]


def test_what_the_engine_refuses_is_given_back(port):
    movers = Movers(port, 64 * MIB, 64 * MIB)
    port.error = OSError(errno.EBUSY, "refused")
    for _ in range(100):
        with pytest.raises(OSError, match="refused"):
            movers.enable(CLIENT, 1, 1, spec(), HOME, 0)
    assert len(set(port.movers)) == 1


def test_what_a_silent_engine_may_still_take_over_is_not_given_to_another(port):
    movers = Movers(port, 64 * MIB, 64 * MIB)
    port.error = EngineSilent("no answer")
    with pytest.raises(EngineSilent):
        movers.enable(CLIENT, 1, 1, spec(), HOME, 0)
    port.error = None
    movers.enable(CLIENT, 1, 1, spec(), HOME, 0)
    assert port.movers[0] != port.movers[1]


@pytest.mark.parametrize("words", [-8, 4, 4096, 4096 - 56, 1 << 62])
def test_words_outside_the_home_are_refused(port, words):
    with pytest.raises(ValueError, match="words"):
        Movers(port, 64 * MIB, 64 * MIB).enable(CLIENT, 1, 1, spec(), HOME, words)
    assert not port.movers
