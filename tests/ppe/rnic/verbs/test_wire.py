"""Our software RNIC's core and the kernel's siw on one wire: both roles, every opcode that siw has,
with CRC and without, private data, rejection, disconnection, and a Terminate from each side.
"""

import pytest

from host.verbs import mpa
from ppe.cycle.rnic.verbs.connection import DISCONNECTED
from shm import verbs_numbers as c
from shm.jit import JIT_DISABLED
from tests.guest.machine import QEMU_TOOLS
from tests.guest.rdma import ADDRESSES, WIRE_PORTS
from tests.ppe.rnic.joined import ALL
from tests.ppe.rnic.verbs.wire import FORMS, PEER, ROLES, we_connect, wishes

pytestmark = [
    pytest.mark.rdma_guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS, "gcc", "make"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(JIT_DISABLED, reason="the guest runs compiled code"),
]
SIZES = (1, 2, 3, 4, 1000, 40_000, 100_001)
HELLO, WELCOME = b"hello siw \0\xff", b"welcome \0\xfe"


def pattern(size, seed=1):
    return bytes((seed + at * 31 + at // 253) & 0xFF for at in range(size))


# The core in all four ways; the whole of it, whose start-up and transport are other code, in two.
CASES = [
    *((form, role, crc) for form in ("core",) for role in ROLES for crc in (True, False)),
    ("engine", "we connect", True),
    ("engine", "siw connects", False),
]


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


@pytest.fixture(params=ROLES)
def role(request):
    return ROLES[request.param]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{'crc' if case[2] else 'no'}")
def both(rdma_guest, request):
    form, role, crc = request.param
    with ROLES[role](rdma_guest, FORMS[form], wishes(crc=crc)) as made:
        assert made.ours.startup.crc == crc
        yield made


def test_our_sends_arrive_at_siw(both):
    for size in SIZES:
        both.ours.data[:size] = list(pattern(size))
        both.ask("receive", start=64, length=size + 5)
        both.ours.post(c.WR_SEND, 0, size)
        both.ours.completion()
        (found,) = both.ask("completions", count=1)
        assert (found["status"], found["byte_len"]) == (0, size)
        assert both.ask("read", start=64, length=size) == pattern(size).hex()


def test_sends_of_siw_arrive_here(both):
    for size in SIZES:
        both.ask("fill", start=0, text=pattern(size, 7).hex())
        both.ours.receive(64, size + 5)
        both.ask("post", opcode=c.WR_SEND, start=0, length=size)
        both.ask("completions", count=1)
        assert both.ours.completion()["byte_len"] == size
        assert both.ours.bytes(64, size) == pattern(size, 7)


def test_our_writes_land_in_siws_memory(both):
    for size in SIZES:
        both.ours.data[:size] = list(pattern(size, 3))
        both.ours.post(c.WR_RDMA_WRITE, 0, size, **both.theirs(100))
        both.ask("receive", start=200_000, length=8)
        both.ours.post(c.WR_SEND)
        both.ours.completions(2)
        both.ask("completions", count=1)
        assert both.ask("read", start=100, length=size) == pattern(size, 3).hex()


def test_writes_of_siw_land_in_our_memory(both):
    for size in SIZES:
        both.ask("fill", start=0, text=pattern(size, 5).hex())
        both.ask("post", opcode=c.WR_RDMA_WRITE, start=0, length=size, **both.mine(100))
        both.ours.receive(200_000, 8)
        both.ask("post", opcode=c.WR_SEND, start=0, length=0)
        both.ask("completions", count=2)
        both.ours.completion()
        assert both.ours.bytes(100, size) == pattern(size, 5)


def test_we_read_siws_memory(both):
    for size in SIZES:
        both.ask("fill", start=10, text=pattern(size, 9).hex())
        both.ours.post(c.WR_RDMA_READ, 0, size, **both.theirs(10))
        both.ours.completion()
        assert both.ours.bytes(0, size) == pattern(size, 9)


def test_siw_reads_our_memory(both):
    for size in SIZES:
        both.ours.data[:size] = list(pattern(size, 11))
        both.ask("post", opcode=c.WR_RDMA_READ, start=30, length=size, **both.mine())
        (found,) = both.ask("completions", count=1)
        assert found["status"] == 0
        assert both.ask("read", start=30, length=size) == pattern(size, 11).hex()


def test_many_of_our_reads_are_answered_in_order(both):
    both.ask("fill", start=0, text=pattern(50_000, 13).hex())
    tokens = [
        both.ours.post(c.WR_RDMA_READ, at * 5000, 5000, **both.theirs(at * 5000))
        for at in range(10)
    ]
    assert [one["token"] for one in both.ours.completions(10)] == tokens
    assert both.ours.bytes(0, 50_000) == pattern(50_000, 13)


def test_a_send_of_ours_invalidates_siws_region(both):
    exported = both.ask("export", size=4096)
    peer = {"remote_addr": exported["address"], "rkey": exported["rkey"]}
    both.ours.post(c.WR_RDMA_READ, 0, 8, **peer)
    both.ours.completion()
    both.ask("receive", start=0, length=64)
    both.ours.post(c.WR_SEND_WITH_INV, 0, 8, invalidate_rkey=exported["rkey"])
    both.ours.completion()
    (found,) = both.ask("completions", count=1)
    assert (found["status"], found["byte_len"]) == (c.WC_SUCCESS, 8)
    both.ours.post(c.WR_RDMA_READ, 0, 8, **peer)
    both.ours.completion(c.WC_REM_ACCESS_ERR)


def test_a_send_of_siw_invalidates_our_region(both):
    iova, key = both.ours.export(4096)
    both.ours.receive(0, 64)
    both.ask("post", opcode=c.WR_SEND_WITH_INV, start=0, length=8, invalidate_rkey=key)
    both.ask("completions", count=1)
    found = both.ours.completion()
    assert (found["flags"] & c.WC_WITH_INV, found["invalidated_rkey"]) == (c.WC_WITH_INV, key)
    both.ask("post", opcode=c.WR_RDMA_READ, start=0, length=8, remote_addr=iova, rkey=key)
    (failed,) = both.ask("flush", count=1)
    assert failed["status"] != c.WC_SUCCESS


def test_a_solicited_send_of_siw_is_known_as_one(both):
    both.ours.receive(0, 64)
    both.ask("post", opcode=c.WR_SEND, start=0, length=8, flags=c.SEND_SIGNALED | c.SEND_SOLICITED)
    both.ask("completions", count=1)
    assert both.ours.completion()["flags"] & c.WC_SOLICITED


def test_messages_cross_without_a_mix_up(both):
    for _ in range(8):
        both.ours.receive(0, 4096)
        both.ask("receive", start=0, length=4096)
    for at in range(8):
        both.ours.post(c.WR_SEND, 0, 1000 + at)
        both.ask("post", opcode=c.WR_SEND, start=0, length=2000 + at)
    theirs = both.ask("completions", count=16)
    ours = both.ours.completions(16)
    assert [one["byte_len"] for one in ours if one["opcode"] == c.WC_RECV] == list(
        range(2000, 2008)
    )
    assert [one["byte_len"] for one in theirs if one["opcode"] == c.WC_RECV] == list(
        range(1000, 1008)
    )


def test_a_bad_stag_of_ours_is_answered_with_a_terminate(both):
    wrong = both.theirs() | {"rkey": both.told["rkey"] ^ 0x5500}
    both.ours.post(c.WR_RDMA_READ, 0, 64, **wrong)
    found = both.ours.completion(c.WC_REM_ACCESS_ERR)
    assert found["vendor_err"], "no Terminate came"


def test_a_bad_stag_of_siw_is_answered_with_a_terminate(both):
    wrong = both.mine() | {"rkey": both.ours.key ^ 0x5500}
    both.ask("post", opcode=c.WR_RDMA_READ, start=0, length=64, **wrong)
    (found,) = both.ask("flush", count=1)
    assert found["status"] != c.WC_SUCCESS


def test_memory_that_may_not_be_read_is_not_given_to_siw(both):
    iova, key = both.ours.export(4096, ALL & ~c.ACCESS_REMOTE_READ)
    both.ask("post", opcode=c.WR_RDMA_READ, start=0, length=64, remote_addr=iova, rkey=key)
    (found,) = both.ask("flush", count=1)
    assert found["status"] != c.WC_SUCCESS


def test_siw_disconnects_and_our_receives_are_flushed(both):
    token = both.ours.receive(0, 64)
    both.ask("disconnect")
    found = both.ours.completion(c.WC_WR_FLUSH_ERR)
    assert found["token"] == token
    assert both.ours.is_closed


def test_we_disconnect_and_siw_says_so(both):
    both.ask("receive", start=0, length=64)
    both.ours.disconnect()
    assert both.ask("event") == DISCONNECTED
    (found,) = both.ask("flush", count=1)
    assert found["status"] == c.WC_WR_FLUSH_ERR


def test_private_data_and_depths_travel_both_ways(rdma_guest, form, role):
    extra = {"answer": WELCOME} if role is we_connect else {"asked": HELLO}
    mine = HELLO if role is we_connect else WELCOME
    theirs = WELCOME if role is we_connect else HELLO
    with role(rdma_guest, form, wishes(private_data=mine), **extra) as both:
        assert both.told["private_data"] == mine.hex()
        assert both.ours.startup.private_data == theirs
        assert (both.ours.startup.ird, both.ours.startup.ord) == (4, 4)


@pytest.mark.parametrize("kind", [mpa.Rtr.WRITE, mpa.Rtr.READ])
def test_siw_takes_our_word_that_we_are_ready(rdma_guest, form, kind):
    with we_connect(rdma_guest, form, wishes(rtr=kind)) as both:
        assert both.ours.startup.rtr == kind
        both.ours.receive(0, 64)
        both.ask("post", opcode=c.WR_SEND, start=0, length=8)
        both.ask("completions", count=1)
        assert both.ours.completion()["byte_len"] == 8


def test_siw_rejects_and_we_hear_of_it(rdma_guest, form):
    port = WIRE_PORTS[1]
    rdma_guest.call(f"{PEER}:listen", device="siw0", address=ADDRESSES["siw0"], port=port)
    rdma_guest.start(f"{PEER}:refuse")
    with (
        pytest.raises(mpa.Rejected) as error,
        form.connecting(rdma_guest.wire_ports[port], wishes()),
    ):
        pass
    assert error.value.private_data == b""  # pyverbs has no way to say more
    rdma_guest.result()
    rdma_guest.call(f"{PEER}:close")
