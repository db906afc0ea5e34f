"""Over a queue pair nobody sends a PDU for which the other has no receive (RFC 7145 §8.1)."""

import pytest

from iscsi.wire import bhs
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import RejectReason
from iscsi.wire.iser.records import IserLimits, iser_at
from iscsi.wire.keys import SessionParams
from tests.iscsi.wire.full_feature import BLOCK, pattern
from tests.iscsi.wire.iser.lone import LoneInitiator, LoneTarget
from tests.iscsi.wire.iser.pair import LENGTHS, IserInitiator, IserTarget, Pair
from tests.iscsi.wire.iser.test_flows import pair

OPEN = SessionParams(initial_r2t=False, immediate_data=False, first_burst_length=65536)


def data_outs(both):
    return both.opcodes()[0].count(Opcode.DATA_OUT)


@pytest.mark.parametrize(("limit", "sent"), [(0, 6), (6, 6), (5, 0), (2, 0)])
def test_unsolicited_data_is_announced_only_where_the_target_has_receives_for_all_of_it(
    limit, sent
):
    both = pair(OPEN, limits=IserLimits(receives=64, unexpected_limit=limit))
    data = pattern(96 * BLOCK)
    both.left.write(0, 96, data)
    assert both.one().status == 0
    assert data_outs(both) == sent
    assert both.ram[: data.size].tobytes() == data.tobytes()
    both.check_at_rest()


def test_commands_share_what_there_is_and_have_it_back_with_their_responses():
    both = pair(OPEN, limits=IserLimits(receives=64, unexpected_limit=7, own_limit=7))
    for number in range(4):
        both.left.write(96 * number, 96, pattern(96 * BLOCK, number), user_data=number)
    assert [done.status for done in both.finish().values()] == [0] * 4
    assert data_outs(both) == 6, "the first one's; the others' data was read"
    both.left.write(0, 96, pattern(96 * BLOCK, 9))
    assert both.one().status == 0
    assert data_outs(both) == 12
    both.check_at_rest()


def test_a_target_with_few_receives_is_never_without_one():
    few = IserLimits(receives=8, pdu_limit=8)
    both = Pair(OPEN, LENGTHS, 8192, few, IserLimits(receives=8), right_options={"hot": True})
    for number in range(30):
        both.left.write(16 * number, 16, pattern(16 * BLOCK, number), user_data=number)
    assert [done.status for done in both.finish(lambda: 1).values()] == [0] * 30
    assert not both.left.broken
    assert not both.right.broken
    both.check_at_rest()


def test_immediate_requests_wait_for_the_target_s_receives_and_commands_pass_them():
    side = IserInitiator(
        SessionParams(), LENGTHS, limits=IserLimits(receives=16, unexpected_limit=2)
    )
    alone = LoneTarget(side)
    header = bhs.encode_pdu(Opcode.TASK_MANAGEMENT_REQUEST, immediate=1, function=5, itt=NO_TAG)
    tags = [side.initiator.send_control(header, user_data=number) for number in range(4)]
    side.submit(bytes(16))
    alone.turn()
    assert sent(side) == [2, 2, 1], "two requests, then the command"
    alone.send(alone.response(tags[0], opcode=Opcode.TASK_MANAGEMENT_RESPONSE))
    alone.send(alone.response(tags[1], opcode=Opcode.TASK_MANAGEMENT_RESPONSE))
    assert sent(side) == [2, 2, 1, 2, 2]
    assert int(iser_at(side.iser)[0]["unexpected"]) == 2


NO_TAG = 0xFFFFFFFF


def sent(side):
    return [message[28] & bhs.OPCODE_MASK for message in side.qp.messages]


def test_answers_to_pings_count_until_a_later_request_has_its_response():
    side = IserInitiator(
        SessionParams(), LENGTHS, limits=IserLimits(receives=16, unexpected_limit=2)
    )
    alone = LoneTarget(side)
    for number in range(3):
        ping = alone.response(NO_TAG, opcode=Opcode.NOP_IN, ttt=number, stat_sn=side.stat_sn)
        alone.send(ping)
    assert sent(side) == [0, 0], "the third answer waits"
    first = side.submit(bytes(16), user_data=1)
    alone.turn()
    assert sent(side) == [0, 0, 1]
    alone.send(alone.response(first))
    assert sent(side) == [0, 0, 1, 0]
    assert int(iser_at(side.iser)[0]["unexpected"]) == 1


def reject(alone, header):
    """A Reject of a PDU with this header."""
    reason = RejectReason.PROTOCOL_ERROR
    alone.send(alone.response(NO_TAG, bytes(header), opcode=Opcode.REJECT, reject_reason=reason))


def headers_of(side):
    """Headers of what an initiator sent."""
    return [message[28:76] for message in side.qp.messages]


def test_a_reject_gives_back_what_the_rejected_request_took():
    side = IserInitiator(
        SessionParams(), LENGTHS, limits=IserLimits(receives=16, unexpected_limit=2)
    )
    alone = LoneTarget(side)
    header = bhs.encode_pdu(Opcode.TASK_MANAGEMENT_REQUEST, immediate=1, function=5, itt=NO_TAG)
    for number in range(3):
        side.initiator.send_control(header, user_data=number)
    alone.turn()
    assert sent(side) == [2, 2], "the third request waits"
    reject(alone, headers_of(side)[0])
    assert sent(side) == [2, 2, 2]
    assert int(iser_at(side.iser)[0]["unexpected"]) == 2
    reject(alone, headers_of(side)[0])
    assert int(iser_at(side.iser)[0]["unexpected"]) == 2, "it was given back before"


