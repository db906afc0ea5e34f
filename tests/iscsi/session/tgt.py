"""A tgtd of the tests' own: one process, one target, LUNs on files in a temporary folder."""

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path

WAIT_S = 10
_STARTED = count()
TARGET = "iqn.2026-01.org.example:disk"
ENVIRONMENT = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for(done, what):
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
        time.sleep(0.02)


class Tgt:
    """A running tgtd. `url` is its LUN 1 (LUN 0 is tgt's controller)."""

    def __init__(self, port, control):
        self.port, self.control = port, control

    @property
    def url(self):
        return self.url_of(1)

    def url_of(self, lun):
        return f"iscsi://127.0.0.1:{self.port}/{TARGET}/{lun}"

    def admin(self, *arguments):
        command = ["tgtadm", "-C", self.control, "--lld", "iscsi", *arguments]
        return subprocess.run(
            command, capture_output=True, timeout=WAIT_S, check=False, env=ENVIRONMENT
        )

    def must(self, *arguments):
        done = self.admin(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)

    def add_lun(self, lun, path, *more):
        self.must(
            *("--op", "new", "--mode", "logicalunit", "--tid", "1"),
            *("--lun", str(lun), "-b", str(path), *more),
        )

    def set_param(self, name, value):
        self.must(
            *("--op", "update", "--mode", "target", "--tid", "1"),
            *("--name", name, "--value", str(value)),
        )


@contextmanager
def tgt_target(folder, size=64 << 20, luns=1, port=None):
    """Start a tgtd with `luns` units of `size` bytes each; ended by its own process.

    Files that are in the folder already are served as they are.
    """
    number = os.getpid() * 7 + int(time.monotonic()) + next(_STARTED)
    port, control = port or free_port(), str(10000 + number % 20000)
    command = ["tgtd", "-f", "-C", control, "--iscsi", f"portal=127.0.0.1:{port}"]
    found = Tgt(port, control)
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    ) as daemon:
        try:
            wait_for(lambda: found.admin("--op", "show", "--mode", "sys").returncode == 0, "tgtd")
            found.must("--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET)
            for lun in range(1, luns + 1):
                path = Path(folder) / f"disk{lun}"
                with path.open("ab") as disk:
                    disk.truncate(size)
                found.add_lun(lun, path)
            found.must("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
            yield found
        finally:
            daemon.kill()
            daemon.wait(WAIT_S)
            for suffix in ("", ".lock"):
                Path(f"/var/run/tgtd/socket.{control}{suffix}").unlink(missing_ok=True)
