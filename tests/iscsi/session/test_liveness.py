"""Silence, late commands and the target's own wishes: pings, the ladder of task management, logout
requests, cancelled calls.
"""

import asyncio
import socket
import time

import pytest

import iscsi
from iscsi.session.errors import CommandTimeout, ConnectionLost, PingTimeout
from iscsi.session.options import NEVER, Recovery, Timeouts
from iscsi.wire import bhs
from iscsi.wire.bhs import Opcode, TaskFunction
from tests.iscsi.session.disk import BLOCK
from tests.iscsi.session.tgt import wait_for

QUICK = Recovery(initial_s=0, maximum_s=0.05, limit_s=20)
PINGS = Timeouts(ping_interval_s=0.1, ping_timeout_s=0.1, ping_count=2)
LATE = Timeouts(command_s=0.3, task_management_s=0.3)


class Silent:
    """Leaves reads of some blocks unanswered, and answers task management as the test says."""

    def __init__(self, disk, responses, lba=100):
        self.disk, self.responses, self.lba = disk, list(responses), lba
        self.asked, self.held, self.pings = [], [], 0
        disk.before, disk.control = self.before, self.on_control

    def before(self, peer, header, data):
        is_read = header.cdb_bytes[0] == 0x28
        if is_read and int.from_bytes(header.cdb_bytes[2:6], "big") == self.lba:
            self.held.append(header)
            return True
        return False

    def on_control(self, peer, header, data):
        if header.opcode is Opcode.NOP_OUT:
            self.pings += 1
            return False
        if header.opcode is not Opcode.TASK_MANAGEMENT_REQUEST:
            return False
        self.asked.append((TaskFunction(header.function), header.referenced_task_tag))
        response = self.responses.pop(0) if self.responses else 0
        if response is not None:
            numbers = {"exp_cmd_sn": header.cmd_sn, "max_cmd_sn": header.cmd_sn + peer.window}
            peer.send(Opcode.TASK_MANAGEMENT_RESPONSE, itt=header.itt, response=response, **numbers)
        return True


# --- pings -----------------------------------------------------------------------------------


def test_a_silent_connection_is_given_up_and_the_read_is_repeated(engine, disk, way):
    relay, url = way
    with iscsi.open(url, engine, timeouts=PINGS, recovery=QUICK) as device:
        device.write(0, b"s" * BLOCK)
        stalled = []

        def before(peer, header, data):
            if header.cdb_bytes[0] == 0x28 and not stalled:
                stalled.append(True)
                relay.stall()
                return True
            return False

        disk.before = before
        device.core.on_loss.append(lambda: relay.stall(False))
        assert device.read(0, 1) == b"s" * BLOCK
        assert device.recoveries == 1


def test_silence_ends_in_its_own_error_without_recovery(engine, way):
    relay, url = way
    device = iscsi.open(url, engine, timeouts=PINGS, recovery=NEVER)
    relay.stall()
    with pytest.raises(PingTimeout, match="no answer to a ping"):
        device.read(0, 1)
    device.close()


def test_an_idle_device_in_asyncio_notices_the_loss_by_itself(disk, way):
    relay, url = way

    async def main():
        async with await iscsi.aopen(url, timeouts=PINGS, recovery=QUICK) as device:
            await asyncio.sleep(0.5)
            assert device.recoveries == 0, "its pings were answered"
            relay.stall()
            device.core.on_loss.append(lambda: relay.stall(False))
            async with asyncio.timeout(10):
                while not device.recoveries:
                    await asyncio.sleep(0.02)
            assert len(await device.read(0, 1)) == BLOCK

    asyncio.run(main())


def test_a_slow_command_is_no_silence_while_pings_are_answered(engine, disk, way):
    _, url = way
    silent = Silent(disk, [0])

    with iscsi.open(
        url, engine, timeouts=Timeouts(1.2, 10, 1, 0.1, 0.1, 2), recovery=QUICK
    ) as device:
        with pytest.raises(CommandTimeout):
            device.read(100, 1)
        assert device.recoveries == 0
        assert silent.pings > 2


# --- late commands ---------------------------------------------------------------------------


@pytest.mark.parametrize("response", [0, 1])
def test_a_late_command_is_aborted_and_the_connection_stays(engine, disk, way, response):
    relay, url = way
    silent = Silent(disk, [response])
    with iscsi.open(url, engine, timeouts=LATE, recovery=QUICK) as device:
        before = relay.accepted
        with pytest.raises(CommandTimeout, match="not answered in time"):
            device.read(100, 1)
        assert silent.asked == [(TaskFunction.ABORT_TASK, silent.held[0].itt)]
        assert len(device.read(0, 1)) == BLOCK
        assert relay.accepted == before
        assert device.core.worker.hot("outstanding") == 0


