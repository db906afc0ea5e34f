"""Unexpected PDUs at a target (RFC 7145 §8.1), in both directions: it never sends more Rejects,
Async Messages and pings than its initiator has receives for, and it takes no more immediate
requests and unsolicited Data-Outs than it has declared.
"""

from typing import Final

from iscsi.wire import bhs
from iscsi.wire import sequencing as sn
from iscsi.wire.iser.records import ISER_TASK_SIZE, iser_at, iser_task_at
from iscsi.wire.target_task import STATE_FREE, STATE_SENT, TASK_SIZE, target_at, task_at
from shm.jit import nopython
from shm.memory import load_8, load_32_be, load_64, store_64

NOP_IN: Final = int(bhs.Opcode.NOP_IN)
NOP_OUT: Final = int(bhs.Opcode.NOP_OUT)
DATA_OUT: Final = int(bhs.Opcode.DATA_OUT)
SCSI_COMMAND: Final = int(bhs.Opcode.SCSI_COMMAND)
ASYNC_MESSAGE: Final = int(bhs.Opcode.ASYNC_MESSAGE)
REJECT: Final = int(bhs.Opcode.REJECT)


# --- ours ------------------------------------------------------------------------------------


@nopython
def is_unexpected(header: int) -> bool:
    """Whether an initiator could not know that this PDU comes."""
    opcode = load_8(header) & bhs.OPCODE_MASK
    if opcode == NOP_IN:
        return load_32_be(header + bhs.OFFSET_ITT) == bhs.RESERVED_TAG
    return opcode in (REJECT, ASYNC_MESSAGE)


@nopython
def may_send_unexpected(iser: int) -> bool:
    """Whether the initiator has a receive for another one."""
    mine = iser_at(iser)[0]
    open_count = mine["pings"] + mine["marked"]
    return bool(mine["unexpected_limit"] == 0 or open_count < mine["unexpected_limit"])


@nopython
def unexpected_sent(iser: int, header: int) -> None:
    """One was made: a ping is over with its answer, others when their StatSN is acknowledged."""
    mine = iser_at(iser)[0]
    is_nop = load_8(header) & bhs.OPCODE_MASK == NOP_IN
    if is_nop and load_32_be(header + bhs.OFFSET_TTT) != bhs.RESERVED_TAG:
        mine["pings"] += 1
        return
    mine["marked"] += 1
    mine["mark"] = target_at(mine["conn"])[0]["stat_sn"]


@nopython
def peer_is_done(iser: int, header: int) -> None:
    """What a received PDU says of them: its ExpStatSN, and whether it answers a ping."""
    mine = iser_at(iser)[0]
    exp_stat_sn = load_32_be(header + bhs.OFFSET_EXP_STAT_SN)
    if mine["marked"] and not sn.is_after(mine["mark"], exp_stat_sn):
        mine["marked"] = 0
    is_nop = load_8(header) & bhs.OPCODE_MASK == NOP_OUT
    is_answer = is_nop and load_32_be(header + bhs.OFFSET_ITT) == bhs.RESERVED_TAG
    if mine["pings"] and is_answer:
        mine["pings"] -= 1


# --- the initiator's -------------------------------------------------------------------------


@nopython
def may_come(iser: int, header: int) -> bool:
    """Whether a received PDU is within what was declared."""
    mine = iser_at(iser)[0]
    if mine["own_limit"] == 0 or not _counts(header):
        return True
    return bool(_open_count(iser) < mine["own_limit"])


@nopython
def _counts(header: int) -> bool:
    if load_8(header) & bhs.OPCODE_MASK == DATA_OUT:
        return True
    if load_32_be(header + bhs.OFFSET_ITT) == bhs.RESERVED_TAG:
        return False  # The answer to a ping: those are bounded by the pings.
    return load_8(header) & bhs.IMMEDIATE != 0


@nopython
def _open_count(iser: int) -> int:
    mine = iser_at(iser)[0]
    count = 0
    for index in range(mine["own_limit"]):
        count += load_64(mine["immediates"] + 8 * index) != -1
    target = target_at(mine["conn"])[0]
    for index in range(mine["task_count"]):
        if task_at(target["tasks"] + TASK_SIZE * index)[0]["state"] in (STATE_FREE, STATE_SENT):
            continue
        its = iser_task_at(mine["tasks"] + ISER_TASK_SIZE * index)[0]
        count += its["data_outs"] + its["is_unexpected"]
    return int(count)


@nopython
def request_here(iser: int, header: int) -> None:
    """Keep the tag of an immediate request that is no command, until its response."""
    mine = iser_at(iser)[0]
    if not _counts(header) or load_8(header) & bhs.OPCODE_MASK in (DATA_OUT, SCSI_COMMAND):
        return
    for index in range(mine["own_limit"]):
        if load_64(mine["immediates"] + 8 * index) == -1:
            store_64(mine["immediates"] + 8 * index, load_32_be(header + bhs.OFFSET_ITT))
            return


@nopython
def request_over(iser: int, itt: int) -> None:
    """A PDU with this tag goes out: a request with it, if there is one, has its response."""
    mine = iser_at(iser)[0]
    for index in range(mine["own_limit"]):
        if load_64(mine["immediates"] + 8 * index) == itt:
            store_64(mine["immediates"] + 8 * index, -1)
            return
