"""The resource manager: one pool of endpoints, buffers and lent address space for several services
on one device, after the RDMA Service Platform: global decisions, no overallocation, none unused.
Who may have how much is `quotas`, who may send when is `credits`; how remote memory is named is a
Descriptor that any service can put into its messages.
"""

import errno
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from host.verbs.cm import ConnectRequest, ConnParam
from host.verbs.credits import CreditAccount, CreditPool
from host.verbs.device import Device
from host.verbs.endpoint import Endpoint, Sent
from host.verbs.exchange import (
    CREDITS_ONLY,
    GREETING,
    HEADER,
    MAGIC,
    MESSAGE,
    Descriptor,
    credits_of,
)
from host.verbs.memory import ProtectionDomain
from host.verbs.pin_down_cache import PinDownCache
from host.verbs.provider import Listener
from host.verbs.quotas import Quota, Share
from host.verbs.registration import Lease, Memory, PreRegistered, Registrar
from host.verbs.work import QpCap, RecvWr, WorkCompletion
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
)

ENDPOINTS: Final = "endpoints"
BUFFERS: Final = "buffers"
EXPORTED: Final = "exported bytes"
RESOURCES: Final = (ENDPOINTS, BUFFERS, EXPORTED)
RECEIVES_KEPT: Final = 2  # for news of credits, which need none themselves


@dataclass(slots=True)
class ServiceCounters:
    """What one service has done."""

    messages_in: int = 0
    messages_out: int = 0
    reads: int = 0
    writes: int = 0
    exports: int = 0
    revocations: int = 0
    flushed: int = 0


@dataclass(slots=True, eq=False)
class Export:
    """Memory that is lent to a peer until `Service.revoke`."""

    descriptor: Descriptor
    lease: Lease = field(repr=False)


class Service:
    """One user of the manager. Subclass it: `on_connect`, `on_message`, `on_done`, `on_close`,
    `on_reclaim`. All are called from `ResourceManager.progress`.
    """

    name = "service"

    def __init__(self, manager: "ResourceManager", quotas: Mapping[str, Quota]) -> None:
        self.manager = manager
        self.counters = ServiceCounters()
        self.endpoints: set[Endpoint] = set()
        self.exports: set[Export] = set()
        manager.add(self, quotas)

    # --- what a service does ------------------------------------------------------------------

    def on_connect(self, endpoint: Endpoint) -> None:
        """A peer has connected."""

    def on_message(self, endpoint: Endpoint, data: memoryview) -> None:
        """A message has come; `data` is valid until this returns."""

    def on_done(self, endpoint: Endpoint, token: Any, wc: WorkCompletion) -> None:
        """A send, read or write of ours is over."""

    def on_close(self, endpoint: Endpoint) -> None:
        """A connection has ended."""

    def on_reclaim(self, resource: str, count: int) -> int:
        """Give back up to `count` of what was borrowed; how many were."""
        return 0

    # --- what a service may ask for -------------------------------------------------------------

    def connect(self, address: tuple[str, int], param: ConnParam | None = None) -> Endpoint:
        """Connect to the service of the same name. Raises what `QueuePair.connect` does, OSError
        ENOBUFS beyond the quota of endpoints.
        """
        return self.manager.connect(self, address, param or ConnParam())

    def take(self, size: int) -> Lease:
        """A registered place of at least `size` bytes. Raises OSError ENOBUFS."""
        self.manager.shares[BUFFERS].take(self.name)
        try:
            lease = self.manager.place(size)
        except OSError:
            self.manager.shares[BUFFERS].give(self.name)
            raise
        self.manager.own(lease, self)
        return lease

    def export(
        self, memory: Memory | Lease, access: int = ACCESS_REMOTE_READ, strategy: str | None = None
    ) -> Export:
        """Lend memory to peers; its `descriptor` goes into a message. Raises OSError ENOBUFS beyond
        the quota of exported bytes, and what registering raises.
        """
        array = memory.array if isinstance(memory, Lease) else memory
        registrar = self.manager.registrar(strategy)
        writing = ACCESS_LOCAL_WRITE if access & ACCESS_REMOTE_WRITE else 0
        lease = registrar.acquire(array, access | writing)
        try:
            self.manager.shares[EXPORTED].take(self.name, lease.length)
        except OSError:
            lease.release()
            raise
        export = Export(Descriptor(lease.rkey, lease.length, lease.remote_addr), lease)
        self.exports.add(export)
        self.counters.exports += 1
        return export

    def revoke(self, export: Export) -> None:
        """Lend it no more. Raises ValueError the second time, OSError EBUSY while a peer's request
        for it is being answered.
        """
        if export not in self.exports:
            raise ValueError("this export was revoked already, or is another service's")
        export.lease.release()
        self.exports.discard(export)
        self.manager.shares[EXPORTED].give(self.name, export.descriptor.length)
        self.counters.revocations += 1

    def close(self) -> None:
        """End its connections, take back what it lent, and leave the manager."""
        for endpoint in list(self.endpoints):
            endpoint.close()
        for export in list(self.exports):
            self.revoke(export)
        self.manager.remove(self)


