"""TAS of the Control mode page (SAM-5 §5.6): with 1, tasks that another initiator ends are answered
with TASK ABORTED; with 0 they just end. Either way nothing of them reaches the medium afterwards.
"""

import pytest

from iscsi.target.units import LogicalUnit
from iscsi.wire import scsi
from iscsi.wire.bhs import Opcode, TaskAttribute, TaskFunction
from iscsi.wire.sense import Asc, ScsiStatus
from iscsi.wire.target_task import target_at
from shm.jit import JIT_DISABLED
from tests.iscsi.target.managing import (
    COMPLETE,
    SECOND,
    answer,
    ask,
    begin_write,
    blocks,
    finish_write,
    manage,
    out,
    run,
)
from tests.iscsi.target.serving import BLOCK, BLOCKS, HOST, NAME, TWO, WAIT_S, Serving, wait_until
from tests.iscsi.target.test_task_management_slow import LUN, SLOW, Stuck, is_unanswered

PLACEMENTS = TWO

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")

CONTROL, TAS = 0x0A, 0x40
ABORTED = ScsiStatus.TASK_ABORTED
RESETS = [TaskFunction.LOGICAL_UNIT_RESET, TaskFunction.TARGET_WARM_RESET]


@pytest.fixture(scope="module")
def serving(placement):
    with Serving() as found:
        yield found


@pytest.fixture
def medium(serving):
    """A stuck medium, as LUN 9, which tells who loses tasks there."""
    stuck = Stuck()
    target = serving.server._targets[NAME]
    unit = LogicalUnit(stuck)
    unit.task_aborted_status = True
    serving.server.call(lambda: target.add_unit(LUN, unit))
    yield stuck
    stuck.go.set()
    serving.wait_idle()
    serving.server.call(lambda: target.remove_unit(LUN))


@pytest.fixture
def first(serving):
    """It sets TAS, as an initiator does."""
    with serving.log_in() as session:
        session.clear_attention()
        select(session, TAS)
        yield session
    serving.wait_idle()
    serving.server.call(serving.server._targets[NAME].units[0].reset)


@pytest.fixture
def second(serving, first):
    with serving.log_in(initiator=SECOND, isid=0x80AABBCC0002) as session:
        yield session.clear_attention()


def control_page(session):
    session.command(scsi.mode_sense_10(CONTROL), length=64, read=1)
    return session.data_in()[-12:]


def select(session, bits):
    page = bytearray(control_page(session))
    page[5] = bits
    data = bytes(8) + page
    cdb = bytes((0x55, 0x10, 0, 0, 0, 0, 0, 0, len(data), 0))
    assert run(session, cdb, data) == (0, None)


def status_of(session, tag):
    """The status of the next response, which is this command's."""
    header, _ = session.take()
    assert (header.opcode, header.itt) == (Opcode.SCSI_RESPONSE, tag)
    return header.status


def test_an_initiator_can_set_it_and_others_are_told(serving, first, second):
    assert control_page(first)[5] == TAS
    select(first, 0)
    assert run(second, scsi.test_unit_ready())[1] == Asc.MODE_PARAMETERS_CHANGED
    assert control_page(second)[5] == 0
    select(first, TAS)
    assert manage(first, TaskFunction.LOGICAL_UNIT_RESET) is COMPLETE
    assert run(first, scsi.test_unit_ready())[1] == Asc.DEVICE_RESET_OCCURRED
    assert control_page(first)[5] == 0  # the default


@pytest.mark.parametrize("function", RESETS)
def test_a_write_that_another_resets_ends_with_task_aborted_behind_its_data(
    serving, first, second, function
):
    before = blocks(serving, 10, 1)
    tag, _, r2t = begin_write(second, 10, 1)
    assert manage(first, function) is COMPLETE
    finish_write(second, tag, r2t, b"x" * BLOCK)
    assert status_of(second, tag) == ABORTED
    reset = Asc.DEVICE_RESET_OCCURRED
    if function is TaskFunction.TARGET_WARM_RESET:
        reset = Asc.BUS_RESET_OCCURRED
    assert run(second, scsi.test_unit_ready())[1] == reset
    assert run(second, scsi.test_unit_ready()) == (0, None)
    assert blocks(serving, 10, 1) == before


