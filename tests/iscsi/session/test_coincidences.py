"""Two things that end at once, or one that ends while another waits: nobody waits for ever, and
nobody is told the wrong thing.
"""

import asyncio
import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest

import iscsi
from host.errors import WrongThread
from iscsi.session.errors import CommandTimeout, ConnectionLost, ReservationLost, SessionClosed
from iscsi.session.options import NEVER, Recovery, Timeouts
from iscsi.wire import bhs
from iscsi.wire.bhs import Opcode, TaskFunction
from iscsi.wire.errors import ScsiError
from tests.iscsi.session.disk import BLOCK, READS, WRITES

QUICK = Recovery(initial_s=0, maximum_s=0.05, limit_s=20)
BRIEF = Recovery(initial_s=0.01, maximum_s=0.02, limit_s=0.3)
LATE = Timeouts(command_s=0.3, task_management_s=0.3)
WAIT_S = 10
GARBAGE = b"\x3f" + bytes(bhs.BHS_LENGTH - 1)  # no target sends such a PDU


async def eventually(condition, what):
    """Let the loop go on until something is true."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {WAIT_S} s for {what}") from None


class Glue:
    """Sends garbage in one piece with the answer to the command that `when` chooses, once."""

    def __init__(self, disk, when, piece=GARBAGE):
        self._when, self._piece, self.used = when, piece, 0
        self._disk = disk
        disk.before = self.before

    def before(self, peer, header, data):
        if self.used or not self._when(header):
            return False
        self.used += 1
        kept, stream = [], peer.stream

        class Keeper:
            @staticmethod
            def sendall(data):
                kept.append(bytes(data))

        peer.stream = Keeper
        try:
            self._disk.run(peer, header, data)
        finally:
            peer.stream = stream
        stream.sendall(b"".join(kept) + self._piece)
        return True


# --- who waits behind something that ends --------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "give up"])
def test_a_write_that_waits_behind_another_learns_that_the_session_ended(disk, way, end):
    relay, url = way
    held = []

    def before(peer, header, data):
        if header.cdb_bytes[0] in WRITES:
            held.append(header)
            return True
        return False

    disk.before = before

    async def main():
        device = await iscsi.aopen(url, recovery=BRIEF)
        writes = [asyncio.create_task(device.write(3, bytes(BLOCK))) for _ in range(3)]
        unmap = asyncio.create_task(device.unmap([(3, 1)]))
        await eventually(lambda: held, "the first write to come")
        if end == "close":
            await device.close()
        else:
            relay.refuse()
            relay.drop()
        async with asyncio.timeout(WAIT_S):
            ends = await asyncio.gather(*writes, unmap, return_exceptions=True)
        expected = SessionClosed if end == "close" else ConnectionLost
        assert [type(each) for each in ends] == [expected] * 4
        await device.close()

    asyncio.run(main())
    assert len(held) == 1


# --- losses at odd moments -----------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("which", range(6))
def test_a_connection_lost_together_with_an_answer_of_the_recovery(
    engine, disk, way, which, asynchronous
):
    """The recovery's own commands: their answers come, and in the same piece what ends it all."""
    relay, url = way
    seen = []

    def when(header):
        if disk.connections == 2:
            seen.append(header)
        return len(seen) == which + 1

    async def main():
        async with await iscsi.aopen(url, recovery=QUICK) as device:
            glue = Glue(disk, when)
            relay.drop()
            await eventually(lambda: device.recoveries, "a recovery")
            async with asyncio.timeout(WAIT_S):
                assert len(await device.read(0, 1)) == BLOCK
            assert glue.used
            assert disk.connections == 3

    if asynchronous:
        asyncio.run(main())
        return
    with iscsi.open(url, engine, recovery=QUICK) as device:
        glue = Glue(disk, when)
        relay.drop()
        assert len(device.read(0, 1)) == BLOCK
        assert glue.used
        assert disk.connections == 3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_violation_in_the_middle_of_a_long_transfer_is_recovered_from(
    engine, disk, way, asynchronous
):
    """The answer to one command frees a place for the next, which finds the connection over."""
    _, url = way
    glue = Glue(disk, lambda header: header.cdb_bytes[0] in READS)
    disk.data[:] = bytes(range(256)) * (len(disk.data) // 256)
    options = {"recovery": QUICK, "queue_depth": 2, "command_bytes": 4096}

    async def main():
        async with await iscsi.aopen(url, **options) as device, asyncio.timeout(WAIT_S):
            assert await device.read(0, 256) == disk.data[: 256 * BLOCK]
            assert device.recoveries == 1

    if asynchronous:
        asyncio.run(main())
    else:
        with iscsi.open(url, engine, **options) as device:
            assert device.read(0, 256) == disk.data[: 256 * BLOCK]
            assert device.recoveries == 1
    assert glue.used


def test_an_idle_device_that_was_recovered_is_recovered_again_after_its_limit(disk, way):
    """Each loss has the time and the tries of its own, though no command ended in between."""
    relay, url = way
    recovery = Recovery(initial_s=0, maximum_s=0.05, limit_s=0.4, tries=2)

    async def main():
        async with await iscsi.aopen(url, recovery=recovery) as device:
            for number in range(1, 5):
                relay.drop()
                await eventually(
                    lambda number=number: device.recoveries == number or device.core.lost,
                    f"recovery {number}",
                )
                assert device.core.lost is None, device.core.lost
                await asyncio.sleep(0.2)
            assert len(await device.read(0, 1)) == BLOCK

    asyncio.run(main())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_window_that_is_closed_after_a_reconnection_does_not_hold_it_up_for_ever(
    engine, disk, way, asynchronous
):
    relay, url = way
    serve = disk._log_in

    def log_in(peer):
        peer.window = 0 if disk.connections else 32
        serve(peer)

    disk._log_in = log_in
    recovery = Recovery(initial_s=0, maximum_s=0.05, limit_s=0.5)
    options = {"recovery": recovery, "timeouts": LATE}
    if not asynchronous:
        device = iscsi.open(url, engine, **options)
        relay.drop()
        with pytest.raises(CommandTimeout, match=r"window stays closed .*gave up"):
            device.read(0, 1)
        device.close()
        return

    async def main():
        device = await iscsi.aopen(url, **options)
        relay.drop()
        with pytest.raises(CommandTimeout, match=r"window stays closed .*gave up"):
            async with asyncio.timeout(WAIT_S):
                await device.read(0, 1)
        await device.close()

    asyncio.run(main())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_window_that_opens_for_the_recovery_alone_is_noticed(engine, disk, way, asynchronous):
    """What waits to be sent again finds the window closed: a timeout, and another connection."""
    _relay, url = way
    shut = []

    def before(peer, header, data):
        if header.cdb_bytes[0] in READS and not shut:
            shut.append(header)
            raise ConnectionResetError
        if disk.connections == 2:
            is_last = header.cdb_bytes[0] == 0x12 and header.cdb_bytes[2] == 0x80
            peer.window = 0 if is_last else 1
        return False

    serve = disk._log_in

    def log_in(peer):
        peer.window = 1 if disk.connections == 1 else 32
        serve(peer)

    disk.before, disk._log_in = before, log_in
    options = {"recovery": QUICK, "timeouts": LATE}

    async def main():
        async with await iscsi.aopen(url, **options) as device, asyncio.timeout(WAIT_S):
            assert len(await device.read(0, 1)) == BLOCK
            assert device.recoveries == 2

    if asynchronous:
        asyncio.run(main())
        return
    with iscsi.open(url, engine, **options) as device:
        assert len(device.read(0, 1)) == BLOCK
        assert device.recoveries == 2


@pytest.mark.parametrize("page", [0x00, 0x80])
@pytest.mark.parametrize("trouble", ["garbage", "busy", "aborted"])
def test_trouble_while_the_unit_is_asked_its_name_does_not_make_it_another(
    engine, disk, way, page, trouble
):
    relay, url = way
    left = [2]  # the block limits are asked for by way of page 0 too
    with iscsi.open(url, engine, recovery=QUICK, timeouts=LATE) as device:

        def before(peer, header, data):
            cdb = header.cdb_bytes
            if cdb[0] != 0x12 or not cdb[1] & 1 or cdb[2] != page or not left[0]:
                return False
            left[0] -= 1
            if trouble == "garbage":
                peer.stream.sendall(GARBAGE)
            elif trouble == "busy":
                peer.send(Opcode.SCSI_RESPONSE, to=header, status=8)
            else:
                disk.check(peer, header, 0x0B, 0x0000)
            return True

        disk.before = before
        relay.drop()
        assert len(device.read(0, 1)) == BLOCK
        assert left == [0]


def test_limits_without_end_are_possible(engine, disk, way):
    relay, url = way
    for_ever = float("inf")
    timeouts = Timeouts(command_s=for_ever, login_s=for_ever, task_management_s=for_ever)
    recovery = Recovery(initial_s=0, limit_s=for_ever)
    with iscsi.open(url, engine, timeouts=timeouts, recovery=recovery) as device:
        relay.drop()
        assert len(device.read(0, 1)) == BLOCK
        device.test_unit_ready()

    async def main():
        async with await iscsi.aopen(url, timeouts=timeouts, recovery=recovery) as device:
            relay.drop()
            assert len(await device.read(0, 1)) == BLOCK

    asyncio.run(main())


@pytest.mark.parametrize("name", ["command_s", "login_s", "ping_interval_s", "ping_timeout_s"])
def test_a_time_that_is_no_number_is_refused(name):
    with pytest.raises(ValueError, match="number"):
        Timeouts(**{name: float("nan")})
    with pytest.raises(ValueError, match="recovery"):
        Recovery(limit_s=float("nan"))


# --- a unit that is busy with one thing only -----------------------------------------------------


@pytest.mark.parametrize("answer", ["busy", "attention"])
def test_writes_that_are_always_put_off_end_though_reads_go_well(disk, way, answer):
    _, url = way

    def before(peer, header, data):
        if header.cdb_bytes[0] not in WRITES:
            return False
        if answer == "busy":
            peer.send(Opcode.SCSI_RESPONSE, to=header, status=8)
        else:
            disk.check(peer, header, 6, 0x2900)
        return True

    disk.before = before

    async def main():
        async with await iscsi.aopen(url, timeouts=LATE, recovery=NEVER) as device:
            writing = asyncio.create_task(device.write(0, bytes(BLOCK)))
            async with asyncio.timeout(WAIT_S):
                while not writing.done():
                    await device.read(8, 1)
                with pytest.raises(ScsiError):
                    await writing

    asyncio.run(main())


# --- many at once --------------------------------------------------------------------------------


def test_every_one_of_many_cancelled_reads_is_aborted_at_the_target(disk, way):
    """More than there are places for requests: the others follow as places become free."""
    _, url = way
    held, aborted = [], []

    def before(peer, header, data):
        if header.cdb_bytes[0] in READS and header.cdb_bytes[5] == 100:
            held.append(header.itt)
            return True
        return False

    def control(peer, header, data):
        if header.opcode is not Opcode.TASK_MANAGEMENT_REQUEST:
            return False
        aborted.append(header.referenced_task_tag)
        numbers = {"exp_cmd_sn": header.cmd_sn, "max_cmd_sn": header.cmd_sn + peer.window}
        peer.send(Opcode.TASK_MANAGEMENT_RESPONSE, itt=header.itt, response=0, **numbers)
        return True

    disk.before, disk.control = before, control

    async def main():
        async with await iscsi.aopen(url, recovery=QUICK, queue_depth=32) as device:
            tasks = [asyncio.create_task(device.read(100, 1)) for _ in range(30)]
            await eventually(lambda: len(held) == 30, "30 reads")
            for task in tasks:
                task.cancel()
            async with asyncio.timeout(WAIT_S):
                ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(each) for each in ends} == {asyncio.CancelledError}
            assert device.core.worker.hot("outstanding") == 0
            assert device.recoveries == 0

    asyncio.run(main())
    assert sorted(aborted) == sorted(held)


