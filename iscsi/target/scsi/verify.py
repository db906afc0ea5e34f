"""VERIFY and WRITE AND VERIFY of 10, 12 and 16 bytes (SBC-3 §5.24, §5.36): what was asked to be
verified is read from the backend, so a medium that fails is found.
"""

from collections.abc import Callable
from typing import Final

from iscsi.target.scsi import blocks, medium
from iscsi.target.scsi.command import GOOD, Access, Answer, Command, Reservation, Row
from iscsi.target.scsi.medium import CDB_10, CDB_12, CDB_16, Form, Refused, Span

_BYTCHK: Final = 0x06
_READABLE: Final = 0  # BYTCHK 00b: no data is sent
_COMPARE: Final = 1  # 01b: all blocks are sent
_COMPARE_ONE: Final = 3  # 11b: one block is sent, and all blocks are to be like it


def _compare(command: Command, span: Span, sent: bytes | memoryview, *, one: bool = False) -> None:
    """Refused with MISCOMPARE unless the blocks are like `sent` (with `one`: like each of them)."""
    unit = command.present
    size, at = unit.block_size, 0
    view = memoryview(sent)
    for piece in medium.steps(command, span):
        length = piece.count * size
        expected = bytes(sent) * piece.count if one else view[at : at + length]
        found = medium.first_difference(expected, medium.read(unit, piece))
        if found is not None:
            # With one block sent, the offset counts in that block (SBC-3 §5.24.2).
            raise Refused(medium.miscompare(found % size if one else at + found))
        at += length


def _read_through(command: Command, span: Span) -> None:
    if not command.present.backend.memory:
        for piece in medium.steps(command, span):
            medium.read(command.present, piece)


def _verify(form: Form) -> Callable[[Command], Answer]:
    """VERIFY (SBC-3 §5.24) with CDBs of one form."""

    @medium.on_medium
    def run(command: Command) -> Answer:
        medium.require(not command.cdb[1] & medium.PROTECT)
        unit, span = command.present, medium.span_of(command, form)
        mode = (command.cdb[1] & _BYTCHK) >> 1
        if mode == _READABLE:
            _read_through(command, span)
            return GOOD
        medium.require(mode in (_COMPARE, _COMPARE_ONE))
        one = mode == _COMPARE_ONE
        if not span.count:
            return GOOD
        length = unit.block_size * (1 if one else span.count)
        medium.require(len(command.data) >= length)
        _compare(command, span, command.data[:length], one=one)
        return medium.done(length)

    return run


def _write_and_verify(form: Form) -> Callable[[Command], Answer]:
    """WRITE AND VERIFY (SBC-3 §5.36): the data is on the medium before it is verified."""

    @medium.on_medium
    def run(command: Command) -> Answer:
        mode = (command.cdb[1] & _BYTCHK) >> 1
        medium.require(not command.cdb[1] & medium.PROTECT and mode in (_READABLE, _COMPARE))
        unit, span = command.present, medium.span_of(command, form)
        wanted = span.count * unit.block_size
        medium.require(len(command.data) >= min(wanted, command.expected_length))
        # Where less is sent than the CDB names, that much is written, in whole blocks.
        sent = Span(span.first, min(span.count, len(command.data) // unit.block_size))
        data = command.data[: sent.count * unit.block_size]
        if sent.count:
            with medium.turn(command, unit):
                medium.write(unit, sent.first, data, durable=True)
            if mode == _COMPARE:
                _compare(command, sent, data)
            else:
                _read_through(command, sent)
        return medium.done(wanted)

    return run


def _verify_row(form: Form, usage: str) -> Row:
    return Row(
        _verify(form),
        usage,
        access=Access.READ,
        reservation=Reservation.READ_LIKE,
        slow=True,
    )


def _write_row(form: Form, usage: str) -> Row:
    return Row(
        _write_and_verify(form),
        usage,
        access=Access.WRITE,
        reservation=Reservation.WRITE_LIKE,
        slow=True,
        moves=blocks.moves,
    )


ROWS: Final = {
    (0x2E, None): _write_row(CDB_10, "f6ffffffff1fffff00"),
    (0x2F, None): _verify_row(CDB_10, "f6ffffffff1fffff00"),
    (0x8E, None): _write_row(CDB_16, "f6ffffffffffffffffffffffff1f00"),
    (0x8F, None): _verify_row(CDB_16, "f6ffffffffffffffffffffffff1f00"),
    (0xAE, None): _write_row(CDB_12, "f6ffffffffffffffff1f00"),
    (0xAF, None): _verify_row(CDB_12, "f6ffffffffffffffff1f00"),
}
