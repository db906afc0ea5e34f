"""The datamover's record of one endpoint: engine-private, made by the control plane, which has the
memory back once `state` says that it is over.
"""

from typing import Final

from shm.layout import Field, offset, record
from shm.view import opener

MOVER: Final = record(
    Field("role", "<i8"),
    Field("state", "<i8"),
    Field("conn", "<i8"),  # address of the INITIATOR or TARGET
    Field("home", "<i8"),  # the host's block of memory that offsets count from
    Field("home_size", "<i8"),
    Field("words", "<i8"),  # address of MOVER_WORDS in `home`
    Field("pool", "<i8"),  # index of the endpoint whose buffers it takes
    Field("pool_generation", "<i8"),  # it may be closed, and its row be another's
    Field("starved", "<i8"),  # 1 while it waits for one
    Field("told", "<i8"),  # MaxCmdSN as the host knows it
    Field("ahead", "<i8"),  # bytes to receive beyond those whose place is known
    Field("table", "<i8"),  # index of the endpoint with its units, or -1
    # Over a queue pair: address of the ISER (0: it is a byte stream), the RNIC's key for all memory
    # of the engine, and what to add to an address under that key.
    Field("iser", "<i8"),
    Field("key", "<i8"),
    Field("skew", "<i8"),
    Field("tags", "<i8"),  # and, of an initiator, address of its TAGS
    Field("lent", "<i8"),  # over a verbs device: address of LENT, what the device has registered
    size=192,
)
# How an initiator over a queue pair opens its buffers (`iser_tags`).
TAGS: Final = record(
    Field("strategy", "<i8"),  # its place in REGISTRATIONS
    Field("iser", "<i8"),  # address of the ISER
    Field("table", "<i8"),  # address of the MR_TABLE
    Field("domain", "<i8"),
    Field("qp", "<i8"),  # number of the queue pair
    Field("key", "<i8"),  # of all memory, and what to add to an address under it
    Field("skew", "<i8"),
    Field("count", "<i8"),  # KEPTs that are used
    Field("clock", "<i8"),
    Field("hits", "<i8"),
    Field("misses", "<i8"),
    Field("evictions", "<i8"),
    Field("bypasses", "<i8"),  # tags for one command, because there was no room to keep them
    Field("lent", "<i8"),  # address of LENT; 0: the tags are made here
    size=128,
)
# A tag that is kept: of a buffer, of a region, or an idle window, which has no memory.
KEPT: Final = record(
    Field("stag", "<i8"),
    Field("start", "<i8"),
    Field("end", "<i8"),
    Field("access", "<i8"),
    Field("used", "<i8"),  # `clock` of the last use
    size=40,
)
# What the host may read of a connection at any time, without asking.
MOVER_WORDS: Final = record(
    Field("rx_pdus", "<i8"),
    Field("tx_pdus", "<i8"),
    Field("data_bytes", "<i8"),  # a target's: written data that came
    Field("unsent", "<i8"),  # and its PDUs that the transport has not taken
    Field("commands", "<i8"),  # and SCSI commands, its host's among them
    Field("rejects", "<i8"),
    size=64,
)
mover_at = opener(MOVER)
tags_at = opener(TAGS)
kept_at = opener(KEPT)
TAGS_HEAD: Final = TAGS.itemsize
KEPT_SIZE: Final = KEPT.itemsize
KEPT_MAX: Final = 64
TAGS_SIZE: Final = TAGS_HEAD + KEPT_MAX * KEPT_SIZE
MOVER_STATE: Final = offset(MOVER, "state")
INITIATOR_ROLE: Final = 1
TARGET_ROLE: Final = 2

# What a service is called for (`datamover.serve`, `rdma.serve`).
WORK: Final = 0
RECEIVE: Final = 1
TRANSMIT: Final = 2
END: Final = 3
USES: Final = 4
RELEASE: Final = 5
ORDER: Final = 6
# And `iser.serve` besides:
START: Final = 6
TOLD: Final = 7  # work requests are over
# And `verbs.serve`:
POLL: Final = 7  # the completion queues of its devices
ACTION_BITS: Final = 3
ACTION_MASK: Final = 7

MOVER_RUNNING: Final = 0
MOVER_OVER: Final = 1