def test_thousands_of_reads_may_wait_at_once(disk, way):
    _, url = way
    go_on = threading.Event()

    def before(peer, header, data):
        if header.cdb_bytes[0] in READS:
            go_on.wait(WAIT_S)
        return False

    disk.before = before

    async def main():
        async with await iscsi.aopen(url, recovery=QUICK) as device:
            reads = [asyncio.create_task(device.read(n, 1)) for n in range(2500)]
            await asyncio.sleep(0.05)
            go_on.set()
            assert {len(found) for found in await asyncio.gather(*reads)} == {BLOCK}

    asyncio.run(main())


# --- whose device it is --------------------------------------------------------------------------


def test_a_second_thread_is_told_that_the_device_is_in_use(engine, disk, way):
    _, url = way
    reading, go_on, found = threading.Event(), threading.Event(), []

    def before(peer, header, data):
        if header.cdb_bytes[0] in READS:
            reading.set()
            go_on.wait(WAIT_S)
        return False

    disk.before = before
    with iscsi.open(url, engine, recovery=NEVER) as device:

        def other():
            reading.wait(WAIT_S)
            for call in (lambda: device.read(1, 1), device.flush, device.close):
                try:
                    call()
                except Exception as error:
                    found.append(error)
            go_on.set()

        thread = threading.Thread(target=other)
        thread.start()
        assert len(device.read(0, 1)) == BLOCK
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert len(found) == 3
        assert all("thread" in str(error) for error in found), found
        assert len(device.read(0, 1)) == BLOCK


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_name_that_can_be_none_has_no_address(engine, asynchronous):
    url = f"iscsi://{'a' * 70}.example/iqn.2026-01.org.example:mock/0"
    with pytest.raises(ConnectionLost, match="has no address"):
        asyncio.run(iscsi.aopen(url)) if asynchronous else iscsi.open(url, engine)


