"""The negative set for the target over real sockets: each wrong thing a peer can do in the full
feature phase has one named outcome, the process lives, other sessions notice nothing, and no
memory is left behind. (What is wrong in a login is in test_negative_login.)

Outcomes: REJECT with a reason, CHECK CONDITION with sense, IGNORE in silence, CLOSE. An outcome
that does not come makes a socket time out; nothing here measures time.
"""

import contextlib
import socket

import pytest

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import RejectReason
from iscsi.wire.keys import DIGEST_CRC32C, Proposal
from iscsi.wire.sense import Asc
from shm.crc32c import crc32c
from shm.jit import JIT_DISABLED
from tests.iscsi.target.negative_cases import (
    ANSWER_S,
    EVERY,
    SESSION,
    WRITE_AT,
    Wrong,
    long_cdb,
)
from tests.iscsi.target.serving import BLOCK, TWO, Raw, unnoticed, wait_until, warmed

PLACEMENTS = TWO

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the loop holds the interpreter when plain")

DIGESTS = Proposal(SESSION, header_digest=(DIGEST_CRC32C,), data_digest=(DIGEST_CRC32C,))


@pytest.fixture(scope="module")
def server(placement):
    with warmed(login_timeout_s=5, linger_s=0.2, window=8) as server:
        yield server


@pytest.fixture
def serving(server):
    with unnoticed(server):
        yield server


@pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)
def test_each_wrong_thing_has_its_outcome(serving, case):
    behind = slice((WRITE_AT + 8) * BLOCK, (WRITE_AT + 64) * BLOCK)
    before = serving.disk.array[behind].copy()
    with Wrong(serving, case.session) as wrong:
        case.what(wrong)
        case.outcome.check(wrong)
    # What came before the wrong thing may have been written, nothing behind it.
    assert (serving.disk.array[behind] == before).all()


def test_numbers_that_come_in_another_order_are_served_in_order(serving):
    with Wrong(serving) as wrong:
        first = wrong.cmd_sn
        for place in (3, 1, 2, 1, 0):
            wrong.scsi(
                scsi.read_10(place, 1), length=BLOCK, read=1, cmd_sn=first + place, itt=place
            )
        for place in range(4):
            expected = serving.disk.array[place * BLOCK : (place + 1) * BLOCK].tobytes()
            assert wrong.data_in() == expected
        wrong.cmd_sn = first + 4
        wrong.works()


def test_the_numbers_wrap(serving):
    raw = Raw(serving.port)
    raw.cmd_sn = 0xFFFFFFFD
    with raw.log_in(isid=0x4000_0000_0009):
        raw.command(scsi.test_unit_ready())
        assert raw.take()[0].status == 2
        for place in range(6):
            raw.command(
                scsi.read_10(place, 1), length=BLOCK, read=1, cmd_sn=raw.cmd_sn & 0xFFFFFFFF
            )
            header, data = raw.take()
            assert data == serving.disk.array[place * BLOCK : (place + 1) * BLOCK].tobytes()
            assert header.exp_cmd_sn == raw.cmd_sn & 0xFFFFFFFF
        assert header.exp_cmd_sn == 4


class WithDigests(Wrong):
    """A session with both digests, to spoil one of them."""

    def __init__(self, serving):
        super(Wrong, self).__init__(serving.port, timeout=ANSWER_S)
        self.serving = serving
        self.log_in(isid=0x4000_0000_0009, proposal=DIGESTS)
        self.pdu(cdb=0)
        assert self.take()[0].status == 2

    def pdu(self, opcode=Opcode.SCSI_COMMAND, data=b"", spoil=None, **fields):
        fields = {"itt": 0x100 + self.itt, "cmd_sn": self.cmd_sn, **fields}
        self.cmd_sn += 1
        self.itt += 1
        self.give(opcode, data, spoil, **fields)

    def give(self, opcode, data=b"", spoil=None, **fields):
        header = bytes(bhs.encode(opcode, data_segment_length=len(data), **fields))
        parts = [header, crc32c(header).to_bytes(4, "little")]
        if data:
            padded = data + bytes(-len(data) % 4)
            parts += [padded, crc32c(padded).to_bytes(4, "little")]
        if spoil is not None:
            parts[spoil] = bytes((parts[spoil][0] ^ 1,)) + parts[spoil][1:]
        self.socket.sendall(b"".join(parts))

    def take(self):
        raw = self.exactly(bhs.BHS_LENGTH)
        assert self.exactly(4) == crc32c(raw).to_bytes(4, "little")
        header = bhs.decode(raw)
        data = self.exactly(bhs.padded(header.data_segment_length))
        if data:
            assert self.exactly(4) == crc32c(data).to_bytes(4, "little")
        return header, data[: header.data_segment_length]


@pytest.mark.parametrize("part", [2, 3], ids=["data", "digest"])
def test_a_wrong_data_digest_ends_its_command_only(serving, part):
    with WithDigests(serving) as wrong:
        for _ in range(20):  # more often than the window is wide
            wrong.begin_write(BLOCK, b"w" * BLOCK, spoil=part)
            assert wrong.is_rejected(RejectReason.DATA_DIGEST_ERROR)
            wrong.fails(Asc.PROTOCOL_SERVICE_CRC_ERROR)
        wrong.pdu(Opcode.NOP_OUT, b"spoilt", spoil=part)
        wrong.is_rejected(RejectReason.DATA_DIGEST_ERROR)
        wrong.works()


@pytest.mark.parametrize("part", [0, 1], ids=["header", "digest"])
def test_a_wrong_header_digest_ends_the_connection(serving, part):
    with WithDigests(serving) as wrong:
        wrong.pdu(Opcode.NOP_OUT, b"ping", spoil=part)
        assert wrong.is_closed()


def whole_write(wrong):
    data = b"t" * 64
    return (
        bytes(
            bhs.encode(
                Opcode.SCSI_COMMAND,
                data_segment_length=64,
                total_ahs_words=2,
                write=1,
                itt=5,
                cmd_sn=wrong.cmd_sn,
                expected_data_transfer_length=64,
                cdb=int.from_bytes(bytes((0x55,)) + bytes(15), "big"),
            )
        )
        + long_cdb(bytes(4))
        + data
    )


def test_a_pdu_cut_at_any_byte_leaves_nothing_behind(serving):
    with Wrong(serving) as wrong:
        length = len(whole_write(wrong))
    serving.server.counts.clear()
    for cut in range(length):
        raw = Raw(serving.port).log_in(isid=0x4000_0000_0100 + cut)
        raw.clear_attention()
        raw.socket.sendall(whole_write(raw)[:cut])
        with contextlib.suppress(OSError):
            raw.socket.shutdown(socket.SHUT_WR)
        assert raw.is_closed()
        raw.socket.close()
    wait_until("they are gone", lambda: len(serving.server.connections) == 1)


def test_a_peer_that_asks_and_never_reads_is_bounded(serving):
    mapped = serving.mapped
    with Wrong(serving) as wrong:
        wrong.socket.settimeout(0.5)
        ping = bhs.encode_pdu(Opcode.TEXT_REQUEST, b"X-a=b\0" * 100, itt=1, immediate=1, cmd_sn=2)
        with contextlib.suppress(OSError):
            for _ in range(20_000):
                wrong.socket.sendall(ping)
        assert serving.mapped <= mapped + serving.arena_size
        for connection in serving.server.connections:
            assert len(connection.unsent) <= 600
    wait_until("it is gone", lambda: len(serving.server.connections) == 1)
