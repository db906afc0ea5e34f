"""Verbs: RDMA through the engine, with the verbs manual's words.

with host.connect("inline:") as engine, engine.channel() as channel:
    rnic = Device(engine, channel)
    pd, cq = rnic.alloc_pd(), rnic.create_cq()
    qp = rnic.create_qp(pd, cq)
    qp.connect(("192.0.2.7", 7174))
"""

from host.verbs.cm import ConnectRequest, ConnParam, Listener
from host.verbs.cq import CompletionQueue
from host.verbs.device import AsyncEvent, Device, add_provider
from host.verbs.memory import MemoryRegion, ProtectionDomain
from host.verbs.mpa import MpaError, Rejected, Rtr, Startup
from host.verbs.qp import QueuePair, SharedReceiveQueue
from host.verbs.work import QpCap, RecvWr, SendWr, Sge, WorkCompletion, WorkError

__all__ = [
    "AsyncEvent",
    "CompletionQueue",
    "ConnParam",
    "ConnectRequest",
    "Device",
    "Listener",
    "MemoryRegion",
    "MpaError",
    "ProtectionDomain",
    "QpCap",
    "QueuePair",
    "RecvWr",
    "Rejected",
    "Rtr",
    "SendWr",
    "Sge",
    "SharedReceiveQueue",
    "Startup",
    "WorkCompletion",
    "WorkError",
    "add_provider",
]