# --- interruptions -------------------------------------------------------------------------------


@contextmanager
def interrupted(*after_s):
    """Send this process SIGINT so many seconds from now, each."""

    def send():
        for seconds in after_s:
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        sender.join(WAIT_S)


def hold_reads(disk):
    """Leave the reads of block 100 without an answer. Their headers."""
    held = []

    def before(peer, header, data):
        if header.cdb_bytes[0] in READS and header.cdb_bytes[5] == 100:
            held.append(header)
            return True
        return False

    disk.before = before
    return held


@pytest.mark.parametrize("recovery", [NEVER, QUICK])
@pytest.mark.parametrize("times", [(0.2,), (0.2, 0.2)])
def test_an_interruption_stays_one_and_leaves_nothing_under_way(engine, disk, way, recovery, times):
    """Not a lost connection's error in its place; and the second one cuts the drain short."""
    _, url = way
    hold_reads(disk)
    device = iscsi.open(url, engine, recovery=recovery)
    with interrupted(*times):
        with pytest.raises(KeyboardInterrupt):
            device.read(100, 1)
        assert device.core.worker.hot("outstanding") == 0
    if recovery is QUICK:
        assert len(device.read(0, 1)) == BLOCK
    device.close()


@pytest.mark.parametrize("recovery", [NEVER, QUICK])
def test_a_request_that_is_interrupted_stays_interrupted(engine, disk, way, recovery):
    _, url = way
    disk.control = lambda peer, header, data: header.opcode is Opcode.TASK_MANAGEMENT_REQUEST
    with (
        iscsi.open(url, engine, recovery=recovery) as device,
        interrupted(0.2),
        pytest.raises(KeyboardInterrupt),
    ):
        device.reset_unit()


