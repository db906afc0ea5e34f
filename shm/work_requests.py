"""Work requests and their completions (the verbs manual's ibv_send_wr, ibv_recv_wr and ibv_wc):
what whoever makes them and whoever carries them out have in common. Nothing but layouts and
openers; the numbers in them are those of `shm.verbs_numbers`.
"""

from typing import Final

from shm.layout import Field, offset, record
from shm.view import opener

SGES_MAX: Final = 10

# A piece of local memory (struct ibv_sge): `addr` is an address as the region's owner counts.
SGE: Final = record(
    Field("addr", "<i8"),
    Field("length", "<u4"),
    Field("lkey", "<u4"),
    size=16,
)
# A send or receive work request. A receive has only a token and a gather list.
WR: Final = record(
    Field("opcode", "<i8"),
    Field("flags", "<i8"),
    Field("token", "<i8"),  # the poster's; comes back in exactly one completion
    Field("sge_count", "<i8"),
    Field("remote_addr", "<i8"),
    Field("rkey", "<i8"),
    Field("imm", "<i8"),  # 32 bits of WR_RDMA_WRITE_WITH_IMM, 64 of WR_IMMEDIATE
    Field("invalidate_rkey", "<i8"),
    Field("compare_add", "<i8"),  # what to compare with, or to add
    Field("swap", "<i8"),
    Field("compare_add_mask", "<i8"),  # RFC 7306 §5.1; ignored unless `masked`
    Field("swap_mask", "<i8"),
    Field("masked", "<i8"),
    Field("inline_address", "<i8"),  # of SEND_INLINE: data copied by the post, no lkey
    Field("inline_length", "<i8"),
    Field("bind_window", "<i8"),  # of WR_BIND_MW: the window's present rkey; the new one comes
    Field("bind_lkey", "<i8"),  # back as the completion's `imm`
    Field("bind_addr", "<i8"),
    Field("bind_length", "<i8"),
    Field("bind_access", "<i8"),
    Field("sges", f"({2 * SGES_MAX},)<i8"),
    size=320,
)
WC: Final = record(
    Field("token", "<i8"),
    Field("status", "<i8"),  # WC_*
    Field("opcode", "<i8"),
    Field("byte_len", "<i8"),
    Field("imm", "<i8"),  # see `wire.immediate_32` for how 32 bits lie in it
    Field("invalidated_rkey", "<i8"),
    Field("flags", "<i8"),
    Field("vendor_err", "<i8"),  # the code of the Terminate that ended the queue pair, or 0
    size=64,
)
sge_at = opener(SGE)
wr_at = opener(WR)
wc_at = opener(WC)

SGE_SIZE: Final = SGE.itemsize
WR_SGES: Final = offset(WR, "sges")
