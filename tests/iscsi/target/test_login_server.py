"""Logins at a running server: who gets in, as whom, to what, and whose session it replaces."""

from dataclasses import replace

import pytest

import iscsi
from iscsi.session.discovery import discover
from iscsi.session.options import DEFAULT_PROPOSAL
from iscsi.target.access import AccessPolicy, Grant, Redirect, TargetAccess
from iscsi.target.units import Target
from iscsi.wire import bhs, discovery, scsi, text
from iscsi.wire.bhs import Opcode
from iscsi.wire.chap import ChapAccount, InitiatorChap
from iscsi.wire.errors import LoginRedirected, LoginRejected
from iscsi.wire.keys import Proposal, SessionParams
from iscsi.wire.login import InitiatorLogin
from iscsi.wire.names import Portal
from iscsi.wire.sense import SenseKey
from shm.jit import JIT_DISABLED
from tests.iscsi.target.serving import BLOCK, HOST, NAME, OTHER, Raw, Serving, wait_until

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")

ALICE = ChapAccount("alice", b"a secret of alice")
DISK = ChapAccount("disk", b"a secret of the disk")
GUESS = ChapAccount("alice", b"a guess of somebody")
READER = HOST + ":reader"
SECURED = AccessPolicy(
    {
        NAME: TargetAccess(
            (
                Grant((READER,), read_only=True),
                Grant(("*:elsewhere",), ("192.0.2.0/24", "2001:db8::/32")),
                Grant((HOST,), ("127.0.0.0/8", "::1"), (ALICE,), DISK),
            )
        ),
        OTHER: TargetAccess((Grant((READER,)),)),
    },
    discovery=(Grant((READER,)), Grant(accounts=(ALICE,))),
)


@pytest.fixture(scope="module")
def secured():
    with Serving(access=SECURED, max_logins=8, linger_s=0.2) as server:
        yield server
        server.wait_idle()


@pytest.fixture(scope="module")
def open_server():
    with Serving(linger_s=0.2) as server:
        yield server
        server.wait_idle()


def refused(server, **options):
    """The status of a refused login; the server closes behind it."""
    with Raw(server.port) as raw:
        with pytest.raises(LoginRejected) as caught:
            raw.log_in(**options)
        assert raw.is_closed()
    return caught.value.status


def test_chap_lets_in_who_knows_the_secret_and_nobody_else(secured):
    with secured.log_in(security=InitiatorChap(ALICE)) as raw:
        raw.clear_attention()
        assert raw.read(5, 1) == secured.disk.array[5 * BLOCK : 6 * BLOCK].tobytes()
    for security in (None, InitiatorChap(GUESS)):
        assert refused(secured, security=security) == 0x0201
    assert refused(secured, skip_security=True) == 0x0201


def test_the_server_proves_itself_to_those_who_ask(secured):
    with secured.log_in(security=InitiatorChap(ALICE, DISK)) as raw:
        raw.clear_attention()
        assert len(raw.read(0, 1)) == BLOCK


def test_a_failed_login_takes_no_memory_and_no_place(secured):
    with secured.log_in(security=InitiatorChap(ALICE)):
        pass
    secured.wait_idle()
    memory, endpoints = secured.memory, secured.endpoints
    for _ in range(20):
        assert refused(secured, security=InitiatorChap(GUESS)) == 0x0201
    secured.wait_idle()
    assert (secured.memory, secured.endpoints) == (memory, endpoints)


def test_names_and_addresses_without_a_grant_are_not_authorized(secured):
    assert refused(secured, initiator="iqn.2026-01.org.example:mallory") == 0x0202
    assert refused(secured, initiator="iqn.2026-01.org.example:elsewhere") == 0x0202
    assert refused(secured, target=OTHER, security=InitiatorChap(ALICE)) == 0x0202
    assert refused(secured, target=NAME + "2") == 0x0203


@pytest.mark.parametrize(
    ("networks", "status"), [(("::1",), None), (("127.0.0.0/8", "2001:db8::/32"), 0x0202)]
)
def test_an_ipv6_source_address_is_judged_too(networks, status):
    access = AccessPolicy(default=TargetAccess((Grant(addresses=networks),)))
    with (
        Serving(access=access, portals=(Portal("::1", 0),), linger_s=0.2) as server,
        Raw(server.port, "::1") as raw,
    ):
        if status is None:
            assert len(raw.log_in().clear_attention().read(0, 1)) == BLOCK
            return
        with pytest.raises(LoginRejected) as caught:
            raw.log_in()
        assert caught.value.status == status


