"""Our software RNIC's core and the kernel's siw on one wire: both roles, every opcode that siw has,
with CRC and without, private data, rejection, disconnection, and a Terminate from each side.
"""

import contextlib
import socket

import pytest

from host.verbs import mpa
from ppe.cycle.rnic import constants as c
from shm.jit import JIT_DISABLED
from tests.guest.machine import HOST, QEMU_TOOLS
from tests.guest.rdma import ADDRESSES, WIRE_PORTS
from tests.ppe.rnic.joined import ALL
from tests.ppe.rnic.verbs.on_device import peer
from tests.ppe.rnic.verbs.wire import Wire, ask

pytestmark = [
    pytest.mark.rdma_guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS, "gcc", "make"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(JIT_DISABLED, reason="the guest runs compiled code"),
]
PEER = peer.__name__
SIW = "siw0"
SIZES = (1, 2, 3, 4, 1000, 40_000, 100_001)
HELLO, WELCOME = b"hello siw \0\xff", b"welcome \0\xfe"


def pattern(size, seed=1):
    return bytes((seed + at * 31 + at // 253) & 0xFF for at in range(size))


class Both:
    """A connection between us and siw; `peer` is where its memory lies."""

    def __init__(self, guest, wire, told):
        self.guest, self.wire, self.told = guest, wire, told
        self.qp, self.region = wire.qp, wire.region

    def ask(self, call, **arguments):
        return ask(self.guest, self.wire, call, **arguments)

    def remote(self, start=0):
        return {"remote_addr": self.told["address"] + start, "rkey": self.told["rkey"]}

    def ours(self, start=0):
        return {"remote_addr": self.region.iova + start, "rkey": self.region.key}

    def open(self):
        """Let the passive side send: the active one speaks first."""
        if self.wire.startup.active:
            self.qp.post(c.WR_RDMA_WRITE)
            self.wire.completion()
        else:
            self.ask("post", opcode=c.WR_RDMA_WRITE, start=0, length=0, **self.ours())
            self.ask("completions", count=1)
            self.wire.run(lambda: bool(self.qp.record["started"]))
        return self


@contextlib.contextmanager
def we_connect(guest, *, crc=True, private_data=b"", answer=b"", ird=4, ord=4, **spec):
    port = WIRE_PORTS[0]
    told = guest.call(f"{PEER}:listen", device=SIW, address=ADDRESSES[SIW], port=port)
    guest.start(f"{PEER}:accept", private_data=answer.hex(), ird=4, ord=4)
    wishes = mpa.Wishes(crc=crc, ird=ird, ord=ord, private_data=private_data)
    wire = Wire.connect(guest.wire_ports[port], wishes, **spec)
    with wire:
        both = Both(guest, wire, told)
        # siw tells its application of the connection when our first message is there.
        both.qp.post(c.WR_RDMA_WRITE)
        wire.run(guest.has_answer, [guest.socket])
        told.update(guest.result())
        wire.completion()
        yield both
    guest.call(f"{PEER}:close")


@contextlib.contextmanager
def siw_connects(guest, *, crc=True, private_data=b"", answer=b"", **spec):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        port = listener.getsockname()[1]
        guest.start(
            f"{PEER}:connect", device=SIW, address=HOST, port=port, private_data=private_data.hex()
        )
        wishes = mpa.Wishes(crc=crc, ird=4, ord=4, private_data=answer)
        with Wire.accept(listener, wishes, **spec) as wire:
            both = Both(guest, wire, guest.result())
            yield both.open()
    guest.call(f"{PEER}:close")


ROLES = {"we connect": we_connect, "siw connects": siw_connects}


@pytest.fixture(params=[True, False], ids=["crc", "no crc"])
def crc(request):
    return request.param


@pytest.fixture(params=ROLES)
def both(request, rdma_guest, crc):
    with ROLES[request.param](rdma_guest, crc=crc) as made:
        assert made.wire.startup.crc == crc
        yield made


def test_our_sends_arrive_at_siw(both):
    for size in SIZES:
        both.region.data[:size] = list(pattern(size))
        both.ask("receive", start=64, length=size + 5)
        both.qp.post(c.WR_SEND, [both.region.piece(0, size)])
        both.wire.completion()
        (found,) = both.ask("completions", count=1)
        assert (found["status"], found["byte_len"]) == (0, size)
        assert both.ask("read", start=64, length=size) == pattern(size).hex()


def test_sends_of_siw_arrive_here(both):
    for size in SIZES:
        both.ask("fill", start=0, text=pattern(size, 7).hex())
        both.qp.receive(both.region.piece(64, size + 5))
        both.ask("post", opcode=c.WR_SEND, start=0, length=size)
        both.ask("completions", count=1)
        assert both.wire.completion()["byte_len"] == size
        assert both.region.bytes(64, size) == pattern(size, 7)


def test_our_writes_land_in_siws_memory(both):
    for size in SIZES:
        both.region.data[:size] = list(pattern(size, 3))
        both.qp.post(c.WR_RDMA_WRITE, [both.region.piece(0, size)], **both.remote(100))
        both.ask("receive", start=200_000, length=8)
        both.qp.post(c.WR_SEND)
        both.wire.completions(2)
        both.ask("completions", count=1)
        assert both.ask("read", start=100, length=size) == pattern(size, 3).hex()


def test_writes_of_siw_land_in_our_memory(both):
    for size in SIZES:
        both.ask("fill", start=0, text=pattern(size, 5).hex())
        both.ask("post", opcode=c.WR_RDMA_WRITE, start=0, length=size, **both.ours(100))
        both.qp.receive(both.region.piece(200_000, 8))
        both.ask("post", opcode=c.WR_SEND, start=0, length=0)
        both.ask("completions", count=2)
        both.wire.completion()
        assert both.region.bytes(100, size) == pattern(size, 5)


def test_we_read_siws_memory(both):
    for size in SIZES:
        both.ask("fill", start=10, text=pattern(size, 9).hex())
        both.qp.post(c.WR_RDMA_READ, [both.region.piece(0, size)], **both.remote(10))
        both.wire.completion()
        assert both.region.bytes(0, size) == pattern(size, 9)


def test_siw_reads_our_memory(both):
    for size in SIZES:
        both.region.data[:size] = list(pattern(size, 11))
        both.ask("post", opcode=c.WR_RDMA_READ, start=30, length=size, **both.ours())
        (found,) = both.ask("completions", count=1)
        assert found["status"] == 0
        assert both.ask("read", start=30, length=size) == pattern(size, 11).hex()


def test_many_of_our_reads_are_answered_in_order(both):
    both.ask("fill", start=0, text=pattern(50_000, 13).hex())
    tokens = [
        both.qp.post(c.WR_RDMA_READ, [both.region.piece(at * 5000, 5000)], **both.remote(at * 5000))
        for at in range(10)
    ]
    assert [one["token"] for one in both.wire.completions(10)] == tokens
    assert both.region.bytes(0, 50_000) == pattern(50_000, 13)


def test_a_send_of_ours_invalidates_siws_region(both):
    both.ask("receive", start=0, length=64)
    invalidated = both.told["rkey"]
    both.qp.post(c.WR_SEND_WITH_INV, [both.region.piece(0, 8)], invalidate_rkey=invalidated)
    both.wire.completion()
    (found,) = both.ask("completions", count=1)
    assert (found["flags"], found["invalidated_rkey"]) == (c.WC_WITH_INV, invalidated)


def test_a_send_of_siw_invalidates_our_region(both):
    exported = both.wire.rnic.region(4096)
    both.qp.receive(both.region.piece(0, 64))
    both.ask("post", opcode=c.WR_SEND_WITH_INV, start=0, length=8, invalidate_rkey=exported.key)
    both.ask("completions", count=1)
    found = both.wire.completion()
    assert (found["flags"] & c.WC_WITH_INV, found["invalidated_rkey"]) == (
        c.WC_WITH_INV,
        exported.key,
    )


def test_a_solicited_send_of_siw_is_known_as_one(both):
    both.qp.receive(both.region.piece(0, 64))
    both.ask("post", opcode=c.WR_SEND, start=0, length=8, flags=c.SEND_SIGNALED | c.SEND_SOLICITED)
    both.ask("completions", count=1)
    assert both.wire.completion()["flags"] & c.WC_SOLICITED


def test_messages_cross_without_a_mix_up(both):
    for _ in range(8):
        both.qp.receive(both.region.piece(0, 4096))
        both.ask("receive", start=0, length=4096)
    for at in range(8):
        both.qp.post(c.WR_SEND, [both.region.piece(0, 1000 + at)])
        both.ask("post", opcode=c.WR_SEND, start=0, length=2000 + at)
    theirs = both.ask("completions", count=16)
    ours = both.wire.completions(16)
    assert [one["byte_len"] for one in ours if one["opcode"] == c.WC_RECV] == list(
        range(2000, 2008)
    )
    assert [one["byte_len"] for one in theirs if one["opcode"] == c.WC_RECV] == list(
        range(1000, 1008)
    )


def test_a_bad_stag_of_ours_is_answered_with_a_terminate(both):
    both.qp.post(
        c.WR_RDMA_READ,
        [both.region.piece(0, 64)],
        **(both.remote() | {"rkey": both.told["rkey"] ^ 0x5500}),
    )
    both.wire.run(lambda: both.qp.state != 2 and bool(both.wire.found))
    found = both.wire.completion(c.WC_REM_ACCESS_ERR)
    assert found["vendor_err"]


def test_a_bad_stag_of_siw_is_answered_with_a_terminate(both):
    wrong = both.ours() | {"rkey": both.region.key ^ 0x5500}
    both.ask("post", opcode=c.WR_RDMA_READ, start=0, length=64, **wrong)
    (found,) = both.ask("flush", count=1)
    assert found["status"] != 0


def test_memory_that_may_not_be_read_is_not_given_to_siw(both):
    secret = both.wire.rnic.region(4096, ALL & ~c.ACCESS_REMOTE_READ)
    both.ask(
        "post", opcode=c.WR_RDMA_READ, start=0, length=64, remote_addr=secret.iova, rkey=secret.key
    )
    (found,) = both.ask("flush", count=1)
    assert found["status"] != 0


def test_siw_disconnects_and_our_receives_are_flushed(both):
    token = both.qp.receive(both.region.piece(0, 64))
    both.ask("disconnect")
    both.wire.run(lambda: both.wire.is_closed)
    flushed = both.qp.end()
    assert [(one["token"], one["status"]) for one in flushed] == [(token, c.WC_WR_FLUSH_ERR)]


def test_we_disconnect_and_siw_says_so(both):
    both.ask("receive", start=0, length=64)
    both.wire.connection.shutdown(socket.SHUT_WR)
    assert both.ask("event") == 10  # RDMA_CM_EVENT_DISCONNECTED
    (found,) = both.ask("flush", count=1)
    assert found["status"] == c.WC_WR_FLUSH_ERR


@pytest.mark.parametrize("role", ROLES)
def test_private_data_and_depths_travel_both_ways(rdma_guest, role):
    with ROLES[role](rdma_guest, private_data=HELLO, answer=WELCOME) as both:
        told, startup = both.told, both.wire.startup
        asked, answered = told["private_data"], startup.private_data.hex()
        if not startup.active:
            asked, answered = answered, asked
        assert (asked, answered) == (HELLO.hex(), WELCOME.hex())
        assert (startup.ird, startup.ord) == (4, 4)


def test_siw_rejects_and_we_hear_its_word(rdma_guest):
    port = WIRE_PORTS[1]
    rdma_guest.call(f"{PEER}:listen", device=SIW, address=ADDRESSES[SIW], port=port)
    rdma_guest.start(f"{PEER}:refuse", private_data=WELCOME.hex())
    with pytest.raises(mpa.Rejected) as error:
        Wire.connect(rdma_guest.wire_ports[port], mpa.Wishes())
    assert error.value.private_data == WELCOME
    rdma_guest.result()
    rdma_guest.call(f"{PEER}:close")
