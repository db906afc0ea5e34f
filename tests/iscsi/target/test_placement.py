"""An engine that frames PDUs and serves READ and WRITE by itself keeps every promise of the server:
what is fenced writes no more, what must run alone does, and whoever dies leaves nothing.
"""

import select
import signal
import struct
import threading

import pytest

from host.errors import EngineDied
from iscsi.target import lending
from iscsi.target.backends import RamBackend
from iscsi.target.scsi import pr_state
from iscsi.target.scsi.pr_unit import reservations_of
from iscsi.target.units import LogicalUnit
from iscsi.wire import scsi, text
from iscsi.wire.bhs import Opcode, TaskFunction
from iscsi.wire.sense import SenseKey
from tests.e2e.running import RunningEngine, environment_of
from tests.iscsi.target.managing import (
    COMPLETE,
    SECOND,
    begin_write,
    blocks,
    finish_write,
    manage,
    out,
)
from tests.iscsi.target.medium import cdb_16
from tests.iscsi.target.reserving import EA, PREEMPT_AND_ABORT, REGISTER
from tests.iscsi.target.serving import BLOCK, NAME, WAIT_S, Serving, wait_until
from tests.iscsi.target.test_medium_server import ask

DEPTH = 8
REFUSED = 40  # refusals that a writer waits for
PLACES = 64
COUNTER = 200  # a block that the writers leave alone
ROUNDS = 60
QUIET_S = 0.3  # in which an answer would come that does not wait
MODE_SELECT = bytes((0x15, 0x10, 0, 0, 16, 0))
WRITE_PROTECT = bytes((0, 0, 0, 0, 0x0A, 0x0A, 0x22, 0x10, 0x08, 0, 0, 0, 0xFF, 0xFF, 0, 0))
EJECT = bytes((0x1B, 0, 0, 0, 0x02, 0))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with RunningEngine(tmp_path_factory.mktemp("engine")) as made, environment_of(made):
        yield made


