"""Connections that are cut, at every byte and at any time: what was acknowledged is there, nothing
is executed twice that must not be, and it is given up when the user says so.
"""

import asyncio
import os
import random
import socket
from functools import partial

import pytest

import iscsi
from iscsi.session.errors import ConnectionLost, ReservationLost, UnitChanged, UnknownOutcome
from iscsi.session.initiator import InitiatorSession
from iscsi.session.options import NEVER, Recovery, Timeouts
from iscsi.session.perf import Load, LoadPlan
from iscsi.wire import bhs, discovery
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import LoginRejected, RemoteProtocolError
from iscsi.wire.names import parse_address
from iscsi.wire.sense import Asc, SenseKey
from tests.iscsi.session.disk import BLOCK, COMPARE_AND_WRITE, WRITES
from tests.iscsi.session.mock_target import NAME, Closed, mock_target
from tests.iscsi.session.modes import MODES, moved_by
from tests.iscsi.session.relay import relay_to
from tests.iscsi.session.tgt import wait_for

QUICK = Recovery(initial_s=0, maximum_s=0.05, limit_s=20)


def drop_on(disk, opcodes, times=1):
    """Have the connection end instead of an answer, after the command was executed."""
    left = [times]

    def before(peer, header, data):
        if header.cdb_bytes[0] in opcodes and left[0]:
            left[0] -= 1
            send, peer.send = peer.send, lambda *a, **k: None
            disk.run(peer, header, data)
            peer.send = send
            raise ConnectionResetError
        return False

    disk.before = before


@pytest.mark.slow
@pytest.mark.parametrize(("receive", "depth"), MODES)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_connection_cut_at_any_byte_loses_nothing(engine, disk, way, receive, depth, direction):
    relay, url = way
    step = 1 if receive == "staged" else 7
    with iscsi.open(url, engine, **moved_by(receive, depth), recovery=QUICK) as device:
        device.write(8, bytes(2 * BLOCK))
        before = list(relay.passed)
        device.write(8, bytes(2 * BLOCK))
        device.read(8, 2)
        length = relay.passed[direction == "down"] - before[direction == "down"]
        for at in range(1, length + 1, step):
            device.write(1000 + at, at.to_bytes(4, "big") * 128)
            relay.cut_after(**{direction: at})
            data = os.urandom(2 * BLOCK)
            device.write(8, data)
            assert device.read(8, 2) == data, f"cut after {at} bytes {direction}"
            relay.cut_after()
            assert disk.data[8 * BLOCK : 10 * BLOCK] == data
        assert device.recoveries >= (length - 1) // step
        for at in range(1, length + 1, step):
            assert device.read(1000 + at, 1) == at.to_bytes(4, "big") * 128


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_login_cut_at_many_places_is_tried_again(engine, disk, way, direction):
    relay, url = way
    with iscsi.open(url, engine, recovery=QUICK) as device:
        device.write(0, b"kept" * 128)
        for at in range(1, 900, 37):
            relay.drop()
            relay.cut_after(**{direction: at})
            assert device.read(0, 1) == b"kept" * 128, f"cut after {at} bytes"
            relay.cut_after()
    assert len(set(disk.isids)) == 1, "the same session is reinstated"


@pytest.mark.parametrize("times", [1, 3])
def test_a_write_whose_answer_was_lost_is_repeated(engine, disk, way, times):
    _, url = way
    drop_on(disk, WRITES, times)
    with iscsi.open(url, engine, recovery=QUICK) as device:
        assert device.write(5, b"w" * BLOCK) == BLOCK
        assert device.recoveries == times
    assert disk.log.count(("write", 5, 1)) == times + 1


def test_a_compare_and_write_whose_answer_was_lost_is_never_repeated(engine, disk, way):
    _, url = way
    drop_on(disk, (COMPARE_AND_WRITE,))
    with iscsi.open(url, engine, recovery=QUICK) as device:
        with pytest.raises(UnknownOutcome, match="may have been executed"):
            device.compare_and_write(7, bytes(BLOCK), b"n" * BLOCK)
        assert device.read(7, 1) == b"n" * BLOCK, "the device goes on"
    assert disk.log.count(("compare and write", 7)) == 1


