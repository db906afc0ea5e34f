"""Queue pairs and shared receive queues: where work is posted. Posting never blocks: a full queue
answers False and nothing is changed.
"""

import errno
import os
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from host.verbs import doors
from host.verbs.cm import ConnParam
from host.verbs.cq import CompletionQueue
from host.verbs.memory import MemoryWindow, ProtectionDomain
from host.verbs.mpa import Startup
from host.verbs.records import (
    CLOSING,
    ERROR,
    INIT,
    QP,
    RESET,
    RQ,
    RTS,
    STATE_NAMES,
)
from host.verbs.work import QpCap, RecvWr, SendWr, Sge, WorkCompletion
from shm.layout import offset
from shm.verbs_numbers import (
    SEND_INLINE,
    SEND_SIGNALED,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_ATOMIC_SWAP,
    WR_BIND_MW,
    WR_IMMEDIATE,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_IMM,
    WR_SEND_WITH_INV,
)

if TYPE_CHECKING:
    from host.verbs.device import Device

_OWN_RQ = offset(QP, "own_rq")
_ATOMICS = (WR_ATOMIC_CMP_AND_SWP, WR_ATOMIC_FETCH_AND_ADD, WR_ATOMIC_SWAP)
_OPCODES = (
    *_ATOMICS,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_IMM,
    WR_SEND_WITH_INV,
    WR_RDMA_READ,
    WR_LOCAL_INV,
    WR_BIND_MW,
    WR_IMMEDIATE,
)


class QpStatus(NamedTuple):
    """What `query` tells: the provider's state, and the Terminates of either side, 0 for none."""

    state: int
    terminate_received: int
    terminate_sent: int


class SharedReceiveQueue:
    """Receives for several queue pairs. `rq` is its record, for compiled workers."""

    def __init__(self, device: "Device", pd: ProtectionDomain, depth: int) -> None:
        self.device, self.pd, self.depth = device, pd, depth
        self.record = np.zeros(1, RQ)
        self.rq = int(self.record.ctypes.data)
        self.endpoint = device.provider.create_srq(pd, depth)
        self.record[0]["context"] = device.channel.context
        self.record[0]["endpoint"], self.record[0]["depth"] = self.endpoint, depth
        self.users: set[QueuePair] = set()
        self.failed: deque[WorkCompletion] = deque()  # receives that the engine did not take
        pd.users.add(self)

    @property
    def posted(self) -> int:
        """Receives that no message has taken, or whose completion was not polled."""
        return int(self.record[0]["posted"] - self.record[0]["done"])

    def post_recv(self, wr: RecvWr) -> bool:
        """Post a receive for whichever queue pair needs one first. False: the queue is full."""
        return post_receive(self.device, self.rq, wr)

    def set_limit(self, limit: int) -> None:
        """Have one EVENT_SRQ_LIMIT_REACHED come when fewer receives than that are posted."""
        self.device.provider.set_srq_limit(self.endpoint, limit)

    def put_failed(self, wc: WorkCompletion) -> None:
        """A receive that belongs to no queue pair was refused; the device calls this."""
        self.record[0]["done"] += 1
        self.failed.append(wc)

    def destroy(self) -> None:
        """Give it back; what is posted is dropped. Raises OSError EBUSY while it has users."""
        if self.users:
            raise OSError(errno.EBUSY, f"{len(self.users)} queue pairs use this receive queue")
        self.device.forget_srq(self)
        self.device.provider.destroy_endpoint(self.endpoint)
        self.record[0]["endpoint"] = 0
        self.pd.users.discard(self)


def post_receive(device: "Device", rq: int, wr: RecvWr) -> bool:
    """Post a receive to a queue's record."""
    count = device.sges.fill(wr.sg_list)
    posted = doors.post_recv(device.channel.context, rq, wr.wr_id, device.sges.address, count)
    if posted < 0:
        raise OSError(-posted, f"receive: {os.strerror(-posted)}")
    return posted > 0


