"""The initiator against a scripted target: golden PDUs by the Python codec, and the window."""

import errno

import numpy as np
import pytest

from iscsi.wire import bhs, scsi
from iscsi.wire import initiator as doors
from iscsi.wire.bhs import Opcode, encode_pdu
from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError
from iscsi.wire.initiator import InitiatorConnection, InitiatorLimits
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import PortLimits, port_at
from tests.iscsi.wire.full_feature import (
    CONNECTION,
    READ,
    SESSION,
    WRITE,
    bytes_at,
    login_result,
    memory,
    pattern,
    pdus_of,
)

LUN_5 = scsi.encode_lun(5)
NO_TAG = bhs.RESERVED_TAG


class Scripted:
    """An initiator whose target is this test: it says what comes, and looks at what goes."""

    def __init__(
        self, session=SESSION, connection=CONNECTION, cmd_sn=100, stat_sn=7, window_size=4, tasks=8
    ):
        login = login_result(session, connection, cmd_sn, stat_sn, window_size)
        limits = InitiatorLimits(
            task_count=tasks, port=PortLimits(control_slots=6, control_data_length=256)
        )
        self.memory = memory(InitiatorConnection.size(login, limits))
        self.connection = InitiatorConnection(self.memory.ctypes.data, login, limits)
        self.buffer = pattern(64 * 1024)
        self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn = stat_sn, cmd_sn, cmd_sn + window_size - 1

    def read(self, length, **options):
        return self.submit(scsi.read_10(0, 1), READ, length, **options)

    def write(self, length, **options):
        return self.submit(scsi.write_10(0, 1), WRITE, length, **options)

    def submit(self, cdb, flags, length, user_data=0):
        address = self.buffer.ctypes.data
        return self.connection.submit(LUN_5, cdb, flags, length, address, user_data)

    def sent(self):
        return pdus_of(self.connection.data_to_send())

    def give(self, opcode, data=b"", **fields):
        """Send one PDU of the target with the serial numbers that are right unless given."""
        fields = {
            "stat_sn": self.stat_sn,
            "exp_cmd_sn": self.exp_cmd_sn & 0xFFFFFFFF,
            "max_cmd_sn": self.max_cmd_sn & 0xFFFFFFFF,
            **fields,
        }
        self.connection.receive(encode_pdu(opcode, data, **fields))

    def completions(self):
        return list(self.connection.completions())


def test_a_read_command_is_the_rfc_figure():
    end = Scripted()
    tag = end.read(8192)
    ((header, data),) = end.sent()
    assert data == b""
    assert header.opcode is Opcode.SCSI_COMMAND
    assert (header.immediate, header.final, header.read, header.write) == (0, 1, 1, 0)
    assert (header.itt, header.lun) == (tag, LUN_5)
    assert header.expected_data_transfer_length == 8192
    assert (header.cmd_sn, header.exp_stat_sn) == (100, 7)
    assert header.attribute == bhs.TaskAttribute.SIMPLE
    assert header.cdb_bytes == scsi.read_10(0, 1)


def test_a_write_command_carries_immediate_data_up_to_what_the_target_takes():
    end = Scripted(connection=ConnectionParams(peer_max_recv_data_segment_length=1000))
    end.write(4000)
    ((header, data),) = end.sent()
    assert (header.final, header.read, header.write) == (1, 0, 1)
    assert data == end.buffer[:1000].tobytes()


def test_padding_is_zero_and_not_counted():
    end = Scripted()
    end.write(5)
    stream = end.connection.data_to_send()
    assert len(stream) == bhs.BHS_LENGTH + 8
    assert bhs.data_segment_length(stream) == 5
    assert stream[-3:] == bytes(3)


def test_data_in_with_status_completes_a_read():
    end = Scripted()
    tag = end.read(1000, user_data=77)
    end.sent()
    end.give(Opcode.DATA_IN, b"a" * 600, itt=tag, final=0, stat_sn=0)
    end.give(
        Opcode.DATA_IN,
        b"b" * 300,
        itt=tag,
        data_sn=1,
        buffer_offset=600,
        has_status=1,
        underflow=1,
        residual_count=100,
    )
    (done,) = end.completions()
    assert (done.user_data, done.itt, done.result, done.status) == (77, tag, 0, 0)
    assert (done.received, done.residual) == (900, 100)
    assert end.buffer[:900].tobytes() == b"a" * 600 + b"b" * 300


def test_a_response_brings_status_residual_and_sense():
    end = Scripted()
    tag = end.read(512)
    end.sent()
    sense = bytes(range(18))
    data = len(sense).to_bytes(2, "big") + sense
    end.give(
        Opcode.SCSI_RESPONSE, data, itt=tag, status=2, underflow=1, residual_count=512, response=1
    )
    (done,) = end.completions()
    assert (done.status, done.response, done.residual, done.sense) == (2, 1, 512, sense)


