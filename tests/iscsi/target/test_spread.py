"""One server over several engines of a daemon: its connections go to the least loaded one, see each
other's data, and meet the same promises wherever they are.
"""

import contextlib
import select
import signal
import socket
import struct
import threading

import numpy as np
import pytest

import host
import ppe.control
import ppe.cycle.services.datamover  # noqa: F401 - compiles while tests are collected
from host.errors import EngineDied, EngineRefused
from iscsi.target.backends import RamBackend
from iscsi.target.config import ServerConfig
from iscsi.target.server import TargetServer
from iscsi.target.units import LogicalUnit, RamDisk, Target
from iscsi.tools.target import DEFAULT_IQN
from iscsi.wire import scsi
from iscsi.wire.bhs import Opcode, TaskFunction
from iscsi.wire.names import Portal
from iscsi.wire.sense import SenseKey
from shm.jit import JIT_DISABLED
from tests.e2e.running import RunningEngine, environment_of
from tests.iscsi.target.managing import (
    COMPLETE,
    begin_write,
    blocks,
    finish_write,
    manage,
)
from tests.iscsi.target.medium import cdb_16
from tests.iscsi.target.serving import (
    BLOCK,
    BLOCKS,
    EVERYWHERE,
    NAME,
    WAIT_S,
    Raw,
    Serving,
    wait_until,
)
from tests.iscsi.target.test_medium_server import ask
from tests.iscsi.tools.running import Serving as Process
from tests.iscsi.tools.running import Shell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain"),
]
SESSIONS = 4
ROUNDS = 40
QUIET_S = 0.3  # in which an answer would come
OR_WRITE = 0x8B
COMPARE_AND_WRITE = 0x89


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    with RunningEngine(directory, "--engines", "2") as made, environment_of(made):
        yield made


@pytest.fixture(scope="module", params=EVERYWHERE)
def serving(request, daemon):
    """A server for a module that has none of its own, in each placement."""
    before = daemon.levels()
    with Serving(engine=daemon.name, placement=request.param, linger_s=0.2) as found:
        yield found
    daemon.assert_settles_at(before)


def spread(serving):
    """How many connections each engine has, by its number."""
    found = serving.server.statistics()["engines"]
    return {each["engine"]: each["connections"] for each in found}


