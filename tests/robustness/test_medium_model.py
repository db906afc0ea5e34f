"""The judge of the simulator: what it lets pass, and what it does not."""

import numpy as np
import pytest

from tests.robustness.medium_model import BLOCK, ZEROS, Medium, Wrong

OLD, NEW, DAMAGED = bytes([1]) * BLOCK, bytes([2]) * BLOCK, bytes([2]) * (BLOCK - 1) + b"\3"


@pytest.fixture
def medium():
    return Medium(np.frombuffer(OLD * 4, np.uint8))


def test_a_write_under_way_may_be_there_or_not_or_be_torn(medium):
    medium.begin_write(1, [NEW])
    for content in (OLD, NEW, NEW[:100] + OLD[100:]):
        medium.begin_read("r", 0, 2)
        medium.end_read("r", OLD + content)
    medium.begin_read("r", 0, 2)
    with pytest.raises(Wrong, match="block 1 "):
        medium.end_read("r", OLD + DAMAGED)


def test_an_acknowledged_write_is_all_that_may_be_there(medium):
    medium.begin_write(1, [NEW])
    medium.end_write(1, [NEW])
    medium.begin_read("r", 1, 1)
    with pytest.raises(Wrong, match="block 1 "):
        medium.end_read("r", OLD)
    with pytest.raises(Wrong, match="block 1 "):
        medium.check_all(np.frombuffer(OLD * 4, np.uint8))
    medium.check_all(np.frombuffer(OLD + NEW + OLD * 2, np.uint8))


@pytest.mark.parametrize("is_open_before", [True, False])
def test_a_read_may_show_what_was_damaged_while_it_was_open_although_it_is_mended(
    medium, is_open_before
):
    medium.begin_write(1, [NEW])
    if is_open_before:
        medium.begin_read("r", 0, 3)
    medium.damage(1, 1)
    if not is_open_before:
        medium.begin_read("r", 0, 3)
    medium.end_write(1, [NEW])
    medium.end_read("r", OLD + DAMAGED + OLD)
    medium.begin_read("later", 0, 3)
    with pytest.raises(Wrong, match="block 1 "):
        medium.end_read("later", OLD + DAMAGED + OLD)


def test_damage_excuses_no_other_block(medium):
    medium.begin_read("r", 0, 3)
    medium.damage(1, 1)
    with pytest.raises(Wrong, match="block 2 "):
        medium.end_read("r", OLD + DAMAGED + NEW)
    with pytest.raises(Wrong, match="block 3 "):
        medium.check_all(np.frombuffer(OLD + DAMAGED + OLD + ZEROS, np.uint8))
