"""How a target says no to one PDU and goes on: a Reject that carries its header (RFC 7143 §11.17).
The stream and the command numbering stay intact, or it is not a case for this module.
"""

from typing import Final

from iscsi.wire import bhs
from iscsi.wire.errors import RejectReason
from iscsi.wire.port import (
    CONTROL_DATA,
    CONTROL_DATA_LENGTH,
    READY,
    TOKEN_CONTROL,
    control_take,
    push,
    token_of,
)
from iscsi.wire.target_task import HELD_GONE, hold, open_window, target_at
from iscsi.wire.violations import Violation
from shm.jit import nopython
from shm.memory import copy_bytes, load_8, load_32_be, store_8, store_32_be, store_64, zero_bytes

REJECT: Final = int(bhs.Opcode.REJECT)
DATA_DIGEST_ERROR: Final = int(RejectReason.DATA_DIGEST_ERROR)
SNACK: Final = int(RejectReason.SNACK_REJECT)
NOT_SUPPORTED: Final = int(RejectReason.COMMAND_NOT_SUPPORTED)
TOO_MANY_IMMEDIATE: Final = int(RejectReason.TOO_MANY_IMMEDIATE_COMMANDS)
TASK_IN_PROGRESS: Final = int(RejectReason.TASK_IN_PROGRESS)
INVALID_FIELD: Final = int(RejectReason.INVALID_PDU_FIELD)
CONTROL_OVERFLOW: Final = int(Violation.CONTROL_OVERFLOW)


@nopython
def is_immediate(header: int) -> bool:
    """Whether a request carries a CmdSN without taking it."""
    return load_8(header) & bhs.IMMEDIATE != 0


@nopython
def reject(conn: int, header: int, reason: int) -> int:
    """Answer a PDU with Reject; its data goes nowhere. 0, or CONTROL_OVERFLOW."""
    slot = control_take(conn)
    if slot == 0:
        return CONTROL_OVERFLOW
    zero_bytes(slot, bhs.BHS_LENGTH)
    store_8(slot, REJECT)
    store_8(slot + bhs.OFFSET_FLAGS, bhs.FLAG_FINAL)
    store_8(slot + bhs.OFFSET_REJECT_REASON, reason)
    store_32_be(slot + bhs.OFFSET_ITT, bhs.RESERVED_TAG)
    copy_bytes(slot + CONTROL_DATA, header, bhs.BHS_LENGTH)
    store_64(slot + CONTROL_DATA_LENGTH, bhs.BHS_LENGTH)
    push(conn + READY, token_of(TOKEN_CONTROL, slot))
    target_at(conn)[0]["rejects"] += 1
    return 0


@nopython
def pass_number(conn: int, header: int) -> None:
    """A request is over before it began: give its place in the window back."""
    if is_immediate(header):
        return
    if target_at(conn)[0]["rx_held"]:
        hold(conn, load_32_be(header + bhs.OFFSET_CMD_SN), HELD_GONE)
    else:
        open_window(conn)


@nopython
def refuse(conn: int, header: int, reason: int) -> int:
    """Reject a request whose CmdSN was taken: 0, or CONTROL_OVERFLOW."""
    pass_number(conn, header)
    return reject(conn, header, reason)
