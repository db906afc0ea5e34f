"""A channel from Python, with the calls that wait for their own completion: connect, accept, send.

They are made of the posts of `host.posting` and take an operation back when its time is over, so
that its memory is always the caller's again.
"""

import errno
import socket
from time import monotonic_ns
from typing import Any

from numpy.typing import NDArray

from host.completion import Completion, WaitResult
from host.errors import EngineDied, NothingOutstanding, TimedOut
from host.memory import Buffer
from host.posting import POLL_MAX, RING_CAPACITY, TICK_NS, PostingChannel
from shm.operations import CANCELLED, OPCODE_NAMES


class Channel(PostingChannel):
    """What one host thread owns: rings to an engine and back. Made by a handle's `channel()`."""

    def _own(self) -> int:
        self._next_own += 1
        return self._next_own

    def complete(self, user_data: int, timeout_s: float | None = None) -> Completion:
        """Wait for the completion with this user_data; keep all others for `poll`.

        Raises TimeoutError, NothingOutstanding when it cannot come.
        """
        self._check()
        deadline = None if timeout_s is None else monotonic_ns() + int(timeout_s * 1e9)
        while True:
            found = self.pick(user_data)
            if found is not None:
                return found
            if self.outstanding == 0 and not self.is_running:
                raise EngineDied("the engine of this channel is gone: connect again")
            if self.outstanding == 0:
                raise NothingOutstanding(f"no operation with user_data {user_data} is outstanding")
            left = None if deadline is None else (deadline - monotonic_ns()) / 1e9
            if left is not None and left <= 0:
                raise TimeoutError(f"no completion within {timeout_s} s")
            self.wait_n(len(self._backlog) + 1, timeout_s=left)

    def _posted(self, posted: bool) -> None:
        if not posted:
            raise BlockingIOError("the channel's ring is full: poll completions first")

    def connect(self, host: str, port: int, *, timeout_s: float = 10.0) -> int:
        """Connect to a name or address, trying each of its addresses. Return the endpoint.

        Raises OSError (ConnectionRefusedError, TimeoutError, socket.gaierror, ...).
        """
        error: Exception = OSError(f"{host} has no address")
        for address in resolve(host, port):
            own = self._own()
            self._posted(self.post_connect(address, own, timeout_s=timeout_s))
            try:
                return self.complete(own).check().endpoint
            except OSError as failed:
                error = type(failed)(failed.errno, f"{address[0]} port {port}: {failed.strerror}")
        raise error

    def listen(
        self, host: str, port: int, *, backlog: int = 128, reuse_port: bool = False
    ) -> tuple[int, int]:
        """Listen on a name or address. Return the listener and the bound port. Raises OSError."""
        own = self._own()
        address = resolve(host, port, passive=True)[0]
        self._posted(self.post_listen(address, own, backlog=backlog, reuse_port=reuse_port))
        done = self.complete(own).check()
        return done.endpoint, done.arg0

    def accept(
        self, listener: int, *, timeout_s: float | None = None
    ) -> tuple[int, tuple[str, int]]:
        """Wait for a connection. Return its endpoint and its peer. Raises TimedOut."""
        own = self._own()
        self._posted(self.post_accept(listener, own))
        done = self._finish(listener, own, timeout_s).check()
        return done.endpoint, done.peer

    def send(
        self, endpoint: int, data: Buffer | NDArray[Any], timeout_s: float | None = None
    ) -> None:
        """Send all of a shared array.

        Raises TimedOut; if a part was sent already the endpoint is closed then, because the memory
        must come back and the stream would have a hole.
        """
        own = self._own()
        self._posted(self.post_send(endpoint, data, own))
        self._finish(endpoint, own, timeout_s).check()

    def recv(
        self,
        endpoint: int,
        into: Buffer | NDArray[Any],
        *,
        exact: bool = False,
        timeout_s: float | None = None,
    ) -> int:
        """Receive into a shared array. Return the bytes, 0 at the end of the stream.

        Raises EndOfStream when an exact receive cannot be filled, TimedOut (whose `length` bytes
        are in the array), OSError.
        """
        own = self._own()
        self._posted(self.post_recv(endpoint, into, own, exact=exact))
        return self._finish(endpoint, own, timeout_s).check().length

    def _finish(self, endpoint: int, own: int, timeout_s: float | None) -> Completion:
        """The completion of a call's own operation, which is taken back when time is over."""
        try:
            return self.complete(own, timeout_s)
        except TimeoutError:
            done = self._withdraw(endpoint, own)
            if done.status == CANCELLED:
                what = OPCODE_NAMES.get(done.opcode, "")
                raise TimedOut(f"{what}: not done within {timeout_s} s", done.length) from None
            return done  # It was done after all while it was being taken back.
        except KeyboardInterrupt:
            self._withdraw(endpoint, own)
            raise

    def _withdraw(self, endpoint: int, target: int) -> Completion:
        """Take an operation back, so that its memory is the caller's again; how it ended."""
        own = self._own()
        while not self.post_cancel(endpoint, target, own):
            self.progress()
            self.wait_n(len(self._backlog) + 1, timeout_s=0.01)
        if self.complete(own).status == -errno.EALREADY:
            self.close_endpoint(endpoint)
        return self.complete(target)

    def close_endpoint(self, endpoint: int) -> None:
        """End an endpoint and wait until the engine has let go of it."""
        own = self._own()
        self._posted(self.post_close(endpoint, own))
        self.complete(own)


def resolve(host: str, port: int, *, passive: bool = False) -> list[tuple[str, int]]:
    """Numeric addresses of a name, in the order to try. Runs in the host: the engine never asks."""
    flags = socket.AI_PASSIVE if passive else 0
    found = socket.getaddrinfo(host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=flags)
    unique = dict.fromkeys((str(entry[4][0]), int(entry[4][1])) for entry in found)
    return list(unique)


__all__ = [
    "POLL_MAX",
    "RING_CAPACITY",
    "TICK_NS",
    "Channel",
    "Completion",
    "PostingChannel",
    "WaitResult",
    "resolve",
]
