"""The passive side of the RDMA benchmark: an inline engine on its own core, in its own process.

Orders come as JSON lines on stdin, answers go to stdout, as in `bench.peer`. The one rule: it ends
when stdin does.
"""

import json
import sys
from time import monotonic_ns
from typing import Any, Final

import numpy as np

import host
from bench import rdma_workers
from bench.cores import pinned
from host.verbs import ConnParam, Device, QpCap, RecvWr
from host.verbs.records import SGE, WC
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
)

SIZE: Final = 1 << 20
DEPTH: Final = 64
ACK_EVERY: Final = 8  # Sends of a bandwidth run
ACCESS: Final = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE


class End:
    """One end of the benchmark's connections: an engine in this thread, a device, a buffer."""

    def __init__(self, size: int = SIZE) -> None:
        self.engine = host.connect("inline:?idle=spin")
        self.channel = self.engine.channel(work=1024, events=1024)
        self.device = Device(self.engine, self.channel)
        self.pd, self.cq = self.device.alloc_pd(), self.device.create_cq(4 * DEPTH)
        self.buffer = self.engine.alloc(size)
        self.buffer.array[:] = np.arange(size, dtype=np.uint32).astype(np.uint8)
        self.mr = self.pd.reg_mr(self.buffer, ACCESS)
        self.sge, self.wc = np.zeros(1, SGE), np.zeros(1, WC)
        self.sge[0] = (self.mr.addr, size, self.mr.lkey)
        self.qp: Any = None

    @property
    def at(self) -> tuple[int, int]:
        """Addresses of the SGE and of the WC."""
        return int(self.sge.ctypes.data), int(self.wc.ctypes.data)

    def new_qp(self) -> Any:
        """A queue pair with receives posted, in the place of the one before."""
        self.drop_qp()
        self.qp = self.device.create_qp(self.pd, self.cq, cap=QpCap(2 * DEPTH, DEPTH))
        for _ in range(DEPTH):
            self.qp.post_recv(RecvWr([self.mr.sge()]))
        return self.qp

    def drop_qp(self) -> None:
        """End the queue pair; what it had outstanding is taken."""
        if self.qp is not None:
            self.qp.destroy()
            self.cq.poll_cq(1 << 16)
            self.qp = None

    def close(self) -> None:
        """Give everything back."""
        self.drop_qp()
        self.device.close()
        self.channel.close()
        self.engine.close()


class Peer:
    """What the orders are carried out on."""

    def __init__(self, core: int) -> None:
        self._core, self._end = core, End()
        self._listener = self._end.device.listen()

    def where(self) -> dict[str, int]:
        """The port, and the memory that may be read and written."""
        end = self._end
        return {"port": self._listener.port, "addr": end.mr.addr, "rkey": end.mr.rkey}

    def accept(self, crc: bool, mulpdu: int) -> int:
        """Take one connection."""
        request = self._listener.get_request(30)
        request.accept(self._end.new_qp(), ConnParam(crc=crc, mulpdu=mulpdu))
        return 0

    def take(self, seconds: float) -> int:
        """Receive until a message of no bytes comes."""
        end, until = self._end, monotonic_ns() + int(seconds * 1e9)
        with pinned(self._core):
            return rdma_workers.take_messages(
                end.device.address, end.qp.qp, end.qp.rq, *end.at, ACK_EVERY, until
            )

    def answer(self, size: int, seconds: float) -> int:
        """Answer messages until one of no bytes comes."""
        end, until = self._end, monotonic_ns() + int(seconds * 1e9)
        sge, wc = end.at
        with pinned(self._core):
            return rdma_workers.answer(
                end.device.address, end.qp.qp, end.qp.rq, sge, size, wc, until
            )

    def close(self) -> None:
        """Give everything back."""
        self._listener.close()
        self._end.close()


def main() -> None:
    """Serve orders until stdin ends."""
    peer = Peer(int(sys.argv[1]))
    for line in sys.stdin:
        order = json.loads(line)
        try:
            reply = {"done": getattr(peer, order.pop("order"))(**order)}
        except Exception as error:
            reply = {"failed": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    peer.close()


if __name__ == "__main__":
    main()
