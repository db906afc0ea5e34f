"""iSER's own header, 28 bytes in front of every PDU in a Send (RFC 7145 §9): which tags the peer
may use, and where the memory behind them begins. This is the form with base offsets that all
deployed peers speak, not the twelve bytes of RFC 5046.
"""

from dataclasses import dataclass
from typing import Final

from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError

ISER_HEADER_LENGTH: Final = 28
OFFSET_FLAGS: Final = 0
OFFSET_VERSIONS: Final = 1  # of a Hello and a HelloReply
OFFSET_DEPTH: Final = 2
OFFSET_WRITE_STAG: Final = 4
OFFSET_WRITE_BASE: Final = 8
OFFSET_READ_STAG: Final = 16
OFFSET_READ_BASE: Final = 20

# The high half of the first byte; the low one holds flags.
CONTROL_PDU: Final = 0x10
HELLO: Final = 0x20
HELLO_REPLY: Final = 0x30
OPCODE_MASK: Final = 0xF0
WSV: Final = 0x08  # the write STag is valid: data to be written may be read from there
RSV: Final = 0x04
REJECT: Final = 0x01  # of a HelloReply
VERSION: Final = 10  # RFC 7145's, as maximum and as minimum
DEPTH_MAX: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class IserHeader:
    """The header of a control-type PDU. A base offset means nothing without its tag; a tag of 0 is
    the absence of one.
    """

    write_stag: int = 0
    write_base: int = 0
    read_stag: int = 0
    read_base: int = 0


@dataclass(frozen=True, slots=True)
class Hello:
    """What an initiator says first if it said iSERHelloRequired=Yes. `ird`: RDMA Reads that it
    serves at once.
    """

    ird: int
    version_max: int = VERSION
    version_min: int = VERSION


@dataclass(frozen=True, slots=True)
class HelloReply:
    """The target's answer. `ord`: RDMA Reads that it will have open at once."""

    ord: int
    version_max: int = VERSION
    version: int = VERSION
    rejected: bool = False


def encode(header: IserHeader) -> bytes:
    """28 bytes; a valid bit for each tag that is not 0."""
    flags = CONTROL_PDU | WSV * bool(header.write_stag) | RSV * bool(header.read_stag)
    return (
        bytes((flags, 0, 0, 0))
        + header.write_stag.to_bytes(4, "big")
        + header.write_base.to_bytes(8, "big")
        + header.read_stag.to_bytes(4, "big")
        + header.read_base.to_bytes(8, "big")
    )


def encode_hello(hello: Hello | HelloReply) -> bytes:
    """28 bytes. LocalProtocolError for a number that its field does not hold."""
    depth = hello.ird if isinstance(hello, Hello) else hello.ord
    second = hello.version_min if isinstance(hello, Hello) else hello.version
    if not 0 <= depth <= DEPTH_MAX or not 0 <= second <= 15 or not 0 <= hello.version_max <= 15:
        raise LocalProtocolError(f"{hello} does not fit its header")
    first = HELLO_REPLY | REJECT * hello.rejected if isinstance(hello, HelloReply) else HELLO
    head = bytes((first, hello.version_max << 4 | second)) + depth.to_bytes(2, "big")
    return head.ljust(ISER_HEADER_LENGTH, b"\0")


def decode(data: bytes) -> IserHeader | Hello | HelloReply:
    """Read the first 28 bytes of a Send; reserved bits are not looked at. RemoteProtocolError for
    fewer, for an opcode that is none, and for a valid bit without a tag.
    """
    if len(data) < ISER_HEADER_LENGTH:
        raise RemoteProtocolError(f"an iSER header of {len(data)} bytes")
    kind, depth = data[0] & OPCODE_MASK, int.from_bytes(data[2:4], "big")
    if kind == HELLO:
        return Hello(depth, data[1] >> 4, data[1] & 0x0F)
    if kind == HELLO_REPLY:
        return HelloReply(depth, data[1] >> 4, data[1] & 0x0F, bool(data[0] & REJECT))
    if kind != CONTROL_PDU:
        raise RemoteProtocolError(f"an iSER header with the opcode {kind >> 4:#x}")
    found = []
    for bit, at in ((WSV, OFFSET_WRITE_STAG), (RSV, OFFSET_READ_STAG)):
        stag = int.from_bytes(data[at : at + 4], "big")
        if data[0] & bit and stag == 0:
            raise RemoteProtocolError("an iSER header with a valid bit and no STag")
        valid = bool(data[0] & bit)
        base = int.from_bytes(data[at + 4 : at + 12], "big")
        found += [stag, base] if valid else [0, 0]
    return IserHeader(*found)
