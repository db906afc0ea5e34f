"""A received Send: an iSER header, then one iSCSI PDU and nothing behind its padding that counts.
Its lengths are judged before anything in it is believed; padding may be missing, as some peers send
none.
"""

from typing import Final

from iscsi.wire import bhs
from iscsi.wire.bhs import BHS_LENGTH, Buffer
from iscsi.wire.errors import RemoteProtocolError
from iscsi.wire.iser.header import (
    CONTROL_PDU,
    ISER_HEADER_LENGTH,
    OPCODE_MASK,
    IserHeader,
    decode,
    encode,
)
from iscsi.wire.iser.records import HEADERS_LENGTH
from iscsi.wire.violations import Violation, describe
from shm.jit import nopython
from shm.memory import load_8, load_24_be

AHS_WORDS: Final = ISER_HEADER_LENGTH + bhs.OFFSET_TOTAL_AHS_WORDS
DATA_LENGTH: Final = ISER_HEADER_LENGTH + bhs.OFFSET_DATA_SEGMENT_LENGTH
SHORT_SEND: Final = int(Violation.SHORT_SEND)
DATA_BEYOND_SEND: Final = int(Violation.DATA_BEYOND_SEND)
ISER_OPCODE: Final = int(Violation.ISER_OPCODE)


@nopython
def pdu_length(message: int, length: int) -> int:
    """Bytes of the PDU in a Send of `length` bytes, its padding not counted, or a violation."""
    if length < HEADERS_LENGTH:
        return SHORT_SEND
    if load_8(message) & OPCODE_MASK != CONTROL_PDU:
        return ISER_OPCODE
    found = BHS_LENGTH + 4 * load_8(message + AHS_WORDS) + load_24_be(message + DATA_LENGTH)
    if ISER_HEADER_LENGTH + found > length:
        return DATA_BEYOND_SEND
    return found


# --- for a login, whose PDUs travel in Sends as well ------------------------------------------


def wrap(pdu: bytes) -> bytes:
    """A Send of one PDU that names no tags."""
    return encode(IserHeader()) + pdu


def unwrap(message: Buffer) -> tuple[bytes, bytes]:
    """The header and the data segment, without padding, of a login's Send; it has no AHS.

    RemoteProtocolError for one that is too short for what it claims, or of another kind.
    """
    raw = bytes(message)
    if len(raw) < HEADERS_LENGTH:
        raise RemoteProtocolError(describe(SHORT_SEND) + f": {len(raw)} bytes")
    if not isinstance(decode(raw), IserHeader):
        raise RemoteProtocolError(describe(ISER_OPCODE))
    header, data = raw[ISER_HEADER_LENGTH:HEADERS_LENGTH], raw[HEADERS_LENGTH:]
    length = bhs.data_segment_length(header)
    if bhs.total_ahs_length(header):
        raise RemoteProtocolError("additional header segments in a login PDU")
    if length > len(data):
        raise RemoteProtocolError(f"{describe(DATA_BEYOND_SEND)}: {length} of {len(data)} bytes")
    return header, data[:length]
