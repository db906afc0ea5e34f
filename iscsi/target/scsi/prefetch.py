"""PRE-FETCH(10) and (16) (SBC-3 §5.8): CONDITION MET says that all the blocks are in the cache, and
only a unit in memory can say so. Of any other unit a bounded part is read, for the page cache.
"""

from collections.abc import Callable
from typing import Final

from iscsi.target.scsi import medium
from iscsi.target.scsi.command import GOOD, Access, Answer, Command, Reservation, Row
from iscsi.target.scsi.medium import CDB_10, CDB_16, Form, Span
from iscsi.wire.sense import ScsiStatus

# Bytes read ahead at most: a hint is no reason to read a whole medium.
MAX_READ: Final = 16 << 20
CONDITION_MET: Final = Answer(ScsiStatus.CONDITION_MET)


def _prefetch(form: Form) -> Callable[[Command], Answer]:
    @medium.on_medium
    def run(command: Command) -> Answer:
        unit = command.present
        span = medium.span_of(command, form, zero_is_rest=True)
        if unit.backend.memory:
            return CONDITION_MET
        count = min(span.count, MAX_READ // unit.block_size)
        for piece in medium.steps(command, Span(span.first, count)):
            medium.read(unit, piece)
        return GOOD

    return run


def _row(form: Form, usage: str) -> Row:
    return Row(
        _prefetch(form),
        usage,
        access=Access.READ,
        reservation=Reservation.READ_LIKE,
        slow=True,
    )


ROWS: Final = {
    (0x34, None): _row(CDB_10, "02ffffffff1fffff00"),
    (0x90, None): _row(CDB_16, "02ffffffffffffffffffffffff1f00"),
}
