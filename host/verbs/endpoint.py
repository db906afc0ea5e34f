"""A connection of one service of the resource manager: messages under credits, and remote memory
read and written by descriptor.
"""

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from host.verbs.credits import CreditAccount
from host.verbs.exchange import CREDITS_ONLY, HEADER, MAGIC, MESSAGE, Descriptor
from host.verbs.qp import QueuePair
from host.verbs.registration import Lease
from host.verbs.work import SendWr, Sge
from shm.verbs_numbers import (
    SEND_SIGNALED,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
    WR_SEND_WITH_INV,
)

if TYPE_CHECKING:
    from host.verbs.resources import Service


class Endpoint:
    """A connection of one service."""

    def __init__(self, service: "Service", qp: QueuePair) -> None:
        self.service, self.qp = service, qp
        manager = service.manager
        self.credits: CreditAccount = manager.credits.account(manager.credits_per_endpoint)
        self._waiting: deque[tuple[Lease, int, int, Any]] = deque()
        self.is_closed = False

    @property
    def waiting(self) -> int:
        """Messages of ours that wait for a credit of the peer's."""
        return len(self._waiting)

    def send(
        self, lease: Lease, length: int, *, token: Any = None, invalidate_rkey: int = 0
    ) -> None:
        """Send a message that was written behind HEADER into a place of `Service.take`. It waits
        until the peer has granted a credit; `on_done(endpoint, token, wc)` when it is sent, and the
        place is given back then.
        """
        if length < HEADER.size or length > lease.length:
            raise ValueError(f"a message of {length} octets, header included, in {lease.length}")
        self._waiting.append((lease, length, invalidate_rkey, token))
        self.push()

    def push(self) -> None:
        """Send what may be sent now."""
        while self._waiting and not self.is_closed and self.credits.spend():
            lease, length, rkey, token = self._waiting.popleft()
            grant = self.credits.grant()
            lease.array[: HEADER.size] = list(HEADER.pack(MAGIC, MESSAGE, grant))
            opcode = WR_SEND_WITH_INV if rkey else WR_SEND
            done = Sent(self, lease, token)
            if not self._post(opcode, [lease.sge(0, length)], done, invalidate_rkey=rkey):
                self.credits.take_back(grant)
                self.credits.available += 1
                self._waiting.appendleft((lease, length, rkey, token))
                return
            self.service.counters.messages_out += 1

    def grant_alone(self) -> bool:
        """Tell the peer of new credits when no message of ours is due to carry them."""
        wanted = self.credits.target - self.credits.outstanding
        if self.is_closed or 2 * wanted < self.credits.target:
            return False
        grant = self.credits.grant()
        if grant == 0:
            return False
        try:
            lease = self.service.manager.place(HEADER.size)
        except OSError:
            self.credits.take_back(grant)
            return False
        lease.array[:] = list(HEADER.pack(MAGIC, CREDITS_ONLY, grant))
        if self._post(WR_SEND, [lease.sge()], Sent(self, lease, None, is_ours=True)):
            return True
        lease.release()
        self.credits.take_back(grant)
        return False

    def read(self, remote: Descriptor, into: Sge, token: Any = None) -> bool:
        """Read remote memory; `on_done` when it is there. False: the queue is full."""
        self.service.counters.reads += 1
        return self._move(WR_RDMA_READ, remote, into, token)

    def write(self, remote: Descriptor, data: Sge, token: Any = None) -> bool:
        """Write remote memory; `on_done` when the data may be used again. False: full."""
        self.service.counters.writes += 1
        return self._move(WR_RDMA_WRITE, remote, data, token)

    def _move(self, opcode: int, remote: Descriptor, local: Sge, token: Any) -> bool:
        if local.length > remote.length:
            raise ValueError(f"{local.length} bytes do not fit the peer's {remote.length}")
        done = Sent(self, None, token)
        return self._post(opcode, [local], done, remote=remote)

    def _post(
        self,
        opcode: int,
        pieces: list[Sge],
        done: "Sent",
        *,
        remote: Descriptor | None = None,
        invalidate_rkey: int = 0,
    ) -> bool:
        manager = self.service.manager
        wr_id = manager.remember(done)
        wr = SendWr(
            opcode,
            pieces,
            wr_id,
            SEND_SIGNALED,
            remote.address if remote else 0,
            remote.stag if remote else 0,
            invalidate_rkey=invalidate_rkey,
        )
        if self.qp.post_send(wr):
            return True
        manager.forget(wr_id)
        return False

    def close(self) -> None:
        """End the connection; what is outstanding comes back flushed. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        manager = self.service.manager
        self.qp.destroy()
        try:
            manager.drain()
        finally:  # A service may raise what its work ended with; nothing is lost by that.
            while self._waiting:
                self._waiting.popleft()[0].release()
            manager.credits.close(self.credits)
            self.service.endpoints.discard(self)
            manager.endpoint_gone(self)


@dataclass(slots=True)
class Sent:
    """What to do when a work request is over."""

    endpoint: Endpoint
    lease: Lease | None
    token: Any
    is_ours: bool = False
