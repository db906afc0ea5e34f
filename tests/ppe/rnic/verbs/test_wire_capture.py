"""What our software RNIC and siw say to each other, as the guest's network card saw it, is iWARP to
Wireshark too: every frame decodes as MPA, DDP and RDMAP, none is malformed.
"""

import shutil

import pytest

from shm import verbs_numbers as c
from shm.jit import JIT_DISABLED
from tests.guest.capture import Capture
from tests.guest.machine import QEMU_TOOLS
from tests.ppe.rnic.verbs.wire import FORMS, ROLES, wishes

pytestmark = [
    pytest.mark.rdma_guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS, "gcc", "make", "tshark"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(JIT_DISABLED, reason="the guest runs compiled code"),
]
SIZE = 40_000  # of a message: more than an FPDU of siw's and than a TCP segment
# RDMAP's opcodes (RFC 5040 §4.2) that siw has: Write, Read Request, Read Response, the Sends, and
# Terminate.
SEEN = {0, 1, 2, 3, 4, 5, 7}


def exchange(both):
    """Everything that siw can do, in both directions, ending with a Terminate."""
    ours, ask = both.ours, both.ask
    for _ in range(3):
        ours.receive(0, SIZE)
        ask("receive", start=0, length=SIZE)
    ours.post(c.WR_RDMA_WRITE, 0, SIZE, **both.theirs())
    ours.post(c.WR_RDMA_READ, 0, SIZE, **both.theirs())
    ours.post(c.WR_SEND, 0, SIZE)
    ours.post(c.WR_SEND, 0, 5, flags=c.SEND_SIGNALED | c.SEND_SOLICITED)
    ours.completions(4)
    ask("completions", count=2)
    ask("post", opcode=c.WR_RDMA_WRITE, start=0, length=SIZE, **both.mine())
    ask("post", opcode=c.WR_RDMA_READ, start=0, length=SIZE, **both.mine())
    ask("post", opcode=c.WR_SEND, start=0, length=SIZE)
    _, key = ours.export(4096)
    ask("post", opcode=c.WR_SEND_WITH_INV, start=0, length=3, invalidate_rkey=key)
    ask("completions", count=4)
    ours.completions(2)
    exported = ask("export", size=4096)
    ours.post(c.WR_SEND_WITH_INV, 0, 7, invalidate_rkey=exported["rkey"])
    ours.completion()
    ask("completions", count=1)
    wrong = both.mine() | {"rkey": both.ours.key ^ 0x5500}
    ask("post", opcode=c.WR_RDMA_READ, start=0, length=64, **wrong)
    ask("flush", count=1)


@pytest.fixture(scope="module", params=[True, False], ids=["crc", "no crc"])
def capture(request, rdma_guest, tmp_path_factory):
    """A capture with one connection for each role, in each form of our side."""
    before = Capture(rdma_guest.capture).fields("frame", "frame.number")
    for form in FORMS.values():
        for role in ROLES.values():
            with role(rdma_guest, form, wishes(crc=request.param)) as both:
                exchange(both)
    path = tmp_path_factory.mktemp("capture") / "wire.pcap"
    shutil.copy(rdma_guest.capture, path)
    return Capture(path, since=len(before))


def test_no_frame_is_malformed(capture):
    wrong = "(iwarp_mpa or iwarp_ddp_rdmap) and (_ws.malformed or _ws.expert.severity == error)"
    assert capture.fields(wrong, "frame.number", "_ws.expert.message") == []


def test_every_opcode_is_seen_from_both_sides(capture):
    for shown in ("ip.src == 10.0.2.15", "ip.dst == 10.0.2.15"):
        rows = capture.fields(f"iwarp_rdma and {shown}", "iwarp_rdma.opcode")
        seen = {int(word, 0) for (words,) in rows for word in words.split(",")}
        assert seen >= SEEN - {5, 7}, shown
    rows = capture.fields("iwarp_rdma", "iwarp_rdma.opcode")
    assert {int(word, 0) for (words,) in rows for word in words.split(",")} >= SEEN


def test_every_checksum_is_right(capture):
    assert capture.fields('iwarp_mpa and _ws.expert.message contains "CRC"', "frame.number") == []


def test_our_terminate_names_the_layer_and_the_code(capture):
    rows = capture.fields(
        "iwarp_rdma.opcode == 7 and ip.dst == 10.0.2.15",
        "iwarp_rdma.term_layer",
        "iwarp_rdma.term_etype_rdma",
        "iwarp_rdma.term_errcode_rdma",
    )
    # RFC 5040 §4.8: layer RDMA, remote protection error, invalid STag.
    assert rows
    assert {tuple(int(word, 0) for word in row) for row in rows} == {(0, 1, 0)}
