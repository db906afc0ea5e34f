"""MPA's start-up (RFC 5044 §7.1, RFC 6581): the Request and Reply that turn a TCP connection into
an RDMA stream. Bytes and `now` in, bytes and a `Startup` out; no socket, no clock. The one rule:
what a peer sends is refused by name unless it is exactly what the RFCs allow.
"""

import enum
import struct
from dataclasses import dataclass
from typing import Final

from shm.qp_spec import RTR_NONE, RTR_READ, RTR_SEND, RTR_WRITE

REQUEST_KEY: Final = b"MPA ID Req Frame"
REPLY_KEY: Final = b"MPA ID Rep Frame"
HEADER_LENGTH: Final = 20
PRIVATE_DATA_MAX: Final = 512  # octets that PD_Length may announce (RFC 5044 §7.1.1)
ENHANCED_LENGTH: Final = 4  # IRD and ORD, in front of the consumer's private data (RFC 6581 §4)
REVISIONS: Final = (1, 2)
DEPTH_MAX: Final = 0x3FFE  # of IRD and ORD: 14 bits, and all ones mean something else
NOT_NEGOTIATED: Final = 0x3FFF  # the consumer agrees on IRD and ORD by other means

# Flags of the header.
MARKERS: Final = 0x80  # "I want markers in what I receive"
CRC: Final = 0x40
REJECT: Final = 0x20
ENHANCED: Final = 0x10

# Bits above the depths of the enhanced words.
PEER_TO_PEER: Final = 0x8000  # A, with IRD
RTR_SEND_BIT: Final = 0x4000  # B, with IRD
RTR_WRITE_BIT: Final = 0x8000  # C, with ORD
RTR_READ_BIT: Final = 0x4000  # D, with ORD
DEPTH_MASK: Final = 0x3FFF

# How long each side waits for the other (RFC 5044 §7.1.3 asks for a limit and names none).
REQUEST_SECONDS: Final = 5.0
REPLY_SECONDS: Final = 10.0

_HEADER: Final = struct.Struct(">16sBBH")
_DEPTHS: Final = struct.Struct(">HH")


class Rtr(enum.IntFlag):
    """How the active side says "ready to receive" in peer-to-peer mode: a message of no bytes."""

    NONE = RTR_NONE
    SEND = RTR_SEND
    WRITE = RTR_WRITE
    READ = RTR_READ


# What a passive side picks first: a Write costs it neither a receive nor an answer.
RTR_PREFERENCE: Final = (Rtr.WRITE, Rtr.READ, Rtr.SEND)


