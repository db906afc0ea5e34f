"""How many PDUs an initiator may send (RFC 7145 §8.1): never more unexpected ones than the target
has receives for, nor more of all kinds. A PDU counts until the response that says that the target
is done with it; the answer to a ping, which gets none, until that of a request sent after it.
"""

from typing import Final

from iscsi.wire import bhs
from iscsi.wire.initiator_task import task_of
from iscsi.wire.iser.initiator_tags import iser_task_of
from iscsi.wire.iser.records import iser_at, iser_task_at
from iscsi.wire.port import port_at
from shm.jit import nopython
from shm.memory import load_8, load_32_be

DATA_OUT: Final = int(bhs.Opcode.DATA_OUT)
NOP_OUT: Final = int(bhs.Opcode.NOP_OUT)


@nopython
def may_send(iser: int) -> bool:
    """Whether the target has a receive for another PDU."""
    mine = iser_at(iser)[0]
    return bool(mine["pdu_limit"] == 0 or mine["pdus"] < mine["pdu_limit"])


@nopython
def may_send_unexpected(iser: int) -> bool:
    """Whether it has one for an unexpected PDU."""
    mine = iser_at(iser)[0]
    limit = mine["unexpected_limit"]
    return may_send(iser) and bool(limit == 0 or mine["unexpected"] < limit)


@nopython
def may_announce(iser: int, data_outs: int) -> bool:
    """Whether it has receives for a command and so many unsolicited Data-Outs behind it."""
    mine = iser_at(iser)[0]
    if mine["pdu_limit"] and mine["pdus"] + 1 + data_outs > mine["pdu_limit"]:
        return False
    limit = mine["unexpected_limit"]
    return bool(limit == 0 or mine["unexpected"] + data_outs <= limit)


@nopython
def data_outs_of(conn: int, length: int) -> int:
    """How many Data-Outs `length` bytes make."""
    longest = port_at(conn)[0]["peer_max_recv_data_segment_length"]
    return int((length + longest - 1) // longest)


@nopython
def _count(iser: int, unexpected: int, pdus: int) -> None:
    mine = iser_at(iser)[0]
    mine["unexpected"] += unexpected
    mine["pdus"] += pdus


@nopython
def _mark(iser: int, itt: int) -> None:
    """The answers sent so far are over when this request is."""
    mine = iser_at(iser)[0]
    if mine["unmarked"] and mine["mark"] == 0:
        mine["marked"], mine["unmarked"] = mine["unmarked"], 0
        mine["mark"] = itt + 1


@nopython
def command_sent(iser: int, its: int, itt: int, data_outs: int) -> None:
    """A command goes out, with so many unsolicited Data-Outs to follow."""
    task = iser_task_at(its)[0]
    task["is_sent"], task["is_unexpected"] = 1, 0
    task["data_outs"] = data_outs
    _count(iser, data_outs, 1 + data_outs)
    _mark(iser, itt)


@nopython
def request_sent(iser: int, its: int, itt: int, is_unexpected: bool) -> None:
    """A request that is no command goes out; of a text in several pieces, another piece."""
    task = iser_task_at(its)[0]
    unexpected = 1 if is_unexpected else 0
    if task["is_sent"]:
        return
    task["is_sent"], task["is_unexpected"] = 1, unexpected
    task["data_outs"] = 0
    _count(iser, unexpected, 1)
    _mark(iser, itt)


@nopython
def answer_sent(iser: int) -> None:
    """An answer to a ping goes out."""
    iser_at(iser)[0]["unmarked"] += 1
    _count(iser, 1, 1)


@nopython
def response_here(iser: int, its: int, itt: int) -> None:
    """A request has a response: the target has its receives back."""
    mine, task = iser_at(iser)[0], iser_task_at(its)[0]
    if task["is_sent"]:
        _count(iser, -task["data_outs"] - task["is_unexpected"], -1 - task["data_outs"])
        task["is_sent"] = 0
    if mine["mark"] == itt + 1:
        _count(iser, -mine["marked"], -mine["marked"])
        mine["marked"], mine["mark"] = 0, 0


@nopython
def data_out_rejected(iser: int, its: int) -> None:
    """A Data-Out of a command was rejected, so that its receive is back before the Response."""
    task = iser_task_at(its)[0]
    if task["is_sent"] and task["data_outs"] > 0:
        task["data_outs"] -= 1
        _count(iser, -1, -1)


@nopython
def answer_rejected(iser: int) -> None:
    """An answer to a ping was rejected: one of those sent last, if there is one."""
    mine = iser_at(iser)[0]
    if mine["unmarked"] > 0:
        mine["unmarked"] -= 1
    elif mine["marked"] > 0:
        mine["marked"] -= 1
    else:
        return
    _count(iser, -1, -1)


@nopython
def rejected(iser: int, header: int, size: int) -> None:
    """A Reject has the header of a PDU of ours in its data (RFC 7143 §11.17): its receive is back,
    and what was waited for to say so may never come.
    """
    theirs = header + bhs.BHS_LENGTH + 4 * load_8(header + bhs.OFFSET_TOTAL_AHS_WORDS)
    if theirs + bhs.BHS_LENGTH > header + size:
        return
    opcode, itt = load_8(theirs) & bhs.OPCODE_MASK, load_32_be(theirs + bhs.OFFSET_ITT)
    if itt == bhs.RESERVED_TAG:
        if opcode == NOP_OUT:
            answer_rejected(iser)
        return
    address = task_of(iser_at(iser)[0]["conn"], itt)
    if address == 0:
        return
    its = iser_task_of(iser, address)
    if opcode == DATA_OUT:
        data_out_rejected(iser, its)
    else:
        response_here(iser, its, itt)
