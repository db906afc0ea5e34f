"""A device: an RNIC as one channel of an engine sees it, and the place where its completions are
sorted into completion queues. Like its channel it belongs to one thread.
"""

import errno
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from host.channel import Channel
from host.completion import Completion
from host.verbs import doors
from host.verbs.cq import CompletionQueue, wc_of
from host.verbs.device_provider import DeviceProvider
from host.verbs.memory import ProtectionDomain
from host.verbs.provider import DeviceAttr, Ids, IwarpProvider, Listener, Provider
from host.verbs.qp import QueuePair, SharedReceiveQueue
from host.verbs.records import DEVICE, ERROR, QPS_MAX
from host.verbs.work import QpCap, SgeScratch, WorkCompletion
from shm.operations import (
    EVENT_DISCONNECTED,
    EVENT_RDMA,
    INDEX_MASK,
    RDMA_FIRST,
    RDMA_LAST,
    RDMA_RECEIVE,
    RDMA_REGISTER,
)
from shm.verbs import EVENT_DISCONNECTED as PEER_CLOSED
from shm.verbs import (
    EVENT_HAS_TERMINATE,
    EVENT_IS_OURS,
    EVENT_MASK,
    EVENT_NAMES,
    EVENT_NEWS,
    EVENT_QP_FATAL,
    EVENT_TERMINATE_SHIFT,
    TERMINATE_MASK,
)

MakeProvider = Callable[[Any, Channel, Ids], Provider]
_PROVIDERS: dict[str, MakeProvider] = {"iwarp": IwarpProvider}


def add_provider(name: str, make: MakeProvider) -> None:
    """Have `Device(..., provider=name)` mean another kind of device."""
    _PROVIDERS[name] = make


def _make_provider(name: str, engine: Any, channel: Channel, ids: Ids) -> Provider:
    """A provider by its name, or the RDMA device of that name. Raises OSError if there is none."""
    make = _PROVIDERS.get(name)
    return (
        DeviceProvider(name, engine, channel, ids) if make is None else make(engine, channel, ids)
    )


class AsyncEvent(NamedTuple):
    """An asynchronous event (ibv_get_async_event(3)). `terminate` is the code of the Terminate that
    it is about, None for none; `ours`: we sent it. `status` is 0 or the transport's -errno.
    """

    event: int
    qp: QueuePair | SharedReceiveQueue
    terminate: int | None
    ours: bool
    status: int

    @property
    def name(self) -> str:
        """The event in words."""
        return EVENT_NAMES.get(self.event, str(self.event))


