"""The server seen by an initiator of plain sockets: login, sessions, tasks, discovery, logout."""

import errno
import socket

import numpy as np
import pytest

from iscsi.wire import bhs, discovery, scsi, scsi_data, text
from iscsi.wire.bhs import Opcode, TaskFunction, TaskFunctionResponse
from iscsi.wire.errors import LoginRejected, LoginStatus
from iscsi.wire.keys import Proposal, SessionParams
from iscsi.wire.names import Portal
from iscsi.wire.sense import Asc, SenseKey, decode_sense, split_sense
from shm.jit import JIT_DISABLED, compilations
from tests.iscsi.target.serving import BLOCK, EVERYWHERE, NAME, OTHER, Raw, Serving, wait_until

PLACEMENTS = EVERYWHERE

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")


@pytest.fixture(scope="module")
def serving(placement):
    with Serving(max_connections=8, linger_s=0.2) as server:
        yield server


@pytest.fixture
def raw(serving):
    with serving.log_in() as connection:
        yield connection.clear_attention()
    serving.wait_idle()


def sense_code(header, data):
    assert header.status == 2, header
    return decode_sense(split_sense(data)).code


def test_what_is_read_is_what_the_memory_holds(serving, raw):
    expected = serving.disk.array[5 * BLOCK : 205 * BLOCK].tobytes()
    assert raw.read(5, 200) == expected


def test_what_is_written_is_read_again(serving, raw):
    data = np.random.default_rng(1).integers(0, 256, 9 * BLOCK, np.uint8).tobytes()
    assert raw.write(4000, data).status == 0
    assert raw.read(4000, 9) == data
    assert serving.disk.array[4000 * BLOCK : 4009 * BLOCK].tobytes() == data


def test_nothing_compiles_once_the_server_is_ready(serving):
    with compilations() as compiled, serving.log_in() as raw:
        raw.clear_attention()
        raw.write(0, raw.read(0, 8))
        manage(raw, TaskFunction.LOGICAL_UNIT_RESET)
        ask(raw, discovery.build_request(""))
        raw.log_out()
    serving.wait_idle()
    assert compiled.count == 0


def test_a_unit_of_large_blocks_at_a_high_number_works(raw):
    raw.clear_attention(300)
    data = bytes(range(256)) * 32
    assert raw.write(3, data, lun=300, block=4096).status == 0
    assert raw.read(3, 2, lun=300, block=4096) == data


def test_a_read_only_unit_refuses_writes(raw):
    raw.clear_attention(1)
    raw.command(scsi.write_10(0, 1), bytes(BLOCK), lun=1, length=BLOCK, write=1)
    assert sense_code(*raw.take()) == Asc.WRITE_PROTECTED
    assert raw.read(0, 1, lun=1) == bytes(BLOCK)


def test_reads_behind_each_other_are_all_answered(serving, raw):
    tags = {}
    for lba in range(0, 48):
        tags[raw.command(scsi.read_16(lba, 8), length=8 * BLOCK, read=1)] = lba
    for _ in range(48):
        header, data = raw.take()
        lba = tags.pop(header.itt)
        assert data == serving.disk.array[lba * BLOCK : (lba + 8) * BLOCK].tobytes()


def test_a_new_nexus_has_one_unit_attention_for_each_unit(serving):
    with serving.log_in() as raw:
        raw.command(scsi.inquiry(), length=255, read=1)
        assert raw.take()[0].opcode is Opcode.DATA_IN  # INQUIRY neither reports nor clears it
        for lun in (0, 1):
            raw.command(scsi.read_10(0, 1), lun=lun, length=BLOCK, read=1)
            assert sense_code(*raw.take()) == Asc.POWER_ON_RESET
            assert len(raw.read(0, 1, lun=lun)) == BLOCK
    serving.wait_idle()


def test_request_sense_takes_the_unit_attention_as_data(serving):
    with serving.log_in() as raw:
        for key in (SenseKey.UNIT_ATTENTION, SenseKey.NO_SENSE):
            raw.command(scsi.request_sense(), length=252, read=1)
            header, data = raw.take()
            assert (header.opcode, decode_sense(data).key) == (Opcode.DATA_IN, key)
    serving.wait_idle()


