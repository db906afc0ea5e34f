"""Task management against a running server: what each function ends, for whom, and what it answers
(RFC 7143 §11.5, §11.6). The initiators are sockets, so that every PDU is where the test wants it.
"""

import pytest

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode, TaskFunction, TaskFunctionResponse
from iscsi.wire.sense import Asc, ScsiStatus
from shm.jit import JIT_DISABLED
from tests.iscsi.target.managing import (
    COMPLETE,
    CONFLICT,
    RESERVE_6,
    SECOND,
    ask,
    begin_write,
    blocks,
    finish_write,
    manage,
    run,
)
from tests.iscsi.target.serving import BLOCK, EVERYWHERE, OTHER

PLACEMENTS = EVERYWHERE

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")


# --- one task ------------------------------------------------------------------------------------


def test_a_task_is_aborted_once(serving, first):
    before = blocks(serving, 20, 4)
    tag, cmd_sn, r2t = begin_write(first, 20, 4)
    named = {"referenced_task_tag": tag, "ref_cmd_sn": cmd_sn}
    assert manage(first, TaskFunction.ABORT_TASK, **named) is COMPLETE
    again = manage(first, TaskFunction.ABORT_TASK, **named)
    assert again is TaskFunctionResponse.TASK_DOES_NOT_EXIST
    finish_write(first, tag, r2t, bytes(4 * BLOCK))
    assert run(first, scsi.test_unit_ready()) == (0, None)
    assert blocks(serving, 20, 4) == before


def test_a_task_that_is_still_on_its_way_counts_as_aborted_and_received(first):
    missing = first.cmd_sn
    first.cmd_sn += 1  # a command that gets lost, and the request behind it
    named = {"referenced_task_tag": 0x7777, "ref_cmd_sn": missing}
    assert manage(first, TaskFunction.ABORT_TASK, **named) is COMPLETE
    assert run(first, scsi.test_unit_ready()) == (0, None)


@pytest.mark.parametrize("offset", [-1, 0, 5000])
def test_a_task_that_is_over_or_not_yet_sent_does_not_exist(first, offset):
    named = {"referenced_task_tag": 0x7777, "ref_cmd_sn": first.cmd_sn + offset}
    found = manage(first, TaskFunction.ABORT_TASK, **named)
    assert found is TaskFunctionResponse.TASK_DOES_NOT_EXIST


# --- the tasks of a unit -----------------------------------------------------------------------


def test_a_task_set_is_that_of_one_nexus_and_one_unit(serving, first, second):
    mine = begin_write(first, 30, 1)
    other = begin_write(second, 31, 1)
    assert manage(first, TaskFunction.ABORT_TASK_SET, 1) is COMPLETE
    assert manage(first, TaskFunction.ABORT_TASK_SET, 0) is COMPLETE
    finish_write(first, mine[0], mine[2], bytes(BLOCK))
    finish_write(second, other[0], other[2], b"x" * BLOCK)
    header, _ = second.take()
    assert (header.itt, header.status) == (other[0], 0)
    assert run(first, scsi.test_unit_ready()) == (0, None)
    assert blocks(serving, 31, 1) == b"x" * BLOCK


@pytest.mark.parametrize("immediate", [0, 1])
@pytest.mark.parametrize("function", [TaskFunction.ABORT_TASK_SET, TaskFunction.CLEAR_TASK_SET])
def test_what_was_sent_behind_a_request_is_not_aborted_by_it(serving, first, function, immediate):
    early = begin_write(first, 40, 1)
    pdus = []
    first.give = lambda opcode, data=b"", **fields: pdus.append(
        bhs.encode_pdu(opcode, data, **fields)
    )
    ask(first, function, immediate=immediate)
    late = first.command(scsi.write_10(41, 1), length=BLOCK, write=1)
    del first.give
    first.socket.sendall(b"".join(pdus))  # so that they arrive at once
    seen = {}
    for _ in range(2):
        header, _ = first.take()
        seen[header.opcode] = header
    assert seen[Opcode.TASK_MANAGEMENT_RESPONSE].response == COMPLETE
    assert seen[Opcode.R2T].itt == late
    finish_write(first, early[0], early[2], bytes(BLOCK))
    finish_write(first, late, seen[Opcode.R2T], b"y" * BLOCK)
    header, _ = first.take()
    assert (header.itt, header.status) == (late, 0)
    assert blocks(serving, 41, 1) == b"y" * BLOCK


