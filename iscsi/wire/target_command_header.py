"""What a target makes of a SCSI Command's header (RFC 7143 §11.2.2, §11.3): which ones are no
commands at all and get a Reject, and which ones are answered with CHECK CONDITION because of the
data sent with them. Both take their CmdSN; neither harms the session.
"""

from typing import Final

from iscsi.wire import bhs
from iscsi.wire.port import port_at
from iscsi.wire.sense import SenseKey
from iscsi.wire.target_data_out import INCORRECT_AMOUNT, UNEXPECTED_DATA
from iscsi.wire.target_refusal import INVALID_FIELD, NOT_SUPPORTED, TASK_IN_PROGRESS
from iscsi.wire.target_task import CDB_LENGTH, CDB_MORE_LENGTH, target_at, task_at, task_of
from shm.jit import nopython
from shm.memory import copy_bytes, load_8, load_16_be, load_32_be

ACA: Final = int(bhs.TaskAttribute.ACA)
BIDIRECTIONAL: Final = bhs.FLAG_READ | bhs.FLAG_WRITE
# SPC-4: what the transport said about the command makes no sense.
INVALID_FIELD_IN_INFORMATION_UNIT: Final = int(SenseKey.ILLEGAL_REQUEST) << 16 | 0x0E03

# An additional header segment: length in bytes behind this part, type, then a reserved byte.
AHS_HEAD: Final = 3
AHS_TYPE_MASK: Final = 0x3F
EXTENDED_CDB: Final = int(bhs.AhsType.EXTENDED_CDB)
BIDI_READ_LENGTH: Final = int(bhs.AhsType.BIDI_READ_LENGTH)
BIDI_LENGTH: Final = 5
CDB_MORE_MAX: Final = 260 - CDB_LENGTH  # SPC-4: ADDITIONAL CDB LENGTH is at most 252

# What `extended_cdb` found instead of a length.
AHS_INVALID: Final = -1
AHS_BIDIRECTIONAL: Final = -2


@nopython
def extended_cdb(header: int, ahs_length: int) -> int:
    """Bytes of the CDB that lie in an additional header segment, AHS_INVALID or AHS_BIDIRECTIONAL.

    At most one segment of each type; each must lie within TotalAHSLength.
    """
    at = header + bhs.BHS_LENGTH
    end = at + ahs_length
    more = 0
    while at < end:
        length = load_16_be(at)
        kind = load_8(at + 2) & AHS_TYPE_MASK
        if at + AHS_HEAD + length > end:
            return AHS_INVALID
        if kind == BIDI_READ_LENGTH and length == BIDI_LENGTH:
            return AHS_BIDIRECTIONAL
        if kind != EXTENDED_CDB or more or not 1 < length <= 1 + CDB_MORE_MAX:
            return AHS_INVALID
        more = length - 1
        at += (AHS_HEAD + length + 3) & ~3
    return more


@nopython
def keep_cdb(address: int, header: int, more: int) -> None:
    """Copy what `extended_cdb` found, which is the first segment, to its task."""
    task = task_at(address)[0]
    copy_bytes(task["cdb_more"], header + bhs.BHS_LENGTH + AHS_HEAD + 1, more)
    task["cdb_length"] = CDB_LENGTH + more


@nopython
def command_fault(conn: int, header: int, more: int) -> int:
    """The reason to reject a SCSI Command, or 0. `more` is what `extended_cdb` said."""
    flags = load_8(header + bhs.OFFSET_FLAGS)
    direction = flags & BIDIRECTIONAL
    itt = load_32_be(header + bhs.OFFSET_ITT)
    if more == AHS_INVALID or itt == bhs.RESERVED_TAG:
        return INVALID_FIELD
    if more == AHS_BIDIRECTIONAL or direction == BIDIRECTIONAL:
        return NOT_SUPPORTED
    if direction == 0 and load_32_be(header + bhs.OFFSET_EXPECTED_DATA_TRANSFER_LENGTH):
        return INVALID_FIELD
    if direction != bhs.FLAG_WRITE and flags & bhs.FLAG_FINAL == 0:
        return INVALID_FIELD  # it announces data that cannot come
    if flags & bhs.ATTRIBUTE_MASK > ACA:
        return INVALID_FIELD
    if task_of(conn, itt):
        return TASK_IN_PROGRESS
    return 0


@nopython
def command_sense(conn: int, header: int) -> int:
    """The sense (key << 16 | code) for a command whose data or attribute was not agreed on, or 0.

    RFC 7143 §11.4.7.2: unexpected unsolicited data, incorrect amount of data.
    """
    mine = target_at(conn)[0]
    flags = load_8(header + bhs.OFFSET_FLAGS)
    is_write = flags & bhs.FLAG_WRITE != 0
    length = port_at(conn)[0]["rx_data_length"]
    if length and not (is_write and mine["immediate_data"]):
        return UNEXPECTED_DATA
    if flags & bhs.FLAG_FINAL == 0 and mine["initial_r2t"]:
        return UNEXPECTED_DATA
    expected = load_32_be(header + bhs.OFFSET_EXPECTED_DATA_TRANSFER_LENGTH)
    if length > min(mine["first_burst_length"], expected):
        return INCORRECT_AMOUNT
    if flags & bhs.ATTRIBUTE_MASK == ACA:
        return INVALID_FIELD_IN_INFORMATION_UNIT  # there never is an ACA condition: NormACA is 0
    return 0


assert CDB_MORE_MAX <= CDB_MORE_LENGTH
