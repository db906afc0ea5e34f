"""Commands that end early over a queue pair, at every stage: each buffer is given back once, when
nothing reaches it any more; RDMA operations that have begun are waited for, never raced.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import mover, scsi
from iscsi.wire.iser.records import IserLimits
from iscsi.wire.keys import SessionParams
from iscsi.wire.mover import ONE_TASK, REFUSE
from shm.verbs_numbers import (
    WR_RDMA_READ,
    WR_RDMA_WRITE,
)
from shm.view import address_of
from tests.iscsi.wire.full_feature import BLOCK, WRITE, examples, pattern
from tests.iscsi.wire.iser.pair import Pair
from tests.iscsi.wire.iser.test_flows import pair, write_and_read
from tests.iscsi.wire.split_target import end_all, unsettled

SOLICITED = SessionParams(immediate_data=False)
MODE_SELECT = bytes((0x55,)).ljust(16, b"\0")
ALL = -1


def post(side, opcode, **fields):
    """A POST of the test's own to the target's lower half; its Posted."""
    side.post[:] = 0
    side.post[0]["opcode"] = opcode
    for name, value in fields.items():
        side.post[0][name] = value
    posted = side.ask(side.post)
    posted.fields["user_data"] = 3  # nobody at the host waits for it
    return posted


def settle(both):
    """Let what the test's own posts have ended be told."""
    both.run()
    return both


# --- the initiator's -------------------------------------------------------------------------


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("turns", range(5))
def test_a_cancelled_command_ends_once_after_its_tag_is_gone(turns, remote):
    limits = IserLimits(receives=64, remote_invalidate=remote)
    both = pair(SOLICITED, limits=limits, right={"hot": False})
    both.right.serve_host = lambda: 0  # nobody answers
    buffer = pattern(40 * BLOCK)
    itt = both.left.submit(MODE_SELECT, WRITE, buffer, user_data=1)
    for _ in range(turns):
        both.turn(lambda: 1)
    assert both.left.initiator.cancel(itt)
    done = []
    for _ in range(20):
        both.turn(lambda: 1)
        found = list(both.left.initiator.completions())
        if found:
            assert both.left.qp.tags == {}, "its buffer is open to the target no more"
        done += found
    assert [each.result for each in done] == [-125]


def test_a_cancelled_command_that_was_not_sent_yet_uses_its_number_and_opens_nothing():
    both = pair(SOLICITED)
    itt = both.left.write(0, 40, pattern(40 * BLOCK), user_data=1)
    both.left.post_all()
    both.left.deliver()
    both.left.initiator.cancel(itt)
    both.left.post_all()
    both.left.deliver()
    assert both.left.work() == 1
    both.left.qp.step()
    assert both.left.qp.tags == {}
    assert both.left.qp.messages[0][0] == 0x10
    assert [each.result for each in both.finish().values()] == [-125]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 12)), min_size=1, max_size=8),
    st.booleans(),
    st.integers(0, 3),
)
@settings(max_examples=examples(60), deadline=None)
def test_however_commands_are_cancelled_each_ends_once(commands, remote, pace):
    """With task management, as a session does: the target ends it first."""
    both = pair(
        SessionParams(initial_r2t=False, first_burst_length=16384),
        limits=IserLimits(receives=64, remote_invalidate=remote, depth=2),
        right={"hot": False},
    )
    tags, ended, buffers = {}, {}, []
    for number, (is_write, _) in enumerate(commands):
        buffers.append(pattern(48 * BLOCK, number))
        door = both.left.write if is_write else both.left.read
        tags[number] = door(0, 48, buffers[-1], user_data=number)
    for turn in range(60):
        for number, (_, when) in enumerate(commands):
            if turn == when and number not in ended:
                itt = tags[number]
                if both.right.target.abort_task(itt):
                    settle(both)
                    both.left.initiator.cancel(itt)
        both.turn(lambda: pace)
        for done in both.left.initiator.completions():
            assert done.user_data not in ended
            ended[done.user_data] = done.result
        if len(ended) == len(commands) and turn > 12:
            break
    for done in both.finish().values():
        assert done.user_data not in ended
        ended[done.user_data] = done.result
    assert sorted(ended) == list(range(len(commands)))
    assert set(ended.values()) <= {0, -125}
    assert both.left.qp.tags == {}
    assert not both.left.broken
    assert not both.right.broken
    both.check_at_rest()


# --- the target's ----------------------------------------------------------------------------


def reading(hot=True, depth=16):
    """A WRITE whose RDMA Read is posted and not carried out."""
    both = Pair(
        SOLICITED,
        right_limits=IserLimits(receives=64, depth=depth),
        right_options={"hot": hot},
    )
    both.left.write(0, 40, pattern(40 * BLOCK), user_data=1)
    for _ in range(6):
        both.left.turn()
        both.carry(both.left.qp, None)
        both.right.turn_all()
    (work,) = both.right.qp.sends
    assert work.opcode == WR_RDMA_READ
    return both


@pytest.mark.parametrize("hot", [True, False])
def test_an_abort_is_over_when_the_rdma_read_that_had_begun_is(hot):
    both = reading(hot)
    posted = post(both.right, mover.ABORT, arg0=ALL, arg1=ALL, arg2=1)
    both.right.tell_host()
    assert posted.outcome is None
    assert (both.right.engine_luns["under_way"] == 1).any() == hot
    assert both.right.qp.step()
    both.right.poll()
    both.right.tell_host()
    assert posted.outcome == 0
    assert (both.right.engine_luns["under_way"] == 0).all()
    assert both.right.qp.sends == type(both.right.qp.sends)(), "there is no Response"


