"""Serial arithmetic against plain integers on the circle."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import sequencing as sq

SN = st.integers(0, sq.MASK)
STEP = st.integers(1, sq.HALF - 1)


@settings(deadline=None)  # the first call compiles
@given(SN, STEP)
def test_a_number_is_after_every_number_less_than_half_the_circle_behind(sn, step):
    later = sq.add(sn, step)
    assert sq.is_after(later, sn)
    assert not sq.is_after(sn, later)
    assert sq.distance(sn, later) == step
    assert sq.distance(later, sn) == -step


@settings(deadline=None)  # the first call compiles
@given(SN)
def test_a_number_is_neither_after_itself_nor_after_its_opposite(sn):
    assert not sq.is_after(sn, sn)
    assert not sq.is_after(sq.add(sn, sq.HALF), sn)
    assert not sq.is_after(sn, sq.add(sn, sq.HALF))


@settings(deadline=None)  # the first call compiles
@given(SN, st.integers(0, 300), st.integers(-400, 400))
def test_the_window_holds_exactly_its_numbers(first, size, offset):
    last = sq.add(first, size - 1)
    assert sq.window_size(first, last) == size
    assert sq.in_window(sq.add(first, offset), first, last) == (0 <= offset < size)


def test_a_window_wraps_at_the_end_of_the_circle():
    assert sq.in_window(0, 0xFFFFFFFE, 1)
    assert sq.in_window(0xFFFFFFFF, 0xFFFFFFFE, 1)
    assert not sq.in_window(2, 0xFFFFFFFE, 1)
    assert not sq.in_window(0xFFFFFFFD, 0xFFFFFFFE, 1)


@pytest.mark.parametrize("first", [0, 1, 77, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_maximum_before_the_first_number_closes_the_window(first):
    for back in (1, 2, 100):
        assert not any(
            sq.in_window(sq.add(first, n), first, sq.add(first, -back)) for n in range(-3, 4)
        )
