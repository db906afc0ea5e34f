"""Commands over a queue pair end as over a byte stream, whichever way their data goes; read data is
written to the initiator's tag, written data is read from it, and nothing of either is in a PDU but
what was sent unasked (RFC 7145 §7.3).
"""

import itertools
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.iser.header import ISER_HEADER_LENGTH, Hello, HelloReply, IserHeader, decode
from iscsi.wire.iser.records import IserLimits, iser_at
from iscsi.wire.keys import ConnectionParams, SessionParams
from shm.verbs_numbers import (
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
    WR_SEND_WITH_INV,
)
from shm.view import address_of
from tests.iscsi.wire.full_feature import BLOCK, READ, examples, pattern
from tests.iscsi.wire.iser.pair import Pair, counts

KEPT = IserLimits(receives=64)
INVALIDATES = IserLimits(receives=64, remote_invalidate=True)
SESSIONS = [
    SessionParams(initial_r2t=initial_r2t, immediate_data=immediate, first_burst_length=burst)
    for initial_r2t, immediate, burst in itertools.product(
        (True, False), (True, False), (2048, 65536)
    )
]
PLACES = [
    pytest.param({"hot": True}, id="engine"),
    pytest.param({"hot": False}, id="host"),
]


def session_id(session):
    return f"R2T{session.initial_r2t:d}I{session.immediate_data:d}b{session.first_burst_length}"


def pair(session=None, *, limits=KEPT, right=None, left=None, receives=8192):
    return Pair(
        session or SessionParams(),
        ConnectionParams(max_recv_data_segment_length=8192),
        receives,
        left_limits=limits,
        right_limits=limits,
        left_options=left or {},
        right_options=right if right is not None else {"hot": True},
    )


def write_and_read(both, blocks, lba=3, steps=None):
    data, back = pattern(blocks * BLOCK, seed=blocks), np.zeros(blocks * BLOCK, np.uint8)
    both.left.write(lba, blocks, data)
    assert both.one(steps).status == 0
    assert np.array_equal(both.ram[lba * BLOCK : (lba + blocks) * BLOCK], data)
    both.left.read(lba, blocks, back)
    done = both.one(steps)
    assert (done.status, done.received, done.residual) == (0, blocks * BLOCK, 0)
    assert np.array_equal(back, data)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("session", SESSIONS, ids=session_id)
def test_what_is_written_is_read_back(session, place):
    both = pair(session, right=place)
    for blocks in (1, 4, 16, 40, 200):
        write_and_read(both, blocks)
    both.check_at_rest()


@pytest.mark.parametrize("limits", [KEPT, INVALIDATES], ids=["local", "remote"])
@pytest.mark.parametrize("keeps", [False, True], ids=["made", "kept"])
def test_tags_of_every_kind_serve(limits, keeps):
    both = pair(limits=IserLimits(receives=64) if keeps else limits, left={"keeps_tags": keeps})
    write_and_read(both, 40)
    tags = both.left.qp.tags
    assert len(tags) == (2 if keeps else 0)
    both.check_at_rest()


@pytest.mark.parametrize("base", [0, 0x7FFF_0000_0000, 0xFFFF_8800_0000_0000])
def test_an_initiator_may_call_its_memory_by_any_number(base):
    both = pair(left={"base": base})
    write_and_read(both, 40)
    both.check_at_rest()


def test_immediate_data_is_kept_even_where_no_buffer_is_free():
    both = pair(right={"hot": False, "first_burst_room": False})
    for blocks in (1, 8, 16, 40):
        write_and_read(both, blocks)
    both.check_at_rest()


