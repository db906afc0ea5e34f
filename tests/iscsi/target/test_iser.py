"""A target's connection that an engine serves on a queue pair: its units by itself, and what is its
host's. The initiator is one of plain sockets.
"""

import contextlib
import socket
import time
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

import host
import iscsi
import ppe.cycle.services.iser
import ppe.cycle.services.rdma  # noqa: F401 - the same
from host.verbs import ConnParam, Device, QpCap
from iscsi.session.core import SessionCore
from iscsi.session.errors import AuthError
from iscsi.session.initiator import InitiatorSession
from iscsi.session.options import NEVER
from iscsi.target.access import AccessPolicy, Grant, TargetAccess
from iscsi.target.config import ServedPortal, ServerConfig
from iscsi.target.connection import NO_DEADLINE, Connection
from iscsi.target.server import TargetServer
from iscsi.target.units import RamDisk, Target
from iscsi.wire import scsi
from iscsi.wire.chap import ChapAccount
from iscsi.wire.errors import LoginRejected
from iscsi.wire.iser.connecting import Features
from iscsi.wire.iser.records import IserLimits
from iscsi.wire.keys import ConnectionParams, IserParams, Proposal, SessionParams
from iscsi.wire.login import InitiatorLogin
from iscsi.wire.login_common import LoginResult
from iscsi.wire.names import Portal
from ppe.cycle.rnic.records import mr_table_at
from shm.verbs_numbers import (
    WR_SEND,
)
from tests.e2e.running import RunningEngine, environment_of
from tests.iscsi.iser_initiator import WAIT_S, SocketInitiator
from tests.iscsi.target.serving import ServerThread
from tests.iscsi.wire.full_feature import BLOCK, READ, pattern
from tests.iscsi.wire.iser.pair import counts

NAME = "iqn.2026-01.org.example:t"
BLOCKS = 4096
DEPTH = 128


class Serving:
    """A server whose only connection came over RDMA; its login is made up."""

    def __init__(self, engine, session, *, placement, invalidates):
        self.engine, self.session, self.invalidates = engine, session, invalidates
        target = Target(NAME, {0: RamDisk(engine.alloc(BLOCKS * BLOCK))})
        portals = (Portal("127.0.0.1", 0),)
        config = ServerConfig((target,), portals, placement=placement, window=32)
        self.server = TargetServer(engine, config)
        self.target = target

    def serve(self, work):
        """Let an initiator do its `work`, and serve it meanwhile."""
        server = self.server
        device = Device(self.engine, server._lanes.first.channel)
        queue_pair = device.create_qp(
            device.alloc_pd(), device.create_cq(8), cap=QpCap(DEPTH, DEPTH)
        )
        with device.listen() as listener:
            self.peer = SocketInitiator(
                listener.address, self.session, work, invalidates=self.invalidates
            )
            self.peer.may_begin.clear()
            self.peer.start()
            request = listener.get_request(WAIT_S)
            asked = Features.from_bytes(request.private_data)
            both = Features(send_invalidate=True).answer(asked)
            startup = request.accept(
                queue_pair, ConnParam(private_data=both.to_bytes(), initiator_depth=16)
            )
        limits = IserLimits(receives=64, depth=startup.ord, remote_invalidate=both.send_invalidate)
        self._enter(queue_pair.endpoint, limits)
        self.peer.may_begin.set()  # now there are receives
        deadline = time.monotonic() + WAIT_S
        while self.peer.is_alive():
            assert time.monotonic() < deadline, "the initiator does not come to an end"
            server.step()
        self.peer.join()
        if self.peer.error is not None:
            raise self.peer.error
        while server.connections:
            assert time.monotonic() < deadline, "the connection does not go"
            server.step()
        has_counted = server._ask_counts()
        while not has_counted():
            assert time.monotonic() < deadline, "the engine does not say what it served"
            server.step()

    def _enter(self, endpoint, limits):
        """What a login over Sends would leave behind."""
        server, peer = self.server, ("127.0.0.1", 1)
        lane = server._lanes.first
        connection = Connection(server._free_slots.pop(), lane, endpoint, peer, NO_DEADLINE)
        server._slots[connection.slot] = connection
        server._endpoints[lane, endpoint] = connection
        lane.connections += 1
        connection.login = SimpleNamespace(result=self._result())
        connection.reserve(self.engine, self.target, server._limits, moves=True)
        server._reserved += 1
        enable = self.engine.enable_mover

        def over_rdma(channel, endpoint, message, **place):
            enable(channel, endpoint, {**message, "iser": asdict(limits)}, **place)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.engine, "enable_mover", over_rdma)
            server._enter(connection, 0)

    def _result(self):
        return LoginResult(
            session=self.session,
            connection=ConnectionParams(8192, 8192),
            initiator_name="iqn.2026-01.org.example:i",
            target_name=NAME,
            isid=1,
            tsih=1,
            cid=0,
            cmd_sn=1,
            max_cmd_sn=32,
            stat_sn=1,
        )