def test_a_lun_without_a_unit_answers_inquiry_and_refuses_the_rest(raw):
    raw.command(scsi.inquiry(), lun=9, length=255, read=1)
    assert scsi_data.parse_inquiry(raw.take()[1]).qualifier == 3
    raw.command(scsi.read_10(0, 1), lun=9, length=BLOCK, read=1)
    assert sense_code(*raw.take()) == Asc.LUN_NOT_SUPPORTED


def test_a_ping_comes_back_with_its_data(raw):
    raw.request(Opcode.NOP_OUT, b"are you there?", immediate=1)
    header, data = raw.take()
    assert (header.opcode, data) == (Opcode.NOP_IN, b"are you there?")


def test_logout_is_answered_and_closes(raw):
    header = raw.log_out()
    assert (header.opcode, header.response) == (Opcode.LOGOUT_RESPONSE, 0)
    assert raw.socket.recv(1) == b""


def test_logout_for_recovery_and_of_another_connection_closes_nothing(raw):
    raw.request(Opcode.LOGOUT_REQUEST, logout_reason=2)
    assert raw.take()[0].response == 2
    raw.request(Opcode.LOGOUT_REQUEST, logout_reason=1, cid=77)
    assert raw.take()[0].response == 1
    assert len(raw.read(0, 1)) == BLOCK


# --- task management ----------------------------------------------------------------------------


def manage(raw, function, lun=0, tag=bhs.RESERVED_TAG):
    raw.request(
        Opcode.TASK_MANAGEMENT_REQUEST,
        function=function,
        immediate=1,
        lun=scsi.encode_lun(lun),
        referenced_task_tag=tag,
    )
    header, _ = raw.take()
    assert header.opcode is Opcode.TASK_MANAGEMENT_RESPONSE
    return TaskFunctionResponse(header.response)


def begin_write(raw, lba, blocks):
    """A WRITE that waits for its data; returns its tag and the R2T."""
    tag = raw.command(scsi.write_10(lba, blocks), length=blocks * BLOCK, write=1)
    header, _ = raw.take()
    assert header.opcode is Opcode.R2T
    return tag, header


@pytest.mark.parametrize(
    "function",
    [TaskFunction.ABORT_TASK, TaskFunction.ABORT_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET],
)
def test_an_aborted_write_changes_nothing_and_is_not_answered(serving, raw, function):
    before = serving.disk.array.tobytes()
    tag, r2t = begin_write(raw, 10, 4)
    assert manage(raw, function, tag=tag) is TaskFunctionResponse.COMPLETE
    late = bytes(4 * BLOCK)
    raw.give(Opcode.DATA_OUT, late, itt=tag, ttt=r2t.ttt, buffer_offset=0, data_sn=0, final=1)
    if function == TaskFunction.LOGICAL_UNIT_RESET:
        raw.command(scsi.test_unit_ready())
        assert sense_code(*raw.take()) == Asc.DEVICE_RESET_OCCURRED
    assert raw.read(10, 4) == before[10 * BLOCK : 14 * BLOCK]
    assert serving.disk.array.tobytes() == before


def test_a_reset_ends_the_tasks_of_other_sessions_and_tells_them(serving, raw):
    with serving.log_in(initiator="iqn.2026-01.org.example:second") as second:
        second.clear_attention()
        begin_write(second, 0, 1)
        assert manage(raw, TaskFunction.LOGICAL_UNIT_RESET) is TaskFunctionResponse.COMPLETE
        for session in (raw, second):
            session.command(scsi.test_unit_ready())
            assert sense_code(*session.take()) == Asc.DEVICE_RESET_OCCURRED
            assert len(session.read(0, 1)) == BLOCK


@pytest.mark.parametrize(
    ("function", "lun", "response"),
    [
        (TaskFunction.ABORT_TASK, 0, TaskFunctionResponse.TASK_DOES_NOT_EXIST),
        (TaskFunction.LOGICAL_UNIT_RESET, 9, TaskFunctionResponse.LUN_DOES_NOT_EXIST),
        (TaskFunction.CLEAR_ACA, 0, TaskFunctionResponse.NOT_SUPPORTED),
        # RFC 7144: only where iSCSIProtocolLevel 2 was agreed on.
        (TaskFunction.QUERY_TASK, 0, TaskFunctionResponse.NOT_SUPPORTED),
        (13, 0, TaskFunctionResponse.REJECTED),
    ],
)
def test_task_management_says_what_it_did_not_do(raw, function, lun, response):
    assert manage(raw, function, lun, tag=0x7777) is response


