"""Bytes and words at raw addresses, in both byte orders."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm.view import address_of, opener, window
from tests.shm import doors

WIDTHS = [(1, "little"), (2, "little"), (4, "little"), (8, "little")]
WIDTHS += [(2, "big"), (3, "big"), (4, "big"), (8, "big")]


@given(data=st.binary(min_size=9, max_size=9), shift=st.integers(0, 1))
def test_loads_read_what_the_bytes_say(data, shift):
    memory = np.frombuffer(data, np.uint8).copy()
    rest = data[shift:]
    expected = tuple(int.from_bytes(rest[:size], order, signed=size == 8) for size, order in WIDTHS)
    assert doors.read_all_widths(address_of(memory) + shift) == (*expected, rest[7])


@pytest.mark.parametrize("kind", range(8))
@given(value=st.integers(-(2**63), 2**63 - 1))
def test_stores_write_their_low_bytes_and_no_other(kind, value):
    memory = np.full(16, 0xA5, np.uint8)
    doors.write_width(address_of(memory) + 3, kind, value)
    size, order = WIDTHS[kind]
    low = (value & ((1 << 8 * size) - 1)).to_bytes(size, order)
    assert memory.tobytes() == b"\xa5" * 3 + low + b"\xa5" * (13 - size)


@given(
    data=st.binary(min_size=64, max_size=64),
    target=st.integers(0, 32),
    source=st.integers(0, 32),
    size=st.integers(0, 32),
)
def test_copies_may_overlap(data, target, source, size):
    memory, expected = np.frombuffer(data, np.uint8).copy(), bytearray(data)
    expected[target : target + size] = data[source : source + size]
    at = address_of(memory)
    doors.copy_bytes(at + target, at + source, size)
    assert memory.tobytes() == expected


def test_zeroing_touches_its_bytes_only():
    memory = np.full(16, 7, np.uint8)
    doors.zero_bytes(address_of(memory) + 3, 8)
    assert memory.tolist() == [7] * 3 + [0] * 8 + [7] * 5


def test_a_window_shows_and_changes_the_memory_itself():
    memory = np.arange(4, dtype=np.int64)
    seen = window(address_of(memory), 4, np.int64)
    seen[2] = 99
    assert memory.tolist() == [0, 1, 99, 3]


def test_an_opener_gives_the_record_at_an_address():
    pair = np.dtype([("left", "<i8"), ("right", "<i8")])
    memory = np.array([(1, 2), (3, 4)], pair)
    record = opener(pair)(address_of(memory) + pair.itemsize)[0]
    record["left"] += 10
    assert memory["left"].tolist() == [1, 13]
