"""What ill-behaved and hostile peers do to the server: nothing that another session notices.

After each of these the server must serve a fresh session, hold no more memory, and know nobody.
"""

import contextlib
import random
import socket
import struct
import time

import pytest

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import LoginRejected, LoginStatus, RejectReason
from shm.jit import JIT_DISABLED
from tests.iscsi.target.serving import (
    BLOCK,
    BLOCKS,
    TWO,
    Raw,
    Serving,
    unnoticed,
    wait_until,
    warmed,
)

PLACEMENTS = TWO

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")

LOGIN = bytes(bhs.encode(Opcode.LOGIN_REQUEST, transit=1, csg=1, nsg=3, data_segment_length=8))


@pytest.fixture(scope="module")
def server(placement):
    with warmed(login_timeout_s=2, linger_s=0.2, max_logins=16) as server:
        yield server


@pytest.fixture
def serving(server):
    with unnoticed(server):
        yield server


def reset(raw):
    """Close with a reset, as the kernel does for a killed process with unread data."""
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.socket.close()


def half_close(raw):
    """Send no more; the target may have closed already."""
    with contextlib.suppress(OSError):
        raw.socket.shutdown(socket.SHUT_WR)


def test_a_first_pdu_other_than_login_is_closed_in_silence(serving):
    for opcode in (Opcode.NOP_OUT, Opcode.SCSI_COMMAND, Opcode.TEXT_REQUEST, Opcode.DATA_OUT):
        with Raw(serving.port) as raw:
            raw.give(opcode)
            assert raw.socket.recv(1) == b""


def test_a_header_may_come_in_48_pieces(serving):
    with serving.log_in() as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.clear_attention()
        cdb = int.from_bytes(scsi.read_10(7, 1), "big")
        pdu = bhs.encode(
            Opcode.SCSI_COMMAND,
            cdb=cdb,
            itt=9,
            cmd_sn=raw.cmd_sn,
            expected_data_transfer_length=BLOCK,
            read=1,
        )
        for place in range(bhs.BHS_LENGTH):
            raw.socket.sendall(pdu[place : place + 1])
        assert raw.data_in() == serving.disk.array[7 * BLOCK : 8 * BLOCK].tobytes()


def test_a_login_that_drips_is_cut_off(serving):
    with Raw(serving.port) as raw:
        raw.socket.settimeout(0.1)
        deadline = time.monotonic() + 20
        for byte in LOGIN:
            assert time.monotonic() < deadline, "the drip is not cut off"
            try:
                raw.socket.sendall(bytes((byte,)))
                if raw.socket.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("the login was read to its end")
    assert serving.counts["timeouts in login"] > 0


def test_a_flood_of_connections_crowds_out_only_itself(serving):
    before = serving.memory
    flood = [Raw(serving.port) for _ in range(120)]
    wait_until("the flood is bounded", lambda: len(serving.server.connections) <= 16 + 1 + 1)
    with serving.log_in() as raw:
        assert len(raw.clear_attention().read(0, 8)) == 8 * BLOCK
    for one in flood:
        one.socket.close()
    wait_until("it is gone", lambda: len(serving.server.connections) == 1)
    held = sum(size * count for size, count in serving.memory.items())
    assert held - sum(size * count for size, count in before.items()) < 4 << 20


def test_discovery_sessions_do_not_keep_others_from_their_targets():
    with Serving(max_connections=2) as serving, contextlib.ExitStack() as stack:
        held = [stack.enter_context(serving.log_in(target=None, isid=n)) for n in (1, 2)]
        with serving.log_in(isid=3) as raw:
            assert held[0].is_closed()
            assert len(raw.clear_attention().read(0, 1)) == BLOCK
            with serving.log_in(isid=4):
                assert held[1].is_closed()
                with Raw(serving.port) as late, pytest.raises(LoginRejected):
                    late.log_in(isid=5)
            assert len(raw.read(0, 1)) == BLOCK


@pytest.mark.parametrize("seed", range(8))
def test_garbage_ends_its_own_connection_only(serving, seed):
    noise = random.Random(seed)
    with Raw(serving.port) as raw:
        raw.socket.sendall(noise.randbytes(noise.randrange(48, 5000)))
        half_close(raw)
        assert raw.is_closed()


@pytest.mark.parametrize("seed", range(12))
def test_random_headers_in_the_full_feature_phase_harm_nobody_else(serving, seed):
    noise = random.Random(1000 + seed)
    with serving.log_in() as raw:
        raw.clear_attention()
        header = bytearray(noise.randbytes(48))
        header[0] = noise.choice(list(Opcode)) | noise.choice((0, bhs.IMMEDIATE))
        header[4] = 0
        header[5:8] = noise.randrange(64).to_bytes(3, "big")
        header[24:28] = raw.cmd_sn.to_bytes(4, "big")
        # A write to this place would be well-formed: keep it off the neighbour's data.
        header[32:48] = scsi.inquiry()
        raw.socket.sendall(bytes(header) + noise.randbytes(64))
        half_close(raw)
        assert raw.is_closed()