def clear_attention(peer):
    for _ in range(4):
        peer.side.submit(scsi.test_unit_ready())
        if peer.finish()[0].status == 0:
            return
    raise AssertionError("a unit attention that does not go")


def write_and_read(peer, lba, blocks):
    data, back = pattern(blocks * BLOCK, blocks), np.zeros(blocks * BLOCK, np.uint8)
    peer.side.write(lba, blocks, data)
    assert peer.finish()[0].status == 0
    peer.side.read(lba, blocks, back)
    (done,) = peer.finish()
    assert (done.status, done.received) == (0, data.size)
    assert np.array_equal(back, data)


@pytest.mark.parametrize("placement", ["engine", "datamover"])
@pytest.mark.parametrize("invalidates", [True, False], ids=["remote", "local"])
def test_an_engine_serves_a_target_over_rdma(placement, invalidates):
    def work(peer):
        clear_attention(peer)
        for blocks in (1, 16, 40, 600):
            write_and_read(peer, 7, blocks)
        inquiry = np.zeros(96, np.uint8)
        peer.side.submit(scsi.inquiry(), READ, inquiry)
        assert peer.finish()[0].received == 96
        assert inquiry.any()
        peer.side.read(BLOCKS - 1, 8, np.zeros(8 * BLOCK, np.uint8))
        done = peer.finish()[0]
        assert (done.status, done.sense[2]) == (2, 5)
        assert peer.side.qp.tags == {}
        assert set(counts(peer.side.qp)) <= {WR_SEND, 7}

    with host.connect("inline:") as engine:
        session = SessionParams(initial_r2t=True, first_burst_length=8192)
        serving = Serving(engine, session, placement=placement, invalidates=invalidates)
        with serving.server:
            serving.serve(work)
            served = serving.server.statistics()["targets"][0]["units"][0]
            assert (served["reads"], served["writes"]) == (4, 4)


@pytest.mark.parametrize("placement", ["engine", "datamover"])
def test_an_initiator_that_vanishes_with_commands_under_way_leaves_nothing(placement):
    def work(peer):
        clear_attention(peer)
        peer.kept = [pattern(256 * BLOCK, number) for number in range(8)]
        for number, data in enumerate(peer.kept):
            peer.side.write(256 * number, 256, data)
        peer.pump()

    with host.connect("inline:") as engine:
        session = SessionParams(immediate_data=False)
        serving = Serving(engine, session, placement=placement, invalidates=True)
        with serving.server:
            serving.serve(work)
            assert serving.server.connections == []


# --- logins over Sends -----------------------------------------------------------------------


class OverRdma(ServerThread):
    """A server whose portal is RDMA, in a thread, over an inline engine of its own."""

    def configure(self, engine):
        unit = RamDisk(engine.alloc(BLOCKS * BLOCK))
        portal = ServedPortal(Portal("127.0.0.1", 0), rdma=True)
        return ServerConfig((Target(NAME, {0: unit}),), (portal,), **self._options)

    @property
    def url(self):
        return f"iser://127.0.0.1:{self.port}/{NAME}/0"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with RunningEngine(tmp_path_factory.mktemp("engine")) as made, environment_of(made):
        yield made


