"""Connection management for the software RNIC, with rdma_cm's words: MPA's start-up over a stream
endpoint of the engine, received to the byte; then the engine makes it a queue pair.
"""

import contextlib
from collections import deque
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from host.channel import resolve
from host.completion import Completion
from host.errors import HostError
from host.verbs import mpa
from host.verbs.mpa import Rtr
from shm.qp_spec import MULPDU, READS_MAX, QpSpec

if TYPE_CHECKING:
    from host.verbs.provider import IwarpProvider
    from host.verbs.qp import QueuePair

FRAME_MAX = mpa.HEADER_LENGTH + mpa.PRIVATE_DATA_MAX
GREETINGS_MAX = 64  # connections of one listener whose Request is awaited
ACCEPTS_POSTED = 4


@dataclass(frozen=True, slots=True)
class ConnParam:
    """What one side wants of a connection (struct rdma_conn_param).

    `responder_resources` is our IRD, `initiator_depth` our ORD. `rtr`: ways of saying ready to
    receive in peer-to-peer mode, so that either side may send first; Rtr.NONE: the active side
    must. `extensions`: the peer knows RFC 7306, which no start-up negotiates. `mulpdu`: octets of
    one DDP segment; hardware peers want them within a TCP segment.
    """

    private_data: bytes = b""
    responder_resources: int = 16
    initiator_depth: int = 16
    revision: int = 2
    crc: bool = True
    markers: bool = False
    rtr: Rtr | None = None
    extensions: bool = False
    mulpdu: int = MULPDU
    timeout_s: float = mpa.REPLY_SECONDS

    def wishes(self) -> mpa.Wishes:
        """As MPA says it. Raises ValueError for what cannot be."""
        rtr = self.rtr
        if rtr is None:
            rtr = Rtr.WRITE | Rtr.READ if self.revision >= 2 else Rtr.NONE
        for name in ("responder_resources", "initiator_depth"):
            if not 0 <= getattr(self, name) <= READS_MAX:
                raise ValueError(f"{name} {getattr(self, name)} is outside 0..{READS_MAX}")
        return mpa.Wishes(
            revision=self.revision,
            markers=self.markers,
            crc=self.crc,
            ird=self.responder_resources,
            ord=self.initiator_depth,
            rtr=rtr,
            private_data=self.private_data,
        )

    def spec(self, qp: "QueuePair", startup: mpa.Startup) -> QpSpec:
        """What the engine must know of a connection that was agreed on."""
        return QpSpec(
            domain=qp.pd.handle,
            srq=0 if qp.srq is None else qp.srq.endpoint,
            active=startup.active,
            crc=startup.crc,
            markers_rx=startup.markers_rx,
            markers_tx=startup.markers_tx,
            ird=min(startup.ird, READS_MAX),
            ord=min(startup.ord, READS_MAX),
            rtr=int(startup.rtr),
            mulpdu=self.mulpdu,
            sq_depth=qp.cap.max_send_wr,
            rq_depth=qp.cap.max_recv_wr,
            extensions=self.extensions,
        )


def connect(
    provider: "IwarpProvider", qp: "QueuePair", address: tuple[str, int], param: ConnParam
) -> mpa.Startup:
    """Connect a queue pair as the active side. The connection is closed again if anything fails."""
    wishes = param.wishes()
    asked = mpa.request(wishes).encode()
    channel = provider.channel
    deadline = monotonic() + param.timeout_s
    endpoint = channel.connect(*address, timeout_s=param.timeout_s)
    try:
        with provider.engine.alloc(FRAME_MAX) as buffer:
            _send(provider, endpoint, buffer, asked, param.timeout_s)
            reply = _await_reply(provider, endpoint, buffer, deadline)
        startup = mpa.agree(wishes, reply)
        provider.enable(qp, endpoint, startup, param)
        qp.start(endpoint, startup, param.extensions)
    except BaseException:
        with contextlib.suppress(HostError, OSError):
            channel.close_endpoint(endpoint)
        qp.device.lost_connection(qp)
        raise
    return startup


def _send(provider: "IwarpProvider", endpoint: int, buffer: Any, data: bytes, limit: float) -> None:
    buffer.array[: len(data)] = list(data)
    provider.channel.send(endpoint, buffer.array[: len(data)], timeout_s=limit)


