"""Atomics: right values always, and the right instructions where code is compiled."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm import atomics
from shm.jit import JIT_DISABLED, nopython
from shm.view import address_of

compiled_only = pytest.mark.skipif(JIT_DISABLED, reason="there is no assembly without the compiler")


@nopython
def poll_until(address, value):
    rounds = 0
    while atomics.load_acquire(address) != value:
        rounds += 1
        atomics.pause()
    return rounds


@nopython
def poll_relaxed_until(address, value):
    rounds = 0
    while atomics.load_relaxed(address) != value:
        rounds += 1
    return rounds


@nopython
def poll_word_until(address, value):
    rounds = 0
    while atomics.load_acquire_32(address) != value:
        rounds += 1
    return rounds


@nopython
def store_fence_load(mine, other):
    atomics.store_relaxed(mine, 1)
    atomics.fence()
    return atomics.load_relaxed(other)


@nopython
def store_twice(first, second):
    atomics.store_relaxed(first, 1)
    atomics.store_release(second, 2)
    atomics.store_relaxed(first, 3)


@nopython
def add_32(address, value):
    return atomics.fetch_add_32(address, value)


@nopython
def add_64(address, value):
    return atomics.fetch_add(address, value)


@nopython
def put_nine_over(address, expected):
    return atomics.compare_exchange(address, expected, 9)


@nopython
def cycles_twice():
    return atomics.cycles(), atomics.cycles()


ADDRESS_TWICE = (store_fence_load, store_twice)


def instructions(function):
    """The lines of the compiled function itself, without its Python wrapper.

    Not `entry`: code out of the cache has no assembly to look at.
    """
    words = np.zeros(2, np.int64)
    second = address_of(words) + 8 if function in ADDRESS_TWICE else 0
    function(address_of(words), second)
    (text,) = function.inspect_asm().values()
    return re.search(r"^_ZN.*?:\n(.*?)\.Lfunc_end0", text, re.DOTALL | re.MULTILINE)[1]


def loops(text):
    """The bodies of the loops: from a label to the jump back to it."""
    found = []
    for label in re.findall(r"^(\.LBB0_\d+):", text, re.MULTILINE):
        inside = text.partition(f"{label}:")[2]
        if jump := re.search(rf"\tj\w+\t{re.escape(label)}\b", inside):
            found.append(inside[: jump.end()])
    return found


@compiled_only
@pytest.mark.parametrize("function", [poll_until, poll_relaxed_until, poll_word_until])
def test_a_polling_loop_loads_in_every_round(function):
    bodies = loops(instructions(function))
    assert bodies
    assert all(re.search(r"\t(mov|cmp)\w*\t.*\(%r\w+\)", body) for body in bodies)


@compiled_only
def test_a_polling_loop_pauses():
    assert all("\tpause" in body for body in loops(instructions(poll_until)))


@compiled_only
def test_a_fence_stands_between_the_store_and_the_load():
    text = instructions(store_fence_load)
    store = text.index("$1, (%r")
    fence = re.search(r"\tmfence|\tlock\b|\txchg", text)
    assert fence is not None
    assert store < fence.start()
    assert re.search(r"\tmov\w*\t\(%r\w+\), ", text[fence.start() :])


@compiled_only
def test_stores_stay_in_program_order_and_none_is_left_out():
    text = instructions(store_twice)
    places = [text.index(f"${value}, (%r") for value in (1, 2, 3)]
    assert places == sorted(places)
    assert not re.search(r"mfence|lock", text)


@compiled_only
@pytest.mark.parametrize("function", [add_32, add_64, put_nine_over])
def test_read_modify_write_is_locked(function):
    assert re.search(r"\tlock\s.*(xadd|cmpxchg)", instructions(function))


@given(start=st.integers(-(2**31), 2**31 - 1), value=st.integers(-(2**31), 2**31 - 1))
def test_fetch_add_32_gives_what_was_there_and_wraps_alone(start, value):
    words = np.array([start, 77], np.int32)
    assert add_32(address_of(words), value) == start
    assert words.tolist() == [(start + value + 2**31) % 2**32 - 2**31, 77]


@pytest.mark.parametrize(("expected", "left"), [(-5, 9), (5, -5), (-(1 << 63), -5)])
def test_compare_exchange_writes_only_over_what_was_expected(expected, left):
    memory = np.array([7, -5, 7], np.int64)
    assert put_nine_over(address_of(memory) + 8, expected) == -5
    assert memory.tolist() == [7, left, 7]


@given(start=st.integers(-(2**62), 2**62), value=st.integers(-(2**62), 2**62 - 1))
def test_fetch_add_gives_what_was_there(start, value):
    words = np.array([start], np.int64)
    assert add_64(address_of(words), value) == start
    assert words[0] == start + value


def test_loads_and_stores_reach_their_word_only():
    words = np.array([5, 6, 7], np.int64)
    assert store_fence_load(address_of(words), address_of(words) + 8) == 6
    assert words.tolist() == [1, 6, 7]
    store_twice(address_of(words), address_of(words) + 16)
    assert words.tolist() == [3, 6, 2]
    assert poll_until(address_of(words), 3) == 0
    assert poll_relaxed_until(address_of(words), 3) == 0
    assert poll_word_until(address_of(words) + 4, 0) == 0


def test_the_cycle_counter_goes_forward():
    first, second = cycles_twice()
    assert 0 < first <= second
