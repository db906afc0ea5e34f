"""What an initiator's user asks of a connection in the full feature phase: commands, control PDUs,
completions. CmdSN is given out here, when a request is accepted, and the ready queue keeps that
order on the wire (RFC 7143 §4.2.2.1). Refusals are -errno and change nothing.
"""

import errno
from typing import Final

from iscsi.wire import bhs, rx
from iscsi.wire import sequencing as sn
from iscsi.wire.initiator_task import (
    COMPLETED,
    KIND_CONTROL,
    KIND_NOP,
    KIND_SCSI,
    STAGE_COMMAND,
    STATE_ACTIVE,
    STATE_CANCELLED,
    STATE_DONE,
    complete_if_over,
    free_task,
    initiator_at,
    make_ready,
    new_task,
    task_at,
    task_of,
)
from iscsi.wire.mover import VECTORS_MAX
from iscsi.wire.port import (
    EVENTS,
    READY,
    TOKEN_CONTROL,
    control_free_count,
    control_give,
    control_store,
    is_empty,
    pop,
    port_at,
    push,
    token_of,
)
from iscsi.wire.runs import overlap, run_at, total
from iscsi.wire.scsi import Operation
from shm.jit import nopython
from shm.memory import (
    load_8,
    load_32_be,
    load_64,
    store_8,
    store_16_be,
    store_32_be,
    store_64_be,
    zero_bytes,
)

EAGAIN: Final = errno.EAGAIN
EINVAL: Final = errno.EINVAL
ENOENT: Final = errno.ENOENT
ECANCELED: Final = errno.ECANCELED
EMSGSIZE: Final = errno.EMSGSIZE
NOP_OUT: Final = int(bhs.Opcode.NOP_OUT)
READ_10: Final = int(Operation.READ_10)
READ_16: Final = int(Operation.READ_16)
WRITE_10: Final = int(Operation.WRITE_10)
WRITE_16: Final = int(Operation.WRITE_16)
MAX_AHS_LENGTH: Final = bhs.MAX_AHS_LENGTH
DIRECTIONS: Final = bhs.FLAG_READ | bhs.FLAG_WRITE
COMMAND_FLAGS: Final = DIRECTIONS | bhs.ATTRIBUTE_MASK
MAX_TRANSFER_LENGTH: Final = 0xFFFFFFFF
# Kept free for answers to the target's pings; of a mirror, for what comes in lent buffers.
CONTROL_RESERVE: Final = 2
MIRROR_RESERVE: Final = 6


@nopython
def window_is_open(conn: int) -> bool:
    """Whether the target takes another non-immediate command."""
    mine = initiator_at(conn)[0]
    return not sn.is_after(mine["cmd_sn"], mine["max_cmd_sn"])


@nopython
def _take_cmd_sn(conn: int) -> int:
    mine = initiator_at(conn)[0]
    cmd_sn = int(mine["cmd_sn"])
    mine["cmd_sn"] = sn.add(cmd_sn, 1)
    return cmd_sn


@nopython
def submit(
    conn: int, lun: int, cdb: int, flags: int, expected_length: int, data: int, user_data: int
) -> int:
    """Accept a SCSI command and return its initiator task tag.

    `lun` is the eight-byte field, `cdb` the address of 16 bytes, `flags` FLAG_READ or FLAG_WRITE
    (or neither, for no data) with the task attribute. `expected_length` bytes at `data` belong to
    the command until it completes; of a READ that ends short, what lies behind `received` is
    undefined. -EAGAIN: the command window is closed or every task is taken. -EINVAL: both
    directions, data without a direction, or too much. A negative Violation: the connection is over.
    """
    port = port_at(conn)[0]
    if port["error"]:
        return int(port["error"])
    direction = flags & DIRECTIONS
    if flags & ~COMMAND_FLAGS or direction == DIRECTIONS:
        return -EINVAL
    if not 0 <= expected_length <= MAX_TRANSFER_LENGTH or (expected_length and not direction):
        return -EINVAL
    address = new_task(conn, KIND_SCSI, user_data) if window_is_open(conn) else 0
    if address == 0:
        return -EAGAIN
    task = task_at(address)[0]
    task["flags"] = flags
    task["lun"] = lun
    task["cdb0"] = load_64(cdb)
    task["cdb1"] = load_64(cdb + 8)
    task["expected_length"] = expected_length
    task["data_address"] = data
    task["cmd_sn"] = _take_cmd_sn(conn)
    task["stage"] = STAGE_COMMAND
    initiator_at(conn)[0]["last"] = address
    make_ready(conn, address)
    return int(task["itt"])


@nopython
def attach_ahs(conn: int, itt: int, ahs: int, length: int) -> int:
    """Give the command that was just submitted additional header segments (RFC 7143 §11.2.2).

    They are whole words, two or more, in memory the transport reads, and the command's
    until it completes. 0, or -EINVAL.
    """
    address = task_of(conn, itt)
    if address == 0 or length & 3 or not 8 <= length <= MAX_AHS_LENGTH:
        return -EINVAL
    task_at(address)[0]["ahs"] = ahs
    task_at(address)[0]["ahs_length"] = length
    return 0


