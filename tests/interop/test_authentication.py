"""CHAP with others: our initiator at tgt; libiscsi's tools and QEMU at our target."""

import os
import subprocess

import pytest

import iscsi
from iscsi.session.discovery import discover
from iscsi.session.errors import AuthError
from iscsi.target.access import AccessPolicy, Grant, TargetAccess
from iscsi.wire.chap import ChapAccount
from iscsi.wire.errors import LoginRejected
from shm.jit import JIT_DISABLED
from tests.iscsi.session.tgt import TARGET, tgt_target
from tests.iscsi.target.serving import BLOCK, BLOCKS, NAME, OTHER, Serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(JIT_DISABLED, reason="the loops of both roles are compiled"),
]

ALICE = ChapAccount("alice", b"aliceknowsthis16")
DISK = ChapAccount("disk", b"diskknowsthat+16")
RUN_S = 30
WITHOUT = {name: value for name, value in os.environ.items() if not name.startswith("LIBISCSI_")}


# --- our initiator at tgt ------------------------------------------------------------------------


def bind(tgt, account, *more):
    words = ("--user", account.user, "--password", account.secret.decode())
    tgt.must("--op", "new", "--mode", "account", *words)
    tgt.must("--op", "bind", "--mode", "account", "--tid", "1", "--user", account.user, *more)


@pytest.fixture(scope="module")
def tgt(tmp_path_factory):
    with tgt_target(tmp_path_factory.mktemp("tgt")) as running:
        bind(running, ALICE)
        bind(running, DISK, "--outgoing")
        yield running


def tgt_url(tgt, credentials, options=""):
    return f"iscsi://{credentials}127.0.0.1:{tgt.port}/{TARGET}/1{options}"


MUTUAL = f"target_user=disk&target_password={DISK.secret.decode().replace('+', '%2B')}"


@pytest.mark.interop("tgtd", "tgtadm")
@pytest.mark.parametrize("credentials", ["alice%aliceknowsthis16@", "alice:aliceknowsthis16@"])
@pytest.mark.parametrize("options", ["", "?auth=md5", f"?{MUTUAL}", f"?auth=md5&{MUTUAL}"])
def test_tgt_lets_us_in_by_chap_both_ways(tgt, credentials, options):
    with iscsi.open(tgt_url(tgt, credentials, options)) as disk:
        disk.write(0, b"\x5a" * 512)
        assert bytes(disk.read(0, 1)) == b"\x5a" * 512


@pytest.mark.interop("tgtd", "tgtadm")
@pytest.mark.parametrize(
    ("credentials", "options", "status"),
    [
        ("", "", 0x0201),
        ("alice%aliceknowsthis17@", "", 0x0201),
        ("bob%aliceknowsthis16@", "", 0x0201),
        # tgt proves itself as disk; whom else we expect is not there.
        ("alice%aliceknowsthis16@", "?target_user=disk&target_password=diskknowsother16", 0),
        ("alice%aliceknowsthis16@", "?target_user=tape&target_password=diskknowsthat%2B16", 0),
    ],
)
def test_tgt_and_we_refuse_each_other_with_wrong_credentials(tgt, credentials, options, status):
    with pytest.raises(AuthError) as caught:
        iscsi.open(tgt_url(tgt, credentials, options))
    assert caught.value.status == status
    shown = str(caught.value) + repr(caught.value) + repr(caught.value.__cause__)
    assert "knows" not in shown


@pytest.mark.interop("tgtd", "tgtadm")
def test_what_tgt_means_by_7_is_sha1_which_is_why_7_is_never_offered_first(tgt):
    with pytest.raises(LoginRejected) as caught:
        iscsi.open(tgt_url(tgt, "alice%aliceknowsthis16@", "?auth=sha-256"))
    assert caught.value.status in (0x0200, 0x0201)


