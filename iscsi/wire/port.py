"""The input and output face of a connection in the full feature phase, the same for both roles.
A PORT says where the next bytes of the stream belong (`want_address`, `want_length`), what there is
to send, and keeps control PDUs for the session. A connection's address is its PORT's address, all
its memory is one block laid out beforehand, and nothing here allocates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from iscsi.wire.bhs import BHS_LENGTH, DIGEST_LENGTH, MAX_AHS_LENGTH, Header, decode
from iscsi.wire.keys import ConnectionParams
from shm.jit import nopython
from shm.layout import Field, offset, record
from shm.memory import copy_bytes, load_64, store_64
from shm.pool import POOL, give, pool_at, take
from shm.view import opener, window

QUEUE: Final = record(
    Field("slots", "<i8"),  # address of int64 entries
    Field("capacity", "<i8"),  # a power of two no smaller than what can be in it
    Field("head", "<i8"),
    Field("tail", "<i8"),
    size=32,
)
# One PDU to send: a header in its slot, data where it lies, then padding and data digest.
TX: Final = record(
    Field("data_address", "<i8"),
    Field("data_length", "<i8"),
    Field("trailer_length", "<i8"),
    Field("token", "<i8"),  # what to release when the PDU is sent
    Field("length", "<i8"),  # of the whole PDU
    size=40,
)
PORT: Final = record(
    Field("want_address", "<i8"),
    Field("want_length", "<i8"),
    Field("error", "<i8"),  # the Violation that ended this connection, or 0
    Field("rx_phase", "<i8"),
    Field("rx_header", "<i8"),  # address of the BHS; AHS and header digest follow it
    Field("rx_data_length", "<i8"),  # DataSegmentLength of this PDU
    Field("rx_address", "<i8"),  # where the role wants the first `rx_place` bytes of data
    Field("rx_place", "<i8"),
    Field("rx_left", "<i8"),  # data not asked for yet: what goes to the sink
    Field("rx_more", "<i8"),  # of that, what the role has a place for when the one before is full
    Field("rx_action", "<i8"),  # the role's: what to do when the PDU is complete
    Field("rx_object", "<i8"),  # the role's: the task or control slot it is about
    Field("rx_crc", "<i8"),  # of this PDU's data so far, if it has a digest
    Field("rx_sink", "<i8"),
    Field("header_digest", "<i8"),  # 1 if on
    Field("data_digest", "<i8"),
    Field("max_recv_data_segment_length", "<i8"),
    Field("peer_max_recv_data_segment_length", "<i8"),
    Field("tx_headers", "<i8"),  # addresses of arrays, one item per entry
    Field("tx_trailers", "<i8"),
    Field("tx_inlines", "<i8"),
    Field("tx_entries", "<i8"),
    Field("tx_copies", "<i8"),  # where data is copied to that others may change
    Field("tx_copy_size", "<i8"),  # bytes of it in one PDU; 0: there is no such place
    Field("tx_capacity", "<i8"),
    Field("tx_header_length", "<i8"),  # with header digest
    Field("tx_made", "<i8"),  # positions: made, handed to the pump, sent
    Field("tx_taken", "<i8"),
    Field("tx_taken_offset", "<i8"),  # bytes of entry `tx_taken` already handed over
    Field("tx_ahead", "<i8"),  # bytes made that nobody has taken
    Field("tx_sent", "<i8"),
    Field("tx_sent_offset", "<i8"),
    Field("span_address", "<i8"),  # what `tx_span` found
    Field("control_slots", "<i8"),
    Field("control_stride", "<i8"),
    Field("control_data_length", "<i8"),
    Field("control_count", "<i8"),
    Field("rx_pdus", "<i8"),
    Field("tx_pdus", "<i8"),
    Field("discarded", "<i8"),  # PDUs ignored on purpose
    Field("ready", QUEUE),  # tokens of what has something to send
    Field("events", QUEUE),  # control slots for the session to look at
    Field("control_pool", POOL),
    size=448,
)
queue_at = opener(QUEUE)
tx_at = opener(TX)
port_at = opener(PORT)

TX_SIZE: Final = TX.itemsize
READY: Final = offset(PORT, "ready")
EVENTS: Final = offset(PORT, "events")
CONTROL_POOL: Final = offset(PORT, "control_pool")

HEADER_ROOM: Final = BHS_LENGTH + MAX_AHS_LENGTH + DIGEST_LENGTH
TRAILER_SIZE: Final = 8  # up to three bytes of padding, four of digest
INLINE_SIZE: Final = 64  # a rejected header, or short sense data
SINK_SIZE: Final = 4096
COPY_MARGIN: Final = 64  # behind a copy: its trailer, and the next one begins on a cache line

# A control slot: the header as received or to be sent, then these, then the data.
CONTROL_DATA_LENGTH: Final = 48
CONTROL_CREDIT: Final = 56  # 1 if the request took a place in the command window
CONTROL_DATA: Final = 64

# A token names what a queue entry or a sent PDU belongs to.
TOKEN_NONE: Final = 0
TOKEN_TASK: Final = 1
TOKEN_CONTROL: Final = 2


# --- queues ----------------------------------------------------------------------------------


@nopython
def push(queue: int, value: int) -> None:
    """Append. The owner made it large enough for everything that can be in it."""
    mine = queue_at(queue)[0]
    store_64(mine["slots"] + 8 * (mine["tail"] & (mine["capacity"] - 1)), value)
    mine["tail"] += 1


@nopython
def is_empty(queue: int) -> bool:
    """Whether there is nothing to pop."""
    mine = queue_at(queue)[0]
    return bool(mine["head"] == mine["tail"])


@nopython
def first(queue: int) -> int:
    """The oldest entry of a queue that is not empty, left in place."""
    mine = queue_at(queue)[0]
    return load_64(mine["slots"] + 8 * (mine["head"] & (mine["capacity"] - 1)))


@nopython
def pop(queue: int) -> int:
    """Remove and return the oldest entry of a queue that is not empty."""
    value = first(queue)
    queue_at(queue)[0]["head"] += 1
    return value


# --- control slots ---------------------------------------------------------------------------


@nopython
def control_take(conn: int) -> int:
    """Address of a free control slot, or 0."""
    port = port_at(conn)[0]
    index = take(conn + CONTROL_POOL)
    if index < 0:
        return 0
    slot = int(port["control_slots"] + index * port["control_stride"])
    store_64(slot + CONTROL_DATA_LENGTH, 0)
    store_64(slot + CONTROL_CREDIT, 0)
    return slot


@nopython
def control_free_count(conn: int) -> int:
    """How many control slots are free."""
    return int(pool_at(conn + CONTROL_POOL)[0]["free_count"])


@nopython
def control_give(conn: int, slot: int) -> None:
    """Return a control slot."""
    port = port_at(conn)[0]
    give(conn + CONTROL_POOL, (slot - port["control_slots"]) // port["control_stride"])


@nopython
def control_next(conn: int) -> int:
    """Address of the oldest control PDU the session has not seen, or 0.

    48 bytes of BHS; at CONTROL_DATA_LENGTH an int64; the data at CONTROL_DATA. The role's
    `control_done` gives the slot back.
    """
    return 0 if is_empty(conn + EVENTS) else first(conn + EVENTS)


@nopython
def control_store(conn: int, header: int, data: int, length: int) -> int:
    """Copy a PDU into a free control slot. Return its address, or 0 if none is free."""
    slot = control_take(conn)
    if slot:
        copy_bytes(slot, header, BHS_LENGTH)
        copy_bytes(slot + CONTROL_DATA, data, length)
        store_64(slot + CONTROL_DATA_LENGTH, length)
    return slot


# --- tokens ----------------------------------------------------------------------------------


@nopython
def token_of(kind: int, address: int) -> int:
    """A token for a task or a control slot; addresses are multiples of 8."""
    return address | kind


@nopython
def token_kind(token: int) -> int:
    """TOKEN_TASK, TOKEN_CONTROL or TOKEN_NONE."""
    return token & 7


@nopython
def token_address(token: int) -> int:
    """The task or slot a token names."""
    return token & ~7


# --- for Python -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ControlPdu:
    """A PDU for the session, not for the compiled code. `raw` is the header as it came."""

    header: Header
    data: bytes
    raw: bytes = b""


def read_control(slot: int) -> ControlPdu:
    """The PDU in a control slot, copied."""
    header = window(slot, BHS_LENGTH, "u1").tobytes()
    length = int(window(slot + CONTROL_DATA_LENGTH, 1, "<i8")[0])
    data = window(slot + CONTROL_DATA, length, "u1").tobytes()
    return ControlPdu(decode(header), data, header)


# --- the block of memory ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PortLimits:
    """What bounds a connection's memory. `tx_entries`: PDUs made but not yet sent (power of two);
    `control_slots` of `control_data_length` bytes: control PDUs kept at once.
    """

    tx_entries: int = 64
    control_slots: int = 16
    control_data_length: int = 8192

    def __post_init__(self) -> None:
        if self.tx_entries < 2 or self.tx_entries & (self.tx_entries - 1):
            raise ValueError(f"tx_entries {self.tx_entries} is not a power of two above one")
        if self.control_slots < 4 or self.control_data_length < BHS_LENGTH:
            raise ValueError("a connection needs 4 control slots that hold a header each")


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each part of a connection's block lies, and how large the block is."""

    offsets: Mapping[str, int]
    size: int


