"""Units in files behind a real server: data, durability, errors, buffers that run out, and ends."""

import os
import threading
from functools import partial

import numpy as np
import pytest

from iscsi.target.backends import FileBackend, NullBackend
from iscsi.target.config import ServerConfig
from iscsi.target.storage import store_at
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.names import Portal
from tests.iscsi.target.serving import NAME, Raw, ServerThread, wait_until

BLOCK = 512
SIZE = 8 << 20
PAGE = 4096
GOOD, CHECK_CONDITION, TASK_SET_FULL = 0, 2, 0x28


class FileServing(ServerThread):
    """A server of files in a thread of the test: `units` by LUN."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self._units = units

    def configure(self, engine):
        self.target = Target(NAME, self._units)
        return ServerConfig((self.target,), (Portal("127.0.0.1", 0),), **self._options)

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for unit in self._units.values():
            unit.backend.close()

    def log_in(self, lun=0, **options):
        return Raw(self.port).log_in(**options).clear_attention(lun)

    def wait_idle(self):
        """Wait until no connection is left, and then no buffer is taken."""
        wait_until("connections gone", lambda: not self.server.connections)
        assert self.server.buffers.taken == 0


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(np.random.default_rng(5).integers(0, 256, SIZE, np.uint8).tobytes())
    return path


def serving(path, cache="writeback", thin=False, **options):
    return FileServing({0: LogicalUnit(FileBackend(path, cache=cache, thin=thin))}, **options)


def write_16(raw, lba, data, flags=0):
    """A WRITE (16) whose data is solicited where it has to be; the response's header."""
    cdb = bytearray(scsi.write_16(lba, len(data) // BLOCK))
    cdb[1] |= flags
    first = min(len(data), raw.result.session.first_burst_length, 8192)
    raw.command(bytes(cdb), data[:first], length=len(data), write=1)
    while True:
        header, _ = raw.take()
        if header.opcode is not Opcode.R2T:
            return header
        start, left = header.buffer_offset, header.desired_data_transfer_length
        data_sn = 0
        while left:
            size = min(left, 8192)
            left -= size
            raw.give(
                Opcode.DATA_OUT,
                data[start : start + size],
                itt=header.itt,
                ttt=header.ttt,
                buffer_offset=start,
                data_sn=data_sn,
                final=int(not left),
            )
            start, data_sn = start + size, data_sn + 1


CACHES = ("writeback", "writethrough", "direct", "directsync")


@pytest.mark.parametrize("cache", CACHES)
def test_a_file_is_read_and_written_through_the_target(path, cache):
    before = path.read_bytes()
    with serving(path, cache) as target, target.log_in() as raw:
        for lba, blocks in ((0, 8), (3, 1), (1000, 2048), (SIZE // BLOCK - 1, 1)):
            start, length = lba * BLOCK, blocks * BLOCK
            assert raw.read(lba, blocks) == before[start : start + length]
        data = os.urandom(1 << 20)
        for lba in (1, 4096):
            assert write_16(raw, lba, data).status == GOOD
            assert raw.read(lba, len(data) // BLOCK) == data
        raw.log_out()
        target.wait_idle()
    after = path.read_bytes()
    assert after[4096 * BLOCK : 4096 * BLOCK + len(data)] == data
    assert after[-BLOCK:] == before[-BLOCK:]


@pytest.mark.parametrize(("cache", "flags", "durable"), [("writeback", 0, 0), ("writeback", 8, 1)])
def test_a_write_with_fua_is_a_workers_and_so_durable(path, cache, flags, durable):
    with serving(path, cache) as target, target.log_in() as raw:
        medium = target.target.units[0].backend.medium
        data = os.urandom(PAGE)
        assert write_16(raw, 8, data, flags).status == GOOD
        assert raw.read(8, 8) == data
        assert medium.counts["writes"] == 1
        if durable:
            assert target.server.file_counts["waited"] >= 1


def test_a_page_that_is_cached_needs_no_worker(path):
    path.read_bytes()
    with serving(path) as target, target.log_in() as raw:
        for lba in range(0, 800, 8):
            raw.read(lba, 8)
        counts = target.server.file_counts
        assert counts["cached"] + counts["waited"] == 100
        assert counts["cached"] > 0


def test_a_page_that_is_not_cached_is_read_by_a_worker(path):
    with serving(path) as target, target.log_in() as raw:
        expected = path.read_bytes()
        descriptor = os.open(path, os.O_RDWR)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        assert raw.read(8000, 64) == expected[8000 * BLOCK : 8064 * BLOCK]


def test_a_read_beyond_what_the_file_still_has_is_a_medium_error(path):
    with serving(path) as target, target.log_in() as raw:
        os.truncate(path, PAGE)
        raw.command(scsi.read_16(100, 8), length=PAGE, read=1)
        header, sense = raw.take()
        assert header.status == CHECK_CONDITION
        assert sense[2 + 2] == 3
        assert (sense[2 + 12], sense[2 + 13]) == (0x11, 0)
        assert header.residual_count == PAGE
        assert raw.read(0, 1)
        raw.log_out()
        target.wait_idle()


def test_more_than_the_largest_transfer_is_refused(path):
    with serving(path) as target, target.log_in() as raw:
        blocks = (target.server.buffers.largest // BLOCK) + 1
        raw.command(scsi.read_16(0, blocks), length=blocks * BLOCK, read=1)
        header, sense = raw.take()
        assert header.status == CHECK_CONDITION
        assert (sense[2 + 2], sense[2 + 12]) == (5, 0x24)
        assert len(raw.read(0, blocks - 1)) == (blocks - 1) * BLOCK


def test_without_a_free_buffer_a_write_ends_with_task_set_full_and_nothing_is_lost(path):
    before = path.read_bytes()
    with (
        serving(path, data_buffers=((PAGE, 2),)) as target,
        target.log_in() as first,
        target.log_in(isid=0x80AABBCC0002) as second,
        target.log_in(isid=0x80AABBCC0003) as third,
    ):
        for raw in (first, second):  # each waits for data that does not come
            raw.command(scsi.write_16(0, 8), length=PAGE, write=1)
            assert raw.take()[0].opcode is Opcode.R2T
        assert third.write(64, bytes(PAGE)).status == TASK_SET_FULL
        # Without data of its own it is asked for it when there is room.
        late = third.command(scsi.write_16(64, 8), length=PAGE, write=1)
        first.socket.close()
        header = third.take()[0]
        assert (header.opcode, header.itt) == (Opcode.R2T, late)
        data = os.urandom(PAGE)
        third.give(Opcode.DATA_OUT, data, itt=late, ttt=header.ttt, final=1)
        assert third.take()[0].status == GOOD
        assert third.read(64, 8) == data
        assert third.read(0, 8) == before[:PAGE]
        second.socket.close()
        third.log_out()
        target.wait_idle()


def test_reads_wait_for_a_buffer_instead_of_failing(path):
    before = path.read_bytes()
    with serving(path, data_buffers=((PAGE, 2),)) as target, target.log_in() as raw:
        for lba in range(0, 240, 8):
            raw.command(scsi.read_16(lba, 8), length=PAGE, read=1)
        found = {}
        for _ in range(30):
            header, data = raw.take()
            assert header.status == GOOD
            found[header.itt] = data
        assert b"".join(found[itt] for itt in sorted(found)) == before[: 30 * PAGE]
        raw.log_out()
        target.wait_idle()


def test_what_is_held_goes_on_when_it_is_let_go(path):
    before = path.read_bytes()
    with serving(path) as target, target.log_in() as raw:
        medium = target.target.units[0].backend.medium
        target.server.call(lambda: medium.hold(True))
        raw.command(scsi.read_16(0, 8), length=PAGE, read=1)
        raw.request(Opcode.NOP_OUT, immediate=1)
        assert raw.take()[0].opcode is Opcode.NOP_IN
        target.server.call(lambda: medium.hold(False))
        assert raw.data_in() == before[:PAGE]


def test_a_cold_command_finds_the_file_at_rest(path):
    before = path.read_bytes()
    with serving(path) as target, target.log_in() as raw:
        medium, server = target.target.units[0].backend.medium, target.server
        jobs = medium._record["jobs"]

        def a_worker_begins():
            jobs[0] += 1

        def the_worker_ends():  # as `storage.finish` does
            jobs[0] -= 1
            store_at(server._files.address)[0]["at_rest"] = 1

        server.call(a_worker_begins)
        cdb = bytes((0x89, 0)) + bytes(8) + bytes((0, 0, 0, 1, 0, 0))
        data = before[:BLOCK] + bytes(BLOCK)
        itt = raw.command(cdb, data, length=2 * BLOCK, write=1)
        late = raw.command(scsi.read_16(0, 1), length=BLOCK, read=1)
        raw.request(Opcode.NOP_OUT, immediate=1)
        assert raw.take()[0].opcode is Opcode.NOP_IN
        server.call(the_worker_ends)
        found = {}
        for header, got in (raw.take(), raw.take()):
            found[header.itt] = header.status, got
        assert found == {itt: (GOOD, b""), late: (GOOD, bytes(BLOCK))}


def test_an_abort_of_what_waits_for_its_medium_gives_everything_back(path):
    with serving(path) as target, target.log_in() as raw:
        medium = target.target.units[0].backend.medium
        target.server.call(lambda: medium.hold(True))
        itt = raw.command(scsi.write_16(0, 8), bytes(PAGE), length=PAGE, write=1)
        wait_until("it has its buffer", lambda: target.server.buffers.taken == 1)
        raw.request(
            Opcode.TASK_MANAGEMENT_REQUEST,
            function=bhs.TaskFunction.ABORT_TASK,
            referenced_task_tag=itt,
            immediate=1,
        )
        assert raw.take()[0].response == 0
        wait_until("the buffer is back", lambda: target.server.buffers.taken == 0)
        target.server.call(lambda: medium.hold(False))
        assert raw.read(0, 8) == path.read_bytes()[:PAGE]


def test_an_abort_in_the_middle_of_a_pdu_keeps_the_buffer_until_its_end(path):
    with serving(path) as target, target.log_in() as raw:
        itt, cmd_sn = raw.itt, raw.cmd_sn
        raw.itt, raw.cmd_sn = itt + 1, cmd_sn + 1
        pdu = bhs.encode_pdu(
            Opcode.SCSI_COMMAND,
            bytes(PAGE),
            itt=itt,
            cmd_sn=cmd_sn,
            cdb=int.from_bytes(scsi.write_16(0, 8), "big"),
            lun=0,
            expected_data_transfer_length=PAGE,
            write=1,
        )
        raw.socket.sendall(pdu[:2000])
        wait_until("it has its buffer", lambda: target.server.buffers.taken == 1)
        connection = target.server.connections[0]
        assert target.server.call(lambda: connection.protocol.abort_task(itt))
        assert target.server.buffers.taken == 1
        raw.socket.sendall(pdu[2000:])
        assert raw.read(64, 8) == path.read_bytes()[64 * BLOCK : 72 * BLOCK]
        wait_until("the buffer is back", lambda: target.server.buffers.taken == 0)


@pytest.mark.parametrize("cache", ["writeback", "directsync"])
def test_commands_aborted_while_workers_have_them_leave_nothing_and_tear_nothing(path, cache):
    """Each block is old or new, whatever became of its command, and every command has an end."""
    pages = 48
    with serving(path, cache) as target, target.log_in() as raw:
        before = path.read_bytes()
        for turn in range(4):
            new = bytes([turn + 1]) * PAGE
            for page in range(pages):
                cdb = bytearray(scsi.write_16(8 * page, 8))
                cdb[1] |= 8  # FUA: a worker's
                raw.command(bytes(cdb), new, length=PAGE, write=1)
            tag = raw.request(
                Opcode.TASK_MANAGEMENT_REQUEST,
                function=bhs.TaskFunction.ABORT_TASK_SET,
                lun=scsi.encode_lun(0),
                immediate=turn % 2,
            )
            header = raw.take()[0]
            while header.opcode is not Opcode.TASK_MANAGEMENT_RESPONSE:
                assert header.status in (GOOD, TASK_SET_FULL)
                header = raw.take()[0]
            assert (header.itt, header.response) == (tag, 0)
            assert target.server.call(lambda: target.server.connections[0].jobs) == 0
            assert target.server.buffers.taken == 0
            after = path.read_bytes()
            for page in range(pages):
                piece = after[page * PAGE : (page + 1) * PAGE]
                assert piece in (new, before[page * PAGE : (page + 1) * PAGE])
            before = after
        raw.log_out()
        target.wait_idle()


@pytest.mark.parametrize("cut", [1, 48, 100, 2000])
def test_a_connection_lost_anywhere_gives_its_buffers_back(path, cut):
    with serving(path) as target:
        for turn in range(4):
            raw = target.log_in(isid=0x80AABBCC0000 + turn)
            raw.command(scsi.read_16(0, 2048), length=2048 * BLOCK, read=1)
            pdu = bhs.encode_pdu(
                Opcode.SCSI_COMMAND,
                bytes(PAGE),
                itt=77,
                cmd_sn=raw.cmd_sn,
                cdb=int.from_bytes(scsi.write_16(0, 8), "big"),
                expected_data_transfer_length=PAGE,
                write=1,
            )
            raw.socket.sendall(pdu[:cut])
            raw.socket.close()
        target.wait_idle()


def test_large_parameter_data_of_cold_commands_has_its_buffer(path):
    with serving(path) as target, target.log_in() as raw:
        data = os.urandom(64 * 1024)
        cdb = bytearray(scsi.write_16(8, 128))
        cdb[0] = 0x8E  # WRITE AND VERIFY (16)
        raw.command(bytes(cdb), data[:8192], length=len(data), write=1)
        header = raw.take()[0]
        while header.opcode is Opcode.R2T:
            start, length = header.buffer_offset, header.desired_data_transfer_length
            for at in range(start, start + length, 8192):
                raw.give(
                    Opcode.DATA_OUT,
                    data[at : at + 8192],
                    itt=header.itt,
                    ttt=header.ttt,
                    buffer_offset=at,
                    data_sn=(at - start) // 8192,
                    final=int(at + 8192 >= start + length),
                )
            header = raw.take()[0]
        assert header.status == GOOD
        assert raw.read(8, 128) == data
        raw.log_out()
        target.wait_idle()


def test_the_null_unit_reads_zeros_and_forgets():
    with FileServing({0: LogicalUnit(NullBackend(SIZE))}) as target, target.log_in() as raw:
        assert write_16(raw, 0, os.urandom(PAGE)).status == GOOD
        assert raw.read(0, 8) == bytes(PAGE)


def test_a_full_medium_says_so(path, monkeypatch):
    with serving(path, cache="writethrough") as target, target.log_in() as raw:
        unit = target.target.units[0]
        full = os.open("/dev/full", os.O_RDWR)
        record = unit.backend.medium._record[0]
        kept = int(record["buffered"])
        record["buffered"] = full
        header = write_16(raw, 0, bytes(PAGE))
        record["buffered"] = kept
        os.close(full)
        assert header.status == CHECK_CONDITION
        raw.log_out()
        target.wait_idle()


# --- other threads -------------------------------------------------------------------------------


def test_a_call_runs_in_the_servers_thread_and_returns(path):
    with serving(path) as target:
        assert target.server.call(threading.get_ident) == target._thread.ident
        with pytest.raises(ZeroDivisionError):
            target.server.call(lambda: 1 // 0)


def test_calls_of_many_threads_are_all_answered(path):
    with serving(path) as target:
        seen, threads = [], []

        def ask(number):
            pairs = [(number, turn) for turn in range(50)]
            seen.extend(target.server.call(partial(tuple, pair)) for pair in pairs)

        for number in range(4):
            threads.append(threading.Thread(target=ask, args=(number,)))
            threads[-1].start()
        for thread in threads:
            thread.join(30)
        assert sorted(seen) == [(number, turn) for number in range(4) for turn in range(50)]


def test_a_call_that_nobody_serves_times_out_and_is_not_done(path):
    with serving(path) as target:
        gate, entered, late = threading.Event(), threading.Event(), []

        def block():
            entered.set()
            gate.wait(30)

        thread = threading.Thread(target=lambda: target.server.call(block))
        thread.start()
        assert entered.wait(30)
        with pytest.raises(TimeoutError, match="did not answer"):
            target.server.call(lambda: late.append(1), timeout_s=0.05)
        gate.set()
        thread.join(30)
        target.server.call(lambda: None)
        assert late == []


def test_a_worker_that_fails_answers_with_its_error(path):
    with serving(path, cache="directsync") as target, target.log_in() as raw:
        record = target.target.units[0].backend.medium._record[0]
        kept = int(record["direct"])
        record["direct"] = os.open(path, os.O_RDONLY)
        header = write_16(raw, 0, bytes(PAGE))
        os.close(int(record["direct"]))
        record["direct"] = kept
        assert header.status == CHECK_CONDITION
        assert write_16(raw, 0, bytes(PAGE)).status == GOOD


def test_other_threads_do_not_wait_for_the_servers_next_look(path, monkeypatch):
    # With a tick of ten minutes nothing but a kick can end the sleep within the deadline.
    monkeypatch.setattr("iscsi.target.server.TICK_NS", 600 * 10**9)
    with serving(path) as target:
        for _ in range(3):
            assert target.server.call(lambda: 1, timeout_s=30) == 1
