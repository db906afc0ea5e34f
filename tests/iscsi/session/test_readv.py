"""Reads and writes over several pieces of memory, and larger than a region, in every placement."""

import asyncio

import numpy as np
import pytest

import iscsi
from iscsi.session.errors import OutOfRange
from iscsi.session.options import Recovery
from tests.iscsi.session.relay import relay_to

pytestmark = [pytest.mark.interop("tgtd", "tgtadm"), pytest.mark.slow]

BLOCK = 512
LARGE = 64 << 20
LENGTHS = [1, 511, 4096, 100, 70000, 3, 9000, 2048, 777, 513, 65536, 12, 100_000, 5]


def pattern(size, seed):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def pieces_in(device, lengths, shared):
    """Arrays of these lengths, every one that `shared` names in the engine's memory."""
    area = device.alloc(sum(lengths) + 16 * len(lengths))
    found, at = [], 3
    for index, length in enumerate(lengths):
        if shared(index):
            found.append(area.array[at : at + length])
            at += length + 13
        else:
            found.append(np.zeros(length, np.uint8))
    return area, found


def whole(lengths):
    rest = -sum(lengths) % BLOCK
    return [*lengths, rest] if rest else lengths


def fill(pieces, data):
    at = 0
    for piece in pieces:
        piece[:] = data[at : at + piece.size]
        at += piece.size


SHARED = {
    "ordinary": lambda _: False,
    "shared": lambda _: True,
    "mixed": lambda index: index % 3 != 1,
}