def test_an_interrupted_recovery_is_begun_anew_by_the_next_call(engine, disk, way):
    relay, url = way
    recovery = Recovery(initial_s=0.05, maximum_s=0.05, limit_s=0.5)
    with iscsi.open(url, engine, recovery=recovery) as device:
        relay.refuse()
        relay.drop()
        with interrupted(0.2), pytest.raises(KeyboardInterrupt):
            device.read(0, 1)
        time.sleep(0.5)  # The limit of the first try has passed.
        relay.refuse(False)
        assert len(device.read(0, 1)) == BLOCK


def test_a_queued_read_that_is_cancelled_leaves_no_trace_of_its_memory(disk, way):
    """It was never sent, so it ends at once; nothing may look at its record afterwards."""
    _, url = way
    held = hold_reads(disk)

    async def main():
        late = Timeouts(command_s=2)
        async with await iscsi.aopen(url, queue_depth=1, timeouts=late) as device:
            first = asyncio.create_task(device.read(100, 1))
            await eventually(lambda: held, "the first read")
            others = [asyncio.create_task(device.read(n, 1)) for n in range(3)]
            await asyncio.sleep(0)
            others[1].cancel()
            await asyncio.wait([others[1]], timeout=WAIT_S)
            queue = device.core.worker.record["jobs"]
            assert queue["tail"] - queue["head"] == 2
            with pytest.raises(CommandTimeout):
                await first
            assert [len(await others[0]), len(await others[2])] == [BLOCK, BLOCK]

    disk.control = lambda peer, header, data: end_task(peer, header)
    asyncio.run(main())