class MpaError(ConnectionError):
    """The peer's Request or Reply is not one. `code` is the MPA error (RFC 5044 §8, RFC 6581 §9)
    that a Terminate would carry.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Rejected(ConnectionRefusedError):
    """The passive side rejected the connection; `private_data` is what it said."""

    def __init__(self, private_data: bytes) -> None:
        super().__init__("the peer rejected the connection")
        self.private_data = private_data


BAD_FRAME: Final = 4  # invalid MPA Request or Reply Frame
LOCAL_CATASTROPHIC: Final = 5
INSUFFICIENT_IRD: Final = 6
NO_MATCHING_RTR: Final = 7


@dataclass(frozen=True, slots=True)
class Frame:
    """One Request or Reply. `ird` and `ord` count only if `enhanced`; `rtr` lists what is offered
    (Request) or chosen (Reply), if `peer_to_peer`.
    """

    reply: bool = False
    revision: int = 2
    markers: bool = False
    crc: bool = True
    reject: bool = False
    enhanced: bool = True
    ird: int = 0
    ord: int = 0
    peer_to_peer: bool = False
    rtr: Rtr = Rtr.NONE
    private_data: bytes = b""

    def encode(self) -> bytes:
        """As bytes. Raises ValueError for what cannot be said."""
        if self.revision not in REVISIONS or (self.enhanced and self.revision < 2):
            raise ValueError(f"MPA revision {self.revision} with IRD and ORD: use revision 2")
        for name, depth in (("IRD", self.ird), ("ORD", self.ord)):
            if not 0 <= depth <= NOT_NEGOTIATED:
                raise ValueError(f"{name} {depth} is not in 0..{DEPTH_MAX}")
        flags = MARKERS * self.markers | CRC * self.crc | REJECT * self.reject
        body = self.private_data
        if self.enhanced:
            flags |= ENHANCED
            first = self.ird | PEER_TO_PEER * self.peer_to_peer
            first |= RTR_SEND_BIT * (Rtr.SEND in self.rtr)
            second = self.ord | RTR_WRITE_BIT * (Rtr.WRITE in self.rtr)
            second |= RTR_READ_BIT * (Rtr.READ in self.rtr)
            body = _DEPTHS.pack(first, second) + body
        if len(body) > PRIVATE_DATA_MAX:
            raise ValueError(
                f"{len(self.private_data)} octets of private data: "
                f"{PRIVATE_DATA_MAX - ENHANCED_LENGTH * self.enhanced} can be sent"
            )
        key = REPLY_KEY if self.reply else REQUEST_KEY
        return _HEADER.pack(key, flags, self.revision, len(body)) + body


def body_length(header: bytes, reply: bool) -> int:
    """PD_Length of a Request or Reply whose first 20 bytes these are. Raises MpaError."""
    what = "Reply" if reply else "Request"
    key, flags, revision, length = _HEADER.unpack(header)
    if key != (REPLY_KEY if reply else REQUEST_KEY):
        raise MpaError(f"no MPA {what}: it begins with {key[:16]!r}", BAD_FRAME)
    if revision not in REVISIONS:
        raise MpaError(f"MPA {what} of revision {revision}: 1 and 2 are known", BAD_FRAME)
    if length > PRIVATE_DATA_MAX:
        raise MpaError(f"MPA {what} announces {length} octets, 512 are allowed", BAD_FRAME)
    if flags & REJECT and not reply:
        raise MpaError("MPA Request with the bit that rejects one", BAD_FRAME)
    if revision >= 2 and flags & ENHANCED and length < ENHANCED_LENGTH:
        raise MpaError(
            f"MPA {what} says that IRD and ORD follow, in {length} octets: 4 are needed", BAD_FRAME
        )
    return int(length)


def decode(header: bytes, body: bytes, reply: bool) -> Frame:
    """A Request or Reply from its 20 bytes and its PD_Length octets. Raises MpaError."""
    if len(body) != body_length(header, reply):
        raise ValueError("the body has another length than its header says")
    _, flags, revision, _ = _HEADER.unpack(header)
    enhanced = revision >= 2 and bool(flags & ENHANCED)
    ird = order = first = second = 0
    if enhanced:
        first, second = _DEPTHS.unpack_from(body)
        ird, order, body = first & DEPTH_MASK, second & DEPTH_MASK, body[ENHANCED_LENGTH:]
    rtr = Rtr.SEND * bool(first & RTR_SEND_BIT)
    rtr |= Rtr.WRITE * bool(second & RTR_WRITE_BIT)
    rtr |= Rtr.READ * bool(second & RTR_READ_BIT)
    peer_to_peer = bool(first & PEER_TO_PEER)
    rejected = bool(flags & REJECT)
    if peer_to_peer and not rtr and not rejected:
        raise MpaError("peer-to-peer without a way to say ready to receive", NO_MATCHING_RTR)
    return Frame(
        reply=reply,
        revision=revision,
        markers=bool(flags & MARKERS),
        crc=bool(flags & CRC),
        reject=rejected,
        enhanced=enhanced,
        ird=ird,
        ord=order,
        peer_to_peer=peer_to_peer,
        rtr=Rtr(rtr),
        private_data=bytes(body),
    )


@dataclass(frozen=True, slots=True)
class Wishes:
    """What our side wants of a connection. `rtr`: ways of saying ready that are offered or
    taken; Rtr.NONE: no peer-to-peer mode.
    """

    revision: int = 2
    markers: bool = False
    crc: bool = True
    ird: int = 16
    ord: int = 16
    rtr: Rtr = Rtr.NONE
    private_data: bytes = b""

    def __post_init__(self) -> None:
        if self.revision not in REVISIONS:
            raise ValueError(f"MPA revision {self.revision}: 1 and 2 are known")
        for name, depth in (("IRD", self.ird), ("ORD", self.ord)):
            if not 0 <= depth <= DEPTH_MAX:
                raise ValueError(f"{name} {depth} is not in 0..{DEPTH_MAX}")
        if self.rtr and self.revision < 2:
            raise ValueError("MPA revision 1 has no peer-to-peer mode: use revision 2")


@dataclass(frozen=True, slots=True)
class Startup:
    """What both sides agreed on: how full operation begins on this side."""

    active: bool
    revision: int
    crc: bool
    markers_rx: bool
    markers_tx: bool
    ird: int
    ord: int
    rtr: Rtr
    private_data: bytes


def request(wishes: Wishes) -> Frame:
    """The Request of an active side."""
    enhanced = wishes.revision >= 2
    return Frame(
        revision=wishes.revision,
        markers=wishes.markers,
        crc=wishes.crc,
        enhanced=enhanced,
        ird=wishes.ird,
        ord=wishes.ord,
        peer_to_peer=bool(wishes.rtr),
        rtr=wishes.rtr,
        private_data=wishes.private_data,
    )


def answer(asked: Frame, wishes: Wishes) -> tuple[Frame, Startup]:
    """The Reply of a passive side that accepts, and what was agreed. Raises MpaError.

    Our ORD is lowered to the peer's IRD; our IRD stays what it is, and the peer lowers its ORD to
    it (RFC 6581 §4.1). A peer that names no depths is believed to keep to ours.
    """
    ird, order = wishes.ird, wishes.ord
    if asked.enhanced and asked.ird != NOT_NEGOTIATED:
        order = min(order, asked.ird)
    chosen = Rtr.NONE
    if asked.peer_to_peer:
        chosen = next((kind for kind in RTR_PREFERENCE if kind in asked.rtr), Rtr.NONE)
    reply = Frame(
        reply=True,
        revision=asked.revision,
        markers=wishes.markers,
        crc=wishes.crc or asked.crc,
        enhanced=asked.enhanced,
        ird=ird,
        ord=order,
        peer_to_peer=asked.peer_to_peer,
        rtr=chosen,
        private_data=wishes.private_data,
    )
    agreed = Startup(
        active=False,
        revision=asked.revision,
        crc=reply.crc,
        markers_rx=wishes.markers,
        markers_tx=asked.markers,
        ird=ird,
        ord=order,
        rtr=chosen,
        private_data=asked.private_data,
    )
    return reply, agreed


def rejection(asked: Frame, private_data: bytes = b"") -> Frame:
    """The Reply of a passive side that does not want this connection."""
    return Frame(
        reply=True,
        revision=asked.revision,
        markers=False,
        crc=asked.crc,
        reject=True,
        enhanced=asked.enhanced,
        private_data=private_data,
    )


def agree(wishes: Wishes, reply: Frame) -> Startup:
    """What an active side has agreed on with a Reply. Raises Rejected, MpaError."""
    if reply.reject:
        raise Rejected(reply.private_data)
    if reply.revision != wishes.revision:
        raise MpaError(
            f"the peer answers a Request of revision {wishes.revision} with {reply.revision}: "
            f"connect with revision={reply.revision}",
            BAD_FRAME,
        )
    if wishes.revision >= 2 and not reply.enhanced:
        raise MpaError("the peer's Reply leaves out IRD and ORD", BAD_FRAME)
    ird, order = wishes.ird, wishes.ord
    if reply.enhanced and reply.ird != NOT_NEGOTIATED:
        order = min(order, reply.ird)
    if reply.enhanced and reply.ord != NOT_NEGOTIATED and reply.ord > ird:
        raise MpaError(
            f"the peer wants {reply.ord} outstanding reads, {ird} were granted", INSUFFICIENT_IRD
        )
    chosen = reply.rtr if reply.peer_to_peer else Rtr.NONE
    if reply.peer_to_peer and (len(chosen) != 1 or chosen not in wishes.rtr):
        raise MpaError(
            f"the peer chose {chosen!r} as ready to receive of {wishes.rtr!r}", NO_MATCHING_RTR
        )
    return Startup(
        active=True,
        revision=wishes.revision,
        crc=reply.crc or wishes.crc,
        markers_rx=wishes.markers,
        markers_tx=reply.markers,
        ird=ird,
        ord=order,
        rtr=chosen,
        private_data=reply.private_data,
    )


class FrameReader:
    """Reads one Request or Reply and not a byte beyond it: whoever feeds it asks `wanted` each
    time. `deadline` is in the unit of `now`.
    """

    def __init__(self, reply: bool, now: float, seconds: float | None = None) -> None:
        limit = REPLY_SECONDS if reply else REQUEST_SECONDS
        self.deadline = now + (limit if seconds is None else seconds)
        self.frame: Frame | None = None
        self._reply, self._data, self._length = reply, b"", HEADER_LENGTH

    @property
    def wanted(self) -> int:
        """Bytes still missing; 0 when the frame is there."""
        return self._length - len(self._data)

    def receive(self, data: bytes) -> None:
        """Take up to `wanted` bytes. Raises MpaError."""
        if len(data) > self.wanted:
            raise ValueError(f"{len(data)} bytes, {self.wanted} were wanted")
        self._data += data
        if self.wanted == 0 and self._length == HEADER_LENGTH:
            self._length += body_length(self._data, self._reply)
        if self.wanted == 0:
            header, body = self._data[:HEADER_LENGTH], self._data[HEADER_LENGTH:]
            self.frame = decode(header, body, self._reply)

    def check(self, now: float) -> None:
        """Raise MpaError once the peer has taken too long."""
        if self.frame is None and now >= self.deadline:
            what = "Reply" if self._reply else "Request"
            raise MpaError(f"no complete MPA {what} in time", LOCAL_CATASTROPHIC)
