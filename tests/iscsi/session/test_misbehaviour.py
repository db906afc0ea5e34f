"""Targets that are absent, refuse, redirect, break off, babble or fall silent: a clear error each,
in bounded time, and the engine lives on.
"""

import asyncio
import socket
import time
from functools import partial

import pytest

import iscsi
from iscsi.session.discovery import discover
from iscsi.session.errors import (
    CommandTimeout,
    ConnectionLost,
    LoginTimeout,
    NoSuchUnit,
    TooManyRedirects,
)
from iscsi.session.options import NEVER
from iscsi.wire import bhs, discovery
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import (
    LoginRedirected,
    LoginRejected,
    LoginStatus,
    RemoteProtocolError,
    ScsiError,
)
from iscsi.wire.sense import Asc, SenseKey, encode_sense, join_sense
from iscsi.wire.url import UrlError
from tests.iscsi.session.mock_target import NAME, mock_target
from tests.iscsi.session.modes import MODES, moved_by
from tests.iscsi.session.tgt import free_port

# What a session says when it does not try again: recovery has tests of its own.
open_once = partial(iscsi.open, recovery=NEVER)
PATIENCE_S = 0.4


def refuse(status):
    def admit(identity):
        raise LoginRejected(status >> 8, status & 0xFF)

    return lambda peer: peer.log_in(admit)


def redirect_to(address):
    def admit(identity):
        raise LoginRedirected(address)

    return lambda peer: peer.log_in(admit)


def serve_zeros(peer):
    """A target of zeros that behaves."""
    header, _ = peer.until_asked()
    while True:
        if not peer.answer(header):
            peer.send_data(header, bytes(header.expected_data_transfer_length))
        header, _ = peer.read_pdu()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("iscsi:/127.0.0.1/x", "scheme"),
        ("http://127.0.0.1/iqn.2026-01.a:b/0", "scheme"),
        ("iscsi://127.0.0.1:port/iqn.2026-01.a:b/0", "port"),
        ("iscsi://127.0.0.1/iqn.2026-01.a:b/lun", "LUN"),
        ("iscsi://127.0.0.1/disk/0", "disk"),
        ("iscsi://127.0.0.1/iqn.2026-01.a:b/0?hdr=crc", "hdr"),
        ("iscsi://127.0.0.1", "names no target"),
    ],
)
def test_a_typo_in_the_url_is_named(engine, url, said):
    with pytest.raises(UrlError, match=said):
        open_once(url, engine)


def test_an_absent_target_is_refused_with_its_address(engine):
    port = free_port()
    with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1 port {port}"):
        open_once(f"iscsi://127.0.0.1:{port}/{NAME}/0", engine)


def test_an_unknown_host_is_named(engine):
    with pytest.raises(ConnectionLost, match=r"nowhere\.invalid"):
        open_once(f"iscsi://nowhere.invalid/{NAME}/0", engine)


def test_a_target_that_says_nothing_ends_in_a_login_timeout(engine):
    with (
        mock_target(lambda peer: peer.until_closed()) as url,
        pytest.raises(LoginTimeout, match=r"0\.4 s"),
    ):
        open_once(url, engine, login_timeout_s=PATIENCE_S)


@pytest.mark.parametrize(
    "status",
    [
        LoginStatus.TARGET_NOT_FOUND,
        LoginStatus.AUTHORIZATION_FAILURE,
        LoginStatus.SERVICE_UNAVAILABLE,
    ],
)
def test_a_refused_login_names_the_status(engine, status):
    name = status.name.lower().replace("_", " ")
    with (
        mock_target(refuse(status)) as url,
        pytest.raises(LoginRejected, match=f"{name}.*0x{int(status):04x}"),
    ):
        open_once(url, engine)


@pytest.mark.parametrize("read", [0, 48])  # What it leaves unread makes the end a reset.
def test_a_target_that_hangs_up_during_login_is_named(engine, read):
    with (
        mock_target(lambda peer: peer.read(read)) as url,
        pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:\d+ .* during the login"),
    ):
        open_once(url, engine)


