"""A command that has to compile says so, to its user and to the service manager; others do not."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ppe import compiling
from shm.jit import JIT_DISABLED, ROOT

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
# A command with compiled code of its own.
PROGRAM = """
import sys
from ppe import compiling
with compiling.shown():
    import worker
    print(worker.double(21))
"""
WORKER = """
from shm.jit import entry

@entry("int64(int64)")
def double(value):
    return 2 * value
"""


def test_the_first_start_says_that_it_compiles_and_the_second_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        said = []
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM],
                cwd=tmp_path,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
                    "PPE_CACHE_DIR": str(tmp_path / "cache"),
                    "NOTIFY_SOCKET": str(tmp_path / "notify"),
                },
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
            said.append(done.stderr)
        assert said == [f"{compiling.FIRST}\n", ""]
        assert manager.recv(4096).decode() == f"STATUS={compiling.FIRST}"
        assert manager.recv(4096).decode().startswith("EXTEND_TIMEOUT_USEC=")
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
