"""Reservations against a running server: what compiled code serves keeps to them, and they outlive
sessions, and the server where they were asked to.
"""

import pytest

from iscsi.target.backends import NullBackend
from iscsi.target.units import LogicalUnit
from iscsi.wire import scsi
from iscsi.wire.sense import Asc, ScsiStatus
from shm.jit import JIT_DISABLED
from tests.iscsi.target.managing import (
    CONFLICT,
    RESERVE_6,
    SECOND,
    begin_write,
    blocks,
    finish_write,
    out,
    run,
)
from tests.iscsi.target.reserving import parameters
from tests.iscsi.target.serving import BLOCK, NAME, TWO, Serving

PLACEMENTS = TWO

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")


@pytest.fixture
def released(first):
    """Nothing is registered afterwards."""
    yield
    out(first, 6, 0, 0xEE)
    assert out(first, 3, 0xEE) == 0


@pytest.mark.usefixtures("released")
def test_reads_and_writes_of_compiled_code_never_pass_a_reservation(serving, first, second):
    before = blocks(serving, 90, 1)
    assert second.write(91, bytes(BLOCK)).status == 0
    assert out(first, 0, 0, 0xA1) == 0
    assert out(first, 1, 0xA1, kind=3) == 0
    assert second.write(90, b"q" * BLOCK).status == CONFLICT
    assert run(second, scsi.read_10(90, 1))[0] == CONFLICT
    assert first.write(92, b"m" * BLOCK).status == 0
    assert blocks(serving, 90, 1) == before
    assert out(first, 2, 0xA1, kind=3) == 0
    assert second.write(90, b"q" * BLOCK).status == 0
    assert blocks(serving, 90, 1) == b"q" * BLOCK


@pytest.mark.usefixtures("released")
def test_preempt_and_abort_fences_a_write_that_is_half_sent(serving, first, second):
    assert out(second, 0, 0, 0xB2) == 0
    assert out(second, 1, 0xB2, kind=5) == 0
    before = blocks(serving, 96, 1)
    tag, _, r2t = begin_write(second, 96, 1)
    assert out(first, 0, 0, 0xA1) == 0
    assert out(first, 5, 0xA1, 0xB2, kind=5) == 0
    finish_write(second, tag, r2t, b"b" * BLOCK)
    told = (ScsiStatus.CHECK_CONDITION, Asc.REGISTRATIONS_PREEMPTED)
    assert run(second, scsi.test_unit_ready()) == told
    assert second.write(96, b"b" * BLOCK).status == CONFLICT
    assert blocks(serving, 96, 1) == before
    assert first.write(96, b"a" * BLOCK).status == 0


@pytest.mark.usefixtures("released")
def test_a_registration_outlives_the_connection_and_reserve_6_does_not(serving, first):
    with serving.log_in(initiator=SECOND) as session:
        session.clear_attention().clear_attention(1)
        assert run(session, RESERVE_6, lun=1) == (0, None)
        assert out(session, 0, 0, 0xB2) == 0
        assert out(session, 1, 0xB2, kind=3) == 0
        assert run(first, scsi.test_unit_ready(), lun=1) == (CONFLICT, None)
    with serving.log_in(initiator=SECOND) as session:
        session.clear_attention()
        assert run(first, scsi.test_unit_ready(), lun=1) == (0, None)
        assert first.write(97, bytes(BLOCK)).status == CONFLICT
        assert session.write(97, b"k" * BLOCK).status == 0


@pytest.mark.usefixtures("released")
def test_writes_follow_a_reservation_that_moves_to_and_fro(serving, first, second):
    sessions = {0xA1: first, 0xB2: second}
    for key, session in sessions.items():
        assert out(session, 0, 0, key) == 0
    for turn in range(60):
        key = (0xA1, 0xB2)[turn % 2]
        holder, other = sessions[key], sessions[0xA1 ^ 0xB2 ^ key]
        assert out(holder, 1, key, kind=1) == 0
        mark = bytes((turn,)) * BLOCK
        cdb = scsi.write_16(100, 1)
        other.command(cdb, b"\xff" * BLOCK, length=BLOCK, write=1)
        holder.command(cdb, mark, length=BLOCK, write=1)
        assert holder.take()[0].status == 0
        assert other.take()[0].status == CONFLICT
        assert blocks(serving, 100, 1) == mark
        assert out(holder, 2, key, kind=1) == 0


def test_a_reservation_stops_the_others_after_a_restart_of_the_server(tmp_path):
    def serving_again():
        server = Serving()
        server.__enter__()
        unit = LogicalUnit(NullBackend(1 << 20), reservations_path=str(tmp_path / "stored"))
        server.server.add_unit(NAME, 9, unit)
        return server

    before = serving_again()
    try:
        with before.log_in() as session:
            session.clear_attention(9)
            assert register_for_good(session, 0xA1) == 0
            assert out(session, 1, 0xA1, kind=3, lun=9) == 0
        before.wait_idle()
    finally:
        before.__exit__()
    after = serving_again()
    try:
        with after.log_in(initiator=SECOND) as other, after.log_in() as session:
            other.clear_attention(9)
            session.clear_attention(9)
            assert other.write(0, bytes(BLOCK), lun=9).status == CONFLICT
            assert session.write(0, bytes(BLOCK), lun=9).status == 0
            assert out(session, 3, 0xA1, lun=9) == 0
            assert other.write(0, bytes(BLOCK), lun=9).status == 0
        after.wait_idle()
    finally:
        after.__exit__()


def register_for_good(session, key):
    data = parameters(0, key, flags=1)
    return run(session, bytes((0x5F, 0, 0, 0, 0, 0, 0, 0, len(data), 0)), data, lun=9)[0]