def plan(parts: Mapping[str, int]) -> Plan:
    """Lay out parts of the given sizes one after the other, each on a cache line of its own."""
    offsets, end = {}, 0
    for name, size in parts.items():
        offsets[name] = end
        end += (size + 63) & ~63
    return Plan(offsets, end)


def round_up(count: int) -> int:
    """The power of two at or above `count`."""
    return 1 << (count - 1).bit_length()


def port_parts(limits: PortLimits, task_count: int) -> dict[str, int]:
    """Sizes of what every port needs besides its PORT record."""
    slot_count, entries = limits.control_slots, limits.tx_entries
    return {
        "header": HEADER_ROOM,
        "sink": SINK_SIZE,
        "tx_entries": entries * TX_SIZE,
        "tx_headers": entries * (BHS_LENGTH + DIGEST_LENGTH),
        "tx_trailers": entries * TRAILER_SIZE,
        "tx_inlines": entries * INLINE_SIZE,
        "ready": 8 * round_up(task_count + slot_count),
        "events": 8 * round_up(slot_count),
        "control_free": 4 * slot_count,
        "control_taken": slot_count,
        "controls": slot_count * control_stride(limits),
    }


def control_stride(limits: PortLimits) -> int:
    """Bytes of one control slot."""
    return CONTROL_DATA + (limits.control_data_length + 63) & ~63


