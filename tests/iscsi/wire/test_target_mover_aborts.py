"""Aborts and ends at every stage of a transfer through both halves of a target: each post ends
once, what it named is not touched afterwards, and tasks, buffers and the command window come back.
"""

import errno
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import bhs, mover, scsi
from iscsi.wire import sequencing as sn
from iscsi.wire import target as doors
from iscsi.wire.bhs import Opcode
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import port_at
from iscsi.wire.target_task import STATE_DATA_OUT, target_at
from tests.iscsi.wire import split_target
from tests.iscsi.wire.full_feature import BLOCK, examples, pattern, pdus_of
from tests.iscsi.wire.split_target import Split, abort_answer, ask_abort, end_all, unsettled

SMALL = ConnectionParams(max_recv_data_segment_length=1024)
ASKED = SessionParams(first_burst_length=1024, max_burst_length=2048, max_outstanding_r2t=2)
UNASKED = SessionParams(initial_r2t=False, first_burst_length=1500, max_burst_length=2048)
SHORT = SessionParams(first_burst_length=512, max_burst_length=512)
KINDS = ["write", "read", "cold write", "cold read"]
BLOCKS_MOVED = 9
SIZE = BLOCKS_MOVED * BLOCK
MODE_SELECT = bytes([0x55]) + bytes(15)
STEPS_MAX = 400


class Stepped(Split):
    """A target in two halves that goes on by small steps: a few bytes, or one turn of a half."""

    def begin(self, kind, **options):
        self.host_answer = pattern(SIZE, 5).tobytes()
        self.serve = self.serve_data
        self.data = pattern(SIZE, 3)
        self.back = np.zeros(SIZE, np.uint8)
        if kind == "write":
            return self.write(0, BLOCKS_MOVED, self.data, **options)
        if kind == "read":
            return self.read(0, BLOCKS_MOVED, self.back, **options)
        if kind == "cold write":
            return self.submit(MODE_SELECT, bhs.FLAG_WRITE, self.data, **options)
        return self.submit(scsi.inquiry(), bhs.FLAG_READ, self.back, **options)

    def serve_data(self, what):
        if hasattr(what, "task_id"):
            is_read = what.flags & bhs.FLAG_READ
            self.target.respond(what.task_id, data=self.host_answer if is_read else b"")

    def steps(self, piece=700):
        """Every small step until nothing moves; yields between them."""
        for _ in range(STEPS_MAX):
            moved = 0
            for sender, receiver, log in (
                (self.initiator, self.engine, self.to_target),
                (self.engine, self.initiator, self.to_initiator),
            ):
                stream = sender.data_to_send()
                log.extend(stream)
                for at in range(0, len(stream), piece):
                    receiver.receive(stream[at : at + piece])
                    yield
                moved += len(stream)
                for part in (self.tell_host, self.serve_host, self.send_posts):
                    moved += part()
                    yield
            if not moved:
                return
        raise AssertionError("too many steps: the two ends never fall silent")

    def advance(self, count):
        """Go `count` steps. Whether it was not over before."""
        self.going = self.steps()
        return len(list(itertools.islice(self.going, count))) == count

    def window(self):
        mine = target_at(self.engine.address)[0]
        return sn.window_size(int(mine["exp_cmd_sn"]), int(mine["max_cmd_sn"]))


def every_stage(make, kind, act):
    """Do `act` after each number of steps, on a new pair each time, until the transfer is over."""
    for stage in range(STEPS_MAX):
        pair = make()
        tag = pair.begin(kind, user_data=7)
        goes_on = pair.advance(stage)
        act(pair, tag)
        if not goes_on:
            return stage
    raise AssertionError("the transfer has too many stages")


def ends_clean(pair):
    """What follows an abort: everything comes back, and the next command is served."""
    list(pair.going)
    pair.run()
    list(pair.initiator.completions())
    pair.initiator.fail_all(-errno.ECONNRESET)
    list(pair.initiator.completions())
    pair.check_at_rest()
    assert pair.window() == pair.window_size
    pair.initiator = None


