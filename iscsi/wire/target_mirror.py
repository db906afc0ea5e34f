"""The target's upper half of the datamover cut (RFC 5047's primitives over `iscsi.wire.mover`): a
TARGET of the host's own, with the same tasks, that takes EVENTs where another takes PDUs, and makes
POSTs (`target_mirror_post`). What a post may still use is kept until its event.
"""

import errno
from typing import Final

from iscsi.wire import bhs
from iscsi.wire import sequencing as sn
from iscsi.wire.lun import lun_number
from iscsi.wire.mover import IS_COMMAND, ONE_TASK, QUERY, REFUSE, event_at
from iscsi.wire.port import (
    CONTROL_CREDIT,
    CONTROL_DATA,
    CONTROL_DATA_LENGTH,
    EVENTS,
    control_give,
    control_take,
    port_at,
    push,
)
from iscsi.wire.sense import Asc, SenseKey
from iscsi.wire.target_block import TargetLimits
from iscsi.wire.target_command import (
    begin_command,
    command_data,
    command_here,
    data_out_here,
    spoil,
)
from iscsi.wire.target_command_header import extended_cdb, keep_cdb
from iscsi.wire.target_mover import SENSE_MASK
from iscsi.wire.target_posts import (
    ABORT_FREE,
    ABORT_OVER,
    ABORT_POSTED,
    ABORT_SIZE,
    POST_NONE,
    WORD_MASK,
    abort_at,
    abort_of,
    add_abort,
    add_done,
    add_gate,
    build_mirror_part,
    mirror_at,
    mirror_parts,
)
from iscsi.wire.target_task import (
    STATE_SENT,
    abort,
    free_if_sent,
    target_at,
    task_at,
    task_of,
)
from shm.atomics import store_release
from shm.jit import nopython
from shm.memory import copy_bytes, load_8, load_32_be, load_64_be, store_64

EAGAIN: Final = errno.EAGAIN
EIO: Final = errno.EIO
ENOENT: Final = errno.ENOENT
EPROTO: Final = errno.EPROTO
NOP_OUT: Final = int(bhs.Opcode.NOP_OUT)
# SPC-4: the data did not come, and it was not the initiator's fault.
INTERNAL_TARGET_FAILURE: Final = int(SenseKey.HARDWARE_ERROR) << 16 | int(
    Asc.INTERNAL_TARGET_FAILURE
)

# The low four bits of `user_data`; above them the address of a task or slot, or a number.
KIND_BITS: Final = 4
KIND_MASK: Final = 15
KIND_GET: Final = 1
KIND_ANSWER: Final = 2
KIND_SILENT: Final = 3  # nothing of the host's is used: its event, if there is one, says nothing
KIND_CONTROL: Final = 4
KIND_ABORT: Final = 5
KIND_GATE: Final = 6
KIND_CANCEL: Final = 7


def mirror_size(limits: TargetLimits, lun_count: int) -> int:
    """Bytes of zeroed memory that `build_mirror` needs, from a multiple of 64 on."""
    parts = mirror_parts(limits.task_count, limits.port.control_slots, lun_count)
    return sum((size + 63) & ~63 for size in parts.values())


def build_mirror(
    conn: int, memory: int, limits: TargetLimits, home: int, *, serves_units: bool = False
) -> None:
    """Make a TARGET from `build_target`, with the same limits, a datamover's upper half.

    `home` is the start of the memory, with the TARGET's block in it, that posts name by offsets.
    `serves_units`: the engine has units of its own, so it must know every gate.
    """
    lun_count = int(target_at(conn)[0]["lun_count"])
    counts = (limits.task_count, limits.port.control_slots, lun_count)
    at = {}
    for name, size in mirror_parts(*counts).items():
        at[name] = memory
        memory += (size + 63) & ~63
    build_mirror_part(at, home, *counts)
    mirror_at(at["mirror"])[0]["serves_units"] = serves_units
    target_at(conn)[0]["mirror"] = at["mirror"]


# --- what the engine shows -------------------------------------------------------------------