def _await_reply(
    provider: "IwarpProvider", endpoint: int, buffer: Any, deadline: float
) -> mpa.Frame:
    reader = mpa.FrameReader(reply=True, now=monotonic(), seconds=max(deadline - monotonic(), 0))
    while reader.frame is None:
        place = buffer.array[: reader.wanted]
        left = max(deadline - monotonic(), 0.001)
        provider.channel.recv(endpoint, place, exact=True, timeout_s=left)
        reader.receive(place.tobytes())
    return reader.frame


@dataclass(slots=True, eq=False)
class ConnectRequest:
    """A connection that asks to be accepted (RDMA_CM_EVENT_CONNECT_REQUEST)."""

    listener: "Listener"
    endpoint: int
    peer: tuple[str, int]
    frame: mpa.Frame
    answered: bool = False

    @property
    def private_data(self) -> bytes:
        """What the active side sent along."""
        return self.frame.private_data

    @property
    def responder_resources(self) -> int:
        """The peer's ORD: reads it wants to have outstanding here; -1 if it does not say."""
        return self.frame.ord if self.frame.enhanced else -1

    @property
    def initiator_depth(self) -> int:
        """The peer's IRD: reads we may have outstanding there; -1 if it does not say."""
        return self.frame.ird if self.frame.enhanced else -1

    def accept(self, qp: "QueuePair", param: ConnParam | None = None) -> mpa.Startup:
        """Make a queue pair of it; what was agreed. Raises OSError, EngineRefused."""
        param = param or ConnParam()
        reply, startup = mpa.answer(self.frame, param.wishes())
        data = reply.encode()
        qp._check_unconnected()
        provider = self._answer()
        try:
            with provider.engine.alloc(FRAME_MAX) as buffer:
                _send(provider, self.endpoint, buffer, data, param.timeout_s)
            provider.enable(qp, self.endpoint, startup, param)
            qp.start(self.endpoint, startup, param.extensions)
        except BaseException:
            with contextlib.suppress(HostError, OSError):
                provider.channel.close_endpoint(self.endpoint)
            qp.device.lost_connection(qp)
            raise
        return startup

    def reject(self, private_data: bytes = b"", timeout_s: float = mpa.REPLY_SECONDS) -> None:
        """Say no, and why. Raises ValueError for more private data than fits."""
        data = mpa.rejection(self.frame, private_data).encode()
        provider = self._answer()
        try:
            with provider.engine.alloc(FRAME_MAX) as buffer:
                _send(provider, self.endpoint, buffer, data, timeout_s)
        except OSError:
            pass  # It is gone already, which is as good as rejected.
        finally:
            provider.channel.close_endpoint(self.endpoint)

    def _answer(self) -> "IwarpProvider":
        if self.answered:
            raise ValueError("this request was accepted or rejected already")
        self.answered = True
        return self.listener.provider


@dataclass(slots=True, eq=False)
class _Greeting:
    """An accepted connection whose Request is being read."""

    endpoint: int
    peer: tuple[str, int]
    reader: mpa.FrameReader
    buffer: Any = field(repr=False)
    is_closing: bool = False


