"""The initiator's lower half of the datamover cut over a queue pair: POSTs (`iscsi.wire.mover`) in,
work requests out; completions and received Sends in, EVENTs out (`initiator_mover.event_next`). A
command's tag is open from its Send to its Response, no longer: its buffer is given back when the
tag is invalidated, by the Response itself or by us.
"""

import errno
from typing import Final

from iscsi.wire import bhs, initiator_mover, initiator_post, initiator_tx, tx
from iscsi.wire.initiator_rx import (
    DATA_IN,
    R2T,
    SCSI_RESPONSE,
    rx_bytes,
    rx_placed,
)
from iscsi.wire.initiator_task import (
    KIND_SCSI,
    STAGE_COMMAND,
    STAGE_NONE,
    STAGE_UNSOLICITED,
    STATE_ACTIVE,
    STATE_CANCELLED,
    complete_if_over,
    initiator_at,
    piece_at,
    task_at,
    task_of,
)
from iscsi.wire.iser import work
from iscsi.wire.iser.header import (
    HELLO_REPLY,
    ISER_HEADER_LENGTH,
    OFFSET_VERSIONS,
    OPCODE_MASK,
    REJECT,
    VERSION,
)
from iscsi.wire.iser.initiator_credit import (
    answer_sent,
    command_sent,
    data_outs_of,
    may_announce,
    may_send,
    may_send_unexpected,
    rejected,
    request_sent,
    response_here,
)
from iscsi.wire.iser.initiator_tags import iser_task_of
from iscsi.wire.iser.message import pdu_length
from iscsi.wire.iser.records import (
    BLOCKED,
    HELLO_DUE,
    HELLO_NONE,
    HELLO_SAID,
    KIND_RELEASE,
    KIND_SEND,
    RELEASED_NEXT,
    TAG_KEPT,
    TAG_LIVE,
    TAG_NONE,
    TAG_RELEASED,
    UNPOSTED,
    iser_at,
    iser_task_at,
    send_at,
)
from iscsi.wire.mover import CANCEL, COMMAND, post_at
from iscsi.wire.port import (
    READY,
    TOKEN_CONTROL,
    TOKEN_TASK,
    control_give,
    first,
    is_empty,
    pop,
    port_at,
    push,
    token_address,
    token_kind,
    token_of,
)
from iscsi.wire.violations import Violation
from shm.jit import nopython
from shm.memory import load_8, load_32_be, zero_bytes
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    WC_WITH_INV,
)
from shm.work_requests import WR_SGES, wc_at, wr_at

REJECTION: Final = int(bhs.Opcode.REJECT)
ENOENT: Final = errno.ENOENT
ENOBUFS: Final = errno.ENOBUFS
OPCODE: Final = int(Violation.OPCODE)
HELLO: Final = int(Violation.HELLO)
SHORT_SEND: Final = int(Violation.SHORT_SEND)
FOREIGN_INVALIDATE: Final = int(Violation.FOREIGN_INVALIDATE)
WORD_MASK: Final = 0xFFFFFFFF
VERSION_MASK: Final = 15

# What `_make_one` found.
MADE: Final = 0  # or nothing was to be made
NEEDS_TAG: Final = 1
STUCK: Final = 2  # the peer has no receive for it

feed = work.make_feed(rx_bytes, rx_placed)


@nopython
def on_post(iser: int, post: int, home: int, home_size: int, handle: int) -> int:
    """`initiator_mover.on_post`; a command that is cancelled gives its tag back first."""
    conn, asked = iser_at(iser)[0]["conn"], post_at(post)[0]
    itt = asked["arg1"] & WORD_MASK
    if asked["opcode"] == CANCEL:
        return _cancel(iser, itt)
    outcome = initiator_mover.on_post(conn, post, home, home_size, handle)
    if asked["opcode"] == COMMAND and outcome == initiator_mover.PENDING:
        its = iser_task_at(iser_task_of(iser, task_of(conn, itt)))[0]
        its["tag_state"] = TAG_NONE
        its["is_sent"] = 0
    return outcome


@nopython
def _cancel(iser: int, itt: int) -> int:
    conn = iser_at(iser)[0]["conn"]
    address = task_of(conn, itt)
    if address == 0 or task_at(address)[0]["state"] != STATE_ACTIVE:
        return -ENOENT
    its = iser_task_of(iser, address)
    _release(iser, address, its)
    response_here(iser, its, itt)  # There will be none, and the target is done with its PDUs.
    if task_at(address)[0]["stage"] == STAGE_UNSOLICITED:
        task_at(address)[0]["stage"] = STAGE_NONE
    return initiator_post.cancel(conn, itt)


