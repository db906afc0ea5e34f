"""The session's own promises, each tried on a small session in a process of its own."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent / "conftest.py"
pytestmark = pytest.mark.slow

NEEDS_A_TOOL = """
import pytest

@pytest.mark.interop("no-such-reference-program")
def test_against_the_reference():
    pass
"""


@pytest.fixture
def session(tmp_path):
    """Run `source` as a test file beside a copy of our conftest."""

    def run(source, **environment):
        (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
        (tmp_path / "test_inner.py").write_text(source)
        (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    interop\n    pinned\n")
        inherited = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_ADDOPTS")}
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)],
            cwd=tmp_path,
            env=inherited | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_a_missing_tool_is_listed_as_not_run(session):
    result = session(NEEDS_A_TOOL)
    assert result.returncode == 0, result.stdout
    assert "NOT RUN (missing reference tools)" in result.stdout
    assert "1 tests need no-such-reference-program" in result.stdout
    assert "1 skipped" in result.stdout


def test_a_missing_tool_is_a_failure_on_ci(session):
    result = session(NEEDS_A_TOOL, CI="true")
    assert result.returncode == 1
    assert "CI must have: no-such-reference-program" in result.stdout


def test_a_segment_left_behind_fails_the_session(session):
    name = f"ppe-left-behind-{secrets.token_hex(4)}"
    path = Path("/dev/shm") / name
    try:
        result = session(f"def test_leaks():\n    open({str(path)!r}, 'w').close()\n")
    finally:
        path.unlink(missing_ok=True)
    assert result.returncode == 1
    assert f"left behind in /dev/shm: {name}" in result.stdout


def test_a_clean_session_passes(session):
    result = session("def test_clean():\n    pass\n")
    assert result.returncode == 0, result.stdout
    assert "NOT RUN" not in result.stdout


def test_an_example_may_take_its_time(session):
    result = session(
        "import time\n"
        "from hypothesis import given, settings, strategies\n"
        "@given(strategies.just(0))\n"
        "@settings(max_examples=1)\n"
        "def test_slow(_):\n"
        "    time.sleep(0.3)\n"
    )
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout
