"""The initiator cut in two: a session's mirror and the engine's half, joined by POSTs and EVENTs.
What the session sees is what it saw over a byte stream; each post ends once, and what a hostile
session posts is refused with the engine's half as it was.
"""

import errno
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import bhs, mover, scsi
from iscsi.wire.bhs import Opcode, encode_pdu
from iscsi.wire.errors import RemoteProtocolError
from iscsi.wire.initiator import attach_ahs
from iscsi.wire.initiator_task import SENSE_ROOM, STATE_FREE, TASK, initiator_at
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import CONTROL_DATA, port_at
from shm.view import address_of, window
from tests.iscsi.wire.full_feature import (
    BLOCK,
    CONNECTION,
    READ,
    SESSION,
    WRITE,
    examples,
    pattern,
    pdus_of,
)
from tests.iscsi.wire.split_initiator import EXTRA, Split, end_all

FUZZ = settings(max_examples=examples(200), deadline=None)
SHORT = SessionParams(max_burst_length=4096, first_burst_length=1024, max_outstanding_r2t=3)
WRITES = [
    SHORT,
    replace(SHORT, immediate_data=False),
    replace(SHORT, initial_r2t=False),
    replace(SHORT, initial_r2t=False, immediate_data=False),
]
NO_TAG = bhs.RESERVED_TAG
DIGESTS = [(False, False), (True, False), (False, True), (True, True)]


def free_tasks(address):
    """How many tasks of a connection are free, by their states."""
    mine = initiator_at(address)[0]
    tasks = window(int(mine["tasks"]), int(mine["task_count"]), TASK)
    return int((tasks["state"] == STATE_FREE).sum())


def assert_at_rest(ends):
    """Nothing is open on either side, and every slot and task is back."""
    assert not ends.open, "posts without an event"
    for address in (ends.mirror, ends.lower.address):
        assert free_tasks(address) == ends.tasks
        assert initiator_at(address)[0]["active"] == 0
        port = port_at(address)[0]
        assert port["control_pool"]["free_count"] == port["control_count"]
    mirror = initiator_at(ends.mirror)[0]
    assert mirror["task_pool"]["free_count"] == ends.tasks


# --- what a session asks for in peace --------------------------------------------------------


@pytest.mark.parametrize("digests", DIGESTS)
@pytest.mark.parametrize("session", WRITES)
def test_what_is_written_is_what_is_read_back(session, digests):
    connection = ConnectionParams(
        max_recv_data_segment_length=1536, header_digest=digests[0], data_digest=digests[1]
    )
    ends = Split(session, connection)
    data, back = pattern(40 * BLOCK), np.zeros(40 * BLOCK, np.uint8)
    ends.write(7, 40, data)
    assert ends.one().status == 0
    ends.read(7, 40, back)
    done = ends.one()
    assert (done.result, done.status, done.received, done.residual) == (0, 0, back.size, 0)
    assert np.array_equal(back, data)
    assert_at_rest(ends)


def test_the_wire_is_the_same_as_over_a_byte_stream():
    from tests.iscsi.wire.full_feature import Joined

    streams = []
    for kind in (Joined, Split):
        ends = kind(replace(SHORT, initial_r2t=False))
        ends.write(0, 16, pattern(16 * BLOCK))
        ends.run()
        ends.read(0, 16, np.zeros(16 * BLOCK, np.uint8))
        ends.run()
        streams.append((bytes(ends.to_target), bytes(ends.to_initiator)))
    assert streams[0] == streams[1]


@settings(max_examples=examples(40), deadline=None)
@given(data=st.data(), session=st.sampled_from(WRITES), cmd_sn=st.sampled_from([1, 0xFFFFFFF0]))
def test_random_commands_against_a_shadow_disk(data, session, cmd_sn):
    ends = Split(session, ConnectionParams(max_recv_data_segment_length=1000), cmd_sn=cmd_sn)
    shadow, reads = ends.ram.copy(), {}
    step = data.draw(st.integers(1, 5000))

    def cut(stream):
        return [stream[at : at + step] for at in range(0, len(stream), step)]

    for number in range(data.draw(st.integers(1, 12))):
        lba, blocks = data.draw(st.integers(0, 480)), data.draw(st.integers(1, 30))
        if data.draw(st.booleans()):
            written = pattern(blocks * BLOCK, number)
            ends.write(lba, blocks, written, user_data=number)
            assert ends.one(cut).status == 0
            shadow[lba * BLOCK : (lba + blocks) * BLOCK] = written
        else:
            reads[number] = (lba, np.zeros(blocks * BLOCK, np.uint8))
            ends.read(lba, blocks, reads[number][1], user_data=number)
            assert ends.finish(cut)[number].status == 0
            assert np.array_equal(reads[number][1], shadow[lba * BLOCK : (lba + blocks) * BLOCK])
    assert np.array_equal(ends.ram, shadow)
    assert_at_rest(ends)