@pytest.mark.parametrize("call", ["persistent_reserve_out", "orwrite"])
def test_other_commands_with_a_lasting_effect_are_never_repeated(engine, disk, way, call):
    _, url = way
    drop_on(disk, (0x5F, 0x8B))
    with iscsi.open(url, engine, recovery=QUICK) as device:
        orwrite = partial(device.session.command, bytes((0x8B, *bytes(12), 1, 0, 0)))
        calls = {
            "orwrite": partial(orwrite, data=bytes(BLOCK)),
            "persistent_reserve_out": partial(device.persistent_reserve_out, 0, 0, 7),
        }
        with pytest.raises(UnknownOutcome):
            calls[call]()
        assert len(device.read(0, 1)) == BLOCK
    assert len([entry for entry in disk.log if entry[0] in (0x5F, 0x8B)]) == 1


@pytest.mark.parametrize("call", ["unmap", "write_same", "synchronize_cache"])
def test_commands_that_may_be_done_twice_are_repeated(engine, disk, way, call):
    _, url = way
    arguments = {"unmap": ([(0, 8)],), "write_same": (0, 8, bytes(BLOCK)), "synchronize_cache": ()}
    drop_on(disk, (0x42, 0x93, 0x35, 0x91))
    with iscsi.open(url, engine, recovery=QUICK) as device:
        getattr(device, call)(*arguments[call])
        assert device.recoveries == 1


def test_writes_of_the_same_block_keep_their_order_through_losses(disk, way):
    """The last call decides what is there, and nobody ever reads an older write again."""
    relay, url = way
    chance = random.Random(3)
    place = 64

    async def main():
        async with await iscsi.aopen(url, recovery=QUICK, queue_depth=16) as device:
            acknowledged = 0

            async def write(number):
                nonlocal acknowledged
                await device.write(place, number.to_bytes(4, "big") * 256)
                assert number > acknowledged, "acknowledged in the order of the calls"
                acknowledged = number

            async def look():
                floor = acknowledged
                data = await device.read(place, 2)
                number = int.from_bytes(data[:4], "big")
                assert data == data[:4] * 256
                assert number >= floor, "an acknowledged write is gone"

            async def cut():
                for _ in range(12):
                    await asyncio.sleep(0.01)
                    relay.cut_after(up=chance.randrange(1, 3000))
                relay.cut_after()

            cutter = asyncio.create_task(cut())
            number = 0
            while not cutter.done():
                todo = []
                for _ in range(6):
                    number += 1
                    todo.append(write(number))
                todo += [look() for _ in range(3)]
                await asyncio.gather(*todo)
            await cutter
            assert device.recoveries > 0
            return number

    last = asyncio.run(main())
    assert disk.data[place * BLOCK : place * BLOCK + 4] == last.to_bytes(4, "big")


@pytest.mark.parametrize("later", ["write", "unmap", "compare_and_write"])
def test_a_repeated_write_never_overwrites_a_later_one(disk, way, later):
    """The first write has no answer; what is called after it must not be undone by its repeat."""
    relay, url = way
    held = []

    def before(peer, header, data):
        if header.cdb_bytes[0] in WRITES and not held:
            held.append(header)
            disk.data[: 2 * BLOCK] = data
            return True  # Executed, and never answered.
        return False

    disk.before = before

    async def main():
        async with await iscsi.aopen(url, recovery=QUICK) as device:
            first = asyncio.create_task(device.write(0, b"1" * 2 * BLOCK))
            async with asyncio.timeout(10):
                while not held:
                    await asyncio.sleep(0.01)
            calls = {
                "write": lambda: device.write(1, b"2" * BLOCK),
                "unmap": lambda: device.unmap([(1, 1)]),
                "compare_and_write": lambda: device.compare_and_write(
                    1, b"1" * BLOCK, b"2" * BLOCK
                ),
            }
            second = asyncio.create_task(calls[later]())
            elsewhere = asyncio.create_task(device.write(100, b"3" * BLOCK))
            await elsewhere
            await asyncio.sleep(0.05)
            assert not second.done()
            relay.drop()
            await asyncio.gather(first, second)

    asyncio.run(main())
    assert disk.data[:BLOCK] == b"1" * BLOCK
    if later == "unmap":
        assert [entry[0] for entry in disk.log[-2:]] == ["write", 0x42]
    else:
        assert disk.data[BLOCK : 2 * BLOCK] == b"2" * BLOCK
    assert disk.data[100 * BLOCK : 101 * BLOCK] == b"3" * BLOCK


