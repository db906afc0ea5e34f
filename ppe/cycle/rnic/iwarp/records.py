"""The records of a software queue pair. A queue pair's address is its QP's address; all its memory
is one block laid out beforehand (`spec`), and only the core writes to it.
"""

from typing import Final

from ppe.cycle.rnic.records import PIECE_SIZE, SGES_MAX
from shm.layout import Field, offset, record
from shm.view import opener

# The three fields that the service reads and the state come first.
QP: Final = record(
    Field("want_address", "<i8"),  # where the next bytes of the stream belong, if they are payload
    Field("want_length", "<i8"),
    Field("span_address", "<i8"),  # what `next_span` found
    Field("state", "<i8"),
    Field("violation", "<i8"),  # VIOLATION | why we ended the stream, or 0
    Field("terminated", "<i8"),  # TERMINATED | why the peer did, or 0
    Field("number", "<i8"),
    Field("pd", "<i8"),
    Field("table", "<i8"),  # MR_TABLE
    Field("rq", "<i8"),
    Field("crc", "<i8"),
    Field("markers_rx", "<i8"),
    Field("markers_tx", "<i8"),
    Field("extensions", "<i8"),  # whether RFC 7306 is spoken
    Field("active", "<i8"),
    Field("started", "<i8"),  # whether we may send: passive, only after the peer's first FPDU
    Field("rtr", "<i8"),  # what the active side sends first by itself (RFC 6581 §9)
    Field("rtr_due", "<i8"),
    Field("ird", "<i8"),
    Field("ord", "<i8"),
    Field("mulpdu", "<i8"),
    Field("inline_size", "<i8"),
    Field("sges_max", "<i8"),
    # --- receiving
    Field("rx_phase", "<i8"),
    Field("rx_header", "<i8"),  # address: the header so far, then its trailer
    Field("rx_have", "<i8"),  # bytes of the header that are there
    Field("rx_need", "<i8"),  # bytes until the phase is over
    Field("rx_target", "<i8"),  # where they go; 0: nowhere
    Field("rx_left", "<i8"),  # payload behind those
    Field("rx_length", "<i8"),  # ULPDU_Length
    Field("rx_large", "<i8"),  # segments that were worth being received to their place
    Field("rx_payload", "<i8"),  # bytes of payload of this segment
    Field("rx_position", "<i8"),  # bytes of the FPDU so far, markers included
    Field("rx_to_marker", "<i8"),
    Field("rx_marker", "<i8"),  # bytes of a marker that are there
    Field("rx_crc", "<i8"),
    Field("rx_fault", "<i8"),  # what is wrong with the header, if the CRC is right
    Field("rx_has_header", "<i8"),  # whether that header was complete
    Field("rx_row", "<i8"),  # the region this segment is placed in
    Field("rx_entry", "<i8"),  # the receive buffer of the Send under way, or -1
    Field("rx_piece", "<i8"),  # of that buffer, the piece and how much of it is full
    Field("rx_piece_at", "<i8"),
    Field("rx_send", "<i8"),  # opcode of a Send whose last segment is to come, or -1
    Field("rx_bytes", "<i8"),  # of that Send so far
    Field("rx_tagged", "<i8"),  # opcode of a tagged message that is to go on, or -1
    Field("rx_tagged_stag", "<i8"),
    Field("rx_tagged_to", "<i8"),  # where it is to go on
    Field("rx_msn", "(4,)<i8"),  # what each queue expects next
    Field("rx_fpdus", "<i8"),
    # --- sending
    Field("sq_entries", "<i8"),
    Field("sq_inlines", "<i8"),
    Field("sq_capacity", "<i8"),  # a power of two
    Field("sq_depth", "<i8"),
    Field("sq_posted", "<i8"),  # positions: posted, sent next, without a completion
    Field("sq_next", "<i8"),
    Field("sq_retired", "<i8"),
    Field("orq", "<i8"),  # positions in the SQ of what waits for a response, oldest first
    Field("orq_capacity", "<i8"),
    Field("orq_head", "<i8"),
    Field("orq_tail", "<i8"),
    Field("irq", "<i8"),  # the peer's requests
    Field("irq_capacity", "<i8"),
    Field("irq_head", "<i8"),  # positions: the oldest not sent, not yet made, received next
    Field("irq_next", "<i8"),
    Field("irq_tail", "<i8"),
    Field("tx_source", "<i8"),  # whose message is being cut into segments
    Field("tx_turn", "<i8"),  # who was served last
    Field("tx_bytes", "<i8"),  # of that message, already in segments
    Field("tx_piece", "<i8"),
    Field("tx_piece_at", "<i8"),
    Field("tx_msn", "(4,)<i8"),
    Field("tx_entries", "<i8"),
    Field("tx_rooms", "<i8"),
    Field("tx_room_size", "<i8"),
    Field("tx_capacity", "<i8"),
    Field("tx_made", "<i8"),  # positions: made, handed over, sent
    Field("tx_taken", "<i8"),
    Field("tx_taken_offset", "<i8"),
    Field("tx_sent", "<i8"),
    Field("tx_sent_offset", "<i8"),
    Field("tx_to_marker", "<i8"),
    Field("tx_fpdus", "<i8"),
    Field("terminate", "<i8"),  # address of the Terminate's payload
    Field("terminate_length", "<i8"),
    Field("terminate_due", "<i8"),
    # --- completing
    Field("done_first", "<i8"),  # indices of receive entries that are over, oldest first
    Field("done_last", "<i8"),
    Field("ended", "<i8"),
    Field("failed", "<i8"),  # position of a work request that failed by itself, or -1
    Field("failed_status", "<i8"),
    size=832,
)
SQ_ENTRY: Final = record(
    Field("opcode", "<i8"),
    Field("flags", "<i8"),
    Field("token", "<i8"),
    Field("length", "<i8"),
    Field("remote_addr", "<i8"),
    Field("rkey", "<i8"),
    Field("imm", "<i8"),
    Field("invalidate_rkey", "<i8"),
    Field("compare_add", "<i8"),
    Field("swap", "<i8"),
    Field("compare_add_mask", "<i8"),
    Field("swap_mask", "<i8"),
    Field("awaits", "<i8"),  # what must happen before it is over, 0 once nothing must
    Field("step", "<i8"),  # of a Write with immediate data, 1: its data is sent
    Field("received", "<i8"),  # of a Read
    Field("sink_lkey", "<i8"),
    Field("sink_to", "<i8"),
    Field("bind_lkey", "<i8"),
    Field("bind_addr", "<i8"),
    Field("bind_length", "<i8"),
    Field("bind_access", "<i8"),
    Field("piece_count", "<i8"),
    Field("pieces", f"({3 * SGES_MAX},)<i8"),
    size=416,
)
# A Read or Atomic Request of the peer that is to be answered.
IRQ_ENTRY: Final = record(
    Field("is_atomic", "<i8"),
    Field("sink_stag", "<i8"),
    Field("sink_to", "<i8"),
    Field("size", "<i8"),
    Field("address", "<i8"),
    Field("row", "<i8"),
    Field("request_id", "<i8"),
    Field("value", "<i8"),
    size=64,
)
# An FPDU to send: a header in its room, pieces of payload where they lie, a trailer in the room.
TX_ENTRY: Final = record(
    Field("header_length", "<i8"),
    Field("piece_count", "<i8"),
    Field("payload_length", "<i8"),
    Field("trailer_length", "<i8"),
    Field("length", "<i8"),  # of all, markers included
    Field("first_marker", "<i8"),  # offset of the first marker; `length` or more: there is none
    Field("releases", "<i8"),  # what is over when it is sent
    Field("position", "<i8"),
    Field("pieces", f"({2 * SGES_MAX},)<i8"),  # address and length each
    size=224,
)
qp_at = opener(QP)
sq_entry_at = opener(SQ_ENTRY)
irq_entry_at = opener(IRQ_ENTRY)
tx_entry_at = opener(TX_ENTRY)

