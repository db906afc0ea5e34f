"""A guest that serves files from its disks through our target, until its plug is pulled; and what
the disks then hold, read without booting it.

The guest runs this machine's Python and this checkout, seen read-only, under a memory overlay.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.guest import host_root
from tests.guest.host_root import PORTABLE, ROOT
from tests.guest.machine import Guest
from tests.guest.serve_file import IQN
from tests.iscsi.session.tgt import free_port

PORT = 3260
UNIT_BYTES = 32 << 20
DISK_BYTES = 96 << 20
READY_S = 300
TOOLS = ("e2fsck", "debugfs", "gcc")
_SYSTEM_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
# What was not flushed must be lost: the guest's kernel writes nothing back on its own.
_KEEP_BACK = "echo 0 >/proc/sys/vm/dirty_writeback_centisecs"
# Each unit has a file system of its own: a flush of one journal writes nothing of the other's.
_MAKE_UNIT = """
set -e
mkfs.ext4 -q /dev/vd{letter}
mkdir /host/unit-{letter}
mount -o commit=900 /dev/vd{letter} /host/unit-{letter}
truncate -s {size} /host/unit-{letter}/file
sync
"""


def _tool(name):
    return shutil.which(name, path=_SYSTEM_PATH)


def warm_up(folder):
    """Compile here, once, what the guest will run."""
    command = [sys.executable, "-m", "tests.guest.serve_file", folder / "unit", "1048576"]
    process = subprocess.Popen(
        [*map(str, command), "writeback", "127.0.0.1", "0"],
        stdout=subprocess.PIPE,
        env={**os.environ, **PORTABLE},
        cwd=ROOT,
    )
    try:
        assert process.stdout.readline() == b"ready\n", "the target does not start here"
    finally:
        process.terminate()
        process.communicate(timeout=30)


def forgetful_library(folder):
    """A library that takes flushes away from whatever it is preloaded to."""
    path = folder / "forgetful.so"
    source = Path(__file__).parent / "forgetful.c"
    command = [_tool("gcc"), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", path, source]
    subprocess.run(command, check=True, timeout=60)
    return path


class PluggedIn:
    """The guest, with a target running for each of `preloads`: a library to preload to it, or None.

    `ports` lead to their portals, in that order.
    """

    def __init__(self, image, folder, preloads, *, cache="writeback"):
        self.disks = [folder / f"disk{number}" for number in range(len(preloads))]
        for path in self.disks:
            with path.open("wb") as disk:
                disk.truncate(DISK_BYTES)
        self.ports = [free_port() for _ in preloads]
        self.guest = Guest(
            image,
            forwards=[(port, PORT + number) for number, port in enumerate(self.ports)],
            disks=self.disks,
            host_root=True,
            memory="2G",
        )
        try:
            host_root.mount(self.guest)
            self.guest.run(_KEEP_BACK)
            for number, preload in enumerate(preloads):
                self._start("abcd"[number], PORT + number, cache, preload)
            for number in range(len(preloads)):
                host_root.wait_until_ready(self.guest, f"target-{'abcd'[number]}", READY_S)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.guest.close()

    def _start(self, letter, port, cache, preload):
        self.guest.run(_MAKE_UNIT.format(letter=letter, size=UNIT_BYTES))
        settings = {} if preload is None else {"LD_PRELOAD": str(preload)}
        words = ["-m", "tests.guest.serve_file", f"/unit-{letter}/file", UNIT_BYTES]
        words += [cache, "0.0.0.0", port]
        host_root.start(self.guest, f"target-{letter}", words, settings)

    def pull_the_plug(self):
        """End the machine at once. May be called by any thread."""
        self.guest.process.kill()

    def unit_bytes(self, number):
        """A unit's file as its disk holds it, after the file system's own repair."""
        self.guest.process.wait()
        disk = self.disks[number]
        done = subprocess.run(
            [_tool("e2fsck"), "-f", "-y", disk], capture_output=True, timeout=60, check=False
        )
        assert done.returncode in (0, 1), done.stdout  # 1: the journal was replayed
        path = disk.with_name(f"unit{number}")
        dump = [_tool("debugfs"), "-R", f"dump file {path}", disk]
        subprocess.run(dump, check=True, capture_output=True, timeout=60)
        found = path.read_bytes()
        assert len(found) == UNIT_BYTES
        return found


__all__ = ["IQN", "TOOLS", "UNIT_BYTES", "PluggedIn", "forgetful_library", "warm_up"]
