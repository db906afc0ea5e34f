"""An initiator over iSER and software iWARP on an ordinary socket, in a thread: the halves and the
cores of the sans-IO tests, with MPA's start-up in front and without a login.
"""

import select
import socket
import threading
import time

import numpy as np

from host.verbs import mpa
from iscsi.wire.iser.connecting import Features
from iscsi.wire.iser.records import IserLimits
from ppe.cycle.rnic.iwarp.core import RTS, QpSpec
from shm.verbs_numbers import (
    SEND_SIGNALED,
    WR_SEND,
)
from shm.view import address_of
from tests.iscsi.wire.iser.fabric import Work
from tests.iscsi.wire.iser.over_iwarp import IwarpQueuePair
from tests.iscsi.wire.iser.pair import LENGTHS, IserInitiator
from tests.ppe.rnic import joined

WAIT_S = 60


class SocketInitiator(threading.Thread):
    """Connects to `address` and does `work(self)`; whoever made it asks for `error` afterwards."""

    def __init__(self, address, session, work, *, window=32, invalidates=True):
        super().__init__(daemon=True)
        self.address, self.session, self.work = address, session, work
        self.window, self.invalidates = window, invalidates
        self.error = None
        self.may_begin = threading.Event()  # whether the target takes messages already
        self.may_begin.set()

    def run(self):
        try:
            with socket.create_connection(self.address, timeout=WAIT_S) as self.connection:
                self._begin()
                assert self.may_begin.wait(WAIT_S), "the target is not ready"
                self.work(self)
        except BaseException as error:
            self.error = error

    def _begin(self):
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours = Features(send_invalidate=self.invalidates)
        wishes = mpa.Wishes(
            ird=16, ord=1, rtr=mpa.Rtr.WRITE | mpa.Rtr.READ, private_data=ours.to_bytes()
        )
        self.connection.sendall(mpa.request(wishes).encode())
        reader = mpa.FrameReader(True, time.monotonic(), WAIT_S)
        while reader.frame is None:
            data = self.connection.recv(reader.wanted)
            assert data, "the target hung up"
            reader.receive(data)
        startup = mpa.agree(wishes, reader.frame)
        spec = QpSpec(
            active=True,
            crc=startup.crc,
            rtr=int(startup.rtr),
            ird=startup.ird,
            ord=startup.ord,
            sq_depth=256,
        )
        rnic = joined.Rnic()
        end = joined.QueuePair(rnic, spec, number=1, rq=joined.ReceiveQueue(rnic, 128))
        limits = IserLimits(receives=64, remote_invalidate=self.invalidates)
        self.side = IserInitiator(
            self.session, LENGTHS, 8192, window_size=self.window, limits=limits
        )
        self.side.qp = IwarpQueuePair(end, None)
        self.end = end
        self.side.work()

    def finish(self, count=1):
        """Move bytes until so many commands have ended; they are returned in that order."""
        found, deadline = [], time.monotonic() + WAIT_S
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} commands ended"
            assert not self.side.broken, f"the connection ended: {self.side.broken}"
            self.pump()
            found += self.side.initiator.completions()
        return found

    def pump(self):
        """One round: the halves, then the socket both ways. False once the target has gone."""
        moved = self.side.turn()
        data = self.end.data_to_send()
        if data:
            self.connection.sendall(data)
        ready, _, _ = select.select([self.connection], [], [], 0 if moved or data else 0.005)
        if not ready:
            return True
        data = self.connection.recv(1 << 16)
        self.end.take(data)
        return bool(data)

    def say(self, message):
        """Send a message of the test's own, and nothing else."""
        raw = np.frombuffer(message + b"\0", np.uint8).copy()
        self.kept = raw
        pieces = [(address_of(raw), len(message))] if message else []
        self.side.qp.sends.append(Work(WR_SEND, SEND_SIGNALED, -1, 0, 0, 0, pieces))
        self.connection.sendall(self.end.data_to_send())

    def hears(self):
        """Whether the target says anything but that it closes the connection."""
        self.connection.settimeout(WAIT_S)
        try:
            data = self.connection.recv(1 << 16)
        except ConnectionError:
            return False
        self.end.take(data)
        return bool(data) and self.end.state == RTS
