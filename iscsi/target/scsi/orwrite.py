"""ORWRITE(16) (SBC-3 §5.7): blocks become the OR of what they were and what is sent. It runs in the
server's thread and holds the unit's lock, so no write is lost between its reading and its writing.
"""

from typing import Final

import numpy as np

from iscsi.target.scsi import medium
from iscsi.target.scsi.command import GOOD, Access, Answer, Command, Reservation, Row


@medium.on_medium
def _orwrite(command: Command) -> Answer:
    medium.require(not command.cdb[1] & medium.PROTECT)
    unit, span = command.present, medium.span_of(command, medium.CDB_16)
    length = span.count * unit.block_size
    medium.require(len(command.data) >= length)
    if not span.count:
        return GOOD
    sent = np.frombuffer(command.data[:length], np.uint8)
    with unit.medium_lock:
        merged = np.bitwise_or(np.frombuffer(medium.read(unit, span), np.uint8), sent)
        medium.write(unit, span.first, merged, durable=bool(command.cdb[1] & medium.FUA))
    return medium.done(length)


ROWS: Final = {
    (0x8B, None): Row(
        _orwrite,
        "f8ffffffffffffffffffffffff1f00",
        access=Access.WRITE,
        reservation=Reservation.WRITE_LIKE,
        whole=lambda command: (command.number(2, 8), command.number(10, 4)),
    )
}