def test_garbage_during_login_is_the_targets_fault(engine):
    def babble(peer):
        peer.read(48)
        peer.stream.sendall(b"\x3f" + b"garbage" * 20)
        peer.until_closed()

    with mock_target(babble) as url, pytest.raises(RemoteProtocolError):
        open_once(url, engine)


def test_a_redirection_is_followed_to_where_it_leads(engine):
    with mock_target(serve_zeros) as there:
        address = there.split("/")[2]
        with mock_target(redirect_to(address)) as here, open_once(here, engine) as device:
            assert device.session.core.connection.portal.address == address
            assert device.read(3, 2) == bytes(1024)


def test_a_redirection_in_circles_ends(engine):
    def circle(peer):
        redirect_to(f"127.0.0.1:{peer.port},1")(peer)

    with mock_target(circle) as url, pytest.raises(TooManyRedirects):
        open_once(url, engine)


@pytest.mark.parametrize(("receive", "depth"), MODES)
def test_a_target_that_closes_in_the_middle_of_a_pdu_loses_the_connection(engine, receive, depth):
    def break_off(peer):
        header, _ = peer.until_asked()
        length = header.expected_data_transfer_length
        pdu = bhs.encode_pdu(
            Opcode.DATA_IN, bytes(length), itt=header.itt, has_status=1, stat_sn=peer.stat_sn,
            exp_cmd_sn=header.cmd_sn + 1, max_cmd_sn=header.cmd_sn + 9,
        )  # fmt: skip
        peer.stream.sendall(pdu[: 48 + length // 2])

    with mock_target(break_off) as url:
        device = open_once(url, engine, **moved_by(receive, depth))
        with pytest.raises(ConnectionLost, match="1 commands unanswered"):
            device.read(0, 16)
        with pytest.raises(ConnectionLost):
            device.read(0, 16)
        device.close()


@pytest.mark.parametrize(("receive", "depth"), MODES)
def test_garbage_instead_of_an_answer_ends_the_connection(engine, receive, depth):
    def babble(peer):
        peer.until_asked()
        peer.stream.sendall(b"\x3fgar\0" + b"garbage!" * 30)  # byte 4: no header segments more
        peer.until_closed()

    with mock_target(babble) as url:
        device = open_once(url, engine, **moved_by(receive, depth))
        with pytest.raises(RemoteProtocolError, match="the peer sent"):
            device.read(0, 16)
        device.close()


def test_data_for_a_command_that_was_never_sent_ends_the_connection(engine):
    def invent(peer):
        header, _ = peer.until_asked()
        peer.send(Opcode.DATA_IN, bytes(512), to=header, itt=0x7777, has_status=1)
        peer.until_closed()

    with (
        mock_target(invent) as url,
        open_once(url, engine) as device,
        pytest.raises(RemoteProtocolError, match="task tag"),
    ):
        device.read(0, 1)


@pytest.mark.parametrize(("receive", "depth"), MODES)
def test_a_target_that_falls_silent_times_out(engine, receive, depth):
    def fall_silent(peer):
        peer.until_asked()
        peer.until_closed()

    with mock_target(fall_silent) as url:
        device = open_once(url, engine, **moved_by(receive, depth), timeout_s=PATIENCE_S)
        start = time.monotonic()
        with pytest.raises(CommandTimeout, match=r"0\.4 s"):
            device.read(0, 1)
        assert time.monotonic() - start >= PATIENCE_S * 0.9
        device.close()


def test_a_target_that_stops_reading_times_out_a_large_write(engine):
    stop = []

    def stop_reading(peer):
        peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.until_asked()
        while not stop:
            time.sleep(0.01)

    with mock_target(stop_reading) as url:
        device = open_once(url, engine, timeout_s=PATIENCE_S)
        try:
            with pytest.raises(CommandTimeout):
                device.write(0, bytes(2 << 20))
        finally:
            stop.append(True)
        device.close()


def check_condition(peer, header, key, code, **fields):
    sense = join_sense(encode_sense(key, code))
    peer.send(Opcode.SCSI_RESPONSE, sense, to=header, status=2, **fields)


@pytest.mark.parametrize(("receive", "depth"), MODES)
def test_a_failed_command_carries_its_sense_and_leaves_the_device_usable(engine, receive, depth):
    def fail_once(peer):
        header, _ = peer.until_asked()
        check_condition(peer, header, SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR)
        while True:
            header, _ = peer.read_pdu()
            if not peer.answer(header):
                peer.send_data(header, b"\x5a" * header.expected_data_transfer_length)

    with (
        mock_target(fail_once) as url,
        open_once(url, engine, **moved_by(receive, depth)) as device,
    ):
        with pytest.raises(ScsiError, match=r"READ 10 of 16 blocks at 32.*MEDIUM ERROR") as caught:
            device.read(32, 16)
        assert caught.value.sense.code == Asc.UNRECOVERED_READ_ERROR
        assert device.read(32, 16) == b"\x5a" * 8192


@pytest.mark.parametrize(("receive", "depth"), MODES)
def test_pings_of_the_target_are_answered_in_between(engine, receive, depth):
    answered = []

    def ping(peer):
        header, _ = peer.until_asked()
        sns = {"exp_cmd_sn": header.cmd_sn + 1, "max_cmd_sn": header.cmd_sn + 9}
        peer.send(Opcode.NOP_IN, ttt=0x1234, counted=False, **sns, stat_sn=peer.stat_sn)
        reply, _ = peer.read_pdu()
        answered.append((reply.opcode, reply.ttt, reply.itt))
        peer.send_data(header, b"\xa5" * header.expected_data_transfer_length)
        while True:
            peer.answer(peer.read_pdu()[0])

    with (
        mock_target(ping) as url,
        open_once(url, engine, **moved_by(receive, depth)) as device,
    ):
        assert device.read(0, 8) == b"\xa5" * 4096
    assert answered == [(Opcode.NOP_OUT, 0x1234, bhs.RESERVED_TAG)]


def test_a_short_answer_with_good_status_is_not_taken_for_data(engine):
    def cheat(peer):
        header, _ = peer.until_asked()
        peer.send_data(header, bytes(512))
        while True:
            peer.answer(peer.read_pdu()[0])

    with (
        mock_target(cheat) as url,
        open_once(url, engine) as device,
        pytest.raises(Exception, match="moved 512 bytes"),
    ):
        device.read(0, 8)


def test_a_write_refused_before_all_its_data_came_ends(engine):
    """The answer overtakes the data, so nothing tells by itself when the data has left."""

    def refuse_early(peer):
        header, _ = peer.until_asked()
        check_condition(peer, header, SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
        while True:
            header, _ = peer.read_pdu()
            if header.opcode is Opcode.NOP_OUT:
                numbers = {"exp_cmd_sn": header.cmd_sn, "max_cmd_sn": header.cmd_sn + 8}
                peer.send(Opcode.NOP_IN, itt=header.itt, **numbers)
            elif header.opcode is Opcode.SCSI_COMMAND and not peer.answer(header):
                check_condition(peer, header, SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
            elif header.opcode is Opcode.LOGOUT_REQUEST:
                peer.answer(header)

    with (
        mock_target(refuse_early) as url,
        open_once(url, engine, timeout_s=5) as device,
        pytest.raises(ScsiError, match="DATA PROTECT WRITE PROTECTED"),
    ):
        device.write(0, bytes(1 << 20))


@pytest.mark.parametrize("event", [2, 3])
def test_a_target_that_announces_its_end_is_believed(engine, event):
    def announce(peer):
        header, _ = peer.until_asked()
        peer.send(Opcode.ASYNC_MESSAGE, to=header, itt=bhs.RESERVED_TAG, async_event=event)
        peer.until_closed()

    with (
        mock_target(announce) as url,
        open_once(url, engine) as device,
        pytest.raises(ConnectionLost, match="drops the connection"),
    ):
        device.read(0, 1)


def test_a_rejected_pdu_ends_the_connection_with_its_reason(engine):
    def reject(peer):
        header, _ = peer.until_asked()
        culprit = bytes((int(Opcode.SCSI_COMMAND),)) + bytes(47)
        peer.send(Opcode.REJECT, culprit, to=header, itt=bhs.RESERVED_TAG, reject_reason=0x09)
        peer.until_closed()

    with (
        mock_target(reject) as url,
        open_once(url, engine) as device,
        pytest.raises(RemoteProtocolError, match="invalid pdu field"),
    ):
        device.read(0, 1)


def test_a_window_that_opens_one_at_a_time_is_honoured(engine):
    seen = []

    def narrow(peer):
        peer.window = 1
        header, _ = peer.until_asked()
        while True:
            if not peer.answer(header):
                seen.append(header.cmd_sn)
                peer.send_data(header, b"\x11" * header.expected_data_transfer_length)
            header, _ = peer.read_pdu()

    with (
        mock_target(narrow) as url,
        open_once(url, engine, queue_depth=32, command_bytes=512) as device,
    ):
        assert device.read(0, 40) == b"\x11" * 40 * 512
    assert seen == list(range(seen[0], seen[0] + 40))


def test_a_unit_that_is_not_there_is_said_to_be_missing(engine):
    def absent(peer):
        peer.log_in()
        while True:
            header, _ = peer.read_pdu()
            if header.opcode is Opcode.LOGOUT_REQUEST:
                peer.answer(header)
            check_condition(peer, header, SenseKey.ILLEGAL_REQUEST, Asc.LUN_NOT_SUPPORTED)

    with mock_target(absent) as url, pytest.raises(NoSuchUnit, match="has no LUN 0"):
        open_once(url, engine)


def test_unit_attentions_after_login_are_let_pass(engine):
    def attentive(peer):
        left = [Asc.POWER_ON_RESET, Asc.REPORTED_LUNS_CHANGED, Asc.CAPACITY_DATA_CHANGED]
        peer.log_in()
        while True:
            header, _ = peer.read_pdu()
            if left and header.opcode is Opcode.SCSI_COMMAND and header.cdb_bytes[0] != 0x12:
                check_condition(peer, header, SenseKey.UNIT_ATTENTION, left.pop())
            elif not peer.answer(header):
                peer.send_data(header, bytes(header.expected_data_transfer_length))

    with mock_target(attentive) as url, open_once(url, engine) as device:
        assert device.block_count == 4096


def test_a_list_of_targets_in_pieces_is_joined(engine):
    names = [f"iqn.2026-01.org.example:disk{n:04}" for n in range(400)]

    def list_them(peer):
        peer.log_in()
        text = discovery.build_response([discovery.DiscoveredTarget(name) for name in names])
        pieces = [text[at : at + 4000] for at in range(0, len(text), 4000)]
        while pieces:
            header, _ = peer.read_pdu()
            piece, more = pieces.pop(0), bool(pieces)
            peer.send(
                Opcode.TEXT_RESPONSE, piece, to=header, final=int(not more), continued=int(more),
                ttt=5 if more else bhs.RESERVED_TAG, exp_cmd_sn=header.cmd_sn,
            )  # fmt: skip
        peer.answer(peer.read_pdu()[0])

    with mock_target(list_them) as url:
        portal = url.rsplit("/", 2)[0]
        assert [found.name for found in discover(portal, engine)] == names


@pytest.mark.parametrize("script", ["silent", "closing", "refusing"])
def test_in_asyncio_a_bad_target_ends_in_the_same_errors(script):
    def silent(peer):
        peer.until_asked()
        peer.until_closed()

    def closing(peer):
        peer.until_asked()

    scripts = {
        "silent": silent,
        "closing": closing,
        "refusing": refuse(LoginStatus.TARGET_NOT_FOUND),
    }
    expected = {"silent": CommandTimeout, "closing": ConnectionLost, "refusing": LoginRejected}

    async def main(url):
        async with await iscsi.aopen(url, timeout_s=PATIENCE_S, recovery=NEVER) as device:
            await device.read(0, 1)

    with mock_target(scripts[script]) as url, pytest.raises(expected[script]):
        asyncio.run(main(url))
