"""What compiled code keeps beside a device's queues: the functions to call, room to translate a
work request in, and for each send posted what must come back for it. One engine thread writes them.
"""

from typing import Final

from ppe.cycle.rnic.records import SGES_MAX
from ppe.cycle.rnic.verbs import layouts
from shm.layout import Field, record
from shm.view import opener

# A send that was posted and has not been handed back.
SENT: Final = record(
    Field("token", "<i8"),
    Field("state", "<i8"),  # SENT_*
    Field("signalled", "<i8"),  # whether its poster wants to see its completion
    Field("asked", "<i8"),  # whether the device was asked for one
    Field("opcode", "<i8"),  # WC_*: a failed completion of the device does not say
    Field("status", "<i8"),  # from here on what the device said
    Field("byte_len", "<i8"),
    Field("vendor_err", "<i8"),
    size=64,
)
QP: Final = record(
    Field("handle", "<i8"),  # struct ibv_qp *
    Field("post_send", "<i8"),
    Field("qp_num", "<i8"),
    Field("state", "<i8"),  # QP_*
    Field("opcodes", "<i8"),  # bit n: the device takes IBV_WR opcode n
    Field("always_ask", "<i8"),  # bit n: opcode n must be signalled, see `send`
    Field("sges_max", "<i8"),
    Field("inline_max", "<i8"),
    Field("rq", "<i8"),  # address of its RQ, its own or a shared one
    Field("windows", "<i8"),  # KEYS of memory windows by rkey, and of regions by lkey
    Field("regions", "<i8"),
    Field("sent", "<i8"),  # ring of SENT
    Field("depth", "<i8"),  # a power of two
    Field("limit", "<i8"),  # how many sends may be under way, at most `depth`
    Field("posted", "<i8"),  # positions: sends that were posted,
    Field("done", "<i8"),  # that were handed back,
    Field("reached", "<i8"),  # and one behind the last that the device completed
    Field("user", "<i8"),  # the word of whoever owns the queue pair
    Field("wr", "<i8"),  # struct ibv_send_wr, its gather list, and a place for bad_wr
    Field("sg_list", "<i8"),
    Field("bad_wr", "<i8"),
    size=192,
)
# A receive queue: a queue pair's own, or shared.
RQ: Final = record(
    Field("handle", "<i8"),  # struct ibv_qp * or struct ibv_srq *
    Field("post_recv", "<i8"),
    Field("sges_max", "<i8"),
    Field("capacity", "<i8"),
    Field("posted", "<i8"),  # how many receives are under way
    Field("wr", "<i8"),
    Field("sg_list", "<i8"),
    Field("bad_wr", "<i8"),
    size=64,
)
CQ: Final = record(
    Field("handle", "<i8"),  # struct ibv_cq *
    Field("poll_cq", "<i8"),
    Field("req_notify_cq", "<i8"),
    Field("qps", "<i8"),  # KEYS of queue pairs by number
    Field("batch", "<i8"),  # BATCH of struct ibv_wc
    Field("count", "<i8"),  # how many of them the last poll gave
    Field("next", "<i8"),  # the first that was not looked at
    Field("ready", "<i8"),  # a queue pair that may have something to hand back, or 0
    Field("strays", "<i8"),  # completions of nobody, dropped
    Field("descriptor", "<i8"),  # where its events are read,
    Field("events", "<i8"),  # and how many were: they must be acknowledged before its end
    size=128,
)
# A table of addresses by 32-bit key: open addressing, at most half full.
KEYS: Final = record(
    Field("rows", "<i8"),
    Field("capacity", "<i8"),  # a power of two
    Field("used", "<i8"),
    size=24,
)
KEY_ROW: Final = record(
    Field("key", "<i8"),  # plus one; 0: free
    Field("value", "<i8"),
    size=16,
)
sent_at = opener(SENT)
qp_at = opener(QP)
rq_at = opener(RQ)
cq_at = opener(CQ)
keys_at = opener(KEYS)
key_row_at = opener(KEY_ROW)

SENT_SIZE: Final = SENT.itemsize
KEY_ROW_SIZE: Final = KEY_ROW.itemsize
BATCH: Final = 16
# Room behind a record: a work request, its gather list, and a pointer.
ROOM_SIZE: Final = layouts.SEND_WR_SIZE + SGES_MAX * layouts.SGE_SIZE + 16

SENT_POSTED: Final = 1
SENT_COMPLETED: Final = 2  # the device said how it ended
SENT_REFUSED: Final = 3  # the device refused it after it may have taken it: nobody waits for it

QP_READY: Final = 1
QP_ERROR: Final = 2  # connection lost or never made: posts are refused, the rest is flushed
