"""What a login does with peers that are wrong, hostile or elsewhere (RFC 7143 §6.3, §11.13.5)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import bhs, login_common, text
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import (
    LocalProtocolError,
    LoginRedirected,
    LoginRejected,
    LoginStatus,
    ProtocolError,
    RemoteProtocolError,
)
from iscsi.wire.keys import KEYS, Proposal, SessionParams
from iscsi.wire.login import TargetPolicy, refusal
from tests.iscsi.wire.joined import DISK, HOST, ISID, initiator, join, target

NAMES = text.encode([("InitiatorName", HOST), ("TargetName", DISK)])


def request(data=NAMES, **fields):
    base = {"immediate": 1, "csg": 1, "nsg": 3, "transit": 1, "isid": ISID, "cmd_sn": 1}
    return bhs.encode_pdu(Opcode.LOGIN_REQUEST, data, **{**base, **fields})


def response(data=b"", **fields):
    base = {"csg": 0, "nsg": 1, "transit": 1, "isid": ISID}
    return bhs.encode_pdu(Opcode.LOGIN_RESPONSE, data, **{**base, **fields})


def give(login, pdu):
    login.segment_length(pdu[:48])
    login.receive_pdu(pdu[:48], pdu[48:])


def refused_with(login, *pdus):
    """The status the target's last response carries; everything before must pass."""
    for pdu in pdus[:-1]:
        give(login, pdu)
        login.data_to_send()
    with pytest.raises(ProtocolError) as caught:
        give(login, pdus[-1])
    assert login.failed
    assert login.error is caught.value
    answer = bhs.decode(login.data_to_send()[:48])
    assert (answer.opcode, answer.transit) == (Opcode.LOGIN_RESPONSE, 0)
    assert (answer.csg, answer.isid) == (login.stage, ISID)
    return answer.status_class << 8 | answer.status_detail


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ([("TargetName", DISK)], LoginStatus.MISSING_PARAMETER),
        ([("InitiatorName", HOST)], LoginStatus.MISSING_PARAMETER),
        ([("InitiatorName", HOST), ("TargetName", DISK + "2")], LoginStatus.TARGET_NOT_FOUND),
        (
            [("InitiatorName", HOST), ("SessionType", "Boot")],
            LoginStatus.SESSION_TYPE_NOT_SUPPORTED,
        ),
        ([("InitiatorName", "a\x07b"), ("TargetName", DISK)], LoginStatus.INITIATOR_ERROR),
        ([("InitiatorName", "n" * 224), ("TargetName", DISK)], LoginStatus.INITIATOR_ERROR),
        ([("InitiatorName", ""), ("TargetName", DISK)], LoginStatus.INITIATOR_ERROR),
    ],
)
def test_wrong_names_get_their_status(pairs, status):
    assert refused_with(target(), request(text.encode(pairs))) == status


@pytest.mark.parametrize(
    "fields",
    [
        {"csg": 2},
        {"csg": 3},
        {"csg": 1, "nsg": 1},
        {"csg": 1, "nsg": 0},
        {"csg": 0, "nsg": 2},
        {"continued": 1},
    ],
    ids=str,
)
def test_impossible_stages_are_initiator_errors(fields):
    assert refused_with(target(), request(**fields)) == LoginStatus.INITIATOR_ERROR


@pytest.mark.parametrize(
    "data",
    [
        b"InitiatorName\0",
        b"InitiatorName=" + HOST.encode(),
        b"K" * 64 + b"=1\0",
        b"X-k=" + b"v" * 300 + b"\0",
        NAMES + b"MaxBurstLength=512\0MaxBurstLength=1024\0",
        NAMES + b"MaxRecvDataSegmentLength=0\0",
        NAMES + b"MaxRecvDataSegmentLength=-1\0",
        NAMES + b"MaxRecvDataSegmentLength=99999999999999999999999\0",
        b"\xff\xff=\0",
    ],
)
def test_malformed_keys_are_initiator_errors(data):
    assert refused_with(target(), request(data)) == LoginStatus.INITIATOR_ERROR


def test_a_stage_never_goes_back_or_is_left_out():
    first = request(csg=0, nsg=1)
    assert refused_with(target(), first, request(b"", csg=0)) == LoginStatus.INITIATOR_ERROR


