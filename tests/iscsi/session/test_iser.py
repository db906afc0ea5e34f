"""A session over iSER: `iser://` is all that a user changes. The engine's half against a target on
an ordinary socket, through software iWARP on both sides.
"""

import asyncio
import socket
import threading

import numpy as np
import pytest

import host
import host.inline
import iscsi
import ppe.cycle.services.iser
import ppe.cycle.services.rdma  # noqa: F401 - the same
from iscsi.session import leaving
from iscsi.session.errors import ConnectionLost, LoginTimeout
from iscsi.session.initiator import InitiatorSession
from iscsi.session.options import NEVER
from iscsi.wire import scsi
from iscsi.wire.errors import LoginRejected, ScsiError
from ppe.cycle.rnic.records import mr_table_at
from shm.verbs_numbers import (
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND_WITH_INV,
)
from tests.iscsi.iser_target import NAME, SocketTarget
from tests.iscsi.wire.full_feature import BLOCK, pattern
from tests.iscsi.wire.iser.pair import counts


@pytest.fixture
def engine():
    with host.connect("inline:") as handle:
        yield handle


@pytest.fixture(params=["inline", "daemon"])
def either(request):
    """An engine in this thread, and one in a process of its own."""
    name = "inline:" if request.param == "inline" else request.getfixturevalue("daemon")
    with host.connect(name) as handle:
        yield handle


def opened(engine, target, **options):
    return InitiatorSession(engine, target.url, recovery=NEVER, **options)


def write_and_read(session, lba, blocks):
    data = pattern(blocks * BLOCK, blocks).tobytes()
    session.command(scsi.write_16(lba, blocks), data=data)
    assert session.command(scsi.read_16(lba, blocks), length=len(data)).data == data


@pytest.mark.parametrize("invalidates", [True, False], ids=["remote", "local"])
def test_what_is_written_is_read_back(either, invalidates):
    with SocketTarget(invalidates=invalidates) as target, opened(either, target) as session:
        for blocks in (1, 8, 16, 40, 512):
            write_and_read(session, 3, blocks)
        kinds = counts(target.side.qp)
        assert kinds[WR_RDMA_WRITE] == 5
        assert kinds[WR_RDMA_READ] == 2, "of those whose data does not go with the command"
        assert (WR_SEND_WITH_INV in kinds) == invalidates
        assert session.session_params.rdma_extensions


def test_a_session_leaves_nothing_registered_in_the_engine(engine):
    with SocketTarget() as target:
        for _ in range(3):
            with opened(engine, target) as session:
                write_and_read(session, 0, 40)
                assert registered(engine) == 1, "the connection's own key; no tag is open"
            assert registered(engine) == 0
        assert target.served == 3


def registered(engine):
    """Rows of the engine's table of memory that are taken."""
    return int(mr_table_at(engine._port.tables.memory_table)[0]["used"])


def test_a_check_condition_reaches_the_caller(engine):
    with SocketTarget() as target, opened(engine, target) as session:
        with pytest.raises(ScsiError):
            session.command(scsi.read_16(1 << 30, 8), length=8 * BLOCK)
        write_and_read(session, 0, 8)


def test_a_target_of_another_name_refuses_the_login(engine):
    with SocketTarget() as target, pytest.raises(LoginRejected):
        InitiatorSession(engine, target.url.replace(":iser/", ":other/"), recovery=NEVER)


def test_a_target_that_hangs_up_ends_the_session_with_a_reason(engine):
    with SocketTarget() as target, opened(engine, target) as session:
        write_and_read(session, 0, 8)
        target.answer = lambda side, what: target.hang_up.set() or True
        with pytest.raises(ConnectionLost):
            session.command(scsi.inquiry(), length=96)


