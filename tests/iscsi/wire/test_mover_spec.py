"""What a host says of a connection that an engine is to take over: the message comes back as it
was, and anything else is refused in words, never with another error and never with huge memory.
"""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire.initiator_task import initiator_at
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.mover_spec import INITIATOR, TARGET, MoverSpec
from iscsi.wire.port import PortLimits
from shm.view import address_of
from tests.iscsi.wire.full_feature import examples, memory
from tests.iscsi.wire.split_initiator import window_word

LARGEST = 2 << 30


def spec(role=INITIATOR):
    counts, sns = ((64,), (1, 32, 1)) if role == INITIATOR else ((32, 65536, 2), (1, 1))
    return MoverSpec(role, SessionParams(), ConnectionParams(), PortLimits(), counts, sns)


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


@pytest.mark.parametrize("role", [INITIATOR, TARGET])
def test_a_spec_comes_back_from_its_message_as_it_was(role):
    assert MoverSpec.from_message(spec(role).to_message()) == spec(role)


@settings(max_examples=examples(800), deadline=None)
@given(data=st.data(), role=st.sampled_from([INITIATOR, TARGET]))
def test_a_message_with_anything_in_it_is_a_spec_of_bounded_size_or_a_value_error(data, role):
    message = spec(role).to_message()
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(message))))
        message = changed(message, path, data.draw(VALUES))
    try:
        made = MoverSpec.from_message(message)
        size = made.size
    except ValueError:
        return
    assert 0 < size <= LARGEST


@pytest.mark.parametrize("role", [INITIATOR, TARGET])
def test_a_message_without_one_of_its_fields_is_refused(role):
    message = spec(role).to_message()
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