# --- text and discovery -------------------------------------------------------------------------


def ask(raw, request):
    """Send a text request and put the pieces of the answer together."""
    raw.request(Opcode.TEXT_REQUEST, request)
    whole = b""
    while True:
        header, data = raw.take()
        assert header.opcode is Opcode.TEXT_RESPONSE
        whole += data
        if not header.continued:
            assert header.final
            return whole
        # One exchange, one tag (RFC 7143 §11.10.2).
        raw.request(Opcode.TEXT_REQUEST, itt=header.itt, ttt=header.ttt)


def test_discovery_lists_every_target_with_the_portal(serving):
    with Raw(serving.port).log_in(None) as raw:
        found = discovery.parse_response(ask(raw, discovery.build_request()))
        portal = Portal("127.0.0.1", serving.port, 1)
        assert {item.name: item.portals for item in found} == {NAME: (portal,), OTHER: (portal,)}
        found = discovery.parse_response(ask(raw, discovery.build_request(OTHER)))
        assert [item.name for item in found] == [OTHER]
        assert raw.log_out().response == 0
    serving.wait_idle()


def test_a_normal_session_learns_of_its_own_target_only(raw):
    found = discovery.parse_response(ask(raw, discovery.build_request("")))
    assert [item.name for item in found] == [NAME]
    assert text.decode(ask(raw, discovery.build_request())) == [("SendTargets", "Reject")]


def test_a_long_answer_comes_in_pieces_that_the_initiator_asks_for(serving):
    small = Proposal(max_recv_data_segment_length=512)
    with Raw(serving.port).log_in(None, proposal=small) as raw:
        request = text.encode([(f"X-org.example.key{n}", "1") for n in range(30)])
        answer = text.decode(ask(raw, request))
        assert answer == [(f"X-org.example.key{n}", "NotUnderstood") for n in range(30)]
    serving.wait_idle()


def test_a_command_in_a_discovery_session_ends_it(serving):
    with Raw(serving.port).log_in(None) as raw:
        raw.command(scsi.test_unit_ready())
        assert raw.take()[0].opcode is Opcode.REJECT
        assert raw.is_closed()
    serving.wait_idle()


def test_an_advertised_address_replaces_the_portal():
    elsewhere = Portal("san.example.org", 860)
    with Serving(advertise=(elsewhere,)) as serving, Raw(serving.port).log_in(None) as raw:
        found = discovery.parse_response(ask(raw, discovery.build_request()))
        assert {item.portals for item in found} == {(Portal("san.example.org", 860, 1),)}


def test_each_portal_listens_and_a_wildcard_is_told_as_the_address_the_peer_reached():
    portals = (Portal("127.0.0.1", 0), Portal("::1", 0), Portal("0.0.0.0", 0))
    with Serving(portals=portals) as serving:
        hosts = ("127.0.0.1", "::1", "127.0.0.1")
        for port, address in zip(serving.ports, hosts, strict=True):
            with Raw(port, host=address).log_in(None) as raw:
                (first, *_) = discovery.parse_response(ask(raw, discovery.build_request()))
                told = {(portal.host, portal.port) for portal in first.portals}
                assert set(zip(hosts[:2], serving.ports[:2], strict=True)) <= told
                assert "0.0.0.0" not in {host for host, _ in told}


# --- sessions -----------------------------------------------------------------------------------


def test_a_second_login_of_the_same_session_replaces_the_first(serving, raw):
    begin_write(raw, 0, 1)
    with serving.log_in() as again:
        again.clear_attention()
        assert raw.is_closed()
        assert len(again.read(0, 1)) == BLOCK
    assert serving.counts["sessions reinstated"] == 1