@pytest.mark.parametrize("response", [5, 255, None])
def test_the_unit_is_reset_when_an_abort_does_not_help(engine, disk, way, response):
    relay, url = way
    silent = Silent(disk, [response, 0])
    with iscsi.open(url, engine, timeouts=LATE, recovery=QUICK) as device:
        before = relay.accepted
        with pytest.raises(CommandTimeout):
            device.read(100, 1)
        functions = [function for function, _ in silent.asked]
        assert functions == [TaskFunction.ABORT_TASK, TaskFunction.LOGICAL_UNIT_RESET]
        assert len(device.read(0, 1)) == BLOCK
        assert relay.accepted == before


def test_commands_that_a_reset_took_along_are_sent_again(disk, way):
    _, url = way
    silent = Silent(disk, [5, 0])
    swallowed = []
    first = silent.before

    def before(peer, header, data):
        if header.cdb_bytes[0] == 0x2A and not swallowed:
            swallowed.append(header)
            return True
        return first(peer, header, data)

    disk.before = before

    async def main():
        late = Timeouts(command_s=0.6, task_management_s=0.3)
        async with await iscsi.aopen(url, timeouts=late, recovery=QUICK) as device:
            reading = asyncio.create_task(device.read(100, 1))
            await asyncio.sleep(0.3)
            await device.write(7, b"again" * 100 + bytes(12))
            with pytest.raises(CommandTimeout):
                await reading
            assert device.recoveries == 0

    asyncio.run(main())
    assert disk.data[7 * BLOCK : 7 * BLOCK + 5] == b"again"


def test_the_connection_is_the_last_rung(engine, disk, way):
    relay, url = way
    silent = Silent(disk, [None, None])
    with iscsi.open(url, engine, timeouts=LATE, recovery=QUICK) as device:
        before = relay.accepted
        with pytest.raises(CommandTimeout):
            device.read(100, 1)
        assert len(silent.asked) == 2
        assert len(device.read(0, 1)) == BLOCK
        assert relay.accepted == before + 1


def test_a_rejected_abort_counts_as_refused(engine, disk, way):
    _, url = way
    silent = Silent(disk, [])

    def control(peer, header, data):
        if header.opcode is Opcode.TASK_MANAGEMENT_REQUEST and not silent.asked:
            silent.asked.append((TaskFunction(header.function), 0))
            culprit = bytearray(48)
            culprit[0] = int(Opcode.TASK_MANAGEMENT_REQUEST)
            culprit[16:20] = header.itt.to_bytes(4, "big")
            numbers = {"exp_cmd_sn": header.cmd_sn, "max_cmd_sn": header.cmd_sn + 8}
            peer.send(
                Opcode.REJECT, bytes(culprit), itt=bhs.RESERVED_TAG, reject_reason=5, **numbers
            )
            return True
        return silent.on_control(peer, header, data)

    disk.control = control
    with iscsi.open(url, engine, timeouts=LATE, recovery=QUICK) as device:
        with pytest.raises(CommandTimeout):
            device.read(100, 1)
        assert [function for function, _ in silent.asked][1:] == [TaskFunction.LOGICAL_UNIT_RESET]
        assert device.recoveries == 0


def test_timeouts_are_changed_while_the_device_is_open(engine, disk, way):
    _, url = way
    Silent(disk, [0])
    with iscsi.open(url, engine, recovery=QUICK) as device:
        assert device.timeouts.command_s == 30
        device.timeouts = LATE
        with pytest.raises(CommandTimeout):
            device.read(100, 1)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_window_that_stays_closed_is_a_timeout(engine, disk, way, asynchronous):
    """MaxCmdSN = ExpCmdSN - 1 for ever, after the device was opened."""
    _, url = way

    def before(peer, header, data):
        if header.cdb_bytes[0] == 0x28:
            peer.window = 0  # Every answer from here on closes it.
        return False

    disk.before = before
    options = {"timeouts": LATE, "recovery": NEVER}
    if asynchronous:

        async def main():
            async with await iscsi.aopen(url, **options) as device:
                for _ in range(40):
                    await device.read(0, 1)

        with pytest.raises(CommandTimeout, match="window stays closed"):
            asyncio.run(main())
        return
    device = iscsi.open(url, engine, **options)
    with pytest.raises(CommandTimeout, match="window stays closed"):
        list(map(device.read, [0] * 40, [1] * 40))
    device.close()


# --- cancelled calls -------------------------------------------------------------------------