@nopython
def submit_runs(
    conn: int,
    lun: int,
    cdb: int,
    flags: int,
    expected_length: int,
    runs: int,
    count: int,
    user_data: int,
) -> int:
    """`submit` for data in `count` pieces, in the order of its bytes: RUN[count] at `runs`.

    List and memory belong to the command until it completes. Also -EINVAL: more pieces than can be,
    one without a byte, others than `expected_length` bytes in all, pieces of a READ that overlap.
    """
    mine = initiator_at(conn)[0]
    most = mine["vectors_max"] if mine["is_mirror"] else VECTORS_MAX
    if not 1 <= count <= most or total(runs, count) != expected_length:
        return -EINVAL
    if flags & bhs.FLAG_READ and overlap(runs, count):
        return -EINVAL
    tag = submit(conn, lun, cdb, flags, expected_length, run_at(runs)[0]["address"], user_data)
    if tag >= 0:
        task = task_at(task_of(conn, tag))[0]
        task["runs"] = runs
        task["run_count"] = count
    return tag


@nopython
def block_cdb(cdb: int, is_write: bool, lba: int, blocks: int) -> None:
    """Build READ or WRITE at 16 bytes of memory: the 10-byte form where it fits, else 16."""
    zero_bytes(cdb, 16)
    if lba + blocks <= MAX_TRANSFER_LENGTH and blocks <= 0xFFFF:
        store_8(cdb, WRITE_10 if is_write else READ_10)
        store_32_be(cdb + 2, lba)
        store_16_be(cdb + 7, blocks)
    else:
        store_8(cdb, WRITE_16 if is_write else READ_16)
        store_64_be(cdb + 2, lba)
        store_32_be(cdb + 10, blocks)


@nopython
def predict(conn: int) -> int:
    """Data bytes that will follow one header if the only open command, a READ, goes as expected.

    Then the header can be received straight to `want_address` (`want_length` bytes) and the data to
    the command's own buffer (its task is INITIATOR's `last`). Whatever really came, `rx_bytes` of
    both places in order takes it: data moves only towards the buffer's start. 0: nothing to expect.
    """
    mine, port = initiator_at(conn)[0], port_at(conn)[0]
    if mine["active"] != 1 or port["header_digest"] or not rx.is_between_pdus(conn):
        return 0
    task = task_at(mine["last"])[0] if mine["last"] else task_at(mine["tasks"])[0]
    length = int(task["expected_length"])
    if task["state"] != STATE_ACTIVE or task["kind"] != KIND_SCSI or task["received"]:
        return 0
    if task["run_count"] or task["flags"] & bhs.FLAG_READ == 0:
        return 0
    if length > port["max_recv_data_segment_length"]:
        return 0
    return length


@nopython
def send_control(conn: int, header: int, data: int, length: int, user_data: int) -> int:
    """Send a request that is not a SCSI command: its 48-byte header and data are copied.

    ITT ffffffff in the header asks for a new tag, any other continues a Text exchange. CmdSN,
    ExpStatSN and DataSegmentLength are filled in. Returns the tag. Answers show up in
    `control_next`, except a NOP-In's, which completes like a command. -EAGAIN: the window is closed
    or no slot is free; -EMSGSIZE: too much data; -ENOENT: the tag to continue names no request.
    """
    port = port_at(conn)[0]
    if port["error"]:
        return int(port["error"])
    if not 0 <= length <= port["control_data_length"]:
        return -EMSGSIZE
    if length > port["peer_max_recv_data_segment_length"]:
        return -EMSGSIZE
    is_immediate = load_8(header) & bhs.IMMEDIATE != 0
    reserve = MIRROR_RESERVE if initiator_at(conn)[0]["is_mirror"] else CONTROL_RESERVE
    if control_free_count(conn) <= reserve or not (is_immediate or window_is_open(conn)):
        return -EAGAIN
    itt = load_32_be(header + bhs.OFFSET_ITT)
    kind = KIND_NOP if load_8(header) & bhs.OPCODE_MASK == NOP_OUT else KIND_CONTROL
    address = new_task(conn, kind, user_data) if itt == bhs.RESERVED_TAG else task_of(conn, itt)
    if address == 0:
        return -EAGAIN if itt == bhs.RESERVED_TAG else -ENOENT
    task = task_at(address)[0]
    slot = control_store(conn, header, data, length)
    task["cmd_sn"] = initiator_at(conn)[0]["cmd_sn"] if is_immediate else _take_cmd_sn(conn)
    store_32_be(slot + bhs.OFFSET_ITT, task["itt"])
    store_32_be(slot + bhs.OFFSET_CMD_SN, task["cmd_sn"])
    push(conn + READY, token_of(TOKEN_CONTROL, slot))
    return int(task["itt"])


@nopython
def control_done(conn: int) -> None:
    """The session is done with the PDU `control_next` showed."""
    if not is_empty(conn + EVENTS):
        control_give(conn, pop(conn + EVENTS))


@nopython
def completed_next(conn: int) -> int:
    """Address of the next completed TASK, or 0. It is the caller's until `release`."""
    return 0 if is_empty(conn + COMPLETED) else pop(conn + COMPLETED)


@nopython
def release(conn: int, address: int) -> None:
    """Give a completed task back."""
    if task_at(address)[0]["state"] == STATE_DONE:
        free_task(conn, address)


@nopython
def cancel(conn: int, itt: int) -> int:
    """Complete a command with -ECANCELED without an answer; what still comes for it is discarded.

    For after a task management response that ended it (RFC 7143 §11.5): once it is released, a PDU
    with its tag is a violation. -ENOENT if the tag names no open command.
    """
    address = task_of(conn, itt)
    if address == 0 or task_at(address)[0]["state"] != STATE_ACTIVE:
        return -ENOENT
    task = task_at(address)[0]
    task["state"] = STATE_CANCELLED
    task["result"] = -ECANCELED
    if initiator_at(conn)[0]["is_mirror"]:
        make_ready(conn, address)  # its buffer is the lower half's until that has let go of it
    complete_if_over(conn, address)
    return 0
