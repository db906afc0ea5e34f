"""Text negotiation in the full feature phase, the target's side (RFC 7143 §6.2, §11.10, §11.11).
A connection has one exchange at a time, however many PDUs each way it takes. A request that does
not belong to it is refused and changes nothing.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from iscsi.wire import bhs, text
from iscsi.wire.bhs import Header
from iscsi.wire.errors import RejectReason, RemoteProtocolError

_TAG_MAX: Final = 0x7FFF_FFFF

Answer = Callable[[list[text.Pair]], bytes]


class Refused(Exception):
    """One request is rejected with `reason`; the session goes on."""

    def __init__(self, reason: RejectReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Reply:
    """The Text Response to send."""

    data: bytes = b""
    final: bool = False
    continued: bool = False
    ttt: int = bhs.RESERVED_TAG


class TextExchange:
    """One connection's exchange. Holds at most `max_length` bytes of a text that is coming in."""

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._tag = 0
        self._begin(None)

    def _begin(self, itt: int | None) -> None:
        self._itt = itt
        self._incoming = text.Accumulator(self._max_length)
        self._outgoing: deque[tuple[bytes, bool]] = deque()
        self._tag = self._tag % _TAG_MAX + 1

    @property
    def is_open(self) -> bool:
        """Whether a further request of the exchange is expected."""
        return self._itt is not None

    def request(self, header: Header, data: bytes, answer: Answer, limit: int) -> Reply:
        """Take a Text Request and make the response, with at most `limit` bytes of text.

        `answer` is called once per complete text. Refused: the request has no place here; one with
        text that cannot be read ends the exchange.
        """
        self._check_place(header)
        try:
            return self._take(header, data, answer, limit)
        except RemoteProtocolError as error:
            self._begin(None)
            raise Refused(RejectReason.PROTOCOL_ERROR, str(error)) from error

    def _check_place(self, header: Header) -> None:
        """Find out whether a request begins an exchange, goes on with it, or neither."""
        if header.ttt == bhs.RESERVED_TAG:
            if self.is_open and header.itt != self._itt:
                raise Refused(RejectReason.PROTOCOL_ERROR, "a second text negotiation beside one")
            self._begin(header.itt)  # the same tag again: the initiator starts over
        elif not self.is_open or header.ttt != self._tag:
            raise Refused(RejectReason.INVALID_PDU_FIELD, "a text request that continues nothing")
        # Our tag says enough: some initiators count their own on within an exchange.
        self._itt = header.itt

    def _take(self, header: Header, data: bytes, answer: Answer, limit: int) -> Reply:
        if header.final and header.continued:
            raise RemoteProtocolError("a text request with both F and C set")
        if self._outgoing:
            if data or header.continued:
                raise RemoteProtocolError("new text before the end of our answer")
        else:
            whole = self._incoming.add(data, continued=bool(header.continued))
            if whole is None:
                return Reply(ttt=self._tag)
            self._outgoing.extend(text.split(answer(text.decode(whole)), limit))
        piece, continued = self._outgoing.popleft()
        if continued or not header.final:
            return Reply(piece, continued=continued, ttt=self._tag)
        self._begin(None)
        return Reply(piece, final=True)