def end_task(peer, header):
    """Answer every task management request with success."""
    if header.opcode is not Opcode.TASK_MANAGEMENT_REQUEST:
        return False
    numbers = {"exp_cmd_sn": header.cmd_sn, "max_cmd_sn": header.cmd_sn + peer.window}
    peer.send(Opcode.TASK_MANAGEMENT_RESPONSE, itt=header.itt, response=0, **numbers)
    return True


# --- resets --------------------------------------------------------------------------------------


def test_no_command_is_sent_while_a_reset_is_under_way(disk, way):
    """It could be ended by it or not, so it could be executed twice."""
    _, url = way
    hold_reads(disk)
    resets = []

    def control(peer, header, data):
        if header.opcode is not Opcode.TASK_MANAGEMENT_REQUEST:
            return False
        if header.function == TaskFunction.LOGICAL_UNIT_RESET:
            resets.append((peer, header))  # Its answer comes later.
            return True
        numbers = {"exp_cmd_sn": header.cmd_sn, "max_cmd_sn": header.cmd_sn + peer.window}
        peer.send(Opcode.TASK_MANAGEMENT_RESPONSE, itt=header.itt, response=5, **numbers)
        return True

    disk.control = control

    async def main():
        late = Timeouts(command_s=0.5, task_management_s=5)
        async with await iscsi.aopen(url, timeouts=late, recovery=QUICK) as device:
            reading = asyncio.create_task(device.read(100, 1))
            await eventually(lambda: resets, "a reset")
            writing = asyncio.create_task(device.write(7, b"once" * 128))
            await asyncio.sleep(0.1)
            assert ("write", 7, 1) not in disk.log
            end_task(*resets[0])
            with pytest.raises(CommandTimeout):
                await reading
            await writing
            assert device.recoveries == 0

    asyncio.run(main())
    assert disk.log.count(("write", 7, 1)) == 1


def test_a_reset_that_the_caller_asks_for_sends_again_what_it_took_along(disk, way):
    _, url = way
    held = hold_reads(disk)
    disk.control = lambda peer, header, data: end_task(peer, header)

    async def main():
        async with await iscsi.aopen(url, recovery=QUICK) as device:
            reading = asyncio.create_task(device.read(100, 1))
            await eventually(lambda: held, "the read")
            disk.before = lambda peer, header, data: False
            assert await device.reset_unit() == 0
            async with asyncio.timeout(WAIT_S):
                assert len(await reading) == BLOCK

    asyncio.run(main())


@pytest.mark.parametrize("who", ["the session", "the caller"])
def test_a_reset_ends_what_reserve_held(engine, disk, way, who):
    """The session tells when it was its own doing; the caller who asked for it knows."""
    relay, url = way
    held = hold_reads(disk)
    first = disk.before

    def before(peer, header, data):
        if header.cdb_bytes[0] in (0x16, 0x17):
            peer.send(Opcode.SCSI_RESPONSE, to=header)
            return True
        return first(peer, header, data)

    def control(peer, header, data):
        if getattr(header, "function", 0) == TaskFunction.ABORT_TASK:
            numbers = {"exp_cmd_sn": header.cmd_sn, "max_cmd_sn": header.cmd_sn + peer.window}
            peer.send(Opcode.TASK_MANAGEMENT_RESPONSE, itt=header.itt, response=5, **numbers)
            return True
        return end_task(peer, header)

    disk.before, disk.control = before, control
    with iscsi.open(url, engine, timeouts=LATE, recovery=QUICK) as device:
        device.session.command(bytes((0x16, 0, 0, 0, 0, 0)))
        if who == "the caller":
            assert device.reset_unit() == 0
            relay.drop()
            assert len(device.read(0, 1)) == BLOCK
            return
        with pytest.raises(ReservationLost, match="reset"):
            device.read(100, 1)
        assert held


def test_a_forked_child_that_closes_the_device_leaves_the_parents_alone(disk, way):
    _, url = way
    asked = []
    disk.control = lambda peer, header, data: asked.append(header.opcode) or False
    with iscsi.open(url, recovery=NEVER) as device:
        assert len(device.read(0, 1)) == BLOCK
        child = os.fork()
        if not child:
            status = 1
            try:
                try:
                    device.read(0, 1)
                except WrongThread:
                    device.close()
                    status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert asked == []
        assert [len(device.read(n, 1)) for n in range(4)] == [BLOCK] * 4
