"""A guest with RDMA devices, and one Python process in it that runs what tests ask for.

siw0 is on eth0, whose address tests reach by forwarded ports; rxe0 is on a network of its own.
`WORKER_PORTS` of the guest's ports are forwarded, so that this machine can talk to siw on the wire.
"""

import json
import os
import select
import socket
import subprocess
import sys

from tests.guest import host_root, rdma_image
from tests.guest.machine import HOST, Guest
from tests.iscsi.session.tgt import free_port

ADDRESSES = {"siw0": "10.0.2.15", "rxe0": "10.9.1.1"}
WORKER_PORT = 7400
WIRE_PORTS = range(7401, 7405)  # where siw listens for software of this machine
READY_S = 240
COMPILE_S = 600
CALL_S = 60
# siw counts what it pins against this limit, even for root; rxe does not.
_SET_UP = """
set -e
load rdma
ulimit -l unlimited
ip link add dummy1 type dummy
ip address add 10.9.1.1/24 dev dummy1
ip link set dummy1 up
rdma link add siw0 type siw netdev eth0
rdma link add rxe0 type rxe netdev dummy1
mkdir -p /dev/infiniband
for class in /sys/class/infiniband_verbs/uverbs* /sys/class/misc/rdma_cm; do
    [ -e /dev/infiniband/$(basename $class) ] ||
        mknod /dev/infiniband/$(basename $class) c $(tr : ' ' <$class/dev)
done
"""


class CallFailed(AssertionError):
    """A call in the guest raised; its traceback is the message."""


class RdmaGuest:
    """The guest and its worker, which has imported `modules`. `capture`: a file for all that its
    network card sees, in libpcap's format.
    """

    def __init__(self, made, modules, *, capture=None):
        warm_up(modules)
        self.capture = capture
        self.wire_ports = {port: free_port() for port in WIRE_PORTS}
        worker_port = free_port()
        forwards = [(here, there) for there, here in self.wire_ports.items()]
        more = (
            ()
            if capture is None
            else ("-object", f"filter-dump,id=dump,netdev=net0,file={capture}")
        )
        self.guest = Guest(
            made,
            forwards=[(worker_port, WORKER_PORT), *forwards],
            host_root=True,
            memory="2G",
            more=more,
        )
        self._lines = self.socket = None
        try:
            host_root.mount(self.guest)
            self.guest.run(_SET_UP)
            words = ["-m", "tests.guest.worker", WORKER_PORT, *modules]
            host_root.start(self.guest, "worker", words, rdma_image.settings(made))
            host_root.wait_until_ready(self.guest, "worker", READY_S)
            self.socket = socket.create_connection(("127.0.0.1", worker_port), 20)
            self._lines = self.socket.makefile("rw")
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for item in (self._lines, self.socket):
            if item is not None:
                item.close()
        self.guest.close()

    def start(self, call, **arguments):
        """Ask for a call of `module:function`, to be waited for with `result`."""
        self._lines.write(json.dumps({"call": call, "arguments": arguments}) + "\n")
        self._lines.flush()

    def has_answer(self):
        """Whether `result` would find it there."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def result(self, timeout=CALL_S):
        """What the call that was started last returned. Raises CallFailed."""
        self.socket.settimeout(timeout)
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise CallFailed(f"no answer in {timeout} s; {self.log()}") from None
        if not line:
            raise CallFailed(f"the worker ended: {self.log()}")
        answer = json.loads(line)
        if "error" in answer:
            raise CallFailed(answer["error"])
        return answer["result"]

    def call(self, call, timeout=CALL_S, **arguments):
        """Run `module:function` in the guest; what it returned."""
        self.start(call, **arguments)
        return self.result(timeout)

    def log(self):
        """What the worker and the kernel said."""
        return self.guest.run("cat /run/worker.log", check=False).output + self.guest.kernel()


def warm_up(modules):
    """Compile here, once, what the guest will run."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.guest.worker", "0", *modules],
        env={**os.environ, **host_root.PORTABLE},
        cwd=host_root.ROOT,
        capture_output=True,
        text=True,
        timeout=COMPILE_S,
        check=False,
    )
    assert done.returncode == 0, f"what the guest is to run does not load here: {done.stderr}"


__all__ = ["ADDRESSES", "HOST", "CallFailed", "RdmaGuest"]