@pytest.mark.parametrize("cmd_sn", [1, 0x7FFFFFFE, 0xFFFFFFFA])
def test_many_commands_at_once_across_the_wrap_of_every_serial_number(cmd_sn):
    ends = Split(SHORT, CONNECTION, cmd_sn=cmd_sn, stat_sn=cmd_sn, window_size=16)
    buffers = [np.zeros(8 * BLOCK, np.uint8) for _ in range(100)]
    done, number = {}, 0
    ends.ram[:] = pattern(ends.ram.size, 3)
    while len(done) < len(buffers):
        while number < len(buffers) and ends.read(number, 8, buffers[number], user_data=number):
            number += 1
        done |= ends.finish()
    for index, buffer in enumerate(buffers):
        assert np.array_equal(buffer, ends.ram[index * BLOCK : (index + 8) * BLOCK])
    assert_at_rest(ends)


def test_residuals_and_sense_reach_the_session():
    ends = Split()
    ends.submit(scsi.read_16(0, 1), READ, np.zeros(4 * BLOCK, np.uint8))
    done = ends.one()
    assert (done.status, done.received, done.residual) == (0, BLOCK, 3 * BLOCK)
    ends.submit(scsi.read_16(0, 4), READ, np.zeros(BLOCK, np.uint8))
    assert ends.one().residual == -3 * BLOCK
    ends.read(511, 4, np.zeros(4 * BLOCK, np.uint8))
    done = ends.one()
    assert done.status == 2
    assert done.sense[0] & 0x7F in (0x70, 0x72)
    assert_at_rest(ends)


class Scripted(Split):
    """A pair of halves whose target is the test."""

    def __init__(self, session=SESSION, **options):
        super().__init__(session, ConnectionParams(max_recv_data_segment_length=8192), **options)
        self.next_stat_sn, self.limit = self.stat_sn, self.cmd_sn + self.window_size - 1
        self.data = pattern(16 * BLOCK)
        self.log = bytearray()

    def give(self, opcode, data=b"", *, turn=True, **fields):
        counted = fields.pop("counted", True)
        fields.setdefault("stat_sn", self.next_stat_sn if counted else 0)
        self.next_stat_sn += counted
        fields.setdefault("exp_cmd_sn", self.cmd_sn)
        fields.setdefault("max_cmd_sn", self.limit & 0xFFFFFFFF)
        self.lower.receive(encode_pdu(opcode, data, **fields))
        if turn:
            self.turn()

    def turn(self):
        """Everything but the target, until nothing moves; what went out, as PDUs."""
        sent = b""
        for _ in range(6):
            sent += self.step()
        self.log += sent
        return pdus_of(sent)

    def done(self):
        return list(self.initiator.completions())

    def part(self, blocks=16):
        return self.data[: blocks * BLOCK]

    def tmf(self):
        header = encode_pdu(Opcode.TASK_MANAGEMENT_REQUEST, immediate=1, itt=NO_TAG, function=1)
        return self.initiator.send_control(header, user_data=7)


def test_sense_data_of_every_length_is_carried_whole():
    for length in (1, 18, 96, 252):
        ends = Scripted()
        tag = ends.submit(scsi.read_10(0, 1), READ, ends.part(1))
        ends.turn()
        sense = pattern(length, length).tobytes()
        ends.give(
            Opcode.SCSI_RESPONSE, length.to_bytes(2, "big") + sense, itt=tag, status=2, response=0
        )
        (done,) = ends.done()
        assert (done.result, done.status, done.sense) == (0, 2, sense)