def test_a_reject_gives_back_what_an_answer_to_a_ping_took():
    side = IserInitiator(
        SessionParams(), LENGTHS, limits=IserLimits(receives=16, unexpected_limit=2)
    )
    alone = LoneTarget(side)
    for number in range(3):
        ping = alone.response(NO_TAG, opcode=Opcode.NOP_IN, ttt=number, stat_sn=side.stat_sn)
        alone.send(ping)
    assert sent(side) == [0, 0], "the third answer waits"
    reject(alone, headers_of(side)[0])
    assert sent(side) == [0, 0, 0]
    for _ in range(5):
        reject(alone, headers_of(side)[0])
    assert int(iser_at(side.iser)[0]["unexpected"]) == 0, "never less than nothing"
    assert int(iser_at(side.iser)[0]["pdus"]) == 0


def test_a_reject_of_unsolicited_data_gives_back_that_pdu_and_its_command_the_rest():
    side = IserInitiator(OPEN, LENGTHS, limits=IserLimits(receives=64, unexpected_limit=8))
    alone = LoneTarget(side)
    tag = side.write(0, 96, pattern(96 * BLOCK))
    alone.turn()
    mine = iser_at(side.iser)[0]
    assert (int(mine["unexpected"]), int(mine["pdus"])) == (6, 7)
    data_outs = [each for each in headers_of(side) if each[0] == Opcode.DATA_OUT]
    reject(alone, data_outs[2])
    assert (int(mine["unexpected"]), int(mine["pdus"])) == (5, 6)
    alone.send(alone.response(tag))
    assert (int(mine["unexpected"]), int(mine["pdus"])) == (0, 0)


@pytest.mark.parametrize("length", [0, 47])
def test_a_reject_without_a_header_gives_nothing_back(length):
    side = IserInitiator(
        SessionParams(), LENGTHS, limits=IserLimits(receives=16, unexpected_limit=2)
    )
    alone = LoneTarget(side)
    header = bhs.encode_pdu(Opcode.TASK_MANAGEMENT_REQUEST, immediate=1, function=5, itt=NO_TAG)
    side.initiator.send_control(header, user_data=1)
    alone.turn()
    reject(alone, headers_of(side)[0][:length])
    assert int(iser_at(side.iser)[0]["unexpected"]) == 1


# --- the target's ----------------------------------------------------------------------------


def lone_target(limit):
    limits = IserLimits(receives=64, unexpected_limit=limit)
    return LoneInitiator(IserTarget(SessionParams(), LENGTHS, iser_limits=limits))


def unexpected(alone):
    """Opcodes of what came that the initiator could not expect."""
    kinds = (Opcode.NOP_IN, Opcode.REJECT, Opcode.ASYNC_MESSAGE)
    return [header.opcode for _, header, _ in alone.got() if header.opcode in kinds]


@pytest.mark.parametrize("opcode", [Opcode.ASYNC_MESSAGE, Opcode.REJECT])
def test_no_more_unexpected_pdus_are_out_than_the_initiator_has_receives_for(opcode):
    alone = lone_target(4)
    target = alone.side.target
    for _ in range(7):
        assert target.send_control(bhs.encode(opcode, itt=NO_TAG), b"")
    alone.turn()
    assert len(unexpected(alone)) == 4
    alone.exp_stat_sn += 4
    alone.send(alone.command())  # it acknowledges them
    found = alone.got()
    assert len([each for each in found if each[1].opcode == opcode]) == 3
    assert len([each for each in found if each[1].opcode == Opcode.SCSI_RESPONSE]) == 1


def test_a_ping_counts_until_it_is_answered():
    alone = lone_target(2)
    for number in range(3):
        alone.side.target.send_control(bhs.encode(Opcode.NOP_IN, itt=NO_TAG, ttt=number), b"")
    alone.turn()
    assert len(unexpected(alone)) == 2
    alone.send(alone.command())
    assert unexpected(alone) == [], "nothing was answered"
    alone.send(alone.request(Opcode.NOP_OUT, itt=NO_TAG, ttt=0, immediate=1))
    assert len(unexpected(alone)) == 1
    assert int(iser_at(alone.side.iser)[0]["pings"]) == 2


def test_responses_never_wait_behind_what_is_not_expected():
    alone = lone_target(2)
    for _ in range(5):
        alone.side.target.send_control(bhs.encode(Opcode.ASYNC_MESSAGE, itt=NO_TAG), b"")
    alone.turn()
    alone.got()
    for number in range(5):
        alone.send(alone.command(itt=number))
    assert [header.opcode for _, header, _ in alone.got()] == [Opcode.SCSI_RESPONSE] * 5


def test_without_a_limit_everything_goes_out_at_once():
    alone = lone_target(0)
    for _ in range(9):
        alone.side.target.send_control(bhs.encode(Opcode.ASYNC_MESSAGE, itt=NO_TAG), b"")
    alone.turn()
    assert len(unexpected(alone)) == 9