@pytest.mark.interop("tgtd", "tgtadm")
def test_discovery_at_tgt_takes_the_same_credentials(tmp_path):
    with tgt_target(tmp_path) as tgt:
        anybody = f"iscsi://127.0.0.1:{tgt.port}"
        alice = f"iscsi://alice%{ALICE.secret.decode()}@127.0.0.1:{tgt.port}"
        for portal in (anybody, alice):
            assert [found.name for found in discover(portal)] == [TARGET]
        bind(tgt, ALICE)
        tgt.must("--op", "bind", "--mode", "account", "--user", "alice")
        assert [found.name for found in discover(alice)] == [TARGET]
        with pytest.raises(AuthError, match="without credentials"):
            discover(anybody)


# --- libiscsi and QEMU at our target -------------------------------------------------------------

GRANT = Grant(accounts=(ALICE,), own=DISK)
POLICY = AccessPolicy({NAME: TargetAccess((GRANT,)), OTHER: TargetAccess(())}, discovery=(GRANT,))


@pytest.fixture(scope="module")
def served():
    with Serving(access=POLICY, linger_s=0.2) as server:
        yield server
        server.wait_idle()


def tool(*words, **environment):
    command = [str(word) for word in words]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
        env=WITHOUT | environment,
    )
    return done.returncode, done.stdout + done.stderr


def url(served, credentials="", options=""):
    return f"iscsi://{credentials}127.0.0.1:{served.port}/{NAME}/0{options}"


RIGHT = "alice%aliceknowsthis16@"
OURS = {"LIBISCSI_CHAP_USERNAME": "alice", "LIBISCSI_CHAP_PASSWORD": "aliceknowsthis16"}
THEIRS = {"LIBISCSI_CHAP_TARGET_USERNAME": "disk"}
PROVED = THEIRS | {"LIBISCSI_CHAP_TARGET_PASSWORD": DISK.secret.decode()}
NOT_PROVED = THEIRS | {"LIBISCSI_CHAP_TARGET_PASSWORD": "diskknowsother16"}


@pytest.mark.interop("iscsi-inq")
@pytest.mark.parametrize(
    ("credentials", "environment"),
    [(RIGHT, {}), ("", OURS), (RIGHT, PROVED), ("", OURS | PROVED)],
    ids=["url", "environment", "mutual", "mutual by environment"],
)
def test_iscsi_inq_gets_in_by_chap(served, credentials, environment):
    code, said = tool("iscsi-inq", url(served, credentials), **environment)
    assert code == 0, said
    assert "Peripheral Device Type:DIRECT_ACCESS" in said


@pytest.mark.interop("iscsi-inq")
@pytest.mark.parametrize(
    ("credentials", "environment"),
    [
        ("", {}),
        ("alice%aliceknowsthis17@", {}),
        ("bob%aliceknowsthis16@", {}),
        (RIGHT, NOT_PROVED),
    ],
    ids=["none", "wrong password", "wrong user", "target not proved"],
)
def test_iscsi_inq_is_refused_with_wrong_credentials(served, credentials, environment):
    failed = served.counts["logged in"]
    code, said = tool("iscsi-inq", url(served, credentials), **environment)
    assert code != 0, said
    assert "DIRECT_ACCESS" not in said
    assert environment == NOT_PROVED or served.counts["logged in"] == failed


@pytest.mark.interop("iscsi-ls")
def test_iscsi_ls_sees_only_with_credentials_and_only_what_it_may_use(served):
    code, said = tool("iscsi-ls", f"iscsi://{RIGHT}127.0.0.1:{served.port}")
    assert code == 0, said
    assert f"Target:{NAME} " in said
    assert OTHER not in said
    code, said = tool("iscsi-ls", f"iscsi://127.0.0.1:{served.port}")
    assert NAME not in said


@pytest.mark.interop("qemu-img", "qemu-iscsi")
def test_qemu_gets_in_by_chap(served):
    code, said = tool("qemu-img", "info", "-f", "raw", url(served, RIGHT))
    assert code == 0, said
    assert f"({BLOCKS * BLOCK} bytes)" in said
    code, said = tool("qemu-img", "info", "-f", "raw", url(served))
    assert code != 0, said