SQ_ENTRY_SIZE: Final = SQ_ENTRY.itemsize
IRQ_ENTRY_SIZE: Final = IRQ_ENTRY.itemsize
TX_ENTRY_SIZE: Final = TX_ENTRY.itemsize
SQ_PIECES: Final = offset(SQ_ENTRY, "pieces")
TX_PIECES: Final = offset(TX_ENTRY, "pieces")
TX_PIECE_SIZE: Final = 16
RX_MSN: Final = offset(QP, "rx_msn")
TX_MSN: Final = offset(QP, "tx_msn")
assert SGES_MAX * PIECE_SIZE == SQ_ENTRY_SIZE - SQ_PIECES

# States of a queue pair.
IDLE: Final = 0
RTS: Final = 1
CLOSING: Final = 2  # no more posts; what was posted still goes out
TERMINATE: Final = 3  # the peer broke the protocol: a Terminate goes out, nothing comes in
ERROR: Final = 4  # over

# What `take` returns, with a Terminate's code below.
VIOLATION: Final = 0x1_0000
TERMINATED: Final = 0x2_0000
CODE_MASK: Final = 0xFFFF

# Room of one FPDU: header and small payload, trailer behind it, markers.
SMALL: Final = 128  # payload of no more bytes is copied: one span then is the whole FPDU
HEADER_ROOM: Final = 80
TRAILER_OFFSET: Final = HEADER_ROOM + SMALL
MARKERS_OFFSET: Final = TRAILER_OFFSET + 8
RX_ROOM: Final = 128
RX_TRAILER: Final = 96  # offset of the trailer in `rx_header`
RX_MARKER: Final = 112  # and of a marker

# `releases` of an FPDU.
RELEASES_NOTHING: Final = 0
RELEASES_WORK: Final = 1
RELEASES_RESPONSE: Final = 2
# `tx_source`.
SOURCE_NONE: Final = 0
SOURCE_WORK: Final = 1
SOURCE_RESPONSE: Final = 2
