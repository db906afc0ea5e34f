"""Our initiator with our target: data in several pieces of memory, and larger than a region."""

import numpy as np
import pytest

import iscsi
from iscsi.session import perf  # noqa: F401 - compiles while tests are collected
from iscsi.target.config import ServerConfig
from iscsi.target.units import RamDisk, Target
from iscsi.wire.names import Portal
from tests.iscsi.target.serving import NAME, ServerThread

PLACEMENTS = ("stream", "datamover", "engine")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BLOCK = 512
LARGE = 64 << 20
LENGTHS = [100, 4000, 92, 70000, 513, 8191, 12, 4, 30000, 1264]


class LargeDisk(ServerThread):
    def configure(self, engine):
        self.disk = engine.alloc(LARGE)
        self.disk.array[:] = 0
        target = Target(NAME, {0: RamDisk(self.disk)})
        return ServerConfig((target,), (Portal("127.0.0.1", 0),))


@pytest.fixture(scope="module")
def served(placement):
    with LargeDisk() as serving:
        yield serving


@pytest.fixture(params=["stream", "datamover"])
def device(served, request):
    url = f"iscsi://127.0.0.1:{served.port}/{NAME}/0"
    with iscsi.open(url, placement=request.param, queue_depth=8) as opened:
        yield opened


def pattern(size, seed):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def test_pieces_are_written_and_read_as_one_transfer(served, device):
    total = sum(LENGTHS)
    assert total % BLOCK == 0
    data = pattern(total, 1)
    with device.alloc(total) as area:
        pieces, at = [], 0
        for index, length in enumerate(LENGTHS):
            own = np.zeros(length, np.uint8)
            pieces.append(own if index % 4 == 3 else area.array[at : at + length])
            pieces[-1][:] = data[at : at + length]
            at += length
        pieces = pieces[::2] + pieces[1::2]
        wanted = np.concatenate(pieces)
        assert device.writev(3, pieces) == total
        assert np.array_equal(served.disk.array[3 * BLOCK : 3 * BLOCK + total], wanted)
        served.disk.array[3 * BLOCK : 3 * BLOCK + total] = data[::-1]
        assert device.readv(3, pieces) == total
        assert np.array_equal(np.concatenate(pieces), data[::-1])


def test_transfers_larger_than_a_region_work(served, device):
    data = pattern(LARGE, 2)
    assert device.write(0, data) == LARGE
    assert np.array_equal(served.disk.array, data)
    with device.alloc(LARGE) as buffer:
        assert device.readinto(0, buffer) == LARGE
        assert np.array_equal(buffer.array, data)
        buffer.array[:] = data[::-1]
        assert device.write(0, buffer) == LARGE
        assert np.array_equal(served.disk.array, data[::-1])
    back = np.zeros(LARGE, np.uint8)
    assert device.readinto(0, back) == LARGE
    assert np.array_equal(back, data[::-1])
