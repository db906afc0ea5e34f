"""WRITEs whose data is placed straight into a unit's memory as it comes, against the commands that
must not see or leave a half of one: COMPARE AND WRITE, ORWRITE, WRITE ATOMIC and SANITIZE.
"""

import pytest

from iscsi.target import control
from iscsi.target.backends import FileBackend
from iscsi.target.units import LogicalUnit
from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode, TaskFunction, TaskFunctionResponse
from iscsi.wire.sense import Asc, SenseKey
from tests.iscsi.target.medium import cdb_16
from tests.iscsi.target.serving import BLOCK, EVERYWHERE, Serving, wait_until
from tests.iscsi.target.test_medium_server import (
    ERASE_AT_ONCE,
    answer_of,
    ask,
    padded,
    wait_until_ready,
)
from tests.iscsi.target.test_storage import FileServing

PLACEMENTS = EVERYWHERE

LBA = 10
SECOND = {"isid": 0x80AABBCC0002}
HALF = 300  # bytes: less than a block
COMPARE_AND_WRITE, ORWRITE, WRITE_ATOMIC = 0x89, 0x8B, 0x9C


@pytest.fixture
def serving():
    with Serving(disk={"thin": True}) as serving:
        yield serving


@pytest.fixture
def sessions(serving):
    with serving.log_in() as one, serving.log_in(**SECOND) as other:
        yield one.clear_attention(), other.clear_attention()


def begin_write(raw, blocks=2):
    """A WRITE of which only HALF bytes have come; its tag, the R2T and what is still to be sent."""
    tag = raw.command(scsi.write_16(LBA, blocks), length=blocks * BLOCK, write=1)
    header, _ = raw.take()
    assert header.opcode is Opcode.R2T
    data = b"\xa5" * (blocks * BLOCK)
    send_data(raw, tag, header, data[:HALF], final=0)
    raw.request(Opcode.NOP_OUT, immediate=1)
    assert raw.take()[0].opcode is Opcode.NOP_IN  # so what was sent before it has come
    return tag, header, data[HALF:]


def send_data(raw, tag, r2t, data, offset=0, sn=0, final=1):
    raw.give(
        Opcode.DATA_OUT,
        data,
        itt=tag,
        ttt=r2t.ttt,
        lun=r2t.lun,
        buffer_offset=offset,
        data_sn=sn,
        final=final,
    )


def end_write(raw, tag, r2t, rest):
    send_data(raw, tag, r2t, rest, HALF, 1)
    header, _ = raw.take()
    assert (header.opcode, header.itt, header.status) == (Opcode.SCSI_RESPONSE, tag, 0)


def is_answered(raw, command_tag):
    """Whether a command is answered before a ping that follows it."""
    ping = raw.request(Opcode.NOP_OUT, immediate=1)
    header, _ = raw.take()
    if header.itt == command_tag:
        assert raw.take()[0].itt == ping
        return True
    assert header.itt == ping
    return False


def atomic_command(operation, before):
    """CDB and data of a command that changes the two blocks at LBA, and what it makes of `old`."""
    new = b"\x5a" * (2 * BLOCK)
    if operation == COMPARE_AND_WRITE:
        return cdb_16(operation, LBA, 2), before + new
    if operation == WRITE_ATOMIC:
        return padded((operation, 0, *LBA.to_bytes(8, "big"), 0, 0, 0, 2)), new
    return cdb_16(operation, LBA, 2), new


@pytest.mark.parametrize("operation", [COMPARE_AND_WRITE, ORWRITE, WRITE_ATOMIC])
def test_what_is_atomic_waits_for_a_write_of_which_a_half_has_come(serving, sessions, operation):
    one, other = sessions
    before = serving.disk.array[LBA * BLOCK : (LBA + 2) * BLOCK].tobytes()
    begun = begin_write(one)
    cdb, data = atomic_command(operation, b"\xa5" * (2 * BLOCK))
    tag = other.command(cdb, data, length=len(data), write=1)
    assert not is_answered(other, tag)
    assert serving.disk.array[LBA * BLOCK + HALF : (LBA + 2) * BLOCK].tobytes() == before[HALF:]
    end_write(one, *begun)
    status, _, _ = answer_of(other)
    assert status == 0
    expected = b"\xff" if operation == ORWRITE else b"\x5a"
    assert other.read(LBA, 2) == expected * (2 * BLOCK)


def test_other_blocks_are_compared_and_written_at_once(serving, sessions):
    one, other = sessions
    begun = begin_write(one)
    old = serving.disk.array[0 : 2 * BLOCK].tobytes()
    status, _, _ = ask(other, cdb_16(COMPARE_AND_WRITE, 0, 2), old + bytes(2 * BLOCK))
    assert status == 0
    end_write(one, *begun)