def test_pings_of_both_sides_are_answered():
    ends = Scripted()
    tag = ends.initiator.send_control(encode_pdu(Opcode.NOP_OUT, immediate=1), b"abc", 5)
    ((header, data),) = ends.turn()
    assert (header.opcode, header.itt, data) == (Opcode.NOP_OUT, tag, b"abc")
    ends.give(Opcode.NOP_IN, b"abc", itt=tag, ttt=NO_TAG)
    (done,) = ends.done()
    assert (done.user_data, done.result) == (5, 0)
    ends.give(Opcode.NOP_IN, itt=NO_TAG, ttt=0x77, counted=False, stat_sn=0, turn=False)
    ((header, _),) = ends.turn()
    assert (header.itt, header.ttt, header.immediate) == (NO_TAG, 0x77, 1)
    assert_at_rest(ends)


def test_a_request_that_takes_a_cmd_sn_counts_for_what_follows():
    ends = Scripted()
    ends.initiator.send_control(encode_pdu(Opcode.NOP_OUT))
    ends.turn()
    ends.give(Opcode.NOP_IN, itt=NO_TAG, ttt=0x77, counted=False, turn=False)
    ((answer, _),) = ends.turn()
    assert answer.cmd_sn == ends.cmd_sn + 1


def test_a_text_exchange_keeps_its_tag_until_the_last_answer():
    ends = Scripted()
    header = encode_pdu(Opcode.TEXT_REQUEST, ttt=NO_TAG, itt=NO_TAG)
    tag = ends.initiator.send_control(header, b"SendTargets=All\0")
    ends.turn()
    ends.give(Opcode.TEXT_RESPONSE, b"TargetName=a\0", itt=tag, ttt=9, final=0)
    (first,) = ends.initiator.controls()
    assert (first.header.ttt, first.data) == (9, b"TargetName=a\0")
    again = encode_pdu(Opcode.TEXT_REQUEST, ttt=9, itt=tag)
    assert ends.initiator.send_control(again) == tag
    ((asked, _),) = ends.turn()
    assert (asked.itt, asked.ttt) == (tag, 9)
    ends.give(Opcode.TEXT_RESPONSE, b"TargetName=b\0", itt=tag, ttt=NO_TAG)
    (last,) = ends.initiator.controls()
    assert last.data == b"TargetName=b\0"
    assert_at_rest(ends)


def test_task_management_async_and_reject_reach_the_session_in_order():
    ends = Scripted()
    tag = ends.tmf()
    ((header, _),) = ends.turn()
    assert (header.opcode, header.itt) == (Opcode.TASK_MANAGEMENT_REQUEST, tag)
    ends.give(Opcode.ASYNC_MESSAGE, itt=NO_TAG, async_event=1)
    ends.give(Opcode.TASK_MANAGEMENT_RESPONSE, itt=tag, response=0)
    ends.give(Opcode.REJECT, bytes(48), itt=NO_TAG, reject_reason=4)
    seen = [control.header.opcode for control in ends.initiator.controls()]
    assert seen == [Opcode.ASYNC_MESSAGE, Opcode.TASK_MANAGEMENT_RESPONSE, Opcode.REJECT]
    assert_at_rest(ends)


def test_pdus_for_the_session_wait_for_a_lent_buffer():
    ends = Scripted(lent=0, lends_again=False)
    for event in (1, 2):
        ends.give(Opcode.ASYNC_MESSAGE, itt=NO_TAG, async_event=event)
    assert not list(ends.initiator.controls())
    for event in (1, 2):
        ends.lent = 1
        ends.turn()
        (control,) = ends.initiator.controls()
        assert control.header.async_event == event
    assert_at_rest(ends)


def test_the_session_keeps_slots_for_what_comes_in_lent_buffers():
    ends = Scripted(control_slots=16)
    while ends.tmf() is not None:
        pass
    for _ in range(4):
        ends.give(Opcode.ASYNC_MESSAGE, itt=NO_TAG, async_event=1, turn=False)
    ends.tell()
    ends.take()  # before the engine has copied a single request
    assert ends.over == 0
    assert len(list(ends.initiator.controls())) == 4


