"""What a device must offer beneath the verbs objects, and the provider that every machine has: the
engine's software RNIC, `iwarp`. A provider registers memory and connects; posting and polling are
the same for all.
"""

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from host import doors as plain_doors
from host.verbs import doors
from host.verbs.records import ERROR
from shm.operations import (
    RDMA_ALLOC_MW,
    RDMA_DEREGISTER,
    RDMA_QUERY,
    RDMA_SRQ_LIMIT,
    RDMA_START,
)
from shm.qp_spec import DEPTH_MAX, READS_MAX
from shm.verbs import SGES_MAX

if TYPE_CHECKING:
    from host.channel import Channel
    from host.verbs.cm import ConnParam
    from host.verbs.memory import MemoryRegion, MemoryWindow, ProtectionDomain
    from host.verbs.mpa import Startup
    from host.verbs.qp import QueuePair


@dataclass(frozen=True, slots=True)
class DeviceAttr:
    """What a device can do (struct ibv_device_attr, what of it matters here). `terminates`: its
    asynchronous events carry the code of the Terminate that ended a connection. `solicited`: it
    tells which messages were; else each receive counts as solicited. `invalidation`: a peer's Send
    can end the use of a region.
    """

    name: str
    max_qp_wr: int = DEPTH_MAX
    max_sge: int = SGES_MAX
    max_srq_wr: int = DEPTH_MAX
    max_qp_rd_atom: int = READS_MAX
    atomics: bool = True  # between peers that agree on RFC 7306
    memory_windows: bool = False
    on_demand_paging: bool = False
    terminates: bool = False
    solicited: bool = False
    invalidation: bool = False


class Listener(Protocol):
    """Waits for connections. What `poll` and `get_request` give is accepted or rejected."""

    address: tuple[str, int]
    port: int

    def open(self, device: Any) -> None:
        """Begin to accept."""

    def check_timers(self) -> None:
        """Drop whoever took too long; the device calls this when it makes progress."""

    def poll(self) -> Any:
        """A request that came, or None. Never blocks."""

    def get_request(self, timeout_s: float | None = None) -> Any:
        """Wait for a request. Raises TimeoutError."""

    def close(self) -> None:
        """Listen no more. Idempotent."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...


class Provider(Protocol):
    """A device's control side. Every call raises OSError or EngineRefused for a refusal."""

    attributes: DeviceAttr

    def alloc_pd(self) -> int:
        """Handle of a new protection domain."""

    def dealloc_pd(self, pd: "ProtectionDomain") -> None:
        """Give it back."""

    def reg_mr(
        self, pd: "ProtectionDomain", address: int, size: int, iova: int, access: int
    ) -> tuple[int, int, int]:
        """lkey and rkey of newly registered memory, and what peers call its first byte."""

    def dereg_mr(self, pd: "ProtectionDomain", region: "MemoryRegion") -> None:
        """Take it back."""

    def alloc_mw(self, pd: "ProtectionDomain") -> int:
        """rkey of a new memory window."""

    def dealloc_mw(self, pd: "ProtectionDomain", window: "MemoryWindow") -> None:
        """Give it back."""

    def create_srq(self, pd: "ProtectionDomain", depth: int) -> int:
        """Endpoint of a new shared receive queue."""

    def set_srq_limit(self, endpoint: int, limit: int) -> None:
        """Have an event come when fewer receives than that are posted."""

    def destroy_endpoint(self, endpoint: int) -> None:
        """End a queue pair or a shared receive queue; what it had comes back flushed."""

    def connect(self, qp: "QueuePair", address: tuple[str, int], param: "ConnParam") -> "Startup":
        """Connect a queue pair as the active side."""

    def listen(self, address: tuple[str, int], backlog: int) -> Listener:
        """Listen for connections."""

    def start(self, qp: "QueuePair") -> None:
        """Begin full operation; the receives are posted."""

    def shut_down(self, qp: "QueuePair", timeout_s: float) -> None:
        """End the connection behind what was posted, and wait until it has ended."""

    def bind(self, device: Any) -> None:
        """The device whose provider it is; before anything else."""

    def progress(self) -> None:
        """The device makes progress."""

    def has_news(self) -> None:
        """The engine says that the control plane has news for this channel."""

    def query(self, qp: "QueuePair") -> tuple[int, int, int]:
        """State, Terminate that came, Terminate that was sent."""