def test_many_reads_and_writes_in_asyncio_survive_cuts(disk, way):
    relay, url = way

    async def main():
        async with await iscsi.aopen(url, recovery=QUICK) as device:
            pieces = [os.urandom(8 * BLOCK) for _ in range(64)]
            for round_number in range(4):
                relay.cut_after(up=9000 * round_number + 500)
                await asyncio.gather(*(device.write(8 * n, p) for n, p in enumerate(pieces)))
                relay.cut_after(down=20000 * round_number + 300)
                found = await asyncio.gather(*(device.read(8 * n, 8) for n in range(64)))
                assert found == pieces
            assert device.recoveries >= 4

    asyncio.run(main())


@pytest.mark.parametrize(("receive", "depth"), MODES)
def test_a_verified_load_survives_cuts(engine, way, receive, depth):
    relay, url = way
    plan = LoadPlan(
        blocks=4, seconds=0.6, warm_up_s=0, random=True, write_percent=50, verify=True,
        span_blocks=512,
    )  # fmt: skip
    options = {**moved_by(receive, depth), "recovery": QUICK}
    with iscsi.open(url, engine, **options) as device:
        load = Load(device, plan)
        try:
            relay.cut_after(up=30_000)
            go, left = load._go, [(50_000, 1 << 60), (1 << 60, 40_000), (20_000, 1 << 60)]

            def go_and_cut(duration):
                if left:
                    relay.cut_after(*left.pop())
                go(duration)

            load._go = go_and_cut
            result = load.run()
        finally:
            load.close()
        assert device.recoveries >= 2
    assert result.verified_blocks > 0


def test_reconnect_makes_a_new_connection_and_loses_nothing(engine, disk, way):
    relay, url = way
    with iscsi.open(url, engine, recovery=QUICK) as device:
        device.write(0, b"r" * BLOCK)
        before = relay.accepted
        device.reconnect()
        assert relay.accepted == before + 1
        assert device.read(0, 1) == b"r" * BLOCK

    async def main():
        async with await iscsi.aopen(url, recovery=QUICK) as device:
            reading = asyncio.create_task(device.read(0, 2048))
            await asyncio.sleep(0)
            await device.reconnect()
            assert len(await reading) == 2048 * BLOCK
            assert device.recoveries == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("recovery", "said"),
    [
        (Recovery(initial_s=0.01, maximum_s=0.02, limit_s=0.3), r"gave up after 0\.3 s"),
        (Recovery(initial_s=0.01, tries=3), "gave up after 3 logins"),
        (NEVER, "the target"),
    ],
)
def test_it_is_given_up_when_the_user_says(engine, disk, way, recovery, said):
    relay, url = way
    device = iscsi.open(url, engine, recovery=recovery)
    relay.refuse()
    relay.drop()
    with pytest.raises(ConnectionLost, match=said) as first:
        device.read(0, 1)
    with pytest.raises(ConnectionLost) as second:
        device.read(0, 1)
    assert second.value is first.value
    device.close()


def test_in_asyncio_everything_that_waits_learns_that_it_was_given_up(way):
    relay, url = way

    async def main():
        recovery = Recovery(initial_s=0.01, maximum_s=0.02, limit_s=0.3)
        async with await iscsi.aopen(url, recovery=recovery) as device:
            relay.refuse()
            relay.drop()
            tasks = [device.read(n, 1) for n in range(20)] + [device.flush()]
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(result, ConnectionLost)

    asyncio.run(main())


