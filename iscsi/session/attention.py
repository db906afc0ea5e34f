"""Unit attentions that are more than news: after them what a session relied on is no more, so they
are never passed over. One rule: what is told here ends the session, because commands that are under
way already cannot be called back.
"""

from collections.abc import Collection
from typing import Final

from iscsi.session.errors import ReservationLost, SessionError, UnitChanged
from iscsi.wire.errors import ScsiError
from iscsi.wire.sense import Asc, SenseKey

_RESETS: Final = 0x29  # ASC of power on, every reset and I_T nexus loss (SPC-2 §5.5.1)
# RESERVE and persistent reservations exclude each other: these mean what RESERVE held.
_TAKEN: Final = (Asc.RESERVATIONS_PREEMPTED, Asc.RESERVATIONS_RELEASED)


def is_attention(error: ScsiError) -> bool:
    """Whether a command failed only to report a unit attention."""
    return error.sense is not None and error.sense.key == SenseKey.UNIT_ATTENTION


def ends_reservation(code: int) -> bool:
    """Whether a unit attention (ASC << 8 | ASCQ) tells that what RESERVE held is free."""
    return code >> 8 == _RESETS or code in _TAKEN


def grave(
    code: int, lun: int, reserved: Collection[int], *, removable: bool = False
) -> SessionError | None:
    """What a unit attention means that a command reports instead of being executed; None if it can
    be sent again. `removable`: the unit's medium can be taken out.
    """
    if lun in reserved and ends_reservation(code):
        return ReservationLost(
            f"the reservation of LUN {lun} is over: the unit reported {_named(code)}"
        )
    if removable and code == Asc.NOT_READY_TO_READY_CHANGE:
        return UnitChanged(f"the medium of LUN {lun} may be another one: open the device again")
    return None


def _named(code: int) -> str:
    try:
        return Asc(code).name.replace("_", " ")
    except ValueError:
        return f"unit attention {code >> 8:02X}h/{code & 0xFF:02X}h"
