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


def test_keys_nobody_knows_are_not_understood_and_old_ones_rejected():
    sent = [("X-com.example.k", "1"), ("IFMarker", "No"), ("OFMarkInt", "2048~8192")]
    answers = _target().receive(sent, Place.OPERATIONAL)
    assert answers == [
        ("X-com.example.k", "NotUnderstood"),
        ("IFMarker", "Reject"),
        ("OFMarkInt", "Reject"),
    ]


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
    answers = target.receive(
        [("MaxBurstLength", "1024"), ("DataDigest", "None")], Place.OPERATIONAL
    )
    assert answers == [("MaxBurstLength", "Irrelevant"), ("DataDigest", "None")]


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


def test_our_own_nonsense_is_refused_at_once():
    with pytest.raises(LocalProtocolError, match="MaxOutstandingR2T=0"):
        _target(max_outstanding_r2t=0)
    with pytest.raises(LocalProtocolError, match="HeaderDigest"):
        Negotiation(Sender.TARGET, Proposal(header_digest=("CRC64",)))
