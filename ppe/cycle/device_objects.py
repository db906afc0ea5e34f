"""What one channel has of one verbs device: domains, memory, shared receive queues, queue pairs, as
the control plane makes and ends them.

The one rule: the device's object is made before the engine hears of it, and ends after the engine
has stopped to use it; only then may its owner close its endpoint.
"""

import contextlib
import errno
import os
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ppe.cycle.blocks import Blocks
from ppe.cycle.control_port import ControlPort
from ppe.cycle.rnic import memory
from ppe.cycle.rnic.records import SGES_MAX
from ppe.cycle.rnic.verbs import device as verbs
from ppe.cycle.rnic.verbs import queues
from ppe.cycle.rnic.verbs.loans import build_loans, loans_size
from ppe.cycle.services.rdma_records import HELD, HELD_OVER, HELD_SIZE, HELD_STATE
from ppe.cycle.services.verbs_orders import REGISTRATION
from shm.atomics import load_acquire
from shm.jit import entry
from shm.qp_spec import DEPTH_MAX
from shm.verbs import (
    ORDER_CLOSE,
    ORDER_CQ,
    ORDER_DEREGISTER,
    ORDER_DOMAIN,
    ORDER_LET_GO,
    ORDER_QP,
    ORDER_REGISTER,
    ORDER_SRQ,
    ORDER_STOP,
    ORDER_WATCH,
)
from shm.view import address_of, window

CQ_DEPTH: Final = 1 << 14
QPS_PER_CQ: Final = 1024


@entry("boolean(intp)")
def is_over(held: int) -> bool:
    """Whether the engine has let go of a HELD."""
    return load_acquire(held + HELD_STATE) == HELD_OVER


@entry("int64(int64)")
def _check_access(access: int) -> int:
    return memory.check_access(access)


def refusal(number: int, why: str) -> OSError:
    """An error with its number, which the client gets, too."""
    return OSError(number, why)


@dataclass(slots=True, eq=False)
class Polled:
    """A completion queue that the engine polls, and for how many completions it is spoken for."""

    cq: queues.CompletionQueue
    spoken_for: int = 0
    queue_pairs: int = 0


class OpenDevice:
    """A device that an engine has opened, with the completion queues that are polled for it."""

    def __init__(self, port: ControlPort, name: str) -> None:
        self.port = port
        self.device = verbs.Device(name)
        self.depth = min(self.device.limits.completions, CQ_DEPTH)
        self.polled: list[Polled] = []
        self._watches: list[int] = []

    def cq_for(self, completions: int) -> Polled:
        """A completion queue with room for a queue pair's completions; it cannot overflow."""
        if completions > self.depth:
            raise refusal(errno.EINVAL, f"a queue pair of {completions} work requests: {self.depth}"
                          f" fit into a completion queue of {self.device.name}")  # fmt: skip
        for each in self.polled:
            if each.spoken_for + completions <= self.depth and each.queue_pairs < QPS_PER_CQ:
                return each
        made = Polled(queues.CompletionQueue(self.device, self.depth, queue_pairs=QPS_PER_CQ))
        os.set_blocking(made.cq.event_descriptor, False)
        self.port.order_verbs(ORDER_CQ, arg0=made.cq.address)
        self.polled.append(made)
        self._watches.append(watch(self.port, made.cq.event_descriptor))
        return made

    def close(self) -> None:
        """Give it back; no channel has anything of it any more."""
        for name in self._watches:
            self.port.order_verbs(ORDER_CLOSE, endpoint=name)
        for each in self.polled:
            self.port.order_verbs(ORDER_CQ, arg0=each.cq.address, srq=1)
        self.device.close()


def watch(port: ControlPort, descriptor: int, channel: int | None = None) -> int:
    """Have a channel (the control plane's for None) told of a descriptor's news: its endpoint."""
    copy = os.dup(descriptor)
    try:
        if channel is None:
            return port.order_verbs(ORDER_WATCH, arg0=copy)
        return port.order_verbs(ORDER_WATCH, channel, arg0=copy)
    except OSError:
        os.close(copy)
        raise


@dataclass(slots=True, eq=False)
class DomainHold:
    """A protection domain and the memory that is registered in it, by the engine's key."""

    domain: verbs.Domain
    regions: dict[int, verbs.Region] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class SrqHold:
    """A shared receive queue."""

    srq: queues.SharedReceiveQueue
    domain: DomainHold
    depth: int


