"""A device that is a handful of C functions: what is posted is written down, and completions are
what a test says. Its context, queue pair and queues have libibverbs' own layout.
"""

import ctypes
from typing import Final

from ppe.cycle.rnic.records import SGES_MAX
from ppe.cycle.rnic.verbs import keys, layouts, queues, records
from ppe.cycle.rnic.verbs.queues import Block
from shm.jit import callback, nopython
from shm.layout import Field, record
from shm.memory import copy_bytes, load_32, load_64, store_64
from shm.view import opener, window

# Behind each object of the device lies what the fake knows of it.
OWN: Final = 256
STATE: Final = record(
    Field("count", "<i8"),  # of posts
    Field("answer", "<i8"),  # of the next call; a post is written down only if it is 0
    Field("asked", "<i8"),  # by req_notify_cq, plus one
    Field("waiting", "<i8"),  # completions to be polled
    Field("taken", "<i8"),
    size=64,
)
state_at = opener(STATE)
LIST: Final = OWN + STATE.itemsize
LISTED: Final = 64
POST_SIZE: Final = 128 + SGES_MAX * 16
QP_NUM: Final = 0x1234
I32, I64 = ctypes.c_int32, ctypes.c_int64


@nopython
def _write_down(queue, wr, bad_wr):
    state = state_at(queue + OWN)[0]
    store_64(bad_wr, wr)
    if state["answer"] == 0:
        place = queue + LIST + state["count"] % LISTED * POST_SIZE
        copy_bytes(place, wr, 128)
        copy_bytes(place + 128, load_64(wr + 16), load_32(wr + 24) * 16)
        state["count"] += 1
    return state["answer"]


@callback(I32, I64, I64, I64)
def post(queue, wr, bad_wr):
    return _write_down(queue, wr, bad_wr)


@callback(I32, I64, I32, I64)
def poll_cq(cq, count, wc):
    state = state_at(cq + OWN)[0]
    if state["answer"]:
        return state["answer"]
    given = 0
    while given < count and state["taken"] < state["waiting"]:
        copy_bytes(wc + given * 48, cq + LIST + state["taken"] * 48, 48)
        state["taken"] += 1
        given += 1
    return given


@callback(I32, I64, I32)
def req_notify_cq(cq, solicited_only):
    state_at(cq + OWN)[0]["asked"] = solicited_only + 1
    return state_at(cq + OWN)[0]["answer"]


FUNCTIONS: Final = {
    layouts.CONTEXT_POLL_CQ: poll_cq.address,
    layouts.CONTEXT_REQ_NOTIFY_CQ: req_notify_cq.address,
    layouts.CONTEXT_POST_SEND: post.address,
    layouts.CONTEXT_POST_RECV: post.address,
    layouts.CONTEXT_POST_SRQ_RECV: post.address,
}


class Posted:
    """One work request as the device saw it."""

    def __init__(self, address):
        self._address = address
        self.recv = window(address, 1, layouts.RECV_WR)[0]
        self.send = window(address, 1, layouts.SEND_WR)[0]
        self.atomic = window(address, 1, layouts.ATOMIC_WR)[0]
        self.bind = window(address, 1, layouts.BIND_WR)[0]

    @property
    def imm_data(self):
        """The four bytes as they lie there."""
        return bytes(window(self._address + 36, 4, "u1"))

    @property
    def sges(self):
        rows = window(self._address + 128, int(self.recv["num_sge"]), layouts.SGE)
        return [tuple(map(int, row)) for row in rows]


class Queue:
    """The device's side of a queue pair or shared receive queue."""

    def __init__(self):
        self._block = Block(LIST + LISTED * POST_SIZE)
        self.pointer = self._block.address
        self.state = window(self.pointer + OWN, 1, STATE)[0]

    @property
    def posted(self):
        places = range(int(self.state["count"]))
        return [Posted(self.pointer + LIST + place * POST_SIZE) for place in places]


class CompletionQueue:
    """The device's side of a completion queue, and our record of it."""

    def __init__(self, *, queue_pairs=4):
        self._block = Block(LIST + LISTED * layouts.WC_SIZE)
        self.pointer = self._block.address
        self.state = window(self.pointer + OWN, 1, STATE)[0]
        size = records.CQ.itemsize + records.BATCH * layouts.WC_SIZE + keys.keys_size(queue_pairs)
        self._record = Block(size)
        self.address = queues.build_cq(self._record.address, self.pointer, FUNCTIONS, queue_pairs)
        self.own = window(self.address, 1, records.CQ)[0]

    def complete(self, wr_id, *, imm_data=None, qp_num=QP_NUM, **fields):
        """Let the device have this completion."""
        place = self.pointer + LIST + int(self.state["waiting"]) * layouts.WC_SIZE
        row = window(place, 1, layouts.WC)[0]
        row["wr_id"], row["qp_num"] = wr_id, qp_num
        for name, value in fields.items():
            row[name] = value
        if imm_data is not None:
            window(place + 24, 4, "u1")[:] = list(imm_data)
        self.state["waiting"] += 1


class QueuePair:
    """A queue pair of the fake, with its completion and receive queues, ready to be posted to."""

    def __init__(self, *, sends=8, receives=4, sges=4, inline=64, opcodes=0x3FF, iwarp=False):
        self.cq, self.queue, self.receive_queue = CompletionQueue(), Queue(), Queue()
        self._rq = Block(records.RQ.itemsize + records.ROOM_SIZE)
        self.rq = queues.build_rq(
            self._rq.address, self.receive_queue.pointer, post.address, receives, sges
        )
        self._block = Block(queues.qp_size(sends))
        self.address = queues.build_qp(
            self._block.address,
            self.queue.pointer,
            post.address,
            sends=sends,
            sges=sges,
            inline=inline,
            opcodes=opcodes,
            iwarp=iwarp,
        )
        self._tables = [Block(keys.keys_size(4)) for _ in range(2)]
        self.windows, self.regions = (keys.build_keys(block.address, 4) for block in self._tables)
        self.own = window(self.address, 1, records.QP)[0]
        self.own["rq"], self.own["qp_num"] = self.rq, QP_NUM
        self.own["windows"], self.own["regions"] = self.windows, self.regions
        self.own["state"] = records.QP_READY
        assert keys.enter(int(self.cq.own["qps"]), QP_NUM, self.address) == 0


__all__ = ["FUNCTIONS", "QP_NUM", "CompletionQueue", "Posted", "Queue", "QueuePair"]
