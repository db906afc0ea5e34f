"""A verbs device without a driver, for the control plane and the service that drive one: its queues
are `fake`'s C functions, and `said` tells what it was asked for.
"""

import os

import pytest

from ppe.cycle import device_objects
from ppe.cycle.device_connections import Link, Watched
from ppe.cycle.rnic.verbs import device, queues, records
from ppe.cycle.rnic.verbs.queues import Block
from shm.verbs import ORDER_READY
from shm.view import window
from tests.ppe.rnic.verbs import fake

NAME = "fake0"
LIMITS = device.Limits(
    send_requests=1024, sges=10, completions=4096, srq_requests=1024, srq_sges=10, ird=16, ord=16,
    windows=0,
)  # fmt: skip


class Device:
    """An open device of this kind; `async_events` are (type, address of an element)."""

    def __init__(self, name=NAME):
        self.name, self.limits, self.transport = name, LIMITS, "ib"
        self.opcodes, self.has_odp = 0x3FF, False
        self.made, self.said, self.async_events = [], [], []
        self.keys = iter(range(0x1000, 0x100000, 0x100))
        self.numbers = iter(range(0x20, 0x10000))
        self.async_descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def wait_async(self, timeout_s):
        assert timeout_s == 0, "nobody may wait in the control plane"
        return self.async_events.pop(0) if self.async_events else None

    def close(self):
        while self.made:
            self.made[-1].close()
        os.close(self.async_descriptor)
        self.said.append("close")


class _Item(device.Owned):
    def destroy(self):
        self.device.said.append(f"end {type(self).__name__}")


class Domain(_Item):
    pass


class Region(_Item):
    def __init__(self, domain, address, length, access):
        super().__init__(domain.device)
        self.address, self.length, self.access = address, length, access
        self.lkey = next(self.device.keys)
        self.rkey, self.pointer = self.lkey | 1, 0


class SharedReceiveQueue(_Item):
    def __init__(self, domain, depth, *, sges=1):
        super().__init__(domain.device)
        self.queue = fake.Queue()
        self.pointer = self.queue.pointer
        self._block = Block(4096)
        self.address = queues.build_rq(
            self._block.address, self.pointer, fake.post.address, depth, sges
        )

    def arm(self, limit):
        self.device.said.append(f"arm {limit}")


class QueuePair(_Item):
    def __init__(self, domain, cq, *, sends, receives, sges, srq, enters):
        super().__init__(domain.device)
        assert not enters, "the engine's thread alone changes its tables"
        self.cq, self.queue, self.receive_queue = cq, fake.Queue(), fake.Queue()
        self.pointer, self.qp_num = self.queue.pointer, next(self.device.numbers)
        self._rq, self._block = Block(4096), Block(queues.qp_size(sends))
        post = fake.post.address
        self.rq = srq.address if srq else queues.build_rq(
            self._rq.address, self.receive_queue.pointer, post, receives, sges
        )  # fmt: skip
        self.address = queues.build_qp(
            self._block.address, self.pointer, post, sends=sends, sges=sges, inline=0,
            opcodes=self.device.opcodes, iwarp=False,
        )  # fmt: skip
        own = window(self.address, 1, records.QP)[0]
        own["qp_num"], own["rq"] = self.qp_num, self.rq

    def flush(self):
        self.device.said.append("flush")

    def complete(self, wr_id, **fields):
        """Let the device have a completion for this queue pair."""
        self.cq.complete(wr_id, qp_num=self.qp_num, **fields)


class CompletionQueue(fake.CompletionQueue):
    def __init__(self, device_, depth, *, queue_pairs):
        super().__init__(queue_pairs=queue_pairs)
        self.device = device_
        # Like the kernel's, 8 bytes an event.
        self.event_descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self.own["descriptor"] = self.event_descriptor
        device_.made.append(self)

    def close(self):
        self.device.made.remove(self)
        os.close(self.event_descriptor)


class Connection:
    """A connection of the manager that takes every step."""

    def __init__(self, device_):
        self.device, self.device_name, self.qp = device_, device_.name, None

    def take(self, qp):
        self.qp = qp

    def disconnect(self):
        self.device.said.append("disconnect")

    def close(self):
        self.device.said.append("end Connection")


def install(monkeypatch):
    """Have the control plane make its objects of these classes, and find the device."""
    for module, kinds in (
        (device_objects.verbs, (Device, Domain, Region)),
        (device_objects.queues, (SharedReceiveQueue, QueuePair, CompletionQueue)),
    ):
        for kind in kinds:
            monkeypatch.setattr(module, kind.__name__, kind)
    monkeypatch.setattr("ppe.cycle.devices.device_names", lambda: [NAME])


def connect(rnic, qp):
    """Make a queue pair of the host's one that is connected, to nobody; the device's queue pair."""
    (share,) = (each for each in _devices(rnic)._shares.values() if _is_of(each, rnic))
    connections = share.connections
    number = next(connections._numbers)
    link = Link(number, Connection(share.objects.opened.device), Watched(None, 0), True, True)
    connections._links[number] = link
    cap = qp.cap
    endpoint = connections.prepare(
        number, qp.pd.handle, qp.srq.endpoint if qp.srq else 0, cap.max_send_wr, cap.max_recv_wr
    )

    def establish():
        port, channel = share.objects._port, share.objects.channel
        port.order_verbs(ORDER_READY, channel, endpoint=endpoint)
        link.is_ready = True

    rnic.provider.starting[endpoint] = establish
    qp.start(endpoint, None, False)
    return share.objects.qps[endpoint].qp


def _devices(rnic):
    return rnic.engine._rnics.devices


def _is_of(share, rnic):
    return share.objects.channel == rnic.engine._channels[rnic.channel][0]


def opened(rnic):
    """The device itself."""
    return _devices(rnic)._opened[NAME].device


@pytest.fixture
def fake_device(monkeypatch):
    """Let there be a device of that name."""
    install(monkeypatch)
