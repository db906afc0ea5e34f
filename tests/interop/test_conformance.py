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
# Those that move data.
ON_FILES = [
    suite
    for suite in conformance.SUITES
    if suite.startswith(("Read", "Write", "Verify", "OrWrite", "Compare", "Unmap", "GetLBA"))
    and suite not in (*conformance.NO_FILES, "ReadOnly")
]
# Those in which the placements differ most: all others are run by `make conformance-all`.
EVERYWHERE = [
    suite
    for suite in conformance.SUITES
    if suite.startswith(("Read1", "Write1", "iSCSI")) and not suite.startswith("WriteAtomic")
]
TESTS = 230  # of the tool's family ALL, in version 1.19


@pytest.fixture(scope="module")
def engine():
    with host.connect("inline:") as handle:
        yield handle


def test_no_suite_of_the_tool_is_left_out():
    assert set(conformance.SUITES) <= set(conformance.listed())
    assert sum(len(conformance.listed()[suite]) for suite in conformance.SUITES) == TESTS
    assert {suite for suite, _ in conformance.plan()} == set(conformance.SUITES)


def cases(suites):
    return [
        pytest.param(*pair, id=f"{pair[0]}-{pair[1].name}") for pair in conformance.plan(suites)
    ]


@pytest.mark.parametrize(("suite", "flavour"), cases(conformance.SUITES))
def test_a_suite_passes_on_luns_that_the_engine_serves(engine, suite, flavour):
    bench = conformance.Bench(engine, placement="engine")
    if suite == "Sanitize":
        for test in conformance.listed()[suite]:
            if (suite, test) not in conformance.SINGLE:
                result = conformance.run_suite(bench, suite, flavour, test)
                assert result.is_good, result.verdict.text
        return
    result = conformance.run_suite(bench, suite, flavour)
    assert result.is_good, result.verdict.text


@pytest.mark.parametrize("placement", ["stream", "datamover"])
@pytest.mark.parametrize(("suite", "flavour"), cases(EVERYWHERE))
def test_a_suite_about_transfers_passes_in_the_other_placements(engine, suite, flavour, placement):
    bench = conformance.Bench(engine, placement=placement)
    result = conformance.run_suite(bench, suite, flavour)
    assert result.is_good, result.verdict.text


@pytest.mark.parametrize(("suite", "flavour"), cases(ON_FILES))
def test_a_suite_about_data_passes_on_luns_in_files(engine, tmp_path, suite, flavour):
    result = conformance.run_suite(conformance.Bench(engine, tmp_path), suite, flavour)
    assert result.is_good, result.verdict.text
