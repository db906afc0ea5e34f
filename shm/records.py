"""Every record of the shared pages and of the private state beside them, declared once.

`tests/shm/test_records.py` keeps a golden copy: a layout that changes needs a new VERSION in the
same commit. Fields are signed 64-bit where arithmetic is done on them, so positions never wrap and
mix with literals without surprises.
"""

from typing import Final

from shm.layout import Field, layout_hash, offset, record
from shm.view import opener

VERSION: Final = 2
MAGIC: Final = 0x454E49474E455050  # "PPENGINE" read as a little-endian word

# --- what both sides see ---------------------------------------------------------------------

# A slot carries its own publication: `sequence` is written last, with release, and equals the
# position + 1. Entry and signal travel in one cache line, and no tail word is shared.
SLOT: Final = record(
    Field("sequence", "<i8"), *[Field(f"word{i}", "<i8") for i in range(7)], size=64
)

# Work-queue entry, host to engine. `slots` (1..4) consecutive slots make one operation; the words
# of the further slots belong to the opcode (a socket address, a gather list).
WQE: Final = record(
    Field("sequence", "<i8"),
    Field("opcode", "<u1"),
    Field("slots", "<u1"),
    Field("flags", "<u2"),
    Field("endpoint", "<u4"),
    Field("user_data", "<i8"),
    Field("region", "<u4"),
    Field("length", "<u4"),
    Field("offset", "<i8"),
    Field("arg0", "<i8"),
    Field("arg1", "<i8"),
    Field("arg2", "<u4"),
    Field("ticket", "<u4"),  # the host's own mark, echoed in the completion; 0 for none
    size=64,
)

# Completion-queue entry, engine to host. `status` is 0 or -errno; `released` counts the posts that
# this completion ends: itself and the unsignalled ones it covers.
CQE: Final = record(
    Field("sequence", "<i8"),
    Field("opcode", "<u1"),
    Field("reserved", "<u1"),
    Field("flags", "<u2"),
    Field("endpoint", "<u4"),
    Field("user_data", "<i8"),
    Field("status", "<i4"),
    Field("length", "<u4"),
    Field("released", "<u4"),
    Field("ticket", "<u4"),
    Field("arg0", "<i8"),
    Field("arg1", "<i8"),
    Field("arg2", "<i8"),
    size=64,
)

SEGMENT_HEADER: Final = record(
    Field("version", "<i8"),  # Written last, with release: a half-made segment has none.
    Field("magic", "<i8"),
    Field("layout", "<i8"),
    Field("size", "<i8"),
    Field("pid", "<i8"),
    Field("start_time", "<i8"),  # Of the creating process, clock ticks since boot (proc(5), 22).
    Field("boot_id", "<i8"),  # First 63 bits of the kernel's boot id.
    Field("kind", "<i8"),
    size=128,
)

# One channel: its shared words, then the work slots, then the event slots.
CHANNEL: Final = record(
    Field("header", SEGMENT_HEADER),
    Field("work_capacity", "<i8"),
    Field("event_capacity", "<i8"),
    # The engine writes these two:
    Field("work_head", "<i8", own_span=True),
    Field("need_doorbell", "<i8"),
    # The host writes these five:
    Field("event_head", "<i8", own_span=True),
    Field("wake_at", "<i8"),
    Field("wake_kind", "<i8"),
    Field("enough_at", "<i8"),  # after this time one entry is enough; NEVER: the host keeps time
    Field("enough_position", "<i8"),  # which the ring has with one entry
    # Changed by whoever wakes, always by a read-modify-write:
    Field("wake_seq", "<i4", own_span=True),
    Field("state", "<i8"),
    size=640,
)

# --- what each side knows in private memory --------------------------------------------------
# The other side can scribble over the shared pages and still not move these.

PRODUCER: Final = record(
    Field("slots", "<i8"),  # address
    Field("head", "<i8"),  # address of the consumer's published position
    Field("capacity", "<i8"),
    Field("position", "<i8"),
    Field("head_seen", "<i8"),
    size=64,
)
CONSUMER: Final = record(
    Field("slots", "<i8"),
    Field("head", "<i8"),
    Field("capacity", "<i8"),
    Field("position", "<i8"),
    Field("head_published", "<i8"),
    size=64,
)
# The producer's side of a wake-up.
WAKER: Final = record(
    Field("wake_at", "<i8"),  # addresses
    Field("wake_seq", "<i8"),
    Field("wake_kind", "<i8"),
    Field("checked", "<i8"),  # the position up to which crossings were looked for
    Field("descriptor", "<i8"),  # an eventfd, or -1
    Field("wakes", "<i8"),
    Field("enough_at", "<i8"),  # addresses
    Field("enough_position", "<i8"),
    size=64,
)
# The consumer's side of a wake-up.
WAITER: Final = record(
    Field("wake_at", "<i8"),  # addresses
    Field("wake_seq", "<i8"),
    Field("wake_kind", "<i8"),
    Field("state", "<i8"),
    Field("waits", "<i8"),
    Field("sleeps", "<i8"),  # waits that reached the kernel and were queued there
    Field("enough_at", "<i8"),  # addresses, or 0: the producer keeps no time
    Field("enough_position", "<i8"),
    size=64,
)
# One of several rings whose consumer sleeps once for all of them.
WATCHED: Final = record(
    Field("consumer", "<i8"),  # addresses
    Field("waiter", "<i8"),
    size=16,
)
# The producer's side of a doorbell.
RINGER: Final = record(
    Field("need_doorbell", "<i8"),  # address
    Field("descriptor", "<i8"),
    Field("rings", "<i8"),
    size=64,
)

LAYOUT_HASH: Final = layout_hash([WQE, CQE, SEGMENT_HEADER, CHANNEL])

SLOT_SIZE: Final = SLOT.itemsize
WATCHED_SIZE: Final = WATCHED.itemsize
SEQUENCE: Final = offset(SLOT, "sequence")
SLOTS_PER_OPERATION_MAX: Final = 4
NEVER: Final = 2**63 - 1

# `state` of a channel.
STATE_RUNNING: Final = 0
STATE_CLOSING: Final = 1
STATE_DEAD: Final = 2

# `wake_kind` of a channel.
WAKE_FUTEX: Final = 0
WAKE_EVENTFD: Final = 1

wqe_at = opener(WQE)
cqe_at = opener(CQE)
channel_at = opener(CHANNEL)
producer_at = opener(PRODUCER)
consumer_at = opener(CONSUMER)
waker_at = opener(WAKER)
waiter_at = opener(WAITER)
watched_at = opener(WATCHED)
ringer_at = opener(RINGER)
