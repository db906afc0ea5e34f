"""Engines for tests: real daemons, each in its own run directory, stopped by whoever started them.

What an engine holds is looked at from outside: its descriptors, its mappings of shared memory and
its tables. A test that let a client misbehave compares them with what they were before.
"""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
START_S = 240
SETTLE_S = 20
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_numbers = itertools.count()


def wait_until(condition, what, seconds=SETTLE_S):
    """Poll until `condition()` is true and return what it gave; fails with `what` after a while."""
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)


def _die_with_parent():
    """Have the kernel end this process when the test session dies without tidying up."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class RunningEngine:
    """`ppe up --foreground` as a child process. Use as a context manager. `prefix`: a program that
    runs it.
    """

    def __init__(self, directory, *flags, environment=None, prefix=()):
        self.name = f"t{os.getpid()}-{next(_numbers)}"
        self.directory = Path(directory)
        self.environment = {
            **os.environ,
            "PPE_RUNTIME_DIR": str(self.directory),
            "PPE_CPU_LOCK_DIR": str(self.directory),
            **(environment or {}),
        }
        options = list(flags)
        if "--idle" not in options:
            options += ["--idle", "sleep"]
        self.log = (self.directory / f"{self.name}.err").open("w+")
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "ppe", "up", "--name", self.name, *options, "--force",
             "--foreground", "--json"],
            cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=self.log, text=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - engines are started from one thread
        )  # fmt: skip
        self.pid = self.process.pid
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def _await_ready(self):
        """Return when the engine says that it is ready."""
        deadline = time.monotonic() + START_S
        os.set_blocking(self.process.stdout.fileno(), False)
        said = b""
        while b'"ready"' not in said:
            assert self.process.poll() is None, f"the engine ended: {self.complaints()}"
            assert time.monotonic() < deadline, f"not ready: {self.complaints()}"
            time.sleep(0.01)
            with contextlib.suppress(BlockingIOError):
                said += os.read(self.process.stdout.fileno(), 4096)

    def complaints(self):
        """Return what the engine wrote to its standard error."""
        return Path(self.log.name).read_text()

    @property
    def socket_path(self):
        """Return the control socket's path."""
        return self.directory / f"{self.name}.sock"

    def ppe(self, *words, check=True):
        """Run a `ppe` command against this engine's directory."""
        done = subprocess.run(
            [sys.executable, "-m", "ppe", *words], cwd=ROOT, env=self.environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def stat(self):
        """Ask it over its control socket, as `ppe stat --json` does."""
        from ppe.observer import Observer

        with environment_of(self), Observer(self.name) as observer:
            facts = observer.order("stat")
            facts["engines"] = [accounts.snapshot() for accounts in observer.accounts()]
        return facts

    def counters(self):
        """Return the first engine's counters."""
        return self.stat()["engines"][0]["counters"]

    def levels(self):
        """Return what it holds for its clients, and for the observer that asks."""
        from ppe.observer import Observer

        with environment_of(self), Observer(self.name) as observer:
            facts = observer.order("stat")
            engines = [accounts.snapshot() for accounts in observer.accounts()]
            # Counted while the observer is connected: once it has left, its descriptor is there or
            # not as the engine's control plane has found the time.
            return {
                "descriptors": len(list(Path(f"/proc/{self.pid}/fd").iterdir())),
                "mappings": Path(f"/proc/{self.pid}/maps").read_text().count("/dev/shm/"),
                "clients": facts["clients"],
                "channels": sum(len(engine["channels"]) for engine in engines),
                "endpoints": sum(len(engine["endpoints"]) for engine in engines),
            }

    def assert_settles_at(self, before):
        """Wait until it holds what it held before; fails with the difference."""
        deadline = time.monotonic() + SETTLE_S
        while (now := self.levels()) != before:
            assert time.monotonic() < deadline, f"it held {before} and holds {now}"
            time.sleep(0.05)

    @property
    def is_alive(self):
        """Return whether its process runs."""
        return self.process.poll() is None

    def kill(self):
        """Kill it as the kernel would for lack of memory."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self):
        """Stop it in order; fails if it has to be killed."""
        in_order = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
                in_order = False
        self.process.stdout.close()
        self.log.close()
        assert in_order, "the engine did not stop on SIGTERM"
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


@contextlib.contextmanager
def environment_of(engine):
    """Have this process look for engines where `engine` is."""
    before = os.environ.get("PPE_RUNTIME_DIR")
    os.environ["PPE_RUNTIME_DIR"] = str(engine.directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PPE_RUNTIME_DIR"]
        else:
            os.environ["PPE_RUNTIME_DIR"] = before


def json_of(done):
    """Return the JSON object a command printed."""
    return json.loads(done.stdout)
