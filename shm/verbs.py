"""How a work request and its completion travel on the rings, in the verbs manual's numbers
(`shm.verbs_numbers`). Both sides read this table.

A WQE's first slot: `region` is the lkey, `offset` the address as its region was registered (iova),
`length` of the first scatter/gather entry; arg0 the remote address; arg1 the rkey in the low 32
bits, the send flags above them, the number of entries above those; arg2 the immediate data or the
STag to invalidate, but WR_IMMEDIATE has its 64 bits in arg0. Further entries, SGE {address 8,
length 4, lkey 4}, follow three to a slot. An atomic has `compare` (or `add`) and `swap` in its
second slot instead; a bind the length of its window and the window's rights, while the first entry
is its region's lkey and the address.

A CQE: `length` is byte_len; arg0 the immediate data or the invalidated rkey; arg1 the work
completion's flags, its opcode above WC_OPCODE_SHIFT and, above SQ_DONE_SHIFT, how many work
requests of the send queue are over (modulo 2^32), which covers unsignalled ones; arg2 the status
and, above WC_VENDOR_SHIFT, the Terminate's layer, type and code.
"""

import errno
from typing import Final

from shm.jit import nopython
from shm.operations import CANCELLED, RDMA_ATOMIC_SWAP, RDMA_FIRST
from shm.verbs_numbers import (
    WC_BAD_RESP_ERR,
    WC_FATAL_ERR,
    WC_GENERAL_ERR,
    WC_LOC_ACCESS_ERR,
    WC_LOC_LEN_ERR,
    WC_LOC_PROT_ERR,
    WC_LOC_QP_OP_ERR,
    WC_MW_BIND_ERR,
    WC_REM_ABORT_ERR,
    WC_REM_ACCESS_ERR,
    WC_REM_INV_REQ_ERR,
    WC_REM_OP_ERR,
    WC_RESP_TIMEOUT_ERR,
    WC_RETRY_EXC_ERR,
    WC_RNR_RETRY_EXC_ERR,
    WC_SUCCESS,
    WC_WR_FLUSH_ERR,
)

WR_OURS: Final = 0x100  # opcodes that libibverbs has no numbers for begin here
WC_STATUS_NAMES: Final = {
    WC_SUCCESS: "success",
    WC_LOC_LEN_ERR: "local length error",
    WC_LOC_QP_OP_ERR: "local QP operation error",
    WC_LOC_PROT_ERR: "local protection error",
    WC_WR_FLUSH_ERR: "work request flushed",
    WC_MW_BIND_ERR: "memory window bind error",
    WC_BAD_RESP_ERR: "bad response",
    WC_LOC_ACCESS_ERR: "local access error",
    WC_REM_INV_REQ_ERR: "remote invalid request",
    WC_REM_ACCESS_ERR: "remote access error",
    WC_REM_OP_ERR: "remote operation error",
    WC_RETRY_EXC_ERR: "retries exceeded",
    WC_RNR_RETRY_EXC_ERR: "receiver not ready, retries exceeded",
    WC_REM_ABORT_ERR: "remote aborted",
    WC_FATAL_ERR: "fatal error",
    WC_RESP_TIMEOUT_ERR: "response timed out",
    WC_GENERAL_ERR: "general error",
}

# --- asynchronous events (enum ibv_event_type); EVENT_RDMA's arg0, with the Terminate above -----
EVENT_QP_FATAL: Final = 1
EVENT_QP_REQ_ERR: Final = 2
EVENT_QP_ACCESS_ERR: Final = 3
EVENT_COMM_EST: Final = 4
EVENT_SQ_DRAINED: Final = 5
EVENT_SRQ_LIMIT_REACHED: Final = 15
EVENT_QP_LAST_WQE_REACHED: Final = 16
EVENT_DISCONNECTED: Final = 64  # the connection manager's: the peer has closed in order
EVENT_NEWS: Final = 65  # ours: the control plane has news of a verbs device; of no queue pair
EVENT_NAMES: Final = {
    EVENT_QP_FATAL: "QP fatal",
    EVENT_QP_REQ_ERR: "QP request error",
    EVENT_QP_ACCESS_ERR: "QP access error",
    EVENT_COMM_EST: "communication established",
    EVENT_SQ_DRAINED: "send queue drained",
    EVENT_SRQ_LIMIT_REACHED: "SRQ limit reached",
    EVENT_QP_LAST_WQE_REACHED: "last work request reached",
    EVENT_DISCONNECTED: "disconnected",
}
EVENT_TERMINATE_SHIFT: Final = 16  # layer << 12 | type << 8 | code ...
EVENT_HAS_TERMINATE: Final = 1 << 14  # ... if there is one
EVENT_IS_OURS: Final = 1 << 15  # which we sent; else it is the peer's
EVENT_MASK: Final = (1 << 14) - 1
TERMINATE_MASK: Final = 0xFFFF