def test_ones_own_tasks_end_without_a_response(first, second):
    tag, _, r2t = begin_write(first, 10, 1)
    assert manage(first, TaskFunction.LOGICAL_UNIT_RESET) is COMPLETE
    finish_write(first, tag, r2t, b"x" * BLOCK)
    assert run(first, scsi.test_unit_ready())[1] == Asc.DEVICE_RESET_OCCURRED


def test_what_waits_for_its_turn_ends_so_too(serving, first, second):
    before = blocks(serving, 11, 1)
    early, _, r2t = begin_write(second, 10, 1)
    ordered = second.command(
        scsi.write_10(11, 1),
        b"o" * BLOCK,
        length=BLOCK,
        write=1,
        attribute=TaskAttribute.ORDERED,
    )
    tag = second.request(Opcode.NOP_OUT, immediate=1)
    assert second.take()[0].itt == tag
    assert manage(first, TaskFunction.LOGICAL_UNIT_RESET) is COMPLETE
    assert status_of(second, ordered) == ABORTED
    finish_write(second, early, r2t, b"x" * BLOCK)
    assert status_of(second, early) == ABORTED
    assert blocks(serving, 11, 1) == before


# Where the engine moves data, a READ is over for this process once it was told to send it.
@pytest.mark.only_in("stream")
def test_a_read_that_is_half_sent_ends_with_task_aborted(serving, first, second):
    protocol = next(
        each.protocol for each in serving.server.connections if each.nexus.initiator_name == SECOND
    )
    mine = target_at(protocol.address)[0]
    before = int(mine["arrivals"])
    tags = [
        second.command(scsi.read_10(0, BLOCKS), length=BLOCKS * BLOCK, read=1) for _ in range(6)
    ]
    wait_until("they have come", lambda: int(mine["arrivals"]) == before + len(tags))
    assert manage(first, TaskFunction.LOGICAL_UNIT_RESET) is COMPLETE
    ended, taken = {}, dict.fromkeys(tags, 0)
    while len(ended) < len(tags):
        header, data = second.take()
        if header.opcode is Opcode.DATA_IN:
            taken[header.itt] += len(data)
            if header.has_status:
                ended[header.itt] = header.status
        else:
            assert header.underflow
            assert header.residual_count == BLOCKS * BLOCK - taken[header.itt]
            ended[header.itt] = header.status
    assert set(ended.values()) <= {0, ABORTED}
    assert ABORTED in ended.values()
    assert run(second, scsi.test_unit_ready())[1] == Asc.DEVICE_RESET_OCCURRED


def test_preempt_and_abort_says_it_to_the_preempted(serving, first, second):
    before = blocks(serving, 12, 1)
    assert out(second, 0, 0, 0xB2) == 0
    assert out(second, 1, 0xB2, kind=5) == 0
    tag, _, r2t = begin_write(second, 12, 1)
    assert out(first, 0, 0, 0xA1) == 0
    assert out(first, 5, 0xA1, 0xB2, kind=5) == 0
    finish_write(second, tag, r2t, b"b" * BLOCK)
    assert status_of(second, tag) == ABORTED
    assert run(second, scsi.test_unit_ready())[1] == Asc.REGISTRATIONS_PREEMPTED
    assert blocks(serving, 12, 1) == before
    assert out(first, 3, 0xA1) == 0  # CLEAR


def test_a_command_of_a_worker_is_answered_at_once_and_the_reset_behind_the_worker(serving, medium):
    with (
        serving.log_in(initiator=HOST + "3", isid=0x80AABBCC0003) as slow,
        serving.log_in(initiator=HOST + "4", isid=0x80AABBCC0004) as other,
    ):
        for session in (slow, other):
            for lun in (0, LUN):
                session.clear_attention(lun)
        tag = slow.command(SLOW, lun=LUN)
        assert medium.entered.wait(WAIT_S)
        ask(other, TaskFunction.LOGICAL_UNIT_RESET, LUN)
        assert is_unanswered(other)
        assert status_of(slow, tag) == ABORTED
        medium.go.set()
        assert answer(other) is COMPLETE
        assert run(slow, scsi.test_unit_ready(), lun=LUN)[1] == Asc.DEVICE_RESET_OCCURRED
        assert run(slow, scsi.test_unit_ready(), lun=LUN) == (0, None)
