"""Initiators that owe written data: when that is too long by a clock of the test, and that those
who answer pings but send no data do not keep a server's buffers.
"""

import os

import pytest

from iscsi.target.backends import FileBackend
from iscsi.target.overdue import RATE_MIN, Overdue
from iscsi.target.units import LogicalUnit
from iscsi.wire import scsi
from iscsi.wire.bhs import AsyncEvent, Opcode
from shm.jit import JIT_DISABLED
from tests.iscsi.target.serving import TWO, wait_until
from tests.iscsi.target.test_storage import GOOD, PAGE, SIZE, TASK_SET_FULL, FileServing

PLACEMENTS = TWO

SECOND = 1_000_000_000
LIMIT = 30 * SECOND
runs_a_server = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")


# --- by a clock of the test --------------------------------------------------------------------


def test_a_task_without_data_is_late_after_the_limit_and_not_before():
    overdue = Overdue(LIMIT)
    assert overdue.step([7], 0, SECOND) is None
    assert overdue.step([7], 0, SECOND + LIMIT - 1) is None
    assert overdue.step([7], 0, SECOND + LIMIT) == 7


def test_a_task_that_got_its_data_begins_anew_when_it_waits_again():
    overdue = Overdue(LIMIT)
    overdue.step([7], 0, 0)
    overdue.step([], 0, LIMIT - 1)
    assert overdue.step([7], 0, LIMIT) is None
    assert overdue.step([7], 0, 2 * LIMIT) == 7


def test_one_task_that_is_starved_is_late_though_others_come_and_go():
    overdue = Overdue(LIMIT)
    for second in range(30):
        assert overdue.step([1000, second], second, second * SECOND) is None
    assert overdue.step([1000, 30], 30, LIMIT + SECOND) == 1000


def test_an_initiator_that_keeps_the_rate_is_never_late_and_a_trickle_does_not_help():
    slow, trickle = Overdue(LIMIT), Overdue(LIMIT)
    late = None
    for second in range(1000):
        assert slow.step([7], second * RATE_MIN, second * SECOND) is None
        late = late or trickle.step([7], second, second * SECOND)
    assert late == 7


