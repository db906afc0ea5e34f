"""WRITEs that are under way at a target, as the commands see them that wait for them or end them.
Runs compiled and as plain Python alike.
"""

import pytest

from iscsi.wire.bhs import BHS_LENGTH, Opcode, encode_pdu
from iscsi.wire.keys import SessionParams
from iscsi.wire.sense import Asc, SenseKey
from tests.iscsi.wire.full_feature import BLOCK
from tests.iscsi.wire.test_target import Scripted
from tests.iscsi.wire.test_target_violations import PLAIN, still_works

UNASKED = SessionParams(initial_r2t=False, first_burst_length=4 * BLOCK)
GONE = (SenseKey.NOT_READY, Asc.SANITIZE_IN_PROGRESS)


def half_written(end, first, count, lun=0):
    start = end.ram.ctypes.data + first * BLOCK
    return end.connection.half_written(lun, start, start + count * BLOCK)


def refuse(end, lun=0):
    return end.connection.refuse_writes(lun, *GONE)


def ended(end):
    sense = end.answer_sense()
    assert (sense.key, sense.code) == GONE
    still_works(end)


def asked_for(end, lba=2, blocks=2):
    """A WRITE that has been asked for its data: the fields of what is sent for it."""
    itt = end.write(lba, blocks)
    ((r2t, _),) = end.sent()
    return {"itt": itt, "ttt": r2t.ttt}


def test_a_write_is_half_done_from_its_first_byte_to_its_last_in_its_own_blocks():
    end = Scripted(PLAIN)
    burst = asked_for(end)
    assert half_written(end, 0, 64) == 0  # nothing has come
    pdu = encode_pdu(Opcode.DATA_OUT, bytes(2 * BLOCK), **burst)
    end.connection.receive(pdu[: BHS_LENGTH + 1])
    for first, count, found in ((2, 1, 1), (3, 1, 1), (0, 3, 1), (0, 2, 0), (4, 60, 0), (2, 0, 0)):
        assert half_written(end, first, count) == found
    assert half_written(end, 2, 2, lun=300) == 0
    end.connection.receive(pdu[BHS_LENGTH + 1 :])
    assert half_written(end, 0, 64) == 0
    assert end.answer()[0].status == 0


def test_a_read_is_no_write():
    end = Scripted()
    end.read(0, 4)
    assert half_written(end, 0, 64) == refuse(end) == 0
    assert end.answer()[0].status == 0


@pytest.mark.parametrize("cut", [0, BHS_LENGTH, BHS_LENGTH + 1, BHS_LENGTH + 2 * BLOCK - 1])
def test_what_comes_after_a_refusal_is_thrown_away_and_the_session_goes_on(cut):
    end = Scripted(PLAIN)
    burst = asked_for(end)
    pdu = encode_pdu(Opcode.DATA_OUT, b"\xee" * (2 * BLOCK), **burst)
    end.connection.receive(pdu[:cut])
    assert refuse(end) == 1
    after = end.ram.copy()
    assert end.sent() == []  # the end of its burst is waited for
    end.connection.receive(pdu[cut:])
    assert (end.ram == after).all()
    ended(end)


def test_unasked_data_is_waited_for_and_thrown_away():
    end = Scripted(UNASKED)
    before = end.ram.copy()
    itt = end.write(2, 2, final=0)
    assert refuse(end) == 1
    assert end.sent() == []
    end.give(Opcode.DATA_OUT, b"\xee" * (2 * BLOCK), itt=itt, ttt=0xFFFFFFFF)
    assert (end.ram == before).all()
    ended(end)


def test_a_write_that_was_not_asked_for_its_data_yet_ends_at_once():
    end = Scripted(PLAIN)
    end.write(2, 2)
    assert refuse(end) == 1
    ended(end)


def test_writes_of_other_units_go_on():
    end = Scripted(PLAIN)
    burst = asked_for(end)
    assert refuse(end, lun=300) == 0
    end.give(Opcode.DATA_OUT, bytes(2 * BLOCK), **burst)
    assert end.answer()[0].status == 0
