"""What the core puts on the wire, byte by byte, written out by hand from the RFCs."""

import pytest

from ppe.cycle.rnic.iwarp.core import QpSpec
from shm.qp_spec import RTR_READ, RTR_SEND, RTR_WRITE
from shm.verbs_numbers import (
    SEND_SIGNALED,
    SEND_SOLICITED,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_ATOMIC_SWAP,
    WR_IMMEDIATE,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_INV,
)
from tests.ppe.rnic import core_door as door
from tests.ppe.rnic.fpdus import crc32c
from tests.ppe.rnic.joined import Pair, QueuePair, Rnic

STAG, TO = 0x11223344, 0x0102030405060708
AIM = {"remote_addr": TO, "rkey": STAG}


def fpdu(text):
    """Hex digits of an FPDU up to its CRC, in any grouping."""
    body = bytes.fromhex(text)
    assert len(body) % 4 == 0, "padding belongs to it"
    return body + crc32c(body)


def test_the_crc_of_a_known_text_is_the_rfcs():
    # RFC 3720 B.4: 32 bytes of zeros.
    assert crc32c(bytes(32)).hex() == "aa36918a"


SENDS = {
    (WR_SEND, 0): "0015 41 43 00000000 00000000 00000001 00000000 616263 00",
    (WR_SEND, SEND_SOLICITED): "0015 41 45 00000000 00000000 00000001 00000000 616263 00",
    (WR_SEND_WITH_INV, 0): "0015 41 44 aabbccdd 00000000 00000001 00000000 616263 00",
    (WR_SEND_WITH_INV, SEND_SOLICITED): (
        "0015 41 46 aabbccdd 00000000 00000001 00000000 616263 00"
    ),
}


def sent(opcode, pieces=(), *, flags=0, before=0, options=None, **values):
    """What an active side sends for one work request."""
    pair = Pair(crc=True, **(options or {}))
    for _ in range(before):
        pair.left.post(WR_RDMA_WRITE)
        pair.left.data_to_send()
    region = pair.left_rnic.region(64, fill=b"abcdefgh" * 8)
    made = [region.piece(0, length) for length in pieces]
    pair.left.post(opcode, made, flags=SEND_SIGNALED | flags, **values)
    return pair.left.data_to_send(), region


@pytest.mark.parametrize(("what", "expected"), SENDS.items())
def test_sends(what, expected):
    opcode, flags = what
    data, _ = sent(opcode, [3], flags=flags, invalidate_rkey=0xAABBCCDD)
    assert data == fpdu(expected)


def test_an_empty_send():
    data, _ = sent(WR_SEND)
    assert data == fpdu("0012 41 43 00000000 00000000 00000001 00000000")


def test_a_write():
    data, _ = sent(WR_RDMA_WRITE, [2, 3], **AIM)
    assert data == fpdu("0013 c1 40 11223344 0102030405060708 6162616263 000000")


def test_an_empty_write():
    data, _ = sent(WR_RDMA_WRITE, **AIM)
    assert data == fpdu("000e c1 40 11223344 0102030405060708")


def test_a_read_request():
    data, region = sent(WR_RDMA_READ, [5], **AIM)
    sink = f"{region.key:08x} {region.iova:016x} 00000005"
    assert data == fpdu(
        f"002e 41 41 00000000 00000001 00000001 00000000 {sink} 11223344 0102030405060708"
    )


ATOMICS = {
    WR_ATOMIC_FETCH_AND_ADD: (
        "00000000",
        "000000000000000a 0000000000000000 0000000000000000 0000000000000000",
    ),
    WR_ATOMIC_SWAP: (
        "00000001",
        "000000000000000b ffffffffffffffff 0000000000000000 0000000000000000",
    ),
    WR_ATOMIC_CMP_AND_SWP: (
        "00000002",
        "000000000000000b ffffffffffffffff 000000000000000a ffffffffffffffff",
    ),
}


@pytest.mark.parametrize(("opcode", "expected"), ATOMICS.items())
def test_an_atomic_request(opcode, expected):
    operation, words = expected
    data, _ = sent(opcode, [8], before=1, compare_add=10, swap=11, **AIM)
    assert data == fpdu(
        "0046 41 4a 00000000 00000001 00000001 00000000"
        f" {operation} 00000001 11223344 0102030405060708 {words}"
    )


def test_immediate_data():
    data, _ = sent(WR_IMMEDIATE, imm=TO)
    assert data == fpdu("001a 41 48 00000000 00000000 00000001 00000000 0102030405060708")
    data, _ = sent(WR_IMMEDIATE, imm=TO, flags=SEND_SOLICITED)
    assert data == fpdu("001a 41 49 00000000 00000000 00000001 00000000 0102030405060708")


