"""iSER's halves over two software RNICs: MPA, DDP and RDMAP carry what the fabric only played."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire.iser.records import IserLimits
from iscsi.wire.keys import SessionParams
from ppe.cycle.rnic.iwarp.core import ERROR, RTS, TERMINATE
from shm.verbs_numbers import WC_WR_FLUSH_ERR
from tests.iscsi.wire.full_feature import BLOCK, examples, pattern
from tests.iscsi.wire.iser.over_iwarp import IwarpPair
from tests.iscsi.wire.iser.pair import LENGTHS
from tests.iscsi.wire.iser.test_flows import INVALIDATES, KEPT, SESSIONS, session_id, write_and_read
from tests.iscsi.wire.split_target import end_all
from tests.ppe.rnic import core_door as door


def pair(session=None, *, limits=KEPT, right=None, **options):
    return IwarpPair(
        session or SessionParams(),
        LENGTHS,
        8192,
        limits,
        limits,
        right_options=right if right is not None else {"hot": True},
        **options,
    )


@pytest.mark.parametrize("hot", [True, False], ids=["engine", "host"])
@pytest.mark.parametrize("session", SESSIONS, ids=session_id)
def test_what_is_written_is_read_back(session, hot):
    both = pair(session, right={"hot": hot})
    for blocks in (1, 16, 200):
        write_and_read(both, blocks)
    both.check_at_rest()
    assert (both.wire.left.state, both.wire.right.state) == (RTS, RTS)


@pytest.mark.parametrize("limits", [KEPT, INVALIDATES], ids=["local", "remote"])
@pytest.mark.parametrize("spec", [{"crc": False}, {"markers": True}, {"mulpdu": 1400}, {"ird": 1}])
def test_every_framing_carries_it(spec, limits):
    both = pair(limits=limits, spec=spec)
    write_and_read(both, 100)
    assert both.left.qp.tags == {}
    both.check_at_rest()


@given(chunk=st.integers(1, 3000), direct=st.booleans(), remote=st.booleans())
@settings(max_examples=examples(16), deadline=None)
def test_bytes_may_come_in_any_pieces(chunk, direct, remote):
    both = pair(limits=INVALIDATES if remote else KEPT, chunk=chunk, direct=direct)
    write_and_read(both, 24)
    both.check_at_rest()


def test_payload_goes_from_the_unit_to_the_buffer_without_a_copy_at_the_receiver():
    both = pair()
    both.left.read(0, 200, np.zeros(200 * BLOCK, np.uint8))
    assert both.one().status == 0
    assert both.wire.left.placed >= 200 * BLOCK


def test_a_tag_that_is_gone_ends_the_connection_with_a_terminate():
    both = pair(SessionParams(immediate_data=False))
    both.left.write(0, 40, pattern(40 * BLOCK), user_data=1)
    both.left.turn()
    (stag,) = both.left.qp.tags
    assert both.wire.left.rnic.memory(door.INVALIDATE, stag, 5) == 0
    both.run()
    assert both.wire.left.state in (TERMINATE, ERROR)
    flush(both)
    assert both.right.broken < 0
    assert not both.ram.any()
    end_all(both.right.engine.address, both.right.broken)
    assert (both.right.engine_luns["under_way"] == 0).all()


def flush(both):
    """What a service does when a connection is over: whatever was posted has its completion."""
    for end in (both.wire.left, both.wire.right):
        end.ask(door.END, WC_WR_FLUSH_ERR)
    both.left.poll()
    both.right.poll()


def test_a_peer_that_vanishes_in_the_middle_of_an_rdma_read_leaves_nothing_behind():
    both = pair(SessionParams(immediate_data=False), chunk=4000)
    both.left.write(0, 200, pattern(200 * BLOCK), user_data=1)
    while not both.ram.any():
        both.turn(lambda: 1)
    assert (both.right.engine_luns["under_way"] == 1).any()
    flush(both)
    assert both.right.broken < 0
    end_all(both.right.engine.address, both.right.broken)
    assert (both.right.engine_luns["under_way"] == 0).all()
    assert all(posted.events == 1 for posted in both.right.posts)


def test_a_send_that_invalidates_what_was_never_lent_ends_the_connection():
    both = pair(limits=IserLimits(receives=64, remote_invalidate=True))
    both.left.read(0, 40, np.zeros(40 * BLOCK, np.uint8), user_data=1)
    both.left.turn()
    both.carry(both.left.qp, None)
    both.right.poll()
    tasks = both.tasks(both.right)
    tasks["read_stag"][tasks["read_stag"] != 0] ^= 0x1
    both.run()
    flush(both)
    assert both.left.broken < 0
    assert both.right.broken < 0
    both.left.end(both.left.broken)
    both.left.take()
    assert both.left.qp.tags == {}
