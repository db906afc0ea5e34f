"""What a peer can do wrong in the full feature phase, as numbers for compiled code. They lie below
every errno, so a negative result says by itself whose fault it was; the connection then ends.
"""

from enum import IntEnum, unique
from typing import Final


@unique
class Violation(IntEnum):
    """Why a connection must end: one reason each, so that a log line is enough."""

    # Framing, both roles.
    DATA_SEGMENT_TOO_LONG = -1001
    HEADER_DIGEST = -1002
    DATA_DIGEST = -1003
    AHS = -1004
    OPCODE = -1005
    UNEXPECTED_DATA = -1006  # a data segment where the PDU has none
    CONTROL_OVERFLOW = -1007  # more unanswered control PDUs than there are places for
    CONTROL_TOO_LONG = -1008
    # The initiator's peer.
    UNKNOWN_ITT = -1101
    STAT_SN = -1102
    DATA_IN_DIRECTION = -1103
    DATA_IN_RANGE = -1104  # beyond the expected data transfer length
    DATA_IN_ORDER = -1105  # BufferOffset does not follow the data before it
    DATA_SN = -1106
    STATUS_WITHOUT_FINAL = -1107
    RESPONSE_TWICE = -1108  # anything for a command that has its response
    SENSE_LENGTH = -1109
    R2T_DIRECTION = -1110
    R2T_RANGE = -1111
    R2T_ORDER = -1112
    R2T_SN = -1113
    R2T_LENGTH = -1114  # zero, or above MaxBurstLength
    R2T_COUNT = -1115  # more than MaxOutstandingR2T
    # The target's peer. What it does wrong with one command ends that command, not the connection.
    TOO_MANY_TASKS = -1211
    # Over iSER, both roles.
    SHORT_SEND = -1301
    DATA_BEYOND_SEND = -1302
    ISER_OPCODE = -1303
    HELLO = -1304  # none where one is due, one where none is, or one that cannot be
    FOREIGN_INVALIDATE = -1305
    TAG_MISSING = -1306  # data is to be moved, and there is no tag to do it with
    TAG_DIRECTION = -1307
    TAG_REFUSED = -1308
    UNEXPECTED_PDUS = -1309
    SOLICITED_DATA = -1310


_TEXTS: Final = {
    Violation.DATA_SEGMENT_TOO_LONG: "a data segment above our MaxRecvDataSegmentLength",
    Violation.HEADER_DIGEST: "a header digest that does not match",
    Violation.DATA_DIGEST: "a data digest that does not match",
    Violation.AHS: "an additional header segment that this PDU cannot have",
    Violation.OPCODE: "an opcode that has no place in the full feature phase",
    Violation.UNEXPECTED_DATA: "a data segment in a PDU that has none",
    Violation.CONTROL_OVERFLOW: "more control PDUs than it waited answers for",
    Violation.CONTROL_TOO_LONG: "a control PDU with more data than this connection stores",
    Violation.UNKNOWN_ITT: "an initiator task tag that names no task",
    Violation.STAT_SN: "a StatSN that is not the next one",
    Violation.DATA_IN_DIRECTION: "Data-In for a command that reads nothing",
    Violation.DATA_IN_RANGE: "Data-In beyond the expected data transfer length",
    Violation.DATA_IN_ORDER: "Data-In with a buffer offset out of order",
    Violation.DATA_SN: "Data-In with a DataSN that is not the next one",
    Violation.STATUS_WITHOUT_FINAL: "Data-In with status but without the F bit",
    Violation.RESPONSE_TWICE: "more for a command that has ended",
    Violation.SENSE_LENGTH: "a SenseLength that does not fit its data segment",
    Violation.R2T_DIRECTION: "an R2T for a command that writes nothing",
    Violation.R2T_RANGE: "an R2T beyond the expected data transfer length",
    Violation.R2T_ORDER: "an R2T for data that was asked for before",
    Violation.R2T_SN: "an R2TSN that is not the next one",
    Violation.R2T_LENGTH: "an R2T for nothing, or for more than MaxBurstLength",
    Violation.R2T_COUNT: "more R2Ts than MaxOutstandingR2T",
    Violation.TOO_MANY_TASKS: "more commands than the window and its reserve hold",
    Violation.SHORT_SEND: "a Send shorter than the headers that it must have",
    Violation.DATA_BEYOND_SEND: "a DataSegmentLength beyond the end of its Send",
    Violation.ISER_OPCODE: "an iSER header with an opcode that has no place here",
    Violation.HELLO: "no iSER Hello where one was agreed on, or one that nobody asked for",
    Violation.FOREIGN_INVALIDATE: "a Send that invalidates a tag of something else",
    Violation.TAG_MISSING: "a command for data without a tag of its memory",
    Violation.TAG_DIRECTION: "a tag for data that its command does not move",
    Violation.TAG_REFUSED: "a tag that does not open the memory it is to name",
    Violation.UNEXPECTED_PDUS: "more unexpected PDUs than were agreed on",
    Violation.SOLICITED_DATA: "Data-Out that was not announced, where data is read",
}


def is_violation(code: int) -> bool:
    """Whether a negative result means that the peer broke the protocol (and not an errno)."""
    return code in _VALUES


def describe(code: int) -> str:
    """`the peer sent ...`, for messages."""
    return f"the peer sent {_TEXTS[Violation(code)]}"


_VALUES: Final = frozenset(int(violation) for violation in Violation)
