"""Completion queues, receive queues and queue pairs of a device, each with the record that compiled
code drives it by. Cold code makes and closes them; meanwhile the records are the engine's.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ppe.cycle.rnic.records import SGES_MAX
from ppe.cycle.rnic.verbs import keys, layouts, libc, pointers, records
from ppe.cycle.rnic.verbs.device import (
    IWARP,
    Device,
    Domain,
    Owned,
    VerbsError,
    asking,
    is_readable,
)
from ppe.cycle.rnic.verbs.library import part
from ppe.cycle.rnic.verbs.send import ANSWERED
from shm.verbs_numbers import WR_RDMA_READ
from shm.view import address_of, window

QPT_RC: Final = 2  # enum ibv_qp_type
QPS_ERR: Final = 6  # enum ibv_qp_state
SRQ_LIMIT: Final = 1 << 1  # enum ibv_srq_attr_mask
QP_STATE: Final = 1 << 0  # enum ibv_qp_attr_mask
_ALIGNED: Final = 64


class Block:
    """Zeroed memory that stays where it is."""

    def __init__(self, size: int) -> None:
        self._memory: NDArray[np.uint8] = np.zeros(size + _ALIGNED, np.uint8)
        self.address = -(-address_of(self._memory) // _ALIGNED) * _ALIGNED


class CompletionQueue(Owned):
    """A completion queue for up to `queue_pairs` queue pairs; `address` is its record."""

    def __init__(self, device: Device, depth: int, *, queue_pairs: int = 64) -> None:
        self.depth = depth
        with asking(f"{device.name} makes no completion queue of {depth}"):
            self.channel = part("cq").CompChannel(device.context)
            self.cq = part("cq").CQ(device.context, depth, channel=self.channel)
        pointer = pointers.cq_pointer(self.cq, device.pointer)
        tables = records.CQ.itemsize + records.BATCH * layouts.WC_SIZE
        self._block = Block(tables + keys.keys_size(queue_pairs))
        self.address = build_cq(self._block.address, pointer, device.functions, queue_pairs)
        self.pointer = pointer
        self.event_descriptor = pointers.event_descriptor(pointer)
        self.record["descriptor"] = self.event_descriptor
        super().__init__(device)

    @property
    def record(self) -> Any:
        """Its record, to be looked at or filled in."""
        return window(self.address, 1, records.CQ)[0]

    def wait_event(self, timeout_s: float) -> bool:
        """Whether the event came that `poll.req_notify` asked for; it is then taken."""
        if not is_readable(self.event_descriptor, timeout_s):
            return False
        self.channel.get_cq_event(self.cq)
        self.cq.ack_events(1)
        return True

    def destroy(self) -> None:
        """Do it; its queue pairs went before."""
        if self.record["events"]:
            # libibverbs waits for as many acknowledgements as the kernel gave events.
            libc.acknowledge(self.pointer, int(self.record["events"]))
        self.cq.close()
        self.channel.close()


def build_cq(address: int, pointer: int, functions: dict[int, int], queue_pairs: int) -> int:
    """Fill a zeroed CQ record, with its batch and its table behind it."""
    own = window(address, 1, records.CQ)[0]
    own["handle"] = pointer
    own["poll_cq"] = functions[layouts.CONTEXT_POLL_CQ]
    own["req_notify_cq"] = functions[layouts.CONTEXT_REQ_NOTIFY_CQ]
    own["batch"] = address + records.CQ.itemsize
    table = address + records.CQ.itemsize + records.BATCH * layouts.WC_SIZE
    own["qps"] = keys.build_keys(table, queue_pairs)
    return address


def build_rq(address: int, pointer: int, function: int, capacity: int, sges: int) -> int:
    """Fill a zeroed RQ record, with its room behind it."""
    own = window(address, 1, records.RQ)[0]
    room = address + records.RQ.itemsize
    own["handle"] = pointer
    own["post_recv"] = function
    own["sges_max"] = min(sges, SGES_MAX)
    own["capacity"] = capacity
    own["wr"] = room
    own["sg_list"] = room + layouts.RECV_WR_SIZE
    own["bad_wr"] = room + layouts.RECV_WR_SIZE + SGES_MAX * layouts.SGE_SIZE
    return address


class SharedReceiveQueue(Owned):
    """A receive queue for many queue pairs of one domain."""

    def __init__(self, domain: Domain, depth: int, *, sges: int = 1) -> None:
        device, srq = domain.device, part("srq")
        with asking(f"{device.name} makes no shared receive queue of {depth}"):
            self.srq = srq.SRQ(domain.pd, srq.SrqInitAttr(srq.SrqAttr(max_wr=depth, max_sge=sges)))
        self.pointer = pointers.srq_pointer(self.srq, device.pointer, domain.pointer)
        self._block = Block(records.RQ.itemsize + records.ROOM_SIZE)
        function = device.functions[layouts.CONTEXT_POST_SRQ_RECV]
        self.address = build_rq(self._block.address, self.pointer, function, depth, sges)
        super().__init__(device)

    def arm(self, limit: int) -> None:
        """Raise an asynchronous event, once, when fewer receives than this are posted."""
        attributes = part("srq").SrqAttr(srq_limit=limit)
        with asking(f"{self.device.name} arms no limit of {limit}"):
            self.srq.modify(attributes, SRQ_LIMIT)

    def destroy(self) -> None:
        """Do it; what was posted to it is forgotten by the device."""
        self.srq.close()


class QueuePair(Owned):
    """A reliable connection's queues; `address` is its record, `rq` that of its receive queue.

    With `srq`, receives come from there. One completion queue serves both directions. `enters`:
    whether it is entered there at once, and not by whoever polls that queue in another thread.
    """

    def __init__(
        self,
        domain: Domain,
        cq: CompletionQueue,
        *,
        sends: int,
        receives: int = 0,
        sges: int = 1,
        inline: int = 0,
        srq: SharedReceiveQueue | None = None,
        enters: bool = True,
    ) -> None:
        device, self.cq, self.srq, self._enters = domain.device, cq, srq, enters
        qp = part("qp")
        wanted = qp.QPCap(
            max_send_wr=sends,
            max_recv_wr=0 if srq else receives,
            max_send_sge=sges,
            max_recv_sge=0 if srq else sges,
            max_inline_data=inline,
        )
        init = qp.QPInitAttr(
            qp_type=QPT_RC,
            scq=cq.cq,
            rcq=cq.cq,
            srq=srq.srq if srq else None,
            cap=wanted,
            sq_sig_all=0,
        )
        with asking(f"{device.name} makes no queue pair of {sends} sends, {receives} receives"):
            self.qp = qp.QP(domain.pd, init)
        self.pointer = pointers.qp_pointer(self.qp, device.pointer)
        self.qp_num = int(self.qp.qp_num)
        super().__init__(device)
        self._build(sends, receives, sges, int(init.cap.max_inline_data))

    def _build(self, sends: int, receives: int, sges: int, inline: int) -> None:
        if self.srq is None:
            self._rq_block = Block(records.RQ.itemsize + records.ROOM_SIZE)
            function = self.device.functions[layouts.CONTEXT_POST_RECV]
            self.rq = build_rq(self._rq_block.address, self.pointer, function, receives, sges)
        else:
            self.rq = self.srq.address
        self._block = Block(qp_size(sends))
        self.address = build_qp(
            self._block.address,
            self.pointer,
            self.device.functions[layouts.CONTEXT_POST_SEND],
            sends=sends,
            sges=sges,
            inline=inline,
            opcodes=self.device.opcodes,
            iwarp=self.device.transport == IWARP,
        )
        own = window(self.address, 1, records.QP)[0]
        own["qp_num"] = self.qp_num
        own["rq"] = self.rq
        if not self._enters:
            return
        if keys.enter(int(self.cq.record["qps"]), self.qp_num, self.address) < 0:
            raise VerbsError("the completion queue has no room for another queue pair")

    def modify(self, attributes: Any, mask: int) -> None:
        """Change its state as the connection manager says; an empty mask asks for nothing."""
        if mask:
            with asking(f"queue pair {self.qp_num} of {self.device.name} does not change state"):
                self.qp.modify(attributes, mask)

    def flush(self) -> None:
        """Have the device flush all that is posted."""
        self.modify(part("qp").QPAttr(qp_state=QPS_ERR), QP_STATE)

    def to_error(self) -> None:
        """Flush all that is posted, and post no more."""
        self.flush()
        window(self.address, 1, records.QP)[0]["state"] = records.QP_ERROR

    def destroy(self) -> None:
        """Do it. Poll the completion queue empty before; `poll.flush_next` gives the rest."""
        self.qp.close()
        if self._enters:
            keys.leave(int(self.cq.record["qps"]), self.qp_num)


def qp_size(sends: int) -> int:
    """Bytes of a QP record with its room and its ring."""
    return records.QP.itemsize + records.ROOM_SIZE + _ring(sends) * records.SENT_SIZE


def _ring(sends: int) -> int:
    return int(1 << max(1, (sends - 1).bit_length()))


def build_qp(
    address: int,
    pointer: int,
    function: int,
    *,
    sends: int,
    sges: int,
    inline: int,
    opcodes: int,
    iwarp: bool,
) -> int:
    """Fill a zeroed QP record of `qp_size(sends)` bytes; it takes posts when it is QP_READY."""
    own = window(address, 1, records.QP)[0]
    room = address + records.QP.itemsize
    own["handle"] = pointer
    own["post_send"] = function
    own["opcodes"] = opcodes
    own["always_ask"] = ANSWERED if iwarp else 0
    own["sges_max"] = min(sges, SGES_MAX)
    own["inline_max"] = inline
    own["depth"] = _ring(sends)
    own["limit"] = sends
    own["wr"] = room
    own["sg_list"] = room + layouts.SEND_WR_SIZE
    own["bad_wr"] = room + layouts.SEND_WR_SIZE + SGES_MAX * layouts.SGE_SIZE
    own["sent"] = room + records.ROOM_SIZE
    return address


assert 1 << WR_RDMA_READ & ANSWERED, "reads are what arrives late"
