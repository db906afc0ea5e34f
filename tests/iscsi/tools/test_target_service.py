"""The target's unit under a real systemd: booted in namespaces on top of this machine's own files,
with the network, the processes and the memory of a machine of its own.

The server runs as plain Python there: what is asked is whether unit and program agree, and the
compiled code of another user is not at hand.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shm.jit import JIT_DISABLED
from tests.iscsi.tools.running import ROOT

HERE = Path(__file__).parent
SYSTEMD = Path("/lib/systemd/systemd")
NOT_ALLOWED = 77
BOOT_S = 280
HIERARCHIES = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")
CONFIG = """
[[portal]]
listen = "127.0.0.1:3260"
[[target]]
name = "iqn.2026-01.org.example:disks"
  [[target.lun]]
  lun = 0
  backend = "file"
  path = "/var/lib/ppe-target/disk.img"
  size = "16M"
  thin = true
"""
# The unit has a /tmp of its own. Where this checkout lies below the real one, it is shown there.
SHOWN = """
[Service]
BindReadOnlyPaths={}
"""
PROGRAM = f"""#!/bin/sh
export PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1 NUMBA_DISABLE_JIT=1
exec {sys.executable} -m ppe "$@"
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(BOOT_S + 20),
    pytest.mark.skipif(JIT_DISABLED, reason="the same in both runs"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the namespaces"),
    pytest.mark.skipif(
        not SYSTEMD.exists() or shutil.which("unshare") is None, reason="systemd is not here"
    ),
]


@pytest.fixture
def cgroup():
    """A group of the test's own, by its name in every hierarchy; whatever is made in it goes."""
    name = f"ppe-test-{os.getpid()}"
    own = [
        Path(hierarchy) / name
        for hierarchy in HIERARCHIES
        if (Path(hierarchy) / "cgroup.procs").exists()
    ]
    try:
        for path in own:
            path.mkdir()
        yield name
    except OSError:
        pytest.skip("control groups cannot be made here")
    finally:
        for path in own:
            for below in sorted(path.rglob("*/"), reverse=True):
                below.rmdir()
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()


def boot(space, cgroup):
    """Run `systemd_judge.sh` under systemd. What it found, and all that was said."""
    files, out = space / "files", space / "out"
    units = files / "etc/systemd/system"
    for folder in (
        units,
        files / "usr/lib/sysusers.d",
        files / "usr/local/bin",
        files / "run",
        out,
    ):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "packaging/systemd/ppe-target@.service", units)
    shutil.copy(ROOT / "packaging/sysusers.d/ppe-target.conf", files / "usr/lib/sysusers.d")
    (files / "usr/local/bin/ppe").write_text(PROGRAM)
    (files / "usr/local/bin/ppe").chmod(0o755)
    (files / "run/disks.toml").write_text(CONFIG)
    (out / "console").touch()
    seen = {str(ROOT), sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent)}
    if hidden := [path for path in sorted(seen) if path.startswith(("/tmp/", "/var/tmp/"))]:
        (units / "ppe-target@.service.d").mkdir()
        (units / "ppe-target@.service.d/shown.conf").write_text(SHOWN.format(" ".join(hidden)))
    done = subprocess.run(
        [HERE / "systemd_boot.sh", space, HERE / "systemd_judge.sh", cgroup, *sorted(seen)],
        capture_output=True,
        text=True,
        timeout=BOOT_S,
        check=False,
    )
    if done.returncode == NOT_ALLOWED:
        pytest.skip(f"namespaces are not allowed here: {done.stderr}")
    said = [done.stderr, *(p.read_text(errors="replace") for p in out.iterdir())]
    found = dict(line.split("=", 1) for line in (out / "found").read_text().splitlines())
    return found, "\n".join(said)


def test_it_starts_reloads_comes_back_and_stops_as_the_unit_says(tmp_path, cgroup):
    found, said = boot(tmp_path, cgroup)
    wanted = {
        "started": "0",
        "status": "serving 1 LUN on 127.0.0.1:3260, 0 sessions",
        "user": "ppe-target",
        "data": "0",
        "stat": "0",
        "reloaded": "0",
        "blocks": '"blocks": 65536',
        "reloaded_wrong": "1",  # and it goes on with what was right
        "after_wrong": "active",
        "restarts": "1",  # it was killed
        "data_after_kill": "0",
        "stopped": "0",
        "result": "success",
        "sockets": "",
        "started_wrong": "1",  # which is not tried again
        "wrong": "exit-code 2 0",
        "segments": "",
    }
    assert found == wanted, said
