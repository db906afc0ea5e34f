"""The provider of real RDMA devices: an engine drives the device, the control plane makes its
objects. What of it is not posting or polling is asked of the control plane, one call each.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from host import doors as plain_doors
from host.completion import Completion
from host.errors import EngineRefused, HostError
from host.verbs import doors, rdma_cm
from host.verbs.provider import DeviceAttr, Ids
from host.verbs.records import ERROR
from shm.operations import RDMA_QUERY

if TYPE_CHECKING:
    from host.channel import Channel
    from host.verbs.cm import ConnParam
    from host.verbs.memory import MemoryRegion, MemoryWindow, ProtectionDomain
    from host.verbs.mpa import Startup
    from host.verbs.qp import QueuePair

LOOK_S = 0.1  # between looks for news when nobody announced any
SLEEP_S = 0.02  # between looks while news are waited for


class DeviceProvider:
    """One RDMA device of an engine, through a channel of it. Raises OSError: ENODEV for a device
    that there is not, EACCES for one that the engine does not drive.
    """

    def __init__(self, name: str, engine: Any, channel: "Channel", ids: Ids) -> None:
        self.name, self.engine, self.channel, self._ids = name, engine, channel, ids
        self.listeners: dict[int, rdma_cm.Listener] = {}
        self.starting: dict[int, Callable[[], None]] = {}  # by endpoint: its last steps
        self._news: dict[int, list[dict[str, Any]]] = {}  # by connection
        self._place = np.zeros(2, np.int64)
        self._has_news, self._looked_at = False, monotonic()
        self._device: Any = None
        told = self.ask("open")
        self.transport = str(told.pop("transport"))
        self.attributes = DeviceAttr(name, **told)

    def bind(self, device: Any) -> None:
        """The device whose provider it is."""
        self._device = device

    # --- domains, memory, queues ----------------------------------------------------------------

    def alloc_pd(self) -> int:
        """Handle of a new protection domain."""
        return int(self.ask("domain")["domain"])

    def dealloc_pd(self, pd: "ProtectionDomain") -> None:
        """Give it back."""
        self.destroy_endpoint(pd.handle)

    def reg_mr(
        self, pd: "ProtectionDomain", address: int, size: int, iova: int, access: int
    ) -> tuple[int, int, int]:
        """lkey, rkey and the address by which peers know newly registered memory."""
        place = int(self._place.ctypes.data)
        if doors.name_memory(self.channel.context, address, size, place) < 0:
            raise ValueError("that memory is not shared with the engine: use a buffer from alloc()")
        region, offset = (int(word) for word in self._place)
        told = self.ask(
            "register",
            domain=pd.handle,
            region=region,
            offset=offset,
            length=size,
            iova=iova,
            access=access,
        )
        return int(told["lkey"]), int(told["rkey"]), int(told["address"])

    def dereg_mr(self, pd: "ProtectionDomain", region: "MemoryRegion") -> None:
        """Take it back."""
        self.ask("deregister", domain=pd.handle, lkey=region.lkey)

    def alloc_mw(self, pd: "ProtectionDomain") -> int:
        """Refused: the engine drives no memory windows of devices."""
        raise OSError(errno.EOPNOTSUPP, f"{self.name} has no memory windows here")

    def dealloc_mw(self, pd: "ProtectionDomain", window: "MemoryWindow") -> None:
        """There is none."""
        raise OSError(errno.EINVAL, f"{self.name} has no memory windows here")

    def create_srq(self, pd: "ProtectionDomain", depth: int) -> int:
        """Endpoint of a new shared receive queue."""
        return int(self.ask("srq", domain=pd.handle, depth=depth)["srq"])

    def set_srq_limit(self, endpoint: int, limit: int) -> None:
        """Have an event come when fewer receives than that are posted."""
        self.ask("srq_limit", srq=endpoint, limit=limit)

    def destroy_endpoint(self, endpoint: int) -> None:
        """End a queue pair, a shared receive queue or a protection domain: first at the device,
        then in the engine, which gives back what the device had.
        """
        self.ask("retire", endpoint=endpoint)
        own = self._ids.new()
        if not self.channel.post_close(endpoint, own):
            raise BlockingIOError("the channel's ring is full: poll completions first")
        self.channel.complete(own).check()

    # --- connections ----------------------------------------------------------------------------

    def connect(self, qp: "QueuePair", address: tuple[str, int], param: "ConnParam") -> "Startup":
        """Connect a queue pair as the active side."""
        return rdma_cm.connect(self, qp, address, param)

    def listen(self, address: tuple[str, int], backlog: int) -> rdma_cm.Listener:
        """Listen for connections."""
        return rdma_cm.Listener(self, address, backlog)

    def start(self, qp: "QueuePair") -> None:
        """The receives are posted: connect."""
        self.starting[qp.endpoint]()

    def shut_down(self, qp: "QueuePair", timeout_s: float) -> None:
        """Disconnect when what was posted is over, and wait for the end."""
        deadline = monotonic() + timeout_s
        own = self._ids.new()
        over: list[Completion] = []
        if self.channel.post_shutdown(qp.endpoint, own):
            self._device.on_completion(own, over.append)
            self._device.wait_until(lambda: bool(over) or qp.state == ERROR, timeout_s)
        if qp.state != ERROR:
            self.ask("disconnect", endpoint=qp.endpoint)
            left = max(deadline - monotonic(), 0)
            self._device.wait_until(lambda: self.look_soon() or qp.state == ERROR, left)

    def query(self, qp: "QueuePair") -> tuple[int, int, int]:
        """The state; a device tells of no Terminate."""
        own = self._ids.new()
        context = self.channel.context
        if not plain_doors.post_plain(context, RDMA_QUERY, 0, qp.endpoint, own, 0):
            raise BlockingIOError("the channel's ring is full: poll completions first")
        done = self.channel.complete(own).check()
        return done.arg0, done.arg1, done.arg2

    # --- news -------------------------------------------------------------------------------------

    def has_news(self) -> None:
        """The engine says that there are some."""
        self._has_news = True

    def progress(self) -> None:
        """Look for news if there are any, or if it is long ago."""
        if self._has_news or monotonic() - self._looked_at >= LOOK_S:
            self.look()

    def look_soon(self) -> bool:
        """Look for news that are waited for. Always False."""
        if self._has_news or monotonic() - self._looked_at >= SLEEP_S:
            self.look()
        return False

    def look(self) -> None:
        """Fetch the news, and hand them to whom they concern."""
        self._has_news, self._looked_at = False, monotonic()
        for news in self.ask("look")["news"]:
            if news["what"] == "request":
                listener = self.listeners.get(news["listener"])
                if listener is None:
                    self.drop(news["id"])
                else:
                    listener.put(news)
            else:
                self._news.setdefault(news["id"], []).append(news)

    def await_news(self, number: int, what: str, deadline: float) -> dict[str, Any]:
        """Wait for a connection's next step. Raises ConnectionError, Rejected, TimeoutError."""
        while True:
            self.look()
            for news in self._news.pop(number, ()):
                if news["what"] == what:
                    return news
                if news["what"] == "failed":
                    raise rdma_cm.failed(news)
            left = deadline - monotonic()
            if left <= 0:
                raise TimeoutError("the connection manager did not answer in time")
            self._device.progress()
            self.channel.wait_n(1, timeout_s=min(left, SLEEP_S))

    def drop(self, number: int) -> None:
        """Forget a connection that came to nothing."""
        self._news.pop(number, None)
        with contextlib.suppress(OSError, HostError):
            self.ask("drop", id=number)

    def close_quietly(self, endpoint: int) -> None:
        """Close a queue pair whose connection came to nothing."""
        with contextlib.suppress(OSError, HostError):
            self.destroy_endpoint(endpoint)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """One call of the control plane. Raises OSError with the number that it gives."""
        try:
            told: dict[str, Any] = self.engine.rdma(self.channel, do, device=self.name, **fields)
        except EngineRefused as error:
            raise OSError(errno.EINVAL, str(error)) from error
        if "errno" in told:
            raise _error(int(told["errno"]), str(told["why"]))
        return told


def _error(number: int, why: str) -> OSError:
    text = os.strerror(number)
    return OSError(number, why if text in why else f"{why}: {text}")
