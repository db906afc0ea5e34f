"""The buffer pool against a set of taken indices."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.pool import Pool


@given(
    count=st.integers(1, 12),
    steps=st.lists(st.one_of(st.none(), st.integers(-2, 14)), max_size=60),
)
@settings(deadline=None)
def test_no_buffer_is_given_out_twice_or_lost(count, steps):
    pool, taken, fewest = Pool(count), set(), count
    for index in steps:
        if index is None:
            found = pool.take()
            assert (found is None) == (len(taken) == count)
            if found is not None:
                assert found not in taken
                assert 0 <= found < count
                taken.add(found)
        elif index in taken:
            pool.give(index)
            taken.remove(index)
        else:
            with pytest.raises(ValueError, match=f"buffer {index} is not taken"):
                pool.give(index)
        fewest = min(fewest, count - len(taken))
        assert pool.free_count == count - len(taken)
    assert pool._state["low_water"][0] == fewest


def test_the_buffer_given_back_last_is_taken_first():
    pool = Pool(4)
    first, second = pool.take(), pool.take()
    pool.give(first)
    pool.give(second)
    assert (pool.take(), pool.take()) == (second, first)


@pytest.mark.parametrize("count", [0, -1])
def test_an_empty_pool_is_refused(count):
    with pytest.raises(ValueError, match="holds none"):
        Pool(count)
