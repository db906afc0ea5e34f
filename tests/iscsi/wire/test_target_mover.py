"""A target cut in two answers as a whole one does: READ, WRITE, commands of the cold code, requests
that are no commands, over every way written data can come (RFC 7143 §4.2.5, RFC 5047).
"""

import itertools

import numpy as np
import pytest

from iscsi.wire import bhs, mover, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import port_at
from tests.iscsi.wire.full_feature import BLOCK, Joined, pattern
from tests.iscsi.wire.split_target import Split

NO_TAG = 0xFFFFFFFF
SMALL = ConnectionParams(max_recv_data_segment_length=1024)
SESSIONS = [
    SessionParams(
        initial_r2t=initial_r2t,
        immediate_data=immediate_data,
        first_burst_length=2048,
        max_burst_length=4096,
        max_outstanding_r2t=outstanding,
    )
    for initial_r2t, immediate_data, outstanding in itertools.product(
        (True, False), (True, False), (1, 3)
    )
]


def session_id(session):
    return f"R2T{session.initial_r2t:d}I{session.immediate_data:d}o{session.max_outstanding_r2t}"


@pytest.mark.parametrize("hot", [False, True], ids=["host", "engine"])
@pytest.mark.parametrize("session", SESSIONS, ids=session_id)
def test_what_is_written_is_read_back(session, hot):
    pair = Split(session, SMALL, hot=hot)
    data, back = pattern(30 * BLOCK), np.zeros(30 * BLOCK, np.uint8)
    pair.write(3, 30, data)
    assert pair.one().status == 0
    assert np.array_equal(pair.ram[3 * BLOCK : 33 * BLOCK], data)
    pair.read(3, 30, back)
    done = pair.one()
    assert (done.status, done.received, done.residual) == (0, back.size, 0)
    assert np.array_equal(back, data)
    pair.check_at_rest()
    assert bool(pair.posts) == (not hot)


@pytest.mark.parametrize("session", SESSIONS, ids=session_id)
def test_a_target_cut_in_two_says_what_a_whole_one_says(session):
    pairs = [Joined(session, SMALL), Split(session, SMALL)]
    for pair in pairs:
        for blocks in (1, 2, 5, 30):
            pair.write(blocks, blocks, pattern(blocks * BLOCK, blocks))
            pair.one()
            pair.read(blocks, blocks, np.zeros(blocks * BLOCK, np.uint8))
            pair.one()
    assert pairs[0].to_target == pairs[1].to_target
    assert pairs[0].to_initiator == pairs[1].to_initiator
    assert np.array_equal(pairs[0].ram, pairs[1].ram)


def test_a_read_is_one_post_and_a_write_two_at_most():
    pair = Split(SESSIONS[0], SMALL)
    pair.read(0, 30, np.zeros(30 * BLOCK, np.uint8))
    pair.run()
    assert [posted.fields["opcode"] for posted in pair.posts] == [mover.ANSWER]
    pair.posts.clear()
    pair.write(0, 30, pattern(30 * BLOCK))
    pair.run()
    assert [posted.fields["opcode"] for posted in pair.posts] == [mover.GET, mover.ANSWER]


@pytest.mark.parametrize("session", SESSIONS, ids=session_id)
@pytest.mark.parametrize("size", [0, 1, 511, 512, 2047, 2048, 2049, 4096, 5000, 100_000])
def test_the_cold_code_gets_what_was_written_whatever_way_it_came(session, size):
    pair = Split(session, SMALL, host_hot=False)
    data = pattern(size)
    cdb = bytes([0x55, 0, 0, 0, 0, 0, 0, 0, 0, 0]) + bytes(6)
    pair.submit(cdb, bhs.FLAG_WRITE if size else 0, data if size else None)
    assert pair.one().status == 0
    (command,) = pair.served
    assert bytes(command.data) == data.tobytes()
    pair.check_at_rest()


