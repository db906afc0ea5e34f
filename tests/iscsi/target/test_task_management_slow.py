"""Functions that end commands on which a worker thread is busy: they act at once, and are answered
when nothing of what they ended can reach the medium any more (RFC 7143 §4.2.3.3, SPC-4 §5.13.11).
"""

import threading

import pytest

from iscsi.target.backends import NullBackend
from iscsi.target.units import LogicalUnit
from iscsi.wire import scsi
from iscsi.wire.bhs import Opcode, TaskFunction
from iscsi.wire.sense import Asc
from shm.jit import JIT_DISABLED
from tests.iscsi.target.managing import COMPLETE, RESERVE_6, answer, ask, out, run
from tests.iscsi.target.serving import HOST, NAME, TWO, WAIT_S, Serving, wait_until

PLACEMENTS = TWO

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")

LUN = 9
SLOW = scsi.synchronize_cache_10()


class Stuck(NullBackend):
    """A medium whose flush takes until it is let go."""

    def __init__(self):
        super().__init__(1 << 20)
        self.entered, self.go = threading.Event(), threading.Event()

    def flush(self):
        self.entered.set()
        assert self.go.wait(WAIT_S), "the test lets it go"


@pytest.fixture(scope="module")
def serving(placement):
    with Serving() as found:
        yield found


@pytest.fixture
def medium(serving):
    """A stuck medium, as LUN 9."""
    stuck = Stuck()
    target = serving.server._targets[NAME]
    serving.server.call(lambda: target.add_unit(LUN, LogicalUnit(stuck)))
    yield stuck
    stuck.go.set()
    serving.wait_idle()
    serving.server.call(lambda: target.remove_unit(LUN))


@pytest.fixture
def first(serving, medium):
    with serving.log_in() as session:
        for lun in (0, LUN):
            session.clear_attention(lun)
        yield session
        medium.go.set()


@pytest.fixture
def second(serving, medium):
    with serving.log_in(initiator=HOST + "2", isid=0x80AABBCC0002) as session:
        for lun in (0, LUN):
            session.clear_attention(lun)
        yield session
        medium.go.set()


def is_unanswered(session):
    """Whether nothing came for the requests so far, when a later one is answered."""
    tag = session.command(scsi.test_unit_ready())
    header, _ = session.take()
    return (header.opcode, header.itt) == (Opcode.SCSI_RESPONSE, tag)


@pytest.mark.parametrize(
    "function",
    [TaskFunction.ABORT_TASK, TaskFunction.ABORT_TASK_SET, TaskFunction.CLEAR_TASK_SET],
)
def test_an_aborted_command_of_a_worker_is_never_answered(medium, first, function):
    cmd_sn = first.cmd_sn
    tag = first.command(SLOW, lun=LUN)
    assert medium.entered.wait(WAIT_S)
    ask(first, function, LUN, referenced_task_tag=tag, ref_cmd_sn=cmd_sn)
    assert is_unanswered(first)
    medium.go.set()
    assert answer(first) is COMPLETE
    assert is_unanswered(first)


def test_a_reset_by_another_waits_for_the_worker(medium, first, second):
    first.command(SLOW, lun=LUN)
    assert medium.entered.wait(WAIT_S)
    ask(second, TaskFunction.LOGICAL_UNIT_RESET, LUN)
    assert is_unanswered(second)
    medium.go.set()
    assert answer(second) is COMPLETE
    assert run(first, scsi.test_unit_ready(), lun=LUN)[1] == Asc.DEVICE_RESET_OCCURRED
    assert run(first, scsi.test_unit_ready(), lun=LUN) == (0, None)


@pytest.mark.parametrize("is_lost", [False, True])
def test_preempt_and_abort_waits_for_the_worker(serving, medium, first, second, is_lost):
    assert out(first, 0, 0, 0xA1, lun=LUN) == 0
    assert out(first, 1, 0xA1, kind=5, lun=LUN) == 0
    assert out(second, 0, 0, 0xB2, lun=LUN) == 0
    first.command(SLOW, lun=LUN)
    assert medium.entered.wait(WAIT_S)
    if is_lost:
        target = serving.server._targets[NAME]
        first.socket.close()
        wait_until("the nexus is lost", lambda: len(target.nexuses) == 1)
    second.command(*preempting(0xB2, 0xA1), lun=LUN, length=24, write=1)
    assert is_unanswered(second)
    medium.go.set()
    header, _ = second.take()
    assert header.status == 0


def preempting(key, victim):
    data = key.to_bytes(8, "big") + victim.to_bytes(8, "big") + bytes(8)
    return (bytes((0x5F, 5, 5, 0, 0, 0, 0, 0, 24, 0)).ljust(16, b"\0"), data)


def test_a_unit_that_a_lost_nexus_had_reserved_is_served_when_nothing_of_it_is_left(
    serving, medium, first, second
):
    assert run(first, RESERVE_6, lun=LUN) == (0, None)
    first.command(SLOW, lun=LUN)
    assert medium.entered.wait(WAIT_S)
    target = serving.server._targets[NAME]
    first.socket.close()
    wait_until("the nexus is lost", lambda: len(target.nexuses) == 1)
    tag = second.command(scsi.write_10(0, 1), b"n" * 512, lun=LUN, length=512, write=1)
    assert is_unanswered(second)
    medium.go.set()
    header, _ = second.take()
    assert (header.itt, header.status) == (tag, 0)
    unit = target.units[LUN]
    assert not unit.reservations.is_being_left
    assert not unit.reservations.restricts(target.nexuses[0])
