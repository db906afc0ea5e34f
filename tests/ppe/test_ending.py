"""A command that is told to end tidies up first, and then dies of what it was told."""

import os
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from ppe import ending

ROOT = Path(__file__).parent.parent.parent
# Stands for a module that the command imports first: Ctrl-C comes while it is imported.
INTERRUPTED = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"

# A command that says when it has begun and when it has tidied up. argv: what to do with SIGHUP.
COMMAND = """
import os, signal, sys, time, types
from ppe import cli
class Fake:
    name = help = "fake"
    def prepare_parser(self, parser): pass
    def run(self, args):
        try:
            print("begun", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)  # whoever is in a hurry says it twice
            print("tidied", flush=True)
            raise
module = types.ModuleType("fake_module")
module.Fake = Fake
sys.modules["fake_module"] = module
cli.COMMANDS["fake"] = ("fake_module:Fake", "a fake")
sys.exit(cli.main(["fake"]))
"""


def told(*numbers: int, prepare: str = "") -> tuple[int, str]:
    """Run the command, send it signals once it has begun: how it ended, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", prepare + COMMAND],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for number in numbers:
            process.send_signal(number)
        said, _ = process.communicate(timeout=50)
    finally:
        process.kill()
        process.wait()
    return process.returncode, said


@pytest.mark.parametrize("number", ending.SIGNALS)
def test_it_tidies_up_and_dies_of_the_signal(number: signal.Signals) -> None:
    assert told(number) == (-number, "tidied\n")


def test_an_ignored_signal_stays_ignored() -> None:
    prepare = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    status, said = told(signal.SIGHUP, signal.SIGTERM, prepare=prepare)
    assert (status, said) == (-signal.SIGTERM, "tidied\n")


def test_the_signals_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in ending.SIGNALS]
    with ending.orderly():
        pass
    assert [signal.getsignal(number) for number in ending.SIGNALS] == before


def test_in_another_thread_nothing_is_changed() -> None:
    found: list[str] = []

    def run() -> None:
        with ending.orderly():
            found.append("ran")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert found == ["ran"]


def started_as_a_module() -> list[str]:
    return ["-m", "ppe"]


def started_as_the_console_script() -> list[str]:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["ppe"].partition(":")
    return ["-c", f"import sys; from {module} import {function}; sys.exit({function}())"]


@pytest.mark.parametrize("started", [started_as_a_module, started_as_the_console_script])
def test_ctrl_c_while_it_is_imported_ends_it_quietly(
    started: Callable[[], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "argparse.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, *started(), "version"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
