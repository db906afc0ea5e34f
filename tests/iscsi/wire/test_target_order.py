"""Requests whose CmdSN comes before its turn: held within the window, done in order, never twice
(RFC 7143 §4.2.2.1).
"""

import random

import pytest

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import RejectReason
from iscsi.wire.keys import SessionParams
from iscsi.wire.sense import Asc
from iscsi.wire.target_task import target_at
from tests.iscsi.wire.full_feature import BLOCK
from tests.iscsi.wire.test_target import OPEN, Scripted
from tests.iscsi.wire.test_target_violations import rejected, still_works

MASK = 0xFFFFFFFF


def held_count(end):
    return int(target_at(end.connection.address)[0]["held_count"])


def numbers(end):
    mine = target_at(end.connection.address)[0]
    return int(mine["exp_cmd_sn"]), int(mine["max_cmd_sn"])


@pytest.mark.parametrize("start", [50, 0xFFFFFFFC])
@pytest.mark.parametrize("seed", range(6))
def test_reads_in_any_order_are_answered_in_order(start, seed):
    end = Scripted(cmd_sn=start)
    order = list(range(8))
    random.Random(seed).shuffle(order)
    for place in order:
        end.read(place, 1, itt=place, cmd_sn=(start + place) & MASK)
        end.read(place, 1, itt=100 + place, cmd_sn=(start + place) & MASK)  # twice: ignored
    answers = end.sent()
    assert [header.itt for header, _ in answers] == list(range(8))
    for place, (_, data) in enumerate(answers):
        assert data == end.ram[place * BLOCK : (place + 1) * BLOCK].tobytes()
    assert numbers(end) == ((start + 8) & MASK, (start + 15) & MASK)
    assert held_count(end) == 0


def test_nothing_happens_before_the_gap_is_filled():
    end = Scripted()
    before = end.ram.copy()
    end.write(0, 1, data=b"w" * BLOCK, itt=1, cmd_sn=51)
    end.request(Opcode.NOP_OUT, b"ping", itt=2, cmd_sn=52)
    end.request(Opcode.TEXT_REQUEST, b"SendTargets=\0", itt=3, cmd_sn=53)
    end.command(scsi.inquiry(), itt=4, cmd_sn=54, read=1, expected_data_transfer_length=64)
    assert end.sent() == []
    assert list(end.connection.cold_commands()) == []
    assert list(end.connection.controls()) == []
    assert (end.ram == before).all()
    end.read(0, 1, itt=5, cmd_sn=50)
    read, ping, r2t = sorted(end.sent(), key=lambda pdu: pdu[0].opcode == Opcode.R2T)
    assert read[1] == before[:BLOCK].tobytes()
    assert ping[1] == b"ping"
    # What came with the write was not kept: it is asked for.
    assert r2t[0].opcode is Opcode.R2T
    assert (r2t[0].buffer_offset, r2t[0].desired_data_transfer_length) == (0, BLOCK)
    end.give(Opcode.DATA_OUT, b"w" * BLOCK, itt=1, ttt=r2t[0].ttt)
    assert end.answer()[0].itt == 1
    assert end.ram[:BLOCK].tobytes() == b"w" * BLOCK
    assert [pdu.header.itt for pdu in end.connection.controls()] == [3]
    assert [cold.itt for cold in end.connection.cold_commands()] == [4]


def test_a_read_behind_a_write_sees_what_it_wrote():
    end = Scripted()
    end.read(0, 1, itt=2, cmd_sn=51)
    end.write(0, 1, data=b"n" * BLOCK, itt=1, cmd_sn=50)
    response, data_in = sorted(end.sent(), key=lambda pdu: pdu[0].itt)
    assert response[0].status == 0
    assert data_in[1] == b"n" * BLOCK


