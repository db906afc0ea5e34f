"""Where a module's servers serve: a module that says `PLACEMENTS` runs once for each of them. A
test that promises what only some of them can says so with `only_in`, and why.
"""

import pytest

from tests.iscsi.target import serving


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
    serving.default_placement = getattr(request, "param", "stream")
    yield serving.default_placement
    serving.default_placement = "stream"
