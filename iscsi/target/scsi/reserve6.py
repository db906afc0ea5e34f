"""RESERVE(6), RELEASE(6) and their ten-byte forms (SPC-2 §7.16, §7.21): the whole unit for one
nexus, until it or a reset gives it back. Beside persistent reservations they change nothing: with
CRH set a holder's is answered GOOD, anybody else's conflicts (SPC-4 §5.13.3).
"""

from collections.abc import Callable
from typing import Final

from iscsi.target.scsi.command import (
    GOOD,
    INVALID_FIELD,
    RESERVATION_CONFLICT,
    Answer,
    Command,
    Reservation,
    Row,
    Rows,
)
from iscsi.target.scsi.pr_unit import port_of, reservations_of

# Third-party and extent reservations, which SPC-2 makes optional and SPC-3 removes.
_THIRD_PARTY_OR_EXTENT: Final = 0x1F


def _persistent(command: Command) -> Answer | None:
    """The answer where somebody is registered, else None."""
    reservations = reservations_of(command.present)
    if reservations.fault is not None:
        return RESERVATION_CONFLICT
    state = reservations.state
    if not state.keys:
        return None
    port = port_of(command.nexus)
    is_shared = state.held is not None and state.held.is_shared
    if state.holds(port) or (is_shared and port in state.keys):
        return GOOD
    return RESERVATION_CONFLICT


def _reserve(command: Command) -> Answer:
    if command.cdb[1] & _THIRD_PARTY_OR_EXTENT:
        return INVALID_FIELD
    answer = _persistent(command)
    if answer is not None:
        return answer
    reservations = reservations_of(command.present)
    if reservations.reserved_by not in (None, command.nexus):
        return RESERVATION_CONFLICT
    reservations.reserve(command.nexus)
    return GOOD


def _release(command: Command) -> Answer:
    if command.cdb[1] & _THIRD_PARTY_OR_EXTENT:
        return INVALID_FIELD
    answer = _persistent(command)
    if answer is not None:
        return answer
    reservations = reservations_of(command.present)
    if reservations.reserved_by is command.nexus:
        reservations.reserve(None)
    return GOOD


def _row(run: Callable[[Command], Answer], usage: str) -> Row:
    return Row(
        run,
        usage,
        needs_medium=False,
        reservation=Reservation.ALWAYS_ALLOWED,
        is_for_writers=run is _reserve,
    )


ROWS: Final[Rows] = {
    (0x16, None): _row(_reserve, "0000000000"),
    (0x17, None): _row(_release, "0000000000"),
    (0x56, None): _row(_reserve, "000000000000000000"),
    (0x57, None): _row(_release, "000000000000000000"),
}
