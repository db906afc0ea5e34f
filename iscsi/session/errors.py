"""What a session raises, all of it in one place.

  SCSIError        a command ended with a status other than GOOD; `sense` is decoded (wire.errors)
  TransportError   the way to the target failed: connection, login or silence
    ConnectionLost, LoginTimeout, TooManyRedirects, PingTimeout
  CommandTimeout   one command took longer than `Timeouts.command_s`; what it did is not known
  UnknownOutcome   the connection was lost under a command that must not be sent twice
  ReservationLost  what RESERVE(6) or (10) held ended with the connection or by a reset
  UnitChanged      after a reconnection another unit, or one of another size, answers; or a
                   removable medium may be another one
  LoginRejected    the target refused the login (wire.errors); AuthError where it was the secret
  RemoteProtocolError  the target broke the protocol (wire.errors)
  OutOfRange, NoSuchUnit, NotSupported, SessionClosed  the caller asked for what cannot be

Errors of the engine are in `host.errors`. While recovery is on (`Options.recovery`) a lost
connection shows up only when the limit is reached.
"""

from iscsi.wire.errors import LoginRejected, ScsiError

SCSIError = ScsiError


class SessionError(Exception):
    """Base of everything a session raises on its own account."""


class TransportError(SessionError):
    """The connection to the target cannot be made or kept."""


class ConnectionLost(TransportError, ConnectionError):
    """The connection to the target is over; the message says how."""


class PingTimeout(ConnectionLost):
    """Nothing came from the target, not even the answers to pings."""


class CommandTimeout(SessionError, TimeoutError):
    """A command was not answered in time and was given up; it may have been executed."""


class UnknownOutcome(SessionError):
    """The connection was lost before the answer came, and the command is none of those that may be
    sent again: it was executed or it was not. Look at the unit's state before going on.
    """


class UnitChanged(SessionError):
    """After a reconnection the unit is another one, or has another size, or its medium was changed:
    open the device again.
    """


class ReservationLost(SessionError):
    """The unit was reserved by RESERVE, and the reservation ended with the connection, or by a
    reset: others may have changed it since. Open the device again. (Persistent reservations
    survive.)
    """


class LoginTimeout(TransportError, TimeoutError):
    """The target did not finish the login in time."""


class AuthError(SessionError, LoginRejected):
    """The target refused our credentials (Login Status 0x0201 or 0x0202), or it did not prove its
    own (`status` 0). Trying again with the same ones does not help.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        Exception.__init__(self, message)
        self.status_class, self.detail = status >> 8, status & 0xFF


class TooManyRedirects(TransportError):
    """Each target sends the login on to another one."""


class NotSupported(SessionError):
    """The URL or the target asks for something this release does not do."""


class NoSuchUnit(SessionError):
    """There is no logical unit with this number at the target, or it is no block device."""


class OutOfRange(SessionError, ValueError):
    """The blocks asked for do not all exist; nothing was sent."""


class SessionClosed(SessionError, ValueError):
    """The session or device was closed."""