def build_queue(queue: int, slots: int, count: int) -> None:
    """Make an empty queue for up to `count` entries."""
    mine = queue_at(queue)[0]
    mine["slots"], mine["capacity"] = slots, round_up(count)
    mine["head"] = mine["tail"] = 0


def build_pool(pool: int, free: int, taken: int, count: int) -> None:
    """Make a pool of `count` indices, all free, in memory of its owner."""
    mine = pool_at(pool)[0]
    mine["free"], mine["taken"] = free, taken
    mine["count"] = mine["free_count"] = mine["low_water"] = count
    # Not by the compiled stores: an engine's control plane builds, too, and compiles nothing.
    window(free, count, "<i4")[:] = np.arange(count - 1, -1, -1)


def copies_size(copy_size: int, count: int) -> int:
    """Bytes of memory that `lend_copies` wants."""
    return count * (copy_size + COPY_MARGIN)


def lend_copies(conn: int, address: int, copy_size: int, count: int) -> None:
    """Give a new port `copies_size` bytes at `address`, for as long as it lives.

    With a data digest, data that may change after its digest was computed is sent from a copy
    there, up to `copy_size` bytes (a multiple of 64) in a PDU. Every PDU has a place for one, so
    there are only `count` of them at once, a power of two no larger than `tx_entries`.
    """
    port = port_at(conn)[0]
    port["tx_copies"], port["tx_copy_size"], port["tx_capacity"] = address, copy_size, count


def build_port(
    conn: int,
    parts: Mapping[str, int],
    limits: PortLimits,
    params: ConnectionParams,
    task_count: int,
) -> None:
    """Fill in the PORT at `conn` in zeroed memory; `parts` are the addresses of `port_parts`."""
    port = port_at(conn)[0]
    port["rx_header"], port["rx_sink"] = parts["header"], parts["sink"]
    for name in ("tx_entries", "tx_headers", "tx_trailers", "tx_inlines"):
        port[name] = parts[name]
    port["tx_capacity"] = limits.tx_entries
    port["header_digest"], port["data_digest"] = params.header_digest, params.data_digest
    port["tx_header_length"] = BHS_LENGTH + DIGEST_LENGTH * params.header_digest
    for name in ("max_recv_data_segment_length", "peer_max_recv_data_segment_length"):
        port[name] = getattr(params, name)
    port["control_slots"], port["control_stride"] = parts["controls"], control_stride(limits)
    port["control_data_length"] = limits.control_data_length
    port["control_count"] = limits.control_slots
    build_queue(conn + READY, parts["ready"], task_count + limits.control_slots)
    build_queue(conn + EVENTS, parts["events"], limits.control_slots)
    build_pool(
        conn + CONTROL_POOL, parts["control_free"], parts["control_taken"], limits.control_slots
    )
    port["want_address"], port["want_length"] = port["rx_header"], BHS_LENGTH
