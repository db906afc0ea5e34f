"""What both roles of a login share (RFC 7143 §6.3): one PDU in, one PDU out, text that may span
several, and the rules for stages. Nothing is read ahead, so the byte after the last login PDU
belongs to the full feature phase.
"""

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from iscsi.wire import bhs, text
from iscsi.wire.bhs import Buffer, Header, Opcode
from iscsi.wire.errors import (
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
)
from iscsi.wire.keys import (
    KEYS,
    ConnectionParams,
    IserParams,
    Place,
    Proposal,
    Rule,
    Sender,
    SessionParams,
    value_limit,
)
from iscsi.wire.negotiation import Negotiation
from iscsi.wire.text import Pair

MAX_LOGIN_SEGMENT: Final = 8192  # the default MaxRecvDataSegmentLength, in force during login
MAX_EXCHANGES: Final = 64  # PDUs from the peer in one login
VERSION: Final = 0
_RESPONSE_WINDOW: Final = 1


class Stage(IntEnum):
    """CSG and NSG values; 2 is reserved."""

    SECURITY = 0
    OPERATIONAL = 1
    FULL_FEATURE = 3


_PLACES: Final = {Stage.SECURITY: Place.SECURITY, Stage.OPERATIONAL: Place.OPERATIONAL}


@dataclass(frozen=True, slots=True)
class LoginResult:
    """What a finished login leaves behind, on either side.

    `stat_sn` is the next StatSN the target sends; `cmd_sn` the CmdSN of the first command.
    On a connection added to a session, an initiator's `session` holds defaults: the session has
    its own. `user` is the CHAP name that the initiator proved, None without authentication. `iser`
    is what the peer declared for a connection over RDMA, None over TCP.
    """

    session: SessionParams
    connection: ConnectionParams
    initiator_name: str
    target_name: str | None
    isid: int
    tsih: int
    cid: int
    cmd_sn: int
    max_cmd_sn: int
    stat_sn: int
    target_portal_group_tag: int | None = None
    target_alias: str | None = None
    user: str | None = None
    iser: IserParams | None = None

    @property
    def is_discovery(self) -> bool:
        """True for a discovery session, which names no target."""
        return self.target_name is None


@dataclass(frozen=True, slots=True)
class LoginIdentity:
    """Who wants what: all that a target's policy judges. `target_name` None means discovery."""

    initiator_name: str
    target_name: str | None
    isid: int
    tsih: int
    cid: int


class LoginMachine(ABC):
    """Base of `InitiatorLogin` and `TargetLogin`.

    Feed it exactly one PDU at a time (ask `segment_length` after each header) and send what
    `data_to_send` gives, also after an error: a target's refusal is in there.
    """

    _peer_opcode: Opcode
    _peer_sender: Sender

    def __init__(self, stage: Stage, proposal: Proposal) -> None:
        self.stage = stage
        self.result: LoginResult | None = None
        self.error: ProtocolError | None = None
        self._proposal = proposal
        self._negotiation = Negotiation(self._peer_sender, proposal)
        self._accumulator = text.Accumulator()
        self._chunks: deque[tuple[bytes, bool]] = deque()
        self._out = bytearray()
        self._exchanges = 0

    @property
    def done(self) -> bool:
        """True once both sides agreed on the full feature phase; `result` is then set."""
        return self.result is not None

    @property
    def failed(self) -> bool:
        """True after any error; `error` holds it and the connection is to be closed."""
        return self.error is not None

    def data_to_send(self) -> bytes:
        """Bytes for the peer, once."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def segment_length(self, header: Buffer) -> int:
        """Bytes (padding included) to read after this 48-byte header.

        Checks the header first: a PDU of another kind, with AHS, or with more than 8192 bytes
        of data ends the login here, before any of its data is read.
        """
        self._require_open()
        try:
            return bhs.padded(self._check_header(header).data_segment_length)
        except ProtocolError as error:
            self._fail(error)
            raise

    def receive_pdu(self, header: Buffer, data: Buffer) -> None:
        """Take one PDU: its header, and its data with or without padding.

        Raises what the login ends with: RemoteProtocolError, LoginRejected, LoginRedirected.
        """
        self._require_open()
        try:
            decoded = self._check_header(header)
            length = decoded.data_segment_length
            if len(data) not in (length, bhs.padded(length)):
                raise LocalProtocolError(f"{len(data)} bytes of data where {length} were due")
            self._exchanges += 1
            if self._exchanges > MAX_EXCHANGES:
                raise RemoteProtocolError(f"no end of login after {MAX_EXCHANGES} PDUs")
            self._receive(decoded, bytes(data[:length]))
        except ProtocolError as error:
            self._fail(error)
            raise

    def _require_open(self) -> None:
        if self.done or self.failed:
            raise LocalProtocolError("this login has ended")

    def _check_header(self, header: Buffer) -> Header:
        decoded = bhs.decode(header)
        if decoded.opcode is not self._peer_opcode:
            self._refuse_opcode(decoded)
        if decoded.total_ahs_words:
            raise RemoteProtocolError("additional header segments in a login PDU")
        if decoded.data_segment_length > MAX_LOGIN_SEGMENT:
            raise RemoteProtocolError(
                f"{decoded.data_segment_length} bytes of data in a login PDU; "
                f"{MAX_LOGIN_SEGMENT} are allowed"
            )
        return decoded

    def _check_stages(self, header: Header) -> None:
        """T, C, CSG and NSG (RFC 7143 §11.12.1 to §11.12.4). NSG means nothing while T is 0."""
        if header.transit and header.continued:
            raise RemoteProtocolError("T and C are both set")
        if header.csg != self.stage:
            raise RemoteProtocolError(f"CSG {header.csg} while the login is in stage {self.stage}")
        if header.transit and (header.nsg <= header.csg or header.nsg not in list(Stage)):
            raise RemoteProtocolError(f"no transition from stage {header.csg} to {header.nsg}")

    def _sort(self, pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
        """The keys of the security stage's method, and those to negotiate."""
        in_security = self.stage is Stage.SECURITY
        security = [pair for pair in pairs if in_security and _is_security(pair[0])]
        return security, [pair for pair in pairs if pair not in security]

    def _negotiate(self, pairs: list[Pair]) -> list[Pair]:
        return self._negotiation.receive(pairs, _PLACES[self.stage])

    def _gather(self, header: Header, data: bytes) -> list[Pair] | None:
        """The pairs of a complete text, or None while C bits say that more will come."""
        whole = self._accumulator.add(data, continued=bool(header.continued))
        return None if whole is None else text.decode(whole, value_limit)

    def _say(self, pairs: list[Pair]) -> None:
        self._chunks.extend(text.split(text.encode(pairs), MAX_LOGIN_SEGMENT))

    def _refuse_opcode(self, header: Header) -> None:
        raise RemoteProtocolError(f"{header.opcode.name} during login")

    @abstractmethod
    def _receive(self, header: Header, data: bytes) -> None:
        """Act on one whole Login PDU of the peer's, by role."""

    def _fail(self, error: ProtocolError) -> None:
        self.error = error


def _is_security(name: str) -> bool:
    return name in KEYS and KEYS[name].rule is Rule.SECURITY
