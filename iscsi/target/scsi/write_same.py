"""WRITE SAME(10) and (16) (SBC-3 §5.38, §5.39): one block written many times, or unmapped where it
is zeros and unmapping is asked for. It is done in pieces, so that a long one stops nobody else.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from iscsi.target.scsi import medium
from iscsi.target.scsi.command import Access, Answer, Command, Reservation, Row
from iscsi.target.scsi.medium import CDB_10, CDB_16, Form, Span

_ANCHOR: Final = 0x10
_UNMAP: Final = 0x08
_PHYSICAL_OR_LOGICAL: Final = 0x06  # obsolete PBDATA and LBDATA: the block would be changed
_NO_DATA: Final = 0x01  # NDOB, only in 16 bytes


def _fill(command: Command, span: Span, block: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    """Write `block` into each block of the span."""
    unit = command.present
    for piece in medium.steps(command, span):
        with medium.turn(command, unit):
            medium.write(unit, piece.first, np.tile(block, piece.count))


def _erase(command: Command, span: Span, *, unmap: bool) -> None:
    """Make the blocks zeros; unmapped, or to be written without asking for room again."""
    unit = command.present
    for piece in medium.steps(command, span):
        with medium.turn(command, unit):
            if unmap:
                medium.discard(unit, piece)
            else:
                medium.zero(unit, piece)


def _write_same(form: Form, *, may_send_nothing: bool) -> Callable[[Command], Answer]:
    @medium.on_medium
    def run(command: Command) -> Answer:
        options, unit = command.cdb[1], command.present
        is_empty = may_send_nothing and bool(options & _NO_DATA)
        medium.require(not options & (medium.PROTECT | _ANCHOR | _PHYSICAL_OR_LOGICAL))
        # Only a thin unit says that it unmaps (VPD page B2, LBPWS and LBPWS10).
        unmap = bool(options & _UNMAP)
        medium.require(unit.is_thin or not unmap)
        span = medium.span_of(command, form, zero_is_rest=True)
        medium.require(span.count <= unit.limits.write_same)
        length = 0 if is_empty else unit.block_size
        medium.require_data(command, length)
        block = np.frombuffer(bytes(unit.block_size) if is_empty else command.data, np.uint8)
        # What is unmapped reads as zeros (LBPRZ), so only zeros may be left to that.
        if block.any() and not (unmap and unit.unmaps_any_block):
            _fill(command, span, block.copy())
        else:
            _erase(command, span, unmap=unmap)
        return medium.done(length)

    return run


def _row(form: Form, usage: str, *, may_send_nothing: bool) -> Row:
    return Row(
        _write_same(form, may_send_nothing=may_send_nothing),
        usage,
        access=Access.WRITE,
        reservation=Reservation.WRITE_LIKE,
        slow=True,
    )


ROWS: Final = {
    (0x41, None): _row(CDB_10, "f8ffffffff1fffff00", may_send_nothing=False),
    (0x93, None): _row(CDB_16, "f9ffffffffffffffffffffffff1f00", may_send_nothing=True),
}