def test_an_abort_is_over_at_once_where_nothing_has_begun():
    both = pair(right={"hot": False})
    both.right.serve = lambda command: None
    both.left.submit(scsi.test_unit_ready())
    both.run()
    posted = post(both.right, mover.ABORT, arg0=ALL, arg1=ALL, arg2=1)
    assert posted.outcome == 0


def test_a_unit_is_in_use_until_the_rdma_write_out_of_it_is_over():
    both = pair(right={"hot": True})
    both.left.read(0, 40, np.zeros(40 * BLOCK, np.uint8), user_data=1)
    both.left.turn()
    both.carry(both.left.qp, None)
    both.right.poll()
    both.right.work()
    assert both.right.qp.sends[0].opcode == WR_RDMA_WRITE
    posted = post(both.right, mover.ABORT, arg0=ALL, arg1=ALL, arg2=1)
    both.right.tell_host()
    assert posted.outcome == 0, "its Response is in line already: there is nothing to abort"
    assert (both.right.engine_luns["under_way"] == 1).any()
    assert both.one().status == 0
    assert (both.right.engine_luns["under_way"] == 0).all()


def test_a_cancelled_get_is_over_when_nothing_is_placed_any_more():
    both = reading(hot=False)
    (asked,) = both.right.asked(mover.GET)
    posted = post(both.right, mover.CANCEL, arg0=asked.fields["arg0"])
    both.right.tell_host()
    assert posted.outcome is None
    assert asked.outcome is None
    both.right.qp.step()
    both.right.poll()
    both.right.tell_host()
    assert posted.outcome == 0
    assert asked.outcome == -5
    assert posted.fields["opcode"] == mover.CANCEL


def test_refused_writes_use_their_unit_until_their_rdma_read_is_over():
    both = reading(hot=True)
    sense = 0x0B4400
    posted = post(both.right, mover.ABORT, arg0=0, arg1=sense, flags=REFUSE)
    both.right.tell_host()
    assert posted.outcome is None
    assert (both.right.engine_luns["under_way"] == 1).any()
    done = both.one()
    assert (done.status, done.sense[2], done.sense[12]) == (2, 0x0B, 0x44)
    assert posted.outcome == 0
    assert (both.right.engine_luns["under_way"] == 0).all()


def test_writes_that_wait_for_their_turn_to_be_read_are_refused_at_once():
    both = Pair(
        SOLICITED,
        right_limits=IserLimits(receives=64, depth=1),
        right_options={"hot": True},
    )
    for number in range(3):
        both.left.write(64 * number, 40, pattern(40 * BLOCK, number), user_data=number)
    both.left.turn()
    both.carry(both.left.qp, None)
    both.right.turn_all()
    assert len(both.right.qp.sends) == 1
    posted = post(both.right, mover.ABORT, arg0=0, arg1=0x0B4400, flags=REFUSE)
    assert (both.right.engine_luns["under_way"] == 1).any(), "the one whose read has begun"
    done = both.finish()
    assert [done[number].status for number in range(3)] == [2, 2, 2]
    assert posted.outcome == 0
    assert not both.ram[64 * BLOCK :].any()
    assert (both.right.engine_luns["under_way"] == 0).all()


def test_one_task_is_aborted_and_the_others_go_on():
    both = Pair(
        SOLICITED,
        right_limits=IserLimits(receives=64, depth=1),
        right_options={"hot": True},
    )
    tags = [
        both.left.write(64 * number, 40, pattern(40 * BLOCK, number), user_data=number)
        for number in range(3)
    ]
    both.left.turn()
    both.carry(both.left.qp, None)
    both.right.turn_all()
    post(both.right, mover.ABORT, arg0=-1, arg1=tags[1], arg2=1, flags=ONE_TASK)
    both.run()
    both.left.initiator.cancel(tags[1])
    done = both.finish()
    assert [done[number].result for number in range(3)] == [0, -125, 0]
    assert not both.ram[64 * BLOCK : 104 * BLOCK].any()
    assert both.left.qp.tags == {}


@pytest.mark.parametrize("hot", [True, False])
@pytest.mark.parametrize("turns", range(8))
def test_a_connection_that_ends_at_any_moment_gives_every_buffer_back_once(turns, hot):
    both = pair(SessionParams(initial_r2t=False, first_burst_length=16384), right={"hot": hot})
    buffers = [pattern(96 * BLOCK, number) for number in range(6)]
    for number, buffer in enumerate(buffers):
        door = both.left.write if number % 2 else both.left.read
        door(0, 96, buffer, user_data=number)
    for _ in range(turns):
        both.turn(lambda: 2)
    both.left.poll()  # what is over is told before the rest is flushed
    both.left.qp.broken = both.right.qp.broken = 5
    both.left.broken = both.right.broken = -104
    both.left.end(-104)
    both.left.take()
    end_all(both.right.engine.address, -104)
    while both.right.turn_target():
        pass
    assert both.left.qp.tags == {}
    assert both.left.open == {}
    assert all(posted.events == 1 for posted in both.right.posts)
    assert (both.right.engine_luns["under_way"] == 0).all()
    assert both.right.below.taken == 0
    assert unsettled(both.right.target.address) == 0
    assert address_of(buffers[0])


def test_after_an_abort_the_same_connection_serves_on():
    both = pair(SOLICITED, right={"hot": False})
    both.right.serve_host = lambda: 0
    itt = both.left.submit(MODE_SELECT, WRITE, pattern(8 * BLOCK), user_data=1)
    both.run()
    assert both.right.target.abort_task(itt)
    both.run()
    both.left.initiator.cancel(itt)
    assert [done.result for done in both.finish().values()] == [-125]
    del both.right.serve_host
    write_and_read(both, 40)
    both.check_at_rest()
