"""A connection in memory: two pipes that deliver as much as the schedule says, and lose what it
says. Nothing here looks at a clock or draws a random number of its own.
"""

import ctypes

import numpy as np

from host.memory import Buffer
from iscsi.wire.port import port_at
from shm.view import address_of

POISON = 0xDD


class PrivateMemory:
    """Memory as an engine's handle gives it, but of this process; freed memory is poisoned."""

    def __init__(self):
        self.out = 0

    def alloc(self, size):
        """Zeroed, as engines give it, on a cache line."""
        raw = np.zeros(size + 4096, np.uint8)
        start = -address_of(raw) % 4096
        self.out += 1
        return Buffer(raw[start : start + size], self)

    def take_back(self, buffer):
        """Called by `Buffer.free`."""
        buffer.array.fill(POISON)
        self.out -= 1


class Link:
    """Both directions of a connection, and which of its ends knows that it is over."""

    def __init__(self):
        self.up, self.down = bytearray(), bytearray()
        self.near_open = self.far_open = True

    def cut(self, near=True, far=True):
        """End it for one side or both; for both, what is on its way is lost."""
        self.near_open = self.near_open and not near
        self.far_open = self.far_open and not far
        if not self.near_open:
            self.down.clear()
        if not self.far_open:
            self.up.clear()

    def take(self, pipe, length):
        """The next bytes of `up` or `down`."""
        piece = bytes(pipe[:length])
        del pipe[:length]
        return piece


class Transmitter:
    """Sends as an engine does: what was handed over is read from its memory some time later."""

    def __init__(self, doors, address):
        self._doors, self._address = doors, address
        self._posted = []

    def post(self):
        """Hand over what there is, up to eight spans."""
        while length := self._doors.tx_next(self._address):
            self._posted.append((int(port_at(self._address)[0]["span_address"]), length))
            self._doors.tx_take(self._address, length)
            if len(self._posted) >= 8:
                return

    def send(self, limit):
        """Up to `limit` bytes of what was handed over, and tell that they were sent."""
        pieces = []
        while limit and self._posted:
            start, length = self._posted[0]
            size = min(length, limit)
            pieces.append(ctypes.string_at(start, size))
            self._doors.tx_done(self._address, size)
            limit -= size
            if size == length:
                self._posted.pop(0)
            else:
                self._posted[0] = (start + size, length - size)
        return b"".join(pieces)
