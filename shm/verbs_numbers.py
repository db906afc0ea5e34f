"""The numbers of the verbs manual (libibverbs), and the few that it lacks for RFC 7306.

Names and values are libibverbs' own, without the prefix `IBV_`; what is ours lies far above them.
"""

from typing import Final

# --- what a send work request asks for (enum ibv_wr_opcode) -----------------------------------
WR_RDMA_WRITE: Final = 0
WR_RDMA_WRITE_WITH_IMM: Final = 1
WR_SEND: Final = 2
WR_SEND_WITH_IMM: Final = 3
WR_RDMA_READ: Final = 4
WR_ATOMIC_CMP_AND_SWP: Final = 5
WR_ATOMIC_FETCH_AND_ADD: Final = 6
WR_LOCAL_INV: Final = 7
WR_BIND_MW: Final = 8
WR_SEND_WITH_INV: Final = 9
WR_ATOMIC_SWAP: Final = 0x100  # ours: RFC 7306 §5.1
WR_IMMEDIATE: Final = 0x101  # ours: eight bytes of immediate data and nothing else, RFC 7306 §6

# --- flags of a send work request (enum ibv_send_flags) ---------------------------------------
SEND_FENCE: Final = 1 << 0
SEND_SIGNALED: Final = 1 << 1
SEND_SOLICITED: Final = 1 << 2
SEND_INLINE: Final = 1 << 3
SEND_FLAGS: Final = SEND_FENCE | SEND_SIGNALED | SEND_SOLICITED | SEND_INLINE

# --- what a memory region permits (enum ibv_access_flags) --------------------------------------
ACCESS_LOCAL_WRITE: Final = 1 << 0
ACCESS_REMOTE_WRITE: Final = 1 << 1
ACCESS_REMOTE_READ: Final = 1 << 2
ACCESS_REMOTE_ATOMIC: Final = 1 << 3
ACCESS_MW_BIND: Final = 1 << 4
ACCESS_ZERO_BASED: Final = 1 << 5
ACCESS_ON_DEMAND: Final = 1 << 6
ACCESS_HUGETLB: Final = 1 << 7
ACCESS_RELAXED_ORDERING: Final = 1 << 20
ACCESS_REMOTE: Final = ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_ATOMIC

# --- how a work request ended (enum ibv_wc_status) ---------------------------------------------
WC_SUCCESS: Final = 0
WC_LOC_LEN_ERR: Final = 1
WC_LOC_QP_OP_ERR: Final = 2
WC_LOC_EEC_OP_ERR: Final = 3
WC_LOC_PROT_ERR: Final = 4
WC_WR_FLUSH_ERR: Final = 5
WC_MW_BIND_ERR: Final = 6
WC_BAD_RESP_ERR: Final = 7
WC_LOC_ACCESS_ERR: Final = 8
WC_REM_INV_REQ_ERR: Final = 9
WC_REM_ACCESS_ERR: Final = 10
WC_REM_OP_ERR: Final = 11
WC_RETRY_EXC_ERR: Final = 12
WC_RNR_RETRY_EXC_ERR: Final = 13
WC_LOC_RDD_VIOL_ERR: Final = 14
WC_REM_INV_RD_REQ_ERR: Final = 15
WC_REM_ABORT_ERR: Final = 16
WC_INV_EECN_ERR: Final = 17
WC_INV_EEC_STATE_ERR: Final = 18
WC_FATAL_ERR: Final = 19
WC_RESP_TIMEOUT_ERR: Final = 20
WC_GENERAL_ERR: Final = 21

# --- what ended (enum ibv_wc_opcode) -----------------------------------------------------------
WC_SEND: Final = 0
WC_RDMA_WRITE: Final = 1
WC_RDMA_READ: Final = 2
WC_COMP_SWAP: Final = 3
WC_FETCH_ADD: Final = 4
WC_BIND_MW: Final = 5
WC_LOCAL_INV: Final = 6
WC_RECV: Final = 1 << 7
WC_RECV_RDMA_WITH_IMM: Final = WC_RECV + 1
WC_SWAP: Final = 0x40  # ours, for WR_ATOMIC_SWAP
WC_IMMEDIATE: Final = 0x41  # ours, for WR_IMMEDIATE

# --- flags of a work completion (enum ibv_wc_flags) --------------------------------------------
WC_WITH_IMM: Final = 1 << 1
WC_WITH_INV: Final = 1 << 3
WC_SOLICITED: Final = 1 << 16  # ours: the peer asked for a solicited event
WC_UNSIGNALLED: Final = 1 << 17  # ours: not to be shown; it only gives its token back
