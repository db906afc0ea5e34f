"""libiscsi's conformance suites: all of the thin LUN, and of each other flavour what is about it.
Sanitize.Reset sleeps for a minute, so only `make conformance` runs it.
"""

import pytest

import host
from shm.jit import JIT_DISABLED
from tests.interop import conformance

pytestmark = [
    pytest.mark.slow,
    pytest.mark.interop(conformance.TOOL),
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]
TESTS = 230  # of the tool's family ALL, in version 1.19


@pytest.fixture(scope="module")
def engine():
    with host.connect("inline:") as handle:
        yield handle


@pytest.fixture(params=["memory", "file"])
def bench(engine, request, tmp_path):
    return conformance.Bench(engine, tmp_path if request.param == "file" else None)


def test_no_suite_of_the_tool_is_left_out():
    assert set(conformance.SUITES) <= set(conformance.listed())
    assert sum(len(conformance.listed()[suite]) for suite in conformance.SUITES) == TESTS
    assert {suite for suite, _ in conformance.plan()} == set(conformance.SUITES)


@pytest.mark.parametrize(
    ("suite", "flavour"),
    [pytest.param(*pair, id=f"{pair[0]}-{pair[1].name}") for pair in conformance.plan()],
)
def test_suite(bench, suite, flavour):
    if suite == "Sanitize":
        for test in conformance.listed()[suite]:
            if (suite, test) not in conformance.SINGLE:
                result = conformance.run_suite(bench, suite, flavour, test)
                assert result.is_good, result.verdict.text
        return
    result = conformance.run_suite(bench, suite, flavour)
    assert result.is_good, result.verdict.text
