"""The block device in an event loop: many reads under way, cancellation, and the loop kept free."""

import asyncio
import os

import pytest

import host
import iscsi
from iscsi.session.errors import OutOfRange, SessionClosed
from iscsi.wire.errors import LoginRejected

pytestmark = [pytest.mark.interop("tgtd", "tgtadm"), pytest.mark.slow]
BLOCK = 512


def test_reads_and_writes_run_at_the_same_time_and_each_gets_its_own(tgt, engine_name):
    data = os.urandom(256 * BLOCK)

    async def main():
        async with await iscsi.aopen(tgt.url, engine_name) as device:
            assert (device.block_size, device.size) == (BLOCK, 64 << 20)
            pieces = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
            await asyncio.gather(*(device.write(n, piece) for n, piece in enumerate(pieces)))
            found = await asyncio.gather(*(device.read(n, 1) for n in range(256)))
            assert found == pieces
            whole = await asyncio.gather(*(device.read(0, 256) for _ in range(4)))
            assert set(whole) == {data}
            await device.flush()

    asyncio.run(main())


def test_the_loop_goes_on_while_a_read_is_under_way(tgt, engine_name):
    async def main():
        async with await iscsi.aopen(tgt.url, engine_name) as device:
            beats = 0

            async def beat():
                nonlocal beats
                while True:
                    beats += 1
                    await asyncio.sleep(0)

            heart = asyncio.create_task(beat())
            for _ in range(3):
                assert len(await device.read(0, 8192)) == 8192 * BLOCK
            heart.cancel()
            assert beats > 3

    asyncio.run(main())


def test_shared_memory_is_used_in_place(tgt):
    async def main():
        with host.connect("inline:?readiness=epoll") as engine:
            async with await iscsi.aopen(tgt.url, engine) as device:
                with device.alloc(8 * BLOCK) as buffer:
                    buffer.array[:] = 7
                    await device.write(77, buffer)
                    buffer.array[:] = 0
                    assert await device.readinto(77, buffer) == 8 * BLOCK
                    assert (buffer.array == 7).all()
                assert device.copied_bytes == 0

    asyncio.run(main())


def test_an_inline_engine_on_io_uring_serves_a_loop_too(tgt):
    async def main():
        with host.connect("inline:") as engine:
            async with await iscsi.aopen(tgt.url, engine) as device:
                assert len(await device.read(0, 100)) == 100 * BLOCK
                await device.flush()

    asyncio.run(main())


def test_a_cancelled_read_leaves_the_device_usable(tgt, engine_name):
    async def main():
        async with await iscsi.aopen(tgt.url, engine_name, queue_depth=2) as device:
            task = asyncio.create_task(device.read(0, 60_000))
            await asyncio.sleep(0.002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(30):  # The answer to the abort may come after the data.
                while device.session.core.connection.hot("outstanding"):
                    await asyncio.sleep(0.001)
            assert len(await device.read(5, 3)) == 3 * BLOCK

    asyncio.run(main())


def test_refusals_are_the_same_as_in_the_blocking_device(tgt):
    async def main():
        with pytest.raises(LoginRejected):
            await iscsi.aopen(tgt.url.replace(":disk", ":nodisk"))
        device = await iscsi.aopen(tgt.url)
        with pytest.raises(OutOfRange):
            await device.read(device.block_count, 1)
        await device.close()
        await device.close()
        with pytest.raises(SessionClosed):
            await device.read(0, 1)

    asyncio.run(main())