class QueuePair:
    """One connection's queues. `qp` is its record, for compiled workers (`host.verbs.native`).

    RESET until connected; receives may be posted before. RTS while connected; ERR once it ended,
    and then every work request comes back flushed.
    """

    def __init__(
        self,
        device: "Device",
        pd: ProtectionDomain,
        send_cq: CompletionQueue,
        recv_cq: CompletionQueue,
        srq: SharedReceiveQueue | None,
        cap: QpCap,
    ) -> None:
        self.device, self.pd, self.srq, self.cap = device, pd, srq, cap
        self.send_cq, self.recv_cq = send_cq, recv_cq
        self.record = np.zeros(1, QP)
        self.qp = int(self.record.ctypes.data)
        self._early: list[RecvWr] = []  # receives posted before there is a connection
        self._binds: deque[MemoryWindow] = deque()  # in the order of their completions
        self.startup: Startup | None = None
        # layer << 12 | type << 8 | code of the Terminate that ended it
        self.terminate: int | None = None
        self.is_destroyed = False
        self._fill_record()
        pd.users.add(self)
        if srq is not None:
            srq.users.add(self)

    def _fill_record(self) -> None:
        mine = self.record[0]
        mine["context"] = self.device.channel.context
        mine["sq_depth"] = self.cap.max_send_wr
        mine["send_cq"], mine["recv_cq"] = self.send_cq.address, self.recv_cq.address
        mine["rq"] = self.qp + _OWN_RQ if self.srq is None else self.srq.rq
        own = mine["own_rq"]
        own["context"] = self.device.channel.context
        own["depth"], own["cq"] = self.cap.max_recv_wr, self.recv_cq.address

    @property
    def endpoint(self) -> int:
        """The engine's name of it, its qp_num; 0 before it is connected."""
        return int(self.record[0]["endpoint"])

    @property
    def qp_num(self) -> int:
        """What work completions call it."""
        return self.endpoint

    @property
    def rq(self) -> int:
        """Record of the receive queue, its own or shared, for compiled workers."""
        return int(self.record[0]["rq"])

    @property
    def state(self) -> int:
        """RESET, RTS, CLOSING or ERROR."""
        return int(self.record[0]["state"])

    @property
    def state_name(self) -> str:
        """The state's name in the manual."""
        return STATE_NAMES[self.state]

    def set_state(self, state: int) -> None:
        """Its state has changed; connection management and the device call this."""
        self.record[0]["state"] = state

    # --- posting ------------------------------------------------------------------------------

    def post_recv(self, wr: RecvWr) -> bool:
        """Post a receive. False: the queue, or its completion queue, is full."""
        self._check()
        if self.srq is not None:
            raise OSError(errno.EINVAL, "this queue pair's receives are the shared queue's")
        if self.endpoint:
            return post_receive(self.device, self.rq, wr)
        if len(self._early) >= self.cap.max_recv_wr:
            return False
        self.device.sges.fill(wr.sg_list)  # Refuse now what cannot be posted later.
        self._early.append(RecvWr(tuple(Sge(*sge) for sge in wr.sg_list), wr.wr_id))
        return True

    def post_send(self, wr: SendWr) -> bool:
        """Post a work request. False: the queue, or its completion queue, is full.

        Raises OSError: EINVAL for a queue pair that is not connected or an opcode that cannot be,
        EOPNOTSUPP for what the peer or the device lacks. What the memory protection refuses comes
        back as a completion.
        """
        self._check()
        if wr.opcode not in _OPCODES:
            raise OSError(errno.EINVAL, f"{wr.opcode} is no work request's opcode")
        if wr.send_flags & SEND_INLINE:
            raise OSError(errno.EOPNOTSUPP, "inline data has no room in a ring")
        posted = self._post_pair(wr) if wr.opcode in _ATOMICS else self._post_list(wr)
        return self._answer(posted, wr.opcode)

    def _post_list(self, wr: SendWr) -> int:
        count = self.device.sges.fill(wr.sg_list)
        imm = wr.imm_data if wr.invalidate_rkey == 0 else wr.invalidate_rkey
        remote = wr.imm_data if wr.opcode == WR_IMMEDIATE else wr.remote_addr
        return doors.post_send(
            self.qp, wr.opcode, wr.send_flags, wr.wr_id, self.device.sges.address, count,
            _signed(remote), wr.rkey, imm & 0xFFFFFFFF,
        )  # fmt: skip

    def _post_pair(self, wr: SendWr) -> int:
        if len(wr.sg_list) != 1 or wr.sg_list[0].length != 8:
            raise OSError(errno.EINVAL, "an atomic returns 8 bytes into one piece of memory")
        sge = wr.sg_list[0]
        return doors.post_pair(
            self.qp, wr.opcode, wr.send_flags, wr.wr_id, sge.addr, sge.lkey,
            _signed(wr.remote_addr), wr.rkey, _signed(wr.compare_add), _signed(wr.swap),
        )  # fmt: skip

    def _answer(self, posted: int, opcode: int) -> bool:
        if posted == -errno.EOPNOTSUPP:
            raise OSError(
                errno.EOPNOTSUPP,
                f"opcode {opcode} needs RFC 7306, which this connection was made without: give "
                "extensions=True on both sides; or the device lacks it",
            )
        if posted < 0:
            raise OSError(-posted, f"a queue pair in {self.state_name} takes no work request")
        return posted > 0

    def bind_mw(self, window: "MemoryWindow", memory: Sge, access: int, *, wr_id: int = 0) -> bool:
        """Post the binding of a window to a piece of registered memory; the completion's
        `new_rkey` is the window's from then on. False: the queue is full.
        """
        self._check()
        posted = doors.post_pair(
            self.qp, WR_BIND_MW, SEND_SIGNALED, wr_id, memory.addr, memory.lkey,
            0, window.rkey, memory.length, access,
        )  # fmt: skip
        if posted > 0:
            self._binds.append(window)
        return self._answer(posted, WR_BIND_MW)

    def bound(self, wc: WorkCompletion) -> None:
        """A binding is over: if it succeeded its window has a new rkey; the device calls this."""
        window = self._binds.popleft() if self._binds else None  # None: posted by compiled code
        if window is not None and wc.ok:
            window.rkey = wc.new_rkey

    # --- connection management ----------------------------------------------------------------

    def connect(self, address: tuple[str, int], param: ConnParam | None = None) -> Startup:
        """Connect as the active side; what was agreed.

        Raises mpa.Rejected, mpa.MpaError, OSError (TimeoutError, ConnectionRefusedError, ...).
        """
        self._check_unconnected()
        return self.device.provider.connect(self, address, param or ConnParam())

    def start(self, endpoint: int, startup: Startup, extensions: bool) -> None:
        """Full operation begins on this endpoint, behind the receives that were posted early."""
        self.record[0]["endpoint"] = endpoint
        self.record[0]["own_rq"]["endpoint"] = endpoint
        self.record[0]["extensions"] = int(extensions)
        self.startup = startup
        self.set_state(INIT)
        self.device.add_qp(self)
        for wr in self._early:
            if not post_receive(self.device, self.rq, wr):
                raise OSError(errno.ENOMEM, "the completion queue is too small for the receives")
        self._early.clear()
        self.device.provider.start(self)
        if self.state == INIT:
            self.set_state(RTS)

    def query(self) -> QpStatus:
        """What the provider knows. Raises OSError for a queue pair that never was connected."""
        self._check()
        if not self.endpoint:
            raise OSError(errno.ENOTCONN, "this queue pair was never connected")
        return QpStatus(*self.device.provider.query(self))

    def disconnect(self, timeout_s: float = 5.0) -> None:
        """End the connection in order: what was posted goes out, then the stream ends, and when the
        peer has ended its own, every other work request comes back flushed. A peer that does not
        within the timeout is cut off.
        """
        self._check()
        if self.state == RTS:
            self.set_state(CLOSING)
            self.device.shut_down(self, timeout_s)
        if self.state != ERROR and self.endpoint:
            self.device.provider.destroy_endpoint(self.endpoint)
            self.set_state(ERROR)
        self.device.progress()

    def destroy(self) -> None:
        """Give it back. What is still outstanding comes to its completion queues, flushed."""
        if self.is_destroyed:
            return
        if self.endpoint and self.device.channel.is_running:
            self.device.close_qp(self)
        self.set_state(RESET)
        self.is_destroyed = True
        self.device.forget_qp(self)
        self.rest_on_nothing()

    def rest_on_nothing(self) -> None:
        """It is gone: what it rested on may go, too."""
        self.pd.users.discard(self)
        if self.srq is not None:
            self.srq.users.discard(self)

    def _check(self) -> None:
        if self.is_destroyed:
            raise OSError(errno.EINVAL, "this queue pair was destroyed")

    def _check_unconnected(self) -> None:
        self._check()
        if self.endpoint:
            raise OSError(errno.EISCONN, "this queue pair was connected before: create another")


def _signed(word: int) -> int:
    """64 bits as the compiled code counts them."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word
