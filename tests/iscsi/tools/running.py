"""`ppe target serve` in a process of its own and the other commands as a person types them, with a
run directory that nobody else uses.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent.parent
PATIENCE_S = 90  # a first start compiles
PPE = (sys.executable, "-m", "ppe")


class Shell:
    """Runs commands with a run directory of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o700, exist_ok=True)
        hidden = ("NOTIFY_SOCKET", "PYTEST_CURRENT_TEST")
        self.environment = {k: v for k, v in os.environ.items() if k not in hidden}
        self.environment |= {"PYTHONPATH": str(ROOT), "PPE_RUNTIME_DIR": str(self.runtime)}

    def run(self, *words, data=None, **environment):
        return subprocess.run(
            [*PPE, *map(str, words)],
            input=data,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=self.folder,
            env=self.environment | environment,
        )

    def json(self, *words, **options):
        done = self.run(*words, "--json", **options)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def fails(self, *words, code=1, **options):
        """What a command that has to fail says, and that it says so in order."""
        done = self.run(*words, **options)
        said = done.stderr.decode()
        assert done.returncode == code, f"{done.returncode}: {said}"
        assert "Traceback" not in said
        return said

    def start(self, *words, **environment):
        """A command that goes on, with its output to be read."""
        return subprocess.Popen(
            [*PPE, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env=self.environment | environment,
        )


class Serving:
    """A target server, ready to be logged in to. `urls` are its LUNs'."""

    def __init__(self, shell, *flags, **environment):
        self.shell = shell
        self.said = b""
        words = ["target", "serve", "--json", *flags]
        if "--config" not in flags:
            words += ["--portal", "127.0.0.1:0"]
        self.process = shell.start(*words, **environment)
        try:
            self.ready = json.loads(self._first_object())
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise
        self.urls, self.control = self.ready["urls"], Path(self.ready["control"])
        self.port = self.ready["portals"][0]["port"]

    def _first_object(self):
        out, text = self.process.stdout, b""
        deadline = time.monotonic() + PATIENCE_S
        while not text.endswith(b"\n}\n"):
            left = deadline - time.monotonic()
            assert left > 0, f"not ready within {PATIENCE_S} s"
            if select.select([out], [], [], left)[0]:
                piece = os.read(out.fileno(), 65536)
                assert piece, self.process.stderr.read().decode()
                text += piece
        return text

    def wait_said(self, text):
        """Wait for something on standard error."""
        deadline = time.monotonic() + 30
        while text.encode() not in self.said:
            left = deadline - time.monotonic()
            assert left > 0, f"not said within 30 s: {text!r}, but {self.said.decode()}"
            if select.select([self.process.stderr], [], [], left)[0]:
                piece = os.read(self.process.stderr.fileno(), 65536)
                assert piece, f"it ended: {self.said.decode()}"
                self.said += piece

    def signal(self, number):
        self.process.send_signal(number)

    def end(self, number=None):
        """Wait for its end, after a signal if there is one; its exit code."""
        if number is not None:
            self.signal(number)
        try:
            _, said = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        self.said += said
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            assert self.end(signal.SIGINT) == 0, self.said.decode()
        else:
            self.process.communicate()
