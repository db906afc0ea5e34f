"""PDUs that are no SCSI Responses, at a target's lower half of the datamover cut: the host's go out
from slots of the engine, into which they are copied before they are judged; requests stay in theirs
until the host has seen them.
"""

import errno
from typing import Final

from iscsi.wire import bhs
from iscsi.wire.mover import CONTROL, post_at
from iscsi.wire.port import (
    CONTROL_CREDIT,
    CONTROL_DATA,
    READY,
    TOKEN_CONTROL,
    control_give,
    control_store,
    first,
    is_empty,
    port_at,
    push,
    queue_at,
    token_of,
)
from iscsi.wire.target_posts import PENDING, WAITING, WORD_MASK, ended
from iscsi.wire.target_task import open_window, target_at
from shm.jit import nopython
from shm.memory import load_8, load_64, store_8, store_64

EAGAIN: Final = errno.EAGAIN
EINVAL: Final = errno.EINVAL
EMSGSIZE: Final = errno.EMSGSIZE
ENOENT: Final = errno.ENOENT

# What MaxRecvDataSegmentLength can be (RFC 7143 §13.12).
SEGMENT_MIN: Final = 512
SEGMENT_MAX: Final = (1 << 24) - 1
# A control slot's CONTROL_CREDIT while the host looks at it, besides the credit itself.
SHOWN: Final = 2

NOP_IN: Final = int(bhs.Opcode.NOP_IN)
TASK_MANAGEMENT_RESPONSE: Final = int(bhs.Opcode.TASK_MANAGEMENT_RESPONSE)
TEXT_RESPONSE: Final = int(bhs.Opcode.TEXT_RESPONSE)
LOGOUT_RESPONSE: Final = int(bhs.Opcode.LOGOUT_RESPONSE)
LOGIN_RESPONSE: Final = int(bhs.Opcode.LOGIN_RESPONSE)
ASYNC_MESSAGE: Final = int(bhs.Opcode.ASYNC_MESSAGE)
REJECT: Final = int(bhs.Opcode.REJECT)


@nopython
def is_inside(offset: int, length: int, size: int) -> bool:
    """Whether `length` bytes from `offset` on lie in `size` bytes."""
    return 0 <= offset <= size and 0 <= length <= size - offset


@nopython
def control(conn: int, post: int, home: int, home_size: int, handle: int) -> int:
    """Send_Control of a PDU that is no SCSI Response; it waits while no slot is free."""
    mine, port = post_at(post)[0], port_at(conn)[0]
    length, longest = mine["arg2"] & WORD_MASK, mine["arg1"]
    if longest and not SEGMENT_MIN <= longest <= SEGMENT_MAX:
        return -EINVAL
    if longest:
        port["peer_max_recv_data_segment_length"] = longest
    if length > min(port["control_data_length"], port["peer_max_recv_data_segment_length"]):
        return -EMSGSIZE
    if not is_inside(mine["more0"], CONTROL_DATA + length, home_size):
        return -EINVAL
    header = home + mine["more0"]
    lower = target_at(conn)[0]["lower"]
    outcome = -EAGAIN if not is_empty(lower + WAITING) else send(conn, header, length)
    if outcome != -EAGAIN:
        return outcome
    push(lower + WAITING, handle)
    push(lower + WAITING, header)
    push(lower + WAITING, length)
    return PENDING


@nopython
def send(conn: int, header: int, length: int) -> int:
    """Copy a PDU and send it: 0, -EAGAIN, or -EINVAL for one that no host makes."""
    slot = control_store(conn, header, header + CONTROL_DATA, length)
    if slot == 0:
        return -EAGAIN
    # Only now: the host's memory may change at any time.
    opcode = load_8(slot) & bhs.OPCODE_MASK
    if not _is_plain(opcode) and not _ends_login(conn, opcode):
        control_give(conn, slot)
        return -EINVAL
    store_8(slot + bhs.OFFSET_TOTAL_AHS_WORDS, 0)
    push(conn + READY, token_of(TOKEN_CONTROL, slot))
    return 0


@nopython
def _ends_login(conn: int, opcode: int) -> bool:
    """Over a queue pair the last Login Response is the first PDU of the full feature phase, so that
    the receives for what follows it are posted before.
    """
    port = port_at(conn)[0]
    return bool(opcode == LOGIN_RESPONSE and port["tx_made"] == 0 and port["rx_pdus"] == 0)


@nopython
def _is_plain(opcode: int) -> bool:
    if opcode in (NOP_IN, TASK_MANAGEMENT_RESPONSE, TEXT_RESPONSE):
        return True
    return opcode in (LOGOUT_RESPONSE, ASYNC_MESSAGE, REJECT)


@nopython
def done(conn: int, index: int) -> int:
    """The host has seen a request: its slot and its place in the window are free."""
    port = port_at(conn)[0]
    if not 0 <= index < port["control_count"]:
        return -ENOENT
    slot = int(port["control_slots"] + index * port["control_stride"])
    credit = load_64(slot + CONTROL_CREDIT)
    if credit & SHOWN == 0:
        return -ENOENT
    store_64(slot + CONTROL_CREDIT, 0)
    if credit != SHOWN:
        open_window(conn)
    control_give(conn, slot)
    return 0


@nopython
def send_waiting(conn: int, lower: int) -> None:
    """Send the control PDUs that found no slot, as far as there are some now."""
    while not is_empty(lower + WAITING):
        queue = queue_at(lower + WAITING)[0]
        mask = queue["capacity"] - 1
        header = load_64(queue["slots"] + 8 * ((queue["head"] + 1) & mask))
        length = load_64(queue["slots"] + 8 * ((queue["head"] + 2) & mask))
        outcome = send(conn, header, length)
        if outcome == -EAGAIN:
            return
        ended(lower, first(lower + WAITING), CONTROL, outcome, 0)
        queue["head"] += 3
