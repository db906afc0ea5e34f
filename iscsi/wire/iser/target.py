"""The target's lower half of the datamover cut over a queue pair: POSTs (`iscsi.wire.mover`) in,
work requests out; completions and received Sends in, EVENTs out (`target_mover.event_next`,
`target_notice`). Read data is written to the initiator's tag, written data read from it, each as
one operation; what has begun ends before its buffer is given back, aborted or not.
"""

from typing import Final

from iscsi.wire import bhs, target_mover, target_tx, tx
from iscsi.wire.iser import work
from iscsi.wire.iser.header import (
    HELLO,
    ISER_HEADER_LENGTH,
    OFFSET_DEPTH,
    OFFSET_READ_BASE,
    OFFSET_READ_STAG,
    OFFSET_VERSIONS,
    OFFSET_WRITE_BASE,
    OFFSET_WRITE_STAG,
    OPCODE_MASK,
    RSV,
    VERSION,
    WSV,
)
from iscsi.wire.iser.message import pdu_length
from iscsi.wire.iser.records import (
    BLOCKED,
    HELLO_AWAITED,
    HELLO_NONE,
    HELLO_REPLY_DUE,
    ISER_TASK_SIZE,
    KIND_READ,
    KIND_SEND,
    KIND_WRITE,
    UNPOSTED,
    WAITING,
    iser_at,
    iser_task_at,
    send_at,
)
from iscsi.wire.iser.target_credit import (
    DATA_OUT,
    SCSI_COMMAND,
    is_unexpected,
    may_come,
    may_send_unexpected,
    peer_is_done,
    request_here,
    request_over,
    unexpected_sent,
)
from iscsi.wire.mover import ANSWER, CONTROL, post_at
from iscsi.wire.port import (
    READY,
    TOKEN_CONTROL,
    TOKEN_NONE,
    TOKEN_TASK,
    control_give,
    is_empty,
    pop,
    port_at,
    push,
    token_address,
    token_kind,
    token_of,
    tx_at,
)
from iscsi.wire.sense import SenseKey
from iscsi.wire.target_command import data_out_here, end_spoiled, spoil
from iscsi.wire.target_data_out import INCORRECT_AMOUNT
from iscsi.wire.target_mover import SENSE_LENGTH_SHIFT
from iscsi.wire.target_rx import rx_bytes, rx_placed
from iscsi.wire.target_task import (
    STATE_DATA_IN,
    STATE_DATA_OUT,
    STATE_RESPOND,
    TASK_SIZE,
    free_if_sent,
    index_of,
    make_ready,
    target_at,
    task_at,
    task_of,
)
from iscsi.wire.target_tx import wants_r2t
from iscsi.wire.violations import Violation
from shm.jit import nopython
from shm.memory import (
    load_8,
    load_16_be,
    load_24_be,
    load_32_be,
    load_64_be,
    store_16_be,
    store_32_be,
)
from shm.verbs_numbers import (
    WC_WITH_INV,
)
from shm.work_requests import wc_at

SHORT_SEND: Final = int(Violation.SHORT_SEND)
HELLO_WRONG: Final = int(Violation.HELLO)
FOREIGN_INVALIDATE: Final = int(Violation.FOREIGN_INVALIDATE)
TAG_MISSING: Final = int(Violation.TAG_MISSING)
TAG_DIRECTION: Final = int(Violation.TAG_DIRECTION)
SOLICITED_DATA: Final = int(Violation.SOLICITED_DATA)
UNEXPECTED_PDUS: Final = int(Violation.UNEXPECTED_PDUS)
# SPC-4: insufficient resources, of an aborted command, which its initiator sends again.
NO_ROOM: Final = int(SenseKey.ABORTED_COMMAND) << 16 | 0x5503
VERSION_MASK: Final = 15
LOGIN_LENGTH: Final = 8192  # of a login PDU's data
ROOM: Final = 2  # entries of the ring: a command's data, and its Response behind that
SENSE_MASK: Final = 0xFFFF << SENSE_LENGTH_SHIFT

feed = work.make_feed(rx_bytes, rx_placed)


@nopython
def on_post(iser: int, post: int, home: int, home_size: int, handle: int) -> int:
    """`target_mover.on_post`, within what the initiator's receives hold whatever a Text Request
    says of the byte stream's segments; sense data that is longer is cut (SPC-4 §4.5.1).
    """
    conn, asked = iser_at(iser)[0]["conn"], post_at(post)[0]
    if asked["opcode"] == CONTROL:
        asked["arg1"] = 0
        return _control(iser, post, home, home_size, handle)
    if asked["opcode"] != ANSWER:
        return target_mover.on_post(conn, post, home, home_size, handle)
    longest = port_at(conn)[0]["peer_max_recv_data_segment_length"]
    length = (asked["arg1"] & SENSE_MASK) >> SENSE_LENGTH_SHIFT
    if length <= longest:
        return target_mover.on_post(conn, post, home, home_size, handle)
    asked["arg1"] = (asked["arg1"] & ~SENSE_MASK) | longest << SENSE_LENGTH_SHIFT
    outcome = target_mover.on_post(conn, post, home, home_size, handle)
    if outcome == 0:
        index = asked["arg0"] & 0xFFFF
        task = task_at(target_at(conn)[0]["tasks"] + TASK_SIZE * index)[0]
        store_16_be(task["cold_address"], longest - 2)
    return outcome


