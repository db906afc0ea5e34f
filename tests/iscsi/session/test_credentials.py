"""Credentials from URLs and the environment: which wins, what is missing, and none is shown."""

import pytest

from iscsi.session.credentials import Credentials, auth_errors, credentials_of, security_of
from iscsi.session.errors import AuthError, SessionError
from iscsi.wire.chap import INITIATOR_ALGORITHMS, ChapAccount, InitiatorChap, PeerNotAuthenticated
from iscsi.wire.errors import LoginRejected
from iscsi.wire.names import Portal
from iscsi.wire.security import InitiatorNone
from iscsi.wire.url import UrlError, parse_url

PORTAL = Portal("h")
PATH = "iqn.2026-01.org.example:disk/0"
OURS = {"LIBISCSI_CHAP_USERNAME": "eve", "LIBISCSI_CHAP_PASSWORD": "hunter-environment"}
THEIRS = {"LIBISCSI_CHAP_TARGET_USERNAME": "it", "LIBISCSI_CHAP_TARGET_PASSWORD": "hunter-target"}


def found(authority, options="", environment=None):
    return credentials_of(parse_url(f"iscsi://{authority}/{PATH}{options}"), environment or {})


def test_a_url_without_a_user_has_none_and_offers_no_chap():
    assert found("host") is None
    assert isinstance(security_of(None), InitiatorNone)


@pytest.mark.parametrize("authority", ["me%hunter2@host", "me:hunter2@host"])
def test_a_url_names_user_and_password(authority):
    assert found(authority) == Credentials(ChapAccount("me", b"hunter2"))


def test_mutual_credentials_come_from_options():
    both = found("me%hunter2@host", "?target_user=it&target_password=hunter3")
    assert both == Credentials.of("me", "hunter2", "it", "hunter3")
    assert isinstance(security_of(both), InitiatorChap)


def test_the_environment_stands_in_and_the_url_wins():
    assert found("host", environment=OURS) == Credentials.of("eve", "hunter-environment")
    assert found("me%hunter2@host", environment=OURS) == Credentials.of("me", "hunter2")
    assert found("me@host", environment=OURS) == Credentials.of("me", "hunter-environment")
    both = found("host", environment=OURS | THEIRS)
    assert both == Credentials.of("eve", "hunter-environment", "it", "hunter-target")
    over = found("host", "?target_user=me2&target_password=hunter3", OURS | THEIRS)
    assert over.target == ChapAccount("me2", b"hunter3")
    assert found("host", environment=THEIRS) is None
    assert found("host", "?auth=none", OURS) is None


@pytest.mark.parametrize(
    ("name", "numbers"), [("md5", (5,)), ("sha1", (6,)), ("sha-256", (7,)), ("SHA3-256", (8,))]
)
def test_auth_chooses_the_algorithm(name, numbers):
    assert found("me%hunter2@host", f"?auth={name}").algorithms == numbers
    assert found("me%hunter2@host").algorithms == INITIATOR_ALGORITHMS


@pytest.mark.parametrize(
    ("authority", "options", "environment", "told"),
    [
        ("me@host", "", {}, "'me' has no password: expected user%password@"),
        ("me%@host", "", {}, "'me' has no password"),
        ("host", "", {"LIBISCSI_CHAP_USERNAME": "eve"}, "expected LIBISCSI_CHAP_PASSWORD"),
        ("me%hunter2@host", "?target_user=it", {}, "'it' has no password: expected target_user="),
        ("me%hunter2@host", "?target_password=hunter3", {}, "a password and no user"),
        ("host", "?target_user=it&target_password=hunter3", {}, "needs our own user%password@"),
        ("me%hunter2@host", "?target_user=it&target_password=hunter2", {}, "share a secret"),
        ("u" * 256 + "%hunter2@host", "", {}, "255 bytes"),
    ],
)
def test_what_is_missing_is_told_without_any_password(authority, options, environment, told):
    with pytest.raises(UrlError) as caught:
        found(authority, options, environment)
    assert told in str(caught.value)
    assert "hunter" not in str(caught.value)


def test_credentials_show_no_password():
    both = found("me%hunter2@host", "?target_user=it&target_password=hunter3", OURS)
    assert "me" in repr(both)
    assert "hunter" not in repr(both) + str(both) + repr(security_of(both))


@pytest.mark.parametrize("status", [0x0201, 0x0202])
def test_a_refusal_of_credentials_is_an_auth_error(status):
    who = Credentials.of("me", "hunter2")
    with pytest.raises(AuthError, match="as 'me'") as caught, auth_errors(PORTAL, who):
        raise LoginRejected(status >> 8, status & 0xFF)
    assert caught.value.status == status
    assert isinstance(caught.value, SessionError)
    assert not caught.value.is_retryable


def test_a_refusal_without_credentials_says_where_they_go():
    with pytest.raises(AuthError, match="LIBISCSI_CHAP_PASSWORD"), auth_errors(PORTAL, None):
        raise LoginRejected(2, 1)


def test_a_target_that_does_not_prove_itself_is_an_auth_error_of_ours():
    who = Credentials.of("me", "hunter2")
    with pytest.raises(AuthError, match="h:3260 is not to be") as caught, auth_errors(PORTAL, who):
        raise PeerNotAuthenticated("its CHAP is wrong")
    assert caught.value.status == 0


def test_other_refusals_stay_what_they_are():
    with pytest.raises(LoginRejected) as caught, auth_errors(PORTAL, None):
        raise LoginRejected(2, 3)
    assert not isinstance(caught.value, AuthError)