@nopython
def _release(iser: int, address: int, its: int) -> None:
    """Have a command's tag invalidated, if it is open: until then the command is not over."""
    if iser_task_at(its)[0]["tag_state"] == TAG_LIVE:
        iser_task_at(its)[0]["tag_state"] = TAG_RELEASED
        task_at(address)[0]["tx_pending"] += 1
        push(iser + RELEASED_NEXT, address)


# --- what is to be sent ----------------------------------------------------------------------


@nopython
def work_next(iser: int, wr: int) -> bool:
    """Fill in the next WR for the send queue, or a WR_TAG that `tagged` answers. False: there is
    nothing to do now.
    """
    mine = iser_at(iser)[0]
    conn = mine["conn"]
    while not work.hand_out(iser, wr):
        if not tx.has_room(conn):
            return False
        if not is_empty(iser + RELEASED_NEXT):
            _make_release(iser)
        elif mine["hello"] == HELLO_DUE:
            work.commit_hello(iser, False)
            mine["hello"] = HELLO_SAID
        elif mine["hello"] == HELLO_SAID:
            return False
        elif not is_empty(iser + BLOCKED) and may_send_unexpected(iser):
            _make_control(iser, pop(iser + BLOCKED))
        elif is_empty(conn + READY):
            return False
        else:
            found = _make_one(iser, wr)
            if found != MADE:
                return bool(found == NEEDS_TAG)
    return True


@nopython
def _make_release(iser: int) -> None:
    address = pop(iser + RELEASED_NEXT)
    stag = iser_task_at(iser_task_of(iser, address))[0]["write_stag"]
    work.commit(iser, KIND_RELEASE, 0, 0, token_of(TOKEN_TASK, address), 0, stag)
    iser_at(iser)[0]["released"] += 1


@nopython
def _make_one(iser: int, wr: int) -> int:
    """Make what stands first in line, if that can be."""
    conn = iser_at(iser)[0]["conn"]
    token = first(conn + READY)
    address = token_address(token)
    if token_kind(token) == TOKEN_CONTROL:
        is_unexpected = load_8(address) & bhs.IMMEDIATE != 0
        if is_unexpected and not may_send_unexpected(iser):
            pop(conn + READY)
            push(iser + BLOCKED, address)
        elif may_send(iser):
            pop(conn + READY)
            _make_control(iser, address)
        else:
            return STUCK
        return MADE
    task = task_at(address)[0]
    if task["stage"] == STAGE_COMMAND:
        if not may_send(iser):
            return STUCK
        if _wants_tag(iser, address):
            _ask_tag(address, wr)
            return NEEDS_TAG
        _make_command(iser, address)
    elif task["stage"] == STAGE_UNSOLICITED:
        work.begin(iser, KIND_SEND)
        initiator_tx.make_unsolicited(conn, address)
    if task["stage"] == STAGE_NONE:
        pop(conn + READY)
        task["queued"] = 0
        complete_if_over(conn, address)
    return MADE


@nopython
def _make_control(iser: int, slot: int) -> None:
    """A request, or the answer to a ping, from its slot."""
    conn = iser_at(iser)[0]["conn"]
    work.begin(iser, KIND_SEND)
    itt = load_32_be(slot + bhs.OFFSET_ITT)
    is_unexpected = load_8(slot) & bhs.IMMEDIATE != 0
    if itt == bhs.RESERVED_TAG:
        answer_sent(iser)
    else:
        address = task_of(conn, itt)
        if address:
            request_sent(iser, iser_task_of(iser, address), itt, is_unexpected)
    initiator_tx.make_control(conn, slot)


# --- commands --------------------------------------------------------------------------------


@nopython
def _immediate(conn: int, address: int) -> int:
    """How much data goes with the command itself."""
    mine, task = initiator_at(conn)[0], task_at(address)[0]
    if task["flags"] & bhs.FLAG_WRITE == 0 or task["ahs_length"] > 0 or not mine["immediate_data"]:
        return 0
    burst = min(mine["first_burst_length"], task["expected_length"])
    return initiator_tx.longest(conn, address, 0, burst)


