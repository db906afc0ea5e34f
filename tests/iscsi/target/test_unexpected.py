"""Errors of this program, and odd moments of a connection, end that connection and nothing else."""

import pytest

from iscsi.target import control, logins
from iscsi.wire import bhs
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import ProtocolError
from iscsi.wire.login_target import TargetLogin
from tests.iscsi.target.serving import BLOCK, HOST, Raw, Serving, wait_until

POISON = "iqn.2026-01.org.example:poison"


@pytest.fixture
def serving():
    with Serving() as serving:
        yield serving


@pytest.fixture
def bystander(serving):
    """A session that must not notice anything."""
    with serving.log_in(isid=0x80AABBCC0077) as raw:
        raw.clear_attention()
        yield raw
        assert len(raw.read(0, 1)) == BLOCK


def test_an_error_in_a_login_ends_that_connection_only(serving, bystander, monkeypatch):
    receive = TargetLogin.receive_pdu

    def broken(self, header, data):
        if POISON.encode() in data:
            raise RuntimeError("an error of this program")
        receive(self, header, data)

    monkeypatch.setattr(TargetLogin, "receive_pdu", broken)
    with Raw(serving.port) as raw:
        with pytest.raises((EOFError, ProtocolError, ConnectionError)):
            raw.log_in(initiator=POISON)
        assert raw.is_closed()
    with serving.log_in(initiator=HOST) as raw:
        assert len(raw.clear_attention().read(0, 1)) == BLOCK
    assert serving.counts["errors"] == 1


def test_an_error_while_a_request_is_served_ends_that_connection_only(
    serving, bystander, monkeypatch
):
    def broken(*_):
        raise RuntimeError("an error of this program")

    monkeypatch.setattr(control, "_text", broken)
    with serving.log_in() as raw:
        raw.request(Opcode.TEXT_REQUEST, b"X-a=b\0", ttt=bhs.RESERVED_TAG, final=1)
        assert raw.is_closed()


def test_a_smaller_segment_length_than_an_answer_that_waits_is_rejected(
    serving, bystander, monkeypatch
):
    """RFC 7143 §13.12 lets it say so at any time; what waits was made for the length before."""
    serve = control._text

    def with_a_long_one_waiting(connection, *rest):
        answer = bhs.encode(Opcode.TEXT_RESPONSE, itt=1, ttt=bhs.RESERVED_TAG, final=1)
        connection.unsent.append((bytes(answer), bytes(1024)))
        serve(connection, *rest)

    monkeypatch.setattr(control, "_text", with_a_long_one_waiting)
    with serving.log_in() as raw:
        raw.clear_attention()
        smaller = b"MaxRecvDataSegmentLength=512\0"
        raw.request(Opcode.TEXT_REQUEST, smaller, ttt=bhs.RESERVED_TAG, final=1)
        assert len(raw.take()[1]) == 1024
        assert raw.take()[0].opcode is Opcode.REJECT
        assert len(raw.read(0, 1)) == BLOCK
    assert not serving.counts["errors"]


def test_a_connection_that_is_over_is_not_looked_at_again(serving):
    """Its memory may be another's by then."""
    server = serving.server
    raw = serving.log_in()

    def look():
        (connection,) = server.connections
        server._close(connection)
        count = int(server._record[0]["touched_count"])
        server._touch(connection)
        return int(server._record[0]["touched_count"]) - count

    wait_until("it is in the full feature phase", lambda: server.call(lambda: bool(server._pumps)))
    assert server.call(look) == 0
    raw.socket.close()
    serving.wait_idle()


@pytest.mark.parametrize("moment", ["before there is a connection", "after"])
def test_an_error_while_a_connection_is_accepted_costs_that_one_only(
    serving, bystander, monkeypatch, caplog, moment
):
    server = serving.server
    slots, endpoints = len(server._free_slots), serving.endpoints
    name = "Connection" if moment != "after" else "TargetLogin"
    made, broken = getattr(logins, name), []

    def breaks_once(*arguments, **options):
        if not broken:
            broken.append(1)
            raise RuntimeError("an error of this program")
        return made(*arguments, **options)

    monkeypatch.setattr(logins, name, breaks_once)
    with Raw(serving.port) as raw:
        assert raw.is_closed()
    assert serving.counts["errors"] == 1
    assert "ended by an error of this program" in caplog.text
    wait_until("its endpoint is gone", lambda: serving.endpoints == endpoints)
    wait_until("its slot is free", lambda: len(server._free_slots) == slots)
    with serving.log_in(initiator=HOST) as raw:
        assert len(raw.clear_attention().read(0, 1)) == BLOCK


def test_who_cannot_be_accepted_at_all_is_closed_and_the_next_one_served(
    serving, bystander, monkeypatch
):
    def broken(self):
        raise RuntimeError("an error of this program")

    server = serving.server
    with monkeypatch.context() as patched:
        patched.setattr(type(server), "_policy", broken)
        with Raw(serving.port) as raw:
            assert raw.is_closed()
    with serving.log_in(initiator=HOST) as raw:
        assert len(raw.clear_attention().read(0, 1)) == BLOCK