class ResourceManager:
    """One device's resources for several services. `progress` is the poll loop's body."""

    def __init__(
        self,
        device: Device,
        *,
        endpoints: int = 64,
        classes: tuple[tuple[int, int], ...] = ((4096, 64), (65536, 16)),
        exported_bytes: int = 64 << 20,
        receives: int = 64,
        receive_size: int = 4096,
        credits_per_endpoint: int = 8,
        cq_depth: int = 256,
    ) -> None:
        self.device = device
        self.credits_per_endpoint = credits_per_endpoint
        self.pd: ProtectionDomain = device.alloc_pd()
        self.cq = device.create_cq(cq_depth)
        self.srq = device.create_srq(self.pd, receives)
        self.pool = PreRegistered(self.pd, ((receive_size, receives), *classes))
        self.cache = PinDownCache(self.pd)
        self.credits = CreditPool(RECEIVES_KEPT)
        buffers = sum(count for _, count in classes)
        self.shares = {
            ENDPOINTS: Share(ENDPOINTS, endpoints),
            BUFFERS: Share(BUFFERS, buffers),
            EXPORTED: Share(EXPORTED, exported_bytes),
        }
        self.services: dict[str, Service] = {}
        self._endpoints: dict[int, Endpoint] = {}
        self._receives: dict[int, Lease] = {}
        self._sent: dict[int, Sent] = {}
        self._owners: dict[Lease, Service] = {}
        self._next_id = 0
        self._listener: Listener | None = None
        for _ in range(receives):
            self._post_receive(self.pool.take(receive_size))

    # --- services -------------------------------------------------------------------------------

    def add(self, service: Service, quotas: Mapping[str, Quota]) -> None:
        """A new service with its quotas. Raises ValueError for what cannot be granted."""
        unknown = set(quotas) - set(RESOURCES)
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: the resources are {RESOURCES}")
        added = []
        try:
            for resource, share in self.shares.items():
                share.add(service.name, quotas.get(resource, Quota()), service.on_reclaim)
                added.append(share)
        except ValueError:
            for share in added:
                share.remove(service.name)
            raise
        self.services[service.name] = service

    def remove(self, service: Service) -> None:
        """A service leaves. Raises ValueError while it holds something."""
        for share in self.shares.values():
            share.remove(service.name)
        del self.services[service.name]

    def registrar(self, strategy: str | None) -> Registrar:
        """How memory is registered: `pool`, or `cache`, the default."""
        known: dict[str, Registrar] = {"pool": self.pool, "cache": self.cache}
        try:
            return known[strategy or "cache"]
        except KeyError:
            raise ValueError(f"strategy {strategy!r}: there are {', '.join(known)}") from None

    def place(self, size: int) -> Lease:
        """A place of the pool, on nobody's account."""
        return self.pool.take(size)

    def own(self, lease: Lease, service: Service) -> None:
        """A place is on a service's account until it is released."""
        self._owners[lease] = service
        end = lease._end

        def give_back(released: Lease) -> None:
            end(released)
            self.shares[BUFFERS].give(self._owners.pop(released).name)

        lease._end = give_back

    # --- connections ----------------------------------------------------------------------------

    def listen(self, address: tuple[str, int] = ("127.0.0.1", 0)) -> tuple[str, int]:
        """Take connections for every service; the address that is listened on."""
        self._listener = self.device.listen(address)
        return self._listener.address

    def _greeting(self, service: Service, account: CreditAccount) -> bytes:
        return GREETING.pack(MAGIC, account.grant()) + service.name.encode()

    def _new_endpoint(self, service: Service) -> Endpoint:
        self.shares[ENDPOINTS].take(service.name)
        try:
            qp = self.device.create_qp(self.pd, self.cq, srq=self.srq, cap=QpCap(32, 1))
        except BaseException:
            self.shares[ENDPOINTS].give(service.name)
            raise
        return Endpoint(service, qp)

    def connect(self, service: Service, address: tuple[str, int], param: ConnParam) -> Endpoint:
        """`Service.connect`."""
        endpoint = self._new_endpoint(service)
        try:
            greeting = self._greeting(service, endpoint.credits)
            startup = endpoint.qp.connect(address, _with_private_data(param, greeting))
            endpoint.credits.granted(credits_of(startup.private_data, service.name))
        except BaseException:
            endpoint.is_closed = True
            endpoint.qp.destroy()
            self.credits.close(endpoint.credits)
            self.shares[ENDPOINTS].give(service.name)
            raise
        self._endpoint_made(endpoint)
        return endpoint

    def _accept(self, request: ConnectRequest) -> None:
        try:
            magic, granted = GREETING.unpack_from(request.private_data)
            name = request.private_data[GREETING.size :].decode()
            if magic != MAGIC:
                raise ValueError(f"magic {magic:#06x}")
        except (struct.error, ValueError):
            request.reject(b"no greeting of a service")
            return
        service = self.services.get(name)
        if service is None:
            request.reject(b"no such service")
            return
        try:
            endpoint = self._new_endpoint(service)
        except OSError:
            request.reject(b"no endpoint left")
            return
        endpoint.credits.granted(granted)
        greeting = self._greeting(service, endpoint.credits)
        try:
            request.accept(endpoint.qp, ConnParam(private_data=greeting))
        except OSError:
            endpoint.close()
            return
        self._endpoint_made(endpoint)
        service.on_connect(endpoint)

    def _endpoint_made(self, endpoint: Endpoint) -> None:
        self._endpoints[endpoint.qp.qp_num] = endpoint
        endpoint.service.endpoints.add(endpoint)

    def endpoint_gone(self, endpoint: Endpoint) -> None:
        """An endpoint was closed; endpoints call this."""
        self._endpoints.pop(endpoint.qp.qp_num, None)
        self.shares[ENDPOINTS].give(endpoint.service.name)
        endpoint.service.on_close(endpoint)

    # --- the poll loop ----------------------------------------------------------------------------

    def remember(self, sent: Sent) -> int:
        """A wr_id for a work request."""
        self._next_id += 1
        self._sent[self._next_id] = sent
        return self._next_id

    def forget(self, wr_id: int) -> None:
        """It was not posted."""
        del self._sent[wr_id]

    def _post_receive(self, lease: Lease) -> None:
        self._next_id += 1
        if not self.srq.post_recv(RecvWr([lease.sge()], self._next_id)):
            lease.release()
            return
        self._receives[self._next_id] = lease
        self.credits.post()

    def progress(self) -> int:
        """Accept, deliver messages, tell what is done, hand out credits. How many completions."""
        if self._listener is not None:
            request = self._listener.poll()
            while request is not None:
                self._accept(request)
                request = self._listener.poll()
        done = self.drain()
        event = self.device.poll_async_event()
        while event is not None:
            endpoint = self._endpoints.get(getattr(event.qp, "qp_num", 0))
            if endpoint is not None:
                endpoint.close()
            event = self.device.poll_async_event()
        for endpoint in list(self._endpoints.values()):
            endpoint.push()
            endpoint.grant_alone()
        return done

    def drain(self) -> int:
        """Take what completed. How many."""
        found = self.cq.poll_cq()
        for wc in found:
            if wc.is_receive:
                self._received(wc)
            else:
                self._finished(wc)
        return len(found)

    def _received(self, wc: WorkCompletion) -> None:
        lease = self._receives.pop(wc.wr_id)
        endpoint = self._endpoints.get(wc.qp_num)
        try:
            if not wc.ok or endpoint is None:
                self.credits.posted -= 1
                return
            try:
                self._deliver(endpoint, lease, wc)
            except ConnectionError:
                endpoint.close()
        finally:
            self._post_receive(lease)

    def _deliver(self, endpoint: Endpoint, lease: Lease, wc: WorkCompletion) -> None:
        data = lease.array[: wc.byte_len].data
        if wc.byte_len < HEADER.size:
            endpoint.credits.arrived(with_credit=False)
            raise ConnectionError(f"a message of {wc.byte_len} octets has no header")
        magic, kind, grant = HEADER.unpack_from(data)
        if magic != MAGIC or kind not in (MESSAGE, CREDITS_ONLY):
            endpoint.credits.arrived(with_credit=False)
            raise ConnectionError(f"a message with the header {magic:#06x} {kind}")
        endpoint.credits.arrived(with_credit=kind == MESSAGE)
        endpoint.credits.granted(grant)
        endpoint.push()
        if kind == MESSAGE:
            endpoint.service.counters.messages_in += 1
            endpoint.service.on_message(endpoint, data[HEADER.size :])

    def _finished(self, wc: WorkCompletion) -> None:
        sent = self._sent.pop(wc.wr_id, None)
        if sent is None:
            return
        if sent.lease is not None:
            sent.lease.release()
        if wc.flushed:
            sent.endpoint.service.counters.flushed += 1
        if not sent.is_ours:
            sent.endpoint.service.on_done(sent.endpoint, sent.token, wc)

    def run_until(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """`progress`, asleep in between, until `condition` holds; False at the timeout."""

        def look() -> bool:
            self.progress()
            return condition()

        return self.device.wait_until(look, timeout_s)

    def counters(self) -> dict[str, Any]:
        """All of it: supplies by service, credits, registrations."""
        return {
            "supplies": {
                resource: {
                    "total": share.total,
                    "used": share.used,
                    **{name: share.counters(name).as_dict() for name in self.services},
                }
                for resource, share in self.shares.items()
            },
            "receives": {"posted": self.credits.posted, "promised": self.credits.promised},
            "pool": self.pool.counters.as_dict(),
            "cache": self.cache.counters.as_dict(),
        }

    def close(self) -> None:
        """End every service and give everything back."""
        if self._listener is not None:
            self._listener.close()
        for service in list(self.services.values()):
            service.close()
        self.srq.destroy()
        self.drain()
        for lease in self._receives.values():
            lease.release()
        self._receives.clear()
        self.cache.close()
        self.pool.close()
        self.cq.destroy()
        self.pd.dealloc()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.channel.is_running:
            self.close()


def _with_private_data(param: ConnParam, data: bytes) -> ConnParam:
    if param.private_data:
        raise OSError(errno.EINVAL, "the private data of a service's connection is the manager's")
    return replace(param, private_data=data)
