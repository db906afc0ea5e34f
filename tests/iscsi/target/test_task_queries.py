"""The task management functions of RFC 7144, in sessions that agreed on iSCSIProtocolLevel 2: what
the target says of its tasks and unit attentions, and an I_T nexus reset.
"""

import pytest

from iscsi.target.scsi.pr_unit import reservations_of
from iscsi.wire import scsi
from iscsi.wire.bhs import Opcode, TaskFunction, TaskFunctionResponse
from iscsi.wire.keys import Proposal, SessionParams
from iscsi.wire.sense import Asc, SenseKey
from shm.jit import JIT_DISABLED
from tests.iscsi.target.managing import (
    COMPLETE,
    RESERVE_6,
    ask,
    begin_write,
    blocks,
    finish_write,
    manage,
    run,
)
from tests.iscsi.target.serving import BLOCK, NAME, TWO

PLACEMENTS = TWO

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")

SUCCEEDED = TaskFunctionResponse.SUCCEEDED
NO_LUN = TaskFunctionResponse.LUN_DOES_NOT_EXIST
LEVEL_2 = Proposal(SessionParams(iscsi_protocol_level=2))
QUERY_EVENT = TaskFunction.QUERY_ASYNCHRONOUS_EVENT


@pytest.fixture
def first(serving):
    with serving.log_in(proposal=LEVEL_2) as session:
        for lun in (0, 1):
            session.clear_attention(lun)
        yield session
    serving.wait_idle()


def test_a_task_is_there_until_it_is_answered(first, second):
    tag, cmd_sn, r2t = begin_write(first, 10, 1)
    named = {"referenced_task_tag": tag, "ref_cmd_sn": cmd_sn}
    assert manage(first, TaskFunction.QUERY_TASK, **named) is SUCCEEDED
    assert manage(first, TaskFunction.QUERY_TASK, 1, **named) is COMPLETE
    named["referenced_task_tag"] += 1000
    assert manage(first, TaskFunction.QUERY_TASK, **named) is COMPLETE
    finish_write(first, tag, r2t, bytes(BLOCK))
    header, _ = first.take()
    assert (header.itt, header.status) == (tag, 0)
    named["referenced_task_tag"] = tag
    assert manage(first, TaskFunction.QUERY_TASK, **named) is COMPLETE


def test_a_task_set_is_one_nexus_and_one_units(first, second):
    begin_write(second, 11, 1)
    assert manage(first, TaskFunction.QUERY_TASK_SET) is COMPLETE
    tag, _, r2t = begin_write(first, 10, 1)
    assert manage(first, TaskFunction.QUERY_TASK_SET) is SUCCEEDED
    assert manage(first, TaskFunction.QUERY_TASK_SET, 1) is COMPLETE
    finish_write(first, tag, r2t, bytes(BLOCK))
    assert first.take()[0].status == 0
    assert manage(first, TaskFunction.QUERY_TASK_SET) is COMPLETE


def test_a_unit_attention_is_told_and_still_reported(first, second):
    assert manage(first, QUERY_EVENT) is COMPLETE
    assert manage(second, TaskFunction.LOGICAL_UNIT_RESET) is COMPLETE
    ask(first, QUERY_EVENT)
    header, _ = first.take()
    assert header.opcode is Opcode.TASK_MANAGEMENT_RESPONSE
    assert header.response == SUCCEEDED
    code = SenseKey.UNIT_ATTENTION << 16 | Asc.DEVICE_RESET_OCCURRED
    assert header.additional_response == 1 << 20 | code
    assert run(first, scsi.test_unit_ready())[1] == Asc.DEVICE_RESET_OCCURRED
    assert manage(first, QUERY_EVENT) is COMPLETE


def test_that_there_are_several_unit_attentions_is_told(serving, first):
    (nexus,) = serving.server._targets[NAME].nexuses

    def raise_two():
        nexus.raise_attention(0, Asc.CAPACITY_DATA_CHANGED)
        nexus.raise_attention(0, Asc.MODE_PARAMETERS_CHANGED)

    serving.server.call(raise_two)
    ask(first, QUERY_EVENT)
    header, _ = first.take()
    code = SenseKey.UNIT_ATTENTION << 16 | Asc.CAPACITY_DATA_CHANGED
    assert header.additional_response == 2 << 20 | code


@pytest.mark.parametrize(
    "function", [TaskFunction.QUERY_TASK, TaskFunction.QUERY_TASK_SET, QUERY_EVENT]
)
def test_a_unit_that_is_not_there_is_said_not_to_exist(first, function):
    assert manage(first, function, 77) is NO_LUN


def test_a_nexus_reset_ends_what_this_nexus_has_and_holds_and_nothing_else(serving, first, second):
    before = blocks(serving, 20, 1)
    mine, other = begin_write(first, 20, 1), begin_write(second, 21, 1)
    assert run(first, RESERVE_6, lun=1) == (0, None)
    unit = serving.server._targets[NAME].units[1]
    assert reservations_of(unit).reserved_by is not None
    assert manage(first, TaskFunction.I_T_NEXUS_RESET) is COMPLETE
    assert reservations_of(unit).reserved_by is None
    finish_write(first, mine[0], mine[2], bytes(BLOCK))
    for lun in (0, 1):
        assert run(first, scsi.test_unit_ready(), lun=lun)[1] == Asc.I_T_NEXUS_LOSS
        assert run(first, scsi.test_unit_ready(), lun=lun) == (0, None)
        assert run(second, scsi.test_unit_ready(), lun=lun) == (0, None)
    finish_write(second, other[0], other[2], b"s" * BLOCK)
    header, _ = second.take()
    assert (header.itt, header.status) == (other[0], 0)
    assert blocks(serving, 20, 2) == before + b"s" * BLOCK


@pytest.mark.parametrize(("level", "functions"), [(1, (0xDA, 0)), (2, (0xDE, 0x07))])
def test_a_unit_reports_the_functions_that_the_session_may_ask(serving, level, functions):
    wanted = Proposal(SessionParams(iscsi_protocol_level=level))
    with serving.log_in(proposal=wanted) as session:
        session.clear_attention()
        cdb = bytes((0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0))
        session.command(cdb.ljust(16, b"\0"), length=16, read=1)
        assert tuple(session.data_in()[:2]) == functions
    serving.wait_idle()
