"""Everything a target can do wrong in the full feature phase: one reason each, nothing lost."""

import errno

import pytest

from iscsi.wire import violations
from iscsi.wire.bhs import LAYOUTS, Opcode, encode, encode_pdu
from iscsi.wire.errors import RemoteProtocolError
from iscsi.wire.keys import SessionParams
from iscsi.wire.port import port_at
from iscsi.wire.violations import Violation
from tests.iscsi.wire.test_initiator import Scripted

DATA_IN, R2T, RESPONSE = Opcode.DATA_IN, Opcode.R2T, Opcode.SCSI_RESPONSE
# What is wrong: an open READ of 1000 bytes has tag `read`, an open WRITE of 5000 has tag `write`.
WRONG = [
    (Violation.DATA_SEGMENT_TOO_LONG, DATA_IN, {"itt": "read", "data": bytes(8193)}),
    (Violation.AHS, DATA_IN, {"itt": "read", "total_ahs_words": 1}),
    (Violation.OPCODE, Opcode.LOGIN_RESPONSE, {"itt": "read"}),
    (Violation.OPCODE, Opcode.LOGIN_RESPONSE, {"itt": "read", "stat_sn": 99}),
    (Violation.OPCODE, Opcode.SCSI_COMMAND, {"itt": "read"}),
    (Violation.UNEXPECTED_DATA, Opcode.NOP_IN, {"ttt": 3, "data": b"ping"}),
    (Violation.UNEXPECTED_DATA, R2T, {"itt": "write", "data": b"data"}),
    (Violation.CONTROL_TOO_LONG, Opcode.REJECT, {"data": bytes(257)}),
    (Violation.UNKNOWN_ITT, DATA_IN, {"itt": 0x99990001}),
    (Violation.UNKNOWN_ITT, DATA_IN, {"itt": 0xFFFFFFFF}),
    (Violation.UNKNOWN_ITT, RESPONSE, {"itt": 0x0001FFFE}),
    (Violation.UNKNOWN_ITT, R2T, {"itt": 0}),
    (Violation.UNKNOWN_ITT, Opcode.NOP_IN, {"itt": "read"}),
    (Violation.UNKNOWN_ITT, Opcode.TEXT_RESPONSE, {"itt": "read"}),
    (Violation.UNKNOWN_ITT, Opcode.LOGOUT_RESPONSE, {"itt": 4}),
    (Violation.UNKNOWN_ITT, Opcode.TASK_MANAGEMENT_RESPONSE, {"itt": "write"}),
    (Violation.STAT_SN, RESPONSE, {"itt": "read", "stat_sn": 6}),
    (Violation.STAT_SN, RESPONSE, {"itt": "read", "stat_sn": 8}),
    (Violation.STAT_SN, DATA_IN, {"itt": "read", "has_status": 1, "stat_sn": 9}),
    (Violation.STAT_SN, Opcode.ASYNC_MESSAGE, {"stat_sn": 0}),
    (Violation.DATA_IN_DIRECTION, DATA_IN, {"itt": "write", "data": b"data"}),
    (Violation.DATA_IN_RANGE, DATA_IN, {"itt": "read", "data": bytes(1001)}),
    (Violation.DATA_IN_RANGE, DATA_IN, {"itt": "read", "data": b"d", "buffer_offset": 1000}),
    (Violation.DATA_IN_RANGE, DATA_IN, {"itt": "read", "data": b"d", "buffer_offset": 2**32 - 1}),
    (Violation.DATA_IN_ORDER, DATA_IN, {"itt": "read", "data": b"d", "buffer_offset": 4}),
    (Violation.DATA_SN, DATA_IN, {"itt": "read", "data": b"d", "data_sn": 1}),
    (Violation.STATUS_WITHOUT_FINAL, DATA_IN, {"itt": "read", "has_status": 1, "final": 0}),
    (Violation.SENSE_LENGTH, RESPONSE, {"itt": "read", "data": b"\0", "status": 2}),
    (Violation.SENSE_LENGTH, RESPONSE, {"itt": "read", "data": b"\0\x03ab", "status": 2}),
    (Violation.SENSE_LENGTH, RESPONSE, {"itt": "read", "data": b"\xff\xffab", "status": 2}),
    (Violation.R2T_DIRECTION, R2T, {"itt": "read", "desired_data_transfer_length": 1}),
    (Violation.R2T_LENGTH, R2T, {"itt": "write"}),
    (Violation.R2T_LENGTH, R2T, {"itt": "write", "desired_data_transfer_length": 4097}),
    (
        Violation.R2T_RANGE,
        R2T,
        {"itt": "write", "desired_data_transfer_length": 9, "buffer_offset": 4992},
    ),
    (
        Violation.R2T_RANGE,
        R2T,
        {"itt": "write", "desired_data_transfer_length": 1, "buffer_offset": 2**32 - 1},
    ),
    (Violation.R2T_SN, R2T, {"itt": "write", "desired_data_transfer_length": 9, "r2t_sn": 1}),
]