@nopython
def on_notify(conn: int, buffer: int, event: int) -> int:
    """Control_Notify: take a RECEIVE's event; afterwards its buffer is the caller's again.

    0; -EAGAIN: there is no room now, and the same is to be tried again after other events;
    -EPROTO: the engine shows what it should have refused.
    """
    mine, port = event_at(event)[0], port_at(conn)[0]
    data = bhs.BHS_LENGTH + 4 * load_8(buffer + bhs.OFFSET_TOTAL_AHS_WORDS)
    length = mine["length"] - data
    if length < 0:
        return -EPROTO
    if mine["arg1"] != IS_COMMAND:
        outcome = _on_control(conn, buffer, length, mine["arg0"])
    elif _is_aborted(conn, buffer, mine["arg2"]):
        outcome = 0
    else:
        port["rx_data_length"] = length
        outcome = _on_command(conn, buffer, buffer + data, mine["arg0"])
    if outcome == 0:
        port["rx_pdus"] += 1
    return outcome


@nopython
def _on_command(conn: int, header: int, data: int, remote: int) -> int:
    """Begin a command and give it what came with it, as if that were immediate data."""
    itt = load_32_be(header + bhs.OFFSET_ITT)
    more = extended_cdb(header, data - header - bhs.BHS_LENGTH)
    if more < 0 or task_of(conn, itt):
        return -EPROTO
    address = begin_command(conn, header, itt)
    if address == 0:
        return -EAGAIN
    keep_cdb(address, header, more)
    task = task_at(address)[0]
    task["remote"] = remote
    task["unsolicited"] = 0
    target_at(conn)[0]["commands"] += 1
    wanted = min(command_data(address), port_at(conn)[0]["rx_data_length"])
    copy_bytes(task["data_address"], data, wanted)
    command_here(conn, address)
    return 0


@nopython
def _on_control(conn: int, header: int, length: int, remote: int) -> int:
    """Keep a request for the session; an answered ping is only a sign of life."""
    mirror = target_at(conn)[0]["mirror"]
    if load_8(header) & bhs.OPCODE_MASK == NOP_OUT:
        add_done(mirror, remote)
        return 0
    if length > port_at(conn)[0]["control_data_length"]:
        return -EPROTO
    slot = control_take(conn)
    if slot == 0:
        return -EAGAIN
    copy_bytes(slot, header, bhs.BHS_LENGTH)
    copy_bytes(slot + CONTROL_DATA, header + bhs.BHS_LENGTH, length)
    store_64(slot + CONTROL_DATA_LENGTH, length)
    store_64(slot + CONTROL_CREDIT, remote)  # until `control_done`
    push(conn + EVENTS, slot)
    return 0


@nopython
def _is_aborted(conn: int, header: int, aborts: int) -> bool:
    """Whether a command was shown before an ABORT that has ended it in the engine since, or will.
    `aborts` names the newest that had been carried out when it was shown.
    """
    mine = mirror_at(target_at(conn)[0]["mirror"])[0]
    if mine["abort_number"] & WORD_MASK == aborts:
        return False
    for index in range(mine["abort_count"]):
        place = mine["aborts"] + ABORT_SIZE * index
        entry = abort_at(place)[0]
        if entry["number"] == 0 or not sn.is_after(entry["number"] & WORD_MASK, aborts):
            continue
        if _names(place, header):
            mine["dropped"] += 1
            return True
    return False


@nopython
def _names(entry: int, header: int) -> bool:
    """Whether an ABORT is about this command, as `target_task.abort_before` chooses."""
    mine = abort_at(entry)[0]
    if mine["flags"] & (QUERY | REFUSE):
        return False
    if mine["flags"] & ONE_TASK:
        return bool(load_32_be(header + bhs.OFFSET_ITT) == mine["itt"])
    is_immediate = 1 if load_8(header) & bhs.IMMEDIATE else 0
    cmd_sn = load_32_be(header + bhs.OFFSET_CMD_SN)
    if mine["cmd_sn"] >= 0 and sn.distance(cmd_sn, mine["cmd_sn"]) < 1 - is_immediate:
        return False
    field = load_64_be(header + bhs.OFFSET_LUN)
    return bool(mine["lun"] == -1 or lun_number(field) == mine["lun"])


# --- what became of posts --------------------------------------------------------------------


@nopython
def on_event(conn: int, event: int) -> None:
    """Data_Completion_Notify and the like: a post of `post_peek` is over, in whatever way."""
    mine = event_at(event)[0]
    kind, named = mine["user_data"] & KIND_MASK, mine["user_data"] & ~KIND_MASK
    if kind == KIND_SILENT:
        return
    mirror = mirror_at(target_at(conn)[0]["mirror"])[0]
    mirror["posts"] -= 1
    if kind == KIND_GET:
        _on_data(conn, named, mine["status"], mine["arg0"])
    elif kind == KIND_ANSWER:
        task_at(named)[0]["tx_pending"] -= 1
        free_if_sent(conn, named)
    elif kind == KIND_CONTROL:
        control_give(conn, named)
    elif kind == KIND_ABORT:
        _on_aborted(conn, named >> KIND_BITS, mine["arg0"])
    else:
        mirror["unsettled"] -= 1


