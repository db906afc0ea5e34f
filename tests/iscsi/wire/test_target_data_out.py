"""Data-Out that is wrong: it ends its own command with the sense RFC 7143 §11.4.7.2 asks for, or is
rejected where it names no burst. The session goes on, and nothing wrong is written.
"""

import pytest

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode, encode_pdu
from iscsi.wire.errors import RejectReason
from iscsi.wire.keys import SessionParams
from iscsi.wire.sense import Asc, SenseKey
from iscsi.wire.target_task import target_at
from tests.iscsi.wire.full_feature import BLOCK
from tests.iscsi.wire.test_target import OPEN, Scripted
from tests.iscsi.wire.test_target_violations import NO_TAG, PLAIN, rejected, still_works

OFFSET = 0x4B05
AMOUNT = Asc.INCORRECT_AMOUNT_OF_DATA
UNEXPECTED = Asc.UNEXPECTED_UNSOLICITED_DATA
CRC = Asc.PROTOCOL_SERVICE_CRC_ERROR
SEVERAL = SessionParams(
    immediate_data=False, max_burst_length=512, first_burst_length=512, max_outstanding_r2t=3
)


def failed(end, code):
    sense = end.answer_sense()
    assert (sense.key, sense.code) == (SenseKey.ABORTED_COMMAND, code)
    assert target_at(end.connection.address)[0]["faults"] == 1
    still_works(end)


@pytest.mark.parametrize(
    ("session", "length", "expected", "flags", "code"),
    [
        (PLAIN, 4, 512, {"write": 1}, UNEXPECTED),
        (OPEN, 4, 512, {"read": 1}, UNEXPECTED),
        (OPEN, 4, 0, {}, UNEXPECTED),
        (OPEN, 516, 512, {"write": 1}, AMOUNT),
        (OPEN, 4, 0, {"write": 1}, AMOUNT),
        (OPEN, 2052, 4096, {"write": 1}, AMOUNT),
        (PLAIN, 0, 4096, {"write": 1, "final": 0}, UNEXPECTED),
    ],
)
def test_immediate_data_outside_the_agreement_ends_its_command(
    session, length, expected, flags, code
):
    end = Scripted(session)
    before = end.ram.copy()
    end.command(scsi.write_10(0, 8), bytes(length), expected_data_transfer_length=expected, **flags)
    failed(end, code)
    assert (end.ram == before).all()


def test_data_announced_against_the_agreement_is_thrown_away_when_it_comes():
    end = Scripted(PLAIN)
    before = end.ram.copy()
    itt = end.write(0, 6, final=0)
    end.give(Opcode.DATA_OUT, bytes(512), itt=itt, final=0)  # before the answer is sent
    failed(end, UNEXPECTED)
    end.give(Opcode.DATA_OUT, bytes(512), itt=itt, buffer_offset=512, data_sn=1)
    assert end.sent() == []
    assert (end.ram == before).all()


# An open WRITE of 3072 bytes with its first 512 bytes immediate and more announced.
UNSOLICITED = [
    (AMOUNT, 1540, {}),
    (AMOUNT, 1536, {"final": 0}),
    (OFFSET, 512, {"buffer_offset": 0}),
    (OFFSET, 512, {"buffer_offset": 1024}),
    (CRC, 512, {"data_sn": 1}),
    (CRC, 512, {"data_sn": 0xFFFFFFFF}),
]


@pytest.mark.parametrize(("code", "length", "fields"), UNSOLICITED)
def test_wrong_unsolicited_data_ends_its_command(code, length, fields):
    end = Scripted(OPEN)
    before = end.ram.copy()
    itt = end.write(0, 6, data=end.ram[:512].tobytes(), final=0)
    end.give(Opcode.DATA_OUT, bytes(length), **{"itt": itt, "buffer_offset": 512, **fields})
    failed(end, code)
    assert (end.ram == before).all()


