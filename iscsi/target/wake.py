"""Ending the server's sleep from another thread, whatever its engine sleeps in: a connection to
ourselves, whose bytes mean nothing. One byte is on the way at most for each time the loop looked.
"""

import contextlib
import socket
from typing import Any, Final

_ADDRESSES: Final = ("127.0.0.1", "::1")
_TIMEOUT_S: Final = 10.0
_ROOM: Final = 256


class Waker:
    """The two ends. `endpoint` is the engine's, received into `buffer`; `descriptor` is ours.

    Raises OSError when this machine has no loopback address.
    """

    def __init__(self, engine: Any, channel: Any) -> None:
        listener, address = _listen(channel)
        try:
            self._socket = socket.create_connection(address, _TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setblocking(False)
            self.endpoint = self._accept(channel, listener)
        finally:
            channel.close_endpoint(listener)
        self.buffer = engine.alloc(_ROOM)

    def _accept(self, channel: Any, listener: int) -> int:
        """The connection that is ours: somebody else may have found the port first."""
        ours = self._socket.getsockname()[:2]
        while True:
            endpoint, peer = channel.accept(listener, timeout_s=_TIMEOUT_S)
            if peer == ours:
                return int(endpoint)
            channel.close_endpoint(endpoint)

    @property
    def descriptor(self) -> int:
        """What a byte is sent to."""
        return self._socket.fileno()

    def wake(self) -> None:
        """Have the server look. Any thread, also a signal handler; never waits."""
        # A full socket wakes as well as a byte more would; a closed one has nobody to wake.
        with contextlib.suppress(OSError):
            self._socket.send(b"\0")

    def close(self) -> None:
        """Give back what is ours; the endpoint goes with its channel. Idempotent."""
        self._socket.close()
        if self.buffer is not None:
            self.buffer.free()
            self.buffer = None


def _listen(channel: Any) -> tuple[int, tuple[str, int]]:
    failed: OSError | None = None
    for host in _ADDRESSES:
        try:
            listener, port = channel.listen(host, 0)
        except OSError as error:
            failed = error
        else:
            return int(listener), (host, int(port))
    assert failed is not None, "there are addresses to try"
    raise failed
