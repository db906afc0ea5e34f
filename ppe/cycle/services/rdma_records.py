"""The RDMA service's records: engine-private, made by the control plane, which has the memory of a
HELD back once its `state` says that it is over.
"""

from typing import Final

from shm.layout import Field, offset, record
from shm.view import opener

# What an engine has once for all its queue pairs.
RNIC: Final = record(
    Field("table", "<i8"),  # address of the MR_TABLE
    Field("wr", "<i8"),  # scratch: a WR, and a WC
    Field("wc", "<i8"),
    Field("cqs", "<i8"),  # addresses of the verbs devices' completion queues, to be polled
    Field("cq_count", "<i8"),
    size=64,
)
# One queue pair, or one shared receive queue; what the provider made of it lies at `core`.
HELD: Final = record(
    Field("state", "<i8"),
    Field("core", "<i8"),  # address of the QP, or of the RQ
    Field("domain", "<i8"),  # indices of endpoints it rests on; -1 for none
    Field("shared", "<i8"),
    Field("started", "<i8"),  # 0: receives may be posted, nothing moves yet
    Field("sq_done", "<i8"),  # work requests of the send queue that are over
    Field("told_event", "<i8"),  # 1: its end was announced
    Field("large", "<i8"),  # receives in which a large payload is looked for yet
    Field("later", "<i8"),  # passes in which what is to be sent waited for more
    # Of a verbs device:
    Field("engaged", "<i8"),  # 1: the device has it still, so it cannot be closed
    Field("stopped", "<i8"),  # 1: nothing is posted to the device any more
    Field("sends", "<i8"),  # addresses of LOANS, of what is posted to its queues
    Field("receives", "<i8"),
    Field("cq", "<i8"),  # its completion queue
    size=128,
)
rnic_at = opener(RNIC)
held_at = opener(HELD)
HELD_STATE: Final = offset(HELD, "state")
HELD_SIZE: Final = HELD.itemsize
HELD_RUNNING: Final = 0
HELD_OVER: Final = 1
