"""Everything an initiator can do wrong in the full feature phase: reject, close, or ignore."""

import pytest

from iscsi.wire import bhs, scsi, violations
from iscsi.wire.bhs import Opcode, encode_pdu
from iscsi.wire.errors import RejectReason, RemoteProtocolError
from iscsi.wire.keys import SessionParams
from iscsi.wire.violations import Violation
from tests.iscsi.wire.test_target import OPEN, Scripted

NO_TAG = bhs.RESERVED_TAG
PLAIN = SessionParams(immediate_data=False, max_burst_length=1024, first_burst_length=1024)


def expect(violation):
    return pytest.raises(RemoteProtocolError, match=violations.describe(violation))


def rejected(end, reason):
    header, data = end.answer()
    assert header.opcode is Opcode.REJECT
    assert (header.reject_reason, header.itt) == (reason, NO_TAG)
    assert len(data) == bhs.BHS_LENGTH
    return bhs.decode(data)


def still_works(end):
    end.read(0, 1)
    assert end.answer()[0].opcode is Opcode.DATA_IN


@pytest.mark.parametrize("distance", [-2, -1, 8, 9, 1000, 2**31, 2**31 + 8])
def test_a_cmd_sn_outside_the_window_is_ignored_with_its_data(distance):
    end = Scripted(OPEN)
    before = end.ram.copy()
    end.write(0, 4, data=b"w" * 512, cmd_sn=(50 + distance) & 0xFFFFFFFF, final=0)
    end.give(Opcode.DATA_OUT, b"w" * 1536, itt=0x1000, buffer_offset=512)
    assert end.sent() == []
    end.cmd_sn = 50
    assert (end.ram == before).all()
    still_works(end)


@pytest.mark.parametrize("cmd_sn", [0xFFFFFFFE, 0xFFFFFFFF, 0])
def test_the_window_wraps(cmd_sn):
    end = Scripted(cmd_sn=cmd_sn, window_size=3)
    for _ in range(4):
        still_works(end)


def test_a_tag_in_use_is_rejected():
    end = Scripted(PLAIN)
    itt = end.write(0, 4)
    end.sent()
    end.read(0, 1, itt=itt)
    assert rejected(end, RejectReason.TASK_IN_PROGRESS).itt == itt
    still_works(end)


@pytest.mark.parametrize(
    "fields",
    [
        {"itt": NO_TAG, "read": 1},
        {"expected_data_transfer_length": 512},
        {"read": 1, "final": 0, "expected_data_transfer_length": 512},
        {"final": 0},
        {"read": 1, "attribute": 5, "expected_data_transfer_length": 512},
        {"read": 1, "attribute": 7, "expected_data_transfer_length": 512},
    ],
)
def test_a_command_that_cannot_be_is_rejected_and_its_number_taken(fields):
    end = Scripted(window_size=1)
    for _ in range(3):  # its place in the window comes back each time
        end.command(scsi.read_10(0, 1), **fields)
        rejected(end, RejectReason.INVALID_PDU_FIELD)
    still_works(end)


def test_a_command_for_both_directions_is_not_supported():
    end = Scripted(window_size=1)
    end.command(scsi.read_10(0, 1), read=1, write=1, expected_data_transfer_length=512)
    rejected(end, RejectReason.COMMAND_NOT_SUPPORTED)
    still_works(end)


def test_an_attribute_for_a_condition_that_never_is_refuses_the_command():
    end = Scripted()
    end.read(0, 1, attribute=bhs.TaskAttribute.ACA)
    assert end.answer_sense().code == 0x0E03
    still_works(end)


@pytest.mark.parametrize("attribute", [bhs.TaskAttribute.UNTAGGED, bhs.TaskAttribute.SIMPLE])
def test_simple_commands_are_served_and_so_are_untagged_ones(attribute):
    end = Scripted()
    end.read(0, 1, attribute=attribute)
    assert end.answer()[0].opcode is Opcode.DATA_IN


@pytest.mark.parametrize(
    ("opcode", "reason"),
    [
        (Opcode.SNACK_REQUEST, RejectReason.SNACK_REJECT),
        (Opcode.SCSI_RESPONSE, RejectReason.COMMAND_NOT_SUPPORTED),
        (Opcode.NOP_IN, RejectReason.COMMAND_NOT_SUPPORTED),
        (0x1C, RejectReason.COMMAND_NOT_SUPPORTED),
    ],
)
def test_pdus_no_target_takes_are_rejected(opcode, reason):
    end = Scripted()
    pdu = bytearray(bhs.BHS_LENGTH)
    pdu[0], pdu[7] = opcode, 5
    end.connection.receive(bytes(pdu) + bytes(8))
    ((header, data),) = end.sent()
    assert (header.opcode, header.reject_reason) == (Opcode.REJECT, reason)
    assert data == bytes(pdu)
    still_works(end)


def test_a_login_in_the_full_feature_phase_ends_the_connection():
    end = Scripted()
    with expect(Violation.OPCODE):
        end.give(Opcode.LOGIN_REQUEST, itt=1)


def test_a_data_segment_above_the_declared_maximum_ends_the_connection():
    end = Scripted()
    with expect(Violation.DATA_SEGMENT_TOO_LONG):
        end.write(0, 17, data=bytes(8193))


def test_solicited_data_for_a_tag_nobody_knows_is_rejected():
    end = Scripted()
    end.give(Opcode.DATA_OUT, bytes(512), itt=77, ttt=3)
    rejected(end, RejectReason.INVALID_PDU_FIELD)
    still_works(end)


def test_immediate_requests_beyond_the_reserve_are_rejected():
    end = Scripted(window_size=1)
    for number in range(12):
        end.command(
            scsi.inquiry(), read=1, expected_data_transfer_length=255, immediate=1, itt=number
        )
    reasons = [header.reject_reason for header, _ in end.sent()]
    assert reasons == [RejectReason.TOO_MANY_IMMEDIATE_COMMANDS] * 4
    still_works(end)
    for cold in end.connection.cold_commands():
        end.connection.respond(cold.task_id)
    assert len(end.sent()) == 8


def test_immediate_pings_beyond_the_reserve_are_rejected_then_end_the_connection():
    end = Scripted(window_size=1)
    ping = encode_pdu(Opcode.NOP_OUT, itt=1, immediate=1, cmd_sn=50)
    with expect(Violation.CONTROL_OVERFLOW):
        end.connection.receive(ping * 20)
    opcodes = [header.opcode for header, _ in end.sent()]
    assert opcodes == [Opcode.NOP_IN] * 7 + [Opcode.REJECT] * 2


def test_a_text_request_longer_than_is_kept_is_rejected():
    end = Scripted(window_size=1)
    for _ in range(3):
        end.request(Opcode.TEXT_REQUEST, bytes(513), itt=1)
        rejected(end, RejectReason.INVALID_PDU_FIELD)
    still_works(end)


@pytest.mark.parametrize("length", range(0, 100, 7))
def test_a_pdu_cut_short_changes_nothing(length):
    end = Scripted()
    before = end.ram.copy()
    pdu = encode_pdu(
        Opcode.SCSI_COMMAND,
        b"w" * 52,
        write=1,
        itt=1,
        cmd_sn=50,
        expected_data_transfer_length=52,
        cdb=int.from_bytes(scsi.test_unit_ready(), "big"),
    )
    end.connection.receive(pdu[:length])
    assert end.sent() == []
    assert list(end.connection.cold_commands()) == []
    assert (end.ram == before).all()