def test_the_filler_is_complete_before_those_behind_it_begin():
    end = Scripted()
    end.read(0, 1, itt=2, cmd_sn=51)
    cdb = int.from_bytes(scsi.write_10(0, 1), "big")
    pdu = bhs.encode_pdu(
        Opcode.SCSI_COMMAND,
        b"n" * BLOCK,
        write=1,
        cdb=cdb,
        itt=1,
        cmd_sn=50,
        expected_data_transfer_length=BLOCK,
    )
    end.connection.receive(pdu[:300])
    assert end.sent() == []
    end.connection.receive(pdu[300:])
    assert dict((header.itt, data) for header, data in end.sent())[2] == b"n" * BLOCK


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_announced_data_of_a_held_write_may_come_before_or_after_its_turn(when):
    end = Scripted(OPEN)
    data = bytes(range(256)) * 16
    end.write(0, 8, data=data[:512], itt=1, cmd_sn=51, final=0)

    def give(at, **fields):
        number = (at - 512) // 512
        piece = data[at : at + 512]
        end.give(Opcode.DATA_OUT, piece, itt=1, buffer_offset=at, data_sn=number, **fields)

    def fill():
        end.read(60, 1, itt=2, cmd_sn=50)

    if when == "before":
        fill()
    give(512, final=0)
    if when == "between":
        fill()
    give(1024, final=0)
    give(1536)
    if when == "after":
        fill()
    got = {header.opcode: header for header, _ in end.sent()}
    assert set(got) == {Opcode.DATA_IN, Opcode.R2T}
    r2t = got[Opcode.R2T]
    assert (r2t.buffer_offset, r2t.desired_data_transfer_length) == (0, 4096)
    end.give(Opcode.DATA_OUT, data, itt=1, ttt=r2t.ttt)
    assert end.answer()[0].status == 0
    assert end.ram[:4096].tobytes() == data


def test_what_is_wrong_with_a_held_request_is_said_at_once_and_its_number_passes():
    end = Scripted(window_size=4)
    end.command(scsi.read_10(0, 1), expected_data_transfer_length=512, cmd_sn=51)
    rejected(end, RejectReason.INVALID_PDU_FIELD)
    end.read(0, 1, itt=9, cmd_sn=52)
    end.request(Opcode.NOP_OUT, cmd_sn=53)  # the answer to no ping of ours
    assert end.sent() == []
    end.read(1, 1, itt=8, cmd_sn=50)
    assert [header.itt for header, _ in end.sent()] == [8, 9]
    assert numbers(end) == (54, 57)


def test_a_held_write_with_wrong_data_fails_in_its_turn():
    end = Scripted(SessionParams(immediate_data=False))
    end.write(0, 1, data=b"w" * BLOCK, itt=1, cmd_sn=51)
    assert end.sent() == []
    end.request(Opcode.NOP_OUT, itt=2, cmd_sn=50)
    (ping, _), (response, _) = end.sent()
    assert (ping.opcode, response.itt, response.status) == (Opcode.NOP_IN, 1, 2)


def test_an_aborted_held_command_is_passed_and_the_window_never_grows():
    end = Scripted(window_size=4)
    for _ in range(3):
        first, last = numbers(end)
        for place in (1, 2, 3):
            end.read(0, 1, itt=place, cmd_sn=(first + place) & MASK)
        assert end.connection.abort_task(2)
        assert not end.connection.abort_task(2)
        assert numbers(end) == (first, last)
        end.read(0, 1, itt=2, cmd_sn=(first + 2) & MASK)  # it came already
        end.read(0, 1, itt=9, cmd_sn=first)
        assert [header.itt for header, _ in end.sent()] == [9, 1, 3]
        assert numbers(end) == (first + 4, last + 4)
    assert end.connection.abort_lun() == 0


def test_a_reset_ends_held_commands_too():
    end = Scripted(window_size=4)
    for place in (1, 2, 3):
        end.read(0, 1, itt=place, cmd_sn=50 + place)
    assert end.connection.abort_lun(0) == 3
    end.read(0, 1, itt=9, cmd_sn=50)
    assert [header.itt for header, _ in end.sent()] == [9]
    end.cmd_sn = 54
    still_works(end)


