"""The cycle counter's rate and the shared clock."""

import time

from shm.clock import cycles_per_ns, read_cycles
from tests.shm import doors


def test_the_shared_clock_is_the_one_that_python_reads():
    before = time.monotonic_ns()
    now = doors.monotonic_ns()
    assert before <= now <= time.monotonic_ns()


def test_cycles_go_forward_at_a_constant_rate():
    rate = cycles_per_ns()
    assert 0.01 < rate < 10
    assert cycles_per_ns() == rate
    first = read_cycles()
    assert read_cycles() >= first
