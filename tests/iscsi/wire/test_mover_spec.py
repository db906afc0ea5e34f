"""What a host says of a connection that an engine is to take over: the message comes back as it
was, and anything else is refused in words, never with another error and never with huge memory.
"""

import copy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire.initiator_task import initiator_at
from iscsi.wire.iser.records import IserLimits, iser_at
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.lun import LUN_SIZE
from iscsi.wire.mover_spec import INITIATOR, TARGET, MoverSpec
from iscsi.wire.port import PortLimits
from shm.view import address_of
from tests.iscsi.wire.full_feature import examples, memory
from tests.iscsi.wire.split_initiator import window_word

LARGEST = 2 << 30


ISER = IserLimits(receives=80, unexpected_limit=4, remote_invalidate=True)
KINDS = [(INITIATOR, None), (TARGET, None), (INITIATOR, ISER), (TARGET, ISER)]
each_kind = pytest.mark.parametrize(("role", "iser"), KINDS)


def spec(role=INITIATOR, iser=None):
    counts, sns = ((64,), (1, 32, 1)) if role == INITIATOR else ((32, 65536, 2), (1, 1))
    port = PortLimits(control_slots=40)
    return MoverSpec(role, SessionParams(), ConnectionParams(), port, counts, sns, iser)


def places(message, path=()):
    """Where each value of a message is."""
    items = message.items() if isinstance(message, dict) else enumerate(message)
    for name, value in items:
        yield (*path, name)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, name))


def changed(message, path, value):
    message = copy.deepcopy(message)
    inner = message
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return message


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.floats(allow_nan=False),
    st.sampled_from([0, -1, 1, 3, 4096, 2**16, 2**24 - 1, 2**24, 2**32, 2**63, 2**64]),
    st.lists(st.integers(), max_size=4), st.dictionaries(st.text(max_size=3), st.integers()),
)  # fmt: skip


@each_kind
def test_a_spec_comes_back_from_its_message_as_it_was(role, iser):
    assert MoverSpec.from_message(spec(role, iser).to_message()) == spec(role, iser)


@each_kind
def test_a_spec_builds_within_its_size(role, iser):
    made = spec(role, iser)
    block = memory(made.size + 64)
    luns = memory(2 * LUN_SIZE)
    block[made.size :] = 0xEE
    made.build(address_of(block), address_of(luns) if role == TARGET else 0)
    assert (block[made.size :] == 0xEE).all()
    if iser is not None:
        mine = iser_at(address_of(block) + made.iser_offset)[0]
        assert (mine["conn"], mine["receive_count"]) == (address_of(block), 80)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"connection": ConnectionParams(data_digest=True)}, "no digests"),
        ({"connection": ConnectionParams(9000)}, "data_length 8192 is outside 9000"),
        ({"iser": IserLimits(receives=5000)}, "receives 5000"),
        ({"counts": (32, 4096, 2)}, "cold_length 4096"),
    ],
)
def test_what_cannot_be_over_rdma_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        MoverSpec.from_message(replace(spec(TARGET, ISER), **change).to_message())


@settings(max_examples=examples(800), deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_a_message_with_anything_in_it_is_a_spec_of_bounded_size_or_a_value_error(data, kind):
    message = spec(*kind).to_message()
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(message))))
        message = changed(message, path, data.draw(VALUES))
    try:
        made = MoverSpec.from_message(message)
        size = made.size
    except ValueError:
        return
    assert 0 < size <= LARGEST


@each_kind
def test_a_message_without_one_of_its_fields_is_refused(role, iser):
    message = spec(role, iser).to_message()
    for path in places(message):
        if isinstance(path[-1], int):
            continue
        less = copy.deepcopy(message)
        inner = less
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
        with pytest.raises(ValueError, match=r"."):
            MoverSpec.from_message(less)


@pytest.mark.parametrize("sns", [(1, 32, 1), (0x80000000, 0x80000010, 5), (0xFFFFFFFF, 3, 0)])
def test_the_window_the_host_knows_is_the_one_the_engine_begins_with(sns):
    made = MoverSpec(
        INITIATOR, SessionParams(), ConnectionParams(), PortLimits(), (8,), sns
    )  # fmt: skip
    block = memory(made.size)
    made.build(address_of(block))
    assert initiator_at(address_of(block))[0]["cmd_sn"] == sns[0]
    word = window_word(address_of(block))
    assert (made.window_word - word) % (1 << 64) == 0
    assert -(1 << 63) <= made.window_word < 1 << 63
