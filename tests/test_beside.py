"""Making targets beside each other: all are made, none is mixed with another, nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BESIDE = Path(__file__).parent.parent / ".ci" / "beside"

# Stands for make: `make --no-print-directory TARGET`. Two targets talk at the same time: each waits
# until the other has begun.
MAKE = """#!/usr/bin/env bash
cd "$(dirname "$0")" || exit 9
echo "$2 begins"
case $2 in
    one | two)
        touch "$2"
        until [ -e one ] && [ -e two ]; do sleep 0.01; done ;;
    endless) touch endless; while :; do sleep 0.05; done ;;
    interruptible) exec "$PYTHON" -c 'import signal; print(signal.getsignal(signal.SIGINT))' ;;
    bad) exit 3 ;;
esac
echo "$2 ends"
"""


@pytest.fixture
def start(tmp_path):
    """Start `.ci/beside` with some targets; ended with the test."""
    make = tmp_path / "make"
    make.write_text(MAKE)
    make.chmod(0o755)
    started = []

    def begin(*targets, jobs=2):
        process = subprocess.Popen(
            [BESIDE, "make all", *targets],
            env={**os.environ, "MAKE": str(make), "JOBS": str(jobs), "PYTHON": sys.executable},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def outcome(process):
    """Its exit code, and its lines."""
    text, _ = process.communicate(timeout=60)
    return process.returncode, [line for line in text.splitlines() if line]


def test_two_run_at_the_same_time_and_what_each_says_stays_together(start):
    code, lines = outcome(start("one", "two"))
    assert code == 0
    for target in ("one", "two"):
        at = lines.index(f"---- {target}")
        assert lines[at + 1 : at + 3] == [f"{target} begins", f"{target} ends"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_all_are_made_though_one_fails_and_that_one_is_named_last(start, jobs):
    code, lines = outcome(start("bad", "three", "bad", "four", jobs=jobs))
    assert code == 1
    assert lines[-1] == "make all failed in: bad bad"
    assert {"three ends", "four ends"} <= set(lines)


def test_when_it_is_stopped_it_says_what_was_said_and_leaves_nothing_running(start, tmp_path):
    process = start("endless", "three")
    deadline = time.monotonic() + 30
    while not (tmp_path / "endless").exists():
        assert time.monotonic() < deadline, "waited 30 s for a target to begin"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, lines = outcome(process)
    assert code != 0
    assert "endless begins" in lines
    assert lines[-1].startswith("make all was stopped in:")
    assert "endless" in lines[-1]


def test_a_target_can_be_interrupted_as_in_a_terminal(start):
    _, lines = outcome(start("interruptible"))
    assert "<built-in function default_int_handler>" in lines
