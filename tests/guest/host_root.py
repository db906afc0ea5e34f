"""This machine's file system in a guest, seen read-only under a memory overlay, and programs of
this machine, its Python and this checkout above all, that run there.
"""

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Compiled code that an emulated processor can run too, and finds in this machine's cache.
PORTABLE = {"NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": "", "PYTHONPATH": str(ROOT)}
_MOUNT = """
set -e
load host
mkdir -p /lower /upper /host
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose hostroot /lower
mount -t tmpfs tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /host
for folder in dev proc sys; do mount -o rbind /$folder /host/$folder; done
"""


def mount(guest):
    """Mount it at /host."""
    guest.run(_MOUNT)


def start(guest, name, words, settings=()):
    """Start this Python with these words in the background. It writes to /run/NAME.log, its process
    id is in /run/NAME.pid; `settings` are further environment variables.
    """
    variables = {**PORTABLE, "HOME": str(Path.home()), "PATH": os.defpath}
    for name_of_cache in ("PPE_CACHE_DIR", "XDG_CACHE_HOME"):
        if name_of_cache in os.environ:
            variables[name_of_cache] = os.environ[name_of_cache]
    variables.update(settings)
    set_up = " ".join(f"{key}={shlex.quote(value)}" for key, value in variables.items())
    program = shlex.join([sys.executable, *map(str, words)])
    guest.write(f"/host/run-{name}", f"cd {shlex.quote(str(ROOT))} && exec {program}\n")
    log, pid = f"/run/{name}.log", f"/run/{name}.pid"
    guest.run(f"{set_up} chroot /host /bin/sh /run-{name} >{log} 2>&1 & echo $! >{pid}")


def wait_until_ready(guest, name, timeout):
    """Wait until the program has printed `ready`, and nothing else."""
    log = f"/run/{name}.log"
    alive = f"kill -0 $(cat /run/{name}.pid) 2>/dev/null"
    guest.run(f"until grep -q ready {log}; do {alive} || break; sleep 0.2; done", timeout=timeout)
    said = guest.output(f"cat {log}")
    assert said == "ready\n", f"{name} in the guest said: {said}"
