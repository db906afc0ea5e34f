"""REPORT SUPPORTED OPERATION CODES and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 §6.34,
§6.35). They describe the table that `dispatch` serves, so they cannot say anything else.
"""

from typing import Final

from iscsi.target.scsi.command import INVALID_FIELD, Answer, Command, Reservation, Row, Rows

_RCTD: Final = 0x80
_BY_CODE, _BY_ACTION, _EITHER = 1, 2, 3  # REPORTING OPTIONS
_SUPPORTED: Final = 3
_NOT_SUPPORTED: Final = 1
_TIMEOUTS_LENGTH: Final = 12
# ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET RESET.
_TASK_FUNCTIONS: Final = 0xDA
# RFC 7144: QUERY TASK, and QUERY ASYNCHRONOUS EVENT, QUERY TASK SET, I_T NEXUS RESET.
_QUERY_TASK: Final = 0x04
_MORE_FUNCTIONS: Final = 0x07

_served: dict[tuple[int, int | None], Row] = {}


def serve(rows: Rows) -> None:
    """Take the table that is described. Called once, when it is complete."""
    _served.update(rows)


def _has_actions(operation: int) -> bool:
    return any(code == operation and action is not None for code, action in _served)


def _report_opcodes(command: Command) -> Answer:
    """All commands, or one: by operation code, with its service action, or whichever fits."""
    options, timeouts = command.cdb[2] & 7, bool(command.cdb[2] & _RCTD)
    operation, action = command.cdb[3], command.number(4, 2)
    if options == 0:
        offered = [key for key, row in _served.items() if row.is_offered(command.unit)]
        entries = b"".join(_descriptor(*key, timeouts) for key in offered)
        return Answer(data=len(entries).to_bytes(4, "big") + entries)
    has_actions = _has_actions(operation)
    wrong = {_BY_CODE: has_actions, _BY_ACTION: not has_actions, _EITHER: False}
    if wrong.get(options, True):
        return INVALID_FIELD
    if options == _EITHER and action and not has_actions:
        return Answer(data=_one(operation, None, timeouts))
    row = _served.get((operation, action if has_actions else None))
    if row is not None and not row.is_offered(command.unit):
        row = None
    return Answer(data=_one(operation, row, timeouts))


def _one(operation: int, row: Row | None, timeouts: bool) -> bytes:
    if row is None:
        return bytes((0, _NOT_SUPPORTED, 0, 0))
    usage = bytes((operation,)) + bytes.fromhex(row.usage)
    head = bytes((0, _RCTD * timeouts | _SUPPORTED)) + len(usage).to_bytes(2, "big")
    return head + usage + _no_timeouts(timeouts)


def _descriptor(operation: int, action: int | None, timeouts: bool) -> bytes:
    length = 1 + len(_served[operation, action].usage) // 2
    flags = 2 * timeouts | (action is not None)
    head = bytes((operation, 0)) + (action or 0).to_bytes(2, "big") + bytes((0, flags))
    return head + length.to_bytes(2, "big") + _no_timeouts(timeouts)


def _no_timeouts(wanted: bool) -> bytes:
    """A command timeouts descriptor that promises nothing (SPC-4 §6.34.4)."""
    return (_TIMEOUTS_LENGTH - 2).to_bytes(2, "big") + bytes(10) if wanted else b""


def _report_task_functions(command: Command) -> Answer:
    extended = command.cdb[2] & _RCTD
    if command.number(6, 4) < 4:
        return INVALID_FIELD
    functions = (_TASK_FUNCTIONS, 0)
    if command.nexus.protocol_level > 1:
        functions = (_TASK_FUNCTIONS | _QUERY_TASK, _MORE_FUNCTIONS)
    body = bytes((*functions, 0, 0x0C if extended else 0))
    return Answer(data=body.ljust(16, b"\0") if extended else body)


ROWS: Final[Rows] = {
    (0xA3, 0x0C): Row(
        _report_opcodes,
        "0c87ffffffffffffff0000",
        (6, 4),
        needs_medium=False,
        reservation=Reservation.READ_LIKE,
        during_sanitize=True,
    ),
    (0xA3, 0x0D): Row(
        _report_task_functions,
        "0d80000000ffffffff0000",
        (6, 4),
        needs_medium=False,
        reservation=Reservation.READ_LIKE,
        during_sanitize=True,
    ),
}