# An open WRITE of 3072 bytes and an R2T for its first 1024.
SOLICITED = [
    (AMOUNT, 1028, {}),
    (AMOUNT, 4096, {"final": 0}),
    (AMOUNT, 1024, {"final": 0}),
    (AMOUNT, 512, {}),
    (AMOUNT, 0, {}),
    (OFFSET, 512, {"buffer_offset": 512}),
    (OFFSET, 1024, {"buffer_offset": 2**32 - 4}),
    (CRC, 1024, {"data_sn": 1}),
]


@pytest.mark.parametrize(("code", "length", "fields"), SOLICITED)
def test_wrong_solicited_data_ends_its_command(code, length, fields):
    end = Scripted(PLAIN)
    before = end.ram.copy()
    itt = end.write(0, 6)
    r2t, _ = end.answer()
    end.give(Opcode.DATA_OUT, bytes(length), **{"itt": itt, "ttt": r2t.ttt, **fields})
    failed(end, code)
    assert (end.ram == before).all()


@pytest.mark.parametrize(
    "first", [{"data_sn": 3}, {"buffer_offset": 4}, {"buffer_offset": 4, "data_sn": 9}]
)
def test_the_answer_waits_for_the_end_of_the_burst(first):
    end = Scripted(PLAIN)
    before = end.ram.copy()
    itt = end.write(0, 6)
    r2t, _ = end.answer()
    common = {"itt": itt, "ttt": r2t.ttt}
    end.give(Opcode.DATA_OUT, bytes(512), final=0, **common, **first)
    assert end.sent() == []
    end.give(Opcode.DATA_OUT, bytes(512), buffer_offset=512, data_sn=1, **common)
    failed(end, CRC if "data_sn" in first else OFFSET)
    assert (end.ram == before).all()


def test_an_overlap_within_a_burst_ends_its_command():
    end = Scripted(PLAIN)
    itt = end.write(0, 2)
    r2t, _ = end.answer()
    common = {"itt": itt, "ttt": r2t.ttt}
    end.give(Opcode.DATA_OUT, b"a" * 512, final=0, **common)
    end.give(Opcode.DATA_OUT, b"b" * 512, buffer_offset=256, data_sn=1, **common)
    failed(end, OFFSET)
    assert end.ram[:512].tobytes() == b"a" * 512


@pytest.mark.parametrize("ttt", [0x1234, 0x7FFF0000, 0, 0x10000])
def test_a_target_transfer_tag_of_no_r2t_is_rejected_and_the_write_goes_on(ttt):
    end = Scripted(PLAIN)
    end.read(0, 1)  # so that the write is not the first task
    end.sent()
    itt = end.write(0, 2)
    r2t, _ = end.answer()
    ttt = ttt if ttt != r2t.ttt else 0x20000
    end.give(Opcode.DATA_OUT, bytes(512), itt=itt, ttt=ttt)
    rejected(end, RejectReason.INVALID_PDU_FIELD)
    end.give(Opcode.DATA_OUT, b"w" * 1024, itt=itt, ttt=r2t.ttt)
    assert end.answer()[0].status == 0
    assert end.ram[:1024].tobytes() == b"w" * 1024


def test_unsolicited_data_for_a_write_that_was_asked_for_ends_it():
    end = Scripted(PLAIN)
    before = end.ram.copy()
    itt = end.write(0, 6)
    r2t, _ = end.answer()
    end.give(Opcode.DATA_OUT, bytes(512), itt=itt, ttt=NO_TAG)
    assert end.sent() == []  # the burst it was asked for is still to come
    end.give(Opcode.DATA_OUT, bytes(1024), itt=itt, ttt=r2t.ttt)
    failed(end, UNEXPECTED)
    assert (end.ram == before).all()


def test_data_after_its_burst_ended_is_rejected():
    end = Scripted(PLAIN)
    itt = end.write(0, 6)
    r2t, _ = end.answer()
    data = encode_pdu(Opcode.DATA_OUT, bytes(1024), itt=itt, ttt=r2t.ttt)
    end.connection.receive(data)
    end.sent()
    end.connection.receive(data)
    rejected(end, RejectReason.INVALID_PDU_FIELD)
    still_works(end)