def test_clearing_a_task_set_leaves_those_of_others_alone(serving, first, second):
    """By TST every I_T nexus has a task set of its own (RFC 7143 §11.5.1, SAM-5 §7.5)."""
    mine, other = begin_write(first, 50, 1), begin_write(second, 51, 1)
    assert manage(first, TaskFunction.CLEAR_TASK_SET) is COMPLETE
    finish_write(first, mine[0], mine[2], bytes(BLOCK))
    assert run(first, scsi.test_unit_ready()) == (0, None)
    finish_write(second, other[0], other[2], b"c" * BLOCK)
    header, _ = second.take()
    assert (header.itt, header.status) == (other[0], 0)
    assert run(second, scsi.test_unit_ready()) == (0, None)
    assert blocks(serving, 51, 1) == b"c" * BLOCK


# --- resets --------------------------------------------------------------------------------------


def test_a_unit_reset_ends_tasks_and_reservations_and_tells_everybody(serving, first, second):
    before = blocks(serving, 60, 2)
    assert run(first, RESERVE_6) == (0, None)
    assert run(second, scsi.test_unit_ready()) == (CONFLICT, None)
    tag, _, r2t = begin_write(first, 60, 2)
    assert manage(second, TaskFunction.LOGICAL_UNIT_RESET) is COMPLETE
    finish_write(first, tag, r2t, bytes(2 * BLOCK))
    reset = (ScsiStatus.CHECK_CONDITION, Asc.DEVICE_RESET_OCCURRED)
    for session in (first, second):
        assert run(session, scsi.test_unit_ready()) == reset
        assert run(session, scsi.test_unit_ready(), lun=1) == (0, None)
        assert run(session, scsi.test_unit_ready()) == (0, None)
    assert blocks(serving, 60, 2) == before


def test_a_unit_reset_reaches_the_same_unit_of_another_target(serving, first):
    with serving.log_in(target=OTHER, initiator=SECOND) as other:
        other.clear_attention()
        begin_write(other, 62, 1)
        assert manage(first, TaskFunction.LOGICAL_UNIT_RESET) is COMPLETE
        assert run(other, scsi.test_unit_ready())[1] == Asc.DEVICE_RESET_OCCURRED


def test_half_a_pdu_of_an_aborted_write_does_not_reach_the_medium(serving, first, second):
    before = blocks(serving, 64, 2)
    tag, _, r2t = begin_write(first, 64, 2)
    pdu = bhs.encode_pdu(
        Opcode.DATA_OUT,
        b"z" * 2 * BLOCK,
        itt=tag,
        ttt=r2t.ttt,
        buffer_offset=0,
        data_sn=0,
        final=1,
    )
    first.socket.sendall(pdu[: 48 + BLOCK])
    for _ in range(200):  # until the first half is there; the second session's reads see it
        if second.read(64, 1) == b"z" * BLOCK:
            break
    else:
        pytest.fail("the first half of the PDU was never seen")
    assert manage(second, TaskFunction.LOGICAL_UNIT_RESET) is COMPLETE
    first.socket.sendall(pdu[48 + BLOCK :])
    assert run(first, scsi.test_unit_ready())[1] == Asc.DEVICE_RESET_OCCURRED
    assert run(first, scsi.test_unit_ready()) == (0, None)
    assert blocks(serving, 65, 1) == before[BLOCK:]


def test_a_warm_reset_resets_every_unit_of_the_target(first, second):
    begin_write(second, 70, 1)
    assert run(first, RESERVE_6, lun=1) == (0, None)
    assert manage(first, TaskFunction.TARGET_WARM_RESET) is COMPLETE
    for session in (first, second):
        for lun in (0, 1):
            assert run(session, scsi.test_unit_ready(), lun=lun)[1] == Asc.BUS_RESET_OCCURRED
            assert run(session, scsi.test_unit_ready(), lun=lun) == (0, None)


def test_a_cold_reset_answers_and_then_ends_all_sessions_of_the_target(serving):
    with (
        serving.log_in() as first,
        serving.log_in(initiator=SECOND) as second,
        serving.log_in(target=OTHER) as other,
    ):
        other.clear_attention()
        assert manage(first, TaskFunction.TARGET_COLD_RESET) is COMPLETE
        assert first.is_closed()
        assert second.is_closed()
        assert run(other, scsi.test_unit_ready())[1] == Asc.BUS_RESET_OCCURRED
        assert run(other, scsi.test_unit_ready()) == (0, None)
    serving.wait_idle()
    with serving.log_in() as first:
        first.clear_attention()
        assert run(first, scsi.test_unit_ready()) == (0, None)
    serving.wait_idle()


