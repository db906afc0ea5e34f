"""The reader of the conformance tool's output, on output it once gave."""

import pytest

from tests.interop import testcu

HEAD = "    [SKIPPED] PERSISTENT RESERVE IN is not implemented.\n\nSuite: S\n"
TAIL = """    [SKIPPED] PERSISTENT RESERVE IN is not implemented.

Run Summary:    Type  Total    Ran Passed Failed Inactive
              suites      1      1    n/a      0        0
               tests      {n}      {n}      {p}      {f}        0
             asserts     11     11     11      0      n/a
"""


def output(body, n, failed=0):
    return HEAD + body + TAIL.format(n=n, p=n - failed, f=failed)


def test_a_skipped_test_is_no_passed_one():
    verdict = testcu.read(
        output("  Test: A ...passed\n  Test: B ...    [SKIPPED] no such thing\npassed", 2)
    )
    assert (verdict.passed, verdict.skipped, verdict.failed) == ({"A"}, {"B"}, frozenset())


def test_the_notice_behind_the_last_test_skips_nothing():
    assert testcu.read(output("  Test: A ...passed", 1)).passed == {"A"}


def test_a_failed_test_is_one_even_with_notices():
    body = "  Test: A ...    [FAILED] it did\n    [SKIPPED] then\nFAILED\n    1. x.c:133\n"
    assert testcu.read(output(body, 1, failed=1)).failed == {"A"}


def test_a_count_that_differs_from_the_tools_own_is_an_error():
    with pytest.raises(AssertionError):
        testcu.read(output("  Test: A ...passed", 2))
    with pytest.raises(AssertionError, match="no summary"):
        testcu.read("iscsi-test-cu: could not connect")


def test_a_failure_the_tool_expected_fails_nothing():
    body = "  Test: A ...    [FAILED] TESTUNITREADY failed\npassed\n  Test: B ...passed"
    assert testcu.read(output(body, 2)).passed == {"A", "B"}
