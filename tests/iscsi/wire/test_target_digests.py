"""Data digests that do not match, at the target (RFC 7143 §7.8): the PDU is rejected, its command
ends with a CRC error after all its data came, and the stream stays in step.
"""

import pytest

from iscsi.wire import bhs, scsi, violations
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import RejectReason, RemoteProtocolError
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.sense import Asc, SenseKey, decode_sense, split_sense
from iscsi.wire.violations import Violation
from shm.crc32c import crc32c
from tests.iscsi.wire.full_feature import BLOCK, pdus_of
from tests.iscsi.wire.test_target import Scripted

BOTH = ConnectionParams(header_digest=True, data_digest=True)
ASKED = SessionParams(
    immediate_data=False, max_burst_length=1024, first_burst_length=1024, max_outstanding_r2t=2
)
ANNOUNCED = SessionParams(initial_r2t=False, first_burst_length=2048, max_burst_length=4096)


class Digests(Scripted):
    """A target with both digests, to which PDUs with a wrong data digest can be given."""

    def __init__(self, session=ANNOUNCED, **options):
        super().__init__(session, BOTH, **options)

    def give(self, opcode, data=b"", wrong=False, **fields):
        header = bytes(bhs.encode(opcode, data_segment_length=len(data), **fields))
        pdu = header + crc32c(header).to_bytes(4, "little")
        if data:
            padded = data + bytes(-len(data) % 4)
            pdu += padded + (crc32c(padded) ^ wrong).to_bytes(4, "little")
        self.connection.receive(pdu)

    def sent(self):
        return pdus_of(self.connection.data_to_send(), BOTH)

    def rejects(self):
        ((header, data),) = self.sent()
        assert (header.opcode, header.reject_reason) == (
            Opcode.REJECT,
            RejectReason.DATA_DIGEST_ERROR,
        )
        return bhs.decode(data)

    def fails(self):
        header, data = self.answer()
        sense = decode_sense(split_sense(data))
        code = (header.status, sense.key, sense.code)
        assert code == (2, SenseKey.ABORTED_COMMAND, Asc.PROTOCOL_SERVICE_CRC_ERROR)
        return header.itt

    def works(self):
        self.read(9, 1)
        assert self.answer()[1] == self.ram[9 * BLOCK : 10 * BLOCK].tobytes()


def test_immediate_data_with_a_wrong_digest_ends_its_command():
    end = Digests(window_size=1)
    for _ in range(3):
        itt = end.write(0, 1, data=b"w" * BLOCK, wrong=True)
        (reject, data), (response, sense) = end.sent()
        assert (reject.opcode, reject.reject_reason) == (Opcode.REJECT, 2)
        assert bhs.decode(data).itt == itt
        assert (response.itt, response.status) == (itt, 2)
        assert decode_sense(split_sense(sense)).code == Asc.PROTOCOL_SERVICE_CRC_ERROR
    end.works()


def test_with_more_announced_its_end_is_waited_for():
    end = Digests()
    itt = end.write(0, 4, data=bytes(BLOCK), wrong=True, final=0)
    assert end.rejects().itt == itt
    end.give(Opcode.DATA_OUT, bytes(512), itt=itt, buffer_offset=512, final=0)
    assert end.sent() == []
    end.give(Opcode.DATA_OUT, bytes(1024), itt=itt, buffer_offset=1024, data_sn=1)
    assert end.fails() == itt
    end.works()


def test_a_data_out_with_a_wrong_digest_ends_its_command_after_all_it_was_asked_for():
    end = Digests(ASKED)
    itt = end.write(0, 6)
    r2ts = [header for header, _ in end.sent()]
    assert len(r2ts) == 2
    first, second = ({"itt": itt, "ttt": r2t.ttt} for r2t in r2ts)
    end.give(Opcode.DATA_OUT, bytes(512), wrong=True, final=0, **first)
    assert end.rejects().opcode is Opcode.DATA_OUT
    end.give(Opcode.DATA_OUT, bytes(512), buffer_offset=512, data_sn=1, **first)
    assert end.sent() == []
    end.give(Opcode.DATA_OUT, bytes(1024), buffer_offset=1024, **second)
    assert end.fails() == itt
    end.works()


def test_the_last_data_out_with_a_wrong_digest_ends_its_command_at_once():
    end = Digests(ASKED)
    itt = end.write(0, 2)
    r2t, _ = end.answer()
    end.give(Opcode.DATA_OUT, bytes(1024), itt=itt, ttt=r2t.ttt, wrong=True)
    (reject, _), (response, _) = end.sent()
    assert (reject.opcode, response.itt, response.status) == (Opcode.REJECT, itt, 2)
    end.works()


@pytest.mark.parametrize("immediate", [0, 1])
@pytest.mark.parametrize("opcode", [Opcode.NOP_OUT, Opcode.TEXT_REQUEST])
def test_a_request_with_a_wrong_digest_is_thrown_away(opcode, immediate):
    end = Digests(window_size=1)
    for _ in range(20):  # neither its slot nor its place in the window is lost
        end.request(opcode, b"a=b\0", itt=3, immediate=immediate, wrong=True)
        assert end.rejects().itt == 3
    assert list(end.connection.controls()) == []
    end.works()


def test_a_held_request_with_a_wrong_digest_is_passed():
    end = Digests(window_size=4)
    end.request(Opcode.NOP_OUT, b"ping", itt=1, cmd_sn=51, wrong=True)
    assert end.rejects().itt == 1
    end.write(0, 1, data=b"w" * BLOCK, itt=2, cmd_sn=52, wrong=True)
    assert end.rejects().itt == 2
    end.cmd_sn = 50
    end.read(0, 1, itt=3)
    (read, _), (response, _) = end.sent()
    assert (read.itt, response.itt, response.status) == (3, 2, 2)
    end.cmd_sn = 53
    end.works()


def test_data_nobody_wanted_may_have_any_digest():
    end = Digests()
    end.give(Opcode.DATA_OUT, b"data", itt=77, wrong=True)
    end.write(0, 1, data=b"w" * BLOCK, cmd_sn=9999, wrong=True)
    assert end.sent() == []
    end.cmd_sn = 50
    end.works()


def test_a_wrong_header_digest_ends_the_connection():
    end = Digests()
    header = bytes(bhs.encode(Opcode.NOP_OUT, itt=1, cmd_sn=50))
    with pytest.raises(RemoteProtocolError, match=violations.describe(Violation.HEADER_DIGEST)):
        end.connection.receive(header + bytes(4))


def test_a_command_keeps_its_own_refusal_beside_a_good_digest():
    end = Digests()
    end.write(63, 4, data=b"w" * 2048)
    assert end.answer_sense().code == Asc.LBA_OUT_OF_RANGE
    end.command(scsi.test_unit_ready())
    (cold,) = end.connection.cold_commands()
    assert end.connection.respond(cold.task_id)
