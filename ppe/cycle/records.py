"""The engine's private tables. No other process can write them; observers see `accounts` instead.

All of them are allocated once, by `tables.py`, and never grow.
"""

from typing import Final

from shm.channel import ENGINE_CHANNEL
from shm.layout import Field, offset, record
from shm.records import WQE
from shm.view import opener

ENGINE: Final = record(
    # Tables: address and number of rows.
    Field("channels", "<i8"),
    Field("channel_count", "<i8"),
    Field("endpoints", "<i8"),
    Field("endpoint_count", "<i8"),
    Field("operations", "<i8"),
    Field("operation_count", "<i8"),
    Field("regions", "<i8"),
    Field("region_count", "<i8"),
    # Free lists: index of the first free row, -1 for none. Rows are linked by `next`.
    Field("free_endpoint", "<i8"),
    Field("free_operation", "<i8"),
    Field("free_region", "<i8"),
    # Work lists: addresses of int32 arrays, dense or ring-shaped.
    Field("active", "<i8"),  # channels that are polled
    Field("active_count", "<i8"),
    Field("dirty", "<i8"),  # channels with events to announce at the end of the pass
    Field("dirty_count", "<i8"),
    Field("gathering", "<i8"),  # channels whose hosts' minimum wait the engine keeps
    Field("gathering_count", "<i8"),
    Field("receive_ready", "<i8"),  # ring of endpoints
    Field("receive_head", "<i8"),
    Field("receive_tail", "<i8"),
    Field("transmit_ready", "<i8"),
    Field("transmit_head", "<i8"),
    Field("transmit_tail", "<i8"),
    Field("timed", "<i8"),  # endpoints that have a deadline
    # Settings.
    Field("entries_per_pass", "<i8"),
    Field("idle", "<i8"),
    Field("park_after", "<i8"),  # cycles without work before a channel is parked
    Field("sleep_after", "<i8"),  # cycles without work before the engine may sleep
    Field("endpoints_per_client", "<i8"),
    Field("port_floor", "<i8"),  # lowest port a client without privilege may listen on
    Field("stall_cycles", "<i8"),
    # Readiness.
    Field("poller_kind", "<i8"),
    Field("poller", "<i8"),
    # Time, and the state of the pass.
    Field("now", "<i8"),  # cycles, read once per pass
    Field("last_work", "<i8"),  # when a pass last did something
    Field("passes", "<i8"),
    Field("next_timer", "<i8"),
    Field("cycles_per_ms", "<i8"),
    Field("stop", "<i8"),  # address of the word that ends the loop
    Field("faults", "<i8"),  # address of the guard's fault counter
    Field("faults_seen", "<i8"),
    # What observers see: addresses.
    Field("info", "<i8"),
    Field("stages", "<i8"),
    Field("counters", "<i8"),
    Field("errors", "<i8"),
    Field("durations", "<i8"),
    Field("channel_rows", "<i8"),
    Field("endpoint_rows", "<i8"),
    # Scratch.
    Field("wqe", "<i8"),  # four slots, where a WQE is copied once and checked
    Field("vectors", "<i8"),  # struct iovec[SPANS_MAX]
    Field("message", "<i8"),  # struct msghdr
    Field("datamover", "<i8"),  # address of its service; 0: no endpoint uses it
    Field("rdma", "<i8"),  # the same of the RDMA service, and of its RNIC
    Field("rnic", "<i8"),
    Field("iser", "<i8"),  # the address of the datamover's service over queue pairs
    Field("verbs", "<i8"),  # and of the service of verbs devices; 0: there is none to be polled
    # The endpoint that received last is asked again in each pass for a while, before its edge.
    Field("hot", "<i8"),  # its index, or -1
    Field("hot_until", "<i8"),
    Field("hot_cycles", "<i8"),
    Field("hot_streak", "<i8"),  # receives in a row that were its
    Field("hot_passed_over", "<i8"),  # the last pass left it to its sending
    Field("observed", "<i8"),  # somebody sleeps on the poller's descriptor: keep all watched
    Field("staging", "<i8"),  # where bytes are received whose place is not known yet
    Field("staging_size", "<i8"),
    Field("post", "<i8"),
    Field("event", "<i8"),
    size=576,
)

CHANNEL_ROW: Final = record(
    Field("rings", ENGINE_CHANNEL),
    Field("client", "<i8"),  # 0: the row is free; 1: the control plane
    Field("active_at", "<i8"),  # place in `active`, or -1 while parked
    Field("dirty", "<i8"),
    Field("gathering", "<i8"),
    Field("last_work", "<i8"),
    Field("doorbell", "<i8"),  # eventfd
    Field("dead", "<i8"),
    Field("endpoints", "<i8"),
    Field("privileged", "<i8"),
    size=384,
)