def opened():
    end = Scripted(SessionParams(max_burst_length=4096, first_burst_length=512))
    end.read(1000, user_data=1)
    end.write(5000, user_data=2)
    tags = {"read": end.sent()[0][0].itt}
    tags["write"] = tags["read"] ^ 1
    return end, tags


def wrong_pdu(end, tags, opcode, fields):
    if "stat_sn" in LAYOUTS[opcode]:
        fields = {"stat_sn": 7, "exp_cmd_sn": 102, "max_cmd_sn": 105, **fields}
    fields = {**fields, "itt": tags.get(fields.get("itt"), fields.get("itt", 0xFFFFFFFF))}
    return encode_pdu(opcode, fields.pop("data", b""), **fields)


@pytest.mark.parametrize(
    ("violation", "opcode", "fields"), WRONG, ids=lambda v: getattr(v, "name", "")
)
def test_a_wrong_pdu_ends_the_connection_with_its_reason(violation, opcode, fields):
    end, tags = opened()
    pdu = wrong_pdu(end, tags, opcode, fields)
    with pytest.raises(RemoteProtocolError, match=violations.describe(violation)):
        end.connection.receive(pdu + bytes(8))
    assert port_at(end.connection.address)[0]["error"] == violation
    end.connection.fail_all(-errno.ECONNRESET)
    assert sorted(done.user_data for done in end.completions()) == [1, 2]


@pytest.mark.parametrize("position", range(10))
def test_a_wrong_pdu_is_the_same_cut_in_two(position):
    end, tags = opened()
    pdu = wrong_pdu(end, tags, *WRONG[27][1:])
    end.connection.receive(pdu[: 5 * position])
    with pytest.raises(RemoteProtocolError, match=violations.describe(WRONG[27][0])):
        end.connection.receive(pdu[5 * position :])


def test_a_response_that_comes_twice_is_noticed_while_the_first_is_still_held():
    end, tags = opened()
    end.give(RESPONSE, itt=tags["read"])
    with pytest.raises(RemoteProtocolError, match="a command that has ended"):
        end.give(RESPONSE, itt=tags["read"], stat_sn=8)


def test_a_late_pdu_never_reaches_the_next_user_of_a_task():
    end = Scripted(tasks=1)
    old = end.read(1000)
    end.sent()
    end.give(RESPONSE, itt=old)
    end.completions()
    assert end.read(1000) is not None
    with pytest.raises(RemoteProtocolError, match="names no task"):
        end.give(DATA_IN, b"late", itt=old)


def test_more_r2ts_than_agreed_are_refused():
    end, tags = opened()
    one = {"itt": tags["write"], "desired_data_transfer_length": 100}
    end.give(R2T, **one)
    with pytest.raises(RemoteProtocolError, match="MaxOutstandingR2T"):
        end.give(R2T, **one, r2t_sn=1, buffer_offset=100)


def test_an_r2t_never_asks_twice_for_the_same():
    end, tags = opened()
    one = {"itt": tags["write"], "desired_data_transfer_length": 100}
    end.give(R2T, **one)
    end.sent()
    with pytest.raises(RemoteProtocolError, match="asked for before"):
        end.give(R2T, **one, r2t_sn=1, buffer_offset=99)


def test_a_flood_the_session_does_not_read_ends_the_connection():
    end = Scripted()
    for number in range(6):
        end.give(Opcode.ASYNC_MESSAGE, stat_sn=7 + number)
    with pytest.raises(RemoteProtocolError, match="more control PDUs"):
        end.give(Opcode.ASYNC_MESSAGE, stat_sn=13)
    assert len(list(end.connection.controls())) == 6


def test_pings_that_are_never_answered_for_lack_of_room_end_the_connection():
    end = Scripted()
    for _ in range(6):
        end.give(Opcode.NOP_IN, ttt=1)
    with pytest.raises(RemoteProtocolError, match="more control PDUs"):
        end.give(Opcode.NOP_IN, ttt=1)


def test_nothing_is_taken_after_a_violation():
    end, tags = opened()
    with pytest.raises(RemoteProtocolError):
        end.connection.receive(encode(Opcode.LOGIN_RESPONSE))
    with pytest.raises(RemoteProtocolError):
        end.give(RESPONSE, itt=tags["read"])
    assert end.completions() == []


def test_every_violation_has_a_text_and_lies_below_every_errno():
    for violation in Violation:
        assert violations.describe(violation).startswith("the peer sent ")
        assert violations.is_violation(violation)
        assert violation < -max(errno.errorcode)
    assert not violations.is_violation(-errno.EINVAL)
    assert not violations.is_violation(0)
