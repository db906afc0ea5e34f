"""Work requests for both roles. What is made for the send queue has a place in the port's ring, and
its position there is its token: completions come in that order, so one covers all before it. A
lkey of 0 says that the address was checked; whoever needs a key puts it in.
"""

import errno
from collections.abc import Callable
from typing import Any, Final

from iscsi.wire import tx
from iscsi.wire.bhs import BHS_LENGTH
from iscsi.wire.iser.header import (
    CONTROL_PDU,
    HELLO,
    HELLO_REPLY,
    ISER_HEADER_LENGTH,
    OFFSET_DEPTH,
    OFFSET_READ_BASE,
    OFFSET_READ_STAG,
    OFFSET_VERSIONS,
    OFFSET_WRITE_BASE,
    OFFSET_WRITE_STAG,
    RSV,
    VERSION,
    WSV,
)
from iscsi.wire.iser.records import (
    KIND_HELLO,
    KIND_READ,
    KIND_RELEASE,
    KIND_SEND,
    KIND_WRITE,
    SEND_HEADER,
    SEND_SIZE,
    UNPOSTED,
    iser_at,
    send_at,
)
from iscsi.wire.port import TOKEN_NONE, TRAILER_SIZE, is_empty, pop, port_at, tx_at
from iscsi.wire.violations import Violation
from shm.jit import nopython
from shm.memory import load_8, store_8, store_16_be, store_32_be, store_64_be, zero_bytes
from shm.verbs_numbers import (
    SEND_SIGNALED,
    WC_REM_ACCESS_ERR,
    WC_REM_INV_REQ_ERR,
    WC_SUCCESS,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
    WR_SEND_WITH_INV,
)
from shm.work_requests import SGE_SIZE, WR_SGES, sge_at, wr_at

VERSIONS: Final = VERSION << 4 | VERSION
EIO: Final = errno.EIO
TAG_REFUSED: Final = int(Violation.TAG_REFUSED)

# What is asked of whoever keeps the tags, besides the verbs manual's opcodes: a tag for
# `bind_length` bytes at `bind_addr`, with the rights `bind_access`. It is answered before anything
# else is asked for.
WR_TAG: Final = 512


# --- the receive queue -----------------------------------------------------------------------


@nopython
def receive_next(iser: int, wr: int) -> bool:
    """Fill in a WR that posts a free receive buffer; False if all are posted."""
    if is_empty(iser + UNPOSTED):
        return False
    mine = iser_at(iser)[0]
    number = pop(iser + UNPOSTED)
    zero_bytes(wr, WR_SGES)
    request = wr_at(wr)[0]
    request["token"] = number
    _add(wr, receive_buffer(iser, number), mine["receive_size"])
    return True


@nopython
def receive_buffer(iser: int, number: int) -> int:
    """Address of a receive buffer."""
    mine = iser_at(iser)[0]
    return int(mine["receives"] + number * mine["receive_size"])


@nopython
def _add(wr: int, address: int, length: int) -> None:
    request = wr_at(wr)[0]
    place = sge_at(wr + WR_SGES + SGE_SIZE * request["sge_count"])[0]
    place["addr"], place["length"], place["lkey"] = address, length, 0
    request["sge_count"] += 1


# --- the send queue --------------------------------------------------------------------------


@nopython
def send_of(iser: int, position: int) -> int:
    """Address of the SEND at a position of the port's ring."""
    mine = iser_at(iser)[0]
    return int(mine["sends"] + SEND_SIZE * tx.slot_of(mine["conn"], position))


@nopython
def begin(iser: int, kind: int) -> int:
    """The SEND of what is made next, without a tag. There must be room."""
    send = send_of(iser, port_at(iser_at(iser)[0]["conn"])[0]["tx_made"])
    zero_bytes(send, SEND_SIZE)
    send_at(send)[0]["kind"] = kind
    store_8(send + SEND_HEADER, CONTROL_PDU)
    return send


@nopython
def name_write(send: int, stag: int, base: int) -> None:
    """Name the tag from which data may be read, and where what was not sent begins."""
    header = send + SEND_HEADER
    store_8(header, load_8(header) | WSV)
    store_32_be(header + OFFSET_WRITE_STAG, stag)
    store_64_be(header + OFFSET_WRITE_BASE, base)


@nopython
def name_read(send: int, stag: int, base: int) -> None:
    """Name the tag to which data may be written, and where it begins."""
    header = send + SEND_HEADER
    store_8(header, load_8(header) | RSV)
    store_32_be(header + OFFSET_READ_STAG, stag)
    store_64_be(header + OFFSET_READ_BASE, base)


@nopython
def commit(iser: int, kind: int, data: int, length: int, token: int, remote: int, stag: int) -> int:
    """Put in line what is no PDU: `length` bytes at `data` to or from `remote`, which `stag` opens;
    or only `stag` to be invalidated. Its position.
    """
    conn = iser_at(iser)[0]["conn"]
    port = port_at(conn)[0]
    send = send_at(begin(iser, kind))[0]
    send["remote"], send["stag"] = remote, stag
    position = int(port["tx_made"])
    entry = tx_at(tx.entry_of(conn, position))[0]
    entry["data_address"], entry["data_length"] = data, length
    entry["trailer_length"] = 0
    entry["token"] = token
    entry["length"] = length
    port["tx_made"] += 1
    return position