def test_an_overflow_is_a_negative_residual():
    end = Scripted()
    tag = end.read(512)
    end.sent()
    end.give(Opcode.SCSI_RESPONSE, itt=tag, overflow=1, residual_count=9)
    assert end.completions()[0].residual == -9


def test_sense_longer_than_what_is_kept_is_cut():
    end = Scripted()
    tag = end.read(512)
    end.sent()
    end.give(Opcode.SCSI_RESPONSE, (400).to_bytes(2, "big") + b"s" * 500, itt=tag, status=2)
    assert end.completions()[0].sense == b"s" * 254


def test_an_r2t_is_answered_with_its_tag_and_lun():
    end = Scripted(
        SessionParams(immediate_data=False),
        ConnectionParams(peer_max_recv_data_segment_length=512),
    )
    tag = end.write(3000)
    end.sent()
    end.give(
        Opcode.R2T,
        itt=tag,
        ttt=0xABCD,
        lun=3 << 48,
        buffer_offset=1000,
        desired_data_transfer_length=1200,
    )
    pdus = end.sent()
    headers = [header for header, _ in pdus]
    assert [header.opcode for header in headers] == [Opcode.DATA_OUT] * 3
    assert {(h.itt, h.ttt, h.lun) for h in headers} == {(tag, 0xABCD, 3 << 48)}
    assert [h.buffer_offset for h in headers] == [1000, 1512, 2024]
    assert [h.data_sn for h in headers] == [0, 1, 2]
    assert [h.final for h in headers] == [0, 0, 1]
    assert b"".join(data for _, data in pdus) == end.buffer[1000:2200].tobytes()


def test_r2ts_are_answered_in_order_and_data_sn_starts_again():
    end = Scripted(SessionParams(immediate_data=False, max_outstanding_r2t=2))
    tag = end.write(1000)
    end.sent()
    for number in range(2):
        end.give(
            Opcode.R2T,
            itt=tag,
            ttt=number,
            r2t_sn=number,
            buffer_offset=500 * number,
            desired_data_transfer_length=500,
        )
    headers = [header for header, _ in end.sent()]
    assert [(h.ttt, h.data_sn, h.final) for h in headers] == [(0, 0, 1), (1, 0, 1)]


def test_a_command_completes_only_when_its_data_has_left():
    end = Scripted()
    tag = end.write(1000)
    address = end.connection.address
    length = doors.tx_next(address)
    doors.tx_take(address, length)
    end.give(Opcode.SCSI_RESPONSE, itt=tag)
    assert end.completions() == []
    doors.tx_done(address, length)
    length = doors.tx_next(address)
    doors.tx_take(address, length)
    doors.tx_done(address, length - 1)
    assert end.completions() == []
    doors.tx_done(address, 1)
    assert len(end.completions()) == 1


def test_the_window_is_the_targets_and_never_goes_back():
    end = Scripted(window_size=2)
    first = end.read(512)
    assert end.read(512) is not None
    assert end.read(512) is None
    end.sent()
    end.give(Opcode.DATA_IN, bytes(512), itt=first, has_status=1, exp_cmd_sn=102, max_cmd_sn=102)
    assert end.read(512) is not None
    assert end.read(512) is None
    end.give(Opcode.NOP_IN, stat_sn=8, exp_cmd_sn=90, max_cmd_sn=95)  # old news
    assert end.read(512) is None
    end.give(Opcode.NOP_IN, stat_sn=8, exp_cmd_sn=200, max_cmd_sn=198)  # nonsense
    assert end.read(512) is None
    end.give(Opcode.NOP_IN, stat_sn=8, exp_cmd_sn=103, max_cmd_sn=103)
    assert end.read(512) is not None


def test_an_old_pdu_does_not_close_an_open_window():
    end = Scripted(window_size=3)
    end.give(Opcode.NOP_IN, exp_cmd_sn=95, max_cmd_sn=99)
    assert [end.read(512) is not None for _ in range(4)] == [True, True, True, False]


def test_taking_more_than_there_is_to_send_takes_what_there_is():
    end = Scripted()
    end.read(512)
    address = end.connection.address
    length = doors.tx_next(address)
    doors.tx_take(address, length + 1000)
    assert doors.tx_next(address) == 0


def test_the_window_opens_across_the_wrap():
    end = Scripted(cmd_sn=0xFFFFFFFF, window_size=1)
    end.read(0)
    end.give(Opcode.NOP_IN, exp_cmd_sn=0, max_cmd_sn=1)
    assert end.read(0) is not None
    assert end.read(0) is not None
    assert end.read(0) is None
    assert [header.cmd_sn for header, _ in end.sent()] == [0xFFFFFFFF, 0, 1]


