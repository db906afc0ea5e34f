"""Errors of the protocol core. The class says whose fault it was: `LocalProtocolError` is a bug
in the caller, `RemoteProtocolError` is the peer's, and a refusal is neither.
"""

from enum import IntEnum
from typing import Final

from iscsi.wire.sense import ScsiStatus, Sense


class RejectReason(IntEnum):
    """Reason codes of the Reject PDU (RFC 7143 §11.17.1)."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    TOO_MANY_IMMEDIATE_COMMANDS = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    LONG_OPERATION_REJECT = 0x0A
    NEGOTIATION_RESET = 0x0B  # deprecated by RFC 7143, still seen
    WAITING_FOR_LOGOUT = 0x0C


class LoginStatus(IntEnum):
    """Status-Class in the high byte, Status-Detail in the low one (RFC 7143 §11.13.5)."""

    SUCCESS = 0x0000
    TARGET_MOVED_TEMPORARILY = 0x0101
    TARGET_MOVED_PERMANENTLY = 0x0102
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    AUTHORIZATION_FAILURE = 0x0202
    TARGET_NOT_FOUND = 0x0203
    TARGET_REMOVED = 0x0204
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    CANNOT_INCLUDE_IN_SESSION = 0x0208
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B
    TARGET_ERROR = 0x0300
    SERVICE_UNAVAILABLE = 0x0301
    OUT_OF_RESOURCES = 0x0302


STATUS_CLASS_REDIRECTION: Final = 0x01
STATUS_CLASS_INITIATOR_ERROR: Final = 0x02
STATUS_CLASS_TARGET_ERROR: Final = 0x03


class ProtocolError(Exception):
    """Base of everything the protocol core raises about a connection. Its text may quote the peer,
    so control characters are shown escaped: nobody writes lines of his own into a log.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if text.isprintable() else text.encode("unicode_escape").decode()


class LocalProtocolError(ProtocolError):
    """This side asked for something the protocol does not allow; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol. `reject_reason` is what a full-feature Reject would carry."""

    def __init__(
        self, message: str, reject_reason: RejectReason = RejectReason.PROTOCOL_ERROR
    ) -> None:
        super().__init__(message)
        self.reject_reason = reject_reason


class LoginRejected(ProtocolError):
    """The target refused the login. Raised on both sides: by the initiator that reads the
    status, and by the target after it has queued the response that carries it.
    """

    def __init__(self, status_class: int, detail: int, message: str = "") -> None:
        self.status_class = status_class
        self.detail = detail
        reason = f"{login_status_name(self.status)} (status 0x{self.status:04x})"
        super().__init__(f"login refused: {reason}" + (f": {message}" if message else ""))

    @property
    def status(self) -> int:
        """Status-Class and Status-Detail as one 16-bit number."""
        return self.status_class << 8 | self.detail

    @property
    def is_retryable(self) -> bool:
        """True for target errors (class 3): the same request may succeed later."""
        return self.status_class == STATUS_CLASS_TARGET_ERROR


class LoginRedirected(ProtocolError):
    """The target lives elsewhere: log in at `address` (`host[:port][,tag]`) instead."""

    def __init__(self, address: str, *, permanent: bool = False) -> None:
        super().__init__(f"target moved {'permanently' if permanent else 'for now'} to {address}")
        self.address = address
        self.permanent = permanent


class ScsiError(Exception):
    """A SCSI command ended with a status other than GOOD. `sense` is decoded when there is any."""

    def __init__(self, status: int, sense: Sense | None = None, operation: str = "") -> None:
        self.status = status
        self.sense = sense
        what = f"{operation}: " if operation else ""
        super().__init__(f"{what}{_status_name(status)}" + (f": {sense}" if sense else ""))


def login_status_name(status: int) -> str:
    """Readable name of a 16-bit login status; unknown details get their class's name."""
    try:
        return LoginStatus(status).name.lower().replace("_", " ")
    except ValueError:
        classes = {1: "redirection", 2: "initiator error", 3: "target error"}
        return classes.get(status >> 8, "unknown status")


def _status_name(status: int) -> str:
    try:
        return ScsiStatus(status).name.replace("_", " ")
    except ValueError:
        return f"SCSI status 0x{status:02x}"