@pytest.mark.parametrize("cmd_sn", [1, 0x80000000, 0xFFFFFFFF])
def test_a_window_that_closes_is_opened_by_a_ping_alone(cmd_sn):
    ends = Scripted(cmd_sn=cmd_sn, window_size=1)
    tag = ends.submit(scsi.read_10(0, 1), READ, ends.part(1))
    assert ends.submit(scsi.read_10(0, 1), READ, ends.part(1)) is None
    ends.turn()
    ends.limit = cmd_sn + 1
    ends.give(
        Opcode.NOP_IN, itt=NO_TAG, ttt=NO_TAG, counted=False, exp_cmd_sn=(cmd_sn + 1) & NO_TAG
    )
    assert ends.submit(scsi.read_10(0, 1), READ, ends.part(1)) is not None
    ends.turn()
    ends.give(Opcode.DATA_IN, bytes(BLOCK), itt=tag, has_status=1)
    assert [done.itt for done in ends.done()] == [tag]


def test_commands_with_header_segments_are_sent_with_them():
    ends = Scripted()
    segments = pattern(20)
    start = ends.home.size - EXTRA
    ends.home[start : start + 20] = segments
    tag = ends.submit(scsi.read_10(0, 1), READ, ends.part(1))
    assert attach_ahs(ends.mirror, tag, ends.mirror + start, 20) == 0
    stream = b"".join(ends.step() for _ in range(3))
    assert stream[4] == 5
    assert stream[48:68] == segments.tobytes()


# --- posts that find no room, and posts that are refused -------------------------------------