@nopython
def commit_hello(iser: int, is_reply: bool) -> int:
    """Put a Hello or its answer in line. Its position."""
    position = commit(iser, KIND_HELLO, 0, 0, TOKEN_NONE, 0, 0)
    header = send_of(iser, position) + SEND_HEADER
    store_8(header, HELLO_REPLY if is_reply else HELLO)
    store_8(header + OFFSET_VERSIONS, VERSIONS)
    store_16_be(header + OFFSET_DEPTH, iser_at(iser)[0]["depth"])
    return position


@nopython
def fill(iser: int, position: int, wr: int) -> None:
    """The WR of what was made at a position."""
    conn, address = iser_at(iser)[0]["conn"], send_of(iser, position)
    entry, send = tx_at(tx.entry_of(conn, position))[0], send_at(address)[0]
    kind, request = send["kind"], wr_at(wr)[0]
    zero_bytes(wr, WR_SGES)
    request["token"] = position
    request["flags"] = SEND_SIGNALED
    if kind in (KIND_SEND, KIND_HELLO):
        request["opcode"] = WR_SEND_WITH_INV if send["stag"] else WR_SEND
        request["invalidate_rkey"] = send["stag"]
        _add(wr, address + SEND_HEADER, ISER_HEADER_LENGTH)
        if kind == KIND_SEND:
            _add_pdu(conn, position, wr)
        return
    if kind == KIND_RELEASE:
        request["opcode"] = WR_LOCAL_INV
        request["invalidate_rkey"] = send["stag"]
        return
    request["remote_addr"], request["rkey"] = send["remote"], send["stag"]
    _add(wr, entry["data_address"], entry["data_length"])
    if kind == KIND_WRITE:
        request["opcode"] = WR_RDMA_WRITE
        request["flags"] = 0  # the Response behind it says that it is over
    else:
        request["opcode"] = WR_RDMA_READ


@nopython
def _add_pdu(conn: int, position: int, wr: int) -> None:
    """The PDU itself: header, segments or data from where they lie, padding."""
    port, entry = port_at(conn)[0], tx_at(tx.entry_of(conn, position))[0]
    slot = tx.slot_of(conn, position)
    _add(wr, port["tx_headers"] + port["tx_header_length"] * slot, BHS_LENGTH)
    if entry["data_length"]:
        _add(wr, entry["data_address"], entry["data_length"])
    if entry["trailer_length"]:
        _add(wr, port["tx_trailers"] + TRAILER_SIZE * slot, entry["trailer_length"])


@nopython
def hand_out(iser: int, wr: int) -> bool:
    """Fill in the WR of the oldest entry that was not handed out; False if all were."""
    port = port_at(iser_at(iser)[0]["conn"])[0]
    if port["tx_taken"] == port["tx_made"]:
        return False
    position = port["tx_taken"]
    fill(iser, position, wr)
    if send_at(send_of(iser, position))[0]["kind"] == KIND_SEND:  # made by `tx`, which counts it
        conn = iser_at(iser)[0]["conn"]
        port["tx_ahead"] -= tx_at(tx.entry_of(conn, position))[0]["length"]
    port["tx_taken"] += 1
    return True


@nopython
def is_over(conn: int, token: int) -> bool:
    """Whether what stands first in the ring is over when the completion with this token is here."""
    port = port_at(conn)[0]
    return bool(port["tx_sent"] < port["tx_taken"] and port["tx_sent"] <= token)


@nopython
def retire(conn: int) -> int:
    """Free the oldest entry of the ring and return what it released."""
    port = port_at(conn)[0]
    token = int(tx_at(tx.entry_of(conn, port["tx_sent"]))[0]["token"])
    port["tx_sent"] += 1
    return token


@nopython
def failure(status: int) -> int:
    """0, or what ends the connection, for a work completion's status."""
    if status == WC_SUCCESS:
        return 0
    if status in (WC_REM_ACCESS_ERR, WC_REM_INV_REQ_ERR):
        return TAG_REFUSED
    return -EIO


assert KIND_READ > KIND_WRITE > KIND_HELLO


def make_feed(rx_bytes: Any, rx_placed: Any) -> Callable[[int, int, int], int]:
    """Make one role's way of taking a whole PDU, from its nopython functions for bytes."""

    @nopython
    def feed(conn: int, header: int, size: int) -> int:
        # As if it came as bytes; its padding may come from anywhere.
        outcome = rx_bytes(conn, header, size)
        if outcome == 0 and size & 3:
            outcome = rx_placed(conn, port_at(conn)[0]["want_length"])
        return outcome  # type: ignore[no-any-return]

    return feed
