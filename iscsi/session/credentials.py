"""An initiator's CHAP credentials, from a URL and libiscsi's environment variables. A password goes
from here into a hash and nowhere else: not into a repr, a message or a log.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from iscsi.session.errors import AuthError
from iscsi.wire.chap import (
    ALGORITHM_NUMBERS,
    ALGORITHMS,
    INITIATOR_ALGORITHMS,
    ChapAccount,
    InitiatorChap,
    PeerNotAuthenticated,
    require_different,
)
from iscsi.wire.errors import LoginRejected, LoginStatus
from iscsi.wire.names import Portal
from iscsi.wire.security import InitiatorNone, InitiatorSecurity
from iscsi.wire.url import IscsiUrl, UrlError

USER: Final = "LIBISCSI_CHAP_USERNAME"
PASSWORD: Final = "LIBISCSI_CHAP_PASSWORD"
TARGET_USER: Final = "LIBISCSI_CHAP_TARGET_USERNAME"
TARGET_PASSWORD: Final = "LIBISCSI_CHAP_TARGET_PASSWORD"

_ABOUT_US: Final = (LoginStatus.AUTHENTICATION_FAILURE, LoginStatus.AUTHORIZATION_FAILURE)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The initiator's account, and the target's where it has to prove itself (mutual CHAP).

    `algorithms` are CHAP_A numbers in order of preference. ValueError for equal secrets.
    """

    account: ChapAccount
    target: ChapAccount | None = None
    algorithms: tuple[int, ...] = INITIATOR_ALGORITHMS

    def __post_init__(self) -> None:
        require_different(self.account, self.target)
        if not self.algorithms or not ALGORITHMS.keys() >= set(self.algorithms):
            raise ValueError(f"CHAP algorithms {self.algorithms}: choose from {list(ALGORITHMS)}")

    @classmethod
    def of(
        cls,
        user: str,
        password: str,
        target_user: str | None = None,
        target_password: str | None = None,
    ) -> "Credentials":
        """Credentials from plain names and passwords. Raises ValueError."""
        target = None
        if target_user is not None:
            target = ChapAccount(target_user, (target_password or "").encode())
        return cls(ChapAccount(user, password.encode()), target)


def credentials_of(
    url: IscsiUrl, environment: Mapping[str, str] = os.environ
) -> Credentials | None:
    """What a URL and the environment say; the URL wins. None if neither names a user.

    Raises UrlError for a user without a password, a target's account without our own, and a
    secret used both ways.
    """
    if url.options.get("auth") == "none":
        return None
    account = _account("user%password@", url.user, url.password, USER, PASSWORD, environment)
    user, password = url.options.get("target_user"), url.options.get("target_password")
    target = _account(
        "target_user=, target_password=", user, password, TARGET_USER, TARGET_PASSWORD, environment
    )
    if account is None:
        if target is not None and url.options.get("target_user") is not None:
            raise UrlError("target_user= needs our own user%password@ too: mutual CHAP proves both")
        return None
    try:
        return Credentials(account, target, _algorithms(url))
    except ValueError as error:
        raise UrlError(str(error)) from None


def _account(
    form: str,
    user: str | None,
    password: str | None,
    user_variable: str,
    password_variable: str,
    environment: Mapping[str, str],
) -> ChapAccount | None:
    if user is None:
        user, from_environment = environment.get(user_variable), True
    else:
        from_environment = False
    if not user:
        if password is not None:
            raise UrlError(f"there is a password and no user: expected {form} or {user_variable}")
        return None
    if password is None:
        password = environment.get(password_variable)
    if not password:
        wanted = password_variable if from_environment else f"{form} or {password_variable}"
        raise UrlError(f"user {user!r} has no password: expected {wanted}")
    try:
        return ChapAccount(user, password.encode(errors="surrogateescape"))
    except ValueError as error:
        raise UrlError(str(error)) from None


def _algorithms(url: IscsiUrl) -> tuple[int, ...]:
    wanted = url.options.get("auth")
    return INITIATOR_ALGORITHMS if wanted is None else (ALGORITHM_NUMBERS[wanted],)


def security_of(credentials: Credentials | None) -> InitiatorSecurity:
    """The security strategy of one login. Without credentials CHAP is never offered."""
    if credentials is None:
        return InitiatorNone()
    return InitiatorChap(credentials.account, credentials.target, algorithms=credentials.algorithms)


@contextmanager
def auth_errors(portal: Portal, credentials: Credentials | None) -> Iterator[None]:
    """Turn what a login says about credentials into AuthError, with what to change."""
    try:
        yield
    except PeerNotAuthenticated as error:
        raise AuthError(f"the target at {portal.address} is not to be trusted: {error}") from error
    except LoginRejected as refused:
        if refused.status not in _ABOUT_US:
            raise
        who = "without credentials" if credentials is None else f"as {credentials.account.user!r}"
        hint = f": expected user%password@ in the URL, or {USER} and {PASSWORD}"
        raise AuthError(
            f"the target at {portal.address} does not let us in {who}: {refused}"
            + (hint if credentials is None else ""),
            refused.status,
        ) from refused
