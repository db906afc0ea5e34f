"""One engine for the tests that leave theirs as they found it."""

import pytest

import host.inline  # noqa: F401 - compiles while tests are collected, where no timeout runs
import ppe.control
import ppe.cycle.services.datamover  # noqa: F401 - the same for the daemon's parts
from tests.e2e.running import RunningEngine, environment_of


@pytest.fixture(scope="session")
def shared_engine(tmp_path_factory):
    """Run one engine for the whole session."""
    with RunningEngine(tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture
def engine(shared_engine):
    """Lend the session's engine; fails if the test left something in it, or it did not survive."""
    before = shared_engine.levels()
    with environment_of(shared_engine):
        yield shared_engine
    assert shared_engine.is_alive, shared_engine.complaints()
    shared_engine.assert_settles_at(before)
