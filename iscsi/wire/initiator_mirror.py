"""The initiator's upper half of the datamover cut. The session works with an INITIATOR record as
over a byte stream: it submits, cancels, takes completions and control PDUs. Here its tasks become
POSTs instead of PDUs, and EVENTs take the place of received bytes; whoever owns the connection
makes the PDUs (`iscsi.wire.initiator_mover`). CmdSN and the command window are this side's.
"""

import errno
from typing import Final

from iscsi.wire import bhs
from iscsi.wire import sequencing as sn
from iscsi.wire.initiator_mover import WORD_MASK
from iscsi.wire.initiator_post import NOP_OUT
from iscsi.wire.initiator_rx import end_control_task
from iscsi.wire.initiator_task import (
    STAGE_COMMAND,
    STAGE_NONE,
    STATE_ACTIVE,
    STATE_CANCELLED,
    STATE_ENDED,
    VECTOR_SIZE,
    complete_if_over,
    initiator_at,
    task_at,
    task_of,
)
from iscsi.wire.mover import (
    AHS_SHIFT,
    CANCEL,
    COMMAND,
    CONTROL,
    VECTOR_SHIFT,
    WINDOW,
    event_at,
    post_at,
    vector_at,
)
from iscsi.wire.port import (
    CONTROL_DATA_LENGTH,
    EVENTS,
    READY,
    TOKEN_CONTROL,
    control_free_count,
    control_give,
    control_store,
    control_take,
    first,
    is_empty,
    pop,
    port_at,
    push,
    token_address,
    token_kind,
    token_of,
)
from iscsi.wire.runs import RUN_SIZE, run_at
from shm.jit import nopython
from shm.memory import (
    load_8,
    load_32_be,
    load_64,
    store_8,
    store_32_be,
    store_64_be,
    zero_bytes,
)

# The low bits of a POST's user_data; the rest is the address of a task or of a control slot.
KIND_MASK: Final = 15
OF_COMMAND: Final = 1
OF_CONTROL: Final = 2
OF_CANCEL: Final = 3
OF_RECEIVE: Final = 4  # the receive buffers are their owner's

EAGAIN: Final = errno.EAGAIN
# Statuses by which one post is refused; any other negative one means the connection.
EINVAL: Final = errno.EINVAL
EFAULT: Final = errno.EFAULT
EEXIST: Final = errno.EEXIST
EMSGSIZE: Final = errno.EMSGSIZE
ENOBUFS: Final = errno.ENOBUFS


@nopython
def post_peek(conn: int, home: int, post: int) -> bool:
    """Fill in the next POST; `post_taken` says that it was posted. False: there is nothing to do.

    `home` is the address that offsets count from.
    """
    while not is_empty(conn + READY):
        token = first(conn + READY)
        address = token_address(token)
        if token_kind(token) == TOKEN_CONTROL:
            _fill_control(address, home, post)
            return True
        task = task_at(address)[0]
        if task["stage"] == STAGE_COMMAND:  # A cancelled one, too: its CmdSN has to be used.
            _fill_command(address, home, post)
            return True
        if task["stage"] == STAGE_NONE and task["state"] == STATE_CANCELLED and task["tx_pending"]:
            _fill_cancel(address, post)
            return True
        _leave_line(conn, address)
    return False


@nopython
def _leave_line(conn: int, address: int) -> None:
    pop(conn + READY)
    task_at(address)[0]["queued"] = 0
    complete_if_over(conn, address)


@nopython
def post_taken(conn: int) -> None:
    """The POST that `post_peek` showed is on its way."""
    token = first(conn + READY)
    if token_kind(token) == TOKEN_CONTROL:
        pop(conn + READY)
        port_at(conn)[0]["tx_pdus"] += 1
        return
    task = task_at(token_address(token))[0]
    if task["stage"] == STAGE_COMMAND:
        # Its buffer is not ours before its event.
        task["stage"] = STAGE_NONE
        task["tx_pending"] = 1
        port_at(conn)[0]["tx_pdus"] += 1
        if task["state"] == STATE_CANCELLED:
            return  # It stays in line, for its CANCEL.
    _leave_line(conn, token_address(token))