@nopython
def _unsolicited(iser: int, address: int) -> int:
    """How much data goes without being read: immediate data, and Data-Outs where they are agreed on
    and the peer has receives for all of them.
    """
    conn = iser_at(iser)[0]["conn"]
    mine, task = initiator_at(conn)[0], task_at(address)[0]
    immediate = _immediate(conn, address)
    if task["flags"] & bhs.FLAG_WRITE == 0 or task["ahs_length"] > 0 or mine["initial_r2t"]:
        return immediate
    burst = int(min(mine["first_burst_length"], task["expected_length"]))
    count = data_outs_of(conn, burst - immediate)
    return burst if may_announce(iser, count) else immediate


@nopython
def _wants_tag(iser: int, address: int) -> bool:
    """Whether a command's data has to be opened to the peer first."""
    task, its = task_at(address)[0], iser_task_of(iser, address)
    if task["state"] == STATE_CANCELLED or iser_task_at(its)[0]["tag_state"] != TAG_NONE:
        return False
    if task["flags"] & bhs.FLAG_READ:
        return bool(task["expected_length"] > 0)
    return bool(task["expected_length"] > _unsolicited(iser, address))


@nopython
def _ask_tag(address: int, wr: int) -> None:
    task, request = task_at(address)[0], wr_at(wr)[0]
    zero_bytes(wr, WR_SGES)
    request["opcode"] = work.WR_TAG
    request["token"] = address
    # Of a gather list there is one piece: a tag opens one.
    where = piece_at(address, 0)[0] if task["run_count"] else task["data_address"]
    request["bind_addr"], request["bind_length"] = where, task["expected_length"]
    is_read = task["flags"] & bhs.FLAG_READ
    request["bind_access"] = (
        ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE if is_read else ACCESS_REMOTE_READ
    )


@nopython
def tagged(iser: int, token: int, stag: int, base: int, is_kept: bool) -> None:
    """Answer a WR_TAG: the tag, and where the memory's first byte is for the peer. `is_kept`: it is
    not to be invalidated. A `stag` of 0: there is none, so the command ends with -ENOBUFS.
    """
    conn = iser_at(iser)[0]["conn"]
    its, task = iser_task_at(iser_task_of(iser, token))[0], task_at(token)[0]
    if stag:
        its["tag_state"] = TAG_KEPT if is_kept else TAG_LIVE
        its["write_stag"], its["write_base"] = stag, base
        return
    task["state"] = STATE_CANCELLED
    task["result"] = -ENOBUFS
    task["stage"] = STAGE_NONE
    task["queued"] = 0
    pop(conn + READY)  # `work_next` showed it from there
    complete_if_over(conn, token)


@nopython
def _make_command(iser: int, address: int) -> None:
    """The SCSI Command. The tag of a WRITE names what lies behind the unsolicited data, as deployed
    peers have it: they read on from there.
    """
    conn = iser_at(iser)[0]["conn"]
    task, place = task_at(address)[0], iser_task_of(iser, address)
    its = iser_task_at(place)[0]
    send, header = work.begin(iser, KIND_SEND), tx.begin(conn)
    if task["state"] == STATE_CANCELLED:
        # Only its number counts: its target knows that it is over.
        task["stage"] = STAGE_NONE
        initiator_tx.fill_command(header, address, bhs.FLAG_FINAL, 0)
        initiator_tx.commit(conn, address, header, 0, 0)
        return
    unsolicited, immediate = _unsolicited(iser, address), _immediate(conn, address)
    is_read = task["flags"] & bhs.FLAG_READ != 0
    has_tag = its["tag_state"] != TAG_NONE
    if is_read and has_tag:
        work.name_read(send, its["write_stag"], its["write_base"])
    elif has_tag and task["expected_length"] > unsolicited:
        work.name_write(send, its["write_stag"], its["write_base"] + unsolicited)
    its["unsolicited"] = unsolicited
    task["sent"] = immediate
    is_final = immediate == unsolicited
    task["stage"] = STAGE_NONE if is_final else STAGE_UNSOLICITED
    flags = task["flags"] | (bhs.FLAG_FINAL if is_final else 0)
    command_sent(iser, place, task["itt"], data_outs_of(conn, unsolicited - immediate))
    initiator_tx.fill_command(header, address, flags, task["expected_length"])
    if task["ahs_length"] > 0:
        initiator_tx.commit_ahs(conn, address, header)
    else:
        initiator_tx.commit(conn, address, header, 0, immediate)


