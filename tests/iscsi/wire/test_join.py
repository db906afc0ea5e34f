"""Reads and writes between our initiator and our target, over every negotiable way to move data."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import RemoteProtocolError
from iscsi.wire.keys import ConnectionParams, SessionParams
from tests.iscsi.wire.full_feature import BLOCK, BLOCKS, Joined, examples, pattern

SMALL = ConnectionParams(max_recv_data_segment_length=512)
CUTS = settings(max_examples=examples(60), deadline=None)
SESSIONS = [
    SessionParams(
        initial_r2t=initial_r2t,
        immediate_data=immediate_data,
        first_burst_length=first_burst,
        max_burst_length=max_burst,
        max_outstanding_r2t=outstanding,
    )
    for initial_r2t, immediate_data in itertools.product([True, False], repeat=2)
    for first_burst, max_burst, outstanding in [(512, 1024, 1), (1536, 1536, 3), (4096, 16384, 2)]
]


def session_id(session):
    return (
        f"{'R2T' if session.initial_r2t else 'open'}-"
        f"{'immediate' if session.immediate_data else 'plain'}-{session.max_burst_length}"
    )


@pytest.mark.parametrize("session", SESSIONS, ids=session_id)
@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 8, 33, 100])
def test_what_is_written_is_what_is_read_back(session, blocks):
    pair = Joined(session, ConnectionParams(max_recv_data_segment_length=700))
    data, back = pattern(blocks * BLOCK, blocks), np.zeros(blocks * BLOCK, np.uint8)
    pair.write(5, blocks, data)
    written = pair.one()
    assert (written.result, written.status, written.residual) == (0, 0, 0)
    assert np.array_equal(pair.ram[5 * BLOCK : (5 + blocks) * BLOCK], data)
    assert not pair.ram[: 5 * BLOCK].any()
    assert not pair.ram[(5 + blocks) * BLOCK :].any()
    pair.read(5, blocks, back)
    done = pair.one()
    assert (done.status, done.received, done.residual) == (0, back.size, 0)
    assert np.array_equal(back, data)


@pytest.mark.parametrize("session", SESSIONS, ids=session_id)
def test_data_moves_the_way_that_was_negotiated(session):
    pair = Joined(session, SMALL)
    pair.write(0, 40, pattern(40 * BLOCK))
    pair.finish()
    command, *data_outs = pair.sent_by_initiator()
    unsolicited = [pdu for pdu in data_outs if pdu[0].ttt == bhs.RESERVED_TAG]
    r2ts = [header for header, _ in pair.sent_by_target() if header.opcode is Opcode.R2T]
    assert bool(command[1]) == session.immediate_data
    assert bool(unsolicited) == (
        not session.initial_r2t and len(command[1]) < session.first_burst_length
    )
    first_burst = len(command[1]) + sum(len(data) for _, data in unsolicited)
    assert first_burst <= session.first_burst_length
    if not session.initial_r2t:
        assert first_burst == session.first_burst_length
    asked = [r2t.desired_data_transfer_length for r2t in r2ts]
    assert first_burst + sum(asked) == 40 * BLOCK
    assert all(length == session.max_burst_length for length in asked[:-1])
    assert [r2t.r2t_sn for r2t in r2ts] == list(range(len(r2ts)))


@pytest.mark.parametrize("session", SESSIONS[:3], ids=session_id)
def test_the_last_data_out_of_each_burst_is_final_and_data_sn_counts_within_it(session):
    pair = Joined(session, SMALL)
    pair.write(0, 40, pattern(40 * BLOCK))
    pair.finish()
    data_outs = [pdu for pdu in pair.sent_by_initiator() if pdu[0].opcode is Opcode.DATA_OUT]
    bursts = [list(group) for _, group in itertools.groupby(data_outs, key=lambda pdu: pdu[0].ttt)]
    for burst in bursts:
        assert [header.final for header, _ in burst] == [0] * (len(burst) - 1) + [1]
        assert [header.data_sn for header, _ in burst] == list(range(len(burst)))
    offsets = [header.buffer_offset for header, _ in data_outs]
    assert offsets == sorted(offsets)


def test_data_in_sequences_end_at_max_burst_length_and_status_rides_on_the_last():
    session = SessionParams(max_burst_length=2048, first_burst_length=512)
    pair = Joined(session, ConnectionParams(max_recv_data_segment_length=1536))
    pair.read(0, 10, np.zeros(10 * BLOCK, np.uint8))
    pair.one()
    headers = [header for header, _ in pair.sent_by_target()]
    assert [header.opcode for header in headers] == [Opcode.DATA_IN] * 5
    assert [header.data_segment_length for header in headers] == [1536, 512, 1536, 512, 1024]
    assert [header.final for header in headers] == [0, 1, 0, 1, 1]
    assert [header.has_status for header in headers] == [0, 0, 0, 0, 1]
    assert [header.data_sn for header in headers] == [0, 1, 2, 3, 4]
    assert [header.stat_sn for header in headers] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("digests", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("size", [1, 3, 512, 515, 2000])
def test_digests_protect_every_pdu_and_its_padding(digests, size):
    connection = ConnectionParams(
        header_digest=digests[0], data_digest=digests[1], max_recv_data_segment_length=700
    )
    pair = Joined(connection=connection)
    data, back = pattern(size), np.zeros(size, np.uint8)
    pair.submit(scsi.write_10(3, 4), bhs.FLAG_WRITE, data)
    pair.one(lambda stream: [stream[at : at + 1] for at in range(len(stream))])
    assert np.array_equal(pair.ram[3 * BLOCK :][:size], data)
    pair.submit(scsi.read_10(3, 4), bhs.FLAG_READ, back)
    assert pair.one().received == size
    assert np.array_equal(back, data)


@pytest.mark.parametrize("step", [1, 2, 47, 48, 49, 560])
def test_the_stream_may_be_cut_anywhere(step):
    pair = Joined(SESSIONS[-1], SMALL)
    data, back = pattern(9 * BLOCK), np.zeros(9 * BLOCK, np.uint8)
    cut = lambda stream: [stream[at : at + step] for at in range(0, len(stream), step)]  # noqa: E731
    pair.write(1, 9, data)
    assert pair.one(cut).status == 0
    pair.read(1, 9, back)
    assert pair.one(cut).status == 0
    assert np.array_equal(back, data)


@CUTS
@given(st.data(), st.sampled_from(SESSIONS), st.integers(512, 2000))
def test_random_cuts_and_parameters_change_nothing(data, session, max_recv):
    pair = Joined(session, ConnectionParams(max_recv_data_segment_length=max_recv))

    def cut(stream):
        cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
        edges = [0, *sorted(cuts), len(stream)]
        return [stream[start:end] for start, end in itertools.pairwise(edges)]

    blocks = data.draw(st.integers(1, 20))
    wanted, back = pattern(blocks * BLOCK, blocks), np.zeros(blocks * BLOCK, np.uint8)
    pair.write(2, blocks, wanted)
    assert pair.one(cut).status == 0
    pair.read(2, blocks, back)
    assert pair.one(cut).status == 0
    assert np.array_equal(back, wanted)


@pytest.mark.parametrize("session", SESSIONS[::4], ids=session_id)
def test_bytes_placed_where_they_are_wanted_give_the_same_stream_as_bytes_copied(session):
    pairs = [Joined(session, SMALL), Joined(session, SMALL)]
    backs = []
    for pair, run in zip(pairs, (Joined.run, Joined.run_placed), strict=True):
        data, back = pattern(30 * BLOCK), np.zeros(30 * BLOCK, np.uint8)
        pair.write(0, 30, data)
        run(pair)
        pair.read(0, 30, back)
        run(pair)
        assert [done.status for done in pair.initiator.completions()] == [0, 0]
        backs.append(back)
        assert np.array_equal(back, data)
    assert pairs[0].to_target == pairs[1].to_target
    assert pairs[0].to_initiator == pairs[1].to_initiator


@pytest.mark.parametrize("cmd_sn", [1, 0xFFFFFFF0, 0x7FFFFFF0])
def test_many_commands_at_once_across_the_wrap_of_every_serial_number(cmd_sn):
    pair = Joined(SESSIONS[-1], SMALL, cmd_sn=cmd_sn, stat_sn=0xFFFFFFFB, window_size=8)
    shadow = np.zeros_like(pair.ram)
    for turn in range(4):
        buffers = {}
        for index in range(8):
            lba, blocks = 60 * index + turn, 1 + (index * 7 + turn) % 13
            data = pattern(blocks * BLOCK, turn * 8 + index)
            shadow[lba * BLOCK :][: data.size] = data
            assert pair.write(lba, blocks, data, user_data=index) is not None
            buffers[index] = (lba, data)
        done = pair.finish()
        assert {key: value.status for key, value in done.items()} == dict.fromkeys(range(8), 0)
    assert np.array_equal(pair.ram, shadow)


def test_random_commands_against_a_shadow_disk():
    rng = np.random.default_rng(4)
    pair = Joined(SESSIONS[4], ConnectionParams(max_recv_data_segment_length=1000))
    shadow = np.zeros_like(pair.ram)
    for _ in range(examples(40)):
        pending = {}
        # Each command of a batch has a region of its own, because their order is not defined.
        for index, region in enumerate(np.array_split(np.arange(BLOCKS), 8)):
            first = int(rng.integers(region[0], region[-1] + 1))
            blocks = int(rng.integers(1, region[-1] - first + 2))
            start, size = first * BLOCK, blocks * BLOCK
            buffer = rng.integers(0, 256, size, dtype=np.uint8)
            if rng.integers(2):
                shadow[start : start + size] = buffer
                pair.write(first, blocks, buffer, user_data=index)
            else:
                pair.read(first, blocks, buffer, user_data=index)
                pending[index] = (buffer, shadow[start : start + size].copy())
        done = pair.finish()
        assert all(result.status == 0 for result in done.values())
        assert len(done) == 8
        assert all(np.array_equal(buffer, wanted) for buffer, wanted in pending.values())
    assert np.array_equal(pair.ram, shadow)


def test_two_places_for_pdus_are_enough_for_any_transfer():
    pair = Joined(SESSIONS[0], SMALL, tx_entries=2)
    data, back = pattern(200 * BLOCK), np.zeros(200 * BLOCK, np.uint8)
    pair.write(0, 200, data)
    assert pair.one().status == 0
    pair.read(0, 200, back)
    assert pair.one().status == 0
    assert np.array_equal(back, data)


def test_the_window_takes_exactly_its_commands_and_opens_again():
    pair = Joined(window_size=4)
    buffers = [np.zeros(BLOCK, np.uint8) for _ in range(5)]
    for turn in range(3):
        tags = [pair.read(index, 1, buffers[index], user_data=index) for index in range(5)]
        assert [tag is not None for tag in tags] == [True] * 4 + [False], f"turn {turn}"
        assert len(pair.finish()) == 4


def test_a_large_read_lets_a_small_one_pass_between_its_sequences():
    session = SessionParams(max_burst_length=1024, first_burst_length=512)
    pair = Joined(session, SMALL)
    pair.read(0, 64, np.zeros(64 * BLOCK, np.uint8), user_data=1)
    pair.read(0, 1, np.zeros(BLOCK, np.uint8), user_data=2)
    pair.run()
    assert [done.user_data for done in pair.initiator.completions()] == [2, 1]


def test_unsolicited_data_keeps_the_order_of_its_commands():
    session = SessionParams(
        initial_r2t=False,
        immediate_data=False,
        first_burst_length=2048,
        max_burst_length=2048,
    )
    pair = Joined(session, SMALL)
    tags = [pair.write(8 * index, 4, pattern(4 * BLOCK)) for index in range(3)]
    pair.finish()
    order = [header.itt for header, _ in pair.sent_by_initiator()]
    assert order == [tag for tag in tags for _ in range(5)]


def test_one_bit_flipped_anywhere_under_digests_is_noticed():
    connection = replace(SMALL, header_digest=True, data_digest=True)
    reference = Joined(connection=connection)
    reference.write(0, 1, pattern(BLOCK))
    stream = reference.initiator.data_to_send()
    for position in range(0, len(stream), 5 if examples(8) == 8 else 40):
        pair = Joined(connection=connection)
        broken = bytearray(stream)
        broken[position] ^= 1 << position % 8
        # A longer AHS makes the header wait for bytes: give it all it may ask for.
        with pytest.raises(RemoteProtocolError):
            pair.target.receive(bytes(broken) + bytes(1100))
