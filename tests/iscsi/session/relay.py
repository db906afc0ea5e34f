"""A TCP relay between initiator and target that the test can cut, stall, or close to callers."""

import contextlib
import select
import socket
import threading
import time
from contextlib import contextmanager

UP, DOWN = 0, 1  # towards the target, towards the initiator
NEVER = 1 << 60
LEAVING_S = 5


class Relay:
    """`accepted` counts connections, `passed` the bytes of each way.

    A cut resets both sides, but not the one named by `finishing`: that peer gets a FIN after what
    was passed on before. For a peer behind QEMU's user network, whose libslirp (4.7, soread) ends
    QEMU by an assertion when a connection is reset for which the guest has not yet made room.
    """

    def __init__(self, target, *, finishing=None):
        self.target = target
        self._finishing = finishing
        self._leaving = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.accepted = 0
        self.passed = [0, 0]
        self._left = [NEVER, NEVER]
        self._lock = threading.Lock()
        self._pairs = []
        self._stop = False
        self._is_open = True
        self._is_stalled = False
        self._thread = threading.Thread(target=self._run, name="relay")

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def url(self, url):
        """The URL of the target, by way of the relay."""
        _, _, rest = url.partition("://")
        return f"iscsi://{self.address}/{rest.partition('/')[2]}"

    def cut_after(self, up=NEVER, down=NEVER):
        """Cut the connection when so many more bytes have passed in a direction, once."""
        with self._lock:
            self._left = [up, down]

    def drop(self):
        """Cut every connection now."""
        with self._lock:
            self._cut()

    def stall(self, is_stalled=True):
        """Pass nothing on, and keep the connections."""
        self._is_stalled = is_stalled

    def refuse(self, is_refusing=True):
        """Close whatever connects."""
        self._is_open = not is_refusing

    def _cut(self):
        for pair in self._pairs:
            self._end(pair, is_reset=True)
        self._pairs.clear()
        self._left = [NEVER, NEVER]

    def _end(self, pair, *, is_reset):
        for way, end in zip((DOWN, UP), pair, strict=True):
            if way == self._finishing:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_WR)
                self._leaving.append(end)
                continue
            if is_reset:
                # Nothing that waits in a buffer may reach the other side any more.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            end.close()

    def _drain(self, end):
        """Read what a peer still sends that was told of the end: unread, it would be a reset."""
        with contextlib.suppress(OSError):
            if end.recv(65536):
                return
        end.close()
        self._leaving.remove(end)

    def _accept(self):
        near, _ = self.server.accept()
        self.accepted += 1
        far = None
        if self._is_open:
            with contextlib.suppress(OSError):
                far = socket.create_connection(self.target, 5)
        if far is None:
            near.close()
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.append((near, far))

    def _pass(self, pair, way):
        """Pass on what came; False when the connection is over."""
        source, sink = pair if way == UP else pair[::-1]
        try:
            data = source.recv(min(65536, self._left[way]) or 1)
        except OSError:
            return False
        if self._left[way] < NEVER:
            data = data[: self._left[way]]
            self._left[way] -= len(data)
        self.passed[way] += len(data)
        with contextlib.suppress(OSError):
            sink.sendall(data)
        if self._left[way] == 0:
            self._cut()
            return True
        return bool(data)

    def _run(self):
        while not self._stop:
            with self._lock:
                ends = {end: pair for pair in self._pairs for end in pair}
            watched = [] if self._is_stalled else list(ends)
            try:
                ready, _, _ = select.select([self.server, *watched, *self._leaving], [], [], 0.02)
            except ValueError:  # one of them was closed by `drop` in this moment
                continue
            with self._lock:
                for end in ready:
                    if end is self.server:
                        self._accept()
                    elif end in self._leaving:
                        self._drain(end)
                    elif ends[end] in self._pairs:
                        pair = ends[end]
                        if not self._pass(pair, UP if end is pair[0] else DOWN):
                            self._pairs.remove(pair)
                            self._end(pair, is_reset=False)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop = True
        self._thread.join(10)
        assert not self._thread.is_alive(), "the relay does not end"
        self._cut()
        self.server.close()
        deadline = time.monotonic() + LEAVING_S
        while self._leaving and time.monotonic() < deadline:
            for end in select.select(self._leaving, [], [], 0.1)[0]:
                self._drain(end)
        for end in self._leaving:
            end.close()


@contextmanager
def relay_to(url):
    """A relay in front of the target a URL names: the relay, and the URL through it."""
    host, _, port = url.split("/")[2].rpartition(":")
    with Relay((host, int(port))) as relay:
        yield relay, relay.url(url)