def test_it_looks_several_times_within_the_limit_and_never_without_one():
    overdue = Overdue(LIMIT)
    assert overdue.is_due(1)
    overdue.step([], 0, 1)
    assert not overdue.is_due(2)
    assert overdue.is_due(1 + LIMIT // 8)
    assert not Overdue(0).is_due(1 << 60)


# --- greedy sessions -----------------------------------------------------------------------------


def serving(path, **options):
    path.write_bytes(bytes(SIZE))
    return FileServing(
        {0: LogicalUnit(FileBackend(path))}, data_buffers=((PAGE, 4),), linger_s=0.2, **options
    )


def hold_buffers(raw, count=2):
    """Begin WRITEs that get their R2Ts, and send nothing for them."""
    for number in range(count):
        raw.command(scsi.write_16(8 * number, 8), length=PAGE, write=1)
        assert raw.take()[0].opcode is Opcode.R2T


def is_lively(raw):
    """Whether a session answers, and still owes its data."""
    tag = raw.request(Opcode.NOP_OUT, immediate=1)
    header, _ = raw.take()
    return (header.opcode, header.itt) == (Opcode.NOP_IN, tag)


def take_farewell(raw):
    """The Async Message that says why a connection ends, and its end."""
    header, _ = raw.take()
    while header.opcode is Opcode.NOP_IN:
        header, _ = raw.take()
    assert header.opcode is Opcode.ASYNC_MESSAGE
    assert header.async_event == AsyncEvent.CONNECTION_DROPPED
    agreed = raw.result.session.default_time2wait
    assert (header.parameter1, header.parameter2) == (raw.result.cid, agreed)
    assert raw.is_closed()


@runs_a_server
def test_two_greedy_sessions_do_not_keep_a_third_from_its_buffers(tmp_path):
    data = os.urandom(PAGE)
    with (
        serving(tmp_path / "disk", data_timeout_s=1.0) as target,
        target.log_in() as first,
        target.log_in(isid=0x80AABBCC0002) as second,
        target.log_in(isid=0x80AABBCC0003) as third,
    ):
        for raw in (first, second):
            hold_buffers(raw)
        assert target.server.buffers.taken == 4
        assert third.write(64, data).status == TASK_SET_FULL
        for raw in (first, second):
            assert is_lively(raw)
        wait_until("buffers are free", lambda: not target.server.buffers.taken)
        assert third.write(64, data).status == GOOD
        assert third.read(64, 8) == data
        for raw in (first, second):
            take_farewell(raw)
        assert target.counts["data overdue"] == 2
        third.log_out()
        target.wait_idle()


@runs_a_server
def test_what_waited_for_a_buffer_meanwhile_goes_on(tmp_path):
    data = os.urandom(PAGE)
    with (
        serving(tmp_path / "disk", data_timeout_s=0.5) as target,
        target.log_in() as first,
        target.log_in(isid=0x80AABBCC0002) as second,
        target.log_in(isid=0x80AABBCC0003) as third,
    ):
        for raw in (first, second):
            hold_buffers(raw)
        # Without data of its own it is asked for it when there is room.
        late = third.command(scsi.write_16(64, 8), length=PAGE, write=1)
        header, _ = third.take()
        assert (header.opcode, header.itt) == (Opcode.R2T, late)
        third.give(Opcode.DATA_OUT, data, itt=late, ttt=header.ttt, final=1)
        assert third.take()[0].status == GOOD
        third.log_out()
        target.wait_idle()


@runs_a_server
def test_those_that_ask_and_do_not_read_do_not_keep_a_third_from_its_buffers(tmp_path):
    """The kernels' own buffers take some megabytes before anything has to wait here."""
    large = 1 << 20
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    unit = LogicalUnit(FileBackend(path))
    with (
        FileServing(
            {0: unit}, data_buffers=((large, 4),), linger_s=0.2, data_timeout_s=1.0
        ) as target,
        target.log_in() as first,
        target.log_in(isid=0x80AABBCC0002) as second,
        target.log_in(isid=0x80AABBCC0003) as third,
    ):
        for raw in (first, second):
            for _ in range(48):
                raw.command(scsi.read_16(0, large // 512), length=large, read=1)
        wait_until("all buffers are held", lambda: target.server.buffers.taken == 4)
        for raw in (first, second):
            raw.request(Opcode.NOP_OUT, immediate=1)
        wait_until("both are dropped", lambda: target.counts["data overdue"] == 2)
        wait_until("buffers are free", lambda: not target.server.buffers.taken)
        assert third.write(64, bytes(PAGE)).status == GOOD
        third.log_out()
        target.wait_idle()


@runs_a_server
# A datamover shows nothing of a PDU that is not complete, so no buffer of the server's is held.
@pytest.mark.only_in("stream")
def test_half_a_pdu_of_data_is_not_enough(tmp_path):
    with serving(tmp_path / "disk", data_timeout_s=0.5) as target, target.log_in() as raw:
        cdb = int.from_bytes(scsi.write_16(0, 8), "big")
        whole = []
        raw.socket, socket = type("Keep", (), {"sendall": whole.append})(), raw.socket
        raw.request(
            Opcode.SCSI_COMMAND,
            bytes(PAGE),
            cdb=cdb,
            expected_data_transfer_length=PAGE,
            write=1,
        )
        raw.socket = socket
        socket.sendall(b"".join(whole)[: 48 + 512])
        wait_until("a buffer is held", lambda: target.server.buffers.taken == 1)
        take_farewell(raw)
        target.wait_idle()


@runs_a_server
def test_without_a_limit_an_initiator_may_take_its_time(tmp_path):
    data = os.urandom(PAGE)
    with serving(tmp_path / "disk", data_timeout_s=0) as target, target.log_in() as raw:
        late = raw.command(scsi.write_16(0, 8), length=PAGE, write=1)
        header, _ = raw.take()
        (connection,) = target.server.call(lambda: list(target.server._pumps.values()))
        looked = target.server.call(lambda: connection.overdue_task(1 << 62))
        assert looked is None
        raw.give(Opcode.DATA_OUT, data, itt=late, ttt=header.ttt, final=1)
        assert raw.take()[0].status == GOOD
        assert not target.counts["data overdue"]
        raw.log_out()
        target.wait_idle()
