"""What a target can get wrong towards an initiator over a queue pair: the connection ends with a
reason, every command ends once, and no tag stays open.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.iser.build import STAT_SN_REACH
from iscsi.wire.iser.header import Hello, HelloReply, decode, encode_hello
from iscsi.wire.iser.records import IserLimits, iser_at
from iscsi.wire.keys import SessionParams
from iscsi.wire.violations import Violation
from shm.verbs_numbers import (
    WC_LOC_LEN_ERR,
    WC_WR_FLUSH_ERR,
)
from tests.iscsi.wire.full_feature import BLOCK, examples, pattern
from tests.iscsi.wire.iser.lone import LoneTarget
from tests.iscsi.wire.iser.pair import LENGTHS, IserInitiator

ECONNRESET = -104


def lone(session=None, *, limits=None, **options):
    limits = limits or IserLimits(receives=16, remote_invalidate=True)
    side = IserInitiator(session or SessionParams(), LENGTHS, limits=limits, **options)
    return LoneTarget(side)


def read(alone, blocks=8, **options):
    """A READ that is out; its tag and its buffer."""
    buffer = np.zeros(blocks * BLOCK, np.uint8)
    itt = alone.side.read(0, blocks, buffer, **options)
    alone.turn()
    return itt, buffer


def closed_and_clean(alone, commands):
    """The service's part once a connection is over; then no tag is open and every command ended."""
    side = alone.side
    side.end(ECONNRESET)
    side.take()
    assert [tag for tag in side.qp.tags.values() if not tag.is_kept] == []
    assert side.open == {}
    side.initiator.fail_all(ECONNRESET)
    assert len(list(side.initiator.completions())) == commands


@pytest.mark.parametrize("length", [0, 27, 28, 75])
def test_a_send_shorter_than_its_headers_ends_the_connection(length):
    alone = lone()
    itt, _ = read(alone)
    alone.send(alone.response(itt)[:length])
    assert alone.is_ended_by(Violation.SHORT_SEND)
    closed_and_clean(alone, 1)


@pytest.mark.parametrize("missing", [1, 4, 20])
def test_sense_data_beyond_its_send_ends_the_connection(missing):
    alone = lone()
    itt, _ = read(alone)
    sense = b"\0\x12" + bytes(18)
    alone.send(alone.response(itt, sense, status=2)[:-missing])
    assert alone.is_ended_by(Violation.DATA_BEYOND_SEND)
    closed_and_clean(alone, 1)


@pytest.mark.parametrize("opcode", [Opcode.DATA_IN, Opcode.R2T])
def test_what_rdma_does_has_no_pdu(opcode):
    alone = lone()
    itt, _ = read(alone)
    alone.send(alone.response(itt, opcode=opcode))
    assert alone.is_ended_by(Violation.OPCODE)
    closed_and_clean(alone, 1)


def test_a_response_that_invalidates_another_command_s_tag_ends_the_connection():
    alone = lone()
    first, _ = read(alone, user_data=1)
    read(alone, user_data=2)
    tags = list(alone.side.qp.tags)
    assert len(tags) == 2
    alone.send(alone.response(first), invalidate=tags[1])
    assert alone.is_ended_by(Violation.FOREIGN_INVALIDATE)
    side = alone.side
    side.qp.tags[tags[1]] = None  # the RNIC's half of it is gone: only the half's own is checked
    closed_and_clean_foreign(alone)


def closed_and_clean_foreign(alone):
    side = alone.side
    side.end(ECONNRESET)
    side.take()
    assert side.qp.tags == {}
    assert side.open == {}


def test_a_ping_that_invalidates_a_tag_ends_the_connection():
    alone = lone()
    itt, _ = read(alone)
    (stag,) = alone.side.qp.tags
    alone.send(alone.response(itt, opcode=Opcode.NOP_IN, ttt=5, stat_sn=1), invalidate=stag)
    assert alone.is_ended_by(Violation.FOREIGN_INVALIDATE)


def test_an_invalidation_that_was_not_agreed_on_ends_the_connection():
    alone = lone(limits=IserLimits(receives=16))
    itt, _ = read(alone)
    (stag,) = alone.side.qp.tags
    alone.send(alone.response(itt), invalidate=stag)
    assert alone.is_ended_by(Violation.FOREIGN_INVALIDATE)


def test_a_second_response_ends_the_connection_and_leaves_the_first_one_s_result():
    alone = lone(limits=IserLimits(receives=16))
    itt, _ = read(alone)
    alone.side.post_all = lambda room=0: None
    alone.send(alone.response(itt, underflow=1, residual_count=96))
    alone.send(alone.response(itt, underflow=1, residual_count=4000))
    assert alone.side.broken < 0
    (done,) = alone.side.initiator.completions()
    assert done.received == 8 * BLOCK - 96


def test_a_response_to_nothing_ends_the_connection():
    alone = lone()
    alone.send(alone.response(0x00010007))
    assert alone.is_ended_by(Violation.UNKNOWN_ITT)


