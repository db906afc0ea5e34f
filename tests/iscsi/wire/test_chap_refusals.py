"""What each side of CHAP does with keys that are wrong, missing, doubled, reflected or too long."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.wire import bhs, text
from iscsi.wire.chap import InitiatorChap, PeerNotAuthenticated, decode_binary, encode_binary
from iscsi.wire.errors import LoginRejected, ProtocolError, RemoteProtocolError
from tests.iscsi.wire.joined import DISK, HOST, ISID, target
from tests.iscsi.wire.test_chap import ALICE, DISK_ACCOUNT, answer, target_chap

# --- the target against hostile keys -------------------------------------------------------------

CHALLENGE = bytes(range(32))


def fixed_random(length):
    return bytes([7]) if length == 1 else CHALLENGE


def asked(number=5, **options):
    """A target that has sent its challenge, and the right proof for it."""
    side = target_chap(own=DISK_ACCOUNT, random=fixed_random, **options)
    assert side.receive([("AuthMethod", "SRP,CHAP,None")]) == [("AuthMethod", "CHAP")]
    assert side.receive([("CHAP_A", str(number))]) == [
        ("CHAP_A", str(number)),
        ("CHAP_I", "7"),
        ("CHAP_C", "0x" + CHALLENGE.hex()),
    ]
    proof = encode_binary(answer(number, 7, ALICE.secret, CHALLENGE))
    return side, [("CHAP_N", "alice"), ("CHAP_R", proof)]


def test_a_right_proof_passes_in_hexadecimal_and_base64():
    for rewrite in (str, str.upper, lambda v: "0b" + base64.b64encode(decode_binary(v)).decode()):
        side, ((_, name), (_, proof)) = asked()
        proof = proof[:2].lower() + rewrite(proof)[2:] if rewrite is str.upper else rewrite(proof)
        assert side.receive([("CHAP_R", proof), ("CHAP_N", name)]) == []
        assert side.is_complete
        assert side.user == "alice"


def fails(side, pairs):
    with pytest.raises(LoginRejected) as caught:
        side.receive(pairs)
    assert caught.value.status == 0x0201
    assert not side.is_complete
    assert side.user is None


def test_a_challenge_of_1024_bytes_is_answered_and_a_longer_one_refused():
    side, proof = asked()
    longest = bytes(1023) + b"x"
    reply = dict(side.receive([*proof, ("CHAP_I", "0xff"), ("CHAP_C", encode_binary(longest))]))
    assert reply["CHAP_N"] == "disk"
    assert decode_binary(reply["CHAP_R"]) == answer(5, 255, DISK_ACCOUNT.secret, longest)
    side, proof = asked()
    with pytest.raises(LoginRejected):
        side.receive([*proof, ("CHAP_I", "1"), ("CHAP_C", encode_binary(bytes(1025)))])


@pytest.mark.parametrize(
    "identifier", ["256", "-1", "", "0x100", "1,2", "one", "99999999999999999"]
)
def test_an_identifier_outside_a_byte_is_refused(identifier):
    side, proof = asked()
    with pytest.raises(LoginRejected):
        side.receive([*proof, ("CHAP_I", identifier), ("CHAP_C", "0x0102")])


def test_our_own_challenge_is_not_answered():
    side, proof = asked()
    reflected = [("CHAP_I", "7"), ("CHAP_C", "0x" + CHALLENGE.hex().upper())]
    with pytest.raises(LoginRejected, match="our own challenge"):
        side.receive(proof + reflected)


@pytest.mark.parametrize(
    "change",
    [
        lambda proof: [],
        lambda proof: proof[:1],
        lambda proof: proof[1:],
        lambda proof: [*proof, ("CHAP_A", "5")],
        lambda proof: [*proof, ("CHAP_I", "1")],
        lambda proof: [*proof, ("CHAP_C", "0x01")],
        lambda proof: [*proof, ("AuthMethod", "CHAP")],
        lambda proof: [*proof, ("SRP_U", "alice")],
        lambda proof: [*proof, proof[0]],
        lambda proof: [("CHAP_N", ""), proof[1]],
        lambda proof: [proof[0], ("CHAP_R", proof[1][1][:-2])],
        lambda proof: [proof[0], ("CHAP_R", proof[1][1] + "00")],
        lambda proof: [proof[0], ("CHAP_R", "0x" + "00" * 1024)],
        lambda proof: [proof[0], ("CHAP_R", "0b" + "A" * 2000)],
        lambda proof: [proof[0], ("CHAP_R", "")],
    ],
)
def test_a_proof_that_is_not_exactly_right_fails(change):
    side, proof = asked()
    fails(side, change(proof))


@pytest.mark.parametrize(
    "pairs",
    [
        [("CHAP_A", "5")],
        [("AuthMethod", "CHAP"), ("CHAP_A", "5")],
        [("AuthMethod", "CHAP"), ("AuthMethod", "CHAP")],
        [("AuthMethod", "None")],
        [("AuthMethod", "")],
        [("AuthMethod", "chap")],
        [("AuthMethod", "KRB5,SRP")],
        [("CHAP_N", "alice"), ("CHAP_R", "0x00")],
    ],
)
def test_the_method_comes_first_and_alone(pairs):
    fails(target_chap(), pairs)


@pytest.mark.parametrize("value", ["", "0", "4", "9", "md5", "5.", "256", "-5", ",,"])
def test_an_algorithm_list_without_ours_is_refused(value):
    side = target_chap()
    side.receive([("AuthMethod", "CHAP")])
    fails(side, [("CHAP_A", value)])


def test_a_list_may_hold_what_nobody_knows():
    side = target_chap()
    side.receive([("AuthMethod", "CHAP")])
    assert side.receive([("CHAP_A", "0,99,x,0x5,6")])[0] == ("CHAP_A", "5")


def test_keys_after_the_proof_are_refused():
    side, proof = asked()
    side.receive(proof)
    assert side.receive([]) == []
    with pytest.raises(LoginRejected):
        side.receive(proof)


def test_leaving_the_stage_without_a_proof_is_refused_at_every_step():
    names = [("InitiatorName", HOST), ("TargetName", DISK)]
    steps = [[*names], [("AuthMethod", "CHAP")], [("CHAP_A", "5")]]
    for silent in range(3):
        login = target(security=target_chap())
        for at, pairs in enumerate(steps):
            wants_out = at == silent
            data = text.encode(names if wants_out and not at else [] if wants_out else pairs)
            fields = {"isid": ISID, "transit": int(wants_out), "csg": 0, "nsg": int(wants_out)}
            pdu = bhs.encode_pdu(bhs.Opcode.LOGIN_REQUEST, data, **fields)
            if wants_out:
                with pytest.raises(LoginRejected) as caught:
                    login.receive_pdu(pdu[:48], pdu[48:])
                assert caught.value.status == 0x0201
                break
            login.receive_pdu(pdu[:48], pdu[48:])


# --- the initiator against hostile keys ----------------------------------------------------------

GOOD = [("CHAP_A", "5"), ("CHAP_I", "9"), ("CHAP_C", "0x010203")]


def challenged(mutual=True, random=fixed_random):
    side = InitiatorChap(ALICE, DISK_ACCOUNT if mutual else None, random=random)
    assert side.receive([("AuthMethod", "CHAP")]) == [("CHAP_A", "8,6,5,7")]
    return side


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        GOOD[:2],
        [*GOOD, ("CHAP_N", "disk")],
        [*GOOD, GOOD[0]],
        [("CHAP_A", "4"), *GOOD[1:]],
        [("CHAP_A", "8,5"), *GOOD[1:]],
        [GOOD[0], ("CHAP_I", "256"), GOOD[2]],
        [*GOOD[:2], ("CHAP_C", "0x")],
        [*GOOD[:2], ("CHAP_C", "0x" + "00" * 1025)],
        [("AuthMethod", "None")],
    ],
)
def test_a_wrong_challenge_is_not_answered(pairs):
    with pytest.raises(PeerNotAuthenticated):
        challenged().receive(pairs)


def test_an_algorithm_that_was_not_offered_is_not_used():
    side = InitiatorChap(ALICE, algorithms=(8,))
    side.receive([("AuthMethod", "CHAP")])
    with pytest.raises(PeerNotAuthenticated, match="CHAP_A=5"):
        side.receive(GOOD)


@pytest.mark.parametrize("method", ["SRP", "Reject", "", "CHAP,None"])
@pytest.mark.parametrize("mutual", [False, True])
def test_a_method_that_was_not_offered_ends_it(method, mutual):
    side = InitiatorChap(ALICE, DISK_ACCOUNT if mutual else None)
    with pytest.raises(PeerNotAuthenticated):
        side.receive([("AuthMethod", method)])


def test_none_is_not_taken_where_the_target_was_to_prove_itself():
    with pytest.raises(PeerNotAuthenticated):
        InitiatorChap(ALICE, DISK_ACCOUNT).receive([("AuthMethod", "None")])


def test_a_challenge_that_equals_ours_is_not_answered():
    side = challenged()
    with pytest.raises(PeerNotAuthenticated, match="same challenge"):
        side.receive([*GOOD[:2], ("CHAP_C", encode_binary(CHALLENGE))])


def proof_of(account, challenge=CHALLENGE):
    return [("CHAP_N", "disk"), ("CHAP_R", encode_binary(answer(5, 7, account.secret, challenge)))]


def test_the_targets_proof_is_checked():
    side = challenged()
    assert dict(side.receive(GOOD))["CHAP_N"] == "alice"
    assert not side.is_complete
    assert side.wants_transit
    assert side.receive(proof_of(DISK_ACCOUNT)) == []
    assert side.is_complete
    with pytest.raises(PeerNotAuthenticated):
        side.receive(proof_of(DISK_ACCOUNT))


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (proof_of(ALICE), "our own secret"),
        (proof_of(DISK_ACCOUNT, bytes(32)), "did not prove"),
        ([("CHAP_N", "other"), proof_of(DISK_ACCOUNT)[1]], "did not prove"),
        ([proof_of(DISK_ACCOUNT)[1]], "was due"),
        ([], "nothing where CHAP_N, CHAP_R was due"),
    ],
)
def test_a_target_with_another_proof_is_not_trusted(pairs, said):
    side = challenged()
    side.receive(GOOD)
    with pytest.raises(PeerNotAuthenticated, match=said):
        side.receive(pairs)
    assert not side.is_complete


def test_a_proof_nobody_asked_for_ends_it():
    side = challenged(mutual=False)
    side.receive(GOOD)
    assert side.is_complete
    with pytest.raises(PeerNotAuthenticated):
        side.receive(proof_of(DISK_ACCOUNT))


KEY = st.sampled_from(["AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R", "SRP_U"])
VALUE = st.sampled_from(["", "CHAP", "None", "5", "7", "alice", "0x", "0x00", "0b", "0bAA=="])


@given(st.lists(st.lists(st.tuples(KEY, VALUE | st.text(max_size=20)), max_size=5), max_size=5))
def test_no_sequence_of_keys_gets_in_without_a_proof(rounds):
    side = target_chap()
    for pairs in rounds:
        try:
            side.receive(pairs)
        except LoginRejected:
            break
    assert not side.is_complete


# --- whole logins --------------------------------------------------------------------------------


def request(pairs, **fields):
    pdu = bhs.encode_pdu(bhs.Opcode.LOGIN_REQUEST, text.encode(pairs), isid=ISID, **fields)
    return pdu[:48], pdu[48:]


NAMES = [("InitiatorName", HOST), ("TargetName", DISK)]


def proved_login():
    """A login whose initiator has just proved itself, asking for the operational stage."""
    login = target(security=target_chap(random=fixed_random))
    login.receive_pdu(*request([*NAMES, ("AuthMethod", "CHAP")]))
    login.receive_pdu(*request([("CHAP_A", "5")]))
    proof = encode_binary(answer(5, 7, ALICE.secret, CHALLENGE))
    login.receive_pdu(*request([("CHAP_N", "alice"), ("CHAP_R", proof)], csg=0, nsg=1, transit=1))
    login.data_to_send()
    return login


@pytest.mark.parametrize("name", ["InitiatorName", "TargetName"])
def test_nobody_becomes_another_after_the_proof(name):
    login = proved_login()
    with pytest.raises(RemoteProtocolError, match=f"{name} was declared already"):
        login.receive_pdu(*request([(name, HOST + "2")], csg=1, nsg=3, transit=1))
    again = proved_login()
    again.receive_pdu(*request(NAMES, csg=1, nsg=3, transit=1))
    assert (again.result.initiator_name, again.result.user) == (HOST, "alice")


@pytest.mark.parametrize("value", ["0x" + "00" * 1025, "0b" + "A" * 2049])
@pytest.mark.parametrize("name", ["CHAP_R", "CHAP_C"])
def test_an_oversize_value_ends_the_login_before_it_is_decoded(name, value):
    login = target(security=target_chap())
    login.receive_pdu(*request([*NAMES, ("AuthMethod", "CHAP")]))
    login.receive_pdu(*request([("CHAP_A", "5")]))
    with pytest.raises(RemoteProtocolError, match=f"value of {name}"):
        login.receive_pdu(*request([("CHAP_N", "alice"), (name, value)]))
    assert login.failed


ROUND = st.tuples(
    st.lists(st.tuples(KEY | st.sampled_from(["InitiatorName", "TargetName"]), VALUE), max_size=4),
    st.fixed_dictionaries(
        {}, optional={n: st.integers(0, 3) for n in ("csg", "nsg")} | {"transit": st.just(1)}
    ),
)


@given(st.booleans(), st.lists(ROUND, max_size=6))
def test_no_login_gets_in_without_a_proof(starts_well, rounds):
    login = target(security=target_chap())
    pdus = [request(pairs, **fields) for pairs, fields in rounds]
    if starts_well:
        pdus = [request([*NAMES, ("AuthMethod", "CHAP")]), request([("CHAP_A", "5")]), *pdus]
    for pdu in pdus:
        try:
            login.receive_pdu(*pdu)
        except ProtocolError:
            break
    assert not login.done
    assert login.result is None
