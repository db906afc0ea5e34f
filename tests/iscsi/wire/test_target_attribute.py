"""What compiled code does with task attributes, and tasks that end because of another nexus."""

import pytest

from iscsi.wire.bhs import Opcode, TaskAttribute
from iscsi.wire.sense import ScsiStatus
from iscsi.wire.target_task import target_at
from tests.iscsi.wire.test_target import BLOCK, Scripted

NOT_SIMPLE = [TaskAttribute.ORDERED, TaskAttribute.HEAD_OF_QUEUE]
ABORTED = ScsiStatus.TASK_ABORTED


def ordered(end):
    return int(target_at(end.connection.address)[0]["ordered"])


@pytest.mark.parametrize("attribute", NOT_SIMPLE)
def test_what_is_not_simple_and_all_that_follows_it_is_for_the_cold_code(attribute):
    end = Scripted()
    tags = [end.read(0, 1, attribute=attribute), end.read(1, 1)]
    assert end.sent() == []
    commands = list(end.connection.cold_commands())
    assert [command.itt for command in commands] == tags
    assert ordered(end) == 1
    for command in commands:
        end.connection.respond(command.task_id, data=bytes(BLOCK))
    assert [header.itt for header, _ in end.sent()] == tags
    assert ordered(end) == 0
    end.read(0, 1)
    assert end.answer()[0].opcode is Opcode.DATA_IN


@pytest.mark.parametrize("attribute", NOT_SIMPLE)
def test_one_that_is_aborted_is_not_waited_for(attribute):
    end = Scripted()
    tag = end.write(0, 1, attribute=attribute)
    assert end.answer()[0].opcode is Opcode.R2T
    assert ordered(end) == 1
    assert end.connection.abort_task(tag)
    assert ordered(end) == 0
    end.read(0, 1)
    assert end.answer()[0].opcode is Opcode.DATA_IN


def test_a_simple_write_that_has_begun_goes_on_beside_an_ordered_command():
    end = Scripted()
    tag = end.write(5, 1)
    r2t, _ = end.answer()
    end.read(5, 1, attribute=TaskAttribute.ORDERED)
    end.give(Opcode.DATA_OUT, b"w" * BLOCK, itt=tag, ttt=r2t.ttt, final=1)
    header, _ = end.answer()
    assert (header.itt, header.status) == (tag, 0)
    assert end.ram[5 * BLOCK : 6 * BLOCK].tobytes() == b"w" * BLOCK


def test_a_write_that_another_ends_answers_behind_its_data_which_goes_nowhere():
    end = Scripted()
    before = end.ram.tobytes()
    tag = end.write(5, 1)
    r2t, _ = end.answer()
    assert end.connection.end_aborted(0) == 1
    assert end.sent() == []
    end.give(Opcode.DATA_OUT, b"w" * BLOCK, itt=tag, ttt=r2t.ttt, final=1)
    header, data = end.answer()
    assert (header.opcode, header.itt, header.status) == (Opcode.SCSI_RESPONSE, tag, ABORTED)
    assert data == b""
    assert end.ram.tobytes() == before


def test_a_command_of_the_cold_code_that_another_ends_answers_at_once():
    end = Scripted()
    tag = end.read(0, 1, attribute=TaskAttribute.ORDERED)
    (command,) = end.connection.cold_commands()
    end.connection.pin(command)
    assert end.connection.end_aborted(0) == 1
    assert end.connection.aborted_work(0) == 1
    header, _ = end.answer()
    assert (header.itt, header.status) == (tag, ABORTED)
    assert end.connection.aborted_work(0) == 1
    assert not end.connection.unpin(command)
    assert end.connection.aborted_work(0) == 0
    assert not end.connection.respond(command.task_id)


def test_only_tasks_of_the_unit_end_and_none_that_is_answered():
    end = Scripted()
    end.read(0, 1)
    assert end.answer()[0].opcode is Opcode.DATA_IN
    end.write(5, 1)
    assert end.connection.end_aborted(1) == 0
    assert end.connection.end_aborted(0) == 1