def test_a_reader_reads_and_may_not_write(secured):
    with secured.log_in(initiator=READER) as raw:
        raw.clear_attention()
        before = raw.read(9, 1)
        assert before == secured.disk.array[9 * BLOCK : 10 * BLOCK].tobytes()
        raw.command(scsi.write_16(9, 1), bytes(BLOCK), length=BLOCK, write=1)
        header, data = raw.take()
        assert header.status == 2
        assert data[2 + 2] & 0x0F == SenseKey.DATA_PROTECT
        assert raw.read(9, 1) == before


def seen(raw):
    """What SendTargets=All tells a discovery session."""
    raw.request(Opcode.TEXT_REQUEST, discovery.build_request(), ttt=bhs.RESERVED_TAG, final=1)
    _, data = raw.take()
    return [found.name for found in discovery.parse_response(data)]


def test_discovery_shows_what_the_initiator_may_use(secured):
    with secured.log_in(target=None, initiator=READER) as raw:
        assert seen(raw) == [NAME, OTHER]
    with secured.log_in(target=None, security=InitiatorChap(ALICE)) as raw:
        assert seen(raw) == [NAME]
    with secured.log_in(target=None, initiator=HOST + "2", security=InitiatorChap(ALICE)) as raw:
        assert seen(raw) == []
    assert refused(secured, target=None) == 0x0201


def test_who_cannot_prove_anything_replaces_no_session(secured):
    with secured.log_in(security=InitiatorChap(ALICE)) as raw:
        raw.clear_attention()
        assert refused(secured, security=InitiatorChap(GUESS)) == 0x0201
        assert len(raw.read(0, 1)) == BLOCK


def test_logins_that_stop_half_way_crowd_out_only_each_other(secured):
    started = text.encode([("InitiatorName", HOST), ("TargetName", NAME), ("AuthMethod", "CHAP")])
    with secured.log_in(security=InitiatorChap(ALICE)) as neighbour:
        neighbour.clear_attention()
        flood = [Raw(secured.port) for _ in range(40)]
        for raw in flood:
            raw.give(Opcode.LOGIN_REQUEST, started, isid=1, cmd_sn=1)
        bound = secured.server.config.max_logins + 2
        wait_until("few are kept", lambda: len(secured.server.connections) <= bound)
        assert len(neighbour.read(0, 1)) == BLOCK
        with secured.log_in(isid=2, security=InitiatorChap(ALICE)) as raw:
            raw.clear_attention()
        for raw in flood:
            raw.socket.close()


def test_a_login_may_come_and_go_in_many_pieces(secured, monkeypatch):
    monkeypatch.setattr("iscsi.wire.login_common.MAX_LOGIN_SEGMENT", 48)
    with secured.log_in(security=InitiatorChap(ALICE, DISK)) as raw:
        assert len(raw.clear_attention().read(0, 1)) == BLOCK


def test_a_long_list_of_targets_comes_whole(open_server):
    more = [f"{OTHER}:{number:03}" for number in range(200)]
    for name in more:
        open_server.server.add_target(Target(name, {}))
    found = discover(f"iscsi://127.0.0.1:{open_server.port}")
    assert [target.name for target in found] == [NAME, OTHER, *more]
    for name in more:
        open_server.server.remove_target(name)


NAMES = [("InitiatorName", HOST), ("TargetName", NAME)]
CHAP = [("AuthMethod", "CHAP")]
NO_TEXT = b"InitiatorName" + bytes(3)