def test_other_portals_are_tried_in_turn(engine, disk, way):
    relay, url = way
    with mock_target(disk.serve) as second:
        other = second.split("/")[2]
        with iscsi.open(url, engine, recovery=QUICK, portals=[other]) as device:
            device.write(3, b"p" * BLOCK)
            relay.refuse()
            relay.drop()
            assert device.read(3, 1) == b"p" * BLOCK
            assert device.core.connection.portal.address == other


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_portals_of_a_target_are_asked_for(engine, disk, asynchronous):
    """Discovery names a second portal, which is where the device goes when the first is gone."""
    second = []

    def first(peer):
        header = peer.stream.recv(48, socket.MSG_PEEK)
        text = peer.stream.recv(4096, socket.MSG_PEEK)[48:]
        assert header
        if b"SessionType=Discovery" not in text:
            disk.serve(peer)
            return
        peer.log_in()
        header, _ = peer.read_pdu()
        here = discovery.DiscoveredTarget(NAME, (parse_address(second[0]),))
        text = discovery.build_response([here])
        peer.send(Opcode.TEXT_RESPONSE, text, to=header, ttt=bhs.RESERVED_TAG)
        peer.answer(peer.read_pdu()[0])

    async def main(url, relay):
        async with await iscsi.aopen(url, recovery=QUICK, portals="discover") as device:
            relay.refuse()
            relay.drop()
            assert len(await device.read(0, 1)) == BLOCK
            assert device.core.connection.portal.address == second[0]

    with (
        mock_target(disk.serve) as other,
        mock_target(first) as url,
        relay_to(url) as (relay, there),
    ):
        second.append(other.split("/")[2])
        if asynchronous:
            asyncio.run(main(there, relay))
            return
        with iscsi.open(there, engine, recovery=QUICK, portals="discover") as device:
            relay.refuse()
            relay.drop()
            wait_for(lambda: len(device.read(0, 1)) == BLOCK, "a read")
            assert device.core.connection.portal.address == second[0]


def test_a_reservation_that_ended_with_the_connection_is_an_error(engine, disk, way):
    relay, url = way
    disk.before = lambda peer, header, data: (
        header.cdb_bytes[0] in (0x16, 0x17) and peer.send(Opcode.SCSI_RESPONSE, to=header) is None
    )
    for release in (True, False):
        device = iscsi.open(url, engine, recovery=QUICK)
        device.session.command(bytes((0x16, *bytes(5))))
        if release:
            device.session.command(bytes((0x17, *bytes(5))))
        relay.drop()
        if release:
            assert device.write(0, bytes(BLOCK)) == BLOCK
        else:
            with pytest.raises(ReservationLost, match="reservation of LUN 0"):
                device.write(1, bytes(BLOCK))
        device.close()
    assert ("write", 1, 1) not in disk.log


@pytest.mark.parametrize("change", ["serial", "vendor", "blocks"])
def test_another_unit_behind_the_same_name_is_not_written_to(engine, disk, way, change):
    relay, url = way
    new = {"serial": b"SERIAL-2", "vendor": "OTHER", "blocks": 2048}
    device = iscsi.open(url, engine, recovery=QUICK)
    setattr(disk, change, new[change])
    relay.drop()
    with pytest.raises(UnitChanged, match="after the reconnection"):
        device.write(0, bytes(BLOCK))
    device.close()
    assert not disk.log


def test_unit_attentions_after_a_reconnection_are_let_pass(engine, disk, way):
    relay, url = way
    with iscsi.open(url, engine, recovery=QUICK) as device:
        disk.attentions = [Asc.POWER_ON_RESET, Asc.I_T_NEXUS_LOSS, Asc.REPORTED_LUNS_CHANGED]
        relay.drop()
        assert device.read(0, 1) == bytes(BLOCK)
        assert not disk.attentions