def test_a_write_with_immediate_data_is_two_messages():
    data, _ = sent(WR_RDMA_WRITE_WITH_IMM, [1], imm=0xA1B2C3D4, **AIM)
    write = fpdu("000f c1 40 11223344 0102030405060708 61 000000")
    told = fpdu("001a 41 48 00000000 00000000 00000001 00000000 a1b2c3d400000000")
    assert data == write + told


def test_responses():
    pair = Pair()
    source = pair.right_rnic.region(16, fill=b"12345678\x08\x07\x06\x05\x04\x03\x02\x01")
    sink = pair.left_rnic.region(16, iova=TO)
    pair.left.post(WR_RDMA_READ, [sink.piece(0, 6)], remote_addr=source.iova, rkey=source.key)
    pair.left.post(WR_ATOMIC_SWAP, [sink.piece(8, 8)], remote_addr=source.iova + 8, rkey=source.key)
    pair.right.take(pair.left.data_to_send())
    response = fpdu(f"0014 c1 42 {sink.key:08x} 0102030405060708 313233343536 0000")
    atomic = fpdu("001e 41 4b 00000000 00000003 00000001 00000000 00000001 0102030405060708")
    assert pair.right.data_to_send() == response + atomic


def test_segments_of_a_send_share_an_msn_and_count_their_offset():
    data, _ = sent(WR_SEND, [64, 64, 64], options={"mulpdu": 128})
    lengths, heads, at = [], [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        lengths.append(length)
        heads.append(data[at + 2 : at + 20].hex())
        at += (2 + length + 3 & ~3) + 4
    assert lengths == [18 + 104, 18 + 88]
    assert heads == [
        "0143000000000000000000000001" + "00000000",
        "4143000000000000000000000001" + "00000068",
    ]


def test_segments_of_a_write_follow_each_other():
    data, _ = sent(WR_RDMA_WRITE, [64, 64, 64], options={"mulpdu": 128}, **AIM)
    assert data[2:16].hex() == "8140" + "11223344" + "0102030405060708"
    second = data[2 + 14 + 112 + 4 :][:16]
    assert second.hex() == "005e" + "c140" + "11223344" + "0102030405060778"


@pytest.mark.parametrize(
    ("rtr", "expected"),
    [
        (RTR_WRITE, "000e c1 40 00000001 0000000000000000"),
        (
            RTR_READ,
            "002e 41 41 00000000 00000001 00000001 00000000"
            " 00000001 0000000000000000 00000000 00000001 0000000000000000",
        ),
        (RTR_SEND, "0012 41 43 00000000 00000000 00000001 00000000"),
    ],
)
def test_the_active_sides_first_message_when_peers_are_equal(rtr, expected):
    pair = Pair(rtr=rtr)
    assert pair.left.data_to_send() == fpdu(expected)


@pytest.mark.parametrize(
    ("code", "expected"),
    [((0, 0, 0), "00000000"), ((2, 0, 6), "20060000"), ((1, 2, 5), "12050000")],
)
def test_a_terminate_without_a_header(code, expected):
    pair = Pair()
    pair.left.ask(door.TERMINATE, *code)
    assert pair.left.data_to_send() == fpdu(
        f"0016 41 47 00000000 00000002 00000001 00000000 {expected}"
    )


def test_without_crc_its_field_is_zero():
    pair = Pair(crc=False)
    pair.left.post(WR_RDMA_WRITE, **AIM)
    assert pair.left.data_to_send().hex() == "000ec140112233440102030405060708" + "00000000"


def test_the_first_marker_precedes_the_first_fpdu():
    rnic = Rnic()
    queue_pair = QueuePair(rnic, QpSpec(markers_tx=True))
    queue_pair.post(WR_RDMA_WRITE, **AIM)
    assert queue_pair.data_to_send() == fpdu("0000 0000 000e c140 11223344 0102030405060708")


def test_a_marker_points_back_to_its_fpdu():
    rnic = Rnic()
    queue_pair = QueuePair(rnic, QpSpec(markers_tx=True, inline_size=512))
    region = rnic.region(600, fill=bytes(range(200)) * 3)
    queue_pair.post(WR_RDMA_WRITE, **AIM)  # 4 of marker, 20
    queue_pair.post(WR_RDMA_WRITE, [region.piece()], **AIM)
    data = queue_pair.data_to_send()
    # The second FPDU begins at 24; the marker is 512 bytes into the stream, 488 into the FPDU.
    assert data[512:516].hex() == "000001e8"
    second = data[24:]
    body = second[: 16 + 600 + 4]
    assert body == bytes.fromhex("0266c140112233440102030405060708") + (
        region.bytes(0, 472) + bytes.fromhex("000001e8") + region.bytes(472)
    )
    assert second[620:] == crc32c(body)