@pytest.mark.parametrize("placement", ["engine", "datamover"])
@pytest.mark.parametrize("kind", ["inline", "daemon"])
def test_our_session_and_our_target_speak_iser(kind, placement, request):
    name = "inline:" if kind == "inline" else request.getfixturevalue("daemon").name
    with (
        OverRdma(placement=placement, engine=name) as serving,
        host.connect(name) as engine,
        iscsi.open(serving.url, engine) as device,
    ):
        assert device.block_count == BLOCKS
        for count in (1, 40, 600):
            data = pattern(count * BLOCK, count).tobytes()
            device.write(5, data)
            assert bytes(device.read(5, count)) == data
    serving.wait_idle()


def test_over_tcp_a_portal_for_iser_needs_an_engine_that_frames():
    portal = ServedPortal(Portal("127.0.0.1", 0), rdma=True)
    with pytest.raises(ValueError, match="iSER needs placement"):
        ServerConfig((), (portal,))


@pytest.fixture(scope="module")
def over_rdma():
    with OverRdma(placement="engine") as serving:
        yield serving


def registered(engine):
    """Rows of an engine's table of memory that are taken."""
    return int(mr_table_at(engine._port.tables.memory_table)[0]["used"])


def test_sessions_one_after_the_other_leave_nothing_registered(over_rdma):
    with host.connect("inline:") as engine:
        for number in range(3):
            with iscsi.open(over_rdma.url, engine) as device:
                device.write(number, bytes(BLOCK))
            over_rdma.wait_idle()
            assert registered(engine) == registered(over_rdma.engine) == 0


def test_several_sessions_at_once_each_see_what_the_others_wrote(over_rdma):
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(host.connect("inline:"))
        devices = [stack.enter_context(iscsi.open(over_rdma.url, engine)) for _ in range(4)]
        for number, device in enumerate(devices):
            device.write(100 + number, bytes([number + 1]) * BLOCK)
        for device in devices:
            found = bytes(device.read(100, 4))
            assert [found[BLOCK * number] for number in range(4)] == [1, 2, 3, 4]
    over_rdma.wait_idle()


def test_discovery_over_rdma_names_the_portals_over_rdma(over_rdma):
    with host.connect("inline:") as engine:
        url = f"iser://127.0.0.1:{over_rdma.port}"
        with InitiatorSession(engine, url, recovery=NEVER) as session:
            (found,) = session.discover()
    assert found.name == NAME
    assert [portal.port for portal in found.portals] == [over_rdma.port]
    over_rdma.wait_idle()


def test_unsolicited_data_that_might_outnumber_our_receives_is_not_agreed_on(
    over_rdma, monkeypatch
):
    proposal = Proposal(SessionParams(initial_r2t=False), iser=IserParams())
    agreed, begin = [], SessionCore._begin

    def new_login(core):
        return InitiatorLogin(core.options.initiator_name, NAME, isid=core.isid, proposal=proposal)

    def note_and_begin(core, state):
        agreed.append(state.login.session)
        begin(core, state)

    monkeypatch.setattr(SessionCore, "_new_login", new_login)
    monkeypatch.setattr(SessionCore, "_begin", note_and_begin)
    with (
        host.connect("inline:") as engine,
        iscsi.open(over_rdma.url, engine, recovery=NEVER),
    ):
        assert [each.initial_r2t for each in agreed] == [True]
    over_rdma.wait_idle()


def test_an_unknown_target_is_refused_over_rdma(over_rdma):
    with host.connect("inline:") as engine, pytest.raises(LoginRejected):
        iscsi.open(over_rdma.url.replace(":t/", ":nobody/"), engine, recovery=NEVER)
    over_rdma.wait_idle()


