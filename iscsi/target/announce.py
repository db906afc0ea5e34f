"""What a target says unasked (RFC 7143 §11.9): Async Messages, as the fields of the PDU and its
data. Nothing here sends or waits; a deadline that a message names is the caller's to keep.
"""

from dataclasses import dataclass, field
from typing import Final

from iscsi.wire.bhs import AsyncEvent
from iscsi.wire.errors import LocalProtocolError

SECONDS_MAX: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class Announcement:
    """An Async Message: `fields` are those of its header besides the numbers."""

    event: int
    fields: dict[str, int] = field(default_factory=dict)
    data: bytes = b""


def _seconds(value: float) -> int:
    if not 0 <= value <= SECONDS_MAX:
        raise LocalProtocolError(f"{value} s does not fit in an Async Message: 0..{SECONDS_MAX}")
    return int(value)


def sense_event(lun: int, sense: bytes) -> Announcement:
    """Sense data that belongs to no command; `lun` is the eight-byte field."""
    data = len(sense).to_bytes(2, "big") + sense
    return Announcement(AsyncEvent.SCSI_EVENT, {"lun": lun}, data)


def logout_request(within_s: float) -> Announcement:
    """Ask for a logout within so many seconds; then the target may drop the connection."""
    return Announcement(AsyncEvent.LOGOUT_REQUESTED, {"parameter3": _seconds(within_s)})


def connection_dropped(cid: int, time2wait: int, time2retain: int) -> Announcement:
    """Say that the target drops a connection, and when a new login may come."""
    fields = {"parameter1": cid, "parameter2": time2wait, "parameter3": time2retain}
    return Announcement(AsyncEvent.CONNECTION_DROPPED, fields)


def session_dropped(time2wait: int, time2retain: int) -> Announcement:
    """Say that the target drops all connections of the session."""
    fields = {"parameter2": time2wait, "parameter3": time2retain}
    return Announcement(AsyncEvent.SESSION_DROPPED, fields)


def negotiation_request(within_s: float) -> Announcement:
    """Ask for a text negotiation within so many seconds."""
    return Announcement(AsyncEvent.NEGOTIATION_REQUESTED, {"parameter3": _seconds(within_s)})


def vendor_event(vcode: int, data: bytes = b"") -> Announcement:
    """Something both ends know; `data` begins with the vendor's own identification."""
    return Announcement(AsyncEvent.VENDOR_SPECIFIC, {"async_vcode": vcode}, data)