def test_a_cancelled_read_is_aborted_at_the_target(disk, way):
    _, url = way
    silent = Silent(disk, [0])

    async def main():
        async with await iscsi.aopen(url, recovery=QUICK) as device:
            task = asyncio.create_task(device.read(100, 1))
            async with asyncio.timeout(10):
                while not silent.held:
                    await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(10):
                    await task
            assert silent.asked == [(TaskFunction.ABORT_TASK, silent.held[0].itt)]
            assert device.core.worker.hot("outstanding") == 0
            assert len(await device.read(0, 1)) == BLOCK

    asyncio.run(main())


def test_a_cancelled_call_ends_also_when_the_target_is_dead(way, disk):
    relay, url = way

    async def main():
        late = Timeouts(command_s=0.3, task_management_s=0.2)
        async with await iscsi.aopen(url, timeouts=late, recovery=QUICK) as device:
            relay.stall()
            device.core.on_loss.append(lambda: relay.stall(False))
            task = asyncio.create_task(device.write(3, bytes(64 * BLOCK)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(10):
                    await task
            assert len(await device.read(0, 1)) == BLOCK
            free = device._engine._arenas._free
            assert all(
                len({id(piece) for piece in pieces}) == len(pieces) for pieces in free.values()
            )

    asyncio.run(main())


# --- the target's wishes ---------------------------------------------------------------------


def tell(peer, header, event, **parameters):
    numbers = {"exp_cmd_sn": header.cmd_sn + 1, "max_cmd_sn": header.cmd_sn + peer.window}
    peer.send(
        Opcode.ASYNC_MESSAGE, itt=bhs.RESERVED_TAG, async_event=event, **numbers, **parameters
    )


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_logout_that_the_target_asks_for_is_followed_by_a_login(engine, disk, way, asynchronous):
    relay, url = way
    logouts, told = [], []

    def before(peer, header, data):
        if header.cdb_bytes[0] == 0x28 and not told:
            told.append(True)
            tell(peer, header, 1, parameter3=3)
        return False

    def control(peer, header, data):
        if header.opcode is Opcode.LOGOUT_REQUEST:
            logouts.append(relay.accepted)
        return False

    disk.before, disk.control = before, control

    def check(device):
        assert logouts[:1] == [1], "the first connection was logged out"
        assert device.recoveries == 1

    if asynchronous:

        async def main():
            async with await iscsi.aopen(url, recovery=QUICK, command_bytes=BLOCK) as device:
                assert len(await device.read(0, 200)) == 200 * BLOCK
                async with asyncio.timeout(10):
                    while not device.recoveries:
                        await asyncio.sleep(0.02)
                assert len(await device.read(0, 1)) == BLOCK
                check(device)

        asyncio.run(main())
        return
    with iscsi.open(url, engine, recovery=QUICK, command_bytes=BLOCK) as device:
        assert len(device.read(0, 200)) == 200 * BLOCK
        wait_for(lambda: device.read(0, 1) and device.recoveries, "the new login")
        check(device)


@pytest.mark.parametrize("event", [2, 3])
def test_an_announced_end_is_recovered_after_the_wait_it_names(engine, disk, way, event):
    _, url = way
    told = []

    def before(peer, header, data):
        if header.cdb_bytes[0] == 0x28 and not told:
            told.append(time.monotonic())
            tell(peer, header, event, parameter2=1, parameter3=20)
            return True
        return False

    disk.before = before
    with iscsi.open(url, engine, recovery=QUICK) as device:
        assert len(device.read(0, 1)) == BLOCK
        assert time.monotonic() - told[0] >= 0.9, "Time2Wait was one second"
        assert device.recoveries == 1


def test_a_negotiation_that_the_target_asks_for_is_begun(engine, disk, way):
    _, url = way
    asked, told = [], []

    def before(peer, header, data):
        if header.cdb_bytes[0] == 0x28 and not told:
            told.append(True)
            tell(peer, header, 4, parameter3=3)
        return False

    def control(peer, header, data):
        if header.opcode is Opcode.TEXT_REQUEST:
            asked.append(header)
            numbers = {"exp_cmd_sn": header.cmd_sn, "max_cmd_sn": header.cmd_sn + peer.window}
            peer.send(Opcode.TEXT_RESPONSE, itt=header.itt, ttt=bhs.RESERVED_TAG, **numbers)
            return True
        return False

    disk.before, disk.control = before, control
    with iscsi.open(url, engine, recovery=QUICK) as device:
        wait_for(lambda: device.read(0, 1) and asked, "a text request")
        assert device.recoveries == 0


def test_a_target_that_is_gone_is_a_connection_lost(engine):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises((ConnectionLost, ConnectionRefusedError)):
        iscsi.open(f"iscsi://127.0.0.1:{port}/iqn.2026-01.org.example:mock/0", engine)