def test_a_lost_connection_is_made_again_and_its_commands_repeated(engine):
    with SocketTarget() as target, InitiatorSession(engine, target.url) as session:
        write_and_read(session, 0, 64)
        target.hang_up.set()
        assert (
            session.command(scsi.read_16(0, 64), length=64 * BLOCK).data
            == pattern(64 * BLOCK, 64).tobytes()
        )
        assert session.core.recoveries == 1
        assert target.served == 2


def test_many_commands_are_under_way_at_once(engine):
    with SocketTarget() as target, opened(engine, target, queue_depth=16) as session:
        session.examine()
        with engine.alloc(512 * BLOCK) as out, engine.alloc(512 * BLOCK) as back:
            out.array[:] = pattern(512 * BLOCK)
            for array, is_write in ((out, True), (back, False)):
                session.transfer(
                    lba=0,
                    blocks=512,
                    address=array.address,
                    is_write=is_write,
                    block_size=BLOCK,
                    per_command=16,
                )
            assert np.array_equal(out.array, back.array)


def test_a_target_that_says_nothing_to_a_login_is_given_up(engine):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"iser://127.0.0.1:{listener.getsockname()[1]}/{NAME}/0"
        with pytest.raises(LoginTimeout, match="did not finish the login"):
            InitiatorSession(engine, url, recovery=NEVER, login_timeout_s=0.5)
        assert registered(engine) == 0


def test_a_target_that_starts_and_does_not_answer_the_login_is_given_up(engine):
    with SocketTarget(mute=True) as target:
        with pytest.raises(LoginTimeout, match="did not finish the login"):
            InitiatorSession(engine, target.url, recovery=NEVER, login_timeout_s=0.5)
        assert registered(engine) == 0


def test_a_target_that_does_not_look_at_what_came_right_behind_its_reply_is_made_to(engine):
    with SocketTarget(misses=True) as target, opened(engine, target) as session:
        write_and_read(session, 0, 40)


def test_after_a_logout_the_target_hangs_up_first(engine, monkeypatch):
    monkeypatch.setattr(leaving, "HANG_UP_S", 20.0)
    with SocketTarget() as target:
        for _ in range(3):
            with opened(engine, target) as session:
                write_and_read(session, 0, 8)
        assert (target.served, target.cut_short) == (3, 0)


def test_a_target_that_does_not_hang_up_after_a_logout_is_not_waited_for(engine):
    with SocketTarget(hangs_up=False) as target:
        for _ in range(2):  # it serves one connection after the other
            with opened(engine, target) as session:
                write_and_read(session, 0, 8)


@pytest.mark.parametrize(
    ("pieces", "blocks", "commands", "copied"),
    [(16, 8, 1, 16), (2, 128, 2, 0), (1, 40, 1, 0)],
    ids=["small ones share a command", "large ones have one each", "one is no list"],
)
def test_lists_of_buffers_become_few_commands(either, pieces, blocks, commands, copied):
    size = blocks * BLOCK
    with (
        SocketTarget() as target,
        iscsi.open(target.url, either, recovery=NEVER) as device,
        device.alloc(2 * pieces * size) as memory,
    ):
        # Every other piece, so that no two are neighbours; the last one first.
        lie = [memory.array[2 * n * size : (2 * n + 1) * size] for n in reversed(range(pieces))]
        data = pattern(pieces * size, 5)
        for number, piece in enumerate(lie):
            piece[:] = data[number * size : (number + 1) * size]
        before = counts(target.side.qp)
        device.writev(3, lie)
        for piece in lie:
            piece[:] = 0
        device.readv(3, lie)
        assert np.array_equal(np.concatenate(lie), data)
        after = counts(target.side.qp)
        for kind in (WR_RDMA_READ, WR_RDMA_WRITE):
            assert after[kind] - before.get(kind, 0) == commands
        assert device.copied_bytes == 2 * copied * size


# --- in an event loop ------------------------------------------------------------------------


async def open_in_loop(target, engine, **options):
    return await iscsi.aopen(target.url, engine, recovery=NEVER, **options)