@pytest.mark.parametrize("blocks", [24, 32])
def test_more_unsolicited_data_than_there_is_room_for_is_read_or_has_to_come_again(blocks):
    """What no tag names cannot be read: its command is aborted, for its initiator to repeat."""
    session = SessionParams(initial_r2t=False, first_burst_length=24 * BLOCK)
    both = pair(session, right={"hot": False, "first_burst_room": False})
    data = pattern(blocks * BLOCK)
    both.left.write(0, blocks, data)
    done = both.one()
    if blocks == 24:
        assert (done.status, done.sense[2], done.sense[12:14]) == (2, 0xB, b"\x55\x03")
        assert not both.ram.any()
    else:
        assert done.status == 0
        assert np.array_equal(both.ram[: data.size], data)
        (work,) = [each for each in both.right.qp.carried if each.opcode == WR_RDMA_READ]
        assert (work.remote, work.length) == (address_of(data), data.size), "all of it"
    both.check_at_rest()


# --- what goes over the wire -----------------------------------------------------------------


def only(messages, opcode):
    return [each for each in messages if each[28] & bhs.OPCODE_MASK == opcode]


def test_a_read_is_one_command_one_rdma_write_and_one_response():
    both = pair()
    both.left.read(0, 64, np.zeros(64 * BLOCK, np.uint8))
    both.one()
    assert both.opcodes() == ([Opcode.SCSI_COMMAND], [Opcode.SCSI_RESPONSE])
    assert counts(both.right.qp) == {WR_RDMA_WRITE: 1, WR_SEND: 1}
    (work, _) = both.right.qp.carried
    assert work.pieces == [(address_of(both.ram), 64 * BLOCK)], "out of the unit's own memory"


def test_a_write_is_one_command_one_rdma_read_and_one_response():
    both = pair(SessionParams(immediate_data=False))
    both.left.write(2, 64, pattern(64 * BLOCK))
    both.one()
    assert both.opcodes() == ([Opcode.SCSI_COMMAND], [Opcode.SCSI_RESPONSE])
    assert counts(both.right.qp) == {WR_RDMA_READ: 1, WR_SEND: 1}
    (work, _) = both.right.qp.carried
    assert work.pieces == [(address_of(both.ram) + 2 * BLOCK, 64 * BLOCK)], "into the unit's memory"


@pytest.mark.parametrize(
    ("session", "unsolicited"),
    [
        (SessionParams(immediate_data=False), 0),
        (SessionParams(first_burst_length=2048), 2048),
        (SessionParams(first_burst_length=65536), 8192),
        (SessionParams(initial_r2t=False, first_burst_length=20480), 20480),
        (SessionParams(initial_r2t=False, immediate_data=False, first_burst_length=16384), 16384),
    ],
)
def test_a_write_s_tag_names_what_lies_behind_its_unsolicited_data(session, unsolicited):
    both = pair(session)
    data = pattern(100 * BLOCK)
    both.left.write(0, 100, data)
    assert both.one().status == 0
    command = decode(both.left.qp.messages[0])
    assert command.write_base == address_of(data) + unsolicited
    assert command.read_stag == 0
    (work,) = [each for each in both.right.qp.carried if each.opcode == WR_RDMA_READ]
    assert (work.remote, work.length) == (command.write_base, data.size - unsolicited)
    sent = only(both.left.qp.messages, Opcode.DATA_OUT)
    assert all(bhs.decode(each[28:76]).ttt == 0xFFFFFFFF for each in sent)


def test_a_write_that_goes_out_with_its_command_names_no_tag():
    both = pair(SessionParams(first_burst_length=65536))
    both.left.write(0, 16, pattern(16 * BLOCK))
    assert both.one().status == 0
    assert decode(both.left.qp.messages[0]) == IserHeader()
    assert counts(both.right.qp) == {WR_SEND: 1}
    assert both.left.qp.next_tag == 0x0100, "and none was made"


def test_a_response_invalidates_its_command_s_tag_where_both_agreed():
    both = pair(limits=INVALIDATES)
    both.left.read(0, 64, np.zeros(64 * BLOCK, np.uint8))
    both.one()
    (work,) = [each for each in both.right.qp.carried if each.opcode == WR_SEND_WITH_INV]
    assert work.invalidate == decode(both.left.qp.messages[0]).read_stag
    assert WR_LOCAL_INV not in counts(both.left.qp)
    assert int(iser_at(both.left.iser)[0]["invalidated"]) == 1