@nopython
def _fill_command(address: int, home: int, post: int) -> None:
    mine, task = post_at(post)[0], task_at(address)[0]
    mine["opcode"] = COMMAND
    mine["flags"] = 0
    mine["user_data"] = address | OF_COMMAND
    mine["address"] = task["data_address"]
    mine["length"] = task["expected_length"]
    mine["arg0"] = task["lun"]
    mine["arg1"] = task["itt"] | task["cmd_sn"] << 32
    mine["arg2"] = task["flags"] | task["ahs_length"] << AHS_SHIFT
    mine["more0"] = task["cdb0"]
    mine["more1"] = task["cdb1"]
    mine["more2"] = task["sense_address"] - home
    mine["more3"] = task["ahs"] - home if task["ahs_length"] > 0 else 0
    mine["more4"] = 0
    mine["more5"] = 0
    if task["run_count"]:
        _fill_vectors(address, home, post)


@nopython
def _fill_vectors(address: int, home: int, post: int) -> None:
    """Name a command's memory by a gather list, in the task's place for one."""
    mine, task = post_at(post)[0], task_at(address)[0]
    for index in range(task["run_count"]):
        run = run_at(task["runs"] + RUN_SIZE * index)[0]
        vector = vector_at(task["vectors"] + VECTOR_SIZE * index)[0]
        vector["region"] = 0
        vector["offset"] = run["address"]
        vector["length"] = run["length"]
    mine["address"] = 0
    mine["length"] = 0
    mine["arg2"] |= task["run_count"] << VECTOR_SHIFT
    mine["more4"] = task["vectors"] - home
    mine["more5"] = task["expected_length"]


@nopython
def _fill_control(slot: int, home: int, post: int) -> None:
    mine = post_at(post)[0]
    mine["opcode"] = CONTROL
    mine["flags"] = 0
    mine["user_data"] = slot | OF_CONTROL
    mine["address"] = 0
    mine["length"] = 0
    mine["arg0"] = 0
    mine["arg1"] = 0
    mine["arg2"] = load_64(slot + CONTROL_DATA_LENGTH)
    mine["more0"] = slot - home


@nopython
def _fill_cancel(address: int, post: int) -> None:
    mine = post_at(post)[0]
    mine["opcode"] = CANCEL
    mine["flags"] = 0
    mine["user_data"] = address | OF_CANCEL
    mine["address"] = 0
    mine["length"] = 0
    mine["arg0"] = 0
    mine["arg1"] = task_at(address)[0]["itt"]
    mine["arg2"] = 0


@nopython
def is_refusal(status: int) -> bool:
    """Whether a status is about one post only."""
    return status in (-EINVAL, -EFAULT, -EEXIST, -EMSGSIZE, -ENOBUFS)


@nopython
def take_window(conn: int, word: int) -> None:
    """Take over ExpCmdSN and MaxCmdSN, which never go back (RFC 7143 §4.2.2.1)."""
    mine = initiator_at(conn)[0]
    exp_cmd_sn, max_cmd_sn = word & WORD_MASK, (word >> 32) & WORD_MASK
    if sn.is_after(max_cmd_sn, mine["max_cmd_sn"]):
        mine["max_cmd_sn"] = max_cmd_sn
    if sn.is_after(exp_cmd_sn, mine["exp_cmd_sn"]):
        mine["exp_cmd_sn"] = exp_cmd_sn


@nopython
def on_event(conn: int, event: int) -> int:
    """Take an EVENT that is no RECEIVE's. 0, or the status that says that the connection is over:
    tasks without an answer keep their state then.
    """
    mine = event_at(event)[0]
    kind, address = mine["user_data"] & KIND_MASK, mine["user_data"] & ~KIND_MASK
    if mine["opcode"] == WINDOW:
        take_window(conn, mine["arg0"])
        return 0
    status = int(mine["status"])
    if kind == OF_COMMAND:
        return _command_over(conn, event, address)
    if kind == OF_CONTROL:
        return _control_over(conn, event, address)
    return 0 if status >= 0 or kind == OF_CANCEL else status