@pytest.mark.parametrize("command_bytes", [4096, 1 << 20])
@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("digests", [False, True])
def test_pieces_of_any_lengths_are_one_transfer(tgt, engine_name, shared, command_bytes, digests):
    names = ("HeaderDigest", "DataDigest")
    for name in names:
        tgt.set_param(name, "CRC32C,None" if digests else "None")
    url = f"{tgt.url}?header_digest=crc32c&data_digest=crc32c" if digests else tgt.url
    try:
        with iscsi.open(url, engine_name, command_bytes=command_bytes) as device:
            assert device.session.connection_params.data_digest is digests
            lengths = whole(LENGTHS)
            total = sum(lengths)
            data = pattern(total, command_bytes)
            area, out = pieces_in(device, lengths, SHARED[shared])
            fill(out, data)
            assert device.writev(77, out) == total
            assert device.read(77, total // BLOCK) == data.tobytes()
            with area:
                area.array[:] = 0
            area, back = pieces_in(device, lengths[::-1], SHARED[shared])
            assert device.readv(77, back) == total
            assert np.concatenate(back).tobytes() == data.tobytes()
            area.free()
    finally:
        for name in names:
            tgt.set_param(name, "None")


def test_pieces_in_the_engines_memory_are_not_copied(tgt, engine_name):
    with iscsi.open(tgt.url, engine_name) as device:
        area, pieces = pieces_in(device, [1000, 3096, 8192, 512], SHARED["shared"])
        commands = device.session.core.connection.hot("completions")
        device.writev(5, pieces)
        device.readv(5, pieces)
        assert device.copied_bytes == 0
        assert device.session.core.connection.hot("completions") == commands + 2
        area.free()


def test_longer_lists_than_a_command_takes_are_cut(tgt, engine_name):
    with iscsi.open(tgt.url, engine_name) as device:
        lengths = [700] * 1024
        area, pieces = pieces_in(device, lengths, SHARED["shared"])
        data = pattern(sum(lengths), 9)
        fill(pieces, data)
        device.writev(1000, pieces)
        assert device.read(1000, data.size // BLOCK) == data.tobytes()
        area.array[:] = 0
        device.readv(1000, pieces)
        assert np.concatenate(pieces).tobytes() == data.tobytes()
        area.free()


def test_what_cannot_be_one_transfer_is_refused(tgt, engine_name):
    with iscsi.open(tgt.url, engine_name) as device:
        array = np.zeros(4096, np.uint8)
        with pytest.raises(ValueError, match="whole blocks"):
            device.readv(0, [array[:100], array[100:500]])
        with pytest.raises(ValueError, match="whole blocks"):
            device.writev(0, [])
        with pytest.raises(ValueError, match="overlap"):
            device.readv(0, [array[:1024], array[1000:2024]])
        with pytest.raises(ValueError, match="read-only"):
            device.readv(0, [bytes(512)])
        with pytest.raises(OutOfRange):
            device.readv(device.block_count - 1, [array[:512], array[512:1024]])
        assert device.writev(0, [array[:100], b"", array[:412]]) == 512


def test_many_transfers_over_pieces_at_once_in_asyncio(tgt, daemon, monkeypatch):
    async def work(placement):
        device = await iscsi.aopen(tgt.url, daemon, placement=placement, queue_depth=8)
        async with device:
            lengths = [600, 5000, 12, 3604, 9000, 216]
            jobs = [pieces_in(device, lengths, SHARED["mixed"]) for _ in range(12)]
            size = sum(lengths)
            for index, (_, pieces) in enumerate(jobs):
                fill(pieces, pattern(size, index))
            await asyncio.gather(
                *(device.writev(100 * n, pieces) for n, (_, pieces) in enumerate(jobs))
            )
            for _, pieces in jobs:
                fill(pieces, np.zeros(size, np.uint8))
            await asyncio.gather(
                *(device.readv(100 * n, pieces) for n, (_, pieces) in enumerate(jobs))
            )
            for index, (area, pieces) in enumerate(jobs):
                assert np.array_equal(np.concatenate(pieces), pattern(size, index))
                area.free()

    for placement in ("stream", "datamover"):
        asyncio.run(work(placement))


@pytest.mark.timeout(300)
def test_transfers_larger_than_a_region_work(tgt, engine_name):
    """The handle's arenas are of 4 MiB; the device and each transfer here are of 64."""
    data = pattern(LARGE, 1)
    with iscsi.open(tgt.url, engine_name) as device:
        assert device.size == LARGE
        assert device.write(0, data) == LARGE
        back = np.zeros(LARGE, np.uint8)
        assert device.readinto(0, back) == LARGE
        assert np.array_equal(back, data)
        with device.alloc(LARGE) as buffer:
            buffer.array[:] = data[::-1]
            copied = device.copied_bytes
            assert device.write(0, buffer) == LARGE
            buffer.array[:] = 0
            assert device.readinto(0, buffer) == LARGE
            assert device.copied_bytes == copied
            assert np.array_equal(buffer.array, data[::-1])
        with device.alloc(LARGE // 4) as first, device.alloc(LARGE // 2) as second:
            back[:] = 0
            pieces = [first, back[: LARGE // 4 - 100], second, back[-100:]]
            assert device.readv(0, pieces) == LARGE
            found = np.concatenate([first.array, pieces[1], second.array, pieces[3]])
            assert np.array_equal(found, data[::-1])


def test_a_connection_cut_amid_pieces_loses_nothing(tgt, engine_name):
    lengths = whole([100_000, 4096, 30_000, 700, 60_000])
    total = sum(lengths)
    quick = Recovery(initial_s=0, maximum_s=0.05, limit_s=20)
    options = {"command_bytes": 65536, "recovery": quick}
    with relay_to(tgt.url) as (relay, url), iscsi.open(url, engine_name, **options) as device:
        area, pieces = pieces_in(device, lengths, SHARED["mixed"])
        for turn in range(6):
            data = pattern(total, turn)
            fill(pieces, data)
            relay.cut_after(up=5000 + 30_000 * turn)
            device.writev(50, pieces)
            fill(pieces, np.zeros(total, np.uint8))
            relay.cut_after(down=5000 + 30_000 * turn)
            device.readv(50, pieces)
            assert np.array_equal(np.concatenate(pieces), data)
        assert device.recoveries == 12
        area.free()
