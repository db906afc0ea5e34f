"""Both of our roles with CHAP over sockets: what opens, what is refused, and what nobody sees."""

import asyncio
import logging

import pytest

import iscsi
from iscsi.session.credentials import Credentials
from iscsi.session.discovery import discover
from iscsi.session.errors import AuthError
from iscsi.target.access import AccessPolicy, Grant, TargetAccess
from iscsi.wire.chap import ALGORITHM_NUMBERS, ChapAccount
from iscsi.wire.url import UrlError
from shm.jit import JIT_DISABLED
from tests.iscsi.target.serving import BLOCK, BLOCKS, NAME, OTHER, Serving

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")

ALICE = ChapAccount("alice", b"hunter-for-alice")
DISK = ChapAccount("disk", b"hunter-for-disk")
GRANT = Grant(accounts=(ALICE,), own=DISK)
POLICY = AccessPolicy({NAME: TargetAccess((GRANT,)), OTHER: TargetAccess(())}, discovery=(GRANT,))
MUTUAL = "target_user=disk&target_password=hunter-for-disk"


@pytest.fixture(scope="module")
def served():
    with Serving(access=POLICY, linger_s=0.2) as server:
        yield server
        server.wait_idle()


@pytest.fixture(autouse=True)
def no_credentials_of_the_users(monkeypatch):
    for name in ("USERNAME", "PASSWORD", "TARGET_USERNAME", "TARGET_PASSWORD"):
        monkeypatch.delenv(f"LIBISCSI_CHAP_{name}", raising=False)


def url(served, credentials="alice%hunter-for-alice@", options="", target=NAME):
    return f"iscsi://{credentials}127.0.0.1:{served.port}/{target}/0?{options}"


@pytest.mark.parametrize("auth", [None, *ALGORITHM_NUMBERS])
@pytest.mark.parametrize("mutual", [False, True])
def test_the_right_credentials_open_a_device(served, auth, mutual):
    options = "&".join(filter(None, (auth and f"auth={auth}", MUTUAL if mutual else "")))
    with iscsi.open(url(served, options=options)) as disk:
        assert disk.block_count == BLOCKS
        assert bytes(disk.read(3, 1)) == served.disk.array[3 * BLOCK : 4 * BLOCK].tobytes()


def test_credentials_may_come_from_the_environment_or_the_caller(served, monkeypatch):
    own = Credentials.of("alice", "hunter-for-alice", "disk", "hunter-for-disk")
    with iscsi.open(url(served, ""), credentials=own) as disk:
        assert disk.block_count == BLOCKS
    with pytest.raises(AuthError):
        iscsi.open(url(served, ""))
    monkeypatch.setenv("LIBISCSI_CHAP_USERNAME", "alice")
    monkeypatch.setenv("LIBISCSI_CHAP_PASSWORD", "hunter-for-alice")
    with iscsi.open(url(served, "")) as disk:
        assert disk.block_count == BLOCKS


def test_an_event_loop_uses_the_same_credentials(served):
    async def first_block(address):
        async with await iscsi.aopen(address) as disk:
            return bytes(await disk.read(0, 1))

    found = asyncio.run(first_block(url(served, options=MUTUAL)))
    assert found == served.disk.array[:BLOCK].tobytes()
    with pytest.raises(AuthError):
        asyncio.run(first_block(url(served, "alice%hunter-wrong@")))


@pytest.mark.parametrize(
    ("credentials", "options", "target", "status"),
    [
        ("", "", NAME, 0x0201),
        ("alice%hunter-for-disk@", "", NAME, 0x0201),
        ("bob%hunter-for-alice@", "", NAME, 0x0201),
        ("alice%hunter-for-alice@", "target_user=disk&target_password=hunter-wrong", NAME, 0),
        ("alice%hunter-for-alice@", "target_user=tape&target_password=hunter-for-disk", NAME, 0),
        ("alice%hunter-for-alice@", "", OTHER, 0x0202),
    ],
)
def test_wrong_credentials_are_an_auth_error_that_shows_none(
    served, caplog, credentials, options, target, status
):
    with caplog.at_level(logging.DEBUG), pytest.raises(AuthError) as caught:
        iscsi.open(url(served, credentials, options, target))
    assert caught.value.status == status
    error = caught.value
    while error is not None:
        assert "hunter" not in str(error) + repr(error)
        error = error.__cause__ or error.__context__
    assert "hunter" not in caplog.text


def test_one_password_for_both_directions_is_refused_before_connecting():
    twice = "iscsi://u%hunter2@h.invalid/iqn.2026-01.a:b/0?target_user=t&target_password=hunter2"
    with pytest.raises(UrlError, match="share a secret") as caught:
        iscsi.open(twice)
    assert "hunter" not in str(caught.value)


def test_discovery_takes_the_credentials_of_its_url(served):
    portal = f"127.0.0.1:{served.port}"
    found = discover(f"iscsi://alice%hunter-for-alice@{portal}?{MUTUAL}")
    assert [target.name for target in found] == [NAME]
    with pytest.raises(AuthError, match="LIBISCSI_CHAP_USERNAME"):
        discover(f"iscsi://{portal}")


@pytest.mark.slow
def test_each_new_connection_of_a_session_is_authenticated_again():
    changed = Grant(accounts=(ChapAccount("alice", b"hunter-has-changed"),))
    with (
        Serving(access=POLICY, linger_s=0.2) as served,
        iscsi.open(url(served, options=MUTUAL)) as disk,
    ):
        for _ in range(2):
            disk.reconnect()
            assert bytes(disk.read(0, 1)) == served.disk.array[:BLOCK].tobytes()
        served.server.set_access(AccessPolicy({NAME: TargetAccess((changed,))}))
        assert len(disk.read(1, 1)) == BLOCK
        with pytest.raises(AuthError) as caught:
            disk.reconnect()
        assert caught.value.status == 0x0201
        with pytest.raises(AuthError):
            disk.read(1, 1)
