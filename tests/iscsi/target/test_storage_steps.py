"""Reading and writing files step by step, with no engine and no thread: what begins, what a worker
is given, and what ends. Runs compiled and as plain Python alike.
"""

import os

import numpy as np
import pytest

from iscsi.target import storage
from iscsi.target.backends import FileBackend, NullBackend
from iscsi.target.backends.medium import medium_at
from iscsi.target.workers import JOBS, FileWorkers
from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.login import LoginResult
from iscsi.wire.lun import LUN, Unit, write_lun
from iscsi.wire.target import TargetConnection
from iscsi.wire.target_block import TargetLimits
from shm.jit import entry
from shm.memory import store_64
from shm.view import address_of
from tests.iscsi.wire.test_buffers import DataBuffers, Engine

SIZE = 1 << 20
PAGE = 4096
BLOCK = 512
PUMP = 1 << 20  # only handed through
GOOD, CHECK_CONDITION = 0, 2


@entry("void(intp, intp, intp)")
def begin(store, pump, conn):
    storage.begin(store, pump, conn)


@entry("intp(intp)")
def finish(store):
    return storage.finish(store)


@entry("boolean(intp)")
def may_sleep(store):
    return storage.may_sleep(store)


class Target:
    """One connection, one unit, and workers that work when the test says so."""

    def __init__(self, backend, buffers=((PAGE, 4),), workers=1):
        self.backend = backend
        self.buffers = DataBuffers(Engine(), buffers)
        self.limits = TargetLimits()
        self._memory = np.zeros(TargetConnection.size(1, self.limits) + 64, np.uint8)
        result = LoginResult(
            session=SessionParams(initial_r2t=False, first_burst_length=65536),
            connection=ConnectionParams(),
            initiator_name="",
            target_name=None,
            isid=0,
            tsih=1,
            cid=0,
            cmd_sn=1,
            max_cmd_sn=self.limits.window,
            stat_sn=1,
        )
        self.luns = np.zeros(1, LUN)
        unit = Unit(0, BLOCK, backend.size // BLOCK, storage=backend.medium.address)
        write_lun(address_of(self.luns), unit)
        start = address_of(self._memory) + -address_of(self._memory) % 64
        self.protocol = TargetConnection(
            start,
            result,
            address_of(self.luns),
            1,
            self.limits,
            buffers=self.buffers.address,
            buffer_quota=self.buffers.total,
        )
        reader, self.waker = os.pipe()
        os.set_blocking(reader, False)
        self.reader = reader
        self.files = FileWorkers(workers, self.waker)
        self.count = 0

    def close(self):
        os.close(self.reader)
        os.close(self.waker)
        self.backend.close()

    def ask(self, cdb, data=b"", length=PAGE, **flags):
        """Receive a command, and begin what waits for the file; its tag."""
        self.count += 1
        self.protocol.receive(
            bhs.encode_pdu(
                Opcode.SCSI_COMMAND,
                data,
                itt=self.count,
                cmd_sn=self.count,
                cdb=int.from_bytes(cdb.ljust(16, b"\0"), "big"),
                expected_data_transfer_length=length,
                **flags,
            )
        )
        self.begin()
        return self.count

    def read(self, lba, fua=0):
        cdb = bytearray(scsi.read_16(lba, PAGE // BLOCK))
        cdb[1] |= fua
        return self.ask(bytes(cdb), read=1)

    def write(self, lba, data, fua=0):
        cdb = bytearray(scsi.write_16(lba, PAGE // BLOCK))
        cdb[1] |= fua
        return self.ask(bytes(cdb), data, write=1)

    def begin(self):
        begin(self.files.address, PUMP, self.protocol.address)

    def work(self, number=0):
        """Have a worker do what it was given, in this thread."""
        worker = self.files._worker(number)
        storage.stop_worker(worker)
        storage.work(worker)
        store_64(worker + storage._STOP, 0)

    def finish(self):
        """End what is done; how many."""
        count = 0
        while pump := finish(self.files.address):
            assert pump == PUMP
            count += 1
        return count

    def answers(self):
        """What was sent: tag to status and data."""
        sent, found = self.protocol.data_to_send(), {}
        while sent:
            header = bhs.decode(sent[:48])
            length = header.data_segment_length
            found[header.itt] = header.status, sent[48 : 48 + length]
            sent = sent[48 + bhs.padded(length) :]
        return found


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(np.random.default_rng(2).integers(0, 256, SIZE, np.uint8).tobytes())
    made = Target(FileBackend(path))
    made.before = path.read_bytes()
    yield made
    made.close()


def test_a_cached_read_is_answered_at_once(target):
    tag = target.read(8)
    assert target.answers() == {tag: (GOOD, target.before[PAGE : 2 * PAGE])}
    assert target.files.counts == {"cached": 1, "waited": 0, "under_way": 0}
    assert target.buffers.taken == 0


@pytest.mark.parametrize("fua", [0, 8])
def test_a_write_is_on_the_file_when_it_is_answered(target, fua):
    data = os.urandom(PAGE)
    tag = target.write(16, data, fua)
    if fua:
        assert target.answers() == {}
    target.work()
    target.finish()
    assert target.answers() == {tag: (GOOD, b"")}
    assert bytes(target.backend.read(16 * BLOCK, PAGE)) == data
    assert target.buffers.taken == 0
    assert target.protocol.jobs == 0


def test_an_aborted_write_keeps_its_buffer_until_the_worker_is_done(target):
    tag = target.write(0, os.urandom(PAGE), fua=8)
    assert target.protocol.abort_task(tag)
    assert (target.buffers.taken, target.protocol.jobs) == (1, 1)
    target.work()
    assert target.buffers.taken == 1
    assert target.finish() == 1
    assert (target.buffers.taken, target.protocol.jobs) == (0, 0)
    assert target.answers() == {}


def test_the_same_tag_may_come_again_while_a_worker_has_the_aborted_one(target):
    data = os.urandom(PAGE)
    first = target.write(0, bytes(PAGE), fua=8)
    assert target.protocol.abort_task(first)
    target.count -= 1
    # The aborted command's number is used up; only its tag is free.
    again = bhs.encode_pdu(
        Opcode.SCSI_COMMAND,
        data,
        itt=first,
        cmd_sn=2,
        cdb=int.from_bytes(scsi.write_16(8, 8), "big"),
        expected_data_transfer_length=PAGE,
        write=1,
    )
    target.protocol.receive(again)
    target.begin()
    target.work()
    target.finish()
    assert target.answers() == {first: (GOOD, b"")}
    assert target.buffers.taken == 0


def test_the_server_is_woken_only_when_it_sleeps(target):
    target.write(0, bytes(PAGE), fua=8)
    target.work()
    with pytest.raises(BlockingIOError):
        os.read(target.reader, 8)
    assert not may_sleep(target.files.address)
    target.finish()
    target.write(0, bytes(PAGE), fua=8)
    assert may_sleep(target.files.address)
    target.write(8, bytes(PAGE), fua=8)
    target.work()
    assert len(os.read(target.reader, 64)) == 8  # once for both


def test_what_is_beyond_the_end_of_a_cut_file_is_refused_and_not_written(target):
    target.backend.medium.hold(True)
    reading, writing = target.read(SIZE // BLOCK - 8), target.write(SIZE // BLOCK - 8, bytes(PAGE))
    target.backend.resize(SIZE // 2)
    target.backend.medium.hold(False)
    target.begin()
    found = target.answers()
    assert (found[reading][0], found[writing][0]) == (CHECK_CONDITION, CHECK_CONDITION)
    assert os.stat(target.backend.path).st_size == SIZE // 2  # noqa: PTH116 - what it really has


def test_a_failing_descriptor_is_a_medium_error(target):
    record = medium_at(target.backend.medium.address)[0]
    kept = int(record["buffered"])
    record["buffered"] = target.reader  # a pipe cannot be read at an offset
    reading, writing = target.read(0), target.write(0, bytes(PAGE), fua=8)
    target.work()
    target.finish()
    record["buffered"] = kept
    found = target.answers()
    assert found[reading][0] == found[writing][0] == CHECK_CONDITION
    assert found[reading][1][4] == found[writing][1][4] == 3  # MEDIUM ERROR
    assert found[reading][1][14] == 0x11
    assert found[writing][1][14] == 0x0C


def test_a_full_file_system_is_data_protect(target):
    record = medium_at(target.backend.medium.address)[0]
    kept, full = int(record["buffered"]), os.open("/dev/full", os.O_RDWR)
    record["buffered"] = full
    tag = target.write(0, bytes(PAGE), fua=8)
    target.work()
    target.finish()
    record["buffered"] = kept
    os.close(full)
    status, sense = target.answers()[tag]
    assert (status, sense[4], sense[14], sense[15]) == (CHECK_CONDITION, 7, 0x27, 7)


def test_jobs_go_to_the_worker_that_has_the_least_to_do(tmp_path):
    target = Target(FileBackend(tmp_path / "disk", size=SIZE), ((PAGE, 6),), workers=3)
    for lba in range(0, 48, 8):
        target.write(lba, bytes(PAGE), fua=8)
    for number in range(3):
        target.work(number)
        assert target.finish() == 2
    assert len(target.answers()) == 6
    target.close()


def test_more_than_there_are_jobs_waits_in_line(tmp_path):
    target = Target(FileBackend(tmp_path / "disk", size=SIZE), ((PAGE, 32),))
    held = storage.store_at(target.files.address)[0]["job_pool"]
    free = int(held["free_count"])
    assert free == JOBS
    held["free_count"] = 3
    tags = [target.write(lba, bytes(PAGE), fua=8) for lba in range(0, 80, 8)]
    done = {}
    for _ in range(10):
        target.work()
        target.finish()
        target.begin()
        done |= target.answers()
    assert done == dict.fromkeys(tags, (GOOD, b""))
    target.close()


def test_a_write_is_asked_for_its_data_when_there_is_a_buffer(tmp_path):
    target = Target(FileBackend(tmp_path / "disk", size=SIZE), ((PAGE, 1),))
    first = target.write(0, b"")
    assert bhs.decode(target.protocol.data_to_send()[:48]).opcode is Opcode.R2T
    second = target.write(8, b"")
    busy = target.write(16, bytes(PAGE))  # its data came with it
    assert target.answers() == {busy: (0x28, b"")}
    assert target.protocol.abort_task(first)
    target.begin()
    r2t = bhs.decode(target.protocol.data_to_send()[:48])
    assert (r2t.opcode, r2t.itt) == (Opcode.R2T, second)
    data = os.urandom(PAGE)
    target.protocol.receive(bhs.encode_pdu(Opcode.DATA_OUT, data, itt=second, ttt=r2t.ttt, final=1))
    target.begin()
    target.work()
    target.finish()
    assert target.answers() == {second: (GOOD, b"")}
    assert bytes(target.backend.read(8 * BLOCK, PAGE)) == data
    assert target.buffers.taken == 0
    target.close()


def test_the_null_medium_needs_nobody():
    target = Target(NullBackend(SIZE))
    writing, reading = target.write(0, os.urandom(PAGE), fua=8), target.read(0)
    assert target.answers() == {writing: (GOOD, b""), reading: (GOOD, bytes(PAGE))}
    target.close()