# --- completions -----------------------------------------------------------------------------


@nopython
def sent(iser: int, wc: int) -> int:
    """Take a completion of the send queue: 0, or what ends the connection."""
    conn, done = iser_at(iser)[0]["conn"], wc_at(wc)[0]
    broken = work.failure(done["status"])
    if broken:
        return broken
    while work.is_over(conn, done["token"]):
        kind = send_at(work.send_of(iser, port_at(conn)[0]["tx_sent"]))[0]["kind"]
        token = work.retire(conn)
        address = token_address(token)
        if kind == KIND_RELEASE:
            iser_task_at(iser_task_of(iser, address))[0]["tag_state"] = TAG_NONE
        if token_kind(token) == TOKEN_CONTROL:
            control_give(conn, address)
        elif token_kind(token) == TOKEN_TASK:
            task_at(address)[0]["tx_pending"] -= 1
            complete_if_over(conn, address)
    return 0


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
    stag = int(done["invalidated_rkey"]) if done["flags"] & WC_WITH_INV else 0
    push(iser + UNPOSTED, done["token"])
    outcome = _message(iser, message, length, stag)
    if outcome < 0:
        port_at(conn)[0]["error"] = outcome
    return outcome


@nopython
def _message(iser: int, message: int, length: int, stag: int) -> int:
    mine = iser_at(iser)[0]
    if mine["hello"] == HELLO_SAID:
        return _hello_reply(iser, message, length)
    size = pdu_length(message, length)
    if size < 0:
        return size
    conn = mine["conn"]
    header = message + ISER_HEADER_LENGTH
    opcode = load_8(header) & bhs.OPCODE_MASK
    if opcode in (DATA_IN, R2T):
        return OPCODE  # their work is done by RDMA Write and RDMA Read (RFC 7145 §7)
    itt = load_32_be(header + bhs.OFFSET_ITT)
    address = task_of(conn, itt)
    is_response = opcode == SCSI_RESPONSE and address != 0 and _is_open(address)
    if stag and not (is_response and _is_invalidated(iser, address, stag)):
        return FOREIGN_INVALIDATE
    if is_response:
        _end_data(iser, header, address)
    if address:
        response_here(iser, iser_task_of(iser, address), itt)
    if opcode == REJECTION:
        rejected(iser, header, size)
    return feed(conn, header, size)


@nopython
def _is_open(address: int) -> bool:
    """Whether a task is a command that has no Response yet."""
    task = task_at(address)[0]
    if task["kind"] != KIND_SCSI:
        return False
    return bool(task["state"] == STATE_ACTIVE or task["state"] == STATE_CANCELLED)


@nopython
def _is_invalidated(iser: int, address: int, stag: int) -> bool:
    """Take notice that a Response invalidated its command's tag; False: that was another's."""
    if iser_at(iser)[0]["remote_invalidate"] == 0:
        return False
    its = iser_task_at(iser_task_of(iser, address))[0]
    if its["tag_state"] != TAG_LIVE or its["write_stag"] != stag:
        return False
    its["tag_state"] = TAG_NONE
    iser_at(iser)[0]["invalidated"] += 1
    return True


@nopython
def _end_data(iser: int, header: int, address: int) -> None:
    """A command has its Response: how much was written to its memory, by the residual count, and
    the tag is to go if the Response left it.
    """
    task = task_at(address)[0]
    if task["flags"] & bhs.FLAG_READ:
        missing = 0
        if load_8(header + bhs.OFFSET_FLAGS) & bhs.FLAG_UNDERFLOW:
            missing = load_32_be(header + bhs.OFFSET_RESIDUAL_COUNT)
        task["received"] = max(0, task["expected_length"] - missing)
    _release(iser, address, iser_task_of(iser, address))


@nopython
def _hello_reply(iser: int, message: int, length: int) -> int:
    """The answer to our Hello (RFC 7145 §5.1.3): 0, or HELLO if it is none or a refusal."""
    if length < ISER_HEADER_LENGTH:
        return SHORT_SEND
    first_byte, versions = load_8(message), load_8(message + OFFSET_VERSIONS)
    if first_byte & OPCODE_MASK != HELLO_REPLY or first_byte & REJECT:
        return HELLO
    if versions & VERSION_MASK != VERSION:
        return HELLO
    iser_at(iser)[0]["hello"] = HELLO_NONE
    return 0
