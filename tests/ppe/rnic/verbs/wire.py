"""Our iWARP core on a plain socket, with MPA's start-up in front: a software RNIC in a test's own
thread, against the kernel's siw in the guest. It runs while the test waits for the guest.
"""

import select
import socket
import time

from host.verbs import mpa
from ppe.cycle.rnic.iwarp.core import QpSpec
from tests.ppe.rnic.joined import QueuePair, Rnic

RUN_S = 30


def _frame(connection, reply):
    """Read one Request or Reply and nothing behind it."""
    reader = mpa.FrameReader(reply, time.monotonic())
    while reader.wanted:
        data = connection.recv(reader.wanted)
        assert data, "the peer closed during the start-up"
        reader.receive(data)
    return reader.frame


class Wire:
    """One connection; `region` is registered memory, `startup` what MPA agreed on."""

    def __init__(self, connection, startup, **spec):
        self.connection, self.startup = connection, startup
        self.rnic = Rnic()
        self.region = self.rnic.region(256 << 10)
        made = QpSpec(
            active=startup.active,
            crc=startup.crc,
            markers_rx=startup.markers_rx,
            markers_tx=startup.markers_tx,
            ird=startup.ird,
            ord=startup.ord,
            rtr=int(startup.rtr),
            **spec,
        )
        self.qp = QueuePair(self.rnic, made)
        self.found = []
        self.is_closed = False
        self._unsent = b""
        connection.setblocking(False)

    @classmethod
    def connect(cls, port, wishes, **spec):
        """Connect as the active side."""
        connection = socket.create_connection(("127.0.0.1", port), RUN_S)
        connection.sendall(mpa.request(wishes).encode())
        return cls(connection, mpa.agree(wishes, _frame(connection, True)), **spec)

    @classmethod
    def accept(cls, listener, wishes, **spec):
        """Accept the next connection."""
        connection, _ = listener.accept()
        connection.settimeout(RUN_S)
        reply, startup = mpa.answer(_frame(connection, False), wishes)
        connection.sendall(reply.encode())
        return cls(connection, startup, **spec)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def run(self, until, others=()):
        """Carry bytes until `until()`; `others` are sockets that may change what it says."""
        end = time.monotonic() + RUN_S
        while not until():
            assert time.monotonic() < end, f"nothing more came in {RUN_S} s: {self.found}"
            self.step(others)

    def step(self, others=(), wait_s=0.05):
        """Send what there is, take what came."""
        if not self.is_closed:
            self._unsent += self.qp.data_to_send(1 << 16)
        reading = [*others] if self.is_closed else [self.connection, *others]
        writing = [self.connection] if self._unsent and not self.is_closed else []
        readable, writable, _ = select.select(reading, writing, [], wait_s)
        try:
            if writable:
                self._unsent = self._unsent[self.connection.send(self._unsent) :]
            if self.connection in readable:
                data = self.connection.recv(1 << 16)
                self.is_closed = not data
                self.qp.take(data)
        except ConnectionError:
            self.is_closed = True
        self.found += self.qp.completions()

    def completions(self, count):
        """The next `count` completions."""
        self.run(lambda: len(self.found) >= count)
        taken, self.found = self.found[:count], self.found[count:]
        return taken

    def completion(self, status=0):
        (found,) = self.completions(1)
        assert found["status"] == status, found
        return found


def ask(guest, wire, call, timeout=60, **arguments):
    """Run a call in the guest while our side goes on working; what it returned."""
    guest.start(f"tests.ppe.rnic.verbs.on_device.peer:{call}", **arguments)
    wire.run(guest.has_answer, [guest.socket])
    return guest.result(timeout)