def test_a_cold_answer_its_residual_and_its_sense_arrive():
    pair = Split(SESSIONS[0], SMALL, host_hot=False)
    answers = [
        {"data": bytes(range(200))},
        {"data": pattern(70_000).tobytes()},
        {"status": 2, "sense": b"\x70\0\x05" + bytes(15)},
    ]
    pair.serve = lambda command: pair.target.respond(command.task_id, **answers.pop(0))
    buffer = np.zeros(100_000, np.uint8)
    pair.submit(scsi.inquiry(), bhs.FLAG_READ, buffer)
    done = pair.one()
    assert (done.status, done.received, done.residual) == (0, 200, buffer.size - 200)
    assert bytes(buffer[:200]) == bytes(range(200))
    pair.submit(scsi.inquiry(), bhs.FLAG_READ, buffer)
    assert pair.one().received == 70_000
    assert bytes(buffer[:70_000]) == pattern(70_000).tobytes()
    pair.submit(scsi.inquiry(), bhs.FLAG_READ, buffer)
    done = pair.one()
    assert (done.status, done.sense[:3]) == (2, b"\x70\0\x05")
    pair.check_at_rest()


@pytest.mark.parametrize("expected", [0, 100, 1024, 1500, 4096])
@pytest.mark.parametrize("is_read", [True, False], ids=["read", "write"])
@pytest.mark.parametrize("hot", [False, True], ids=["host", "engine"])
def test_residuals_are_those_of_a_whole_target(expected, is_read, hot):
    done = []
    for pair in (Joined(SESSIONS[0], SMALL), Split(SESSIONS[0], SMALL, hot=hot)):
        buffer = pattern(expected)
        flags = (bhs.FLAG_READ if is_read else bhs.FLAG_WRITE) if expected else 0
        cdb = scsi.read_10(2, 2) if is_read else scsi.write_10(2, 2)
        pair.submit(cdb, flags, buffer)
        done.append(pair.one())
        found = pair.ram
    assert done[0] == done[1]
    pair.check_at_rest()
    if not is_read:
        assert np.array_equal(found[2 * BLOCK :][: min(expected, 1024)], buffer[:1024])


def test_requests_that_are_no_commands_reach_the_host_and_are_answered():
    pair = Split(SESSIONS[0], SMALL)

    def serve(pdu):
        if pdu.header.opcode == Opcode.TEXT_REQUEST:
            header = bhs.encode(Opcode.TEXT_RESPONSE, final=1, itt=pdu.header.itt, ttt=NO_TAG)
            assert pair.target.send_control(header, b"answer=" + pdu.data)
        elif pdu.header.opcode == Opcode.TASK_MANAGEMENT_REQUEST:
            header = bhs.encode(Opcode.TASK_MANAGEMENT_RESPONSE, final=1, itt=pdu.header.itt)
            assert pair.target.send_control(header)
        else:
            header = bhs.encode(Opcode.LOGOUT_RESPONSE, final=1, itt=pdu.header.itt)
            assert pair.target.send_control(header)

    pair.serve = serve
    pair.initiator.send_control(bhs.encode(Opcode.TEXT_REQUEST, itt=NO_TAG, ttt=NO_TAG), b"a=b")
    pair.run()
    (answer,) = pair.initiator.controls()
    assert (answer.header.opcode, answer.data) == (Opcode.TEXT_RESPONSE, b"answer=a=b")
    pair.initiator.send_control(bhs.encode(Opcode.TASK_MANAGEMENT_REQUEST, itt=NO_TAG, function=1))
    pair.run()
    (answer,) = pair.initiator.controls()
    assert answer.header.opcode == Opcode.TASK_MANAGEMENT_RESPONSE
    pair.initiator.send_control(bhs.encode(Opcode.LOGOUT_REQUEST, itt=NO_TAG))
    pair.run()
    (answer,) = pair.initiator.controls()
    assert answer.header.opcode == Opcode.LOGOUT_RESPONSE
    pair.check_at_rest()


