"""`ppe demo` that is told to end takes its engine and its target along, whatever it is doing."""

import os
import signal
import subprocess
import sys

import pytest

from shm.jit import JIT_DISABLED
from tests.e2e.running import _LIBC, PR_SET_PDEATHSIG, ROOT, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("shared_engine"),  # which has compiled what an engine needs
    pytest.mark.skipif(JIT_DISABLED, reason="engines are compiled"),
]
PATIENCE_S = 50
ENGINE_BEGUN = "starting an engine"
ENGINE_AT_WORK = "writing, reading back"


class Demo:
    """A demo under way, whose run directory and locks are below `directory`."""

    def __init__(self, directory):
        self.temporary = directory
        environment = {
            **os.environ,
            "TMPDIR": str(directory),
            "PPE_CPU_LOCK_DIR": str(directory),
        }
        self.log = (directory / "demo.err").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ppe", "demo", "--seconds", "100"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
            preexec_fn=lambda: _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
        )

    def said(self):
        """What it said so far."""
        return (self.temporary / "demo.err").read_text()

    def engine_pid(self):
        """The pid in the engine's lock, once there is one; 0 before."""
        for lock in self.temporary.glob("ppe-demo-*/demo.lock"):
            text = lock.read_text().split()
            if text:
                return int(text[0])
        return 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pid = self.engine_pid()
        self.process.kill()
        self.process.wait()
        if pid and is_alive(pid):
            os.kill(pid, signal.SIGKILL)
        self.log.close()


def is_alive(pid):
    """Whether the process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, ENGINE_BEGUN),
        (signal.SIGTERM, ENGINE_AT_WORK),
        (signal.SIGHUP, ENGINE_AT_WORK),
    ],
)
def test_a_demo_that_is_told_to_end_leaves_no_engine(tmp_path, number, moment):
    with Demo(tmp_path) as demo:
        wait_until(lambda: moment in demo.said(), moment, PATIENCE_S)
        pid = wait_until(demo.engine_pid, "the engine's pid", PATIENCE_S)
        demo.process.send_signal(number)
        assert demo.process.wait(PATIENCE_S) == -number, demo.said()
        wait_until(lambda: not is_alive(pid), "the engine's end")
        assert "Traceback" not in demo.said()
        assert not list(tmp_path.glob("ppe-demo-*"))


@pytest.mark.parametrize("words", [("--mib", "0"), ("--mib", "x"), ("--seconds", "0")])
def test_a_demo_of_nothing_is_refused_before_it_starts_an_engine(words):
    done = subprocess.run(
        [sys.executable, "-m", "ppe", "demo", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert words[0] in done.stderr
    assert ENGINE_BEGUN not in done.stderr