def test_the_longest_data_segment_length_is_rejected_before_its_data(serving):
    with serving.log_in() as raw:
        header = bhs.encode(
            Opcode.SCSI_COMMAND, cmd_sn=raw.cmd_sn, itt=3, data_segment_length=(1 << 24) - 1
        )
        raw.socket.sendall(header)
        answer, data = raw.take()
        assert (answer.opcode, data) == (Opcode.REJECT, bytes(header))
        assert answer.reject_reason == RejectReason.PROTOCOL_ERROR
        assert raw.is_closed()


def test_a_login_with_too_much_data_is_refused_before_its_data(serving):
    with Raw(serving.port) as raw:
        header = bytearray(LOGIN)
        header[5:8] = ((1 << 24) - 1).to_bytes(3, "big")
        raw.socket.sendall(header)
        assert raw.is_closed()


def test_a_login_pdu_in_the_full_feature_phase_ends_the_connection(serving):
    with serving.log_in() as raw:
        raw.give(Opcode.LOGIN_REQUEST, cmd_sn=raw.cmd_sn)
        assert raw.take()[0].opcode is Opcode.REJECT
        assert raw.is_closed()


def test_an_unknown_pdu_is_rejected_and_the_session_goes_on(serving):
    with serving.log_in() as raw:
        raw.clear_attention()
        header = bytearray(48)
        header[0], header[1] = 0x1D, 0x80
        raw.socket.sendall(header)
        answer, data = raw.take()
        assert answer.reject_reason == RejectReason.COMMAND_NOT_SUPPORTED
        assert data == bytes(header)
        assert len(raw.read(0, 1)) == BLOCK


def test_a_bad_first_login_says_why(serving):
    with Raw(serving.port) as raw:
        raw.give(
            Opcode.LOGIN_REQUEST, b"SessionType=Discovery\0", transit=1, csg=1, nsg=3, cmd_sn=1
        )
        header, _ = raw.take()
        status = header.status_class << 8 | header.status_detail
        assert status == LoginStatus.MISSING_PARAMETER
        assert raw.is_closed()


def test_a_peer_that_stops_reading_holds_up_nobody(serving):
    with serving.log_in() as raw:
        raw.clear_attention()
        before = serving.mapped
        tags = [
            raw.command(scsi.read_16(0, BLOCKS), length=BLOCKS * BLOCK, read=1) for _ in range(32)
        ]
        with serving.log_in(isid=5) as other:
            other.clear_attention()
            for _ in range(50):
                assert len(other.read(0, 256)) == 256 * BLOCK
            other.log_out()
            assert other.is_closed()
        wait_until("the other is gone", lambda: len(serving.server.connections) == 2)
        assert serving.mapped <= before + serving.arena_size
        # It was only slow: all of the data is still to be had, in pieces of many reads.
        data = dict.fromkeys(tags, b"")
        done = 0
        while done < len(tags):
            header, piece = raw.take()
            assert header.buffer_offset == len(data[header.itt])
            data[header.itt] += piece
            done += header.has_status
        assert set(data.values()) == {serving.disk.array.tobytes()}


@pytest.mark.parametrize("how", [reset, lambda raw: raw.socket.close()], ids=["reset", "close"])
def test_a_client_that_dies_within_a_write_leaves_the_rest_as_it_was(serving, how):
    for sent in (0, 1, 47, 48, 49, 48 + BLOCK, 48 + 8 * BLOCK - 1):
        raw = serving.log_in()
        raw.clear_attention()
        data = serving.disk.array[1000 * BLOCK : 1008 * BLOCK].tobytes()
        pdu = bhs.encode_pdu(
            Opcode.SCSI_COMMAND,
            data,
            cdb=int.from_bytes(scsi.write_10(1000, 8), "big"),
            itt=7,
            cmd_sn=raw.cmd_sn,
            expected_data_transfer_length=len(data),
            write=1,
        )
        raw.socket.sendall(pdu[:sent])
        how(raw)
    wait_until("they are gone", lambda: len(serving.server.connections) == 1)


def test_a_client_that_dies_with_reads_outstanding_is_forgotten(serving):
    for _ in range(5):
        raw = serving.log_in()
        raw.clear_attention()
        for _ in range(32):
            raw.command(scsi.read_16(0, 2048), length=2048 * BLOCK, read=1)
        reset(raw)
    wait_until("they are gone", lambda: len(serving.server.connections) == 1)


def test_more_commands_than_the_window_are_ignored(serving):
    with serving.log_in() as raw:
        raw.clear_attention()
        raw.command(scsi.test_unit_ready(), cmd_sn=raw.cmd_sn + 5000)
        raw.cmd_sn -= 1
        raw.request(Opcode.NOP_OUT, b"next", immediate=1)
        header, data = raw.take()
        assert (header.opcode, data) == (Opcode.NOP_IN, b"next")


def test_half_a_close_ends_the_connection(serving):
    with serving.log_in() as raw:
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.is_closed()