@nopython
def _command_over(conn: int, event: int, address: int) -> int:
    mine, task = event_at(event)[0], task_at(address)[0]
    status = int(mine["status"])
    task["tx_pending"] = 0
    if status == 0:
        port_at(conn)[0]["rx_pdus"] += 1
        take_window(conn, mine["arg2"])
        task["received"] = mine["length"]
        if task["state"] == STATE_ACTIVE:
            task["state"] = STATE_ENDED
            word = mine["arg0"]
            task["response"] = word & 0xFF
            task["status"] = (word >> 8) & 0xFF
            task["residual_flags"] = (word >> 16) & 0xFF
            task["sense_length"] = max(0, (word >> 24) - 2)
            task["residual_count"] = mine["arg1"]
    elif task["state"] == STATE_ACTIVE:
        if not is_refusal(status) or not _use_cmd_sn(conn, address):
            return status
        task["result"] = status
        task["state"] = STATE_CANCELLED
        task["tx_pending"] = 1
        return 0
    complete_if_over(conn, address)
    return 0


@nopython
def _use_cmd_sn(conn: int, address: int) -> bool:
    """Send a NOP-Out with the CmdSN and tag of a command that was refused: without it the target
    would wait for that CmdSN (RFC 7143 §4.2.2.1). The command ends with the answer. False: there is
    no room.
    """
    slot = control_take(conn)
    if slot == 0:
        return False
    task = task_at(address)[0]
    zero_bytes(slot, bhs.BHS_LENGTH)
    store_8(slot, NOP_OUT)
    store_8(slot + bhs.OFFSET_FLAGS, bhs.FLAG_FINAL)
    store_64_be(slot + bhs.OFFSET_LUN, task["lun"])
    store_32_be(slot + bhs.OFFSET_ITT, task["itt"])
    store_32_be(slot + bhs.OFFSET_TTT, bhs.RESERVED_TAG)
    store_32_be(slot + bhs.OFFSET_CMD_SN, task["cmd_sn"])
    push(conn + READY, token_of(TOKEN_CONTROL, slot))
    return True


@nopython
def _control_over(conn: int, event: int, slot: int) -> int:
    """A request was copied, or a ping answered."""
    mine = event_at(event)[0]
    status = int(mine["status"])
    is_ping = load_8(slot) & bhs.OPCODE_MASK == NOP_OUT
    is_immediate = load_8(slot) & bhs.IMMEDIATE != 0
    task = task_of(conn, load_32_be(slot + bhs.OFFSET_ITT))
    if status == -EAGAIN:  # the lower half has no slot now: its transport takes nothing
        push(conn + READY, token_of(TOKEN_CONTROL, slot))
        return 0
    control_give(conn, slot)
    # One that was refused leaves a gap in CmdSN, if it was to take one.
    if status < 0 and not (is_refusal(status) and is_immediate):
        return status
    if is_ping and task and task_at(task)[0]["state"] in (STATE_ACTIVE, STATE_CANCELLED):
        port_at(conn)[0]["rx_pdus"] += 1
        take_window(conn, mine["arg2"])
        if task_at(task)[0]["state"] == STATE_ACTIVE:
            task_at(task)[0]["state"] = STATE_ENDED
            task_at(task)[0]["result"] = status
        task_at(task)[0]["tx_pending"] = 0
        complete_if_over(conn, task)
    return 0


@nopython
def on_notify(conn: int, buffer: int, event: int) -> int:
    """Control_Notify: keep a PDU that came for the session (its RECEIVE's EVENT and buffer). 0, or
    -EAGAIN: there is no room for it now.
    """
    mine = event_at(event)[0]
    length = int(mine["length"]) - bhs.BHS_LENGTH
    if control_free_count(conn) == 0:
        return -EAGAIN
    port = port_at(conn)[0]
    slot = control_store(
        conn, buffer, buffer + bhs.BHS_LENGTH, max(0, min(length, port["control_data_length"]))
    )
    port["rx_pdus"] += 1
    take_window(conn, mine["arg2"])
    push(conn + EVENTS, slot)
    end_control_task(conn, slot, load_8(slot) & bhs.OPCODE_MASK)
    return 0
