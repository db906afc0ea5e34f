"""The host's records of verbs objects: what compiled workers get as `device`, `qp`, `rq` and `wc`.
Private to this process; the engine never looks at them.
"""

from typing import Final

from shm.layout import Field, record
from shm.view import opener

# A receive queue, a queue pair's own or shared.
RQ: Final = record(
    Field("context", "<i8"),  # the channel's CONTEXT
    Field("endpoint", "<i8"),  # of the queue pair, or of the shared receive queue
    Field("posted", "<i8"),
    Field("done", "<i8"),
    Field("depth", "<i8"),
    Field("cq", "<i8"),  # address of its CQ; 0 for a shared one, whose queue pairs know
    size=64,
)
CQ: Final = record(
    Field("posted", "<i8"),  # work requests that may show in it
    Field("done", "<i8"),  # of those, over and polled
    Field("depth", "<i8"),
    size=64,
)
QP: Final = record(
    Field("context", "<i8"),
    Field("endpoint", "<i8"),
    Field("state", "<i8"),
    Field("sq_posted", "<i8"),
    Field("sq_done", "<i8"),
    Field("sq_depth", "<i8"),
    Field("send_cq", "<i8"),  # addresses
    Field("recv_cq", "<i8"),
    Field("rq", "<i8"),
    Field("extensions", "<i8"),  # the peer knows RFC 7306
    Field("own_rq", RQ),
    size=192,
)
DEVICE: Final = record(
    Field("context", "<i8"),
    Field("qps", "<i8"),  # address of int64[QPS_MAX]: QPs by the index in their endpoint's id
    size=64,
)
# A work completion: struct ibv_wc, field for field.
WC: Final = record(
    Field("wr_id", "<i8"),
    Field("status", "<u4"),
    Field("opcode", "<u4"),
    Field("vendor_err", "<u4"),  # a Terminate's layer << 12 | type << 8 | code
    Field("byte_len", "<u4"),
    Field("imm_data", "<u4"),  # or the rkey that was invalidated
    Field("qp_num", "<u4"),
    Field("src_qp", "<u4"),
    Field("wc_flags", "<u4"),
    Field("pkey_index", "<u2"),
    Field("slid", "<u2"),
    Field("sl", "<u1"),
    Field("dlid_path_bits", "<u1"),
    size=48,
)
SGE: Final = record(
    Field("addr", "<i8"),
    Field("length", "<u4"),
    Field("lkey", "<u4"),
    size=16,
)
rq_at = opener(RQ)
cq_at = opener(CQ)
qp_at = opener(QP)
device_at = opener(DEVICE)
wc_at = opener(WC)
sge_at = opener(SGE)
SGE_SIZE: Final = SGE.itemsize
QPS_MAX: Final = 1 << 16

# States of a queue pair (enum ibv_qp_state).
RESET: Final = 0
INIT: Final = 1
RTS: Final = 3
CLOSING: Final = 4  # SQD in the manual: what was posted goes out, no more is taken
ERROR: Final = 6
STATE_NAMES: Final = {
    RESET: "RESET",
    INIT: "INIT",
    RTS: "RTS",
    CLOSING: "SQD",
    ERROR: "ERR",
}