@pytest.mark.parametrize(
    ("data", "fields", "status"),
    [
        (NAMES, {"csg": 1, "nsg": 1, "transit": 1}, 0x0200),
        (NAMES, {"csg": 1, "nsg": 0, "transit": 1}, 0x0200),
        (NAMES, {"csg": 2, "nsg": 3, "transit": 1}, 0x0200),
        (NAMES, {"csg": 0, "nsg": 1, "transit": 1, "continued": 1}, 0x0200),
        (NO_TEXT, {}, 0x0200),
        (b"InitiatorName=x", {}, 0x0200),
        ([*NAMES, ("MaxBurstLength", "512"), ("MaxBurstLength", "512")], {"csg": 1}, 0x0200),
        ([("K" * 63, "1"), *NAMES, ("X-a", "v" * 255)], {"csg": 1}, 0x0201),
        (b"K" * 64 + b"=1\0", {}, 0x0200),
        (b"X-k=" + b"v" * 300 + b"\0", {}, 0x0200),
        ([*NAMES, ("MaxRecvDataSegmentLength", "0")], {}, 0x0200),
        ([*NAMES, ("MaxRecvDataSegmentLength", "-1")], {}, 0x0200),
        ([*NAMES, ("MaxRecvDataSegmentLength", "9" * 60)], {}, 0x0200),
        ([*NAMES, *CHAP, ("CHAP_A", "5")], {}, 0x0201),
        ([*NAMES, *CHAP, *CHAP], {}, 0x0201),
        ([*NAMES, ("AuthMethod", "SRP")], {}, 0x0201),
        ([*NAMES, ("CHAP_R", "0x" + "00" * 1025)], {}, 0x0200),
        (NAMES, {"version_min": 1, "version_max": 1}, 0x0205),
        (NAMES[:1], {}, 0x0207),
        (NAMES[1:], {}, 0x0207),
        ([*NAMES, ("SessionType", "Boot")], {}, 0x0209),
    ],
)
def test_a_wrong_login_is_answered_with_its_status_and_closed(secured, data, fields, status):
    with (
        secured.log_in(isid=3, security=InitiatorChap(ALICE)) as neighbour,
        Raw(secured.port) as raw,
    ):
        body = data if isinstance(data, bytes) else text.encode(data)
        raw.give(Opcode.LOGIN_REQUEST, body, isid=1, cmd_sn=1, **fields)
        header, said = raw.take()
        assert header.opcode is Opcode.LOGIN_RESPONSE
        assert (header.status_class << 8 | header.status_detail, said) == (status, b"")
        assert raw.is_closed()
        assert len(neighbour.clear_attention().read(0, 1)) == BLOCK


def test_a_challenge_that_is_never_answered_ends_with_the_login_timeout():
    policy = AccessPolicy(default=TargetAccess((Grant(accounts=(ALICE,)),)))
    with Serving(access=policy, login_timeout_s=1, linger_s=0.2) as server, Raw(server.port) as raw:
        for pairs in ([*NAMES, *CHAP], [("CHAP_A", "5")]):
            raw.give(Opcode.LOGIN_REQUEST, text.encode(pairs), isid=1, cmd_sn=1)
            _, said = raw.take()
        assert b"CHAP_C=0x" in said
        assert raw.is_closed()
        assert server.counts["timeouts in login"] == 1


def test_a_target_that_goes_while_an_initiator_proves_itself_is_told_so():
    policy = AccessPolicy(default=TargetAccess((Grant(accounts=(ALICE,)),)))
    with Serving(access=policy, linger_s=0.2) as server, Raw(server.port) as raw:
        login = InitiatorLogin(HOST, NAME, isid=1, security=InitiatorChap(ALICE))
        login.start()
        for _ in range(2):
            raw.socket.sendall(login.data_to_send())
            header = raw.exactly(bhs.BHS_LENGTH)
            login.receive_pdu(header, raw.exactly(login.segment_length(header)))
        server.server.remove_target(NAME)
        raw.socket.sendall(login.data_to_send())
        with pytest.raises(LoginRejected) as caught:
            login.receive_pdu(raw.exactly(bhs.BHS_LENGTH), b"")
        assert caught.value.status == 0x0204
        with server.log_in(target=OTHER, security=InitiatorChap(ALICE)):
            pass
        server.wait_idle()


def test_a_new_policy_ends_the_sessions_it_would_not_let_in_and_no_others():
    with (
        Serving(linger_s=0.2) as server,
        server.log_in(isid=1) as kept,
        server.log_in(isid=2, initiator=READER) as ended,
        Raw(server.port) as half_way,
    ):
        half_way.give(Opcode.LOGIN_REQUEST, text.encode(NAMES), isid=3, cmd_sn=1)
        half_way.take()
        kept.clear_attention()
        access = AccessPolicy(default=TargetAccess((Grant((HOST,)),)))
        server.server.set_access(access, 0.2)
        header, _ = ended.take()
        assert (header.opcode, header.async_event) == (Opcode.ASYNC_MESSAGE, 1)
        assert ended.is_closed()
        assert half_way.is_closed()
        assert refused(server, initiator=READER) == 0x0202
        assert len(kept.read(0, 1)) == BLOCK


def test_a_new_policy_takes_and_gives_the_right_to_write():
    reader = AccessPolicy(default=TargetAccess((Grant(read_only=True),)))
    with Serving(linger_s=0.2) as server, server.log_in() as raw:
        raw.clear_attention()
        for policy, status in ((reader, 2), (AccessPolicy(), 0)):
            server.server.set_access(policy)
            assert raw.write(3, bytes(BLOCK)).status == status
            assert raw.read(3, 1) == server.disk.array[3 * BLOCK : 4 * BLOCK].tobytes()
        assert raw.read(3, 1) == bytes(BLOCK)


