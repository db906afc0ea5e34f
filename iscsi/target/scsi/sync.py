"""SYNCHRONIZE CACHE(10) and (16) (SBC-3 §5.21): everything written before is on the medium when the
answer is given, with IMMED too: a flush that fails must not have been answered with GOOD.
"""

from collections.abc import Callable
from typing import Final

from iscsi.target.scsi import medium
from iscsi.target.scsi.command import GOOD, Answer, Command, Reservation, Row
from iscsi.target.scsi.medium import CDB_10, CDB_16, Form


def _synchronize(form: Form) -> Callable[[Command], Answer]:
    @medium.on_medium
    def run(command: Command) -> Answer:
        # The whole backend is flushed, whichever range is named: more than asked for is allowed.
        medium.span_of(command, form)
        medium.flush(command.present)
        return GOOD

    return run


def _row(form: Form, usage: str) -> Row:
    return Row(_synchronize(form), usage, reservation=Reservation.WRITE_LIKE, slow=True)


ROWS: Final = {
    (0x35, None): _row(CDB_10, "02ffffffff1fffff00"),
    (0x91, None): _row(CDB_16, "02ffffffffffffffffffffffff1f00"),
}
