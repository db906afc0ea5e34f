"""The kernel's initiator keeps its disk while our target is killed and started again: it logs in
anew and repeats what was not answered, and every block that fio wrote is verified afterwards.
"""

import contextlib
import os
import subprocess
import sys

import pytest

import iscsi.target.server  # noqa: F401 - compiles while tests are collected
from shm.jit import JIT_DISABLED
from tests.guest.machine import QEMU_TOOLS
from tests.guest.serve_file import IQN
from tests.interop.serve import ROOT
from tests.iscsi.session.tgt import free_port

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS),
    pytest.mark.timeout(240),
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]

SIZE = 64 << 20
KILLS = 2
# Slow enough to be in the midst of it when the target dies, and read back as a whole at the end.
FIO = """
[through-a-restart]
filename=/dev/{disk}
ioengine=libaio
direct=1
rw=randwrite
bs=16k
size=24M
iodepth=8
rate_iops=150
verify=crc32c
verify_fatal=1
"""


@contextlib.contextmanager
def target(path, port):
    """Our target on a file of this machine, killed at the end without a word."""
    words = (path, SIZE, "writeback", "127.0.0.1", port)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.guest.serve_file", *map(str, words)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    try:
        assert process.stdout.readline() == b"ready\n", "the target did not start"
        yield
    finally:
        process.kill()
        process.communicate()


def test_a_killed_target_comes_back_and_nothing_is_lost(guest, open_iscsi, tmp_path):
    port, path = free_port(), tmp_path / "unit"
    settings = {"node__session__timeo__replacement_timeout": 120}
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(contextlib.ExitStack())
        running.enter_context(target(path, port))
        disks = stack.enter_context(open_iscsi.session(IQN, port, **settings))
        (disk,) = disks[0]
        guest.write("/run/jobs", FIO.format(disk=disk))
        guest.run(
            "rm -f /run/fio.status; (fio /run/jobs >/run/fio.log 2>&1; echo $? >/run/fio.status) &"
        )
        for _ in range(KILLS):
            guest.run("sleep 2; ! [ -e /run/fio.status ]")
            running.close()
            guest.wait_for("grep -q FAILED /sys/class/iscsi_session/session*/state", timeout=20)
            running.enter_context(target(path, port))
        guest.wait_for("[ -s /run/fio.status ]", timeout=100)
        assert guest.output("cat /run/fio.status").strip() == "0", guest.output("cat /run/fio.log")
        assert "detected conn error" in guest.output("dmesg")
