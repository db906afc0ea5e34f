"""CHAP between two strategies in memory, against vectors from elsewhere, and every way to fail."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.wire import bhs, chap, text
from iscsi.wire.chap import (
    ALGORITHMS,
    INITIATOR_ALGORITHMS,
    ChapAccount,
    InitiatorChap,
    PeerNotAuthenticated,
    TargetChap,
    decode_binary,
    encode_binary,
)
from iscsi.wire.login import TargetPolicy
from tests.iscsi.wire.joined import DISK, HOST, ISID, initiator, join, target

ALICE = ChapAccount("alice", b"a secret of alice")
DISK_ACCOUNT = ChapAccount("disk", b"a secret of the disk")


def target_chap(*accounts, **options):
    return TargetChap(accounts or (ALICE,), **options)


def answer(number, identifier, secret, challenge):
    """CHAP_R by the words of RFC 1994, not by the module's."""
    names = {5: "md5", 6: "sha1", 7: "sha256", 8: "sha3_256"}
    return hashlib.new(names[number], bytes([identifier]) + secret + challenge).digest()


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ALGORITHMS)
def test_a_response_is_the_hash_of_identifier_secret_and_challenge(number):
    ours = ALGORITHMS[number].response(200, b"secret", b"challenge")
    assert ours == answer(number, 200, b"secret", b"challenge")


def test_the_names_and_numbers_are_those_of_iana():
    assert dict(chap.ALGORITHM_NUMBERS) == {"md5": 5, "sha1": 6, "sha-256": 7, "sha3-256": 8}


def test_seven_is_never_offered_first_because_tgt_means_sha1_by_it():
    assert INITIATOR_ALGORITHMS.index(7) > INITIATOR_ALGORITHMS.index(5)


@given(st.binary(min_size=1, max_size=1024))
def test_binary_values_are_read_in_hexadecimal_and_base64(data):
    assert decode_binary(encode_binary(data)) == data
    assert decode_binary("0X" + data.hex().upper()) == data
    assert decode_binary("0b" + base64.b64encode(data).decode()) == data
    assert decode_binary("0B" + base64.b64encode(data).decode().rstrip("=")) == data


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "0x",
        "0b",
        "12ab",
        "0xzz",
        "0x12 34",
        "0x١٢",
        "0b!!!!",
        "0bA",
        "0b AAAA",
        "0x" + "00" * 1025,
        "0b" + base64.b64encode(bytes(1025)).decode(),
    ],
)
def test_malformed_and_oversize_binary_values_are_refused(value):
    assert decode_binary(value) is None


def test_a_dropped_leading_zero_is_forgiven():
    assert decode_binary("0x1ff") == b"\x01\xff"


def test_an_account_shows_no_secret():
    shown = repr(ALICE) + repr(InitiatorChap(ALICE, DISK_ACCOUNT)) + repr(target_chap())
    assert "alice" in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    ("user", "secret"), [("", b"s"), ("u", b""), ("u" * 256, b"s"), ("\0", b"s")]
)
def test_an_account_that_cannot_be_sent_is_refused(user, secret):
    with pytest.raises(ValueError, match="CHAP"):
        ChapAccount(user, secret)


def test_one_secret_for_both_directions_is_refused_by_both_sides():
    twin = ChapAccount("other", ALICE.secret)
    for make in (lambda: InitiatorChap(ALICE, twin), lambda: TargetChap((ALICE,), twin)):
        with pytest.raises(ValueError, match="share a secret") as caught:
            make()
        assert "a secret of alice" not in str(caught.value)


def test_an_unknown_algorithm_is_the_callers_fault():
    for wanted in ((), (4,), (5, 9)):
        with pytest.raises(ValueError, match="CHAP algorithms"):
            InitiatorChap(ALICE, algorithms=wanted)


# --- two logins joined ---------------------------------------------------------------------------


def texts(pdus):
    """The pairs of each PDU."""
    return [text.decode(p[48 : 48 + bhs.decode(p[:48]).data_segment_length]) for p in pdus]


@pytest.mark.parametrize("number", ALGORITHMS)
@pytest.mark.parametrize("mutual", [False, True])
def test_both_sides_are_let_in_with_every_algorithm(number, mutual):
    left = initiator(
        security=InitiatorChap(ALICE, DISK_ACCOUNT if mutual else None, algorithms=(number,))
    )
    right = target(security=target_chap(own=DISK_ACCOUNT))
    received_left, received_right = join(left, right)
    assert left.done
    assert right.done
    assert (left.result.user, right.result.user) == (None, "alice")
    chosen = dict(texts(received_left)[1])
    assert chosen.keys() == {"CHAP_A", "CHAP_I", "CHAP_C"}
    assert chosen["CHAP_A"] == str(number)
    # Names and method, algorithm, proof, operational keys: no more round trips than RFC 7143 shows.
    assert len(received_right) == 4
    transits = [bhs.decode(pdu[:48]).transit for pdu in received_right]
    assert transits == [0, 0, 1, 1]
    proof = dict(texts(received_right)[2])
    assert proof.keys() == {"CHAP_N", "CHAP_R"} | ({"CHAP_I", "CHAP_C"} if mutual else set())
    assert (dict(texts(received_left)[2]).keys() == {"CHAP_N", "CHAP_R"}) == mutual