def test_data_for_a_command_that_waits_for_the_cold_code_is_rejected():
    end = Scripted()
    itt = end.command(scsi.inquiry(), read=1, expected_data_transfer_length=255)
    end.give(Opcode.DATA_OUT, bytes(16), itt=itt)
    rejected(end, RejectReason.INVALID_PDU_FIELD)
    (cold,) = end.connection.cold_commands()
    assert end.connection.respond(cold.task_id)
    assert end.answer()[0].status == 0


def test_with_several_r2ts_each_burst_is_waited_for():
    end = Scripted(SEVERAL)
    itt = end.write(0, 5)
    r2ts = [header for header, _ in end.sent()]
    assert len(r2ts) == 3
    give = [
        {"itt": itt, "ttt": r2t.ttt, "buffer_offset": r2t.buffer_offset, "data_sn": place == 0}
        for place, r2t in enumerate(r2ts)
    ]
    for fields in give[:2]:
        end.give(Opcode.DATA_OUT, bytes(512), **fields)
        assert end.sent() == []  # and no further R2T
    end.give(Opcode.DATA_OUT, bytes(512), **give[2])
    failed(end, CRC)


def test_bursts_in_another_order_than_asked_for_end_the_command():
    end = Scripted(SEVERAL)
    before = end.ram.copy()
    itt = end.write(0, 3)
    r2ts = [header for header, _ in end.sent()]
    for r2t in reversed(r2ts):
        end.give(Opcode.DATA_OUT, bytes(512), itt=itt, ttt=r2t.ttt, buffer_offset=r2t.buffer_offset)
    failed(end, CRC)
    assert (end.ram == before).all()


@pytest.mark.parametrize("first_burst", [512, 1536, 2048])
@pytest.mark.parametrize("immediate", [0, 512, 1024])
def test_immediate_unsolicited_and_solicited_data_make_one_write(first_burst, immediate):
    session = SessionParams(
        initial_r2t=False,
        first_burst_length=first_burst,
        max_burst_length=1024,
        max_outstanding_r2t=2,
    )
    immediate = min(immediate, first_burst)
    end = Scripted(session)
    data = bytes(range(256)) * 16
    itt = end.write(3, 8, data=data[:immediate], final=int(immediate == first_burst))
    at, number = immediate, 0
    while at < first_burst:
        step = min(700, first_burst - at)
        final = int(at + step == first_burst)
        piece = data[at : at + step]
        end.give(Opcode.DATA_OUT, piece, itt=itt, buffer_offset=at, data_sn=number, final=final)
        at, number = at + step, number + 1
    waiting = end.sent()
    while waiting[0][0].opcode is Opcode.R2T:
        r2t, _ = waiting.pop(0)
        start = r2t.buffer_offset
        piece = data[start : start + r2t.desired_data_transfer_length]
        end.give(Opcode.DATA_OUT, piece, itt=itt, ttt=r2t.ttt, buffer_offset=start)
        waiting += end.sent()
    assert waiting[0][0].status == 0
    assert end.ram[3 * BLOCK : 11 * BLOCK].tobytes() == data


def test_an_entry_left_by_an_aborted_task_asks_for_nothing_too_early():
    end = Scripted(SessionParams(max_burst_length=4096, first_burst_length=1024), window_size=1)
    data = bytes(range(256)) * 8
    itt = end.write(0, 4, data=data[:512])  # its R2T is due
    assert end.connection.abort_task(itt)
    command = encode_pdu(
        Opcode.SCSI_COMMAND,
        data[:1024],
        write=1,
        itt=0x77,
        cmd_sn=51,
        expected_data_transfer_length=2048,
        cdb=int.from_bytes(scsi.write_10(0, 4), "big"),
    )
    end.connection.receive(command[:700])
    assert end.sent() == []
    end.connection.receive(command[700:])
    r2t, _ = end.answer()
    assert (r2t.buffer_offset, r2t.desired_data_transfer_length) == (1024, 1024)
    end.give(Opcode.DATA_OUT, data[1024:], itt=0x77, ttt=r2t.ttt, buffer_offset=1024)
    assert end.answer()[0].status == 0
    assert end.ram[:2048].tobytes() == data
    assert bhs.RESERVED_TAG not in (r2t.ttt, r2t.itt)
