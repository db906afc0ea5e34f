"""Additional header segments at the target (RFC 7143 §11.2.2): long CDBs, and what is refused."""

import pytest

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import AhsType, Opcode
from iscsi.wire.errors import RejectReason, RemoteProtocolError
from iscsi.wire.keys import ConnectionParams
from iscsi.wire.violations import Violation
from shm.crc32c import crc32c
from tests.iscsi.wire.full_feature import BLOCK, pdus_of
from tests.iscsi.wire.test_target import Scripted
from tests.iscsi.wire.test_target_violations import expect, rejected, still_works

LONG_CDB = bytes((0x7F, 0, 0, 0, 0, 0, 0, 24)) + bytes(range(8))


def segment(kind, body, length=None):
    """One segment; `length` is what it says of itself."""
    said = len(body) if length is None else length
    whole = said.to_bytes(2, "big") + bytes((kind,)) + body
    return whole + bytes(-len(whole) % 4)


def extended(more):
    return segment(AhsType.EXTENDED_CDB, b"\0" + more)


def give(end, segments, opcode=Opcode.SCSI_COMMAND, data=b"", words=None, **fields):
    fields = {"itt": 5, "cmd_sn": end.cmd_sn, **fields}
    words = len(segments) // 4 if words is None else words
    header = bhs.encode(opcode, total_ahs_words=words, data_segment_length=len(data), **fields)
    end.cmd_sn += 1
    end.connection.receive(bytes(header) + segments + data + bytes(-len(data) % 4))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 16, 17, 100, 243, 244])
def test_a_long_cdb_reaches_the_cold_code_whole(length):
    end = Scripted()
    more = bytes(range(1, length + 1))
    for _ in range(2):
        give(
            end,
            extended(more),
            cdb=int.from_bytes(LONG_CDB, "big"),
            data=b"parameters",
            write=1,
            expected_data_transfer_length=10,
        )
        (cold,) = end.connection.cold_commands()
        assert cold.cdb == LONG_CDB + more
        assert cold.data == b"parameters"
        assert end.connection.respond(cold.task_id)
        assert end.answer()[0].status == 0
    # The next command in that place has a short one again.
    end.command(scsi.inquiry(), read=1, expected_data_transfer_length=8)
    (cold,) = end.connection.cold_commands()
    assert cold.cdb == scsi.inquiry()


def test_a_block_command_with_more_cdb_than_it_needs_is_served():
    end = Scripted()
    give(
        end,
        extended(bytes(16)),
        cdb=int.from_bytes(scsi.read_10(3, 1), "big"),
        read=1,
        expected_data_transfer_length=BLOCK,
    )
    assert end.answer()[1] == end.ram[3 * BLOCK : 4 * BLOCK].tobytes()


WRONG = {
    "unknown type": segment(3, bytes(5)),
    "type zero": bytes(4),
    "beyond the total": segment(1, bytes(5), length=6),
    "far beyond the total": segment(1, bytes(5), length=0xFFFF),
    "an empty extension": segment(1, b"\0"),
    "no length": segment(1, b"\0", length=0),
    "too long a CDB": extended(bytes(245)),
    "the longest of all": bytes(1020),
    "two extensions": extended(bytes(4)) + extended(bytes(4)),
    "a short read length": segment(2, bytes(4)),
}


@pytest.mark.parametrize("segments", WRONG.values(), ids=WRONG)
def test_segments_that_make_no_sense_are_rejected_and_skipped(segments):
    end = Scripted(window_size=1)
    for _ in range(2):
        give(end, segments, read=1, expected_data_transfer_length=BLOCK)
        rejected(end, RejectReason.INVALID_PDU_FIELD)
    still_works(end)


@pytest.mark.parametrize("before", [b"", extended(bytes(16))])
def test_a_bidirectional_read_length_is_not_supported(before):
    end = Scripted(window_size=1)
    give(
        end,
        before + segment(AhsType.BIDI_READ_LENGTH, bytes(5)),
        write=1,
        expected_data_transfer_length=BLOCK,
    )
    rejected(end, RejectReason.COMMAND_NOT_SUPPORTED)
    still_works(end)


@pytest.mark.parametrize(
    "opcode", [Opcode.NOP_OUT, Opcode.TEXT_REQUEST, Opcode.TASK_MANAGEMENT_REQUEST]
)
def test_other_requests_have_no_additional_headers(opcode):
    end = Scripted(window_size=1)
    give(end, extended(bytes(4)), opcode=opcode)
    rejected(end, RejectReason.INVALID_PDU_FIELD)
    still_works(end)


def test_data_out_with_additional_headers_ends_the_connection():
    end = Scripted()
    with expect(Violation.AHS):
        end.connection.receive(bhs.encode(Opcode.DATA_OUT, itt=1, total_ahs_words=1) + bytes(4))


def test_the_header_digest_covers_the_additional_headers():
    end = Scripted(connection=ConnectionParams(header_digest=True))
    header = bytes(
        bhs.encode(
            Opcode.SCSI_COMMAND,
            itt=5,
            cmd_sn=50,
            total_ahs_words=5,
            cdb=int.from_bytes(LONG_CDB, "big"),
        )
    ) + extended(bytes(16))
    digest = crc32c(header).to_bytes(4, "little")
    end.connection.receive(header + digest)
    (cold,) = end.connection.cold_commands()
    assert len(cold.cdb) == 32
    end.connection.respond(cold.task_id)
    pdus_of(end.connection.data_to_send(), ConnectionParams(header_digest=True))
    with pytest.raises(RemoteProtocolError):
        end.connection.receive(header[:50] + b"x" + header[51:] + digest)