class Listener:
    """Waits for connections. Requests are read without waiting for anybody: a peer that dribbles or
    says nothing is dropped when its time is over and holds up no other.
    """

    def __init__(self, provider: "IwarpProvider", address: tuple[str, int], backlog: int) -> None:
        self.provider = provider
        self._channel = provider.channel
        self._device: Any = None
        host, port = resolve(*address, passive=True)[0]
        self.endpoint, self.port = self._channel.listen(host, port, backlog=backlog)
        self.address = (host, self.port)
        self.refused: deque[Exception] = deque(maxlen=64)  # why peers were dropped
        self._greetings: set[_Greeting] = set()
        self._to_close: deque[int] = deque()  # dropped, but the ring had no room to say so
        self._requests: deque[ConnectRequest] = deque()
        self._accepts: set[int] = set()
        self._closed = False
        self.request_timeout_s = mpa.REQUEST_SECONDS

    def open(self, device: Any) -> None:
        """Begin to accept; completions of ours come through the device."""
        self._device = device
        self._post_accepts()

    def _post_accepts(self) -> None:
        while (
            not self._closed
            and len(self._accepts) < ACCEPTS_POSTED
            and len(self._greetings) + len(self._accepts) < GREETINGS_MAX
        ):
            own = self.provider.new_id()
            if not self._channel.post_accept(self.endpoint, own):
                return
            self._accepts.add(own)
            self._device.on_completion(own, self._accepted)

    def _accepted(self, done: Completion) -> None:
        self._accepts.discard(done.user_data)
        if done.ok:
            reader = mpa.FrameReader(False, monotonic(), self.request_timeout_s)
            buffer = self.provider.engine.alloc(FRAME_MAX)
            greeting = _Greeting(done.endpoint, done.peer, reader, buffer)
            self._greetings.add(greeting)
            self._receive(greeting)
        elif not self._closed:
            self.refused.append(OSError(-done.status, "accept"))
        self._post_accepts()

    def _receive(self, greeting: _Greeting) -> None:
        place = greeting.buffer.array[: greeting.reader.wanted]
        own = self.provider.new_id()
        if not self._channel.post_recv(greeting.endpoint, place, own, exact=True):
            self._drop(greeting, BlockingIOError("the channel's ring is full"))
            return
        self._device.on_completion(own, lambda done: self._received(greeting, place, done))

    def _received(self, greeting: _Greeting, place: Any, done: Completion) -> None:
        if not done.ok or greeting.is_closing:
            self._drop(greeting, None if greeting.is_closing else _why(done))
            return
        try:
            greeting.reader.receive(place.tobytes())
        except mpa.MpaError as error:
            self._drop(greeting, error)
            return
        if greeting.reader.frame is None:
            self._receive(greeting)
            return
        self._greetings.discard(greeting)
        greeting.buffer.free()
        frame = greeting.reader.frame
        self._requests.append(ConnectRequest(self, greeting.endpoint, greeting.peer, frame))
        self._post_accepts()

    def _drop(self, greeting: _Greeting, error: Exception | None) -> None:
        """Close a connection whose receive is over, and remember why."""
        if error is not None:
            self.refused.append(error)
        if greeting in self._greetings:
            self._greetings.discard(greeting)
            greeting.buffer.free()
        self._close(greeting)
        self._post_accepts()

    def _close(self, greeting: _Greeting) -> None:
        if greeting.is_closing:
            return
        greeting.is_closing = True
        self._to_close.append(greeting.endpoint)
        self._post_closes()

    def _post_closes(self) -> None:
        """Close endpoints that are dropped, as far as the ring has room."""
        while self._to_close:
            own = self.provider.new_id()
            if not self._channel.post_close(self._to_close[0], own):
                return
            self._to_close.popleft()
            self._device.on_completion(own, lambda _: None)

    def check_timers(self) -> None:
        """Drop whoever took too long; the device calls this when it makes progress."""
        self._post_closes()
        now = monotonic()
        for greeting in list(self._greetings):
            try:
                greeting.reader.check(now)
            except mpa.MpaError as error:
                if not greeting.is_closing:
                    self.refused.append(error)
                    self._close(greeting)  # Its receive comes back, and then its buffer is ours.

    def poll(self) -> ConnectRequest | None:
        """A request that came, or None. Never blocks."""
        self._device.progress()
        return self._requests.popleft() if self._requests else None

    def get_request(self, timeout_s: float | None = None) -> ConnectRequest:
        """Wait for a request. Raises TimeoutError."""
        deadline = None if timeout_s is None else monotonic() + timeout_s
        while True:
            found = self.poll()
            if found is not None:
                return found
            if deadline is not None and monotonic() >= deadline:
                raise TimeoutError(f"no connection request within {timeout_s} s")
            left = 0.1 if deadline is None else min(0.1, max(deadline - monotonic(), 0.001))
            self._channel.wait_n(self._channel.backlog + 1, timeout_s=left)

    def close(self) -> None:
        """Listen no more; requests that nobody answered are dropped. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._channel.close_endpoint(self.endpoint)
        for greeting in list(self._greetings):
            self._close(greeting)
        while self._to_close:  # Nobody comes back for them.
            self._channel.close_endpoint(self._to_close.popleft())
        while self._requests:
            self._channel.close_endpoint(self._requests.popleft().endpoint)
        self._device.progress()
        self._device.forget_listener(self)

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _why(done: Completion) -> Exception:
    try:
        done.check()
    except (HostError, OSError) as error:
        return error
    return ConnectionError("the connection ended")
