"""A guest that serves files from its disks through our target, until its plug is pulled; and what
the disks then hold, read without booting it.

The guest runs this machine's Python and this checkout, seen read-only, under a memory overlay.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.guest.machine import Guest
from tests.guest.serve_file import IQN
from tests.iscsi.session.tgt import free_port

ROOT = Path(__file__).parent.parent.parent
PORT = 3260
UNIT_BYTES = 32 << 20
DISK_BYTES = 96 << 20
READY_S = 300
TOOLS = ("e2fsck", "debugfs", "gcc")
# Compiled code that an emulated processor can run too, and finds in this machine's cache.
PORTABLE = {"NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": "", "PYTHONPATH": str(ROOT)}
_SYSTEM_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
# What was not flushed must be lost: the guest's kernel writes nothing back on its own.
_MOUNT = """
set -e
load host
echo 0 >/proc/sys/vm/dirty_writeback_centisecs
mkdir -p /lower /upper /host
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose hostroot /lower
mount -t tmpfs tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /host
for folder in dev proc sys; do mount -o rbind /$folder /host/$folder; done
"""
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
            self.guest.run(_MOUNT)
            for number, preload in enumerate(preloads):
                self._start("abcd"[number], PORT + number, cache, preload)
            for number in range(len(preloads)):
                self._wait_for("abcd"[number])
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
        variables = {**PORTABLE, "HOME": str(Path.home()), "PATH": os.defpath}
        if "PPE_CACHE_DIR" in os.environ:
            variables["PPE_CACHE_DIR"] = os.environ["PPE_CACHE_DIR"]
        if preload is not None:
            variables["LD_PRELOAD"] = str(preload)
        settings = " ".join(f"{name}='{value}'" for name, value in variables.items())
        program = f"{sys.executable} -m tests.guest.serve_file /unit-{letter}/file {UNIT_BYTES}"
        script, log = f"run-target-{letter}", f"/run/target-{letter}"
        self.guest.write(
            f"/host/{script}", f"cd '{ROOT}' && exec {program} {cache} 0.0.0.0 {port}\n"
        )
        self.guest.run(
            f"{settings} chroot /host /bin/sh /{script} >{log}.log 2>&1 & echo $! >{log}.pid"
        )

    def _wait_for(self, letter):
        log = f"/run/target-{letter}"
        alive = f"kill -0 $(cat {log}.pid) 2>/dev/null"
        self.guest.run(
            f"until grep -q ready {log}.log; do {alive} || break; sleep 0.2; done", timeout=READY_S
        )
        said = self.guest.output(f"cat {log}.log")
        assert said == "ready\n", f"the target in the guest said: {said}"

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
