"""What a session raises on its own account. What the target says in its own words comes from
`iscsi.wire.errors` (LoginRejected, ScsiError, RemoteProtocolError), the engine in `host.errors`.
"""


class SessionError(Exception):
    """Base of everything a session raises on its own account."""


class ConnectionLost(SessionError, ConnectionError):
    """The connection to the target is over; the message says how. Open the device again."""


class CommandTimeout(SessionError, TimeoutError):
    """The target made no progress for as long as the session waits; the connection was closed."""


class LoginTimeout(SessionError, TimeoutError):
    """The target did not finish the login in time."""


class TooManyRedirects(SessionError):
    """Each target sends the login on to another one."""


class NotSupported(SessionError):
    """The URL or the target asks for something this release does not do."""


class NoSuchUnit(SessionError):
    """There is no logical unit with this number at the target, or it is no block device."""


class OutOfRange(SessionError, ValueError):
    """The blocks asked for do not all exist; nothing was sent."""


class SessionClosed(SessionError, ValueError):
    """The session or device was closed."""
