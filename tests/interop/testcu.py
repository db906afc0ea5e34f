"""Runs libiscsi's conformance tool and reads what it says: CUnit counts a skipped test as passed,
and a suite name that matches nothing as success, so both are counted here from the text.
"""

import re
from dataclasses import dataclass

from tests.interop.serve import run

_SUMMARY = re.compile(r"^\s*tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", re.MULTILINE)
# "[FAILED]" with brackets is a notice: some tests try a command until it succeeds.
_TEST = re.compile(r"^  Test: (\S+) \.\.\.(.*?)(passed|(?<!\[)FAILED)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """What became of each test, by name; `text` is all that the tool said."""

    passed: frozenset
    failed: frozenset
    skipped: frozenset
    text: str

    @property
    def ran(self):
        return len(self.passed) + len(self.failed) + len(self.skipped)


def read(text):
    """The verdict in the tool's output. AssertionError if its own count of tests is another."""
    passed, failed, skipped = set(), set(), set()
    for name, between, outcome in _TEST.findall(text):
        if outcome == "FAILED":
            failed.add(name)
        else:
            # A notice behind the outcome belongs to the clean-up of the suite, not to the test.
            (skipped if "[SKIPPED]" in between else passed).add(name)
    found = Verdict(frozenset(passed), frozenset(failed), frozenset(skipped), text)
    summary = _SUMMARY.search(text)
    assert summary, f"no summary in: {text}"
    assert found.ran == int(summary[2]), text
    assert len(failed) == int(summary[4]), text
    return found


def conform(suite, *urls, timeout=90):
    """Run one suite (or one test) against the LUN, data loss allowed, in a process of its own."""
    done = run("iscsi-test-cu", "-d", "-t", suite, *urls, timeout=timeout, check=False)
    assert done.returncode in (0, 1), f"the tool ended with {done.returncode}: {done.stderr}"
    return read(done.stdout)
