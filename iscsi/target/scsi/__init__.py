"""The SCSI commands that compiled code does not serve (SPC-4, SBC-3, SBC-4): a module per subject,
each with a table of rows; `execute` checks what they share and runs one.
"""

from iscsi.target.scsi.command import (
    BUSY,
    GOOD,
    INVALID_FIELD,
    Access,
    Answer,
    Command,
    Reservation,
    Row,
    refuse,
)
from iscsi.target.scsi.dispatch import ALWAYS_SERVED, admit, execute, finish, is_slow, row_of

__all__ = [
    "ALWAYS_SERVED",
    "BUSY",
    "GOOD",
    "INVALID_FIELD",
    "Access",
    "Answer",
    "Command",
    "Reservation",
    "Row",
    "admit",
    "execute",
    "finish",
    "is_slow",
    "refuse",
    "row_of",
]
