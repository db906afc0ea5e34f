"""Where a module's servers serve: a module that says `PLACEMENTS` runs once for each of them. A
test that promises what only some of them can says so with `only_in`, and why.
"""

import pytest

from tests.iscsi.target import serving as places
from tests.iscsi.target.managing import SECOND


def pytest_configure(config):
    config.addinivalue_line("markers", "only_in(*placements): what it promises holds only there")


def pytest_generate_tests(metafunc):
    placements = getattr(metafunc.module, "PLACEMENTS", None)
    if placements is None:
        return
    marker = metafunc.definition.get_closest_marker("only_in")
    if marker is not None:
        placements = [name for name in placements if name in marker.args]
    metafunc.parametrize("placement", placements, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def placement(request):
    """What servers of this module are made with, unless a test says otherwise."""
    places.default_placement = getattr(request, "param", "stream")
    yield places.default_placement
    places.default_placement = "stream"


@pytest.fixture(scope="module")
def serving(placement):
    """A server for a module that has none of its own."""
    with places.Serving() as found:
        yield found


@pytest.fixture
def first(serving):
    """A session with both units' attentions taken."""
    with serving.log_in() as session:
        for lun in (0, 1):
            session.clear_attention(lun)
        yield session
    serving.wait_idle()


@pytest.fixture
def second(serving):
    """The same of another initiator."""
    with serving.log_in(initiator=SECOND, isid=0x80AABBCC0002) as session:
        for lun in (0, 1):
            session.clear_attention(lun)
        yield session