def test_chap_works_over_rdma():
    grant = Grant(accounts=(ChapAccount("user", b"secret-secret"),))
    access = AccessPolicy({NAME: TargetAccess((grant,))})
    with OverRdma(placement="engine", access=access) as serving:
        with host.connect("inline:") as engine:
            good = serving.url.replace("iser://", "iser://user%secret-secret@")
            with iscsi.open(good, engine) as device:
                device.write(0, bytes(BLOCK))
            with pytest.raises(AuthError):
                iscsi.open(serving.url.replace("iser://", "iser://user%wrong-wrong-wrong@"), engine)
        serving.wait_idle()


@pytest.mark.parametrize("ours", [True, False], ids=["wanted here", "not here"])
@pytest.mark.parametrize("theirs", [True, False], ids=["wanted there", "not there"])
def test_there_is_a_crc_if_either_side_wants_one(ours, theirs, monkeypatch):
    agreed = []
    with OverRdma(placement="engine", mpa_crc=theirs) as serving:
        with host.connect("inline:") as engine:
            ask = engine.rdma

            def noted(channel, do, **fields):
                agreed.extend(fields["spec"]["crc"] for _ in range(do == "enable"))
                return ask(channel, do, **fields)

            monkeypatch.setattr(engine, "rdma", noted)
            with iscsi.open(serving.url, engine, mpa_crc=ours) as device:
                data = pattern(300 * BLOCK).tobytes()
                device.write(0, data)
                assert bytes(device.read(0, 300)) == data
            with iscsi.open(f"{serving.url}?mpa_crc={int(not ours)}", engine, mpa_crc=ours):
                pass
        serving.wait_idle()
    assert agreed == [ours or theirs, theirs or not ours], "the URL says it, or else the option"


@pytest.mark.parametrize("placement", ["engine", "datamover"])
def test_a_session_that_wants_to_begins_with_a_hello(placement, monkeypatch):
    begun = []
    with OverRdma(placement=placement) as serving, host.connect("inline:") as engine:
        for each in (engine, serving.engine):
            enable = each.enable_mover

            def noted(channel, endpoint, message, enable=enable, **place):
                begun.append((message["role"], message["iser"]["hello"]))
                enable(channel, endpoint, message, **place)

            monkeypatch.setattr(each, "enable_mover", noted)
        for says in (True, False):
            with iscsi.open(serving.url, engine, iser_hello=says) as device:
                data = pattern(300 * BLOCK, says).tobytes()
                device.write(0, data)
                assert bytes(device.read(0, 300)) == data
            assert set(begun) == {("initiator", says), ("target", says)}
            begun.clear()
        serving.wait_idle()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        bytes(27),
        bytes(75),
        b"\x10" + bytes(27) + b"\x43" + bytes(4) + b"\x00\xff\xff" + bytes(40),
    ],
    ids=["empty", "no iSER header", "one byte short", "data beyond it"],
)
def test_a_login_that_is_too_short_for_what_it_says_hurts_nobody_else(over_rdma, message):
    def work(peer):
        peer.say(message)
        assert not peer.hears(), "the connection is closed"

    before = over_rdma.counts["logins failed"]
    peer = SocketInitiator(("127.0.0.1", over_rdma.port), SessionParams(), work)
    peer.start()
    peer.join(WAIT_S)
    assert peer.error is None
    over_rdma.wait_idle()
    assert over_rdma.counts["logins failed"] == before + 1
    with host.connect("inline:") as engine, iscsi.open(over_rdma.url, engine) as device:
        device.write(0, bytes(BLOCK))
    over_rdma.wait_idle()


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.0\r\n\r\n", bytes(20), b"MPA ID Req Frame"])
def test_what_is_no_mpa_request_is_closed(over_rdma, noise):
    with socket.create_connection(("127.0.0.1", over_rdma.port), WAIT_S) as peer:
        peer.sendall(noise)
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(64) == b""
    over_rdma.wait_idle()
