"""ORDERED and HEAD OF QUEUE commands at a running server (SAM-5 §8.6): who waits for whom, and that
nobody waits for ever. What happened first is read off the medium and the order of the responses.
"""

import pytest

from iscsi.target import turns
from iscsi.wire import scsi
from iscsi.wire.bhs import Opcode, TaskAttribute, TaskFunction
from iscsi.wire.sense import ScsiStatus
from shm.jit import JIT_DISABLED
from tests.iscsi.target.managing import (
    COMPLETE,
    SECOND,
    ask,
    begin_write,
    blocks,
    finish_write,
    manage,
    run,
)
from tests.iscsi.target.serving import BLOCK, BLOCKS, TWO, wait_until

PLACEMENTS = TWO

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")

SIMPLE, ORDERED = TaskAttribute.SIMPLE, TaskAttribute.ORDERED
HEAD_OF_QUEUE = TaskAttribute.HEAD_OF_QUEUE
OLD, NEW = b"o" * BLOCK, b"n" * BLOCK


@pytest.fixture
def first(serving):
    with serving.log_in() as session:
        for lun in (0, 1):
            session.clear_attention(lun)
        assert session.write(0, OLD).status == 0
        yield session
    serving.wait_idle()


def write(session, lba, data, attribute):
    """A WRITE that brings its data; its tag."""
    cdb = scsi.write_10(lba, len(data) // BLOCK)
    return session.command(cdb, data, length=len(data), write=1, attribute=attribute)


def read(session, lba, attribute, count=1):
    cdb = scsi.read_10(lba, count)
    return session.command(cdb, length=count * BLOCK, read=1, attribute=attribute)


def answers(session, count):
    """The next answers of commands, as tag and what was read."""
    found = []
    while len(found) < count:
        header, data = session.take()
        assert header.opcode in (Opcode.SCSI_RESPONSE, Opcode.DATA_IN), header
        assert header.status == 0
        found.append((header.itt, data if header.opcode is Opcode.DATA_IN else None))
    return found


def is_quiet(session):
    """Whether the target answers a ping, and nothing before it: all it has received waits."""
    tag = session.request(Opcode.NOP_OUT, immediate=1)
    header, _ = session.take()
    return (header.opcode, header.itt) == (Opcode.NOP_IN, tag)


# --- who waits for whom --------------------------------------------------------------------------


def test_an_ordered_command_waits_for_what_came_before_it(serving, first):
    early, _, r2t = begin_write(first, 10, 1)
    late = write(first, 10, NEW, ORDERED)
    assert is_quiet(first)
    finish_write(first, early, r2t, OLD)
    assert [tag for tag, _ in answers(first, 2)] == [early, late]
    assert blocks(serving, 10, 1) == NEW


@pytest.mark.parametrize("attribute", [SIMPLE, TaskAttribute.UNTAGGED, ORDERED])
def test_what_comes_after_an_ordered_command_waits_for_it(first, attribute):
    early, _, r2t = begin_write(first, 10, 1)
    ordered = write(first, 0, NEW, ORDERED)
    late = read(first, 0, attribute)
    assert is_quiet(first)
    finish_write(first, early, r2t, OLD)
    assert answers(first, 3) == [(early, None), (ordered, None), (late, NEW)]


def test_an_ordered_write_keeps_later_commands_waiting_until_it_has_its_data(first):
    ordered = first.command(scsi.write_10(0, 1), length=BLOCK, write=1, attribute=ORDERED)
    header, _ = first.take()
    assert header.opcode is Opcode.R2T
    late = read(first, 0, SIMPLE)
    assert is_quiet(first)
    finish_write(first, ordered, header, NEW)
    assert answers(first, 2) == [(ordered, None), (late, NEW)]


def test_head_of_queue_goes_before_all_that_waits(first):
    early, _, r2t = begin_write(first, 10, 1)
    ordered, late = write(first, 0, NEW, ORDERED), read(first, 0, SIMPLE)
    head = read(first, 0, HEAD_OF_QUEUE)
    assert answers(first, 1) == [(head, OLD)]
    finish_write(first, early, r2t, OLD)
    assert answers(first, 3) == [(early, None), (ordered, None), (late, NEW)]


@pytest.mark.parametrize("attribute", [SIMPLE, ORDERED])
def test_all_others_wait_for_a_head_of_queue_command(first, attribute):
    head = first.command(scsi.write_10(0, 1), length=BLOCK, write=1, attribute=HEAD_OF_QUEUE)
    header, _ = first.take()
    assert header.opcode is Opcode.R2T
    late = read(first, 0, attribute)
    assert is_quiet(first)
    finish_write(first, head, header, NEW)
    assert answers(first, 2) == [(head, None), (late, NEW)]


def test_a_command_that_waits_goes_on_behind_a_head_of_queue_one_that_came_later(first):
    early, _, r2t = begin_write(first, 10, 1)
    ordered = write(first, 0, OLD, ORDERED)
    head = first.command(scsi.write_10(0, 1), length=BLOCK, write=1, attribute=HEAD_OF_QUEUE)
    header, _ = first.take()
    assert (header.opcode, header.itt) == (Opcode.R2T, head)
    finish_write(first, early, r2t, OLD)
    assert answers(first, 1) == [(early, None)]
    assert is_quiet(first)
    finish_write(first, head, header, NEW)
    assert [tag for tag, _ in answers(first, 2)] == [head, ordered]
    assert first.read(0, 1) == OLD


def test_many_ordered_commands_are_done_in_their_order(first):
    wanted = []
    for number in range(24):
        data = bytes((number,)) * BLOCK
        wanted.append((write(first, 0, data, ORDERED), None))
        wanted.append((read(first, 0, SIMPLE if number % 2 else ORDERED), data))
    assert answers(first, len(wanted)) == wanted


def test_an_ordered_write_does_not_overtake_data_that_is_still_to_be_sent(first):
    """A READ of memory is sent from there, and its initiator may be slow to take it."""
    whole = first.read(0, BLOCKS)
    tags = [read(first, 0, SIMPLE, BLOCKS) for _ in range(6)]
    ordered = write(first, BLOCKS - 1, bytes(BLOCK), ORDERED)
    found = dict.fromkeys(tags, b"")
    ended = []
    while len(ended) < len(tags):
        header, piece = first.take()
        assert header.opcode is Opcode.DATA_IN, header
        found[header.itt] += piece
        if header.has_status:
            ended.append(header.itt)
    assert set(found.values()) == {whole}
    assert answers(first, 1) == [(ordered, None)]
    assert first.read(BLOCKS - 1, 1) == bytes(BLOCK)


# --- who does not ------------------------------------------------------------------------------


def test_other_units_and_other_initiators_do_not_wait(first, second):
    early, _, r2t = begin_write(first, 10, 1)
    ordered = write(first, 0, NEW, ORDERED)
    assert second.read(0, 1) == OLD
    assert second.write(20, NEW).status == 0
    assert run(first, scsi.test_unit_ready(), lun=1) == (0, None)
    first.command(scsi.read_10(0, 1), lun=1, length=BLOCK, read=1)
    assert first.data_in() == bytes(BLOCK)
    finish_write(first, early, r2t, OLD)
    assert [tag for tag, _ in answers(first, 2)] == [early, ordered]


def test_compiled_code_serves_again_when_nothing_ordered_is_left(serving, first):
    ordered = write(first, 0, NEW, ORDERED)
    assert answers(first, 1) == [(ordered, None)]
    (connection,) = serving.server._pumps.values()
    assert not turns.target_at(connection.protocol.address)[0]["ordered"]
    before = serving.count("reads")
    assert first.read(0, 1) == NEW
    assert serving.count("reads") == before + 1


# --- ends ----------------------------------------------------------------------------------------


def test_an_ordered_command_that_is_aborted_keeps_nobody_waiting(serving, first):
    early, _, r2t = begin_write(first, 10, 1)
    ordered, cmd_sn = write(first, 0, NEW, ORDERED), first.cmd_sn - 1
    late = read(first, 0, SIMPLE)
    assert is_quiet(first)
    named = {"referenced_task_tag": ordered, "ref_cmd_sn": cmd_sn}
    ask(first, TaskFunction.ABORT_TASK, **named)
    found = {}
    for _ in range(2):
        header, data = first.take()
        found[header.opcode] = (header, data)
    assert found[Opcode.TASK_MANAGEMENT_RESPONSE][0].response == COMPLETE
    header, data = found[Opcode.DATA_IN]
    assert (header.itt, data) == (late, OLD)
    finish_write(first, early, r2t, OLD)
    assert answers(first, 1) == [(early, None)]
    assert blocks(serving, 0, 1) == OLD


@pytest.mark.parametrize("function", [TaskFunction.ABORT_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET])
def test_what_waits_is_aborted_with_the_rest(serving, first, function):
    begin_write(first, 10, 1)
    for attribute in (ORDERED, SIMPLE, ORDERED):
        write(first, 0, NEW, attribute)
    assert is_quiet(first)
    assert manage(first, function) is COMPLETE
    if function is TaskFunction.LOGICAL_UNIT_RESET:
        first.clear_attention()
    assert first.read(0, 1) == OLD


def test_a_session_that_goes_leaves_nothing_waiting(serving, first):
    with serving.log_in(initiator=SECOND, isid=0x80AABBCC0003) as gone:
        gone.clear_attention()
        begin_write(gone, 10, 1)
        for attribute in (ORDERED, SIMPLE, ORDERED):
            write(gone, 0, NEW, attribute)
        assert is_quiet(gone)
    wait_until("the session is gone", lambda: len(serving.server.connections) == 1)
    wait_until("nothing waits", lambda: not serving.server._exclusive.is_waiting)
    assert first.read(0, 1) == OLD


def test_an_ordered_command_that_waits_too_long_is_told_that_the_unit_is_busy(first, monkeypatch):
    monkeypatch.setattr(turns, "ORDER_WAIT_S", 0.1)
    early, _, r2t = begin_write(first, 10, 1)
    ordered = write(first, 0, NEW, ORDERED)
    late = read(first, 0, SIMPLE)
    header, _ = first.take()
    assert (header.itt, header.status) == (ordered, ScsiStatus.BUSY)
    assert answers(first, 1) == [(late, OLD)]
    finish_write(first, early, r2t, OLD)
    assert answers(first, 1) == [(early, None)]


def test_a_unit_says_that_it_serves_all_attributes(first):
    first.command(scsi.inquiry(0x86, 64), length=64, read=1)
    assert first.data_in()[5] & 0x07 == 0x07
    first.command(scsi.mode_sense_10(0x0A), length=64, read=1)
    page = first.data_in()[-12:]
    assert page[0] == 0x0A
    assert page[2] >> 5 == 1  # TST: a task set for each I_T nexus
