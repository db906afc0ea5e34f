"""The security stage of a login as a strategy (RFC 7143 §12), so that the login machines know
stages and PDUs only. Here are the protocols and the method None; `iscsi.wire.chap` has CHAP.
"""

from typing import Final, Protocol

from iscsi.wire.errors import LoginRejected, LoginStatus, RemoteProtocolError
from iscsi.wire.text import NONE, Pair

AUTH_METHOD: Final = "AuthMethod"


class Security(Protocol):
    """One side of an authentication method."""

    @property
    def is_required(self) -> bool:
        """True if the security stage may not be skipped."""

    @property
    def is_complete(self) -> bool:
        """True when this side is content to leave the security stage."""

    def receive(self, pairs: list[Pair]) -> list[Pair]:
        """Take the peer's security keys, return ours. Raises LoginRejected (target) with the
        status to send, or RemoteProtocolError.
        """


class InitiatorSecurity(Security, Protocol):
    """The initiator's side, which makes the first offer and asks for the next stage."""

    @property
    def wants_transit(self) -> bool:
        """True when nothing more is to be said: the T bit is set, and `is_complete` decides
        whether the target's consent will do.
        """

    def offer(self) -> list[Pair]:
        """The first security keys."""


class TargetSecurity(Security, Protocol):
    """The target's side."""

    @property
    def user(self) -> str | None:
        """The name that the initiator proved, None before that and without authentication."""


class InitiatorNone:
    """An initiator that authenticates nobody and offers nothing but None."""

    is_required = False
    is_complete = True
    wants_transit = True

    def offer(self) -> list[Pair]:
        """AuthMethod=None alone: offering CHAP without credentials makes some targets fail."""
        return [(AUTH_METHOD, NONE)]

    def receive(self, pairs: list[Pair]) -> list[Pair]:
        """Only AuthMethod=None can come back."""
        for key, value in pairs:
            if (key, value) != (AUTH_METHOD, NONE):
                raise RemoteProtocolError(f"{key}={value} does not answer AuthMethod=None")
        return []


class TargetNone:
    """A target that lets initiators in without authentication."""

    is_required = False
    is_complete = True
    user = None

    def __init__(self) -> None:
        self._answered = False

    def receive(self, pairs: list[Pair]) -> list[Pair]:
        """Choose None if it was offered, else refuse the login."""
        answers: list[Pair] = []
        for key, value in pairs:
            if key != AUTH_METHOD or self._answered:
                raise authentication_failure(f"{key} has no place here")
            if NONE not in value.split(","):
                raise authentication_failure(f"AuthMethod={value}, not None")
            self._answered = True
            answers.append((AUTH_METHOD, NONE))
        return answers


def authentication_failure(message: str) -> LoginRejected:
    """The refusal with status 0x0201. The message is for our own log: the peer sees the status."""
    status = LoginStatus.AUTHENTICATION_FAILURE
    return LoginRejected(status >> 8, status & 0xFF, message)