def test_without_that_the_initiator_invalidates_its_tag_before_the_command_is_over():
    both = pair()
    both.left.read(0, 64, np.zeros(64 * BLOCK, np.uint8))
    while WR_LOCAL_INV not in counts(both.left.qp):
        assert list(both.left.initiator.completions()) == []
        both.turn()
    assert both.one().status == 0
    assert both.left.qp.tags == {}


def test_every_send_begins_with_a_header_and_is_padded():
    both = pair()
    both.left.submit(scsi.inquiry(), READ, np.zeros(255, np.uint8))
    both.right.serve = lambda command: both.right.target.respond(command.task_id, data=b"x" * 97)
    done = both.one()
    assert (done.received, done.residual) == (97, 255 - 97)
    messages = both.left.qp.messages + both.right.qp.messages
    for message in messages:
        assert isinstance(decode(message), IserHeader)
        length = bhs.data_segment_length(message[28:76])
        assert len(message) == ISER_HEADER_LENGTH + 48 + bhs.padded(length)


def test_a_response_says_nothing_of_data_pdus_that_there_were_not():
    both = pair()
    both.left.write(0, 64, pattern(64 * BLOCK))
    both.one()
    (response,) = only(both.right.qp.messages, Opcode.SCSI_RESPONSE)
    assert bhs.decode(response[28:76]).exp_data_sn == 0


@pytest.mark.parametrize("hot", [True, False])
def test_less_or_more_than_expected_is_told_by_the_residual(hot):
    both = pair(right={"hot": hot})
    data = pattern(8 * BLOCK)
    both.ram[: data.size] = data
    longer, shorter = np.zeros(12 * BLOCK, np.uint8), np.zeros(3 * BLOCK, np.uint8)
    both.left.submit(scsi.read_16(0, 8), READ, longer, user_data=1)
    both.left.submit(scsi.read_16(0, 8), READ, shorter, user_data=2)
    done = both.finish()
    assert (done[1].received, done[1].residual) == (8 * BLOCK, 4 * BLOCK)
    assert (done[2].received, done[2].residual) == (3 * BLOCK, -5 * BLOCK)
    assert np.array_equal(longer[: data.size], data)
    assert not longer[data.size :].any()
    assert np.array_equal(shorter, data[: shorter.size])


def test_a_check_condition_carries_its_sense():
    both = pair()
    both.left.read(510, 8, np.zeros(8 * BLOCK, np.uint8))  # behind the unit's end
    done = both.one()
    assert (done.status, done.received) == (2, 0)
    assert done.sense[2] == 5
    both.check_at_rest()


@pytest.mark.parametrize("length", [18, 124, 126, 127, 200, 252])
def test_sense_data_stays_within_what_deployed_initiators_receive(length):
    both = pair(right={"hot": False})
    sense = bytes([0x72, 5, 0x20, 0, 0, 0, 0, length - 8]) + bytes(range(length - 8))
    both.right.serve = lambda command: both.right.target.respond(command.task_id, 2, sense=sense)
    both.left.submit(scsi.test_unit_ready())
    done = both.one()
    assert done.status == 2
    assert done.sense == sense[: min(length, 126)]
    (response,) = both.right.qp.messages
    assert len(response) <= 28 + 48 + 128
    both.check_at_rest()


