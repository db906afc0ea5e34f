"""Control PDUs of a connection: answers go to whoever asked, by tag; what the target says of its
own accord (asynchronous messages, rejects) is judged here. One rule: nothing here waits.
"""

from typing import Final

from iscsi.session.errors import ConnectionLost
from iscsi.wire import bhs
from iscsi.wire.bhs import AsyncEvent, Header, Opcode
from iscsi.wire.errors import RejectReason, RemoteProtocolError
from iscsi.wire.initiator import InitiatorConnection
from iscsi.wire.port import ControlPdu

EVENTS_KEPT: Final = 64
REJECTED: Final = -1  # a task management answer: the target does not know the function
_OFFSET_ITT: Final = bhs.OFFSET_ITT


class Controls:
    """What came on one connection. `pause_s` is what the target asks for before the next login."""

    def __init__(self) -> None:
        self.events: list[int] = []  # codes of the last asynchronous messages
        self.pause_s = 0
        self.logout_within_s: int | None = None  # the target asked for a logout
        self.wants_negotiation = False
        self._expected: dict[int, list[ControlPdu]] = {}
        self._rejected: set[int] = set()

    def expect(self, tag: int) -> None:
        """Keep what comes with this tag."""
        self._expected.setdefault(tag, [])

    def forget(self, tag: int) -> None:
        """Nobody waits for this tag any more."""
        self._expected.pop(tag, None)
        self._rejected.discard(tag)

    def answer(self, tag: int) -> ControlPdu | None:
        """The next answer with this tag, if it has come. Raises RemoteProtocolError if rejected."""
        if tag in self._rejected:
            self._rejected.discard(tag)
            raise RemoteProtocolError("the target rejected the request")
        waiting = self._expected.get(tag)
        return waiting.pop(0) if waiting else None

    def has(self, tag: int) -> bool:
        """Whether `answer` would give or raise something."""
        return bool(self._expected.get(tag)) or tag in self._rejected

    def take(self, wire: InitiatorConnection) -> None:
        """Look at the control PDUs that came. Raises what ends the connection."""
        for pdu in wire.controls():
            opcode = pdu.header.opcode
            if opcode is Opcode.ASYNC_MESSAGE:
                self._on_async(pdu.header)
            elif opcode is Opcode.REJECT:
                self._on_reject(pdu)
            elif pdu.header.itt in self._expected:
                self._expected[pdu.header.itt].append(pdu)

    def _on_async(self, header: Header) -> None:
        """Asynchronous messages (RFC 7143 §11.9.1): 0 is news of a unit, 255 the vendor's own."""
        event = header.async_event
        self.events = [*self.events[1 - EVENTS_KEPT :], event]
        if event in (AsyncEvent.CONNECTION_DROPPED, AsyncEvent.SESSION_DROPPED):
            self.pause_s = header.parameter2  # Time2Wait
            raise ConnectionLost("the target announced that it drops the connection")
        if event == AsyncEvent.LOGOUT_REQUESTED:
            self.logout_within_s = header.parameter3
        elif event == AsyncEvent.NEGOTIATION_REQUESTED:
            self.wants_negotiation = True

    def _on_reject(self, pdu: ControlPdu) -> None:
        """A Reject names its culprit by its header, when it holds a whole one (RFC 7143 §11.17).

        What the session asks by control PDUs fails alone; a data digest error of Data-Out is told
        again by the command's own status; anything else says that both sides differ about the
        protocol, and a new login is the way out.
        """
        culprit = pdu.data
        if len(culprit) >= bhs.BHS_LENGTH:
            opcode = culprit[0] & bhs.OPCODE_MASK
            tag = int.from_bytes(culprit[_OFFSET_ITT : _OFFSET_ITT + 4], "big")
            if tag in self._expected:
                self._rejected.add(tag)
                return
            is_digest = pdu.header.reject_reason == RejectReason.DATA_DIGEST_ERROR
            if is_digest and opcode == Opcode.DATA_OUT:
                return
        raise RemoteProtocolError(f"the target rejected a PDU of ours: {_reason(pdu)}")


def _reason(pdu: ControlPdu) -> str:
    code = pdu.header.reject_reason
    try:
        name = RejectReason(code).name.lower().replace("_", " ")
    except ValueError:
        name = "unknown reason"
    culprit = f", PDU 0x{pdu.data[0] & bhs.OPCODE_MASK:02x}" if pdu.data else ""
    return f"{name} (0x{code:02x}{culprit})"
