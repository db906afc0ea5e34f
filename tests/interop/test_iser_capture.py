"""What our iSER and Linux's say to each other, as the guest's network card saw it: iWARP to
Wireshark, and iSER (RFC 7145 §9, with the deployed 28-byte header) in every Send.
"""

import shutil

import pytest

import iscsi
import iscsi.target.server
import ppe.cycle.services.iser
import ppe.cycle.services.rdma  # noqa: F401 - the same
from iscsi.session.options import NEVER
from shm.jit import JIT_DISABLED
from tests.guest.capture import RDMA_WRITE, READ_REQUEST, SENDS, Capture
from tests.guest.lio import ISER_PORT
from tests.guest.machine import QEMU_TOOLS
from tests.interop.serve import IQN, Served
from tests.iscsi.session.tgt import free_port

pytestmark = [
    pytest.mark.rdma_guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS, "gcc", "make", "tshark"),
    pytest.mark.timeout(400),
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]

LIO = "iqn.2026-01.org.example:captured"
BLOCK = 512
# Within a PDU, beyond one, beyond siw's FPDUs.
COUNTS = (1, 16, 17, 512)
HEADERS = 76  # iSER's and the BHS
SEND_INVALIDATE = (4, 6)
CONTROL_PDU, WSV, RSV = 0x10, 0x08, 0x04
COMMAND, RESPONSE = 0x01, 0x21
READ, WRITE = 0x40, 0x20  # in a command's flags
REPLACED = {0x25, 0x31}  # Data-In and R2T, whose work is RDMA's


def with_isert(guest):
    url = f"iser://127.0.0.1:{guest.lio_port}/{LIO}/0"
    with iscsi.open(url, recovery=NEVER) as device:
        for count in COUNTS:
            data = bytes([count & 0xFF]) * count * BLOCK
            device.write(8, data)
            assert device.read(8, count) == data


def with_ib_iser(guest, open_iscsi, port):
    with open_iscsi.session(IQN, port) as disks:
        (disk,) = disks[0]
        for count in COUNTS:
            copy = f"bs={count * BLOCK} count=1 2>/dev/null"
            guest.run(f"dd if=/dev/urandom of=/run/said {copy}")
            guest.run(f"dd if=/run/said of=/dev/{disk} oflag=direct {copy}")
            guest.run(f"dd if=/dev/{disk} of=/run/heard iflag=direct {copy}")
            guest.run("cmp /run/said /run/heard")


@pytest.fixture(scope="module")
def capture(iser_guest, iser_kernel_target, iser_open_iscsi, tmp_path_factory):
    """A capture of both roles; `ports` tells them apart."""
    iser_kernel_target.add(LIO)
    before = Capture(iser_guest.capture).fields("frame", "frame.number")
    port = free_port()
    with Served("--ram", "16M", "--iser", f"127.0.0.1:{port}"):
        with_isert(iser_guest)
        with_ib_iser(iser_guest, iser_open_iscsi, port)
    iser_guest.run("sync")
    path = tmp_path_factory.mktemp("capture") / "wire.pcap"
    shutil.copy(iser_guest.capture, path)
    found = Capture(path, since=len(before))
    found.ports = {"our initiator": ISER_PORT, "our target": port}
    return found


@pytest.fixture(scope="module", params=["our initiator", "our target"])
def said(request, capture):
    """What initiator and target said on the connection."""
    ((initiator, target),) = capture.conversations(capture.ports[request.param])
    return initiator, target


def sends(messages):
    return [message for message in messages if message.opcode in SENDS]


def number(data, start, length):
    return int.from_bytes(data[start : start + length], "big")


def test_iser_is_iwarp_to_wireshark_and_nothing_is_malformed(capture):
    wrong = "(iwarp_mpa or iwarp_ddp_rdmap) and (_ws.malformed or _ws.expert.severity == error)"
    assert capture.fields(wrong, "frame.number", "_ws.expert.message") == []
    for port in capture.ports.values():
        rows = capture.fields(f"iwarp_rdma and tcp.port == {port}", "iwarp_rdma.opcode")
        seen = {int(word, 0) for (words,) in rows for word in words.split(",")}
        # Write, Read Request, Read Response, Send, Send with Invalidate, and no Terminate.
        assert seen == {0, 1, 2, 3, 4}, port


def test_every_send_is_an_iser_header_and_one_pdu(said):
    for side in said:
        assert sends(side)
        for message in sends(side):
            found = message.payload
            assert found[0] & 0xF3 == CONTROL_PDU, found[:28].hex()
            assert found[1:4] == bytes(3)
            assert bool(found[0] & WSV) == (number(found, 4, 4) != 0)
            assert bool(found[0] & RSV) == (number(found, 16, 4) != 0)
            data = number(found, 33, 3)
            assert len(found) == HEADERS + 4 * found[32] + data + -data % 4


def test_only_an_initiators_commands_name_memory_and_only_what_they_move(said):
    initiator, target = said
    assert not [one for one in sends(target) if one.payload[0] & (WSV | RSV)]
    assert not [one for one in sends(target) if one.payload[28] & 0x3F in REPLACED]
    for message in sends(initiator):
        found = message.payload
        is_command = found[28] & 0x3F == COMMAND
        expected, immediate = number(found, 48, 4), number(found, 33, 3)
        is_read = is_command and found[29] & READ and expected > 0
        is_write = is_command and found[29] & WRITE and expected > immediate
        assert bool(found[0] & RSV) == bool(is_read), found[:HEADERS].hex()
        assert bool(found[0] & WSV) == bool(is_write), found[:HEADERS].hex()


def test_a_target_reads_and_writes_within_what_the_commands_named(said):
    initiator, target = said
    may_read, may_write = [], []
    for found in (one.payload for one in sends(initiator)):
        length = number(found, 48, 4)
        if found[0] & WSV:
            may_read.append(
                (number(found, 4, 4), number(found, 8, 8), length - number(found, 33, 3))
            )
        if found[0] & RSV:
            may_write.append((number(found, 16, 4), number(found, 20, 8), length))
    reads = [one.payload for one in target if one.opcode == READ_REQUEST]
    writes = [one for one in target if one.opcode == RDMA_WRITE and one.payload]
    assert reads
    assert writes
    for found in reads:
        assert within(may_read, number(found, 16, 4), number(found, 20, 8), number(found, 12, 4))
    for one in writes:
        assert within(may_write, one.stag, one.offset, len(one.payload))
    # What the commands let be read was read, to the byte: the base is behind the immediate data.
    assert sum(number(found, 12, 4) for found in reads) == sum(length for *_, length in may_read)


def within(named, stag, start, length):
    return any(
        stag == mine and base <= start and start + length <= base + size
        for mine, base, size in named
    )


def test_a_response_invalidates_the_tag_of_its_command(said):
    initiator, target = said
    asked = {}
    for message in sends(initiator):
        if message.payload[28] & 0x3F == COMMAND:
            asked.setdefault(number(message.payload, 44, 4), []).append(message.payload)
    ends = [one for one in sends(target) if one.opcode in SEND_INVALIDATE]
    assert ends
    for message in ends:
        assert message.payload[28] & 0x3F == RESPONSE
        named = {
            tag
            for found in asked[number(message.payload, 44, 4)]
            for tag in (number(found, 4, 4), number(found, 16, 4))
        }
        assert message.stag in named