@nopython
def _control(iser: int, post: int, home: int, home_size: int, handle: int) -> int:
    """A PDU that is no SCSI Response. The first one may end the login: its receive is a login's."""
    conn = iser_at(iser)[0]["conn"]
    port = port_at(conn)[0]
    longest = port["peer_max_recv_data_segment_length"]
    if port["tx_made"] == 0 and port["rx_pdus"] == 0:
        port["peer_max_recv_data_segment_length"] = max(longest, LOGIN_LENGTH)
    outcome = target_mover.on_post(conn, post, home, home_size, handle)
    port["peer_max_recv_data_segment_length"] = longest
    return outcome


@nopython
def iser_task_of(iser: int, address: int) -> int:
    """Address of the ISER_TASK beside a task."""
    mine = iser_at(iser)[0]
    return int(mine["tasks"] + ISER_TASK_SIZE * index_of(mine["conn"], address))


# --- what is to be sent ----------------------------------------------------------------------


@nopython
def work_next(iser: int, wr: int) -> bool:
    """Fill in the next WR for the send queue; False if there is nothing to do now."""
    mine = iser_at(iser)[0]
    conn = mine["conn"]
    port = port_at(conn)[0]
    while not work.hand_out(iser, wr):
        if port["tx_capacity"] - (port["tx_made"] - port["tx_sent"]) < ROOM:
            return False
        if mine["hello"] == HELLO_REPLY_DUE:
            work.commit_hello(iser, True)
            mine["hello"] = HELLO_NONE
        elif not is_empty(iser + BLOCKED) and may_send_unexpected(iser):
            _make_control(iser, pop(iser + BLOCKED))
        elif is_empty(conn + READY):
            return False
        else:
            _make_one(iser, pop(conn + READY))
    return True


@nopython
def _make_one(iser: int, token: int) -> None:
    conn, address = iser_at(iser)[0]["conn"], token_address(token)
    if token_kind(token) == TOKEN_CONTROL:
        if is_unexpected(address) and not may_send_unexpected(iser):
            push(iser + BLOCKED, address)
        else:
            _make_control(iser, address)
        return
    task = task_at(address)[0]
    task["queued"] = 0
    if task["state"] == STATE_DATA_OUT and wants_r2t(conn, address):
        _make_read(iser, address)
    if task["state"] == STATE_DATA_IN:
        _make_write(iser, address)
    if task["state"] == STATE_RESPOND:
        _make_response(iser, address)


@nopython
def _header_of(conn: int, position: int) -> int:
    port = port_at(conn)[0]
    slot = tx.slot_of(conn, position)
    return int(port["tx_headers"] + port["tx_header_length"] * slot)


@nopython
def _make_control(iser: int, slot: int) -> None:
    conn = iser_at(iser)[0]["conn"]
    work.begin(iser, KIND_SEND)
    target_tx.make_control(conn, slot)
    header = _header_of(conn, port_at(conn)[0]["tx_made"] - 1)
    if is_unexpected(header):
        unexpected_sent(iser, header)
    else:
        request_over(iser, load_32_be(header + bhs.OFFSET_ITT))


@nopython
def _make_read(iser: int, address: int) -> None:
    """RDMA Read in place of an R2T: of everything that is missing, from the tag of the command.
    What was thrown away lies in front of what the tag names.
    """
    mine, task = iser_at(iser)[0], task_at(address)[0]
    its = iser_task_at(iser_task_of(iser, address))[0]
    if its["write_stag"] == 0:
        _end_without_tag(iser, address)
        return
    if mine["reads"] >= mine["depth"]:
        if its["is_waiting"] == 0:
            its["is_waiting"] = 1
            push(iser + WAITING, address)
        return
    start = task["r2t_offset"]
    length = task["transfer"] - start
    remote = its["write_base"] + start - its["unsolicited"]
    token = token_of(TOKEN_TASK, address)
    work.commit(
        iser, KIND_READ, task["data_address"] + start, length, token, remote, its["write_stag"]
    )
    task["r2t_sn"] += 1
    task["r2t_offset"] += length
    task["tx_pending"] += 1
    mine["reads"] += 1
    mine["reads_made"] += 1