def test_a_residual_beyond_the_command_s_length_means_no_data():
    alone = lone()
    itt, _ = read(alone)
    alone.send(alone.response(itt, underflow=1, residual_count=0xFFFFFFFF))
    (done,) = alone.side.initiator.completions()
    assert done.received == 0


@pytest.mark.parametrize(
    "answer",
    [
        HelloReply(8, rejected=True),
        HelloReply(8, 11, 11),
        HelloReply(8, 10, 9),
        Hello(8),
    ],
    ids=["refused", "newer", "older", "a Hello"],
)
def test_a_hello_that_is_not_answered_as_it_should_ends_the_connection(answer):
    alone = lone(limits=IserLimits(receives=16, hello=True))
    alone.side.submit(scsi.test_unit_ready())
    alone.turn()
    assert [len(message) for message in alone.side.qp.messages] == [28], "the command waits"
    alone.send(encode_hello(answer))
    assert alone.is_ended_by(Violation.HELLO)
    closed_and_clean(alone, 1)


def test_a_response_instead_of_the_answer_to_a_hello_ends_the_connection():
    alone = lone(limits=IserLimits(receives=16, hello=True))
    alone.side.submit(scsi.test_unit_ready())
    alone.turn()
    alone.send(alone.response(0x10000))
    assert alone.is_ended_by(Violation.HELLO)


def test_sense_data_beyond_a_receive_breaks_the_queue_pair_and_every_command_ends():
    alone = lone(limits=IserLimits(receives=16, data_length=8192))
    itt, _ = read(alone)
    size = alone.side.limits.receive_size
    message = alone.response(itt, bytes(252), status=2).ljust(size + 1, b"\0")
    alone.send(message)
    assert alone.side.broken < 0
    statuses = {int(wc[0]["status"]) for is_receive, wc in alone.side.qp.done if is_receive}
    assert statuses <= {WC_LOC_LEN_ERR, WC_WR_FLUSH_ERR}
    closed_and_clean(alone, 1)


@pytest.mark.parametrize("stage", range(6))
def test_a_peer_that_goes_away_at_any_moment_leaves_no_tag_open(stage):
    alone = lone(SessionParams(initial_r2t=False, first_burst_length=16384))
    side = alone.side
    side.read(0, 16, np.zeros(16 * BLOCK, np.uint8), user_data=1)
    side.write(0, 100, pattern(100 * BLOCK), user_data=2)
    side.turn()
    for _ in range(stage):
        side.qp.step()
        side.poll()
    side.broken = ECONNRESET
    closed_and_clean(alone, 2)
    assert int(iser_at(side.iser)[0]["conn"]) == side.lower.address


MUTATIONS = st.lists(st.tuples(st.integers(0, 95), st.integers(0, 255)), max_size=5)


@given(st.lists(st.tuples(MUTATIONS, st.booleans()), min_size=1, max_size=6), st.booleans())
@settings(max_examples=examples(150), deadline=None)
def test_no_answer_crashes_or_leaves_a_tag(answers, remote):
    alone = lone(limits=IserLimits(receives=16, remote_invalidate=remote))
    for number, (changes, invalidates) in enumerate(answers):
        if alone.why is not None:
            break
        itt, _ = read(alone, user_data=number)
        message = bytearray(alone.response(itt, b"\0\x12" + bytes(18), status=2))
        for at, value in changes:
            message[at] = value
        stag = decode(alone.side.qp.messages[-1]).read_stag if remote and invalidates else 0
        alone.send(message, invalidate=stag if stag in alone.side.qp.tags else 0)
    side = alone.side
    if stag not in side.qp.tags:
        side.qp.tags[stag] = None  # gone at the RNIC; the half may not have heard of it
    side.end(ECONNRESET)
    side.take()
    side.qp.tags.pop(stag, None)
    assert side.qp.tags == {}
    assert side.open == {}


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 3, 2), (3, 2, 1, 0), (0, 0, 1, 1)])
def test_statuses_that_overtook_each_other_are_taken(order):
    """isert counts them in several threads, without a lock."""
    alone = lone()
    tags = [read(alone)[0] for _ in order]
    first = alone.stat_sn
    for itt, place in zip(tags, order, strict=True):
        alone.send(alone.response(itt, stat_sn=first + place))
    assert alone.why is None
    assert len(list(alone.side.initiator.completions())) == len(order)
    alone.got()
    read(alone)
    ((_, header, _),) = alone.got()
    assert header.exp_stat_sn == first + max(order) + 1


@pytest.mark.parametrize("away", [STAT_SN_REACH + 1, -STAT_SN_REACH - 1, 1 << 31])
def test_a_status_far_from_its_turn_ends_the_connection(away):
    alone = lone()
    itt, _ = read(alone)
    alone.send(alone.response(itt, stat_sn=(alone.stat_sn + away) & 0xFFFFFFFF))
    assert alone.is_ended_by(Violation.STAT_SN)
    closed_and_clean(alone, 1)
