"""iSER's keys (RFC 7145 §6) in a login whose connection is RDMA, and beside one over TCP."""

import pytest

from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError
from iscsi.wire.keys import KEYS, IserParams, Place, Proposal, Sender, SessionParams, parse_number
from iscsi.wire.negotiation import Negotiation
from tests.iscsi.wire.joined import initiator, join, target


def proposal(**changes):
    return Proposal(session=SessionParams(), iser=IserParams(), **changes)


def negotiation(peer=Sender.INITIATOR, **changes):
    return Negotiation(peer, proposal(**changes))


def test_both_sides_agree_on_rdma_and_on_the_smaller_lengths():
    left = initiator(
        proposal=proposal(
            initiator_recv_data_segment_length=4096, target_recv_data_segment_length=65536
        )
    )
    right = target(
        proposal=proposal(
            initiator_recv_data_segment_length=8192, target_recv_data_segment_length=16384
        )
    )
    join(left, right)
    assert left.result.session.rdma_extensions
    assert right.result.session.rdma_extensions
    assert left.result.connection.max_recv_data_segment_length == 4096
    assert left.result.connection.peer_max_recv_data_segment_length == 16384
    assert right.result.connection.max_recv_data_segment_length == 16384
    assert right.result.connection.peer_max_recv_data_segment_length == 4096
    assert left.result.iser == right.result.iser == IserParams()


def test_what_each_side_declares_reaches_the_other():
    ours = IserParams(4, 512, tagged_buffer_for_solicited_data_only=True, iser_hello_required=True)
    left = initiator(proposal=Proposal(session=SessionParams(), iser=ours))
    right = target(proposal=Proposal(session=SessionParams(), iser=IserParams(9, 0)))
    join(left, right)
    assert right.result.iser == ours
    assert left.result.iser == IserParams(9, 0)


def test_a_discovery_session_over_rdma_has_the_same_keys():
    left, right = initiator(None, proposal=proposal()), target(proposal=proposal())
    join(left, right)
    assert left.result.session.rdma_extensions
    assert right.result.session.rdma_extensions


@pytest.mark.parametrize("answer", ["Irrelevant", "NotUnderstood", "No"])
def test_a_discovery_session_does_not_need_an_agreement_on_rdma(answer):
    found = negotiation(Sender.TARGET)
    found.set_discovery()
    assert ("RDMAExtensions", "Yes") in found.offer_all()
    found.receive([("RDMAExtensions", answer)], Place.OPERATIONAL)
    found.close()
    assert not found.session_params().rdma_extensions
    assert found.connection_params().peer_max_recv_data_segment_length == 8192


def test_an_initiator_over_rdma_ends_the_login_if_the_target_answers_no():
    left, right = initiator(proposal=proposal()), target()
    join(left, right)
    assert "RDMAExtensions=Yes was not agreed on" in str(left.error)


def test_a_target_over_rdma_refuses_an_initiator_that_never_asks_for_it():
    left, right = initiator(), target(proposal=proposal())
    join(left, right)
    assert left.failed
    assert "RDMAExtensions=Yes was not agreed on" in str(right.error)


def test_over_rdma_nobody_declares_how_long_a_segment_of_the_byte_stream_may_be():
    said = dict(negotiation(Sender.TARGET).offer_all())
    assert "MaxRecvDataSegmentLength" not in said
    assert said["RDMAExtensions"] == "Yes"
    assert said["InitiatorRecvDataSegmentLength"] == said["TargetRecvDataSegmentLength"] == "8192"
    # A peer that does says nothing that counts.
    answers = negotiation()
    assert answers.receive([("MaxRecvDataSegmentLength", "512")], Place.OPERATIONAL) == []
    assert answers.connection_params().peer_max_recv_data_segment_length == 8192


def test_over_tcp_nobody_offers_what_belongs_to_rdma():
    said = {name for name, _ in Negotiation(Sender.TARGET, Proposal()).offer_all()}
    assert not {name for name in said if KEYS[name].rdma_only or name == "RDMAExtensions"}


@pytest.mark.parametrize("name", ["MaxOutstandingUnexpectedPDUs", "MaxAHSLength"])
@pytest.mark.parametrize(("value", "number"), [("0", 0), ("2", 2), ("4294967295", 4294967295)])
def test_a_declared_count_is_nothing_or_two_and_more(name, value, number):
    assert parse_number(KEYS[name], value) == number
    ours = negotiation()
    ours.receive([(name, value)], Place.OPERATIONAL)
    assert getattr(ours.iser_params(), KEYS[name].attribute) == number


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MaxOutstandingUnexpectedPDUs", "1"),
        ("MaxOutstandingUnexpectedPDUs", "4294967296"),
        ("MaxAHSLength", "1"),
        ("MaxAHSLength", "many"),
        ("TaggedBufferForSolicitedDataOnly", "yes"),
        ("iSERHelloRequired", "1"),
    ],
)
def test_a_declaration_out_of_range_ends_the_login(name, value):
    with pytest.raises(RemoteProtocolError, match=name):
        negotiation().receive([(name, value)], Place.OPERATIONAL)


@pytest.mark.parametrize("name", ["TaggedBufferForSolicitedDataOnly", "iSERHelloRequired"])
def test_what_only_an_initiator_declares_is_rejected_from_a_target(name):
    left = negotiation(Sender.TARGET)
    assert left.receive([(name, "Yes")], Place.OPERATIONAL) == [(name, "Reject")]


@pytest.mark.parametrize("length", ["511", "16777216"])
def test_a_receive_length_out_of_range_is_rejected_and_stays_at_its_default(length):
    name = "TargetRecvDataSegmentLength"
    ours = negotiation()
    assert ours.receive([(name, length)], Place.OPERATIONAL) == [(name, "Reject")]
    assert ours.connection_params().max_recv_data_segment_length == 8192


def test_a_peer_that_does_not_know_iser_s_keys_leaves_them_at_their_defaults():
    left = negotiation(Sender.TARGET, target_recv_data_segment_length=65536)
    left.offer_all()
    answers = [("RDMAExtensions", "Yes")]
    answers += [(name, "NotUnderstood") for name in KEYS if name.endswith("RecvDataSegmentLength")]
    answers = [pair for pair in answers if pair[0] != "MaxRecvDataSegmentLength"]
    left.receive(answers, Place.OPERATIONAL)
    assert left.connection_params().peer_max_recv_data_segment_length == 8192
    assert left.iser_params() == IserParams()


def test_digests_over_rdma_are_our_own_mistake():
    with pytest.raises(LocalProtocolError, match="no digests"):
        negotiation(data_digest=("CRC32C", "None"))
    assert negotiation().receive([("HeaderDigest", "CRC32C,None")], Place.OPERATIONAL) == [
        ("HeaderDigest", "None")
    ]