def test_a_closed_window_still_takes_immediate_requests():
    end = Scripted(window_size=0)
    assert end.read(512) is None
    header = bhs.encode(Opcode.NOP_OUT, immediate=1)
    tag = end.connection.send_control(header, user_data=5)
    ((sent, _),) = end.sent()
    assert (sent.itt, sent.cmd_sn, sent.ttt) == (tag, 100, NO_TAG)
    end.give(Opcode.NOP_IN, itt=tag)
    assert [done.user_data for done in end.completions()] == [5]
    assert end.connection.send_control(bhs.encode(Opcode.NOP_OUT)) is None


def test_a_ping_is_answered_with_its_tag_and_takes_no_number():
    end = Scripted()
    end.give(Opcode.NOP_IN, ttt=0x1234, lun=LUN_5)
    ((header, data),) = end.sent()
    assert header.opcode is Opcode.NOP_OUT
    assert (header.immediate, header.itt, header.ttt, header.lun) == (1, NO_TAG, 0x1234, LUN_5)
    assert (header.cmd_sn, header.exp_stat_sn, data) == (100, 7, b"")
    end.read(512)
    assert end.sent()[0][0].cmd_sn == 100


def test_exp_stat_sn_counts_only_pdus_with_a_status():
    end = Scripted()
    tag = end.write(512)
    end.give(Opcode.NOP_IN, ttt=1)
    end.give(Opcode.R2T, itt=tag, desired_data_transfer_length=100)
    end.give(Opcode.ASYNC_MESSAGE, async_event=1)
    end.give(Opcode.SCSI_RESPONSE, stat_sn=8, itt=tag)
    end.read(512)
    assert end.sent()[-1][0].exp_stat_sn == 9


def test_control_pdus_reach_the_session_with_their_data():
    end = Scripted()
    end.give(Opcode.ASYNC_MESSAGE, async_event=1, parameter3=9)
    end.give(Opcode.REJECT, b"h" * 48, stat_sn=8, reject_reason=4)
    first, second = end.connection.controls()
    assert (first.header.opcode, first.header.parameter3) == (Opcode.ASYNC_MESSAGE, 9)
    assert (second.header.reject_reason, second.data) == (4, b"h" * 48)


def test_a_text_exchange_keeps_its_tag_until_the_last_answer():
    end = Scripted()
    tag = end.connection.send_control(bhs.encode(Opcode.TEXT_REQUEST, itt=NO_TAG), b"k=v\0")
    end.give(Opcode.TEXT_RESPONSE, b"a=b\0", itt=tag, ttt=6, final=0)
    again = bhs.encode(Opcode.TEXT_REQUEST, itt=tag, ttt=6)
    assert end.connection.send_control(again) == tag
    assert [(header.itt, header.cmd_sn) for header, _ in end.sent()] == [(tag, 100), (tag, 101)]
    end.give(Opcode.TEXT_RESPONSE, b"c=d\0", stat_sn=8, itt=tag)
    assert [pdu.data for pdu in end.connection.controls()] == [b"a=b\0", b"c=d\0"]
    with pytest.raises(LocalProtocolError, match="ENOENT"):
        end.connection.send_control(again)


def test_a_cancelled_command_discards_what_still_comes():
    end = Scripted()
    tag = end.read(512)
    end.sent()
    before = end.buffer.copy()
    data = encode_pdu(
        Opcode.DATA_IN,
        b"x" * 512,
        itt=tag,
        has_status=1,
        stat_sn=7,
        exp_cmd_sn=101,
        max_cmd_sn=104,
    )
    end.connection.receive(data[:300])
    assert end.connection.cancel(tag)
    assert end.completions() == []  # its buffer is being written at this moment
    end.connection.receive(data[300:])
    assert [done.result for done in end.completions()] == [-errno.ECANCELED]
    assert np.array_equal(end.buffer[512:], before[512:])
    assert not end.connection.cancel(tag)


def test_a_failed_connection_gives_every_command_back_once():
    end = Scripted()
    done = end.read(512, user_data=1)
    end.write(5000, user_data=2)
    end.sent()
    end.read(512, user_data=3)
    end.give(Opcode.SCSI_RESPONSE, itt=done)
    with pytest.raises(RemoteProtocolError):
        end.give(Opcode.LOGIN_RESPONSE)
    with pytest.raises(RemoteProtocolError):
        end.read(512)
    end.connection.fail_all(-errno.ECONNRESET)
    results = {done.user_data: done.result for done in end.completions()}
    assert results == {1: 0, 2: -errno.ECONNRESET, 3: -errno.ECONNRESET}
    assert end.connection.data_to_send() == b""


