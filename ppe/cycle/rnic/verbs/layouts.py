"""The structures of libibverbs and librdmacm that are read or written at their addresses (x86-64).

They are public ABI: `ibv_context.ops`, work requests and completions have not moved since rdma-core
17, because the manual's inline functions compile them into every program. `tests/ppe/rnic/verbs`
compares all of it with the headers.
"""

from typing import Final

from shm.layout import Field, offset, record
from shm.view import opener

SGE: Final = record(
    Field("addr", "<i8"),
    Field("length", "<u4"),
    Field("lkey", "<u4"),
    size=16,
)
RECV_WR: Final = record(
    Field("wr_id", "<i8"),
    Field("next", "<i8"),
    Field("sg_list", "<i8"),
    Field("num_sge", "<i4"),
    size=32,
)
# struct ibv_send_wr has a union in the middle: one record for each of its readings.
_HEAD: Final = (
    Field("wr_id", "<i8"),
    Field("next", "<i8"),
    Field("sg_list", "<i8"),
    Field("num_sge", "<i4"),
    Field("opcode", "<u4"),
    Field("send_flags", "<u4"),
    Field("imm_data", "<u4"),  # network order; of WR_SEND_WITH_INV: invalidate_rkey
)
SEND_WR: Final = record(
    *_HEAD,
    Field("remote_addr", "<i8"),
    Field("rkey", "<u4"),
    size=128,
)
ATOMIC_WR: Final = record(
    *_HEAD,
    Field("remote_addr", "<i8"),
    Field("compare_add", "<i8"),
    Field("swap", "<i8"),
    Field("rkey", "<u4"),
    size=128,
)
BIND_WR: Final = record(
    *_HEAD,
    Field("unused", "(5,)<i8"),
    Field("mw", "<i8"),
    Field("rkey", "<u4"),
    Field("mr", "<i8"),
    Field("addr", "<i8"),
    Field("length", "<i8"),
    Field("access", "<u4"),
    size=128,
)
WC: Final = record(
    Field("wr_id", "<i8"),
    Field("status", "<u4"),
    Field("opcode", "<u4"),
    Field("vendor_err", "<u4"),
    Field("byte_len", "<u4"),
    Field("imm_data", "<u4"),  # network order; with WC_WITH_INV: invalidated_rkey
    Field("qp_num", "<u4"),
    Field("src_qp", "<u4"),
    Field("wc_flags", "<u4"),
    Field("pkey_index", "<u2"),
    Field("slid", "<u2"),
    Field("sl", "<u1"),
    Field("dlid_path_bits", "<u1"),
    size=48,
)
# struct rdma_cm_event with the connected reading of its union.
CM_EVENT: Final = record(
    Field("id", "<i8"),
    Field("listen_id", "<i8"),
    Field("event", "<i4"),
    Field("status", "<i4"),
    Field("private_data", "<i8"),
    Field("private_data_len", "<u1"),
    Field("responder_resources", "<u1"),
    Field("initiator_depth", "<u1"),
    Field("flow_control", "<u1"),
    Field("retry_count", "<u1"),
    Field("rnr_retry_count", "<u1"),
    Field("srq", "<u1"),
    Field("qp_num", "<u4"),
    size=80,
)
ASYNC_EVENT: Final = record(
    Field("element", "<i8"),
    Field("event_type", "<i4"),
    size=16,
)
recv_wr_at = opener(RECV_WR)
send_wr_at = opener(SEND_WR)
atomic_wr_at = opener(ATOMIC_WR)
bind_wr_at = opener(BIND_WR)
wc_at = opener(WC)

SGE_SIZE: Final = SGE.itemsize
WC_SIZE: Final = WC.itemsize
SEND_WR_SIZE: Final = SEND_WR.itemsize
RECV_WR_SIZE: Final = RECV_WR.itemsize

# Every object begins with the address of its ibv_context; the context has the functions.
OBJECT_CONTEXT: Final = 0
CONTEXT_DEVICE: Final = 0
CONTEXT_POLL_CQ: Final = 96
CONTEXT_REQ_NOTIFY_CQ: Final = 104
CONTEXT_POST_SRQ_RECV: Final = 168
CONTEXT_POST_SEND: Final = 208
CONTEXT_POST_RECV: Final = 216
CONTEXT_CMD_FD: Final = 264
CONTEXT_ASYNC_FD: Final = 268
CONTEXT_SIZE: Final = 328
DEVICE_NAME: Final = 24
DEVICE_NAME_SIZE: Final = 64
PD_HANDLE: Final = 8
CQ_CHANNEL: Final = 8
CQ_CQE: Final = 28
CHANNEL_FD: Final = 8
QP_PD: Final = 16
QP_SRQ: Final = 40
QP_QP_NUM: Final = 52
SRQ_PD: Final = 16
MR_LKEY: Final = 36
MR_RKEY: Final = 40
MW_RKEY: Final = 16
CM_ID_CHANNEL: Final = 8  # of struct rdma_cm_id

FIELDS: Final = {
    "ibv_sge": SGE,
    "ibv_recv_wr": RECV_WR,
    "ibv_send_wr": SEND_WR,
    "ibv_wc": WC,
    "ibv_async_event": ASYNC_EVENT,
}


def field_offset(name: str, field: str) -> int:
    """Where a field of one of FIELDS lies."""
    return offset(FIELDS[name], field)