def test_a_ping_is_answered_below_and_the_answer_to_one_is_a_sign_of_life_above():
    pair = Split(SESSIONS[0], SMALL)
    tag = pair.initiator.send_control(bhs.encode(Opcode.NOP_OUT, itt=NO_TAG, ttt=NO_TAG), b"ping")
    assert tag is not None
    pair.run()
    assert not pair.served
    assert not pair.posts
    (header, data) = pair.sent_by_target()[-1]
    assert (header.opcode, header.itt, data) == (Opcode.NOP_IN, tag, b"ping")
    list(pair.initiator.completions())
    before = int(port_at(pair.target.address)[0]["rx_pdus"])
    assert pair.target.send_control(bhs.encode(Opcode.NOP_IN, itt=NO_TAG, ttt=5))
    pair.run()
    (ping, _), (answer, _) = pair.sent_by_target()[-1], pair.sent_by_initiator()[-1]
    assert (ping.opcode, ping.ttt) == (Opcode.NOP_IN, 5)
    assert (answer.opcode, answer.ttt) == (Opcode.NOP_OUT, 5)
    assert int(port_at(pair.target.address)[0]["rx_pdus"]) == before + 1
    assert not pair.served
    pair.check_at_rest()


def test_the_host_sees_commands_and_requests_in_the_order_they_came():
    pair = Split(SESSIONS[0], SMALL, host_hot=False)
    lent, pair.lent = pair.lent, type(pair.lent)()
    wanted = []
    for index in range(6):
        if index % 2:
            header = bhs.encode(Opcode.TEXT_REQUEST, itt=NO_TAG, ttt=NO_TAG)
            wanted.append(pair.initiator.send_control(header, b"a=b"))
        else:
            wanted.append(pair.submit(scsi.test_unit_ready(), user_data=index))
    pair.run()
    assert not pair.served, "without a buffer the host sees nothing"
    pair.lent = lent
    pair.run()
    assert [header.itt for header in pair.notified] == wanted
    list(pair.initiator.completions())
    pair.check_at_rest()


@pytest.mark.parametrize("hot", [False, True], ids=["host", "engine"])
@pytest.mark.parametrize("session", [SessionParams(), SessionParams(initial_r2t=False)])
def test_a_mebibyte_comes_and_goes(session, hot):
    pair = Split(session, ConnectionParams(), hot=hot, blocks=4096)
    data, back = pattern(1 << 20), np.zeros(1 << 20, np.uint8)
    pair.write(1, 2048, data)
    assert pair.one().status == 0
    pair.read(1, 2048, back)
    assert pair.one().received == 1 << 20
    assert np.array_equal(back, data)
    pair.submit(bytes([0x55]) + bytes(15), bhs.FLAG_WRITE, data)
    assert pair.one().status == 0
    assert bytes(pair.served[0].data) == data.tobytes()
    pair.check_at_rest()


def test_commands_before_their_turn_reach_the_host_in_turn_with_all_their_data():
    session = SessionParams(first_burst_length=512, max_burst_length=1024)
    pair = Split(session, SMALL, host_hot=False)
    written = [pattern(700, index) for index in range(4)]
    streams = []
    for index, data in enumerate(written):
        pair.submit(bytes([0x55]) + bytes(15), bhs.FLAG_WRITE, data, user_data=index)
        streams.append(pair.initiator.data_to_send())
    for stream in reversed(streams):
        assert not pair.notified
        pair.engine.receive(stream)
        pair.turn_target()
    pair.run()
    assert [header.cmd_sn for header in pair.notified] == [1, 2, 3, 4]
    assert [bytes(command.data) for command in pair.served] == [bytes(data) for data in written]
    assert len(list(pair.initiator.completions())) == 4
    pair.check_at_rest()


def test_a_long_cdb_arrives_whole():
    pair = Split(SESSIONS[0], SMALL, host_hot=False)
    cdb = bytes([0x7F, 0, 0, 0, 0, 0, 0, 0x18]) + bytes(range(24))
    segment = (len(cdb) - 16 + 1).to_bytes(2, "big") + bytes([1, 0]) + cdb[16:]
    header = bytearray(
        bhs.encode(
            Opcode.SCSI_COMMAND, cdb=int.from_bytes(cdb[:16], "big"), final=1, itt=5, cmd_sn=1
        )
    )
    header[bhs.OFFSET_TOTAL_AHS_WORDS] = len(segment) // 4
    pair.engine.receive(bytes(header) + segment)
    while pair.turn_target():
        pass
    assert pair.served[0].cdb == cdb
    pair.engine.data_to_send()
    pair.check_at_rest()