@nopython
def _end_without_tag(iser: int, address: int) -> None:
    """Less data came unasked than the command moves, or there was no room for it, and it cannot be
    read: end the command. In the second case it may be sent again.
    """
    conn, task = iser_at(iser)[0]["conn"], task_at(address)[0]
    its = iser_task_at(iser_task_of(iser, address))[0]
    is_short = its["unsolicited"] < task["transfer"]
    spoil(conn, address, INCORRECT_AMOUNT if is_short else NO_ROOM)
    end_spoiled(conn, address)


@nopython
def _make_write(iser: int, address: int) -> None:
    """RDMA Write of a command's data; its Response follows."""
    task, its = task_at(address)[0], iser_task_at(iser_task_of(iser, address))[0]
    token = TOKEN_NONE
    if task["is_cold"] or task["buffer"] or task["post"]:
        task["tx_pending"] += 1
        token = token_of(TOKEN_TASK, address)
    data, length = task["data_address"], task["transfer"]
    work.commit(iser, KIND_WRITE, data, length, token, its["read_base"], its["read_stag"])
    task["sent"] = length
    task["state"] = STATE_RESPOND
    iser_at(iser)[0]["writes_made"] += 1


@nopython
def _make_response(iser: int, address: int) -> None:
    """The SCSI Response; it invalidates the command's tag where that was agreed on."""
    conn = iser_at(iser)[0]["conn"]
    its = iser_task_at(iser_task_of(iser, address))[0]
    send = send_at(work.begin(iser, KIND_SEND))[0]
    if iser_at(iser)[0]["remote_invalidate"]:
        send["stag"] = its["read_stag"] if its["read_stag"] else its["write_stag"]
        iser_at(iser)[0]["invalidated"] += send["stag"] != 0
    target_tx.make_response(conn, address)
    header = _header_of(conn, port_at(conn)[0]["tx_made"] - 1)
    store_32_be(header + bhs.OFFSET_EXP_DATA_SN, 0)  # there were no Data-Ins and R2Ts


# --- completions -----------------------------------------------------------------------------


@nopython
def sent(iser: int, wc: int) -> int:
    """Take a completion of the send queue: 0, or what ends the connection."""
    conn, done = iser_at(iser)[0]["conn"], wc_at(wc)[0]
    broken = work.failure(done["status"])
    if broken:
        return broken
    while work.is_over(conn, done["token"]):
        position = port_at(conn)[0]["tx_sent"]
        is_read = send_at(work.send_of(iser, position))[0]["kind"] == KIND_READ
        length = tx_at(tx.entry_of(conn, position))[0]["data_length"]
        token = work.retire(conn)
        address = token_address(token)
        if token_kind(token) == TOKEN_CONTROL:
            control_give(conn, address)
        elif token_kind(token) == TOKEN_TASK:
            task_at(address)[0]["tx_pending"] -= 1
            if is_read:
                _read_over(iser, address, length)
            free_if_sent(conn, address)
    return 0


@nopython
def _read_over(iser: int, address: int, length: int) -> None:
    """Written data is here: go on with its command, unless it was aborted; and let another read."""
    conn = iser_at(iser)[0]["conn"]
    iser_at(iser)[0]["reads"] -= 1
    if task_at(address)[0]["state"] == STATE_DATA_OUT:
        port_at(conn)[0]["rx_data_length"] = length
        data_out_here(conn, address, True, False)
    while not is_empty(iser + WAITING):
        waiting = pop(iser + WAITING)
        iser_task_at(iser_task_of(iser, waiting))[0]["is_waiting"] = 0
        if task_at(waiting)[0]["state"] == STATE_DATA_OUT and wants_r2t(conn, waiting):
            make_ready(conn, waiting)
            return


@nopython
def received(iser: int, wc: int) -> int:
    """Take a completion of the receive queue, and the Send in its buffer: 0, or a violation that
    ends the connection. The buffer is free for `work.receive_next` again.
    """
    conn, done = iser_at(iser)[0]["conn"], wc_at(wc)[0]
    broken = work.failure(done["status"])
    if broken:
        return broken
    message, length = work.receive_buffer(iser, done["token"]), int(done["byte_len"])
    push(iser + UNPOSTED, done["token"])
    outcome = FOREIGN_INVALIDATE if done["flags"] & WC_WITH_INV else _message(iser, message, length)
    if outcome < 0:
        port_at(conn)[0]["error"] = outcome
    return outcome