def in_a_loop(work):
    """Run it in an event loop; it must not take for ever."""

    async def limited():
        async with asyncio.timeout(60):
            await work()

    asyncio.run(limited())


@pytest.fixture(params=["inline", "daemon"])
def watched(request):
    """Engines that an event loop can watch."""
    name = "inline:?readiness=epoll"
    if request.param == "daemon":
        name = request.getfixturevalue("daemon")
    with host.connect(name) as handle:
        yield handle


def test_many_transfers_are_under_way_in_an_event_loop(watched):
    async def work():
        async with await open_in_loop(target, watched) as device:
            data = {lba: pattern(40 * BLOCK, lba).tobytes() for lba in range(0, 400, 40)}
            await asyncio.gather(*(device.write(lba, data[lba]) for lba in data))
            found = await asyncio.gather(*(device.read(lba, 40) for lba in data))
            assert [bytes(each) for each in found] == list(data.values())

    with SocketTarget() as target:
        in_a_loop(work)


def test_the_loop_goes_on_while_a_target_says_nothing_to_a_login(watched):
    turns = []

    async def count():
        while True:
            turns.append(1)
            await asyncio.sleep(0.01)

    async def work():
        counting = asyncio.create_task(count())
        with pytest.raises(LoginTimeout, match="did not finish the login"):
            await open_in_loop(target, watched, login_timeout_s=0.5)
        counting.cancel()

    with SocketTarget(mute=True) as target:
        in_a_loop(work)
    assert len(turns) > 5


def test_a_login_that_is_cancelled_leaves_nothing():
    async def work():
        opening = asyncio.create_task(open_in_loop(target, engine))
        while not target.heard.is_set():
            await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    with host.connect("inline:?readiness=epoll") as engine, SocketTarget(mute=True) as target:
        in_a_loop(work)
        assert registered(engine) == 0


def test_a_connection_lost_in_an_event_loop_is_made_again(watched):
    async def work():
        async with await iscsi.aopen(target.url, watched) as device:
            data = pattern(64 * BLOCK, 1).tobytes()
            await device.write(0, data)
            target.hang_up.set()
            assert bytes(await device.read(0, 64)) == data
            assert device.recoveries == 1

    with SocketTarget() as target:
        in_a_loop(work)
        assert target.served == 2


def test_a_target_hangs_up_first_after_a_logout_in_an_event_loop(watched, monkeypatch):
    monkeypatch.setattr(leaving, "HANG_UP_S", 20.0)

    async def work():
        for _ in range(3):
            async with await iscsi.aopen(target.url, watched) as device:
                await device.write(0, pattern(8 * BLOCK, 1).tobytes())
                await device.session.reconnect()
                await device.read(0, 8)

    with SocketTarget() as target:
        in_a_loop(work)
        assert (target.served, target.cut_short) == (6, 0)


def test_a_target_that_stays_after_a_logout_is_not_waited_for_in_an_event_loop(watched):
    async def work():
        for _ in range(2):  # it serves one connection after the other
            async with await open_in_loop(target, watched) as device:
                await device.read(0, 8)

    with SocketTarget(hangs_up=False) as target:
        in_a_loop(work)


def test_a_target_that_is_not_there_is_said_in_an_event_loop(watched):
    async def work():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await iscsi.aopen(f"iser://127.0.0.1:{port}/{NAME}/0", watched, recovery=NEVER)

    in_a_loop(work)


def hear_and_close(listener):
    """Take one connection, read what it says first, and close."""
    with listener.accept()[0] as connection:
        connection.recv(4096)


def test_a_peer_that_closes_in_the_start_up_is_named(engine):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closing = threading.Thread(target=hear_and_close, args=[listener])
        closing.start()
        url = f"iser://127.0.0.1:{listener.getsockname()[1]}/{NAME}/0"
        with pytest.raises(ConnectionLost, match="ended the connection during the login"):
            InitiatorSession(engine, url, recovery=NEVER)
        closing.join(20)
        assert registered(engine) == 0
