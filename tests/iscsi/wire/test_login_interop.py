"""The login machines against real peers over loopback sockets: tgt's target, libiscsi's client."""

import os
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from iscsi.wire import bhs, discovery, text
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import LoginRejected, LoginStatus
from iscsi.wire.keys import Proposal
from iscsi.wire.names import Portal
from tests.iscsi.wire.joined import DISK, initiator, target

WAIT_S = 10


def _read(stream, length):
    data = b""
    while len(data) < length:
        piece = stream.recv(length - len(data))
        if not piece:
            raise ConnectionError(f"closed with {length - len(data)} bytes missing")
        data += piece
    return data


def _drive(login, stream):
    stream.sendall(login.data_to_send())
    while not login.done:
        header = _read(stream, 48)
        try:
            login.receive_pdu(header, _read(stream, login.segment_length(header)))
        finally:
            stream.sendall(login.data_to_send())


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def _wait_for(done, what):
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
        time.sleep(0.05)


@contextmanager
def _tgtd():
    """A tgtd of our own with one target and no LUN; ended through its own control port."""
    port = _free_port()
    control = str(10000 + os.getpid() % 20000)
    command = ["tgtd", "-f", "-C", control, "--iscsi", f"portal=127.0.0.1:{port}"]
    admin = ["tgtadm", "-C", control, "--lld", "iscsi"]

    def run(*arguments):
        return subprocess.run(
            [*admin, *arguments], capture_output=True, timeout=WAIT_S, check=False
        )

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        try:
            _wait_for(lambda: run("--op", "show", "--mode", "sys").returncode == 0, "tgtd")
            made = ["--op", "new", "--mode", "target", "--tid", "1", "-T", DISK]
            bound = ["--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"]
            for step in (made, bound):
                assert run(*step).returncode == 0, step
            yield port
        finally:
            daemon.kill()
            daemon.wait(WAIT_S)
            for suffix in ("", ".lock"):
                Path(f"/var/run/tgtd/socket.{control}{suffix}").unlink(missing_ok=True)


@pytest.mark.interop("tgtd", "tgtadm")
@pytest.mark.slow
def test_tgt_lets_us_in_lists_its_target_and_refuses_another():
    with _tgtd() as port:
        for options in ({}, {"skip_security": True}):
            login = initiator(
                proposal=Proposal(header_digest=("CRC32C", "None")), cmd_sn=9, **options
            )
            login.start()
            with socket.create_connection(("127.0.0.1", port), WAIT_S) as stream:
                _drive(login, stream)
            assert login.result.tsih
            assert login.result.target_portal_group_tag == 1
            assert login.result.session.max_burst_length == 262144

        login = initiator(None)
        login.start()
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as stream:
            _drive(login, stream)
            request = discovery.build_request()
            numbers = {"cmd_sn": login.result.cmd_sn, "exp_stat_sn": login.result.stat_sn}
            stream.sendall(
                bhs.encode_pdu(Opcode.TEXT_REQUEST, request, immediate=1, itt=5, **numbers)
            )
            answer = bhs.decode(_read(stream, 48))
            data = _read(stream, bhs.padded(answer.data_segment_length))
        assert answer.stat_sn == login.result.stat_sn
        found = discovery.parse_response(data[: answer.data_segment_length])
        assert [(f.name, f.portals) for f in found] == [(DISK, (Portal("127.0.0.1", port, 1),))]

        login = initiator(DISK + "2")
        login.start()
        with (
            socket.create_connection(("127.0.0.1", port), WAIT_S) as stream,
            pytest.raises(LoginRejected) as caught,
        ):
            _drive(login, stream)
        assert caught.value.status == LoginStatus.TARGET_NOT_FOUND


def _serve_discovery(server, logins):
    """One discovery session of a target that lists one disk, until the client logs out."""
    stream, _ = server.accept()
    with stream:
        stream.settimeout(WAIT_S)
        login = target()
        logins.append(login)
        _drive(login, stream)
        stat_sn = login.result.stat_sn
        for kind in (Opcode.TEXT_RESPONSE, Opcode.LOGOUT_RESPONSE):
            header = bhs.decode(_read(stream, 48))
            asked = _read(stream, bhs.padded(header.data_segment_length))
            data = b""
            if kind is Opcode.TEXT_RESPONSE:
                assert discovery.parse_request(text.decode(asked)) == "All"
                portal = Portal("127.0.0.1", server.getsockname()[1], 1)
                data = discovery.build_response([discovery.DiscoveredTarget(DISK, (portal,))])
            sns = {"stat_sn": stat_sn, "exp_cmd_sn": header.cmd_sn, "max_cmd_sn": header.cmd_sn + 1}
            stream.sendall(bhs.encode_pdu(kind, data, itt=header.itt, **sns))
            stat_sn += 1


@pytest.mark.interop("iscsi-ls")
def test_libiscsi_discovers_through_our_target_login():
    logins = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WAIT_S)
        port = server.getsockname()[1]
        thread = threading.Thread(target=_serve_discovery, args=(server, logins))
        thread.start()
        command = ["iscsi-ls", f"iscsi://127.0.0.1:{port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        thread.join(WAIT_S)
    assert not thread.is_alive()
    assert done.stdout == f"Target:{DISK} Portal:127.0.0.1:{port},1\n", done.stderr
    assert logins[0].result.is_discovery
