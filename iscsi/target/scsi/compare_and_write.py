"""COMPARE AND WRITE (SBC-3 §5.2): compare blocks with what was sent, and only if they are the same
write what was sent behind it. It runs in the server's thread and holds the unit's lock, so nothing
comes between the comparison and the write.
"""

from typing import Final

from iscsi.target.scsi import medium
from iscsi.target.scsi.command import GOOD, Access, Answer, Command, Reservation, Row
from iscsi.target.scsi.medium import Refused, Span


@medium.on_medium
def _compare_and_write(command: Command) -> Answer:
    medium.require(not command.cdb[1] & medium.PROTECT)
    unit, span = command.present, Span(command.number(2, 8), command.cdb[13])
    medium.require(span.count <= unit.limits.compare_and_write)
    medium.require_range(unit, span)
    length = span.count * unit.block_size
    medium.require_data(command, 2 * length)
    if not span.count:
        return GOOD
    durable = bool(command.cdb[1] & medium.FUA)
    with unit.medium_lock:
        different = medium.first_difference(command.data[:length], medium.read(unit, span))
        if different is not None:
            raise Refused(medium.miscompare(different))
        medium.write(unit, span.first, command.data[length:], durable=durable)
    return medium.done(2 * length)


ROWS: Final = {
    (0x89, None): Row(
        _compare_and_write,
        "f8ffffffffffffffff000000ff1f00",
        access=Access.WRITE,
        reservation=Reservation.WRITE_LIKE,
        whole=lambda command: (command.number(2, 8), command.cdb[13]),
    )
}
