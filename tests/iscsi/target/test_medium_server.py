"""Commands on the medium through the whole server: atomic against other sessions, and not in the
way of resets, lost sessions and the server's end.
"""

import struct
import threading
import time

import pytest

from iscsi.wire import scsi
from iscsi.wire.bhs import Opcode, TaskFunction
from iscsi.wire.sense import Asc, SenseKey, decode_sense, split_sense
from tests.iscsi.target.medium import cdb_16
from tests.iscsi.target.serving import BLOCK, BLOCKS, TWO, WAIT_S, Serving

PLACEMENTS = TWO

ROUNDS = 40
ANOTHER = 0x80AABBCC0002
ERASE = bytes((0x48, 0x02, *bytes(8)))  # SANITIZE, BLOCK ERASE, IMMED 0
ERASE_AT_ONCE = bytes((0x48, 0x82, *bytes(8)))


def padded(cdb):
    return bytes(cdb).ljust(16, b"\0")


def ask(raw, cdb, data=b"", *, length=None, **fields):
    """Status, sense and data of one command."""
    reading = 0 if data else int(bool(length))
    raw.command(
        padded(cdb),
        data,
        length=len(data) if length is None else length,
        read=reading,
        write=int(bool(data)),
        **fields,
    )
    return answer_of(raw)


def answer_of(raw):
    header, found = raw.take()
    if header.opcode is Opcode.DATA_IN:
        assert header.has_status
        return header.status, None, found
    assert header.opcode is Opcode.SCSI_RESPONSE, header
    return header.status, decode_sense(split_sense(found)), b""


def is_in_progress(answer):
    status, sense, _ = answer
    return status == 2 and (sense.key, sense.code) == (
        SenseKey.NOT_READY,
        Asc.SANITIZE_IN_PROGRESS,
    )


def wait_until_begun(raw):
    deadline = time.monotonic() + WAIT_S
    while not is_in_progress(ask(raw, scsi.test_unit_ready())):
        assert time.monotonic() < deadline, "the operation does not begin"


def wait_until_ready(raw):
    deadline = time.monotonic() + WAIT_S
    while (answer := ask(raw, scsi.test_unit_ready()))[0] != 0:
        assert is_in_progress(answer)
        assert time.monotonic() < deadline, "the operation does not end"
        time.sleep(0.02)


@pytest.fixture
def thin():
    with Serving(disk={"thin": True}) as serving:
        yield serving


@pytest.fixture
def slow():
    with Serving(disk={"thin": True, "sanitize_min_seconds": 1.5}) as serving:
        yield serving


def test_two_sessions_that_compare_and_write_lose_no_count(thin):
    failures = []

    def count(isid):
        try:
            with thin.log_in(isid=isid) as raw:
                raw.clear_attention()
                done = 0
                while done < ROUNDS:
                    old = raw.read(3, 1)
                    new = struct.pack(">I", struct.unpack_from(">I", old)[0] + 1) + old[4:]
                    status, sense, _ = ask(raw, cdb_16(0x89, 3, 1), old + new)
                    assert status == 0 or sense.key == SenseKey.MISCOMPARE
                    done += status == 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=count, args=(isid,)) for isid in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    with thin.log_in(isid=3) as raw:
        assert struct.unpack_from(">I", raw.clear_attention().read(3, 1))[0] == 2 * ROUNDS


def test_what_compiled_code_writes_is_mapped(thin):
    def first_status(raw, lba):
        status, _, data = ask(raw, cdb_16(0x9E, lba, 24, 0x12), length=24)
        assert status == 0
        return struct.unpack_from(">QIB", data, 8)

    with thin.log_in() as raw:
        raw.clear_attention()
        assert first_status(raw, 0) == (0, BLOCKS, 1)
        assert raw.write(16, b"x" * BLOCK).status == 0
        assert first_status(raw, 0) == (0, 16, 1)
        assert first_status(raw, 16) == (16, 8, 0)
        unmap = struct.pack(">HHIQII", 22, 16, 0, 16, 8, 0)
        assert ask(raw, bytes((0x42, *bytes(7), len(unmap), 0)), unmap)[0] == 0
        assert first_status(raw, 0) == (0, BLOCKS, 1)
        assert raw.read(16, 1) == bytes(BLOCK)


def test_sanitize_answers_at_its_end_and_keeps_everybody_out_until_then(slow):
    with slow.log_in() as raw, slow.log_in(isid=ANOTHER) as other:
        raw.clear_attention()
        other.clear_attention()
        assert raw.write(5, b"x" * BLOCK).status == 0
        raw.command(padded(ERASE))
        wait_until_begun(other)
        assert is_in_progress(ask(other, scsi.read_16(5, 1), length=BLOCK))
        assert is_in_progress(ask(other, scsi.write_16(5, 1), b"y" * BLOCK))
        assert ask(other, scsi.inquiry(), length=96)[0] == 0
        assert answer_of(raw)[0] == 0
        assert other.read(5, 1) == bytes(BLOCK)


@pytest.mark.parametrize("function", [TaskFunction.ABORT_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET])
def test_a_reset_is_answered_while_the_sanitizing_goes_on(slow, function):
    with slow.log_in() as raw, slow.log_in(isid=ANOTHER) as other:
        raw.clear_attention()
        other.clear_attention()
        raw.command(padded(ERASE))
        raw.request(Opcode.TASK_MANAGEMENT_REQUEST, function=function, immediate=1)
        header, _ = raw.take()
        assert header.opcode is Opcode.TASK_MANAGEMENT_RESPONSE
        assert header.response == 0
        if function is TaskFunction.LOGICAL_UNIT_RESET:
            other.clear_attention()
        assert is_in_progress(ask(other, scsi.test_unit_ready()))
        wait_until_ready(other)


def test_a_session_that_is_lost_comes_back_while_the_sanitizing_goes_on(slow):
    with slow.log_in() as raw, slow.log_in(isid=ANOTHER) as other:
        raw.clear_attention()
        other.clear_attention()
        raw.command(padded(ERASE))
        wait_until_begun(other)
    with slow.log_in() as raw:
        raw.clear_attention()
        assert is_in_progress(ask(raw, scsi.test_unit_ready()))
        wait_until_ready(raw)


@pytest.mark.parametrize("cdb", [ERASE, ERASE_AT_ONCE])
def test_a_server_that_ends_does_not_wait_for_the_sanitizing(cdb):
    with Serving(disk={"thin": True, "sanitize_min_seconds": 600}) as serving:
        raw = serving.log_in().clear_attention()
        raw.command(padded(cdb))
        with serving.log_in(isid=ANOTHER) as other:
            other.clear_attention()
            wait_until_begun(other)
    raw.socket.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "sanitize"]


def test_what_a_command_wanted_makes_the_residual(thin):
    with thin.log_in() as raw:
        raw.clear_attention()
        raw.command(padded(cdb_16(0x8E, 0, 2)), bytes(BLOCK), length=BLOCK, write=1)
        header, _ = raw.take()
        assert (header.status, header.residual_count) == (0, BLOCK)
        assert header.overflow == 1
        raw.command(padded(cdb_16(0x8E, 0, 1)), bytes(2 * BLOCK), length=2 * BLOCK, write=1)
        header, _ = raw.take()
        assert (header.status, header.residual_count) == (0, BLOCK)
        assert header.underflow == 1
