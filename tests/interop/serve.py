"""A target server in a process of its own, as a user starts it, and engines for it to use."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

START_S = 90  # a first start compiles
STOP_S = 20
IQN = "iqn.2026-01.org.example:interop"
# What `ppe target serve` runs, also where the package was not installed with its entry points.
RUN_TARGET = (
    "import sys; from ppe.cli import Parser; from iscsi.tools.target import TargetCommand; "
    "command = TargetCommand(); parser = Parser(prog='ppe target'); "
    "command.prepare_parser(parser); sys.exit(command.run(parser.parse(sys.argv[1:])))"
)
ROOT = Path(__file__).parent.parent.parent


def environment(runtime=None):
    """The variables for a process of ours; `runtime` keeps its sockets and CPU locks apart."""
    found = dict(os.environ, PYTHONPATH=str(ROOT))
    if runtime is not None:
        found |= {"PPE_RUNTIME_DIR": str(runtime / "run"), "PPE_CPU_LOCK_DIR": str(runtime)}
    return found


def run(*words, timeout=60, check=True, **options):
    """Run a program to its end and return it with its output as text."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
        **options,
    )
    assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done


@contextlib.contextmanager
def engine(runtime, name):
    """A daemon engine that sleeps when it is idle, stopped at the end."""
    ppe = (sys.executable, "-m", "ppe")
    options = {"env": environment(runtime), "cwd": ROOT}
    (runtime / "run").mkdir(mode=0o700, exist_ok=True)
    run(*ppe, "up", "--name", name, "--idle", "sleep", "--force", timeout=START_S, **options)
    try:
        yield name
    finally:
        run(*ppe, "down", "--name", name, timeout=STOP_S, **options)


class Served:
    """`ppe target serve --json` with more flags; `url` is LUN 0's, `portal` is host:port."""

    def __init__(self, *flags, runtime=None):
        words = ["serve", "--portal", "127.0.0.1:0", "--iqn", IQN, "--json", *flags]
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN_TARGET, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(runtime),
            cwd=ROOT,
        )
        try:
            ready = json.loads(self._first_object())
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise
        self.urls = ready["urls"]
        self.url = self.urls[0]
        place = ready["portals"][0]
        self.port = place["port"]
        self.portal = f"{place['host']}:{self.port}"
        assert ready["pid"] == self.process.pid

    def _first_object(self):
        """The JSON object on standard output, which ends with a brace of its own."""
        out, text = self.process.stdout, b""
        deadline = time.monotonic() + START_S
        while not text.endswith(b"\n}\n"):
            left = deadline - time.monotonic()
            assert left > 0, f"not ready within {START_S} s"
            if select.select([out], [], [], left)[0]:
                piece = os.read(out.fileno(), 65536)
                assert piece, f"the server ended: {self.process.stderr.read().decode()}"
                text += piece
        return text

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self, number=signal.SIGTERM):
        """Stop it in order, and return what it said; its exit code must be 0."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            _, said = self.process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        assert self.process.returncode == 0, said.decode()
        return said.decode()