class IwarpProvider:
    """The software RNIC of an engine, through a channel of it."""

    def __init__(self, engine: Any, channel: "Channel", ids: "Ids") -> None:
        self.engine, self.channel, self._ids = engine, channel, ids
        self._device: Any = None
        self.attributes = DeviceAttr(
            "iwarp", memory_windows=True, terminates=True, solicited=True, invalidation=True
        )

    def alloc_pd(self) -> int:
        """Handle of a new protection domain."""
        return int(self.engine.rdma(self.channel, "domain")["domain"])

    def dealloc_pd(self, pd: "ProtectionDomain") -> None:
        """Give it back."""
        self.destroy_endpoint(pd.handle)

    def reg_mr(
        self, pd: "ProtectionDomain", address: int, size: int, iova: int, access: int
    ) -> tuple[int, int, int]:
        """lkey and rkey, which are one STag here; peers name bytes as their owner does."""
        own = self._ids.new()
        posted = doors.post_register(
            self.channel.context, pd.handle, own, address, size, iova, access
        )
        if posted < 0:
            raise ValueError("that memory is not shared with the engine: use a buffer from alloc()")
        self._posted(posted)
        stag = self.channel.complete(own).check().arg0
        return stag, stag, iova

    def dereg_mr(self, pd: "ProtectionDomain", region: "MemoryRegion") -> None:
        """Take it back."""
        self._ask(RDMA_DEREGISTER, pd.handle, region.lkey)

    def alloc_mw(self, pd: "ProtectionDomain") -> int:
        """rkey of a new memory window."""
        return int(self._ask(RDMA_ALLOC_MW, pd.handle, 0).arg0)

    def dealloc_mw(self, pd: "ProtectionDomain", window: "MemoryWindow") -> None:
        """Give it back."""
        self._ask(RDMA_DEREGISTER, pd.handle, window.rkey)

    def set_srq_limit(self, endpoint: int, limit: int) -> None:
        """Have an event come when fewer receives than that are posted."""
        self._ask(RDMA_SRQ_LIMIT, endpoint, limit)

    def create_srq(self, pd: "ProtectionDomain", depth: int) -> int:
        """Endpoint of a new shared receive queue."""
        return int(self.engine.rdma(self.channel, "srq", domain=pd.handle, depth=depth)["srq"])

    def destroy_endpoint(self, endpoint: int) -> None:
        """End a queue pair, a shared receive queue or a protection domain."""
        own = self._ids.new()
        self._posted(self.channel.post_close(endpoint, own))
        done = self.channel.complete(own)
        if done.status == -errno.EBUSY:
            raise OSError(errno.EBUSY, f"others rest on it: {os.strerror(errno.EBUSY)}")
        done.check()

    def connect(self, qp: "QueuePair", address: tuple[str, int], param: "ConnParam") -> "Startup":
        """Connect a queue pair as the active side."""
        from host.verbs import cm

        return cm.connect(self, qp, address, param)

    def listen(self, address: tuple[str, int], backlog: int) -> Listener:
        """Listen for connections."""
        from host.verbs import cm

        return cm.Listener(self, address, backlog)

    def enable(
        self, qp: "QueuePair", endpoint: int, startup: "Startup", param: "ConnParam"
    ) -> None:
        """Have the engine make a queue pair of a connection after its start-up."""
        spec = param.spec(qp, startup)
        self.engine.rdma(self.channel, "enable", endpoint=endpoint, spec=spec.to_message())

    def start(self, qp: "QueuePair") -> None:
        """Begin full operation."""
        self._ask(RDMA_START, qp.endpoint, 0)

    def shut_down(self, qp: "QueuePair", timeout_s: float) -> None:
        """End our direction behind what was posted, and wait for the peer to end its own."""
        own = self._ids.new()
        if self.channel.post_shutdown(qp.endpoint, own):
            self.channel.complete(own)
            self._device.wait_until(lambda: qp.state == ERROR, timeout_s)

    def bind(self, device: Any) -> None:
        """The device whose provider it is."""
        self._device = device

    def progress(self) -> None:
        """The engine does all of it."""

    def has_news(self) -> None:
        """There are none of a software RNIC."""

    def query(self, qp: "QueuePair") -> tuple[int, int, int]:
        """State, Terminate that came, Terminate that was sent."""
        done = self._ask(RDMA_QUERY, qp.endpoint, 0)
        return done.arg0, done.arg1, done.arg2

    def new_id(self) -> int:
        """A user_data that nobody else uses."""
        return self._ids.new()

    def _ask(self, opcode: int, endpoint: int, arg0: int) -> Any:
        """Post an operation of ours and wait for its completion; raises what its status says."""
        own = self._ids.new()
        self._posted(plain_doors.post_plain(self.channel.context, opcode, 0, endpoint, own, arg0))
        return self.channel.complete(own).check()

    def _posted(self, posted: int) -> None:
        if not posted:
            raise BlockingIOError("the channel's ring is full: poll completions first")


class Ids:
    """user_data of a device's own operations: above what applications and the channel use."""

    FIRST = (1 << 62) + (1 << 61)

    def __init__(self) -> None:
        self._last = self.FIRST

    def new(self) -> int:
        """The next one."""
        self._last += 1
        return self._last