@pytest.mark.parametrize("session", [ASKED, UNASKED], ids=["asked", "unasked"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hot", [False, True], ids=["host", "engine"])
def test_a_task_aborted_at_any_stage_gives_everything_back_once(kind, session, hot):
    def act(pair, tag):
        known = pair.target.abort_task(tag)
        number = 0 if known else ask_abort(pair.target.address, tag, 0, 0)
        pair.turn_target()
        if not known:
            known = abort_answer(pair.target.address, number) == 1
        before = pair.ram.copy()
        list(pair.going)
        if known:
            assert np.array_equal(pair.ram, before), "data was placed after the abort"
            assert not list(pair.initiator.completions())
        ends_clean(pair)

    make = lambda: Stepped(session, SMALL, hot=hot)  # noqa: E731
    assert every_stage(make, kind, act) > 3


@pytest.mark.parametrize("session", [ASKED, UNASKED], ids=["asked", "unasked"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_tasks_aborted_at_any_stage_give_everything_back_once(kind, session):
    def act(pair, tag):
        pair.target.abort_lun()
        assert pair.target.aborted_work() >= 1
        assert pair.target.aborted_work(0) >= 1
        list(pair.going)
        pair.run()
        assert pair.target.aborted_work() == 0
        ends_clean(pair)

    make = lambda: Stepped(session, SMALL)  # noqa: E731
    assert every_stage(make, kind, act) > 3


@pytest.mark.parametrize("session", [ASKED, UNASKED], ids=["asked", "unasked"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hot", [False, True], ids=["host", "engine"])
def test_a_connection_that_ends_at_any_stage_ends_each_post_once(kind, session, hot):
    def act(pair, tag):
        open_before = [posted for posted in pair.posts if posted.events == 0]
        end_all(pair.engine.address, -errno.ECONNRESET)
        end_all(pair.engine.address, -errno.EPIPE)
        pair.tell_host()
        for posted in open_before:
            assert posted.outcome in (0, -errno.ECONNRESET)
        before = pair.ram.copy()
        assert doors.rx_bytes(pair.engine.address, pair.ram.ctypes.data, 100) != 0
        assert pair.engine.data_to_send() == b""
        pair.send_posts()  # whatever the host still asks is over at once
        assert all(posted.events == 1 for posted in pair.posts)
        assert np.array_equal(pair.ram, before)
        pair.target.abort_lun()
        pair.send_posts()
        pair.target.drop_buffers()
        assert pair.shared.taken == pair.below.taken == 0
        assert split_target.posts_open(pair.target.address) == 0
        assert (pair.engine_luns["under_way"] == 0).all()

    make = lambda: Stepped(session, SMALL, hot=hot)  # noqa: E731
    assert every_stage(make, kind, act) > 3


# --- what an abort waits for -----------------------------------------------------------------


def test_an_abort_is_over_when_the_last_byte_of_its_tasks_is_sent():
    pair = Stepped(SHORT, SMALL, tx_entries=2)
    pair.begin("cold read")
    pair.engine.receive(pair.initiator.data_to_send())
    pair.turn_target()
    assert doors.tx_next(pair.engine.address) > 0  # made, and not handed over
    pair.begin("write", user_data=2)
    pair.engine.receive(pair.initiator.data_to_send())
    pair.target.abort_lun(0)
    pair.turn_target()
    (answer,) = pair.asked(mover.ANSWER)
    (abort,) = pair.asked(mover.ABORT)
    assert answer.events == abort.events == 0
    assert pair.shared.taken == 1, "the buffer is still sent from"
    assert pair.target.aborted_work(0) == 1
    assert pair.target.aborted_work(1) == 0
    pair.engine.data_to_send()
    pair.turn_target()
    assert abort.outcome == 0
    assert pair.target.aborted_work() == 0
    assert pair.shared.taken == 0


def test_a_read_that_is_aborted_half_sent_ends_with_enoent():
    pair = Stepped(SHORT, SMALL, tx_entries=2)
    tag = pair.begin("cold read")
    pair.engine.receive(pair.initiator.data_to_send())
    pair.turn_target()
    assert doors.tx_next(pair.engine.address) > 0
    assert not pair.target.abort_task(tag)  # here it has answered
    number = ask_abort(pair.target.address, tag, 0, 0)
    pair.turn_target()
    (answer,) = pair.asked(mover.ANSWER)
    assert answer.events == 0
    assert abort_answer(pair.target.address, number) == -errno.EAGAIN
    sent = pdus_of(pair.engine.data_to_send())
    assert [header.opcode for header, _ in sent] == [Opcode.DATA_IN] * 2
    pair.turn_target()
    assert answer.outcome == -errno.ENOENT
    assert abort_answer(pair.target.address, number) == 1
    assert pair.engine.data_to_send() == b""
    pair.check_at_rest()


# --- what crosses an abort on its way --------------------------------------------------------


def test_a_command_shown_before_the_abort_was_carried_out_is_not_done():
    pair = Split(ASKED, SMALL, host_hot=False)
    pair.submit(scsi.test_unit_ready())
    pair.engine.receive(pair.initiator.data_to_send())
    pair.tell_host_later()
    pair.target.abort_lun(0)
    pair.run()
    assert not pair.served
    pair.check_at_rest()
    pair.submit(scsi.test_unit_ready(), user_data=2)
    assert pair.finish()[2].status == 0


def test_a_command_that_had_to_wait_until_its_abort_was_over_is_not_done():
    pair = Split(ASKED, SMALL, host_hot=False)
    pair.submit(scsi.test_unit_ready())
    pair.engine.receive(pair.initiator.data_to_send())
    pair.tell_host_later()
    late = pair.shown.pop()  # as if there had been no room for it
    pair.target.abort_lun(0)
    pair.run()
    assert pair.target.aborted_work() == 0
    pair.shown.append(late)
    pair.run()
    assert not pair.served
    pair.check_at_rest()


def test_a_command_shown_after_the_abort_was_carried_out_is_done():
    pair = Stepped(SHORT, SMALL, tx_entries=2)
    pair.begin("cold read")
    pair.engine.receive(pair.initiator.data_to_send())
    pair.turn_target()
    assert doors.tx_next(pair.engine.address) > 0
    pair.begin("cold write", user_data=2)
    pair.engine.receive(pair.initiator.data_to_send())
    pair.tell_host_later()  # shown, but the abort comes first
    pair.target.abort_lun(0)
    pair.send_posts()
    pair.submit(scsi.test_unit_ready(), user_data=3)
    pair.engine.receive(pair.initiator.data_to_send())
    pair.tell_host()
    pair.serve_host()
    (abort,) = pair.asked(mover.ABORT)
    assert abort.events == 0, "its data is still on the way"
    assert [command.cdb[0] for command in pair.served] == [0x12, 0x00]
    pair.run()
    assert [done.user_data for done in pair.initiator.completions()] == [3]
    pair.check_at_rest()


def test_an_abort_spares_what_came_after_the_request():
    pair = Split(ASKED, SMALL, host_hot=False)
    held = []
    pair.serve = held.append
    for index in range(4):
        pair.submit(scsi.test_unit_ready(), user_data=index)
    pair.run()
    assert len(held) == 4
    assert pair.target.abort_lun(0, before=3) == 2  # CmdSN 1 and 2
    pair.run()
    for command in held:
        pair.target.respond(command.task_id)
    done = pair.finish()
    assert sorted(done) == [2, 3]
    pair.check_at_rest()


def test_a_task_the_host_has_not_seen_is_aborted_in_the_engine():
    pair = Split(UNASKED, SMALL, host_hot=False)
    data = pattern(1500)
    tag = pair.submit(MODE_SELECT, bhs.FLAG_WRITE, data)
    stream = pair.initiator.data_to_send()
    pair.engine.receive(stream[: 48 + 1024])  # immediate data, and unsolicited data is to come
    pair.turn_target()
    assert not pair.notified
    assert not pair.target.abort_task(tag)
    number = ask_abort(pair.target.address, tag, 1, 2)
    assert abort_answer(pair.target.address, number) == -errno.EAGAIN
    pair.turn_target()
    assert abort_answer(pair.target.address, number) == 1
    pair.engine.receive(stream[48 + 1024 :])
    pair.run()
    assert not pair.notified
    pair.check_at_rest()


def test_a_task_that_has_not_come_counts_as_received_and_another_does_not_exist():
    pair = Split(ASKED, SMALL, host_hot=False)
    ask = lambda *numbers: ask_abort(pair.target.address, *numbers)  # noqa: E731
    coming, unknown = ask(500, 1, 2), ask(501, 1000, 2)
    pair.turn_target()
    assert abort_answer(pair.target.address, coming) == 1
    assert abort_answer(pair.target.address, unknown) == 0
    pair.submit(scsi.test_unit_ready())  # CmdSN 1: it is over already
    pair.run()
    assert not pair.served
    assert unsettled(pair.target.address) == 0


def test_a_task_that_the_engine_ended_alone_ends_at_the_host_too():
    pair = Stepped(ASKED, SMALL)
    pair.begin("write")
    pair.engine.receive(pair.initiator.data_to_send())
    pair.turn_target()
    (get,) = pair.asked(mover.GET)
    post = np.zeros(1, mover.POST)
    post[0]["opcode"], post[0]["arg0"], post[0]["arg1"] = mover.ABORT, -1, -1
    post[0]["user_data"] = 3
    assert pair.ask(post).outcome == 0
    assert int(post[0]["arg0"]) == 1
    pair.run()
    assert get.outcome == -errno.ENOENT
    pair.check_at_rest()


# --- data that must not be placed any more ---------------------------------------------------


@pytest.mark.parametrize("cut", [0, 30, 48, 300])
@pytest.mark.parametrize("way", ["task aborted", "refused"])
def test_a_get_that_is_stopped_places_nothing_more_and_is_answered_at_its_end(way, cut):
    pair = Stepped(SessionParams(first_burst_length=512, max_burst_length=4096), SMALL)
    pair.begin("write")
    pair.engine.receive(pair.initiator.data_to_send())
    pair.turn_target()
    pair.initiator.receive(pair.engine.data_to_send())
    stream = pair.initiator.data_to_send()
    cut += 1024 + 48
    pair.engine.receive(stream[:cut])
    assert pair.target.half_written(0, pair.ram.ctypes.data, pair.ram.ctypes.data + BLOCK) == 1
    if way == "refused":
        assert pair.target.refuse_writes(0, 2, 0x0404) == 1
    else:
        assert pair.target.end_aborted(0) == 1
    assert unsettled(pair.target.address) == 1
    pair.turn_target()
    assert unsettled(pair.target.address) == 0
    (cancel,) = pair.asked(mover.CANCEL)
    assert cancel.outcome == 0
    before = pair.ram.copy()
    pair.engine.receive(stream[cut:])
    done = pair.one()
    assert done.status == (2 if way == "refused" else 0x40)
    assert np.array_equal(pair.ram, before)
    pair.check_at_rest()


# --- rings and buffers that are full ---------------------------------------------------------


@settings(max_examples=examples(60), deadline=None)
@given(st.data(), st.sampled_from([ASKED, UNASKED]), st.booleans())
def test_full_rings_and_missing_buffers_only_cost_time(data, session, room):
    pair = Stepped(session, SMALL, host_hot=False, first_burst_room=room)
    pair.serve = lambda what: pair.target.respond(
        what.task_id, data=pattern(900, what.itt).tobytes() if what.flags & 0x40 else b""
    )
    sent, backs = {}, {}
    for index in range(10):
        size = data.draw(st.integers(1, 6000))
        if index % 2:
            sent[pair.submit(MODE_SELECT, bhs.FLAG_WRITE, pattern(size, index))] = size, index
        else:
            back = np.zeros(900, np.uint8)
            backs[pair.submit(scsi.inquiry(), bhs.FLAG_READ, back)] = back
    lent = list(pair.lent)
    pair.lent.clear()
    for _ in range(30):
        pair.ring_room = data.draw(st.integers(0, 3))
        if lent and data.draw(st.booleans()):
            pair.lent.append(lent.pop())
        pair.turn()
    pair.ring_room = 1 << 30
    pair.lent.extend(lent)
    pair.run()
    assert len(list(pair.initiator.completions())) == 10
    for command in pair.served:
        if command.itt in sent:
            size, seed = sent[command.itt]
            assert bytes(command.data) == pattern(size, seed).tobytes()
    for tag, back in backs.items():
        assert np.array_equal(back, pattern(900, tag))
    pair.check_at_rest()


def test_no_room_for_unsolicited_data_has_it_asked_for():
    pair = Split(UNASKED, SMALL, host_hot=False, first_burst_room=False)
    data = pattern(1400)
    pair.submit(MODE_SELECT, bhs.FLAG_WRITE, data)
    pair.run()
    assert bytes(pair.served[0].data) == data.tobytes()


def test_waiting_writes_owe_data_at_the_host_as_in_the_engine():
    pair = Stepped(ASKED, SMALL)
    pair.begin("write")
    pair.engine.receive(pair.initiator.data_to_send())
    pair.turn_target()
    for conn in (pair.engine, pair.target):
        assert (pair.tasks(conn)["state"] == STATE_DATA_OUT).sum() == 1
    assert int(port_at(pair.engine.address)[0]["rx_object"]) == 0
    pair.run()
    pair.check_at_rest()