def test_commands_of_any_length_wait_for_their_turn_to_be_read():
    limits = IserLimits(receives=64, depth=2)
    both = pair(SessionParams(immediate_data=False), limits=limits)
    data = [pattern(16 * BLOCK, seed) for seed in range(12)]
    for number, each in enumerate(data):
        both.left.write(16 * number, 16, each, user_data=number)
    most = 0

    def steps():
        nonlocal most
        most = max(most, sum(each.opcode == WR_RDMA_READ for each in both.right.qp.sends))
        return 1

    done = both.finish(steps)
    assert [done[number].status for number in range(12)] == [0] * 12
    assert np.array_equal(both.ram[: 192 * BLOCK], np.concatenate(data))
    assert most == 2
    both.check_at_rest()


def test_a_command_without_a_tag_to_be_had_ends_and_its_number_is_used():
    both = pair(left={"tags_left": 1})
    data = pattern(40 * BLOCK)
    both.left.write(0, 40, data, user_data=1)
    both.left.write(100, 40, data, user_data=2)
    both.left.submit(scsi.test_unit_ready(), user_data=3)
    done = both.finish()
    assert [done[number].result for number in (1, 2, 3)] == [0, -105, 0]
    both.left.tags_left = 1
    write_and_read_one(both)
    both.check_at_rest()


def write_and_read_one(both):
    both.left.write(0, 40, pattern(40 * BLOCK, 9))
    assert both.one().status == 0


# --- Hello -----------------------------------------------------------------------------------


def test_a_hello_comes_first_where_it_was_agreed_on():
    limits = IserLimits(receives=64, hello=True, depth=7)
    both = Pair(
        left_limits=limits,
        right_limits=IserLimits(receives=64, hello=True, depth=30),
        right_options={"hot": True},
    )
    write_and_read(both, 40)
    assert decode(both.left.qp.messages[0]) == Hello(7)
    assert decode(both.right.qp.messages[0]) == HelloReply(7)
    assert len(both.left.qp.messages[0]) == len(both.right.qp.messages[0]) == ISER_HEADER_LENGTH
    both.check_at_rest()


# --- any order of things ---------------------------------------------------------------------

COMMAND = st.tuples(st.booleans(), st.integers(0, 480), st.sampled_from([1, 2, 9, 17, 32]))


@given(
    commands=st.lists(COMMAND, min_size=1, max_size=12),
    session=st.sampled_from(SESSIONS),
    place=st.sampled_from([{"hot": True}, {"hot": False}]),
    remote=st.booleans(),
    kept=st.booleans(),
    depth=st.sampled_from([1, 2, 16]),
    seed=st.integers(0, 1 << 32),
)
@settings(max_examples=examples(60), deadline=None)
def test_whatever_the_order_every_command_ends_once_with_its_data(
    commands, session, place, remote, kept, depth, seed
):
    random = Random(seed)
    limits = IserLimits(receives=64, depth=depth, remote_invalidate=remote and not kept)
    both = pair(session, limits=limits, right=place, left={"keeps_tags": kept})
    both.ram[:] = pattern(both.ram.size, 77)
    before = both.ram.copy()
    wanted = before.copy()
    buffers = {}
    taken = set()
    for number, (is_write, lba, blocks) in enumerate(commands, 1):
        span = set(range(lba, lba + blocks))
        if is_write and not span & taken:
            taken |= span
            buffers[number] = pattern(blocks * BLOCK, number)
            wanted[lba * BLOCK : (lba + blocks) * BLOCK] = buffers[number]
            both.left.write(lba, blocks, buffers[number], user_data=number)
        else:
            buffers[number] = np.zeros(blocks * BLOCK, np.uint8)
            both.left.read(lba, blocks, buffers[number], user_data=number)
    done = both.finish(lambda: random.randint(0, 3))
    assert sorted(done) == sorted(buffers)
    assert {each.status for each in done.values()} == {0}
    assert np.array_equal(both.ram, wanted)
    for number, (_, lba, blocks) in enumerate(commands, 1):
        found, at = buffers[number], slice(lba * BLOCK, (lba + blocks) * BLOCK)
        is_old_or_new = (found == before[at]) | (found == wanted[at])
        assert is_old_or_new.all()
    both.check_at_rest()
