"""Records that both RNIC providers share: work requests and completions, memory, receive queues.

Nothing but layouts, openers and sizes. Whoever made a record owns it; no other process sees one.
"""

from typing import Final

from shm import work_requests
from shm.layout import Field, offset, record
from shm.view import opener

SGES_MAX: Final = work_requests.SGES_MAX
SGE: Final = work_requests.SGE
WR: Final = work_requests.WR
WC: Final = work_requests.WC
# A memory region, or a memory window with its region as `parent`.
MR: Final = record(
    Field("stag", "<i8"),  # lkey and rkey; 0: the row is free
    Field("state", "<i8"),
    Field("pd", "<i8"),
    Field("client", "<i8"),
    Field("address", "<i8"),  # where the engine sees its first byte
    Field("length", "<i8"),
    Field("iova", "<i8"),  # what its owner and its peers call the first byte
    Field("access", "<i8"),
    Field("qp", "<i8"),  # the only queue pair that may use it, or 0: every one of its PD
    Field("parent", "<i8"),  # of a window: address of the region's row
    Field("is_window", "<i8"),
    Field("uses", "<i8"),  # work under way that needs its memory, and windows
    Field("generation", "<i8"),
    Field("next", "<i8"),  # free row after this one
    Field("lkey", "<i8"),  # what a verbs device calls it, and its struct ibv_mr *; else 0
    Field("handle", "<i8"),
    size=128,
)
MR_TABLE: Final = record(
    Field("rows", "<i8"),
    Field("capacity", "<i8"),
    Field("row_bits", "<i8"),
    Field("free", "<i8"),  # index of the first free row, or -1
    Field("used", "<i8"),
    Field("registrations", "<i8"),  # how many there ever were
    Field("secrets", "(8,)<u4"),  # what makes STags unguessable
    size=96,
)
# A posted receive. It belongs to its queue until a message takes it, then to that queue pair.
RQ_ENTRY: Final = record(
    Field("token", "<i8"),
    Field("sge_count", "<i8"),
    Field("length", "<i8"),  # of all pieces
    Field("next", "<i8"),  # index of the next one in whatever list it is
    Field("status", "<i8"),  # from here on what its completion will say
    Field("opcode", "<i8"),
    Field("byte_len", "<i8"),
    Field("imm", "<i8"),
    Field("invalidated_rkey", "<i8"),
    Field("flags", "<i8"),
    Field("pieces", f"({3 * SGES_MAX},)<i8"),  # PIECE each
    size=320,
)
# A receive queue: a queue pair's own, or shared.
RQ: Final = record(
    Field("entries", "<i8"),
    Field("capacity", "<i8"),
    Field("table", "<i8"),
    Field("pd", "<i8"),
    Field("sges_max", "<i8"),
    Field("shared", "<i8"),
    Field("free", "<i8"),  # index of the first free entry, or -1
    Field("first", "<i8"),  # posted, oldest first
    Field("last", "<i8"),
    Field("posted", "<i8"),  # how many are
    Field("limit", "<i8"),  # of a shared queue: fewer than this is worth an event; 0: never
    Field("limit_reached", "<i8"),  # 1 once, then the limit is off (the manual's SRQ_LIMIT_REACHED)
    size=96,
)
# A checked piece of local memory: where it is, and the row that keeps it there.
PIECE: Final = record(
    Field("address", "<i8"),
    Field("length", "<i8"),
    Field("row", "<i8"),
    size=24,
)
sge_at = work_requests.sge_at
wr_at = work_requests.wr_at
wc_at = work_requests.wc_at
mr_at = opener(MR)
mr_table_at = opener(MR_TABLE)
rq_entry_at = opener(RQ_ENTRY)
rq_at = opener(RQ)
piece_at = opener(PIECE)

SGE_SIZE: Final = work_requests.SGE_SIZE
MR_SIZE: Final = MR.itemsize
PIECE_SIZE: Final = PIECE.itemsize
RQ_ENTRY_SIZE: Final = RQ_ENTRY.itemsize
WR_SGES: Final = work_requests.WR_SGES
RQ_ENTRY_PIECES: Final = offset(RQ_ENTRY, "pieces")
MR_TABLE_SECRETS: Final = offset(MR_TABLE, "secrets")

# States of an MR.
MR_VALID: Final = 1
MR_INVALID: Final = 2  # its owner has it still, but nobody may use it
