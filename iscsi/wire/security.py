"""The security stage of a login as a strategy (RFC 7143 §12), so that the login machines know
stages and PDUs only. Here is the method None; others have the same four members.
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

    def offer(self) -> list[Pair]:
        """The initiator's first security keys."""

    def receive(self, pairs: list[Pair]) -> list[Pair]:
        """Take the peer's security keys, return ours. Raises LoginRejected (target) with the
        status to send, or RemoteProtocolError.
        """


class InitiatorNone:
    """An initiator that authenticates nobody and offers nothing but None."""

    is_required = False
    is_complete = True

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

    def offer(self) -> list[Pair]:
        """A target offers no method; the initiator does."""
        return []

    def receive(self, pairs: list[Pair]) -> list[Pair]:
        """Choose None if it was offered, else refuse the login."""
        answers: list[Pair] = []
        for key, value in pairs:
            if key != AUTH_METHOD or answers:
                raise RemoteProtocolError(f"{key} has no place in this security stage")
            if NONE not in value.split(","):
                status = LoginStatus.AUTHENTICATION_FAILURE
                raise LoginRejected(status >> 8, status & 0xFF, f"AuthMethod={value}, not None")
            answers.append((AUTH_METHOD, NONE))
        return answers