@pytest.mark.parametrize("name", ["header_digest", "data_digest"])
def test_digests_are_used_when_the_initiator_wants_them(serving, name):
    with Raw(serving.port).log_in(proposal=Proposal(**{name: ("CRC32C",)})) as raw:
        assert getattr(raw.result.connection, name)
    serving.wait_idle()


def test_a_target_nobody_has_is_refused(serving):
    with pytest.raises(LoginRejected) as caught, Raw(serving.port) as raw:
        raw.log_in("iqn.2026-01.org.example:nobody")
    assert caught.value.status == LoginStatus.TARGET_NOT_FOUND
    serving.wait_idle()


def test_one_connection_too_many_is_refused_until_one_leaves(serving):
    sessions = [serving.log_in(isid=n) for n in range(8)]
    with pytest.raises(LoginRejected) as caught, Raw(serving.port) as raw:
        raw.log_in(isid=100)
    assert caught.value.status == LoginStatus.OUT_OF_RESOURCES
    assert caught.value.is_retryable
    sessions[0].log_out()
    wait_until("a place", lambda: len(serving.server.connections) == 7)
    sessions[0].socket.close()
    sessions[0] = serving.log_in(isid=100)
    for session in sessions:
        session.socket.close()
    serving.wait_idle()


def test_a_session_that_is_replaced_needs_no_place_of_its_own(serving):
    sessions = [serving.log_in(isid=n) for n in range(8)]
    with serving.log_in(isid=3) as again:
        again.clear_attention()
        assert sessions[3].is_closed()
    for session in sessions:
        session.socket.close()
    serving.wait_idle()


def test_connections_leave_neither_endpoints_nor_memory(serving):
    serving.wait_idle()

    def visit(number):
        with serving.log_in(isid=number) as raw:
            raw.clear_attention()
            raw.read(0, 64)
            if number % 2:
                raw.log_out()
        serving.wait_idle()

    visit(0)
    before, endpoints = serving.memory, serving.endpoints
    for number in range(50):
        visit(number)
    assert serving.memory == before
    # The listener, and what other threads end the server's sleep by.
    assert serving.endpoints == endpoints == serving.own_endpoints


def test_a_portal_in_use_is_a_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        clash = Serving(portals=(Portal("127.0.0.1", port),))
        with pytest.raises(OSError, match=f"127.0.0.1:{port}: another server") as caught, clash:
            pass
        assert caught.value.errno == errno.EADDRINUSE


def test_solicited_and_unsolicited_data_arrive_alike(serving):
    data = np.random.default_rng(2).integers(0, 256, 64 * BLOCK, np.uint8).tobytes()
    for session in (
        SessionParams(initial_r2t=True, immediate_data=False),
        SessionParams(initial_r2t=False, immediate_data=False),
        SessionParams(initial_r2t=True, immediate_data=True),
    ):
        with Raw(serving.port).log_in(proposal=Proposal(session)) as raw:
            raw.clear_attention()
            _write_by_the_rules(raw, 100, data)
            assert raw.read(100, 64) == data
        serving.wait_idle()


def _write_by_the_rules(raw, lba, data):
    """Write as the negotiated keys allow: 8 KiB immediate, 16 KiB unsolicited, the rest by R2T."""
    agreed = raw.result.session
    now = 8192 if agreed.immediate_data else 0
    first = now if agreed.initial_r2t else 16384
    tag = raw.command(
        scsi.write_10(lba, len(data) // BLOCK),
        data[:now],
        length=len(data),
        write=1,
        final=int(first == now),
    )
    if first > now:
        raw.give(Opcode.DATA_OUT, data[now:first], itt=tag, buffer_offset=now, data_sn=0, final=1)
    header, _ = raw.take()
    while header.opcode is Opcode.R2T:
        start, length = header.buffer_offset, header.desired_data_transfer_length
        for sn, at in enumerate(range(start, start + length, 4096)):
            end = min(at + 4096, start + length)
            fields = {"ttt": header.ttt, "data_sn": sn, "final": int(end == start + length)}
            raw.give(Opcode.DATA_OUT, data[at:end], itt=tag, buffer_offset=at, **fields)
        header, _ = raw.take()
    assert (header.opcode, header.status) == (Opcode.SCSI_RESPONSE, 0)