# --- what is answered without acting -------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [TaskFunction.ABORT_TASK_SET, TaskFunction.CLEAR_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET],
)
def test_a_unit_that_is_not_there_is_said_not_to_exist(first, function):
    assert manage(first, function, 77) is TaskFunctionResponse.LUN_DOES_NOT_EXIST


@pytest.mark.parametrize(
    ("function", "response"),
    [
        (TaskFunction.CLEAR_ACA, TaskFunctionResponse.NOT_SUPPORTED),
        (TaskFunction.TASK_REASSIGN, TaskFunctionResponse.REASSIGNMENT_NOT_SUPPORTED),
        (0, TaskFunctionResponse.REJECTED),
        (TaskFunction.QUERY_TASK, TaskFunctionResponse.NOT_SUPPORTED),
        (TaskFunction.QUERY_TASK_SET, TaskFunctionResponse.NOT_SUPPORTED),
        (TaskFunction.I_T_NEXUS_RESET, TaskFunctionResponse.NOT_SUPPORTED),
        (TaskFunction.QUERY_ASYNCHRONOUS_EVENT, TaskFunctionResponse.NOT_SUPPORTED),
        (13, TaskFunctionResponse.REJECTED),
        (127, TaskFunctionResponse.REJECTED),
    ],
)
def test_what_cannot_be_done_is_answered_so_and_changes_nothing(serving, first, function, response):
    tag, cmd_sn, r2t = begin_write(first, 80, 1)
    named = {"referenced_task_tag": tag, "ref_cmd_sn": cmd_sn}
    assert manage(first, function, **named) is response
    finish_write(first, tag, r2t, b"w" * BLOCK)
    header, _ = first.take()
    assert (header.itt, header.status) == (tag, 0)
    assert blocks(serving, 80, 1) == b"w" * BLOCK


# --- requests and commands out of order ----------------------------------------------------------


# Where the engine serves a WRITE by itself, its data may be there before the request is looked at.
@pytest.mark.only_in("stream", "datamover")
def test_a_request_that_overtook_a_command_acts_on_it_too(serving, first):
    before = blocks(serving, 110, 1)
    base = first.cmd_sn
    ask(first, TaskFunction.ABORT_TASK_SET, immediate=0, cmd_sn=base + 1)
    cdb = scsi.write_10(110, 1)
    tag = first.command(cdb, length=BLOCK, write=1, cmd_sn=base)
    header, _ = first.take()
    allowed = {before}
    while header.opcode is Opcode.R2T:
        finish_write(first, tag, header, b"o" * BLOCK)
        if not serving.engine.inline:
            allowed.add(b"o" * BLOCK)  # Another process may place it before it hears of the abort.
        header, _ = first.take()
    assert header.opcode is Opcode.TASK_MANAGEMENT_RESPONSE
    assert header.response == COMPLETE
    assert run(first, scsi.test_unit_ready()) == (0, None)
    found = blocks(serving, 110, 1)
    assert found in allowed
    assert run(first, scsi.test_unit_ready()) == (0, None)
    assert blocks(serving, 110, 1) == found, "written after the abort was answered"


def test_a_command_that_waits_for_an_aborted_one_is_done(serving, first):
    base = first.cmd_sn
    cdb = scsi.write_10(111, 1)
    later = first.command(cdb, b"l" * BLOCK, length=BLOCK, write=1, cmd_sn=base + 1)
    named = {"referenced_task_tag": 0x7777, "ref_cmd_sn": base, "cmd_sn": base + 2}
    ask(first, TaskFunction.ABORT_TASK, **named)
    responses = {}
    while len(responses) < 2:
        header, _ = first.take()
        if header.opcode is Opcode.R2T:
            finish_write(first, later, header, b"l" * BLOCK)
        else:
            responses[header.opcode] = header
    assert responses[Opcode.TASK_MANAGEMENT_RESPONSE].response == COMPLETE
    assert responses[Opcode.SCSI_RESPONSE].status == 0
    first.cmd_sn = base + 2
    assert run(first, scsi.test_unit_ready()) == (0, None)
    assert blocks(serving, 111, 1) == b"l" * BLOCK
