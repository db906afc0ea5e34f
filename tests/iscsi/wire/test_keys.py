"""The keys table against RFC 7143 §13, and its result functions."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError
from iscsi.wire.keys import (
    KEYS,
    Place,
    Proposal,
    Rule,
    Sender,
    SessionParams,
    combine,
    is_answer,
    parse_number,
    value_limit,
)
from iscsi.wire.negotiation import Negotiation

# Name: rule, default, range; written from the RFC, not from the table.
RFC = {
    "HeaderDigest": (Rule.LIST, "None", None),
    "DataDigest": (Rule.LIST, "None", None),
    "MaxConnections": (Rule.MIN, "1", (1, 65535)),
    "InitialR2T": (Rule.OR, "Yes", None),
    "ImmediateData": (Rule.AND, "Yes", None),
    "MaxRecvDataSegmentLength": (Rule.DECLARED, "8192", (512, 16777215)),
    "MaxBurstLength": (Rule.MIN, "262144", (512, 16777215)),
    "FirstBurstLength": (Rule.MIN, "65536", (512, 16777215)),
    "DefaultTime2Wait": (Rule.MAX, "2", (0, 3600)),
    "DefaultTime2Retain": (Rule.MIN, "20", (0, 3600)),
    "MaxOutstandingR2T": (Rule.MIN, "1", (1, 65535)),
    "DataPDUInOrder": (Rule.OR, "Yes", None),
    "DataSequenceInOrder": (Rule.OR, "Yes", None),
    "ErrorRecoveryLevel": (Rule.MIN, "0", (0, 2)),
    "iSCSIProtocolLevel": (Rule.MIN, "1", (0, 31)),
    "TaskReporting": (Rule.LIST, "RFC3720", None),
    "SessionType": (Rule.DECLARED, "Normal", None),
    "TargetPortalGroupTag": (Rule.DECLARED, None, (0, 65535)),
}


@pytest.mark.parametrize("name", RFC)
def test_key_has_the_rule_default_and_range_of_the_rfc(name):
    key, (rule, default, bounds) = KEYS[name], RFC[name]
    assert (key.rule, key.default) == (rule, default)
    if bounds:
        assert (key.low, key.high) == bounds


def test_every_session_key_has_its_field_and_its_default_there():
    keys = {k.attribute: k for k in KEYS.values() if k.is_negotiated and k.leading_only}
    assert keys.keys() == {field.name for field in fields(SessionParams)}
    plain = Proposal(session=SessionParams())
    assert {n: plain.text(k) for n, k in keys.items()} == {n: k.default for n, k in keys.items()}


def test_only_binary_authentication_values_may_be_long():
    assert value_limit("CHAP_R") == value_limit("CHAP_C") == 2050
    assert value_limit("TargetName") == value_limit("X-com.example.unknown") == 255


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("512", 512),
        ("0x200", 512),
        ("16777215", 16777215),
        ("511", None),
        ("16777216", None),
        ("0", None),
        ("-1", None),
        ("+600", None),
        (" 600", None),
        ("6_00", None),
        ("", None),
        ("0x", None),
        ("٦٠٠", None),
        ("9" * 200, None),
    ],
)
def test_numbers_are_plain_and_in_range(value, number):
    assert parse_number(KEYS["MaxBurstLength"], value) == number


@pytest.mark.parametrize(
    ("name", "offered", "ours", "answer"),
    [
        ("InitialR2T", "No", "No", "No"),
        ("InitialR2T", "No", "Yes", "Yes"),
        ("InitialR2T", "Yes", "No", "Yes"),
        ("ImmediateData", "Yes", "Yes", "Yes"),
        ("ImmediateData", "Yes", "No", "No"),
        ("ImmediateData", "No", "Yes", "No"),
        ("ImmediateData", "maybe", "Yes", None),
        ("MaxBurstLength", "1000", "2000", "1000"),
        ("MaxBurstLength", "0x1000", "8192", "4096"),
        ("DefaultTime2Wait", "0", "2", "2"),
        ("HeaderDigest", "CRC32C,None", "None,CRC32C", "CRC32C"),
        ("HeaderDigest", "None,CRC32C", "CRC32C", "CRC32C"),
        ("HeaderDigest", "X-md5,CRC32C", "None", None),
    ],
)
def test_answer_follows_the_result_function(name, offered, ours, answer):
    assert combine(KEYS[name], offered, ours) == answer


@given(st.integers(512, 16777215), st.integers(512, 16777215))
def test_every_answer_is_accepted_by_the_offerer(ours, theirs):
    for name in ("MaxBurstLength", "FirstBurstLength"):
        assert is_answer(KEYS[name], str(ours), combine(KEYS[name], str(ours), str(theirs)))


@pytest.mark.parametrize(
    ("name", "offer", "answer"),
    [
        ("MaxBurstLength", "1000", "1001"),
        ("DefaultTime2Wait", "5", "4"),
        ("ImmediateData", "No", "Yes"),
        ("InitialR2T", "Yes", "No"),
        ("HeaderDigest", "None", "CRC32C"),
        ("MaxOutstandingR2T", "4", "0"),
        ("MaxOutstandingR2T", "4", "many"),
    ],
)
def test_an_answer_its_offer_does_not_allow_is_seen(name, offer, answer):
    assert not is_answer(KEYS[name], offer, answer)


def _target(**session):
    return Negotiation(Sender.INITIATOR, Proposal(session=SessionParams(**session)))


@pytest.mark.parametrize("place", [Place.SECURITY, Place.OPERATIONAL])
@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("X-com.example.k", "1", "NotUnderstood"),
        ("X#k", "1", "NotUnderstood"),
        ("Y-md5", "1", "NotUnderstood"),
        ("Foo", "None", "NotUnderstood"),
        # Obsolete (RFC 7143 §13.25): never NotUnderstood.
        ("IFMarker", "No", "Reject"),
        ("OFMarker", "Yes", "Reject"),
        ("IFMarkInt", "2048~8192", "Reject"),
        ("OFMarkInt", "2048", "Reject"),
        # iSER's (RFC 7145 §6): this is TCP.
        ("RDMAExtensions", "Yes", "No"),
        ("RDMAExtensions", "No", "No"),
        ("InitiatorRecvDataSegmentLength", "65536", "Irrelevant"),
        ("TargetRecvDataSegmentLength", "65536", "Irrelevant"),
        ("MaxOutstandingUnexpectedPDUs", "0", "Irrelevant"),
        ("MaxAHSLength", "256", "Irrelevant"),
        ("TaggedBufferForSolicitedDataOnly", "Yes", "Irrelevant"),
        ("iSERHelloRequired", "No", "Irrelevant"),
    ],
)
def test_keys_that_settle_nothing_get_their_one_answer(place, name, value, answer):
    target = _target()
    assert target.receive([(name, value)], place) == [(name, answer)]
    with pytest.raises(RemoteProtocolError, match="already"):
        target.receive([(name, value)], place)


@pytest.mark.parametrize(
    ("name", "offer", "answer"),
    [
        ("TaskReporting", "FastAbort,ResponseFence,RFC3720", "RFC3720"),
        ("TaskReporting", "FastAbort", "Reject"),
        ("iSCSIProtocolLevel", "2", "1"),
        ("iSCSIProtocolLevel", "0", "0"),
        ("iSCSIProtocolLevel", "31", "1"),
        ("iSCSIProtocolLevel", "32", "Reject"),
        ("MaxConnections", "65536", "Reject"),
        ("MaxOutstandingR2T", "65536", "Reject"),
        ("MaxOutstandingR2T", "65535", "1"),
        ("ErrorRecoveryLevel", "3", "Reject"),
        ("DefaultTime2Wait", "3601", "Reject"),
        ("DefaultTime2Retain", "3600", "20"),
        ("DataPDUInOrder", "No", "Yes"),
        ("FirstBurstLength", "16777216", "Reject"),
        ("MaxBurstLength", "-1", "Reject"),
        ("MaxBurstLength", "0b/wA=", "Reject"),
        ("HeaderDigest", "", "Reject"),
    ],
)
def test_an_offer_is_answered_once_and_by_its_rule(name, offer, answer):
    target = _target()
    assert target.receive([(name, offer)], Place.OPERATIONAL) == [(name, answer)]
    with pytest.raises(RemoteProtocolError, match="already"):
        target.receive([(name, offer)], Place.OPERATIONAL)


@pytest.mark.parametrize(
    "name", ["CHAP_A", "CHAP_I", "CHAP_N", "AuthMethod", "SRP_U", "KRB_AP_REQ", "SendTargets"]
)
def test_a_key_in_the_wrong_stage_is_rejected(name):
    assert _target().receive([(name, "5")], Place.OPERATIONAL) == [(name, "Reject")]


@pytest.mark.parametrize("name", ["TargetAlias", "TargetAddress", "TargetPortalGroupTag"])
def test_what_only_a_target_says_is_rejected_from_an_initiator(name):
    assert _target().receive([(name, "1")], Place.OPERATIONAL) == [(name, "Reject")]


@pytest.mark.parametrize("refusal", ["NotUnderstood", "Reject", "Irrelevant"])
@pytest.mark.parametrize("name", ["X-never-sent", "IFMarker"])
def test_a_refusal_of_what_we_never_sent_is_not_answered(name, refusal):
    assert _target().receive([(name, refusal)], Place.OPERATIONAL) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MaxBurstLength", "0"),
        ("InitialR2T", "yes"),
        ("HeaderDigest", "CRC64"),
        ("SendTargets", "All"),
    ],
)
def test_an_inadmissible_offer_is_rejected_and_leaves_the_default(name, value):
    target = _target()
    assert target.receive([(name, value)], Place.OPERATIONAL) == [(name, "Reject")]
    assert target.session_params() == SessionParams()


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        ([("MaxBurstLength", "1024"), ("MaxBurstLength", "1024")], "negotiated already"),
        ([("X-a", "1"), ("X-a", "1")], "sent already"),
        ([("MaxRecvDataSegmentLength", "100")], "out of range"),
        ([("MaxRecvDataSegmentLength", "512"), ("MaxRecvDataSegmentLength", "512")], "already"),
        ([("InitiatorName", "a"), ("InitiatorName", "b")], "already"),
    ],
)
def test_a_key_said_twice_or_declared_wrongly_ends_it(pairs, complaint):
    with pytest.raises(RemoteProtocolError, match=complaint):
        _target().receive(pairs, Place.OPERATIONAL)


def test_first_burst_never_exceeds_max_burst_whatever_the_order():
    target = _target(max_burst_length=4096, first_burst_length=4096)
    pairs = [("FirstBurstLength", "65536"), ("MaxBurstLength", "2048")]
    assert dict(target.receive(pairs, Place.OPERATIONAL))["FirstBurstLength"] == "2048"
    assert target.session_params().first_burst_length == 2048


def test_discovery_finds_session_keys_irrelevant_but_not_digests():
    target = _target()
    target.set_discovery()
    normal = ["MaxConnections", "InitialR2T", "ImmediateData", "MaxBurstLength"]
    normal += ["FirstBurstLength", "MaxOutstandingR2T", "DataPDUInOrder", "DataSequenceInOrder"]
    normal += ["iSCSIProtocolLevel", "TaskReporting"]
    for name in normal:
        assert target.receive([(name, "1024")], Place.OPERATIONAL) == [(name, "Irrelevant")]
    # RFC 7143 §13.15, §13.16 and §13.20 name no kind of session for these.
    others = [("DataDigest", "None"), ("DefaultTime2Wait", "2"), ("ErrorRecoveryLevel", "0")]
    assert target.receive(others, Place.OPERATIONAL) == others


def test_a_connection_added_later_cannot_change_the_session():
    target = Negotiation(Sender.INITIATOR, Proposal(), leading=False)
    answers = target.receive(
        [("MaxBurstLength", "1024"), ("DataDigest", "None")], Place.OPERATIONAL
    )
    assert answers == [("MaxBurstLength", "Irrelevant"), ("DataDigest", "None")]


def test_what_the_peer_left_out_is_offered_only_where_the_default_will_not_do():
    assert _target().offer_needed() == []
    target = _target(max_burst_length=8192, first_burst_length=8192, immediate_data=False)
    assert dict(target.offer_needed()) == {
        "MaxBurstLength": "8192",
        "FirstBurstLength": "8192",
        "ImmediateData": "No",
    }
    assert target.has_open_offers


def test_silence_about_a_decided_boolean_is_an_answer():
    target = _target(immediate_data=False)
    target.offer_needed()
    target.close()
    assert not target.session_params().immediate_data


def test_refusing_a_key_we_cannot_do_without_ends_it():
    target = _target(max_burst_length=8192, first_burst_length=8192)
    target.offer_needed()
    with pytest.raises(RemoteProtocolError, match="MaxBurstLength=Reject"):
        target.receive([("MaxBurstLength", "Reject")], Place.OPERATIONAL)


def test_irrelevant_is_no_way_around_our_limits():
    limits = {"max_burst_length": 8192, "first_burst_length": 8192}
    for name in ("MaxBurstLength", "FirstBurstLength"):
        target = _target(**limits)
        target.offer_needed()
        answers = {"MaxBurstLength": "8192", name: "Irrelevant"}
        with pytest.raises(RemoteProtocolError, match=f"{name}=Irrelevant"):
            target.receive(list(answers.items()), Place.OPERATIONAL)
    # Without immediate and unsolicited data there is no first burst (RFC 7143 §13.14).
    target = _target(immediate_data=False, **limits)
    target.offer_needed()
    answers = {"MaxBurstLength": "8192", "ImmediateData": "No", "FirstBurstLength": "Irrelevant"}
    assert target.receive(list(answers.items()), Place.OPERATIONAL) == []
    target.close()
    assert target.session_params().first_burst_length == 8192


def test_our_own_nonsense_is_refused_at_once():
    with pytest.raises(LocalProtocolError, match="MaxOutstandingR2T=0"):
        _target(max_outstanding_r2t=0)
    with pytest.raises(LocalProtocolError, match="HeaderDigest"):
        Negotiation(Sender.TARGET, Proposal(header_digest=("CRC64",)))