def test_a_target_that_breaks_the_protocol_each_time_is_given_up(engine, disk, way):
    _, url = way

    def before(peer, header, data):
        if header.cdb_bytes[0] in WRITES:
            peer.stream.sendall(b"\x3f" + bytes(3) + b"\0" * 44 * 3)
            raise ConnectionResetError
        return False

    disk.before = before
    device = iscsi.open(url, engine, recovery=QUICK)
    with pytest.raises((RemoteProtocolError, ConnectionLost)):
        device.write(0, bytes(BLOCK))
    device.close()


def test_a_target_that_refuses_the_new_login_for_good_is_believed(engine, disk):
    def refuse(peer):
        def admit(identity):
            raise LoginRejected(0x02, 0x04)  # target removed

        peer.log_in(admit)

    with mock_target(disk.serve, refuse) as url, relay_to(url) as (relay, there):
        device = iscsi.open(there, engine, recovery=QUICK)
        relay.drop()
        with pytest.raises(LoginRejected, match="target removed"):
            device.read(0, 1)
        device.close()


def test_commands_of_a_closed_device_are_not_repeated(disk, way):
    relay, url = way

    async def main():
        device = await iscsi.aopen(url, recovery=QUICK)
        relay.refuse()
        relay.drop()
        task = asyncio.create_task(device.write(0, bytes(BLOCK)))
        await asyncio.sleep(0.05)
        await device.close()
        with pytest.raises(Exception, match="closed"):
            await task

    asyncio.run(main())
    assert not disk.log


def test_nothing_is_left_behind_by_many_reconnections(engine, way):
    relay, url = way

    def used():
        return sum(
            len(free) for free in engine._arenas._free.values()
        ), engine._arenas.mapping_count

    with iscsi.open(url, engine, recovery=QUICK) as device:
        for _ in range(3):
            relay.drop()
            device.read(0, 1)
        before = used()
        for _ in range(10):
            relay.drop()
            device.read(0, 1)
        wait_for(lambda: used() == before, f"buffers to come back: {used()} and {before} before")


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("silent", ["login", "unit", "busy unit"])
def test_an_attempt_under_way_ends_with_the_users_limit(engine, disk, way, silent, asynchronous):
    """With its own limits, which are far away, each of these would go on for hours."""
    relay, url = way
    serve = disk._log_in

    def log_in(peer):
        if disk.connections and silent == "login":
            peer.until_closed()
            raise Closed
        serve(peer)

    def before(peer, header, data):
        if disk.connections < 2:
            return False
        if silent == "busy unit":
            peer.send(Opcode.SCSI_RESPONSE, to=header, status=0x08)
        return True

    disk._log_in, disk.before = log_in, before
    options = {
        "recovery": Recovery(initial_s=0.01, maximum_s=0.02, limit_s=0.5),
        "timeouts": Timeouts(command_s=10_000, login_s=10_000, ping_interval_s=0),
    }
    said = {"busy unit": "gave up after 0.5 s", "unit": "not ready in time", "login": "the login"}

    async def main():
        async with await iscsi.aopen(url, **options) as device:
            relay.drop()
            with pytest.raises(ConnectionLost, match=said[silent]):
                await device.read(0, 1)

    if asynchronous:
        asyncio.run(main())
        return
    with iscsi.open(url, engine, **options) as device:
        relay.drop()
        with pytest.raises(ConnectionLost, match=said[silent]):
            device.read(0, 1)


def test_a_session_whose_unit_has_no_medium_is_recovered_too(engine, disk, way):
    relay, url = way

    def before(peer, header, data):
        if header.cdb_bytes[0] == 0x00:
            disk.check(peer, header, SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)
            return True
        return False

    disk.before = before
    with InitiatorSession(engine, url, recovery=QUICK) as session:
        relay.drop()
        assert session.inquiry().vendor == "MOCK"
        assert session.core.recoveries == 1


def test_a_device_that_only_pings_is_idle(engine, disk, way):
    """So the next loss is another one, with time and tries of its own."""
    _, url = way
    with iscsi.open(url, engine, recovery=QUICK) as device:
        assert device.core.is_idle
        device.core.connection.ping()
        assert device.core.worker.has_work()
        assert device.core.is_idle
        device.read(0, 1)
        assert not device.core.worker.has_work()