def test_a_table_of_tasks_is_never_overrun():
    end = Scripted(window_size=100, tasks=3)
    assert [end.read(0) is not None for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("flags", "length"),
    [(READ | WRITE, 512), (0, 512), (READ, -1), (READ, 1 << 32), (READ | 0x100, 512)],
)
def test_impossible_commands_are_refused_and_change_nothing(flags, length):
    end = Scripted()
    with pytest.raises(LocalProtocolError, match="EINVAL"):
        end.submit(scsi.read_10(0, 1), flags, length)
    assert end.sent() == []
    end.read(0)
    assert end.sent()[0][0].cmd_sn == 100


def test_tags_are_not_used_again_soon():
    end = Scripted(tasks=1, window_size=1)
    tags = set()
    for number in range(50):
        tag = end.read(0)
        tags.add(tag)
        end.sent()
        end.exp_cmd_sn += 1
        end.max_cmd_sn += 1
        end.give(Opcode.SCSI_RESPONSE, itt=tag, stat_sn=7 + number)
        end.completions()
    assert len(tags) == 50


# --- receives posted ahead -------------------------------------------------------------------


def test_the_only_read_is_predicted_and_lands_where_it_belongs():
    end = Scripted()
    address = end.connection.address
    assert doors.predict(address) == 0
    tag = end.read(4096)
    end.sent()
    assert doors.predict(address) == 4096
    port = port_at(address)[0]
    assert port["want_length"] == bhs.BHS_LENGTH
    pdu = encode_pdu(
        Opcode.DATA_IN,
        bytes(range(256)) * 16,
        itt=tag,
        has_status=1,
        stat_sn=7,
        exp_cmd_sn=101,
        max_cmd_sn=104,
    )
    header = np.frombuffer(pdu, np.uint8, 48)
    np.copyto(view(int(port["want_address"]), 48), header)
    np.copyto(end.buffer[:4096], np.frombuffer(pdu, np.uint8, 4096, 48))
    assert doors.rx_bytes(address, int(port["want_address"]), 48) == 0
    assert port["want_address"] == end.buffer.ctypes.data
    assert doors.rx_bytes(address, end.buffer.ctypes.data, 4096) == 0
    assert end.completions()[0].received == 4096
    assert bytes_at(end.buffer.ctypes.data, 4096) == pdu[48:]


def view(address, length):
    import ctypes

    return np.frombuffer((ctypes.c_char * length).from_address(address), np.uint8)


@pytest.mark.parametrize("sizes", [(2048, 2048), (512, 3000, 584), (4093, 3), (1,) * 40 + (4056,)])
@pytest.mark.parametrize("ping", [False, True])
def test_a_wrong_prediction_loses_nothing(sizes, ping):
    """What landed in the user's buffer holds headers too; taking it in order cleans it up."""
    end = Scripted()
    address = end.connection.address
    tag = end.read(4096)
    end.sent()
    length = doors.predict(address)
    data = pattern(4096, 3).tobytes()
    numbers = {"stat_sn": 7, "exp_cmd_sn": 101, "max_cmd_sn": 104}
    stream = encode_pdu(Opcode.NOP_IN, ttt=1, **numbers) if ping else b""
    at = 0
    for index, size in enumerate(sizes):
        stream += encode_pdu(
            Opcode.DATA_IN,
            data[at : at + size],
            itt=tag,
            data_sn=index,
            buffer_offset=at,
            final=int(index == len(sizes) - 1),
            has_status=int(index == len(sizes) - 1),
            **numbers,
        )
        at += size
    header_at = int(port_at(address)[0]["want_address"])
    np.copyto(view(header_at, 48), np.frombuffer(stream, np.uint8, 48))
    landed = stream[48 : 48 + length]
    np.copyto(end.buffer[: len(landed)], np.frombuffer(landed, np.uint8))
    assert doors.rx_bytes(address, header_at, 48) == 0
    assert doors.rx_bytes(address, end.buffer.ctypes.data, len(landed)) == 0
    end.connection.receive(stream[48 + length :])
    assert end.completions()[0].received == 4096
    assert end.buffer[:4096].tobytes() == data


def test_nothing_is_predicted_that_may_not_come():
    for make in (
        lambda end: end.write(512),
        lambda end: (end.read(512), end.read(512)),
        lambda end: end.read(9000),
        lambda end: (end.read(512), end.connection.receive(b"\x3f")),
    ):
        end = Scripted()
        make(end)
        assert doors.predict(end.connection.address) == 0
