"""Memory of queue pairs and shared receive queues: made by the control plane, the engine's until
the endpoint is over, then used for the next one of the same size.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ppe.cycle.control_port import ControlPort, EngineSilent
from ppe.cycle.rnic.receive import build_rq, rq_size
from ppe.cycle.services.rdma_records import HELD, HELD_OVER, HELD_SIZE, HELD_STATE
from shm.atomics import load_acquire
from shm.jit import entry
from shm.qp_spec import DEPTH_MAX, QpSpec
from shm.verbs import ORDER_DOMAIN, ORDER_ENABLE, ORDER_SRQ
from shm.view import address_of

LINE: Final = 64
# How `host.verbs.mpa.Rtr` and the provider count the ways of saying ready: none, by a Send, by a
# Write, by a Read.
_RTR: Final = {0: 0, 1: 3, 2: 1, 4: 2}
KEPT_MAX: Final = 64  # blocks of what is over, kept for the next ones


@entry("int64(intp)")
def _state_of(held: int) -> int:
    return load_acquire(held + HELD_STATE)


class Rnics:
    """The RDMA objects of one engine. `limit`: bytes of all their blocks together."""

    def __init__(self, port: ControlPort, limit: int) -> None:
        self._port, self._limit = port, limit
        self._used: list[NDArray[Any]] = []
        self._kept: list[NDArray[Any]] = []
        self.bytes = 0

    def call(self, channel: int, message: dict[str, Any]) -> dict[str, Any]:
        """Carry out what a client asks for: `do` is domain, srq or enable.

        Raises ValueError for what cannot be, MemoryError beyond the limit, OSError when the engine
        refuses.
        """
        what = message.get("do")
        if what == "domain":
            return {"domain": self._port.order_rdma(ORDER_DOMAIN, channel)}
        if what == "srq":
            domain, depth = _number(message, "domain"), _number(message, "depth")
            return {"srq": self.make_srq(channel, domain, depth)}
        if what == "enable":
            spec = QpSpec.from_message(message.get("spec"))
            self.enable(channel, _number(message, "endpoint"), spec)
            return {}
        raise ValueError(f"{what!r} is nothing that an RNIC does")

    def make_srq(self, channel: int, domain: int, depth: int) -> int:
        """Id of a new shared receive queue of a protection domain."""
        if not 1 <= depth <= DEPTH_MAX:
            raise ValueError(f"depth {depth} is outside 1..{DEPTH_MAX}")
        table = self._load()
        memory, start = self._block(rq_size(depth))
        build_rq(start + HELD_SIZE, depth, table, domain, shared=True)
        return self._hand_over(memory, ORDER_SRQ, channel, held=start, domain=domain)

    def enable(self, channel: int, endpoint: int, spec: QpSpec) -> None:
        """Have the engine make a queue pair of a connection after its start-up."""
        from ppe.cycle.rnic.iwarp.spec import QpSpec as Core

        table = self._load()
        core = Core(
            active=spec.active,
            crc=spec.crc,
            markers_rx=spec.markers_rx,
            markers_tx=spec.markers_tx,
            extensions=spec.extensions,
            rtr=_RTR[spec.rtr],
            ird=spec.ird,
            ord=spec.ord,
            mulpdu=spec.mulpdu,
            sq_depth=spec.sq_depth,
        )
        core.check()
        memory, start = self._block(core.size + rq_size(spec.rq_depth))
        at = start + HELD_SIZE
        rq = at + core.size
        build_rq(rq, spec.rq_depth, table, spec.domain)
        core.build(at, number=endpoint, pd=spec.domain, table=table, rq=rq)
        self._hand_over(
            memory,
            ORDER_ENABLE,
            channel,
            held=start,
            domain=spec.domain,
            endpoint=endpoint,
            srq=spec.srq,
        )

    def _load(self) -> int:
        """Make the engine able to serve queue pairs; address of its table of memory."""
        self._port.tables.load_rdma()
        return self._port.tables.memory_table

    def _block(self, core_size: int) -> tuple[NDArray[Any], int]:
        """Zeroed memory for a HELD and what follows it, and where the HELD lies in it."""
        self._sweep()
        memory = self._take(HELD_SIZE + core_size + LINE)
        start = address_of(memory) + -address_of(memory) % LINE
        held = memory[start - address_of(memory) :][:HELD_SIZE].view(HELD)[0]
        held["core"] = start + HELD_SIZE
        return memory, start

    def _hand_over(self, memory: NDArray[Any], which: int, channel: int, **fields: int) -> int:
        try:
            name = self._port.order_rdma(which, channel, **fields)
        except EngineSilent:
            self._used.append(memory)  # It may still take over, and then it touches this memory.
            raise
        except BaseException:
            self._give(memory)
            raise
        self._used.append(memory)
        return name

    def _take(self, size: int) -> NDArray[Any]:
        for place, memory in enumerate(self._kept):
            if memory.nbytes == size:
                del self._kept[place]
                memory[:] = 0
                return memory
        if self.bytes + size > self._limit:
            raise MemoryError(f"queue pairs would take more than {self._limit >> 20} MiB")
        self.bytes += size
        return np.zeros(size, np.uint8)

    def _give(self, memory: NDArray[Any]) -> None:
        if len(self._kept) < KEPT_MAX:
            self._kept.append(memory)
        else:
            self.bytes -= memory.nbytes

    def _sweep(self) -> None:
        """Take back what belonged to endpoints that are over."""
        running = []
        for memory in self._used:
            start = address_of(memory) + -address_of(memory) % LINE
            if _state_of(start) == HELD_OVER:
                self._give(memory)
            else:
                running.append(memory)
        self._used = running


def _number(message: dict[str, Any], name: str) -> int:
    value = message.get(name)
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{name} is {value!r}, which is no number of something")
    return value