class Device:
    """An RNIC: the engine's own, `iwarp`, or an RDMA device that the engine drives, by its name as
    `rdma link` shows it. The channel's completions that are not the device's stay in `others`.
    Raises OSError for a device that there is not.
    """

    def __init__(self, engine: Any, channel: Channel, provider: str = "iwarp") -> None:
        self.engine, self.channel = engine, channel
        self.ids = Ids()
        self.provider = _make_provider(provider, engine, channel, self.ids)
        self.provider.bind(self)
        self.sges = SgeScratch()
        self.others: deque[Completion] = deque()
        self.domains: set[ProtectionDomain] = set()
        self._qps: dict[int, QueuePair] = {}
        self._gone: dict[int, QueuePair] = {}  # destroyed, with completions that may still come
        self._all_qps: set[QueuePair] = set()
        self._srqs: dict[int, SharedReceiveQueue] = {}
        self._cqs: set[CompletionQueue] = set()
        self._listeners: set[Listener] = set()
        self._handlers: dict[int, Callable[[Completion], None]] = {}
        self._events: deque[AsyncEvent] = deque()
        self._record = np.zeros(1, DEVICE)
        self._table = np.zeros(QPS_MAX, np.int64)
        self._record[0]["context"] = channel.context
        self._record[0]["qps"] = self._table.ctypes.data
        self.address = int(self._record.ctypes.data)

    # --- making objects -----------------------------------------------------------------------

    def query(self) -> DeviceAttr:
        """What it can do."""
        return self.provider.attributes

    def alloc_pd(self) -> ProtectionDomain:
        """A protection domain."""
        domain = ProtectionDomain(self, self.provider.alloc_pd())
        self.domains.add(domain)
        return domain

    def create_cq(self, depth: int = 128) -> CompletionQueue:
        """A completion queue for up to `depth` work requests under way."""
        cq = CompletionQueue(self, depth)
        self._cqs.add(cq)
        return cq

    def create_srq(self, pd: ProtectionDomain, depth: int = 128) -> SharedReceiveQueue:
        """A shared receive queue."""
        srq = SharedReceiveQueue(self, pd, depth)
        self._srqs[srq.endpoint] = srq
        return srq

    def create_qp(
        self,
        pd: ProtectionDomain,
        send_cq: CompletionQueue,
        recv_cq: CompletionQueue | None = None,
        *,
        srq: SharedReceiveQueue | None = None,
        cap: QpCap | None = None,
    ) -> QueuePair:
        """A queue pair, to be connected or to accept with. Raises ValueError for what cannot be."""
        cap, attributes = cap or QpCap(), self.query()
        for name, depth in (("max_send_wr", cap.max_send_wr), ("max_recv_wr", cap.max_recv_wr)):
            if not 1 <= depth <= attributes.max_qp_wr:
                raise ValueError(f"{name} {depth} is outside 1..{attributes.max_qp_wr}")
        if srq is not None and srq.pd is not pd:
            raise ValueError("the shared receive queue is of another protection domain")
        qp = QueuePair(self, pd, send_cq, recv_cq or send_cq, srq, cap)
        self._all_qps.add(qp)
        return qp

    def listen(
        self, address: tuple[str, int] = ("127.0.0.1", 0), *, backlog: int = 128
    ) -> Listener:
        """Listen for connections."""
        listener = self.provider.listen(address, backlog)
        self._listeners.add(listener)
        listener.open(self)
        return listener

    # --- completions ----------------------------------------------------------------------------

    def progress(self) -> None:
        """Take what the channel has and sort it. Never blocks."""
        found = self.channel.poll()
        while found:
            for completion in found:
                self._sort(completion)
            found = self.channel.poll()
        self.provider.progress()
        for listener in list(self._listeners):
            listener.check_timers()

    def on_completion(self, user_data: int, handler: Callable[[Completion], None]) -> None:
        """Call `handler` with the completion of an operation of ours."""
        self._handlers[user_data] = handler

    def _sort(self, done: Completion) -> None:
        handler = self._handlers.pop(done.user_data, None) if not done.unsolicited else None
        if handler is not None:
            handler(done)
        elif done.unsolicited and done.opcode in (EVENT_RDMA, EVENT_DISCONNECTED):
            self._on_event(done)
        elif RDMA_FIRST <= done.opcode <= RDMA_LAST and done.opcode < RDMA_REGISTER:
            qp = self._qps.get(done.endpoint) or self._gone.get(done.endpoint)
            srq = self._srqs.get(done.endpoint)
            if qp is not None:
                cq = qp.recv_cq if done.opcode == RDMA_RECEIVE else qp.send_cq
                cq.put(done)
            elif srq is not None:
                srq.put_failed(wc_of(done))
        else:
            self.others.append(done)

    def _on_event(self, done: Completion) -> None:
        if done.opcode == EVENT_RDMA and done.arg0 & EVENT_MASK == EVENT_NEWS:
            self.provider.has_news()
            return
        srq = self._srqs.get(done.endpoint)
        if srq is not None:
            self._events.append(AsyncEvent(done.arg0 & EVENT_MASK, srq, None, False, 0))
            return
        qp = self._qps.get(done.endpoint)
        if qp is None:
            return
        qp.set_state(ERROR)
        if done.opcode == EVENT_DISCONNECTED:
            self._events.append(AsyncEvent(EVENT_QP_FATAL, qp, None, False, done.status))
            return
        code = None
        if done.arg0 & EVENT_HAS_TERMINATE:
            code = done.arg0 >> EVENT_TERMINATE_SHIFT & TERMINATE_MASK
        qp.terminate = code
        ours = bool(done.arg0 & EVENT_IS_OURS)
        event = done.arg0 & EVENT_MASK
        self._events.append(AsyncEvent(event, qp, code, ours, done.status))

    def poll_async_event(self) -> AsyncEvent | None:
        """The oldest asynchronous event, or None. Never blocks."""
        self.progress()
        return self._events.popleft() if self._events else None

    def get_async_event(self, timeout_s: float | None = None) -> AsyncEvent:
        """Wait for an asynchronous event. Raises TimeoutError."""
        found: list[AsyncEvent] = []

        def look() -> bool:
            event = self.poll_async_event()
            if event is not None:
                found.append(event)
            return bool(found)

        if not self.wait_until(look, timeout_s):
            raise TimeoutError(f"no asynchronous event within {timeout_s} s")
        return found[0]

    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Make progress, asleep in between, until `condition` holds; False at the timeout."""
        deadline = None if timeout_s is None else monotonic() + timeout_s
        while not condition():
            self.progress()
            if condition():
                return True
            now = monotonic()
            if (deadline is not None and now >= deadline) or not self.channel.is_running:
                return False
            left = 0.1 if deadline is None else min(0.1, deadline - now)
            self.channel.wait_n(1, timeout_s=left)
        return True

    # --- what the objects call --------------------------------------------------------------------

    def add_qp(self, qp: QueuePair) -> None:
        """A queue pair has its endpoint."""
        self._qps[qp.endpoint] = qp
        self._gone.pop(qp.endpoint, None)
        self._table[qp.endpoint & INDEX_MASK] = qp.qp

    def bound(self, endpoint: int, wc: WorkCompletion) -> None:
        """A binding of a memory window is over; completion queues call this."""
        qp = self._qps.get(endpoint) or self._gone.get(endpoint)
        if qp is not None:
            qp.bound(wc)

    def shut_down(self, qp: QueuePair, timeout_s: float) -> None:
        """End the connection behind what was posted, and wait until it has ended."""
        self.provider.shut_down(qp, timeout_s)

    def close_qp(self, qp: QueuePair) -> None:
        """Close a queue pair's endpoint and sort what it had outstanding."""
        try:
            self.provider.destroy_endpoint(qp.endpoint)
        except OSError as error:
            if error.errno != errno.EBADF:  # It was closed already.
                raise
        self.progress()

    def lost_connection(self, qp: QueuePair) -> None:
        """A connection attempt failed after the queue pair had its endpoint."""
        if qp.endpoint:
            self.progress()
            self.forget_qp(qp)
            qp.rest_on_nothing()
            qp.set_state(ERROR)

    def forget_qp(self, qp: QueuePair) -> None:
        """A queue pair is gone."""
        self._all_qps.discard(qp)
        if self._qps.pop(qp.endpoint, None) is not None:
            self._gone[qp.endpoint] = qp

    def forget_srq(self, srq: SharedReceiveQueue) -> None:
        """A shared receive queue is about to go."""
        self._srqs.pop(srq.endpoint, None)

    def forget_cq(self, cq: CompletionQueue) -> None:
        """A completion queue is given back."""
        users = [qp for qp in self._all_qps if cq in (qp.send_cq, qp.recv_cq)]
        if users:
            raise OSError(errno.EBUSY, f"{len(users)} queue pairs use this completion queue")
        self._cqs.discard(cq)

    def forget_listener(self, listener: Listener) -> None:
        """A listener was closed."""
        self._listeners.discard(listener)

    def close(self) -> None:
        """Give back everything that is left of it: connections, queues, memory, domains."""
        for listener in list(self._listeners):
            listener.close()
        for qp in list(self._all_qps):
            qp.destroy()
        for srq in list(self._srqs.values()):
            srq.destroy()
        for domain in list(self.domains):
            for window in list(domain.windows):
                window.dealloc()
            for region in list(domain.regions):
                region.dereg()
            domain.dealloc()

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        if self.channel.is_running:
            self.close()


__all__ = ["PEER_CLOSED", "AsyncEvent", "Device", "add_provider", "doors"]