def test_a_post_that_found_no_room_is_offered_again():
    ends = Split()
    for number in range(5):
        ends.write(number, 1, pattern(BLOCK, number), user_data=number)
    for _ in range(20):
        ends.post_all(room=1)
        ends.deliver()
        ends.move(ends.lower, ends.target, ends.to_target)
    assert set(ends.finish()) == set(range(5))
    assert [header.cmd_sn for header, _ in ends.sent_by_initiator()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("status", [-errno.EINVAL, -errno.EFAULT, -errno.ENOBUFS, -errno.EEXIST])
def test_a_refused_command_fails_alone_and_leaves_no_gap_in_cmd_sn(status):
    ends = Split(refusals={1: status})
    for number in range(4):
        ends.write(number, 1, pattern(BLOCK, number), user_data=number)
    done = ends.finish()
    assert {number: each.result for number, each in done.items()} == {0: 0, 1: status, 2: 0, 3: 0}
    assert np.array_equal(
        ends.ram[2 * BLOCK : 4 * BLOCK], np.concatenate([pattern(BLOCK, 2), pattern(BLOCK, 3)])
    )
    assert not ends.ram[BLOCK : 2 * BLOCK].any()
    assert ends.over == 0
    assert_at_rest(ends)


def test_another_status_of_a_command_means_the_connection():
    ends = Split(refusals={0: -errno.ECONNRESET})
    ends.read(0, 1, np.zeros(BLOCK, np.uint8), user_data=3)
    ends.run()
    assert ends.over == -errno.ECONNRESET
    assert not list(ends.initiator.completions()), "the session decides what becomes of it"
    ends.initiator.fail_all(-errno.ECONNRESET)
    (done,) = ends.initiator.completions()
    assert (done.user_data, done.result) == (3, -errno.ECONNRESET)


# --- cancelling ------------------------------------------------------------------------------


def data_in(ends, tag, data, start=0, sn=0, **fields):
    fields = {"final": 0, "counted": False, **fields}
    ends.give(Opcode.DATA_IN, data, itt=tag, buffer_offset=start, data_sn=sn, **fields)


def r2t(ends, tag, start, length, sn=0):
    ends.give(
        Opcode.R2T, itt=tag, ttt=5, counted=False, stat_sn=ends.next_stat_sn, r2t_sn=sn,
        buffer_offset=start, desired_data_transfer_length=length,
    )  # fmt: skip


def not_posted(ends, tag):
    pass


def posted(ends, tag):
    ends.post_all()


def delivered(ends, tag):
    ends.post_all()
    ends.deliver()


def sent(ends, tag):
    ends.turn()


def half_of_the_data_here(ends, tag):
    ends.turn()
    data_in(ends, tag, pattern(4096, 8).tobytes())


def half_of_a_pdu_here(ends, tag):
    """The rest of the PDU comes later, so the buffer is not free before."""
    ends.turn()
    pdu = encode_pdu(
        Opcode.DATA_IN, pattern(4096, 8).tobytes(), itt=tag, stat_sn=0, final=0,
        exp_cmd_sn=ends.cmd_sn, max_cmd_sn=ends.limit,
    )  # fmt: skip
    ends.lower.receive(pdu[:2000])
    ends.rest = pdu[2000:]


READ_STAGES = [not_posted, posted, delivered, sent, half_of_the_data_here, half_of_a_pdu_here]


@pytest.mark.parametrize("stage", READ_STAGES)
def test_a_read_cancelled_at_any_stage_ends_once_and_its_buffer_rests(stage):
    ends = Scripted()
    ends.rest = b""
    tag = ends.submit(scsi.read_10(0, 16), READ, ends.part(), user_data=4)
    stage(ends, tag)
    assert ends.initiator.cancel(tag)
    assert not ends.initiator.cancel(tag)
    ends.turn()
    if ends.rest:
        assert not ends.done(), "the buffer is still being received into"
        ends.lower.receive(ends.rest)
        ends.turn()
    (done,) = ends.done()
    assert (done.user_data, done.result) == (4, -errno.ECANCELED)
    assert_at_rest(ends)
    assert [header.cmd_sn for header, _ in pdus_of(ends.log)] == [ends.cmd_sn], "a gap in CmdSN"
    before = ends.data.copy()
    with pytest.raises(RemoteProtocolError, match="task tag"):
        data_in(ends, tag, bytes(4096), 0 if stage is not half_of_the_data_here else 4096)
    assert np.array_equal(ends.data, before)


def solicited(ends, tag):
    ends.turn()
    r2t(ends, tag, 0, 4096)


def half_of_an_r2t_sent(ends, tag):
    """Two of its Data-Outs are made and lie in the transmit queue, sent to a part."""
    ends.turn()
    ends.give(
        Opcode.R2T, itt=tag, ttt=5, counted=False, stat_sn=ends.next_stat_sn, turn=False,
        desired_data_transfer_length=8192,
    )  # fmt: skip


@pytest.mark.parametrize("stage", [not_posted, posted, delivered, sent, solicited,
                                   half_of_an_r2t_sent])  # fmt: skip
def test_a_write_cancelled_at_any_stage_ends_once_and_after_its_data_left(stage):
    session = replace(SHORT, max_burst_length=8192, initial_r2t=True, immediate_data=False)
    ends = Scripted(session, tx_entries=2)
    tag = ends.submit(scsi.write_10(0, 16), WRITE, ends.part(), user_data=4)
    stage(ends, tag)
    assert ends.initiator.cancel(tag)
    ends.turn()
    (done,) = ends.done()
    assert (done.user_data, done.result) == (4, -errno.ECANCELED)
    assert_at_rest(ends)
    assert pdus_of(ends.log), "the command was to be sent, for its CmdSN"


def test_a_status_before_the_data_is_sent_waits_for_it():
    ends = Scripted(replace(SHORT, max_burst_length=8192), tx_entries=2)
    tag = ends.submit(scsi.write_10(0, 16), WRITE, ends.part(), user_data=4)
    ends.turn()
    ends.give(
        Opcode.R2T, itt=tag, ttt=5, counted=False, stat_sn=ends.next_stat_sn, turn=False,
        buffer_offset=0, desired_data_transfer_length=8192,
    )  # fmt: skip
    ends.give(Opcode.SCSI_RESPONSE, itt=tag, status=2, turn=False)
    ends.tell()
    ends.take()
    assert not ends.done(), "its data was not sent yet"
    assert ends.initiator.cancel(tag), "the session has not heard of the status"
    ends.turn()
    (done,) = ends.done()
    assert done.result == -errno.ECANCELED
    assert_at_rest(ends)


def test_a_cancel_that_comes_too_late_changes_nothing():
    ends = Split()
    back = np.zeros(BLOCK, np.uint8)
    tag = ends.read(0, 1, back, user_data=1)
    ends.post_all()
    ends.deliver()
    ends.move(ends.lower, ends.target, ends.to_target)
    ends.move(ends.target, ends.lower, ends.to_initiator)
    ends.tell()  # its event is on the way
    assert ends.initiator.cancel(tag)
    ends.post_all()
    (done,) = ends.finish().values()
    assert done.result == -errno.ECANCELED
    assert_at_rest(ends)


# --- the connection is over ------------------------------------------------------------------


@pytest.mark.parametrize("stage", READ_STAGES)
def test_when_the_connection_is_over_every_post_has_its_event(stage):
    ends = Scripted()
    tag = ends.submit(scsi.read_10(0, 16), READ, ends.part(), user_data=4)
    stage(ends, tag)
    ends.initiator.send_control(encode_pdu(Opcode.NOP_OUT, immediate=1), b"", 5)
    ends.tmf()
    ends.post_all()
    ends.deliver()
    pending = len(ends.open)
    assert pending == 2, "the command and the ping"
    ends.end(-errno.ECONNRESET)
    assert not ends.open
    assert free_tasks(ends.lower.address) == ends.tasks
    ends.take()
    assert ends.over == -errno.ECONNRESET
    before = ends.data.copy()
    ends.initiator.fail_all(-errno.ECONNRESET)
    done = {each.user_data: each.result for each in ends.done()}
    assert done == {4: -errno.ECONNRESET, 5: -errno.ECONNRESET}
    assert np.array_equal(ends.data, before)


def test_the_end_comes_once():
    ends = Scripted()
    ends.submit(scsi.read_10(0, 16), READ, ends.part(), user_data=4)
    ends.turn()
    ends.end(-errno.EPIPE)
    end_all(ends.lower.address, -errno.EPIPE)
    ends.tell()  # KeyError if the command had a second event
    assert len(ends.events) == 1


# --- posts of a hostile session --------------------------------------------------------------


def command(ends, **changes):
    """A sane COMMAND of four blocks, changed."""
    fields = dict.fromkeys(mover.POST.names, 0)
    fields |= {
        "opcode": mover.COMMAND,
        "user_data": 99,
        "address": address_of(ends.data),
        "length": 2048,
        "arg1": 0x10000 | ends.cmd_sn << 32,
        "arg2": READ,
        "more0": 0x28,
        "more2": 0,
    }
    return fields | changes


REFUSED = [
    ("an ITT beyond the table", {"arg1": 0x10000 | 64}),
    ("the reserved ITT", {"arg1": 0xFFFFFFFF}),
    ("both directions", {"arg2": READ | WRITE}),
    ("data without a direction", {"arg2": 0}),
    ("a reserved flag", {"arg2": READ | 0x80}),
    ("a gather list", {"arg2": READ | 1 << 20}),
    ("all bits of the flags", {"arg2": 0xFFFFFFFF}),
    ("sense below home", {"more2": -1}),
    ("sense beyond home", {"more2": 1 << 40}),
    ("sense across the end of home", {"more2": "edge"}),
    ("sense at the highest address", {"more2": (1 << 63) - 1}),
    ("four bytes of segments", {"arg2": READ | 4 << 8}),
    ("segments of no whole words", {"arg2": READ | 10 << 8}),
    ("segments that are too long", {"arg2": READ | 1024 << 8}),
    ("segments below home", {"arg2": READ | 8 << 8, "more3": -8}),
    ("segments beyond home", {"arg2": READ | 8 << 8, "more3": 1 << 62}),
]


@pytest.mark.parametrize(("changes"), [case[1] for case in REFUSED],
                         ids=[case[0] for case in REFUSED])  # fmt: skip
def test_a_command_that_cannot_be_is_refused_and_leaves_no_trace(changes):
    ends = Scripted()
    changes = {
        name: ends.home.size - SENSE_ROOM + 1 if value == "edge" else value
        for name, value in changes.items()
    }
    before = ends.lower_memory.copy()
    assert ends.ask(command(ends, **changes)) == -errno.EINVAL
    assert np.array_equal(ends.lower_memory, before)


def test_a_tag_in_use_is_refused_for_every_kind_of_request():
    ends = Scripted()
    assert ends.ask(command(ends)) > 0
    assert ends.ask(command(ends)) == -errno.EEXIST
    for opcode in (Opcode.NOP_OUT, Opcode.TASK_MANAGEMENT_REQUEST):
        slot = ends.home[-EXTRA:]
        slot[:48] = np.frombuffer(encode_pdu(opcode, immediate=1, itt=0x10000), np.uint8)
        fields = dict.fromkeys(mover.POST.names, 0)
        fields |= {"opcode": mover.CONTROL, "more0": ends.home.size - EXTRA}
        assert ends.ask(fields) == -errno.EEXIST
    tag = ends.tmf()
    ends.post_all()
    ends.deliver()
    slot[:48] = np.frombuffer(encode_pdu(Opcode.NOP_OUT, immediate=1, itt=tag), np.uint8)
    assert ends.ask(fields) == -errno.EEXIST, "a ping with the tag of a request has no event"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"arg2": 1 << 31}, -errno.EMSGSIZE),
        ({"arg2": 2049}, -errno.EMSGSIZE),
        ({"more0": -1}, -errno.EINVAL),
        ({"more0": 1 << 62}, -errno.EINVAL),
        ({"more0": "edge"}, -errno.EINVAL),
        ({"opcode": mover.GET}, -errno.EOPNOTSUPP),
        ({"opcode": 0}, -errno.EOPNOTSUPP),
        ({"opcode": 255}, -errno.EOPNOTSUPP),
        ({"opcode": mover.CANCEL, "arg1": 3}, -errno.ENOENT),
        ({"opcode": mover.CANCEL, "arg1": -1}, -errno.ENOENT),
    ],
)
def test_other_posts_that_cannot_be_are_refused(changes, status):
    ends = Split()
    fields = dict.fromkeys(mover.POST.names, 0) | {"opcode": mover.CONTROL}
    fields |= {
        name: ends.home.size - CONTROL_DATA + 1 if value == "edge" else value
        for name, value in changes.items()
    }
    before = ends.lower_memory.copy()
    assert ends.ask(fields) == status
    assert np.array_equal(ends.lower_memory, before)