@pytest.mark.parametrize("permanent", [False, True])
def test_a_redirected_login_is_told_where_to_go(permanent):
    moved = TargetAccess(redirect=Redirect("192.0.2.9:3261,3", permanent))
    with Serving(access=AccessPolicy({NAME: moved}), linger_s=0.2) as server:
        with Raw(server.port) as raw, pytest.raises(LoginRedirected) as caught:
            raw.log_in()
        assert (caught.value.address, caught.value.permanent) == ("192.0.2.9:3261,3", permanent)
        server.log_in(target=OTHER).socket.close()
        server.wait_idle()


# --- sessions: ISID, TSIH and CID (RFC 7143 §6.3.4 to §6.3.6) -------------------------------------


def test_the_same_isid_replaces_a_session_and_another_one_does_not(open_server):
    with open_server.log_in() as first, open_server.log_in(isid=5) as other:
        other.clear_attention()
        with open_server.log_in() as second:
            assert first.is_closed()
            assert second.result.tsih != first.result.tsih
            second.clear_attention()
            assert len(second.read(0, 1)) == BLOCK
            assert len(other.read(0, 1)) == BLOCK


def test_an_isid_is_the_initiators_own_and_one_targets_only(open_server):
    others = ({"initiator": HOST + "2"}, {"target": OTHER})
    for options in others:
        with open_server.log_in() as first, open_server.log_in(**options):
            assert len(first.clear_attention().read(0, 1)) == BLOCK


def test_a_session_nobody_has_cannot_be_joined(open_server):
    with open_server.log_in() as first:
        tsih = first.result.tsih
        assert refused(open_server, tsih=tsih % 0xFFFF + 1) == 0x020A
        assert refused(open_server, tsih=tsih, isid=9) == 0x020A
        assert refused(open_server, tsih=tsih, initiator=HOST + "2") == 0x020A
        assert refused(open_server, tsih=tsih, target=OTHER) == 0x020A
        assert refused(open_server, tsih=tsih, target=None) == 0x0207
        assert len(first.clear_attention().read(0, 1)) == BLOCK


def test_a_second_connection_is_one_too_many(open_server):
    with open_server.log_in() as first:
        assert refused(open_server, tsih=first.result.tsih, cid=1) == 0x0206
        assert len(first.clear_attention().read(0, 1)) == BLOCK


def test_the_same_connection_may_be_made_again_within_its_session(open_server):
    with open_server.log_in() as first:
        first.clear_attention()
        agreed = open_server.server.connections[0].result.session
        with Raw(open_server.port) as again:
            again.cmd_sn = first.cmd_sn
            again.log_in(tsih=first.result.tsih)
            assert first.is_closed()
            assert again.result.tsih == first.result.tsih
            again.clear_attention()
            assert len(again.read(0, 1)) == BLOCK
            (now,) = (c for c in open_server.server.connections if c.result is not None)
            assert now.result.session == agreed


# --- what is agreed on ---------------------------------------------------------------------------


@pytest.mark.parametrize(("offered", "agreed"), [(0, 0), (2, 2), (17, 17)])
def test_only_the_initiators_own_wish_makes_it_wait_before_a_new_login(
    open_server, offered, agreed
):
    """The larger value counts (RFC 7143 §13.15), and the target has no wish."""
    wanted = Proposal(replace(SessionParams(), default_time2wait=offered))
    with open_server.log_in(proposal=wanted) as raw:
        assert raw.result.session.default_time2wait == agreed
        assert raw.log_out().time2wait == agreed


def test_our_initiator_may_log_in_again_at_once(open_server):
    with open_server.log_in(proposal=DEFAULT_PROPOSAL) as raw:
        assert raw.result.session.default_time2wait == 0
    with iscsi.open(f"iscsi://127.0.0.1:{open_server.port}/{NAME}/0") as device:
        assert device.core.pause_s == 0


@pytest.mark.parametrize(("offered", "agreed"), [(1, 1), (2, 2), (9, 2)])
def test_the_protocol_level_is_the_lower_one_of_both_sides(open_server, offered, agreed):
    wanted = Proposal(replace(SessionParams(), iscsi_protocol_level=offered))
    with open_server.log_in(proposal=wanted) as raw:
        assert raw.result.session.iscsi_protocol_level == agreed