def test_a_number_whose_command_was_lost_can_be_passed():
    end = Scripted()
    end.read(0, 1, itt=1, cmd_sn=51)
    end.read(0, 1, itt=2, cmd_sn=53)
    passed = end.connection.count_as_received
    assert not passed(49, before=60)
    assert not passed(58, before=60)
    assert not passed(52, before=52)  # it does not come before the request that asks
    assert passed(52, before=54)
    assert end.sent() == []
    assert passed(50, before=54)
    assert [header.itt for header, _ in end.sent()] == [1, 2]
    end.read(0, 1, itt=3, cmd_sn=52)
    assert end.sent() == []
    assert numbers(end) == (54, 61)
    end.cmd_sn = 54
    still_works(end)


def test_a_full_window_of_held_commands_still_leaves_room_for_immediate_ones():
    end = Scripted(window_size=4)
    for place in (1, 2, 3):
        end.read(0, 1, itt=place, cmd_sn=50 + place)
    for number in range(8):
        end.command(
            scsi.inquiry(),
            read=1,
            expected_data_transfer_length=64,
            immediate=1,
            itt=100 + number,
            cmd_sn=50,
        )
    assert end.sent() == []  # none was rejected
    end.read(0, 1, itt=9, cmd_sn=50)
    assert [header.itt for header, _ in end.sent()] == [9, 1, 2, 3]


def test_a_held_command_refused_by_its_unit_says_so_in_its_turn():
    end = Scripted()
    end.read(64, 1, itt=1, cmd_sn=51)
    assert end.sent() == []
    end.read(0, 1, itt=2, cmd_sn=50)
    good, refused = end.sent()
    assert (good[0].itt, refused[0].itt, refused[0].status) == (2, 1, 2)
    end.cmd_sn = 52
    end.read(64, 1)
    assert end.answer_sense().code == Asc.LBA_OUT_OF_RANGE


def _one_random_step(end, random, tags):
    """Send, abort or pass something near the window; most of it in the wrong order."""
    first, _ = numbers(end)
    cmd_sn = (first + random.randrange(-2, 7)) & MASK
    what = random.randrange(8)
    itt = random.randrange(64)
    if what < 3:
        end.read(random.randrange(70), 1, itt=itt, cmd_sn=cmd_sn)
    elif what == 3:
        end.write(0, 2, data=bytes(512 * random.randrange(4)), itt=itt, cmd_sn=cmd_sn)
    elif what == 4:
        end.request(Opcode.NOP_OUT, b"ping", itt=itt, cmd_sn=cmd_sn)
    elif what == 5:
        end.command(scsi.inquiry(), itt=itt, cmd_sn=cmd_sn)
    elif what == 6:
        end.connection.abort_task(random.choice(tags or [0]))
    else:
        end.connection.count_as_received(cmd_sn, before=(first + 8) & MASK)
    tags.append(itt)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_the_window_neither_grows_nor_shrinks_and_nothing_is_lost(seed):
    chosen = random.Random(seed)
    end = Scripted(SessionParams(first_burst_length=1024), window_size=6, cmd_sn=0xFFFFFFF0)
    mine = target_at(end.connection.address)[0]
    tags, last_max = [], numbers(end)[1]
    for _ in range(300):
        _one_random_step(end, chosen, tags)
        for header, _ in end.sent():
            if header.opcode is Opcode.R2T:
                length = header.desired_data_transfer_length
                end.give(
                    Opcode.DATA_OUT,
                    bytes(length),
                    itt=header.itt,
                    ttt=header.ttt,
                    buffer_offset=header.buffer_offset,
                )
        for cold in end.connection.cold_commands():
            if chosen.randrange(2):
                end.connection.respond(cold.task_id)
        first, last = numbers(end)
        assert ((last - last_max) & MASK) < 64, "MaxCmdSN went back"
        last_max = last
        assert ((last - first + 1) & MASK) <= 6, "the window grew"
        assert 0 <= held_count(end) < 6
    end.connection.abort_lun()
    for _ in range(6):  # fill what gaps there are
        end.request(Opcode.NOP_OUT, itt=1, cmd_sn=numbers(end)[0])
    end.sent()
    first, last = numbers(end)
    assert held_count(end) == 0
    assert (last - first + 1) & MASK == 6
    assert mine["task_pool"]["free_count"] == 6 + 8
    assert mine["port"]["control_pool"]["free_count"] == 6 + 8