# --- words of a WQE and a CQE -------------------------------------------------------------------
FLAGS_SHIFT: Final = 32  # of arg1
COUNT_SHIFT: Final = 48
SGES_MAX: Final = 10
SGES_PER_SLOT: Final = 3
WC_FLAGS_MASK: Final = 0xFF_FFFF  # of arg1
WC_MAY_BE_SOLICITED: Final = 1 << 24  # of a WC in the engine: its device does not tell
WC_OPCODE_SHIFT: Final = 24
WC_OPCODE_MASK: Final = 0xFF
SQ_DONE_SHIFT: Final = 32
WC_STATUS_MASK: Final = 0xFF  # of arg2
WC_VENDOR_SHIFT: Final = 16
MASK_32: Final = 0xFFFF_FFFF

# Orders of the control plane to the service (flags of CONTROL_RDMA).
ORDER_DOMAIN: Final = 1
ORDER_SRQ: Final = 2
ORDER_ENABLE: Final = 3
# And to that of verbs devices (flags of CONTROL_VERBS), which has DOMAIN and SRQ besides.
ORDER_CQ: Final = 4
ORDER_WATCH: Final = 5
ORDER_QP: Final = 6
ORDER_REGISTER: Final = 7
ORDER_DEREGISTER: Final = 8
ORDER_READY: Final = 9
ORDER_TELL: Final = 10  # an event; that of a queue pair ends it
ORDER_STOP: Final = 11
ORDER_LET_GO: Final = 12
ORDER_CLOSE: Final = 13


@nopython
def ring_opcode(wr_opcode: int) -> int:
    """The WQE's opcode of a work request."""
    if wr_opcode >= WR_OURS:
        return RDMA_ATOMIC_SWAP + wr_opcode - WR_OURS
    return RDMA_FIRST + wr_opcode


@nopython
def wr_opcode_of(opcode: int) -> int:
    """What `ring_opcode` made a WQE's opcode of."""
    if opcode >= RDMA_ATOMIC_SWAP:
        return WR_OURS + opcode - RDMA_ATOMIC_SWAP
    return opcode - RDMA_FIRST


@nopython
def slots_for(sge_count: int) -> int:
    """Slots of a work request with so many scatter/gather entries."""
    if sge_count <= 1:
        return 1
    return 1 + (sge_count - 1 + SGES_PER_SLOT - 1) // SGES_PER_SLOT


@nopython
def errno_of(status: int) -> int:
    """The CQE's status, 0 or -errno, for a work completion's."""
    if status == WC_SUCCESS:
        return 0
    if status == WC_WR_FLUSH_ERR:
        return CANCELLED
    if status == WC_LOC_LEN_ERR:
        return -errno.EMSGSIZE
    if status in (WC_LOC_QP_OP_ERR, WC_MW_BIND_ERR):
        return -errno.EINVAL
    if status in (WC_LOC_PROT_ERR, WC_LOC_ACCESS_ERR):
        return -errno.EFAULT
    if status == WC_REM_ACCESS_ERR:
        return -errno.EACCES
    if status in (WC_REM_INV_REQ_ERR, WC_BAD_RESP_ERR):
        return -errno.EPROTO
    if status in (WC_RESP_TIMEOUT_ERR, WC_RETRY_EXC_ERR):
        return -errno.ETIMEDOUT
    return -errno.EIO