@contextlib.contextmanager
def sessions(serving, count):
    """Sessions of as many initiators, with their unit attentions taken."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(count):
            session = stack.enter_context(serving.log_in(isid=0x80AABBCC1000 + number))
            made.append(session.clear_attention())
        yield made
    serving.wait_idle()


def engines_of(serving):
    """The engine of each session, by its ISID."""
    found = serving.server.statistics()["sessions"]
    return {int(each["isid"], 16) - 0x80AABBCC1000: each["engine"] for each in found}


def ping(session):
    """Wait until everything that was sent before is dealt with; answers to that may come first."""
    session.request(Opcode.NOP_OUT, ttt=0xFFFFFFFF, immediate=1)
    while session.take()[0].opcode is not Opcode.NOP_IN:
        pass


def in_threads(functions):
    """Run each in a thread of its own; raises what the first that failed did."""
    failures = []

    def run(function):
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * WAIT_S)
        assert not thread.is_alive(), "a session does not end"
    if failures:
        raise failures[0]


def test_connections_go_to_the_least_loaded_engine(serving, daemon):
    before = [len(engine["endpoints"]) for engine in daemon.stat()["engines"]]
    with sessions(serving, SESSIONS) as made:
        assert spread(serving) == {0: 2, 1: 2}
        assert sorted(engines_of(serving).values()) == [0, 0, 1, 1]
        after = [len(engine["endpoints"]) for engine in daemon.stat()["engines"]]
        assert [now - then for now, then in zip(after, before, strict=True)] == [2, 2]
        gone = [number for number, engine in engines_of(serving).items() if engine == 1]
        for number in gone:
            made[number].log_out()
            made[number].socket.close()
        wait_until("they have left", lambda: spread(serving) == {0: 2, 1: 0})
        with (
            serving.log_in(isid=0x80AABBCC1008) as one,
            serving.log_in(isid=0x80AABBCC1009) as other,
        ):
            assert spread(serving) == {0: 2, 1: 2}
            for session in (one, other):
                session.clear_attention().read(0, 1)
    assert spread(serving) == {0: 0, 1: 0}


def test_a_discovery_session_works_at_any_engine(serving):
    with serving.log_in(isid=0x80AABBCC1000):
        for _ in range(2):
            with serving.log_in(target=None) as session:
                session.request(Opcode.TEXT_REQUEST, b"SendTargets=All\0", ttt=0xFFFFFFFF, final=1)
                header, data = session.take()
                assert header.opcode is Opcode.TEXT_RESPONSE
                assert f"TargetName={NAME}".encode() in data
    serving.wait_idle()


def test_what_is_written_through_one_engine_is_read_through_the_other(serving):
    with sessions(serving, 2) as (one, other):
        assert sorted(engines_of(serving).values()) == [0, 1]
        for turn in range(ROUNDS):
            writer, reader = (one, other) if turn % 2 else (other, one)
            data = np.random.default_rng(turn).bytes(16 * BLOCK)
            assert writer.write(turn, data).status == 0
            assert reader.read(turn, 16) == data
            assert blocks(serving, turn, 16) == data


def test_sessions_at_both_engines_find_what_they_wrote(serving):
    share = BLOCKS // SESSIONS // 4

    def work(number, session):
        rng = np.random.default_rng(number)
        first = number * share
        model = bytearray(blocks(serving, first, share))
        for _ in range(ROUNDS):
            lba, count = int(rng.integers(share - 64)), int(rng.integers(1, 33))
            data = rng.bytes(count * BLOCK)
            assert session.write(first + lba, data).status == 0
            model[lba * BLOCK : (lba + count) * BLOCK] = data
            lba, count = int(rng.integers(share - 64)), int(rng.integers(1, 33))
            wanted = bytes(model[lba * BLOCK : (lba + count) * BLOCK])
            assert session.read(first + lba, count) == wanted

    with sessions(serving, SESSIONS) as made:
        in_threads(
            lambda number=number, session=session: work(number, session)
            for number, session in enumerate(made)
        )


def test_compare_and_write_counts_right_across_engines(serving):
    place = 7000
    serving.disk.array[place * BLOCK : (place + 1) * BLOCK] = 0

    def count(session):
        done = 0
        while done < ROUNDS:
            old = session.read(place, 1)
            assert old == old[:4] * (BLOCK // 4), "half of a block that was written whole"
            new = struct.pack(">I", struct.unpack_from(">I", old)[0] + 1) * (BLOCK // 4)
            status, sense, _ = ask(session, cdb_16(COMPARE_AND_WRITE, place, 1), old + new)
            assert status == 0 or sense.key == SenseKey.MISCOMPARE
            done += status == 0

    with sessions(serving, 2) as made:
        assert sorted(engines_of(serving).values()) == [0, 1]
        in_threads(lambda session=session: count(session) for session in made)
    assert blocks(serving, place, 1) == struct.pack(">I", 2 * ROUNDS) * (BLOCK // 4)


def test_or_write_loses_no_bit_across_engines(serving):
    place = 7010
    serving.disk.array[place * BLOCK : (place + 1) * BLOCK] = 0

    def set_bits(number, session):
        for bit in range(number, 8 * BLOCK, 2 * 16):
            data = bytearray(BLOCK)
            data[bit // 8] |= 1 << bit % 8
            status, _, _ = ask(session, cdb_16(OR_WRITE, place, 1), bytes(data))
            assert status == 0

    with sessions(serving, 2) as made:
        in_threads(
            lambda number=number, session=session: set_bits(number, session)
            for number, session in enumerate(made)
        )
    found = np.unpackbits(serving.disk.array[place * BLOCK : (place + 1) * BLOCK])
    assert found.sum() == 2 * (8 * BLOCK // 32)


def test_a_login_replaces_the_same_session_at_another_engine(serving):
    with contextlib.ExitStack() as stack:
        isid = 0x80AABBCC1000
        old = stack.enter_context(serving.log_in(isid=isid)).clear_attention()
        tag, _, r2t = begin_write(old, 50, 1)
        before = blocks(serving, 50, 1)
        (was,) = engines_of(serving).values()
        new = stack.enter_context(serving.log_in(isid=isid)).clear_attention()
        (now,) = engines_of(serving).values()
        assert was != now
        with contextlib.suppress(OSError):
            finish_write(old, tag, r2t, b"o" * BLOCK)
        assert old.is_closed()
        assert new.read(50, 1) == before
        assert new.write(50, b"n" * BLOCK).status == 0
        assert blocks(serving, 50, 1) == b"n" * BLOCK
    serving.wait_idle()


def test_a_reset_through_one_engine_ends_what_is_half_sent_at_the_other(serving):
    before = blocks(serving, 10, 64)
    with sessions(serving, 2) as (one, other):
        begun = [begin_write(one, lba, 2) for lba in range(10, 26, 2)]
        assert manage(other, TaskFunction.LOGICAL_UNIT_RESET) is COMPLETE
        for tag, _, r2t in begun:
            finish_write(one, tag, r2t, b"w" * (2 * BLOCK))
        ping(one)
        assert blocks(serving, 10, 64) == before
        for session in (one, other):
            session.clear_attention()  # both are told


def test_an_attention_is_reported_before_the_next_command_at_another_engine(serving):
    """The answer to what raises it is the signal for the other session to go on."""
    with sessions(serving, 2) as made:
        for turn in range(ROUNDS):
            one, other = made[turn % 2], made[1 - turn % 2]
            assert manage(one, TaskFunction.LOGICAL_UNIT_RESET) is COMPLETE
            other.command(scsi.read_16(0, 1), length=BLOCK, read=1)
            header, _ = other.take()
            assert header.status == 2, "a READ that passed a unit attention"
            one.clear_attention()


def test_a_unit_goes_while_both_engines_write_it(serving):
    size = 256 * BLOCK
    backend = serving.server.call(lambda: RamBackend.create(serving.engine, size))
    serving.server.add_unit(NAME, 7, LogicalUnit(backend))
    with sessions(serving, SESSIONS) as made:
        written, gone = [0] * SESSIONS, threading.Event()

        def write(number, session):
            session.clear_attention(7)
            cdb = scsi.write_16(number, 1)
            while True:
                data = struct.pack(">Q", written[number]) * (BLOCK // 8)
                session.command(cdb, data, lun=7, length=BLOCK, write=1)
                while not select.select([session.socket], [], [], QUIET_S)[0]:
                    if gone.is_set():
                        return  # A command that ended with its unit is not answered.
                if session.take()[0].status != 0:
                    return
                written[number] += 1

        def remove():
            wait_until("all write", lambda: min(written) > 20)
            serving.server.remove_unit(NAME, 7)
            gone.set()

        work = [
            lambda number=number, session=session: write(number, session)
            for number, session in enumerate(made)
        ]
        in_threads([*work, remove])
        # Whoever has the memory next finds that nobody writes it any more.
        backend._bytes[:] = 0xEE
        for session in made:
            ping(session)
        assert (backend._bytes == 0xEE).all()
    serving.server.call(backend.close)


def test_clients_that_die_leave_nothing_at_either_engine(serving, daemon):
    def levels():
        found = daemon.levels()
        return {name: found[name] for name in ("descriptors", "channels", "endpoints")}

    before = levels()
    for _ in range(3):
        made = [serving.log_in(isid=0x80AABBCC1000 + number) for number in range(SESSIONS)]
        for session in made:
            session.clear_attention()
            begin_write(session, 60, 4)
        for session in made:
            linger = struct.pack("ii", 1, 0)  # a reset instead of an end
            session.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            session.socket.close()
        serving.wait_idle()
    wait_until("the engines hold what they held", lambda: levels() == before)


@pytest.mark.parametrize("place", ["stream", "engine"])
def test_a_server_ends_with_its_engines(tmp_path, place):
    with RunningEngine(tmp_path, "--engines", "2") as engine, environment_of(engine):
        serving = Serving(placement=place, engine=engine.name)
        serving.__enter__()
        made = [serving.log_in(isid=isid).clear_attention() for isid in (1, 2)]
        for raw in made:
            raw.read(0, 8)
        engine.process.send_signal(signal.SIGKILL)
        engine.process.wait(WAIT_S)
        serving._thread.join(WAIT_S)
        assert not serving._thread.is_alive(), "the server does not end"
        assert isinstance(serving.error, EngineDied)
        for raw in made:
            raw.socket.close()


def test_a_server_may_want_fewer_engines_and_not_more_than_there_are(daemon):
    with Serving(engine=daemon.name, engines=1) as serving, sessions(serving, 2):
        assert list(spread(serving).values()) == [2]
    with host.connect(daemon.name) as engine:
        target = Target(NAME, {0: RamDisk(engine.alloc(64 * BLOCK))})
        portals = (Portal("127.0.0.1", 0),)
        with pytest.raises(ValueError, match="3 are wanted and the process of this one has 2"):
            TargetServer(engine, ServerConfig((target,), portals, engines=3))
        with pytest.raises(ValueError, match="outside"):
            ServerConfig((target,), portals, engines=-1)


def test_a_connection_that_an_engine_has_no_place_for_is_closed_and_the_next_one_works(daemon):
    with Serving(engine=daemon.name) as serving:
        move = serving.engine.move

        def refuse(channel, endpoint, to):
            raise EngineRefused("the other engine has no place for it")

        with serving.log_in(isid=1) as first:
            serving.engine.move = refuse
            with (
                Raw(serving.port) as second,
                pytest.raises((EOFError, ConnectionResetError)),
            ):
                second.log_in(isid=2)
            serving.engine.move = move
            assert serving.counts["moves failed"] == 1
            with serving.log_in(isid=3) as third:
                for session in (first, third):
                    session.clear_attention().read(0, 1)
                assert sorted(spread(serving).values()) == [1, 1]
        serving.wait_idle()


def test_an_operator_sees_the_spread(daemon, tmp_path):
    shell = Shell(tmp_path)
    shell.environment["PPE_RUNTIME_DIR"] = str(daemon.directory)
    flags = ("--engine", daemon.name, "--engines", 2, "--placement", "engine", "--ram", "8M")
    with Process(shell, *flags) as target, contextlib.ExitStack() as stack:
        made = [stack.enter_context(Raw(target.port)) for _ in range(3)]
        for isid, session in enumerate(made, 1):
            session.log_in(target=DEFAULT_IQN, isid=isid).clear_attention().read(0, 1)
        found = shell.json("target", "stat", "--control", target.control)
        assert sorted(each["connections"] for each in found["engines"]) == [1, 2]
        shown = shell.run("target", "stat", "--control", target.control).stdout.decode()
        assert "engine 0: " in shown
        assert "engine 1: " in shown
        metrics = shell.run(
            "target", "stat", "--control", target.control, "--format", "prometheus"
        ).stdout.decode()
        assert 'ppe_target_connections{engine="0"}' in metrics
        channels = [engine["channels"] for engine in daemon.stat()["engines"]]
        mine = [[row for row in rows if row["pid"] == target.process.pid] for rows in channels]
        assert [len(rows) for rows in mine] == [1, 1]
        assert all(row["taken"] > 0 for rows in mine for row in rows)
    said = shell.fails(
        "target", "serve", "--engine", daemon.name, "--engines", "3", "--ram", "1M", code=2
    )
    assert "3 are wanted" in said