ENDPOINT: Final = record(
    Field("generation", "<i8"),
    Field("state", "<i8"),
    Field("next", "<i8"),
    Field("channel", "<i8"),
    Field("user_data", "<i8"),
    Field("descriptor", "<i8"),  # the TCP transport's; nobody else looks at it
    Field("readable", "<i8"),  # the transport may have bytes
    Field("writable", "<i8"),  # the transport may take bytes
    Field("watched", "<i8"),  # the poller reports its edges
    Field("receive_queued", "<i8"),
    Field("transmit_queued", "<i8"),
    Field("receive_first", "<i8"),  # operations, oldest first; -1 for none
    Field("receive_last", "<i8"),
    Field("send_first", "<i8"),
    Field("send_last", "<i8"),
    Field("connecting", "<i8"),  # the CONNECT operation, or -1
    Field("deadline", "<i8"),  # cycles; 0 for none
    Field("shut", "<i8"),  # the SHUTDOWN operation waiting for the queue to drain, or -1
    Field("error", "<i8"),  # errno that broke the transport
    Field("announced", "<i8"),  # EVENT_DISCONNECTED was published
    Field("held", "<i8"),  # sends marked MORE have waited one pass for what they announce
    Field("mover", "<i8"),  # address of the datamover's MOVER; 0: this is a stream
    # A pool: the first endpoint that waits for a buffer of it; such an endpoint: the next one.
    Field("starved", "<i8"),
    Field("table", "<i8"),  # address of LUN[table_size], of units the engine serves itself; or 0
    Field("table_size", "<i8"),
    Field("service", "<i8"),  # address of the service that its bytes belong to; 0: a stream
    Field("qp", "<i8"),  # address of the RDMA service's HELD, of a queue pair or shared receives
    size=256,
)

OPERATION: Final = record(
    Field("next", "<i8"),
    Field("endpoint", "<i8"),
    Field("opcode", "<i8"),
    Field("flags", "<i8"),
    Field("user_data", "<i8"),
    Field("address", "<i8"),
    Field("length", "<i8"),
    Field("done", "<i8"),
    Field("ticket", "<i8"),
    size=72,
)

REGION: Final = record(
    Field("generation", "<i8"),
    Field("next", "<i8"),
    Field("address", "<i8"),  # 0: the row is free
    Field("size", "<i8"),
    Field("client", "<i8"),
    size=64,
)

# Endpoint states.
FREE: Final = 0
CONNECTING: Final = 1
CONNECTED: Final = 2
LISTENING: Final = 3
BROKEN: Final = 4
POOL: Final = 5  # no connection: buffers that several datamovers share
TABLE: Final = 6  # no connection: units that the engine serves for several datamovers
DOMAIN: Final = 7  # no connection: a protection domain
SHARED: Final = 8  # no connection: a shared receive queue
WATCHED: Final = 9  # no connection: a descriptor of a verbs device that may have news
STATE_NAMES: Final = (
    "free",
    "connecting",
    "connected",
    "listening",
    "broken",
    "pool",
    "table",
    "protection domain",
    "shared receive queue",
    "watched",
)

# Idle strategies.
SPIN: Final = 0
YIELD: Final = 1
SLEEP: Final = 2
IDLE_NAMES: Final = ("spin", "yield", "sleep")

CONTROL_CLIENT: Final = 1
CONTROL_CHANNEL: Final = 0
HUNG_UP: Final = 2  # value of `readable` that a short count does not clear: the end is coming
CALLS_PER_VISIT: Final = 4  # transport calls for one endpoint before others get their turn
SPANS_MAX: Final = 64  # of one receive or transmit call
VECTOR_SIZE: Final = 16
NONE: Final = -1

engine_at = opener(ENGINE)
row_at = opener(CHANNEL_ROW)
endpoint_at = opener(ENDPOINT)
operation_at = opener(OPERATION)
region_at = opener(REGION)

CHANNEL_ROW_SIZE: Final = CHANNEL_ROW.itemsize
ENDPOINT_SIZE: Final = ENDPOINT.itemsize
OPERATION_SIZE: Final = OPERATION.itemsize
REGION_SIZE: Final = REGION.itemsize
RINGS: Final = offset(CHANNEL_ROW, "rings")
WQE_SIZE: Final = WQE.itemsize
