"""Units that are busy, full or have news: commands are asked again, for a bounded time."""

import asyncio

import pytest

import iscsi
from iscsi.session.options import Recovery
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import ScsiError
from iscsi.wire.sense import Asc, SenseKey
from tests.iscsi.session.disk import BLOCK, WRITES

QUICK = Recovery(initial_s=0, maximum_s=0.05, limit_s=20)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_busy_unit_is_asked_again(engine, disk, way, asynchronous):
    _, url = way
    statuses = [0x08, 0x28, 0x08, 0x28]

    def before(peer, header, data):
        if header.cdb_bytes[0] in (*WRITES, 0x28) and statuses:
            peer.send(Opcode.SCSI_RESPONSE, to=header, status=statuses.pop())
            return True
        return False

    disk.before = before
    if asynchronous:

        async def main():
            async with await iscsi.aopen(url, recovery=QUICK) as device:
                await device.write(0, b"b" * 8 * BLOCK)
                assert await device.read(0, 8) == b"b" * 8 * BLOCK

        asyncio.run(main())
    else:
        with iscsi.open(url, engine, recovery=QUICK) as device:
            device.write(0, b"b" * 8 * BLOCK)
            assert device.read(0, 8) == b"b" * 8 * BLOCK
    assert not statuses


def test_a_full_task_set_makes_the_queue_shorter(engine, disk, way):
    """The target holds commands back until more than four wait, and refuses those."""
    _, url = way
    refused = []

    def before(peer, header, data):
        if header.cdb_bytes[0] == 0x28 and len(refused) < 12:
            refused.append(header.cmd_sn)
            peer.send(Opcode.SCSI_RESPONSE, to=header, status=0x28)
            return True
        return False

    disk.before = before
    with iscsi.open(url, engine, queue_depth=16, command_bytes=BLOCK, recovery=QUICK) as device:
        assert len(device.read(0, 200)) == 200 * BLOCK
        assert device.core.worker.hot("depth") < 16
        assert device.core.worker.hot("outstanding") == 0


def test_unit_attentions_in_the_middle_of_a_transfer_are_let_pass(engine, disk, way):
    _, url = way
    with iscsi.open(url, engine, command_bytes=BLOCK, recovery=QUICK) as device:
        disk.attentions = [Asc.MODE_PARAMETERS_CHANGED, Asc.CAPACITY_DATA_CHANGED]
        device.write(0, b"u" * 20 * BLOCK)
        assert device.read(0, 20) == b"u" * 20 * BLOCK
        assert device.core.patience.capacity_changed


def test_attentions_without_end_are_an_error(engine, disk, way):
    _, url = way
    with iscsi.open(url, engine, recovery=QUICK) as device:
        disk.attentions = [Asc.POWER_ON_RESET] * 10_000
        with pytest.raises(ScsiError) as caught:
            device.read(0, 1)
        assert caught.value.sense.key == SenseKey.UNIT_ATTENTION
        disk.attentions = []
