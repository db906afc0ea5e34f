"""What a target says and asks besides answering commands: pings, Async Messages, text, logout."""

import pytest

from iscsi.target import announce, control
from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import AsyncEvent, Opcode
from iscsi.wire.errors import LocalProtocolError, RejectReason
from iscsi.wire.keys import Proposal, SessionParams
from iscsi.wire.sense import Asc, SenseKey, decode_sense, encode_sense, split_sense
from shm.jit import JIT_DISABLED
from tests.iscsi.target.serving import BLOCK, TWO, Serving, wait_until

PLACEMENTS = TWO

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")

NO_TAG = bhs.RESERVED_TAG


@pytest.fixture(scope="module")
def serving(placement):
    with Serving(linger_s=0.2) as server:
        yield server
        server.wait_idle()


@pytest.fixture
def raw(serving):
    with serving.log_in() as raw:
        yield raw.clear_attention()


def announced(serving, raw, what):
    """Have the only connection announce something, and return what its peer reads."""

    def send():
        (connection,) = (found for found in serving.server.connections if found.pump_address)
        control.announce(connection, what)
        serving.server._touch(connection)

    serving.server.call(send)
    return raw.take()


# --- pings ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asking(placement):
    with Serving(nop_interval_s=0.2, nop_timeout_s=0.4, linger_s=0.2) as server:
        yield server
        server.wait_idle()


def take_question(raw):
    header, data = raw.take()
    assert (header.opcode, header.itt, data) == (Opcode.NOP_IN, NO_TAG, b"")
    assert header.ttt != NO_TAG
    return header


def test_an_idle_initiator_is_asked_again_and_again_and_lives_while_it_answers(asking):
    with asking.log_in() as raw:
        raw.clear_attention()
        tags, numbers = [], []
        for _ in range(4):
            question = take_question(raw)
            tags.append(question.ttt)
            numbers.append(question.stat_sn)
            raw.give(Opcode.NOP_OUT, ttt=question.ttt, itt=NO_TAG, immediate=1, cmd_sn=raw.cmd_sn)
        assert len(set(tags)) == 4
        assert len(set(numbers)) == 1  # a question takes no StatSN
        assert raw.read(0, 1) == asking.disk.array[:BLOCK].tobytes()


def test_anything_received_is_an_answer(asking):
    with asking.log_in() as raw:
        raw.clear_attention()
        for _ in range(3):
            take_question(raw)
            raw.command(scsi.read_10(0, 1), length=BLOCK, read=1)
            assert raw.take()[0].opcode is Opcode.DATA_IN


def test_an_initiator_that_stays_silent_is_given_up(asking):
    with asking.log_in() as raw:
        raw.clear_attention()
        take_question(raw)
        assert raw.is_closed()
    assert asking.counts["initiators silent"] >= 1
    asking.wait_idle()


# --- Async Messages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (announce.logout_request(7), (AsyncEvent.LOGOUT_REQUESTED, 0, 0, 0, 7)),
        (announce.connection_dropped(1, 2, 3), (AsyncEvent.CONNECTION_DROPPED, 0, 1, 2, 3)),
        (announce.session_dropped(2, 20), (AsyncEvent.SESSION_DROPPED, 0, 0, 2, 20)),
        (announce.negotiation_request(9), (AsyncEvent.NEGOTIATION_REQUESTED, 0, 0, 0, 9)),
        (announce.vendor_event(5, b"us:hello"), (AsyncEvent.VENDOR_SPECIFIC, 5, 0, 0, 0)),
    ],
    ids=lambda value: value.event.name if hasattr(value, "event") else "",
)
def test_an_announcement_says_what_it_should_and_takes_a_number(serving, raw, what, expected):
    header, data = announced(serving, raw, what)
    assert (header.opcode, header.final, header.itt) == (Opcode.ASYNC_MESSAGE, 1, NO_TAG)
    assert data == what.data
    said = (
        header.async_event,
        header.async_vcode,
        header.parameter1,
        header.parameter2,
        header.parameter3,
    )
    assert said == expected
    raw.request(Opcode.NOP_OUT)
    assert raw.take()[0].stat_sn == header.stat_sn + 1


def test_sense_without_a_command_is_announced_with_its_unit(serving, raw):
    sense = encode_sense(SenseKey.UNIT_ATTENTION, Asc.CAPACITY_DATA_CHANGED)
    header, data = announced(serving, raw, announce.sense_event(scsi.encode_lun(300), sense))
    assert (header.async_event, header.lun) == (AsyncEvent.SCSI_EVENT, scsi.encode_lun(300))
    assert decode_sense(split_sense(data)).code == Asc.CAPACITY_DATA_CHANGED


@pytest.mark.parametrize("seconds", [-1, 65536])
def test_a_deadline_that_does_not_fit_is_refused(seconds):
    with pytest.raises(LocalProtocolError):
        announce.logout_request(seconds)