@pytest.mark.parametrize("name", ["isid", "itt", "cid", "tsih"])
def test_identifiers_stay_the_same_through_a_login(name):
    changed = request(b"", **{name: 77})
    assert refused_with(target(), request(csg=0, nsg=1), changed) == LoginStatus.INITIATOR_ERROR


def test_a_version_above_ours_is_refused():
    assert refused_with(target(), request(version_min=1)) == LoginStatus.UNSUPPORTED_VERSION


def test_an_unknown_session_cannot_be_joined():
    assert refused_with(target(), request(tsih=9)) == LoginStatus.SESSION_DOES_NOT_EXIST


def test_another_method_than_none_is_an_authentication_failure():
    data = NAMES + b"AuthMethod=CHAP\0"
    assert refused_with(target(), request(data, csg=0)) == LoginStatus.AUTHENTICATION_FAILURE


def test_a_first_pdu_that_is_no_login_is_answered_with_silence():
    right = target()
    with pytest.raises(RemoteProtocolError, match="SCSI_COMMAND before any login"):
        give(right, bhs.encode_pdu(Opcode.SCSI_COMMAND))
    assert right.failed
    assert right.data_to_send() == b""


def test_another_pdu_during_login_is_invalid():
    command = bhs.encode_pdu(Opcode.SCSI_COMMAND)
    status = refused_with(target(), request(csg=0, nsg=1), command)
    assert status == LoginStatus.INVALID_DURING_LOGIN


@pytest.mark.parametrize("fields", [{"data_segment_length": 8193}, {"total_ahs_words": 255}])
@pytest.mark.parametrize("role", ["initiator", "target"])
def test_oversize_header_is_refused_before_its_data_is_read(role, fields):
    opcode = Opcode.LOGIN_REQUEST if role == "target" else Opcode.LOGIN_RESPONSE
    login = target() if role == "target" else initiator()
    with pytest.raises(RemoteProtocolError):
        login.segment_length(bhs.encode(opcode, **fields))
    assert login.failed


def test_a_continued_text_is_bounded():
    right = target()
    endless = request(b"A" * 8192, transit=0, continued=1)
    for _ in range(8):
        give(right, endless)
        right.data_to_send()
    with pytest.raises(RemoteProtocolError, match="longer than 65536"):
        give(right, endless)


def test_c_bit_without_text_is_an_initiator_error():
    assert refused_with(target(), request(b"", transit=0, continued=1)) == 0x0200


def test_a_login_without_end_is_ended():
    right = target()
    give(right, request(csg=0, nsg=0, transit=0))
    idle = request(b"", csg=0, nsg=0, transit=0)
    for _ in range(login_common.MAX_EXCHANGES - 1):
        give(right, idle)
    with pytest.raises(RemoteProtocolError, match="no end of login"):
        give(right, idle)
    assert right.failed


@pytest.mark.parametrize("status", [s for s in LoginStatus if s >= 0x0200], ids=lambda s: s.name)
def test_a_policys_refusal_reaches_the_initiator(status):
    def admit(identity):
        assert (identity.initiator_name, identity.target_name) == (HOST, DISK)
        raise refusal(status)

    left, right = initiator(), target(TargetPolicy({DISK}, admit=admit))
    join(left, right)
    assert isinstance(left.error, LoginRejected)
    assert left.error.status == right.error.status == status
    assert left.error.is_retryable == (status >= 0x0300)
    assert status.name.lower().replace("_", " ") in str(left.error)
    assert left.result is right.result is None


@pytest.mark.parametrize("permanent", [False, True])
def test_a_redirection_carries_its_address(permanent):
    def admit(identity):
        raise LoginRedirected("[::1]:3261,2", permanent=permanent)

    left = initiator()
    join(left, target(TargetPolicy({DISK}, admit=admit)))
    assert isinstance(left.error, LoginRedirected)
    assert (left.error.address, left.error.permanent) == ("[::1]:3261,2", permanent)


@pytest.mark.parametrize("data", [b"", b"TargetAddress=\0", b"TargetAddress=a b\0", b"A\0"])
def test_a_redirection_to_nowhere_is_the_targets_fault(data):
    left = initiator()
    left.start()
    with pytest.raises(RemoteProtocolError):
        give(left, response(data, status_class=1, status_detail=1))


