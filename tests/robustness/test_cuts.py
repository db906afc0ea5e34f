"""Our initiator against our target through a relay that cuts: at every byte of a whole exchange in
both directions, and at random ones under load. What was acknowledged is on the medium.
"""

import random

import numpy as np
import pytest

import host
import iscsi
from iscsi.session.options import Recovery
from iscsi.wire.keys import DIGEST_CRC32C, Proposal, SessionParams
from shm.jit import JIT_DISABLED
from tests.iscsi.session.relay import Relay
from tests.iscsi.target.serving import BLOCK, NAME, Serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(JIT_DISABLED, reason="two loops in one process, both plain"),
]
QUICK = Recovery(initial_s=0, maximum_s=0.05, limit_s=30)
SMALL = SessionParams(first_burst_length=512, max_burst_length=1024, default_time2wait=0)
WAYS = {
    "solicited": Proposal(SMALL, 1024),
    "digests": Proposal(SMALL, 1024, header_digest=(DIGEST_CRC32C,), data_digest=(DIGEST_CRC32C,)),
    "immediate": Proposal(SessionParams(initial_r2t=False, default_time2wait=0)),
}


@pytest.fixture(scope="module")
def server():
    proposal = Proposal(
        SessionParams(initial_r2t=False, max_outstanding_r2t=4, default_time2wait=0),
        header_digest=("None", "CRC32C"),
        data_digest=("None", "CRC32C"),
    )
    with Serving(linger_s=0.2, proposal=proposal) as server:
        yield server


@pytest.fixture(scope="module")
def engine():
    with host.connect("inline:") as handle:
        yield handle


@pytest.fixture
def way(server):
    """A relay to the target, and the URL of its LUN 0 through it."""
    with Relay(("127.0.0.1", server.port)) as relay:
        yield relay, f"iscsi://{relay.address}/{NAME}/0"


def exchange(url, engine, data, **options):
    """Login, write, read, logout. What was read."""
    with iscsi.open(url, engine, recovery=QUICK, **options) as device:
        device.write(40, data)
        return device.read(40, len(data) // BLOCK)


def on_medium(server, lba, blocks):
    return server.disk.array[lba * BLOCK : (lba + blocks) * BLOCK].tobytes()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_an_exchange_cut_at_many_bytes_of_it_ends_well(server, way, engine, name, direction):
    cut_everywhere(server, way, engine, name, direction, 53)


@pytest.mark.soak
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_an_exchange_cut_at_every_byte_of_it_ends_well(server, way, engine, name, direction):
    cut_everywhere(server, way, engine, name, direction, 1)


def cut_everywhere(server, way, engine, name, direction, step):
    """Cut the whole exchange after 1, 1 + step, ... bytes."""
    relay, url = way
    chance, blocks = random.Random(name + direction), 4
    options = {"proposal": WAYS[name], "queue_depth": 2}
    assert exchange(url, engine, bytes(blocks * BLOCK), **options) == bytes(blocks * BLOCK)
    length = relay.passed[direction == "down"]
    # The login of the first connection is not made again by itself: it is the caller's.
    with iscsi.open(url, engine, recovery=QUICK, **options):
        login = relay.passed[direction == "down"] - length
    refused = 0
    for at in range(1, length + 1, step):
        data = chance.randbytes(blocks * BLOCK)
        relay.cut_after(**{direction: at})
        try:
            found = exchange(url, engine, data, **options)
        except (OSError, iscsi.TransportError):
            assert at <= login, f"cut after {at} bytes {direction}, when the device was open"
            refused += 1
            found = exchange(url, engine, data, **options)
        relay.cut_after()
        assert found == data, f"cut after {at} bytes {direction}"
        assert on_medium(server, 40, blocks) == data
    assert refused < -(-length // step), "some were cut when the device was open"
    server.wait_idle()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("seed", range(6))
def test_a_device_under_seeded_cuts_is_the_disk_it_claims_to_be(server, way, engine, seed):
    """A shadow disk judges every read; unmapping is left out, since this unit is not thin."""
    relay, url = way
    chance = random.Random(seed)
    first, count = 1000, 256
    with iscsi.open(
        url, engine, recovery=QUICK, queue_depth=chance.choice((1, 4, 16)),
        proposal=WAYS[chance.choice(list(WAYS))], receive=chance.choice(("staged", "exact"))
    ) as device:  # fmt: skip
        shadow = np.frombuffer(bytearray(device.read(first, count)), np.uint8)
        for _ in range(60):
            if chance.random() < 0.5:
                relay.cut_after(**{chance.choice(("up", "down")): chance.randrange(1, 30_000)})
            elif chance.random() < 0.1:
                relay.drop()
            blocks = chance.randrange(1, 64)
            lba = chance.randrange(count - blocks)
            part = slice(lba * BLOCK, (lba + blocks) * BLOCK)
            what = chance.randrange(4)
            if what == 0:
                assert device.read(first + lba, blocks) == shadow[part].tobytes()
            elif what == 1:
                data = chance.randbytes(BLOCK)
                device.write_same(first + lba, blocks, data)
                shadow[part] = np.frombuffer(data * blocks, np.uint8)
            else:
                data = chance.randbytes(blocks * BLOCK)
                device.write(first + lba, data)
                shadow[part] = np.frombuffer(data, np.uint8)
            assert on_medium(server, first + lba, blocks) == shadow[part].tobytes()
        relay.cut_after()
        assert device.read(first, count) == shadow.tobytes()
        assert device.recoveries
    server.wait_idle()
