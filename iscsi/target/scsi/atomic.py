"""WRITE ATOMIC(16) (SBC-4 §5.47): all of the blocks are written, or none. The command runs in the
server's thread, so nobody reads a half; a medium that outlives a power failure cannot promise that
its half is never seen afterwards, so only units in memory have the command.
"""

from typing import Final

from iscsi.target.scsi import medium
from iscsi.target.scsi.command import (
    GOOD,
    Access,
    Answer,
    Command,
    Reservation,
    Row,
)
from iscsi.target.scsi.medium import Form
from iscsi.target.units import LogicalUnit

_FORM: Final = Form((2, 8), (12, 2))


def _is_offered(unit: LogicalUnit) -> bool:
    return unit.limits.atomic > 0


@medium.on_medium
def _write_atomic(command: Command) -> Answer:
    unit = command.present
    # MAXIMUM ATOMIC BOUNDARY SIZE is 0: there are none.
    boundary = command.number(10, 2)
    medium.require(not command.cdb[1] & medium.PROTECT and not boundary)
    span = medium.span_of(command, _FORM)
    limits = unit.limits
    medium.require(span.count <= limits.atomic)
    medium.require(not span.first % limits.atomic_alignment)
    medium.require(not span.count % limits.atomic_granularity)
    if not span.count:
        return GOOD
    length = span.count * unit.block_size
    # A residual would leave a part out: it is all or nothing.
    medium.require(len(command.data) >= length)
    with unit.medium_lock:
        medium.write(
            unit,
            span.first,
            command.data[:length],
            durable=bool(command.cdb[1] & medium.FUA),
        )
    return medium.done(length)


ROWS: Final = {
    (0x9C, None): Row(
        _write_atomic,
        "f8ffffffffffffffffffffffff1f00",
        access=Access.WRITE,
        reservation=Reservation.WRITE_LIKE,
        offered=_is_offered,
        whole=lambda command: (command.number(2, 8), command.number(12, 2)),
    )
}