@nopython
def _on_data(conn: int, address: int, status: int, sense: int) -> None:
    """A GET is over: go on with its command, or end it, unless it was aborted meanwhile."""
    task = task_at(address)[0]
    task["tx_pending"] -= 1
    task["post"] = POST_NONE
    if task["state"] == STATE_SENT:
        free_if_sent(conn, address)
        return
    if status == -ENOENT:
        abort(conn, address)
        return
    port = port_at(conn)[0]
    port["rx_data_length"] = task["transfer"] - task["received"] if status == 0 else 0
    if status != 0:
        sense &= SENSE_MASK
        spoil(conn, address, sense if status == -EIO and sense else INTERNAL_TARGET_FAILURE)
    data_out_here(conn, address, True, False)


@nopython
def _on_aborted(conn: int, number: int, count: int) -> None:
    mirror = target_at(conn)[0]["mirror"]
    mine = mirror_at(mirror)[0]
    place = abort_of(mirror, number)
    if place == 0 or abort_at(place)[0]["stage"] != ABORT_POSTED:
        return
    mine["aborts_open"] -= 1
    mine["unsettled"] -= 1
    entry = abort_at(place)[0]
    entry["count"] = count
    entry["stage"] = ABORT_OVER if entry["is_asked"] else ABORT_FREE


# --- for the session above -------------------------------------------------------------------


@nopython
def ask_abort(conn: int, itt: int, ref_cmd_sn: int, cmd_sn: int) -> int:
    """ABORT TASK of a task that is not known here (RFC 7143 §11.5.5): the engine may have it, or it
    has not come, and then counts as received. A number for `abort_answer`, or 0: no room.
    """
    mirror = target_at(conn)[0]["mirror"]
    number = add_abort(mirror, cmd_sn << 32 | ref_cmd_sn, -1, ONE_TASK, itt)
    if number:
        abort_at(abort_of(mirror, number))[0]["is_asked"] = 1
    return number


@nopython
def abort_answer(conn: int, number: int) -> int:
    """Whether the task of `ask_abort` was there or still to come: 1 or 0, once; -EAGAIN: wait."""
    place = abort_of(target_at(conn)[0]["mirror"], number)
    if place == 0:
        return 0
    entry = abort_at(place)[0]
    if entry["stage"] != ABORT_OVER:
        return -EAGAIN
    entry["stage"] = ABORT_FREE
    return 1 if entry["count"] > 0 else 0


@nopython
def ask_tasks(conn: int, lun: int, itt: int, flags: int) -> int:
    """Ask for the engine's open tasks of a LUN and a tag, -1 for any; `flags`: 0 or OLDEST. A
    number for `tasks_answer`, or 0: no room.
    """
    mirror = target_at(conn)[0]["mirror"]
    number = add_abort(mirror, lun, -1, QUERY | flags, itt)
    if number:
        abort_at(abort_of(mirror, number))[0]["is_asked"] = 1
    return number


@nopython
def tasks_answer(conn: int, number: int) -> int:
    """What `ask_tasks` was told, once: a count, or a task's id or -1; -EAGAIN: wait."""
    place = abort_of(target_at(conn)[0]["mirror"], number)
    if place == 0:
        return 0
    entry = abort_at(place)[0]
    if entry["stage"] != ABORT_OVER:
        return -EAGAIN
    entry["stage"] = ABORT_FREE
    return int(entry["count"])


@nopython
def set_gate(conn: int, lun: int, gate: int) -> None:
    """Set a nexus' word for a unit; in the engine it holds once `unsettled` is 0."""
    mine = target_at(conn)[0]
    store_release(mine["nexus"] + 8 * lun, gate)
    if mine["mirror"] and mirror_at(mine["mirror"])[0]["serves_units"]:
        add_gate(mine["mirror"], lun)


@nopython
def unsettled(conn: int) -> int:
    """ABORTs, CANCELs and GATEs that the engine has not said are done."""
    return int(mirror_at(target_at(conn)[0]["mirror"])[0]["unsettled"])


@nopython
def posts_open(conn: int) -> int:
    """Posts whose events are still to come; only then may the block's memory go."""
    return int(mirror_at(target_at(conn)[0]["mirror"])[0]["posts"])
