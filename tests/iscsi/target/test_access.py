"""Access policies as plain data: who fits which grant, what the rest is told, who sees what."""

import logging

import pytest

from iscsi.target.access import AccessPolicy, Grant, Redirect, TargetAccess
from iscsi.wire.chap import ChapAccount, TargetChap
from iscsi.wire.errors import LoginRedirected, LoginRejected
from iscsi.wire.login import LoginIdentity
from iscsi.wire.security import TargetNone

DISK = "iqn.2026-01.org.example:disk"
TAPE = "iqn.2026-01.org.example:tape"
HOST = "iqn.2026-01.org.example:host"
ALICE = ChapAccount("alice", b"twelve bytes and more")
OWN = ChapAccount("disk", b"another twelve bytes")


def who(initiator=HOST, target=DISK):
    return LoginIdentity(initiator, target, 0x80AABBCC0001, 0, 0)


def refused(policy, identity, address="10.0.0.1"):
    with pytest.raises(LoginRejected) as caught:
        policy.authorize(identity, address)
    return caught.value.status


def only(*grants, **options):
    """A policy for DISK alone."""
    return AccessPolicy({DISK: TargetAccess(tuple(grants))}, **options)


def test_without_any_rule_everybody_gets_in_everywhere():
    policy = AccessPolicy()
    for target in (DISK, None):
        admission = policy.authorize(who(target=target), "192.0.2.1")
        assert isinstance(admission.security, TargetNone)
        assert not admission.read_only
    assert policy.is_visible(DISK, HOST, "192.0.2.1")


@pytest.mark.parametrize(
    ("patterns", "fits"),
    [
        ((HOST,), True),
        ((HOST.upper(),), True),
        (("iqn.2026-01.org.example:*",), True),
        (("iqn.2026-01.org.example:hos?",), True),
        (("iqn.2026-01.org.other:*", HOST), True),
        ((HOST + "2",), False),
        ((HOST[:-1],), False),
        (("iqn.2026-01.org.other:*",), False),
    ],
)
def test_names_fit_exactly_or_by_pattern_in_either_case(patterns, fits):
    for name in (HOST, HOST.upper()):
        assert Grant(patterns).admits(name, "10.0.0.1") == fits


@pytest.mark.parametrize(
    ("networks", "address", "fits"),
    [
        (("10.0.0.0/8",), "10.255.0.1", True),
        (("10.0.0.0/8",), "11.0.0.1", False),
        (("10.0.0.1",), "10.0.0.1", True),
        (("10.0.0.1/24",), "10.0.0.200", True),
        (("192.0.2.0/24", "10.0.0.0/8"), "10.1.1.1", True),
        (("10.0.0.0/8",), "::ffff:10.1.1.1", True),
        (("::/0",), "10.1.1.1", False),
        (("fe80::/10",), "fe80::1%eth0", True),
        (("2001:db8::/32",), "2001:db8::7", True),
        (("2001:db8::/32",), "2001:db9::7", False),
        (("10.0.0.0/8",), "a host name", False),
    ],
)
def test_addresses_fit_by_network_of_either_family(networks, address, fits):
    assert Grant(addresses=networks).admits(HOST, address) == fits


def test_whom_no_grant_fits_is_refused_as_not_authorized():
    policy = only(Grant((HOST,), ("10.0.0.0/8",)))
    policy.authorize(who(), "10.0.0.1")
    assert refused(policy, who(), "11.0.0.1") == 0x0202
    assert refused(policy, who(HOST + "2")) == 0x0202
    assert refused(AccessPolicy({DISK: TargetAccess(())}), who()) == 0x0202


def test_the_first_grant_that_fits_decides():
    policy = only(Grant((HOST,), read_only=True), Grant(accounts=(ALICE,)))
    assert policy.authorize(who(), "10.0.0.1").read_only
    other = policy.authorize(who(HOST + "2"), "10.0.0.1")
    assert isinstance(other.security, TargetChap)
    assert other.security.is_required
    assert not other.read_only


def test_chap_may_be_optional():
    security = only(Grant(accounts=(ALICE,), required=False)).authorize(who(), "::1").security
    assert isinstance(security, TargetChap)
    assert not security.is_required


def test_each_login_gets_a_strategy_of_its_own():
    policy = only(Grant(accounts=(ALICE,)))
    first, second = (policy.authorize(who(), "::1").security for _ in range(2))
    assert first is not second


def test_discovery_has_grants_of_its_own():
    policy = AccessPolicy(discovery=(Grant((HOST,), accounts=(ALICE,)),))
    assert isinstance(policy.authorize(who(target=None), "::1").security, TargetChap)
    assert isinstance(policy.authorize(who(), "::1").security, TargetNone)
    assert refused(policy, who(HOST + "2", None)) == 0x0202


def test_targets_are_seen_by_those_who_may_log_in():
    policy = only(Grant((HOST,), ("10.0.0.0/8",), (ALICE,)))
    assert policy.is_visible(DISK, HOST, "10.0.0.1")
    assert not policy.is_visible(DISK, HOST, "11.0.0.1")
    assert not policy.is_visible(DISK, HOST + "2", "10.0.0.1")
    assert policy.is_visible(TAPE, HOST + "2", "11.0.0.1")
    closed = AccessPolicy({DISK: TargetAccess()}, TargetAccess(()))
    assert closed.is_visible(DISK, HOST, "::1")
    assert not closed.is_visible(TAPE, HOST, "::1")


@pytest.mark.parametrize("permanent", [False, True])
def test_a_target_that_moved_sends_on_those_who_may_use_it(permanent):
    moved = TargetAccess((Grant((HOST,)),), Redirect("[2001:db8::1]:3261,2", permanent))
    policy = AccessPolicy({DISK: moved})
    with pytest.raises(LoginRedirected) as caught:
        policy.authorize(who(), "10.0.0.1")
    assert (caught.value.address, caught.value.permanent) == ("[2001:db8::1]:3261,2", permanent)
    assert refused(policy, who(HOST + "2")) == 0x0202


@pytest.mark.parametrize(
    "make",
    [
        lambda: Redirect("no address"),
        lambda: Grant(()),
        lambda: Grant(addresses=("10.0.0.0/33",)),
        lambda: Grant(addresses=("here",)),
        lambda: Grant(own=OWN),
        lambda: Grant(accounts=(ALICE, ChapAccount("alice", b"some other secret"))),
        lambda: Grant(accounts=(ALICE,), own=ChapAccount("disk", ALICE.secret)),
        lambda: AccessPolicy(algorithms=()),
        lambda: AccessPolicy(algorithms=(4,)),
    ],
)
def test_nonsense_is_refused_when_it_is_written(make):
    with pytest.raises(ValueError, match=r"\w") as caught:
        make()
    assert "twelve bytes" not in str(caught.value)


SHORT = Grant(accounts=(ChapAccount("bob", b"elevenbytes"),))


@pytest.mark.parametrize(
    "options", [{"targets": {DISK: TargetAccess((SHORT,))}}, {"discovery": (SHORT,)}]
)
def test_a_secret_below_96_bits_is_refused_or_warned_of(options, caplog):
    with pytest.raises(ValueError, match="'bob' has 11 bytes; 12 are"):
        AccessPolicy(**options)
    with caplog.at_level(logging.WARNING):
        AccessPolicy(**options, short_secrets=True)
    assert "'bob' has 11 bytes" in caplog.text
    assert "elevenbytes" not in caplog.text


def test_a_policy_shows_no_secret():
    policy = only(Grant(accounts=(ALICE,), own=OWN))
    assert "alice" in repr(policy)
    assert "twelve" not in repr(policy)