def test_while_one_waits_further_writes_are_done_and_whole(sessions):
    one, other = sessions
    begun = begin_write(one)
    cdb, data = atomic_command(COMPARE_AND_WRITE, b"\xa5" * (2 * BLOCK))
    tag = other.command(cdb, data, length=len(data), write=1)
    assert not is_answered(other, tag)
    assert one.write(LBA + 2, b"w" * BLOCK).status == 0
    assert one.read(LBA + 2, 1) == b"w" * BLOCK
    end_write(one, *begun)
    assert answer_of(other)[0] == 0
    assert one.write(LBA, b"x" * BLOCK).status == 0
    assert one.read(LBA, 1) == b"x" * BLOCK


def test_a_writer_that_never_sends_the_rest_holds_up_nobody_for_ever(sessions, monkeypatch):
    monkeypatch.setattr(control, "WRITES_WAIT_S", 0.2)
    one, other = sessions
    begun = begin_write(one)
    cdb, data = atomic_command(COMPARE_AND_WRITE, b"\xa5" * (2 * BLOCK))
    status, _, _ = ask(other, cdb, data)
    assert status == 0x08  # BUSY: to be sent again
    end_write(one, *begun)
    assert ask(other, cdb, data)[0] == 0


def test_one_that_waits_can_be_aborted_and_does_nothing(sessions):
    one, other = sessions
    begun = begin_write(one)
    cdb, data = atomic_command(COMPARE_AND_WRITE, b"\xa5" * (2 * BLOCK))
    tag = other.command(cdb, data, length=len(data), write=1)
    assert not is_answered(other, tag)
    end = other.request(
        Opcode.TASK_MANAGEMENT_REQUEST,
        function=TaskFunction.ABORT_TASK,
        immediate=1,
        referenced_task_tag=tag,
    )
    end_write(one, *begun)
    header, _ = other.take()
    assert (header.itt, header.response) == (end, TaskFunctionResponse.COMPLETE)
    assert other.read(LBA, 2) == b"\xa5" * (2 * BLOCK)


def test_a_session_that_ends_while_its_command_waits_leaves_nothing(serving, sessions):
    one, other = sessions
    begun = begin_write(one)
    cdb, data = atomic_command(ORWRITE, b"")
    tag = other.command(cdb, data, length=len(data), write=1)
    assert not is_answered(other, tag)
    other.socket.close()
    end_write(one, *begun)
    one.log_out()
    one.socket.close()
    serving.wait_idle()
    assert serving.server.buffers.taken == 0


def test_data_of_a_write_that_comes_after_sanitize_is_thrown_away(serving, sessions):
    one, other = sessions
    tag, r2t, rest = begin_write(one)
    assert ask(other, ERASE_AT_ONCE)[0] == 0
    wait_until_ready(other)
    send_data(one, tag, r2t, rest, HALF, 1)
    status, sense, _ = answer_of(one)
    assert status == 2
    assert (sense.key, sense.code) == (SenseKey.NOT_READY, Asc.SANITIZE_IN_PROGRESS)
    assert not serving.disk.array.any()
    assert one.write(LBA, b"x" * BLOCK).status == 0
    assert one.read(LBA, 1) == b"x" * BLOCK


def test_sanitize_in_the_middle_of_a_pdu_keeps_the_rest_of_it_out(serving, sessions):
    one, other = sessions
    data = b"\xa5" * (2 * BLOCK)
    tag = one.command(scsi.write_16(LBA, 2), length=len(data), write=1)
    r2t, _ = one.take()
    fields = {"itt": tag, "ttt": r2t.ttt, "lun": r2t.lun, "data_sn": 0, "final": 1}
    pdu = bhs.encode_pdu(Opcode.DATA_OUT, data, buffer_offset=0, **fields)
    one.socket.sendall(pdu[: bhs.BHS_LENGTH + HALF])
    place = serving.disk.array[LBA * BLOCK :]
    wait_until("the first bytes have come", lambda: bytes(place[:HALF]) == data[:HALF])
    assert ask(other, ERASE_AT_ONCE)[0] == 0
    wait_until_ready(other)
    one.socket.sendall(pdu[bhs.BHS_LENGTH + HALF :])
    assert answer_of(one)[0] == 2
    assert not serving.disk.array.any()


def test_a_write_to_a_file_that_waits_for_its_data_writes_nothing_behind_sanitize(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"\xff" * (64 * BLOCK))
    unit = LogicalUnit(FileBackend(path, thin=True))
    with FileServing({0: unit}) as serving:
        with serving.log_in() as one, serving.log_in(**SECOND) as other:
            tag, r2t, rest = begin_write(one)
            assert ask(other, ERASE_AT_ONCE)[0] == 0
            wait_until_ready(other)
            send_data(one, tag, r2t, rest, HALF, 1)
            assert answer_of(one)[0] == 2
            assert one.read(0, 64) == bytes(64 * BLOCK)
        serving.wait_idle()
    assert path.read_bytes() == bytes(64 * BLOCK)
