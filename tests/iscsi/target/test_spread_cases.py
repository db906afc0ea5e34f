"""Task management and reservations, the same cases as elsewhere, where the sessions that meet are
at two engines of one daemon.
"""

import pytest

import ppe.control
import ppe.cycle.services.datamover  # noqa: F401 - compiles while tests are collected
from shm.jit import JIT_DISABLED
from tests.e2e.running import RunningEngine, environment_of
from tests.iscsi.target import test_reservations_wire, test_task_management
from tests.iscsi.target.managing import SECOND
from tests.iscsi.target.serving import EVERYWHERE, Serving
from tests.iscsi.target.test_reservations_wire import released

__all__ = ["released"]

PLACEMENTS = EVERYWHERE
ELSEWHERE = "test_a_reservation_stops_the_others_after_a_restart_of_the_server"  # inline only

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")

for _module in (test_reservations_wire, test_task_management):
    globals().update(
        (name, case)
        for name, case in vars(_module).items()
        if name.startswith("test_") and callable(case) and name != ELSEWHERE
    )


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    with RunningEngine(directory, "--engines", "2") as made, environment_of(made):
        yield made


@pytest.fixture(scope="module")
def serving(placement, daemon):
    """A server over both engines."""
    with Serving(engine=daemon.name, placement=placement) as found:
        yield found


@pytest.fixture
def second(serving, first):
    """The session of another initiator, at the other engine."""
    with serving.log_in(initiator=SECOND, isid=0x80AABBCC0002) as session:
        for lun in (0, 1):
            session.clear_attention(lun)
        sessions = serving.server.statistics()["sessions"]
        assert sorted(each["engine"] for each in sessions) == [0, 1]
        yield session