@pytest.fixture(scope="module")
def daemon_of_two(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    with RunningEngine(directory, "--engines", "2") as made, environment_of(made):
        yield made


@pytest.fixture(params=["inline", "daemon", "daemon_of_two"])
def serving(request):
    """With the last, two sessions of a test are at two engines."""
    options = {"placement": "engine", "disk": {"removable": True}, "linger_s": 0.2}
    if request.param != "inline":
        made = request.getfixturevalue(request.param)
        options["engine"] = made.name
        request.getfixturevalue("monkeypatch").setenv("PPE_RUNTIME_DIR", str(made.directory))
    with Serving(**options) as found:
        yield found


class Writer:
    """A session that writes without a pause, several WRITEs at once, each of another pattern."""

    def __init__(self, serving, **options):
        self._session = serving.log_in(**options).clear_attention()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stop = threading.Event()
        self.written = self.refused = 0
        self.error = None

    def _run(self):
        try:
            number = 0
            while not self._stop.is_set():
                for _ in range(DEPTH):
                    number += 1
                    self._write(number)
                for _ in range(DEPTH):
                    header, _ = self._session.take()
                    assert header.opcode is Opcode.SCSI_RESPONSE, header
                    self.written += header.status == 0
                    self.refused += header.status != 0
        except BaseException as error:
            self.error = error

    def _write(self, number):
        data = struct.pack(">Q", number) * (BLOCK // 8)
        cdb = scsi.write_16(number % PLACES, 1)
        self._session.command(cdb, data, length=BLOCK, write=1)

    def __enter__(self):
        self._thread.start()
        wait_until("the writer writes", lambda: self.error or self.written > 2 * DEPTH)
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(WAIT_S)
        self._session.socket.close()
        assert not self._thread.is_alive(), "the writer does not end"
        if self.error:
            raise self.error


def ask_for_protection(session):
    session.command(MODE_SELECT.ljust(16, b"\0"), WRITE_PROTECT, length=16, write=1)


def ask_to_eject(session):
    session.command(EJECT.ljust(16, b"\0"))


def protect(session):
    ask_for_protection(session)
    assert session.take()[0].status == 0


def eject(session):
    ask_to_eject(session)
    assert session.take()[0].status == 0


def preempt(session):
    assert out(session, PREEMPT_AND_ABORT, 0xB2, 0xA1, EA) == 0


@pytest.mark.parametrize("fence", [preempt, protect, eject])
def test_nothing_of_what_is_fenced_reaches_the_medium_after_the_answer(serving, fence):
    with serving.log_in(initiator=SECOND, isid=0x80AABBCC0002) as other:
        other.clear_attention()
        if fence is preempt:
            assert out(other, REGISTER, 0, 0xB2) == 0
        with Writer(serving) as writer:
            if fence is preempt:
                let_it_hold(serving)
            fence(other)
            seen = serving.disk.array.copy()
            before = writer.refused
            wait_until("it is refused", lambda: writer.error or writer.refused > before + REFUSED)
            assert not writer.error
            assert (serving.disk.array == seen).all()
        other.log_out()


@pytest.mark.parametrize("change", [ask_for_protection, ask_to_eject])
def test_a_change_is_answered_when_the_engines_writes_are_over(serving, change):
    with serving.log_in() as one, serving.log_in(initiator=SECOND, isid=0x80AABBCC0002) as other:
        one.clear_attention()
        other.clear_attention()
        tag, _, r2t = begin_write(one, 10, 2)
        change(other)
        assert not select.select([other.socket], [], [], QUIET_S)[0]
        finish_write(one, tag, r2t, b"w" * (2 * BLOCK))
        assert one.take()[0].status == 0
        assert other.take()[0].status == 0
        assert one.write(0, b"x" * BLOCK).status != 0
        assert blocks(serving, 10, 2) == b"w" * (2 * BLOCK)


def test_a_reset_ends_an_engines_writes_before_it_is_answered(serving):
    before = blocks(serving, 10, 64)
    with serving.log_in() as one, serving.log_in(initiator=SECOND, isid=0x80AABBCC0002) as other:
        one.clear_attention()
        other.clear_attention()
        begun = [begin_write(one, lba, 2) for lba in range(10, 42, 2)]
        assert manage(other, TaskFunction.LOGICAL_UNIT_RESET) is COMPLETE
        for tag, _, r2t in begun:
            finish_write(one, tag, r2t, b"w" * (2 * BLOCK))
        one.request(Opcode.NOP_OUT, ttt=0xFFFFFFFF, immediate=1)
        assert one.take()[0].opcode is Opcode.NOP_IN
        assert blocks(serving, 10, 64) == before


@pytest.mark.parametrize("placement", ["datamover", "engine"])
def test_an_initiator_that_owes_data_to_an_engine_is_let_go(placement):
    with (
        Serving(placement=placement, data_timeout_s=0.5, linger_s=0.2) as serving,
        serving.log_in() as raw,
        serving.log_in(isid=9) as other,
    ):
        raw.clear_attention()
        other.clear_attention()
        begin_write(raw, 10, 4)
        assert raw.take()[0].opcode is Opcode.ASYNC_MESSAGE
        assert raw.is_closed()
        assert serving.counts["data overdue"] == 1
        assert other.write(0, bytes(BLOCK)).status == 0


@pytest.mark.parametrize("placement", ["datamover", "engine"])
def test_an_initiator_may_want_shorter_segments_later(placement):
    with Serving(placement=placement) as serving, serving.log_in() as raw:
        raw.clear_attention()
        data = text.encode([("MaxRecvDataSegmentLength", "1024")])
        raw.request(Opcode.TEXT_REQUEST, data, ttt=0xFFFFFFFF, final=1)
        assert raw.take()[0].opcode is Opcode.TEXT_RESPONSE
        raw.command(scsi.read_16(0, 8), length=8 * BLOCK, read=1)
        seen = [len(raw.take()[1]) for _ in range(4)]
        assert seen == [1024] * 4


def let_it_hold(serving):
    """Have the writing nexus hold the unit, in the server's thread: its own session is busy."""

    def hold():
        target = serving.server._targets[NAME]
        nexus = next(each for each in target.nexuses if each.initiator_name != SECOND)
        held = reservations_of(target.units[0])
        held.act(nexus, pr_state.register, pr_state.Request(key=0, action_key=0xA1))
        held.act(nexus, pr_state.reserve, pr_state.Request(key=0xA1, kind=EA))

    serving.server.call(hold)


def test_counting_by_compare_and_write_loses_nothing_beside_an_engines_writes(serving):
    failures = []

    def count(isid):
        try:
            with serving.log_in(isid=isid) as raw:
                raw.clear_attention()
                done = 0
                while done < ROUNDS:
                    old = raw.read(COUNTER, 1)
                    assert old == old[:4] * (BLOCK // 4), "half of a block that was written whole"
                    number = struct.unpack_from(">I", old)[0] + 1
                    new = struct.pack(">I", number) * (BLOCK // 4)
                    status, sense, _ = ask(raw, cdb_16(0x89, COUNTER, 1), old + new)
                    assert status == 0 or sense.key == SenseKey.MISCOMPARE
                    done += status == 0
        except BaseException as error:
            failures.append(error)

    serving.disk.array[COUNTER * BLOCK : (COUNTER + 1) * BLOCK] = 0
    with Writer(serving):
        threads = [threading.Thread(target=count, args=(isid,)) for isid in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not failures
    block = serving.disk.array[COUNTER * BLOCK : (COUNTER + 1) * BLOCK].tobytes()
    assert block == struct.pack(">I", 2 * ROUNDS) * (BLOCK // 4)


def test_a_unit_changes_its_size_and_goes_while_it_is_written(serving):
    size = 256 * BLOCK
    backend = serving.server.call(
        lambda: RamBackend.create(serving.engine, size, capacity=2 * size, thin=True)
    )
    serving.server.add_unit(NAME, 7, LogicalUnit(backend))
    with Writer(serving), serving.log_in(isid=7) as raw:
        raw.clear_attention(7)
        cdb = scsi.write_16(255, 1)
        for turn in range(1, 6):
            serving.server.resize_unit(NAME, 7, size // 2 if turn % 2 else 2 * size)
            raw.clear_attention(7)
            raw.command(cdb, b"w" * BLOCK, lun=7, length=BLOCK, write=1)
            assert (raw.take()[0].status == 0) is (turn % 2 == 0)
        serving.server.remove_unit(NAME, 7)
        serving.server.call(backend.close)
        raw.command(cdb, b"w" * BLOCK, lun=7, length=BLOCK, write=1)
        assert raw.take()[0].status != 0


def test_what_an_engine_served_is_counted(serving):
    with serving.log_in() as raw:
        raw.clear_attention()
        for _ in range(20):
            assert raw.write(0, bytes(2 * BLOCK)).status == 0
            raw.read(0, 1)
        names = ("reads", "writes", "read_bytes", "written_bytes")
        found = [serving.count(name) for name in names]
        assert found == [20, 20, 20 * BLOCK, 40 * BLOCK]
        (session,) = serving.server.statistics()["sessions"]
        assert session["commands"] == 41


def test_initiators_wait_for_buffers_and_get_them(monkeypatch):
    monkeypatch.setattr(lending, "CHANNEL_SHARE", 1 << 30)  # eight of them
    with Serving(placement="datamover") as serving:
        sessions = [serving.log_in(isid=isid) for isid in range(1, 5)]
        for session in sessions:
            session.clear_attention()
            for _ in range(40):
                session.command(scsi.inquiry(), length=96, read=1)
        for session in sessions:
            for _ in range(40):
                assert session.take()[0].opcode is Opcode.DATA_IN
            session.log_out()
            session.socket.close()
        serving.wait_idle()
        assert serving.server.call(lambda: serving.server._lanes.first.lending.kept) == 0


@pytest.mark.slow
def test_a_server_ends_with_its_engine(tmp_path):
    with RunningEngine(tmp_path) as engine, environment_of(engine):
        serving = Serving(placement="engine", engine=engine.name)
        serving.__enter__()
        raw = serving.log_in()
        raw.clear_attention().read(0, 8)
        engine.process.send_signal(signal.SIGKILL)
        engine.process.wait(WAIT_S)
        serving._thread.join(WAIT_S)
        assert not serving._thread.is_alive(), "the server does not end"
        assert isinstance(serving.error, EngineDied)
        raw.socket.close()