def test_the_first_of_the_initiators_algorithms_that_the_target_knows_is_used():
    for offered, known, used in (((8, 6, 5), (5, 6), 6), ((5, 8), (8, 5), 5)):
        right = target(security=target_chap(algorithms=known))
        received, _ = join(initiator(security=InitiatorChap(ALICE, algorithms=offered)), right)
        assert right.done
        assert ("CHAP_A", str(used)) in texts(received)[1]


def test_challenges_and_identifiers_are_new_every_time():
    asked = set()
    for _ in range(8):
        received, _ = join(initiator(security=InitiatorChap(ALICE)), target(security=target_chap()))
        asked.add(dict(texts(received)[1])["CHAP_C"])
    assert len(asked) == 8
    assert all(len(decode_binary(challenge)) == chap.CHALLENGE_LENGTH for challenge in asked)


def refused(left, right, status=0x0201):
    """Joins two logins; both must end with the status, which is all the initiator learns."""
    received, _ = join(left, right)
    assert right.error.status == status
    assert left.error.status == status
    assert left.result is right.result is None
    assert texts(received)[-1] == []
    return right.error


@pytest.mark.parametrize(
    "account",
    [
        ChapAccount("alice", b"not her secret at all"),
        ChapAccount("bob", ALICE.secret),
        ChapAccount("Alice", ALICE.secret),
        ChapAccount("bob", b"unknown"),
        ChapAccount("alice", ALICE.secret + b"\0"),
    ],
)
def test_wrong_credentials_learn_only_that_they_failed(account):
    error = refused(initiator(security=InitiatorChap(account)), target(security=target_chap()))
    assert str(error).endswith(f"CHAP of {account.user!r} failed")


def test_no_common_algorithm_is_an_authentication_failure():
    chap_5 = InitiatorChap(ALICE, algorithms=(5,))
    refused(initiator(security=chap_5), target(security=target_chap(algorithms=(8,))))


def test_an_initiator_without_credentials_never_offers_chap_and_is_refused():
    left = initiator()
    left.start()
    assert b"AuthMethod=None\0" in left.data_to_send()
    refused(initiator(), target(security=target_chap()))
    refused(initiator(skip_security=True), target(security=target_chap()))


def test_a_target_where_chap_is_optional_takes_both_kinds():
    for security, user in ((None, None), (InitiatorChap(ALICE), "alice")):
        right = target(security=target_chap(required=False))
        join(initiator(security=security), right)
        assert right.done
        assert right.result.user == user
    right = target(security=target_chap(required=False))
    join(initiator(skip_security=True), right)
    assert right.done
    wrong = InitiatorChap(ChapAccount("alice", b"guess"))
    refused(initiator(security=wrong), target(security=target_chap(required=False)))


def test_credentials_do_no_harm_at_a_target_that_wants_none():
    left = initiator(security=InitiatorChap(ALICE))
    join(left, target())
    assert left.done


def test_an_initiator_that_wants_the_targets_proof_does_not_go_on_without():
    left = initiator(security=InitiatorChap(ALICE, DISK_ACCOUNT))
    refused(left, target())


def test_a_target_without_an_account_cannot_be_made_to_prove_itself():
    left = initiator(security=InitiatorChap(ALICE, DISK_ACCOUNT))
    refused(left, target(security=target_chap()))


@pytest.mark.parametrize(
    "own",
    [ChapAccount("disk", b"another secret"), ChapAccount("disk2", DISK_ACCOUNT.secret)],
)
def test_a_target_that_fails_its_proof_is_left(own):
    left = initiator(security=InitiatorChap(ALICE, DISK_ACCOUNT))
    join(left, target(security=target_chap(own=own)))
    assert isinstance(left.error, PeerNotAuthenticated)
    assert not left.done


def test_text_cut_in_small_pieces_changes_nothing(monkeypatch):
    monkeypatch.setattr("iscsi.wire.login_common.MAX_LOGIN_SEGMENT", 40)
    left = initiator(security=InitiatorChap(ALICE, DISK_ACCOUNT))
    right = target(security=target_chap(own=DISK_ACCOUNT))
    join(left, right)
    assert left.done
    assert right.result.user == "alice"


def test_nothing_is_reserved_for_somebody_who_has_not_proved_who_he_is():
    admitted = []
    policy = TargetPolicy({DISK}, admit=admitted.append, authorize=lambda who: target_chap())
    wrong = InitiatorChap(ChapAccount("alice", b"guess"))
    refused(initiator(security=wrong), target(policy))
    assert admitted == []
    right = target(policy)
    join(initiator(security=InitiatorChap(ALICE)), right)
    assert right.done
    assert [who.initiator_name for who in admitted] == [HOST]


def test_the_policy_chooses_the_method_by_who_asks():
    asked = []

    def authorize(who):
        asked.append((who.initiator_name, who.target_name, who.isid))
        return target_chap()

    refused(initiator(), target(TargetPolicy({DISK}, authorize=authorize)))
    refused(initiator(None), target(TargetPolicy({DISK}, authorize=authorize)))
    assert asked == [(HOST, DISK, ISID), (HOST, None, ISID)]