@nopython
def _message(iser: int, message: int, length: int) -> int:
    mine = iser_at(iser)[0]
    is_hello = length > 0 and load_8(message) & OPCODE_MASK == HELLO
    if is_hello or mine["hello"] == HELLO_AWAITED:
        return _hello(iser, message, length)
    size = pdu_length(message, length)
    if size < 0:
        return size
    header = message + ISER_HEADER_LENGTH
    peer_is_done(iser, header)
    if not may_come(iser, header):
        return UNEXPECTED_PDUS
    opcode = load_8(header) & bhs.OPCODE_MASK
    if opcode == SCSI_COMMAND:
        return _command(iser, message, size)
    if opcode == DATA_OUT:
        return _data_out(iser, header, size)
    target, port = target_at(mine["conn"])[0], port_at(mine["conn"])[0]
    refused = target["rejects"] + port["discarded"]
    outcome = feed(mine["conn"], header, size)
    if outcome == 0 and target["rejects"] + port["discarded"] == refused:
        request_here(iser, header)
    return outcome


@nopython
def _hello(iser: int, message: int, length: int) -> int:
    """The initiator's Hello (RFC 7145 §5.1.3): 0, or a violation."""
    mine = iser_at(iser)[0]
    if length < ISER_HEADER_LENGTH:
        return SHORT_SEND
    versions = load_8(message + OFFSET_VERSIONS)
    if mine["hello"] != HELLO_AWAITED or load_8(message) & OPCODE_MASK != HELLO:
        return HELLO_WRONG
    if not versions & VERSION_MASK <= VERSION <= versions >> 4:
        return HELLO_WRONG
    mine["depth"] = max(1, min(mine["depth"], load_16_be(message + OFFSET_DEPTH)))
    mine["hello"] = HELLO_REPLY_DUE
    return 0


@nopython
def _command(iser: int, message: int, size: int) -> int:
    """A SCSI Command, with the tags of its memory."""
    conn = iser_at(iser)[0]["conn"]
    header = message + ISER_HEADER_LENGTH
    fault = _tag_fault(message, header)
    if fault:
        return fault
    before = target_at(conn)[0]["commands"]
    outcome = feed(conn, header, size)
    if outcome < 0 or target_at(conn)[0]["commands"] == before:
        return outcome
    address = task_of(conn, load_32_be(header + bhs.OFFSET_ITT))
    its, valid = iser_task_at(iser_task_of(iser, address))[0], load_8(message)
    its["write_stag"] = load_32_be(message + OFFSET_WRITE_STAG) if valid & WSV else 0
    its["write_base"] = load_64_be(message + OFFSET_WRITE_BASE)
    its["read_stag"] = load_32_be(message + OFFSET_READ_STAG) if valid & RSV else 0
    its["read_base"] = load_64_be(message + OFFSET_READ_BASE)
    its["unsolicited"] = load_24_be(header + bhs.OFFSET_DATA_SEGMENT_LENGTH)
    its["data_outs"] = 0
    its["is_unexpected"] = 1 if load_8(header) & bhs.IMMEDIATE else 0
    return 0


@nopython
def _tag_fault(message: int, header: int) -> int:
    """0, or what is wrong with the tags of a command."""
    valid, flags = load_8(message), load_8(header + bhs.OFFSET_FLAGS)
    is_read, is_write = flags & bhs.FLAG_READ != 0, flags & bhs.FLAG_WRITE != 0
    expected = load_32_be(header + bhs.OFFSET_EXPECTED_DATA_TRANSFER_LENGTH)
    if valid & WSV:
        if not is_write:
            return TAG_DIRECTION
        if load_32_be(message + OFFSET_WRITE_STAG) == 0:
            return TAG_MISSING
    if valid & RSV:
        if not is_read:
            return TAG_DIRECTION
        if load_32_be(message + OFFSET_READ_STAG) == 0:
            return TAG_MISSING
    elif is_read and expected:
        return TAG_MISSING
    is_final = flags & bhs.FLAG_FINAL != 0
    unsolicited = load_24_be(header + bhs.OFFSET_DATA_SEGMENT_LENGTH)
    if is_write and is_final and expected > unsolicited and valid & WSV == 0:
        return TAG_MISSING
    return 0


@nopython
def _data_out(iser: int, header: int, size: int) -> int:
    """Unsolicited data; what was not sent unasked is read (RFC 7145 §7.3.4)."""
    conn = iser_at(iser)[0]["conn"]
    if load_32_be(header + bhs.OFFSET_TTT) != bhs.RESERVED_TAG:
        return SOLICITED_DATA
    address = task_of(conn, load_32_be(header + bhs.OFFSET_ITT))
    if address == 0:
        return feed(conn, header, size)
    its, rejects = iser_task_at(iser_task_of(iser, address))[0], target_at(conn)[0]["rejects"]
    its["unsolicited"] += load_24_be(header + bhs.OFFSET_DATA_SEGMENT_LENGTH)
    its["data_outs"] += 1
    outcome = feed(conn, header, size)
    if target_at(conn)[0]["rejects"] != rejects and its["data_outs"] > 0:
        its["data_outs"] -= 1  # The Reject says that its receive is back.
    return outcome