@pytest.mark.parametrize(
    ("pdu", "complaint"),
    [
        (response(itt=5), "not ours"),
        (response(isid=1), "ISID"),
        (response(version_active=1), "version 1"),
        (response(csg=1, nsg=3), "CSG 1"),
        (response(nsg=0), "no transition"),
        (response(nsg=3), "skipped"),
        (response(continued=1), "T and C"),
        (response(b"AuthMethod=CHAP\0"), "AuthMethod=CHAP"),
        (response(b"MaxRecvDataSegmentLength=1\0"), "out of range"),
        (bhs.encode_pdu(Opcode.NOP_IN), "NOP_IN during login"),
        (b"\x3e" + bytes(47), "unknown opcode"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_targets_mistake_ends_the_initiators_login(pdu, complaint):
    left = initiator()
    left.start()
    with pytest.raises(RemoteProtocolError, match=complaint):
        give(left, pdu)
    assert left.failed
    assert not left.done


@pytest.mark.parametrize(
    ("data", "tsih", "complaint"),
    [
        (b"", 0, "TSIH 0"),
        (b"MaxBurstLength=999999\0", 1, "does not answer"),
        (b"HeaderDigest=CRC32C\0", 1, "does not answer"),
        (b"MaxConnections=1\0MaxConnections=1\0", 1, "negotiated already"),
        (b"TaskReporting=FastAbort\0IFMarker=No\0ErrorRecoveryLevel=2\0", 1, "does not answer"),
    ],
)
def test_final_responses_are_checked_against_our_offers(data, tsih, complaint):
    left = initiator(skip_security=True)
    left.start()
    with pytest.raises(RemoteProtocolError, match=complaint):
        give(left, response(data, csg=1, nsg=3, tsih=tsih))


def test_offers_in_the_final_response_cannot_be_answered():
    left = initiator(skip_security=True)
    left.start()
    with pytest.raises(RemoteProtocolError, match="had to answer"):
        give(left, response(b"TaskReporting=RFC3720\0", csg=1, nsg=3, tsih=1))


def test_a_target_that_transits_unasked_is_refused(monkeypatch):
    monkeypatch.setattr(login_common, "MAX_LOGIN_SEGMENT", 64)
    left = initiator()
    left.start()
    with pytest.raises(RemoteProtocolError, match="did not wait"):
        give(left, response())


def test_names_that_could_not_be_sent_are_the_callers_fault():
    with pytest.raises(LocalProtocolError, match="control character"):
        initiator("iqn.2026-01.example:\n")


def test_a_policy_that_gives_no_tsih_is_a_target_error():
    assert refused_with(target(TargetPolicy({DISK}, new_tsih=lambda who: 0)), request()) == 0x0300


@pytest.mark.parametrize(
    "pairs",
    [
        [("AuthMethod", "CHAP\nforged line of a log\x1b[2J")],
        [("MaxRecvDataSegmentLength", "1\nforged line of a log\x1b[2J")],
        [("SessionType", "\nforged line of a log\x1b[2J")],
    ],
)
def test_what_a_peer_says_cannot_write_lines_of_its_own(pairs):
    with pytest.raises(ProtocolError, match="forged line") as caught:
        give(target(), request(NAMES + text.encode(pairs), csg=0, nsg=1))
    assert str(caught.value).isprintable()


ODD_KEYS = ["InitiatorName", "TargetName", "SessionType", "AuthMethod", "HeaderDigest"]
ODD_KEYS += ["MaxBurstLength", "ImmediateData", "TargetAddress", "CHAP_A", "X-odd", "TSIH"]
PIECES = st.one_of(
    st.binary(max_size=80),
    st.lists(
        st.tuples(
            st.sampled_from(ODD_KEYS),
            st.sampled_from(["", "None", "Yes", "Reject", "Irrelevant", "512", "0x", DISK, "a,b"]),
        ),
        max_size=6,
    ).map(text.encode),
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "transit": st.integers(0, 1),
        "continued": st.integers(0, 1),
        "csg": st.integers(0, 3),
        "nsg": st.integers(0, 3),
        "tsih": st.integers(0, 2),
        "itt": st.integers(0, 1),
        "status_class": st.integers(0, 4),
        "version_active": st.integers(0, 1),
    },
)


def _survives(login, pdus):
    for pdu in pdus:
        try:
            give(login, pdu)
        except ProtocolError:
            assert not login.done
            return
        if login.done:
            return


@settings(max_examples=150)
@given(st.lists(st.tuples(PIECES, HEADERS), min_size=1, max_size=5))
def test_target_survives_anything_that_looks_like_a_login(parts):
    wanted = ("status_class", "version_active")
    pdus = [
        request(data, **{k: v for k, v in fields.items() if k not in wanted})
        for data, fields in parts
    ]
    _survives(target(), pdus)


@settings(max_examples=150)
@given(st.lists(st.tuples(PIECES, HEADERS), min_size=1, max_size=5))
def test_initiator_survives_anything_that_looks_like_a_response(parts):
    left = initiator()
    left.start()
    _survives(left, [response(data, **fields) for data, fields in parts])


NUMBERS = ["0", "1", "01", "007", "0x1", "0x1000", "0X2000", "512", "0512", "4096", "99999999"]
VALUES = st.sampled_from([*NUMBERS, "-1", "Yes", "No", "None", ",", "Reject", "Irrelevant", DISK])
LIMITED = Proposal(
    SessionParams(
        immediate_data=False,
        max_burst_length=8192,
        first_burst_length=8192,
        default_time2wait=5,
        default_time2retain=5,
    )
)


@pytest.mark.parametrize("number", ["1", "01", "0x1", "0X0001"])
def test_a_portal_group_tag_is_a_number_in_any_form(number):
    left = initiator(skip_security=True)
    left.start()
    give(left, response(f"TargetPortalGroupTag={number}\0".encode(), csg=1, nsg=3, tsih=1))
    assert left.result.target_portal_group_tag == 1


@pytest.mark.parametrize("name", ["header_digest", "data_digest"])
def test_a_target_that_takes_nothing_but_a_digest_refuses_who_offers_none(name):
    left, right = initiator(), target(proposal=Proposal(**{name: ("CRC32C",)}))
    join(left, right)
    assert isinstance(left.error, LoginRejected)
    assert left.error.status == LoginStatus.INITIATOR_ERROR
    assert isinstance(right.error, RemoteProtocolError)
    assert not right.done


@pytest.mark.parametrize("number", ["4096", "04096", "0x1000"])
def test_an_answer_is_a_number_in_any_form(number):
    bursts = Proposal(SessionParams(max_burst_length=8192, first_burst_length=8192))
    right = target(proposal=bursts)
    give(right, request())
    refused = [("MaxBurstLength", number), ("FirstBurstLength", "Reject")]
    with pytest.raises(RemoteProtocolError, match="FirstBurstLength=Reject"):
        give(right, request(text.encode(refused)))
    right = target(proposal=bursts)
    give(right, request())
    give(right, request(text.encode([("FirstBurstLength", "512"), ("MaxBurstLength", number)])))
    assert right.result.session.max_burst_length == 4096


@pytest.mark.parametrize("role", ["initiator", "target"])
@settings(max_examples=300)
@given(st.data())
def test_any_answer_to_our_offers_is_taken_or_refused(role, data):
    if role == "initiator":
        login = initiator(proposal=LIMITED, skip_security=True)
        login.start()
    else:
        login = target(proposal=LIMITED)
        give(login, request())
    pdu = login.data_to_send()
    asked = [key for key, _ in text.decode(pdu[48 : 48 + bhs.decode(pdu[:48]).data_segment_length])]
    assert "MaxBurstLength" in asked
    names = data.draw(st.lists(st.sampled_from([*asked, *KEYS]), max_size=8, unique=True))
    answer = text.encode([(name, data.draw(VALUES)) for name in names])
    is_target = role == "target"
    _survives(login, [request(answer) if is_target else response(answer, csg=1, nsg=3, tsih=1)])


@settings(max_examples=150)
@given(st.binary(min_size=40, max_size=60), st.binary(max_size=40), st.booleans())
def test_random_bytes_end_in_a_protocol_error_or_are_taken(header, data, is_target):
    login = target() if is_target else initiator()
    with pytest.raises(ProtocolError):
        login.receive_pdu(header, data)


def test_every_truncation_of_a_login_is_refused():
    left = initiator(proposal=Proposal())
    left.start()
    pdu = left.data_to_send()
    for length in range(len(pdu) - 4):
        with pytest.raises(ProtocolError):
            target().receive_pdu(pdu[:length][:48], pdu[48:length])