# --- logout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [0, 1])
def test_a_logout_is_answered_and_nothing_after_it(serving, reason):
    with serving.log_in() as raw:
        raw.clear_attention()
        pdus = [
            bhs.encode_pdu(Opcode.LOGOUT_REQUEST, itt=9, logout_reason=reason, cmd_sn=raw.cmd_sn),
            bhs.encode_pdu(Opcode.TEXT_REQUEST, b"X-a=b\0", itt=10, cmd_sn=raw.cmd_sn + 1),
        ]
        raw.socket.sendall(b"".join(pdus))
        header, _ = raw.take()
        assert (header.opcode, header.itt, header.response) == (Opcode.LOGOUT_RESPONSE, 9, 0)
        assert raw.socket.recv(1) == b""


@pytest.mark.parametrize(("fields", "response"), [({"cid": 5}, 1), ({"cid": 0}, 0)])
def test_the_connection_to_close_is_named(serving, fields, response):
    with serving.log_in() as raw:
        raw.clear_attention()
        raw.request(Opcode.LOGOUT_REQUEST, logout_reason=1, **fields)
        assert raw.take()[0].response == response
        if response:
            assert len(raw.read(0, 1)) == BLOCK
        else:
            assert raw.is_closed()


# --- several bursts at once ---------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [1, 4, 20])
def test_as_many_bursts_are_asked_for_as_was_agreed(serving, wanted):
    session = SessionParams(max_outstanding_r2t=wanted, max_burst_length=4096)
    with serving.log_in(proposal=Proposal(session)) as raw:
        agreed = raw.result.session.max_outstanding_r2t
        assert agreed == min(wanted, 8)
        data = bytes(range(256)) * 256
        raw.clear_attention()
        raw.command(scsi.write_10(6000, 128), length=len(data), write=1)
        waiting = [raw.take()[0] for _ in range(agreed)]
        answered = 0
        while waiting:
            r2t = waiting.pop(0)
            if r2t.opcode is Opcode.SCSI_RESPONSE:
                break
            start, length = r2t.buffer_offset, r2t.desired_data_transfer_length
            assert (r2t.opcode, r2t.r2t_sn, length) == (Opcode.R2T, answered, 4096)
            piece = data[start : start + length]
            raw.give(Opcode.DATA_OUT, piece, itt=r2t.itt, ttt=r2t.ttt, buffer_offset=start)
            answered += 1
            if answered + len(waiting) < 16 or answered == 16:
                waiting.append(raw.take()[0])
        assert (answered, r2t.status) == (16, 0)
        assert serving.disk.array[6000 * BLOCK : 6128 * BLOCK].tobytes() == data


# --- text ----------------------------------------------------------------------------------------


def test_a_smaller_segment_length_declared_later_holds_from_then_on(raw):
    raw.command(scsi.read_10(0, 4), length=4 * BLOCK, read=1)
    assert raw.take()[0].data_segment_length == 4 * BLOCK
    raw.request(Opcode.TEXT_REQUEST, b"MaxRecvDataSegmentLength=512\0")
    header, data = raw.take()
    assert (header.opcode, header.final, header.ttt, data) == (
        Opcode.TEXT_RESPONSE,
        1,
        NO_TAG,
        b"",
    )
    raw.command(scsi.read_10(0, 4), length=4 * BLOCK, read=1)
    lengths = [raw.take()[0].data_segment_length for _ in range(4)]
    assert lengths == [512] * 4


@pytest.mark.parametrize("value", [b"511", b"0", b"-5", b"16777216", b"9" * 30, b"x"])
def test_a_segment_length_out_of_range_is_refused_and_the_old_one_stays(raw, value):
    raw.request(Opcode.TEXT_REQUEST, b"MaxRecvDataSegmentLength=" + value + b"\0")
    assert raw.take()[1] == b"MaxRecvDataSegmentLength=Reject\0"
    raw.command(scsi.read_10(0, 4), length=4 * BLOCK, read=1)
    assert raw.take()[0].data_segment_length == 4 * BLOCK


def test_keys_of_the_login_are_refused_later_and_unknown_ones_not_understood(raw):
    raw.request(Opcode.TEXT_REQUEST, b"MaxBurstLength=65536\0X-what=ever\0")
    assert raw.take()[1] == b"MaxBurstLength=Reject\0X-what=NotUnderstood\0"


def test_a_rejected_request_is_the_one_that_is_named(raw):
    raw.socket.sendall(
        bhs.encode_pdu(Opcode.TEXT_REQUEST, b"no equals\0", itt=0x51, cmd_sn=raw.cmd_sn)
        + bhs.encode_pdu(Opcode.NOP_OUT, b"later", itt=0x52, cmd_sn=raw.cmd_sn + 1)
    )
    raw.cmd_sn += 2
    got = {header.opcode: (header, data) for header, data in (raw.take(), raw.take())}
    header, data = got[Opcode.REJECT]
    assert header.reject_reason == RejectReason.PROTOCOL_ERROR
    assert bhs.decode(data).itt == 0x51
    assert len(raw.read(0, 1)) == BLOCK


def test_the_server_is_idle_afterwards(serving):
    wait_until("nobody is left", lambda: not serving.server.connections)
