"""REPORT TARGET PORT GROUPS (SPC-4 §6.36): every portal group is a target port in a group of its
own, active and optimized, and changes its state by itself only (implicit asymmetric access).
"""

from typing import Final

from iscsi.target.nexus import relative_port
from iscsi.target.scsi.command import INVALID_FIELD, Answer, Command, Reservation, Row, Rows

_EXTENDED: Final = 1
_ACTIVE_OPTIMIZED: Final = 0x00
_SUPPORTED_STATES: Final = 0x01  # AO_SUP


def _report_target_port_groups(command: Command) -> Answer:
    form = command.cdb[1] >> 5
    if form > _EXTENDED:
        return INVALID_FIELD
    tags = {command.nexus.portal_group_tag, *command.target.portal_groups()}
    body = b"".join(_group(tag) for tag in sorted(tags))
    if form == _EXTENDED:
        body = bytes((0x10, 0, 0, 0)) + body  # no transition takes any time
    return Answer(data=len(body).to_bytes(4, "big") + body)


def _group(tag: int) -> bytes:
    """A group's descriptor with its one port."""
    head = bytes((_ACTIVE_OPTIMIZED, _SUPPORTED_STATES)) + tag.to_bytes(2, "big")
    return head + bytes((0, 0, 0, 1)) + bytes(2) + relative_port(tag).to_bytes(2, "big")


ROWS: Final[Rows] = {
    (0xA3, 0x0A): Row(
        _report_target_port_groups,
        "ea00000000ffffffff0000",
        (6, 4),
        needs_medium=False,
        reservation=Reservation.PERSISTENT_ALLOWED,
        during_sanitize=True,
    ),
}
