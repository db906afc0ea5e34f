"""Helpers and doors: whatever a door needs is compiled into it, once, and a helper alone is not."""

import pytest

from shm.jit import JIT_DISABLED, entry, nopython
from shm.linking import DoorLibrary, HelperLibrary

compiled = pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")


@nopython
def lowest(value):
    return value + 1


@nopython
def left(value):
    return lowest(value) * 10


@nopython
def right(value):
    return lowest(value) * 1000


@entry("int64(int64)")
def both(value):
    return left(value) + right(value)


@nopython
def above_a_door(value):
    return both(value) + lowest(value)


@nopython
def scaled(value, factor=3):
    return value * factor


@nopython
def sum_to(value):
    if value == 0:
        return 0
    return value + sum_to(value - 1)


def doors_made(monkeypatch):
    """Count how often LLVM is asked to optimise something of ours."""
    made = []
    optimise = DoorLibrary._optimize_final_module

    def noted(library):
        made.append(library.name)
        optimise(library)

    monkeypatch.setattr(DoorLibrary, "_optimize_final_module", noted)
    return made


def test_a_helper_that_two_others_need_serves_both():
    assert both(1) == 2020


@compiled
def test_a_door_is_optimised_once_with_all_that_lies_below_it_and_no_helper_is(monkeypatch):
    made = doors_made(monkeypatch)

    @nopython
    def below(value):
        return lowest(value) - 1

    @nopython
    def between(value):
        return below(value) + below(value)

    @entry("int64(int64)")
    def door(value):
        return between(value)

    assert door(21) == 42
    assert len(made) == 1
    for helper in (below, between):
        (result,) = helper.overloads.values()
        assert isinstance(result.library, HelperLibrary)
        assert result.library.get_pointer_to_function(result.fndesc.llvm_func_name) == 0


def test_python_may_call_a_helper_whether_compiled_callers_came_before_or_not():
    assert lowest(41) == 42
    assert lowest(41) == 42
    assert above_a_door(1) == 2022
    assert lowest(-1) == 0


@compiled
def test_a_helper_called_from_python_again_is_not_compiled_again(monkeypatch):
    made = doors_made(monkeypatch)

    @nopython
    def helper(value):
        return lowest(value)

    assert [helper(value) for value in range(5)] == [1, 2, 3, 4, 5]
    assert len(made) == 1
    assert helper(0.5) == 1.5
    assert len(made) == 2


def test_defaults_and_names_of_arguments_hold_from_python():
    assert scaled(2) == 6
    assert scaled(2, 5) == 10
    assert scaled(2, factor=7) == 14


@nopython
def digits_of(value):
    if value < 10:
        return 1
    return 1 + digits_of(value // 10)


def test_a_helper_may_call_itself():
    assert digits_of(4321) == 4

    @entry("int64(int64)")
    def door(value):
        return sum_to(value)

    assert door(10) == 55
    assert sum_to(4) == 10


@compiled
def test_calls_in_a_circle_are_refused_when_they_are_compiled():
    @nopython
    def even(value):
        if value == 0:
            return True
        return odd(value - 1)

    @nopython
    def odd(value):
        if value == 0:
            return False
        return even(value - 1)

    with pytest.raises(NotImplementedError, match="call each other in a circle"):
        even(4)