def test_requests_beyond_the_slots_are_refused_and_the_tags_stay_free():
    ends = Split(control_slots=4)
    slot = ends.home[-EXTRA:]
    statuses = []
    for index in range(6):
        header = encode_pdu(Opcode.TASK_MANAGEMENT_REQUEST, immediate=1, itt=0x10000 | index)
        slot[:48] = np.frombuffer(header, np.uint8)
        fields = dict.fromkeys(mover.POST.names, 0)
        fields |= {"opcode": mover.CONTROL, "more0": ends.home.size - EXTRA}
        statuses.append(ends.ask(fields))
    assert statuses == [0] * 4 + [-errno.EAGAIN] * 2
    assert free_tasks(ends.lower.address) == ends.tasks - 4
    assert initiator_at(ends.lower.address)[0]["active"] == 4


WORDS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, -1, 8, 48, 64, 255, 0x10000, 0x10001, 2**31, 2**32 - 1, 2**63 - 1]),
)
POSTS = st.fixed_dictionaries(
    {
        "opcode": st.sampled_from([mover.COMMAND, mover.CONTROL, mover.CANCEL, 0, mover.ANSWER]),
        "length": st.sampled_from([0, 0, 1, 512, 2048]),
        "arg0": WORDS,
        "arg1": st.one_of(WORDS, st.integers(0, 5)),
        "arg2": st.one_of(
            st.sampled_from([READ, WRITE, 0, 1, READ | 8 << 8]), st.integers(0, 2**32 - 1)
        ),
        **{f"more{i}": st.one_of(WORDS, st.integers(0, 5000)) for i in range(6)},
    }
)


@FUZZ
@given(posts=st.lists(POSTS, min_size=1, max_size=30), noise=st.integers(0, 99))
def test_any_posts_at_all_end_once_each_and_touch_nothing_they_may_not(posts, noise):
    ends = Split(SHORT, tx_entries=4, control_slots=6, tasks=8)
    area = pattern(4096, 1)
    before = area.copy()
    ends.home[:] = pattern(ends.home.size, noise)  # headers and segments are what lies there
    home = ends.home.copy()
    for fields in posts:
        ends.ask({"flags": 0, "user_data": 5, "address": address_of(area) + 1024, **fields})
        assert len(ends.lower.data_to_send()) < 1 << 20
        ends.tell()
    ends.end(-errno.EPIPE)
    assert not ends.open, "posts without an event"
    assert free_tasks(ends.lower.address) == ends.tasks
    assert np.array_equal(area, before), "nothing came, so nothing may be written"
    assert np.array_equal(ends.home, home)