@dataclass(slots=True, eq=False)
class QpHold:
    """A queue pair. `completions`: what it may have under way."""

    qp: queues.QueuePair
    domain: DomainHold
    srq: SrqHold | None
    polled: Polled
    completions: int
    lent: list[int] = field(default_factory=list)  # keys of memory that goes with it


class Objects:
    """The objects of one channel of an engine on one device, by the ids of their endpoints."""

    def __init__(
        self, port: ControlPort, blocks: Blocks, opened: OpenDevice, client: int, channel: int
    ) -> None:
        self._port, self._blocks = port, blocks
        self.opened, self.client, self.channel = opened, client, channel
        self.domains: dict[int, DomainHold] = {}
        self.srqs: dict[int, SrqHold] = {}
        self.qps: dict[int, QpHold] = {}
        self._leaving: list[tuple[int, Any]] = []  # whose records the engine may still look at
        self._helds: dict[int, int] = {}

    def make_domain(self) -> int:
        """Id of a new protection domain."""
        domain = verbs.Domain(self.opened.device)
        with contextlib.ExitStack() as undo:
            undo.callback(domain.close)
            with self._block(HELD_SIZE) as held:
                name = self._port.order_verbs(ORDER_DOMAIN, self.channel, arg0=held)
            undo.pop_all()
        self.domains[name], self._helds[name] = DomainHold(domain), held
        return name

    def register(
        self, domain: int, address: int, length: int, iova: int, access: int
    ) -> tuple[int, int]:
        """The engine's key and the device's rkey of memory that the engine sees at an address and
        its owner calls `iova`; peers name it by the engine's address.
        """
        outcome = _check_access(access)
        if outcome < 0:
            raise refusal(-outcome, f"{os.strerror(-outcome)}: access {access:#x}")
        region = verbs.Region(self._domain(domain).domain, address, length, access)
        given = np.zeros(1, REGISTRATION)
        given[0]["address"], given[0]["length"], given[0]["iova"] = address, length, iova
        given[0]["access"], given[0]["lkey"] = access, region.lkey
        given[0]["handle"] = region.pointer
        try:
            lkey = self._port.order_verbs(
                ORDER_REGISTER, self.channel, arg0=address_of(given), domain=domain
            )
        except OSError:
            region.close()
            raise
        self.domains[domain].regions[lkey] = region
        return lkey, region.rkey

    def deregister(self, domain: int, lkey: int) -> None:
        """Take memory back. Raises OSError: EBUSY while work under way needs it."""
        regions = self._domain(domain).regions
        self._port.order_verbs(ORDER_DEREGISTER, self.channel, arg0=lkey, domain=domain)
        regions.pop(lkey).close()

    def lend(self, name: int, address: int, length: int, access: int) -> tuple[int, int]:
        """Register memory for one queue pair, with which it goes: the engine's key, by which it is
        named with the engine's addresses, and the device's rkey.
        """
        hold = self.qps[name]
        domain = self._domain_of(hold)
        key, rkey = self.register(domain, address, length, address, access)
        hold.lent.append(key)
        return key, rkey

    def take_back(self, name: int) -> None:
        """Take back what was lent to a queue pair that has nothing under way."""
        hold = self.qps[name]
        while hold.lent:
            self.deregister(self._domain_of(hold), hold.lent.pop())

    def _domain_of(self, hold: QpHold) -> int:
        return next(name for name, each in self.domains.items() if each is hold.domain)

    def make_srq(self, domain: int, depth: int) -> int:
        """Id of a new shared receive queue."""
        limits = self.opened.device.limits
        _check_depth("depth", depth, limits.srq_requests)
        hold = self._domain(domain)
        sges = min(limits.srq_sges, SGES_MAX)
        srq = queues.SharedReceiveQueue(hold.domain, depth, sges=sges)
        with contextlib.ExitStack() as undo:
            undo.callback(srq.close)
            with self._block(HELD_SIZE + loans_size(depth)) as held:
                mine = window(held, 1, HELD)[0]
                mine["core"], mine["receives"] = srq.address, held + HELD_SIZE
                build_loans(held + HELD_SIZE, depth)
                name = self._port.order_verbs(ORDER_SRQ, self.channel, arg0=held, domain=domain)
            undo.pop_all()
        self.srqs[name], self._helds[name] = SrqHold(srq, hold, depth), held
        return name

    def make_qp(self, domain: int, srq: int, sends: int, receives: int) -> int:
        """Id of a new queue pair that is connected to nothing."""
        limits = self.opened.device.limits
        _check_depth("max_send_wr", sends, limits.send_requests)
        _check_depth("max_recv_wr", receives, limits.send_requests)
        hold, shared = self._domain(domain), self._srq(srq) if srq else None
        if shared is not None and shared.domain is not hold:
            raise refusal(errno.EINVAL, "the shared receive queue is of another protection domain")
        completions = sends + (receives if shared is None else shared.depth)
        polled = self.opened.cq_for(completions)
        qp = queues.QueuePair(
            hold.domain,
            polled.cq,
            sends=sends,
            receives=receives,
            sges=min(limits.sges, SGES_MAX),
            srq=shared.srq if shared else None,
            enters=False,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(qp.close)
            size = HELD_SIZE + loans_size(sends) + loans_size(receives)
            with self._block(size) as held:
                self._fill(held, qp, sends, receives)
                name = self._port.order_verbs(
                    ORDER_QP, self.channel, arg0=held, domain=domain, srq=srq
                )
            undo.pop_all()
        polled.spoken_for += completions
        polled.queue_pairs += 1
        self.qps[name] = QpHold(qp, hold, shared, polled, completions)
        self._helds[name] = held
        return name

    @staticmethod
    def _fill(held: int, qp: queues.QueuePair, sends: int, receives: int) -> None:
        mine = window(held, 1, HELD)[0]
        mine["core"], mine["cq"] = qp.address, qp.cq.address
        mine["sends"] = held + HELD_SIZE
        mine["receives"] = build_loans(held + HELD_SIZE, sends)
        build_loans(int(mine["receives"]), receives)

    def retire(self, name: int) -> None:
        """Have the device let go of an object, so that its owner may close the endpoint. Raises
        OSError: EBUSY for what others rest on, EBADF for what there is not.
        """
        if name in self.qps:
            self._retire_qp(name)
        elif name in self.srqs:
            hold = self.srqs[name]
            if any(qp.srq is hold for qp in self.qps.values()):
                raise refusal(errno.EBUSY, "queue pairs use this receive queue")
            self._end(name, hold.srq)
            del self.srqs[name]
        elif name in self.domains:
            domain = self.domains[name]
            users = [each.domain for each in self.qps.values()]
            users += [each.domain for each in self.srqs.values()]
            if domain.regions or domain in users:
                raise refusal(errno.EBUSY, "others rest on it: " + os.strerror(errno.EBUSY))
            self._end(name, domain.domain)
            del self.domains[name]
        else:
            raise refusal(errno.EBADF, f"there is no object {name} of this device")

    def _retire_qp(self, name: int) -> None:
        hold = self.qps[name]
        self._end(name, hold.qp)
        self.take_back(name)
        hold.polled.spoken_for -= hold.completions
        hold.polled.queue_pairs -= 1
        del self.qps[name]

    def _end(self, name: int, item: verbs.Owned) -> None:
        self._port.order_verbs(ORDER_STOP, self.channel, endpoint=name)
        if isinstance(item, queues.QueuePair):
            with contextlib.suppress(verbs.VerbsError):  # One in no state has nothing to flush.
                item.flush()
        item.close()
        self._port.order_verbs(ORDER_LET_GO, self.channel, endpoint=name)
        self._leaving.append((self._helds.pop(name), item))

    def close(self) -> None:
        """The channel is about to go: the device lets go of everything it had."""
        for name in list(self.qps):
            self.retire(name)
        for name in list(self.srqs):
            self.retire(name)
        for name, domain in list(self.domains.items()):
            for region in domain.regions.values():
                region.close()
            domain.regions.clear()  # The engine's rows go with the domain's endpoint.
            self.retire(name)

    def _block(self, size: int) -> contextlib.AbstractContextManager[int]:
        self._leaving = [each for each in self._leaving if not is_over(each[0])]
        return self._blocks.block(self.client, size)

    def _domain(self, name: int) -> DomainHold:
        if name not in self.domains:
            raise refusal(errno.EBADF, f"there is no protection domain {name} of this device")
        return self.domains[name]

    def _srq(self, name: int) -> SrqHold:
        if name not in self.srqs:
            raise refusal(errno.EBADF, f"there is no shared receive queue {name} of this device")
        return self.srqs[name]


def _check_depth(what: str, depth: int, limit: int) -> None:
    most = min(limit, DEPTH_MAX)
    if not 1 <= depth <= most:
        raise refusal(errno.EINVAL, f"{what} {depth} is outside 1..{most}")
