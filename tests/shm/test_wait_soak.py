"""The soak of `wait_n` in small, with every run of the suite; `make soak` makes it ten million."""

import os

import pytest

from shm.jit import JIT_DISABLED
from tests.soak import shm_doorbell_soak, shm_kept_soak, shm_wait_soak
from tests.soak.shm_wait_soak import Options, soak

pytestmark = pytest.mark.skipif(
    JIT_DISABLED, reason="too slow as plain Python; tests/shm/test_wait.py runs there"
)

ON_CI = os.environ.get("CI", "").lower() in ("true", "1")
SLEEPS = 200_000 if ON_CI else 20_000
SOAK_SLEEPS = 10_000_000


def lose_none(record_property, options, module=shm_wait_soak.MODULE):
    """Run a soak to its end; what was counted."""
    found = soak(options, module)
    record_property("soak", found)
    assert found["outcome"] == "ok", found
    assert found["sleeps"] >= options.sleeps
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("capacity", [8, 64])
def test_no_sleep_is_lost(capacity, record_property):
    options = Options(sleeps=SLEEPS // 2, seconds_max=180, capacity=capacity, seed=capacity)
    lose_none(record_property, options)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_doorbell_is_lost(record_property):
    options = Options(sleeps=SLEEPS // 2, seconds_max=180, capacity=32, seed=5)
    lose_none(record_property, options, shm_doorbell_soak.MODULE)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_minimum_wait_that_was_left_to_the_producer_is_lost(record_property):
    options = Options(sleeps=SLEEPS // 10, seconds_max=180, capacity=8, seed=3)
    assert lose_none(record_property, options, shm_kept_soak.MODULE)["wakes"] > 0


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_million_sleeps_lose_none(record_property):
    sleeps = int(os.environ.get("PPE_SOAK_SLEEPS", SOAK_SLEEPS))
    lose_none(record_property, Options(sleeps=sleeps, seconds_max=7000, capacity=64, seed=11))
