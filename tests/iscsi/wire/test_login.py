"""Two logins joined in memory, and each against what a real peer once said."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import bhs, login_common, text
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import LocalProtocolError, LoginRejected
from iscsi.wire.keys import Proposal, SessionParams
from iscsi.wire.login import InitiatorLogin, Stage, TargetLogin, TargetPolicy
from tests.iscsi.wire.captured import LOGIN_REQUEST, LOGIN_RESPONSE
from tests.iscsi.wire.joined import DISK, HOST, ISID, initiator, join, target


@pytest.mark.parametrize("skip_security", [False, True])
def test_both_sides_end_with_the_same_result(skip_security):
    left, right = initiator(skip_security=skip_security, cmd_sn=7), target(stat_sn=0xFFFFFFFF)
    received_left, _ = join(left, right)
    assert len(received_left) == (1 if skip_security else 2)
    assert left.done
    assert right.done
    assert left.stage is right.stage is Stage.FULL_FEATURE
    ours, theirs = left.result, right.result
    assert ours.session == theirs.session
    assert (ours.tsih, ours.isid, ours.cid) == (theirs.tsih, theirs.isid, theirs.cid)
    assert ours.tsih == 1
    assert (ours.cmd_sn, ours.max_cmd_sn) == (theirs.cmd_sn, theirs.max_cmd_sn) == (7, 134)
    assert ours.stat_sn == theirs.stat_sn == (0xFFFFFFFF + len(received_left)) % 2**32
    assert (ours.target_name, ours.initiator_name) == (DISK, HOST)
    assert ours.target_portal_group_tag == 1
    assert not ours.is_discovery


def test_segment_lengths_cross_over():
    left = initiator(proposal=Proposal(max_recv_data_segment_length=4096))
    right = target(proposal=Proposal(max_recv_data_segment_length=65536))
    join(left, right)
    mine, theirs = left.result.connection, right.result.connection
    assert (mine.max_recv_data_segment_length, mine.peer_max_recv_data_segment_length) == (
        4096,
        65536,
    )
    assert (theirs.max_recv_data_segment_length, theirs.peer_max_recv_data_segment_length) == (
        65536,
        4096,
    )


def test_digests_are_agreed_by_the_initiators_preference():
    left = initiator(proposal=Proposal(header_digest=("CRC32C", "None"), data_digest=("None",)))
    right = target(
        proposal=Proposal(header_digest=("None", "CRC32C"), data_digest=("CRC32C", "None"))
    )
    join(left, right)
    for login in (left, right):
        assert login.result.connection.header_digest
        assert not login.result.connection.data_digest


def test_tsih_appears_only_in_the_last_response():
    received, _ = join(initiator(), target())
    assert [bhs.decode(pdu[:48]).tsih for pdu in received] == [0, 1]


def test_portal_group_tag_is_in_the_first_response_only():
    policy = TargetPolicy({DISK}, portal_group_tag=9, target_alias="the disk")
    left = initiator(initiator_alias="my host")
    received, _ = join(left, target(policy))
    tagged = [b"TargetPortalGroupTag=9\0" in pdu for pdu in received]
    assert tagged == [True, False]
    assert left.result.target_alias == "the disk"


def test_cmd_sn_is_carried_but_not_consumed():
    _, received = join(initiator(cmd_sn=41), target())
    headers = [bhs.decode(pdu[:48]) for pdu in received]
    assert [(h.cmd_sn, h.immediate) for h in headers] == [(41, 1), (41, 1)]
    assert [h.exp_stat_sn for h in headers] == [0, 1]


def test_discovery_names_no_target_and_gets_no_tag():
    left, right = initiator(None), target()
    join(left, right)
    assert left.result.is_discovery
    assert right.result.is_discovery
    assert left.result.target_portal_group_tag is None
    assert left.result.session == SessionParams()


@pytest.mark.parametrize("limit", [48, 64, 100, 200])
def test_text_cut_by_the_c_bit_gives_the_same_result(monkeypatch, limit):
    whole = initiator()
    join(whole, target())
    monkeypatch.setattr(login_common, "MAX_LOGIN_SEGMENT", limit)
    left, right = initiator(), target()
    received_left, received_right = join(left, right)
    assert left.result.session == right.result.session == whole.result.session
    for received in (received_left, received_right):
        headers = [bhs.decode(pdu[:48]) for pdu in received]
        assert any(h.continued for h in headers)
        assert not any(h.continued and h.transit for h in headers)
        assert all(h.data_segment_length <= limit for h in headers)


SESSIONS = st.builds(
    SessionParams,
    max_connections=st.integers(1, 65535),
    initial_r2t=st.booleans(),
    immediate_data=st.booleans(),
    max_burst_length=st.integers(512, 2**24 - 1),
    first_burst_length=st.integers(512, 2**24 - 1),
    default_time2wait=st.integers(0, 3600),
    default_time2retain=st.integers(0, 3600),
    max_outstanding_r2t=st.integers(1, 65535),
    data_pdu_in_order=st.booleans(),
    data_sequence_in_order=st.booleans(),
    error_recovery_level=st.integers(0, 2),
)


@settings(max_examples=60)
@given(SESSIONS, SESSIONS)
def test_any_two_proposals_meet_by_the_result_functions(a, b):
    left, right = initiator(proposal=Proposal(a)), target(proposal=Proposal(b))
    join(left, right)
    burst = min(a.max_burst_length, b.max_burst_length)
    first = min(a.first_burst_length, b.first_burst_length, burst)
    assert left.result.session == right.result.session
    assert left.result.session == SessionParams(
        max_connections=min(a.max_connections, b.max_connections),
        initial_r2t=a.initial_r2t or b.initial_r2t,
        immediate_data=a.immediate_data and b.immediate_data,
        max_burst_length=burst,
        first_burst_length=first,
        default_time2wait=max(a.default_time2wait, b.default_time2wait),
        default_time2retain=min(a.default_time2retain, b.default_time2retain),
        max_outstanding_r2t=min(a.max_outstanding_r2t, b.max_outstanding_r2t),
        data_pdu_in_order=a.data_pdu_in_order or b.data_pdu_in_order,
        data_sequence_in_order=a.data_sequence_in_order or b.data_sequence_in_order,
        error_recovery_level=min(a.error_recovery_level, b.error_recovery_level),
    )


def _request(data, **fields):
    base = {"immediate": 1, "csg": 1, "nsg": 3, "transit": 1, "isid": ISID, "cmd_sn": 1}
    return bhs.encode_pdu(Opcode.LOGIN_REQUEST, data, **{**base, **fields})


def _give(login, pdu):
    login.receive_pdu(pdu[:48], pdu[48:])
    answer = login.data_to_send()
    header = bhs.decode(answer[:48])
    return header, text.decode(answer[48 : 48 + header.data_segment_length])


def test_target_offers_what_a_silent_initiator_leaves_at_an_unusable_default():
    right = target(proposal=Proposal(SessionParams(max_burst_length=8192, first_burst_length=8192)))
    names = text.encode([("InitiatorName", HOST), ("TargetName", DISK)])
    header, pairs = _give(right, _request(names))
    assert not header.transit
    assert ("MaxBurstLength", "8192") in pairs
    answer = text.encode([("MaxBurstLength", "4096"), ("FirstBurstLength", "4096")])
    header, pairs = _give(right, _request(answer))
    assert (header.transit, header.nsg, pairs) == (1, 3, [])
    assert right.result.session.max_burst_length == 4096


def test_security_may_lead_straight_to_full_feature():
    right = target()
    names = text.encode(
        [("InitiatorName", HOST), ("TargetName", DISK), ("AuthMethod", "CHAP,None")]
    )
    header, pairs = _give(right, _request(names, csg=0, nsg=3))
    assert (header.transit, header.csg, header.nsg) == (1, 0, 3)
    assert ("AuthMethod", "None") in pairs
    assert right.result.session == SessionParams()


def test_stages_may_take_as_many_requests_as_the_initiator_likes():
    right = target()
    names = text.encode([("InitiatorName", HOST), ("TargetName", DISK)])
    header, _ = _give(right, _request(names, csg=0, nsg=0, transit=0))
    assert (header.transit, header.csg) == (0, 0)
    header, _ = _give(right, _request(text.encode([("AuthMethod", "None")]), csg=0, nsg=1))
    assert (header.transit, header.nsg) == (1, 1)
    # NSG is reserved while T is 0: whatever stands there is ignored.
    header, _ = _give(right, _request(b"", csg=1, nsg=2, transit=0))
    assert (header.transit, right.stage) == (0, Stage.OPERATIONAL)
    header, _ = _give(right, _request(b""))
    assert header.transit
    assert right.done


def test_a_second_connection_joins_its_session_by_tsih():
    agreed = SessionParams(max_connections=2, max_burst_length=4096)
    asked = []

    def joined(who):
        asked.append((who.tsih, who.isid, who.cid))
        return agreed

    left, right = initiator(tsih=5, cid=2), target(TargetPolicy({DISK}, join=joined))
    received, _ = join(left, right)
    assert asked == [(5, ISID, 2)]
    assert right.result.session is agreed
    assert left.result.tsih == right.result.tsih == 5
    assert [bhs.decode(pdu[:48]).tsih for pdu in received] == [5, 5]


def test_target_reads_libiscsis_login():
    right = target(policy=TargetPolicy(()))
    header, pairs = _give(right, LOGIN_REQUEST)
    assert (header.status_class, header.transit, header.nsg) == (0, 1, 3)
    answers = dict(pairs)
    assert answers["IFMarker"] == answers["OFMarker"] == "Reject"
    assert answers["MaxBurstLength"] == "Irrelevant"
    assert right.result.initiator_name == "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-ls"
    assert right.result.connection.peer_max_recv_data_segment_length == 262144
    assert (right.result.is_discovery, right.result.cmd_sn) == (True, 669868846)


def test_initiator_reads_tgts_answer_to_the_same_offers():
    left = InitiatorLogin(
        HOST, DISK, isid=0x80E4D9860000, itt=0x6B48F777, cmd_sn=669868846, skip_security=True
    )
    left.start()
    left.receive_pdu(LOGIN_RESPONSE[:48], LOGIN_RESPONSE[48:])
    assert left.done
    assert left.result.tsih == 0x0100
    assert left.result.stat_sn == 1
    assert left.result.max_cmd_sn == 669868847
    assert left.result.session.initial_r2t
    assert left.result.session.first_burst_length == 65536
    assert left.result.session.default_time2retain == 0
    assert left.result.connection.peer_max_recv_data_segment_length == 8192


def test_a_login_that_ended_takes_nothing_more():
    left, right = initiator(), target()
    join(left, right)
    with pytest.raises(LocalProtocolError, match="ended"):
        right.receive_pdu(bytes(48), b"")
    twice = initiator()
    twice.start()
    with pytest.raises(LocalProtocolError, match="started"):
        twice.start()


def test_data_that_does_not_match_the_header_is_the_callers_fault():
    right = target()
    with pytest.raises(LocalProtocolError, match="4 were due"):
        right.receive_pdu(_request(b"A=1\0")[:48], b"A=")


class SharedSecret:
    """A made-up method of two round trips: the seam that CHAP uses."""

    is_required = True
    user = None

    def __init__(self, secret):
        self.secret = secret
        self.is_complete = False

    @property
    def wants_transit(self):
        return self.is_complete

    def offer(self):
        return [("AuthMethod", "CHAP")]


class Prover(SharedSecret):
    def receive(self, pairs):
        if self.is_complete:
            return []
        self.is_complete = ("CHAP_I", "1") in pairs
        return [("CHAP_R", self.secret)] if self.is_complete else [("CHAP_A", "5")]


class Verifier(SharedSecret):
    def receive(self, pairs):
        got = dict(pairs)
        if "CHAP_R" in got:
            if got["CHAP_R"] != self.secret:
                raise LoginRejected(0x02, 0x01)
            self.is_complete = True
            return []
        return [("CHAP_I", "1")] if "CHAP_A" in got else [("AuthMethod", "CHAP")]


def test_a_method_of_several_round_trips_fits_the_seam():
    left = initiator(security=Prover("0xab"))
    right = target(security=Verifier("0xab"))
    join(left, right)
    assert left.done
    assert right.done


def test_a_wrong_secret_is_an_authentication_failure():
    left, right = initiator(security=Prover("0xab")), target(security=Verifier("0xcd"))
    join(left, right)
    assert left.error.status == right.error.status == 0x0201


def test_a_required_security_stage_cannot_be_skipped():
    left, right = initiator(skip_security=True), target(security=Verifier("0xcd"))
    join(left, right)
    assert left.error.status == 0x0201
    assert isinstance(right, TargetLogin)
    with pytest.raises(LocalProtocolError, match="security stage"):
        initiator(skip_security=True, security=Prover("0xab"))
