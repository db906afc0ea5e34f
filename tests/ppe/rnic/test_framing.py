"""MPA in full operation: FPDUs cut anywhere, markers, CRCs, how a stream begins and ends."""

import ctypes

import numpy as np
import pytest

from ppe.cycle.rnic.iwarp.core import CLOSING, ERROR, TERMINATE, VIOLATION, QpSpec
from shm.qp_spec import RTR_NONE, RTR_READ, RTR_SEND, RTR_WRITE
from shm.verbs_numbers import (
    SEND_SIGNALED,
    WC_SUCCESS,
    WC_WR_FLUSH_ERR,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
)
from tests.ppe.rnic import core_door as door
from tests.ppe.rnic.fpdus import (
    fpdu,
    immediate,
    read_request,
    read_response,
    send,
    split,
    terminate,
    with_markers,
    write,
)
from tests.ppe.rnic.joined import Pair, QueuePair, Rnic
from tests.ppe.rnic.victim import Victim

CHECKS = [True, False]
crcs = pytest.mark.parametrize("crc", CHECKS, ids=["crc", "no crc"])
marks = pytest.mark.parametrize("markers", [True, False], ids=["markers", "no markers"])


def prepared(crc, markers):
    """A victim, and a stream for it with one of every message that changes something."""
    victim = Victim(crc=crc, markers_rx=markers)
    text = bytes(range(97, 123))
    messages = [
        send(1, text, last=False),
        write(victim.lent.key, victim.lent.iova + 3, text[:13], last=False),
        send(1, text[:7], mo=26),
        write(victim.lent.key, victim.lent.iova + 16, text[:2]),
        read_request(1, 9, 10, 11, victim.readable.key, victim.readable.iova + 1),
        read_response(*victim.read(40), b"r" * 40),
        write(1, 2),
        immediate(2, 77),
    ]
    fpdus = [fpdu(each, crc=crc) for each in messages]
    return victim, with_markers(fpdus, crc=crc) if markers else b"".join(fpdus)


def heard(victim):
    """Everything that can be seen of what a victim took."""
    done = [
        (each["opcode"], each["status"], each["byte_len"], each["imm"])
        for each in victim.completions()
    ]
    memory = [region.bytes() for region in victim.regions.values()]
    return done, memory, victim.buffers.bytes(), split(victim.data_to_send())


# --- cut anywhere --------------------------------------------------------------------------------


@crcs
@marks
@pytest.mark.parametrize("direct", [True, False], ids=["placed", "staged"])
def test_a_stream_may_be_cut_at_every_byte(crc, markers, direct):
    victim, stream = prepared(crc, markers)
    assert victim.take(stream, direct=direct) == 0
    expected = heard(victim)
    assert len(expected[0]) == 3
    for cut in range(1, len(stream)):
        victim, stream = prepared(crc, markers)
        assert victim.take(stream[:cut], direct=direct) == 0
        assert victim.take(stream[cut:], direct=direct) == 0
        assert heard(victim)[:3] == expected[:3], cut


@crcs
@marks
def test_a_stream_may_come_byte_by_byte(crc, markers):
    victim, stream = prepared(crc, markers)
    victim.take(stream)
    expected = heard(victim)
    victim, stream = prepared(crc, markers)
    for at in range(len(stream)):
        assert victim.take(stream[at : at + 1]) == 0
    assert heard(victim)[:3] == expected[:3]


def test_bytes_in_front_of_their_place_are_not_asked_for():
    """What is wanted is payload of this FPDU only, never a header that follows it."""
    victim = Victim()
    data = fpdu(write(victim.lent.key, victim.lent.iova, bytes(100)))
    victim.take(data[:16], direct=False)
    assert int(victim.record["want_length"]) == 100
    assert int(victim.record["want_address"]) == victim.lent.address
    victim.take(data[16:50], direct=False)
    assert int(victim.record["want_length"]) == 66
    assert int(victim.record["want_address"]) == victim.lent.address + 34
    victim.take(data[50:], direct=False)
    assert int(victim.record["want_length"]) == 0


def test_an_end_between_fpdus_is_told_from_one_inside():
    victim = Victim(markers_rx=True)
    data = with_markers([fpdu(write(1, 2))])
    assert victim.ask(door.IS_BETWEEN)
    for at in range(len(data) - 1):
        victim.take(data[at : at + 1])
        assert not victim.ask(door.IS_BETWEEN)
    victim.take(data[-1:])
    assert victim.ask(door.IS_BETWEEN)


# --- CRC -----------------------------------------------------------------------------------------


@marks
def test_a_flipped_bit_anywhere_is_the_networks_fault(markers):
    """Every byte, header and marker included: a Terminate that says CRC, and no message."""
    _, stream = prepared(True, markers)
    for at in range(len(stream)):
        victim, stream = prepared(True, markers)
        spoilt = bytearray(stream)
        spoilt[at] ^= 1 << at % 8
        victim.take(spoilt)
        if victim.outcome == 0:  # A length that says more than there is: it is waited for.
            victim.take(bytes(1 << 17))
        assert victim.reason() == 0x2002, at


def test_a_spoilt_message_takes_no_effect():
    for message in (send(1, b"hello"), immediate(1, 5)):
        victim = Victim()
        data = bytearray(fpdu(message))
        data[-1] ^= 0x10
        victim.take(data)
        assert victim.completions() == []
    victim = Victim()
    data = bytearray(fpdu(send(1, opcode=4, ulp=victim.lent.key)))
    data[-1] ^= 1
    victim.take(data)
    assert victim.rnic.memory(door.INVALIDATE, victim.lent.key, 5) == 0


def test_without_crc_its_field_is_not_looked_at():
    victim = Victim(crc=False)
    data = bytearray(fpdu(send(1, b"hello"), crc=False))
    data[-4:] = b"\xff\xff\xff\xff"
    assert victim.take(data) == 0
    assert victim.completion()["byte_len"] == 5


def test_data_that_changes_while_it_is_sent_is_found_by_the_peer():
    pair = Pair()
    source, target = pair.left_rnic.region(1000), pair.right_rnic.region(1000)
    pair.left.post(WR_RDMA_WRITE, [source.piece()], remote_addr=target.iova, rkey=target.key)
    assert pair.left.ask(door.NEXT_SPAN) == 16  # The CRC is computed now.
    source.data[500] = 1
    pair.carry()
    assert pair.right.outcome == VIOLATION | 0x2002


# --- markers -------------------------------------------------------------------------------------


@crcs
@pytest.mark.parametrize("size", [*range(440, 520, 4), 1000, 5000])
def test_markers_fall_anywhere_in_an_fpdu(crc, size):
    """Before it, in its header, its payload, its padding, before its CRC and behind it."""
    victim = Victim(crc=crc, markers_rx=True)
    target = victim.rnic.region(size + 8, fill=bytes(size + 8))
    payload = np.random.default_rng(size).bytes(size)
    sizes = [0, size % 97, 1, size, 3]
    messages = [write(target.key, target.iova, payload[:each]) for each in sizes]
    messages.append(write(target.key, target.iova, payload))
    stream = with_markers([fpdu(each, crc=crc) for each in messages], crc=crc)
    assert victim.take(stream) == 0
    assert target.bytes() == payload + bytes(8)
    assert int(victim.record["rx_fpdus"]) == len(messages)


@crcs
def test_markers_are_sent_as_they_are_read(crc):
    """Ours against an independent writer of markers, over FPDUs of many sizes."""
    rnic = Rnic()
    marked = QueuePair(rnic, QpSpec(markers_tx=True, crc=crc, sq_depth=256))
    plain = QueuePair(rnic, QpSpec(markers_tx=False, crc=crc, sq_depth=256))
    region = rnic.region(5000, fill=np.random.default_rng(5).bytes(5000))
    for at, size in enumerate([0, 1, 100, 460, 488, 492, 500, 512, 1000, 5000, *range(440, 520)]):
        for each in (marked, plain):
            each.post(WR_RDMA_WRITE, [region.piece(0, size)], remote_addr=at, rkey=7)
    fpdus, stream = [], plain.data_to_send()
    while stream:
        length = (2 + int.from_bytes(stream[:2], "big") + 3 & ~3) + 4
        fpdus.append(stream[:length])
        stream = stream[length:]
    assert marked.data_to_send() == with_markers(fpdus, crc=crc)


@crcs
@pytest.mark.parametrize("pointer", [4, -4, 512])
def test_a_marker_that_points_elsewhere_ends_the_stream(crc, pointer):
    victim = Victim(crc=crc, markers_rx=True)
    messages = [fpdu(write(victim.lent.key, victim.lent.iova, bytes(200)), crc=crc)] * 4
    victim.take(with_markers(messages, crc=crc, pointer=pointer))
    assert victim.outcome == VIOLATION | 0x2003


def test_a_stream_without_the_markers_that_were_agreed_ends():
    victim = Victim(markers_rx=True, crc=False)
    victim.take(fpdu(write(victim.lent.key, victim.lent.iova, bytes(200)), crc=False))
    assert victim.outcome == VIOLATION | 0x2003


def test_the_longest_fpdu_with_markers_passes():
    pair = Pair(markers=True, mulpdu=64512)
    source = pair.left_rnic.region(70000, fill=np.random.default_rng(2).bytes(70000))
    target = pair.right_rnic.region(70000)
    pair.left.post(WR_RDMA_WRITE, [source.piece()], remote_addr=target.iova, rkey=target.key)
    assert pair.carry() == 0
    assert target.bytes() == source.bytes()


# --- what was not sent is offered again ----------------------------------------------------------


@crcs
@marks
def test_what_the_transport_did_not_take_is_offered_again(crc, markers):
    streams = []
    for takes in (1 << 30, 1, 10, 777):
        rnic = Rnic()
        left = QueuePair(rnic, QpSpec(crc=crc, markers_tx=markers, mulpdu=1000))
        region = rnic.region(3000, iova=0, fill=np.random.default_rng(1).bytes(3000))
        for size in (3000, 5, 0, 1200):
            left.post(WR_RDMA_WRITE, [region.piece(0, size)], remote_addr=0, rkey=1)
        streams.append(sent_in_part(left, takes))
        assert len(left.completions()) == 4
    assert all(each == streams[0] for each in streams)


def sent_in_part(left, takes):
    """Offer spans to a transport that takes few bytes of them, again and again."""
    stream = b""
    while True:
        offered = b""
        while (length := left.ask(door.NEXT_SPAN)) and len(offered) < 3000:
            place = int(left.record["span_address"])
            offered += bytes((ctypes.c_char * length).from_address(place))
            left.ask(door.TX_TAKE, length)
        if not offered:
            return stream
        taken = min(takes, len(offered))
        stream += offered[:taken]
        left.ask(door.SENT, taken)
        if taken < len(offered):
            left.ask(door.UNTAKE)


def test_work_is_over_when_its_last_byte_is_taken_and_not_before():
    rnic = Rnic()
    left = QueuePair(rnic, QpSpec())
    region = rnic.region(1000)
    left.post(WR_SEND, [region.piece()])
    total = len(QueuePair(rnic, QpSpec()).data_to_send()) + 20 + 1000 + 4
    while length := left.ask(door.NEXT_SPAN):
        left.ask(door.TX_TAKE, length)
    left.ask(door.SENT, total - 1)
    assert left.completions() == []
    assert region.uses == 1
    left.ask(door.SENT, 1)
    assert left.completion()["status"] == WC_SUCCESS
    assert region.uses == 0


# --- the beginning -------------------------------------------------------------------------------


def test_the_passive_side_waits_for_the_first_fpdu():
    pair = Pair()
    pair.right.post(WR_RDMA_WRITE)
    assert pair.right.data_to_send() == b""
    pair.left.post(WR_RDMA_WRITE)
    data = pair.left.data_to_send()
    pair.right.take(data[:-1])
    assert pair.right.data_to_send() == b""
    pair.right.take(data[-1:])
    assert len(pair.right.data_to_send()) == 20


def test_not_even_a_terminate_comes_before_the_first_fpdu():
    pair = Pair()
    pair.right.ask(door.TERMINATE, 0, 0, 0)
    assert pair.right.state == TERMINATE
    assert pair.right.data_to_send() == b""
    assert pair.right.ask(door.HAS_SENT_ALL)


@pytest.mark.parametrize("rtr", [RTR_WRITE, RTR_READ, RTR_SEND])
def test_an_agreed_first_message_lets_both_sides_send(rtr):
    pair = Pair(rtr=rtr)
    buffer = pair.left_rnic.region(8)
    pair.left.receive(buffer.piece())
    text = pair.right_rnic.region(8, fill=b"from us!")
    pair.right.post(WR_SEND, [text.piece()])
    assert pair.carry() == 0
    assert pair.left.completion()["byte_len"] == 8
    assert pair.right.completion()["status"] == WC_SUCCESS  # and no receive was used up
    pair.right.receive()
    pair.left.post(WR_SEND)
    assert pair.carry() == 0
    assert pair.left.completion()["status"] == WC_SUCCESS
    assert len(pair.right.completions()) == 1


@pytest.mark.parametrize("rtr", [RTR_WRITE, RTR_READ, RTR_SEND])
def test_any_other_first_message_ends_the_stream(rtr):
    first = {
        RTR_NONE: send(1, b"x"),
        RTR_WRITE: write(1, 0),
        RTR_READ: read_request(1, 1, 0, 0, 1, 0),
        RTR_SEND: send(1),
    }
    for kind, message in first.items():
        victim = Victim(active=False, rtr=rtr)
        assert victim.hear(message) == (0 if kind == rtr else VIOLATION | 0x2007)


def test_a_read_after_an_rtr_that_is_one_is_answered():
    pair = Pair(rtr=RTR_READ, ord=1, ird=1)
    sink, source = pair.left_rnic.region(8), pair.right_rnic.region(8, fill=b"12345678")
    pair.left.post(WR_RDMA_READ, [sink.piece()], remote_addr=source.iova, rkey=source.key)
    assert pair.carry() == 0
    assert sink.bytes() == b"12345678"
    assert pair.left.completion()["status"] == WC_SUCCESS


# --- the end -------------------------------------------------------------------------------------


def test_a_closing_stream_sends_what_was_posted_and_takes_no_more():
    pair = Pair()
    source, target = pair.left_rnic.region(100_000), pair.right_rnic.region(100_000)
    pair.left.post(WR_RDMA_WRITE, [source.piece()], remote_addr=target.iova, rkey=target.key)
    pair.left.ask(door.CLOSE)
    assert pair.left.state == CLOSING
    assert pair.left.try_post(WR_SEND) < 0
    assert not pair.left.ask(door.HAS_SENT_ALL)
    assert pair.carry() == 0
    assert pair.left.ask(door.HAS_SENT_ALL)
    assert pair.left.completion()["status"] == WC_SUCCESS


def test_the_end_flushes_everything_in_order():
    pair = Pair()
    region = pair.left_rnic.region(64)
    receives = [pair.left.receive(region.piece()) for _ in range(3)]
    sends = [pair.left.post(WR_SEND, [region.piece()], flags=flags) for flags in (0, 2, 0)]
    found = pair.left.end()
    assert [each["token"] for each in found] == receives + sends
    assert {each["status"] for each in found} == {WC_WR_FLUSH_ERR}
    assert {each["flags"] for each in found} == {0}  # also the unsignalled ones are shown
    assert region.uses == 0
    assert pair.left.state == ERROR
    assert pair.left.end() == []


def test_a_status_is_given_to_the_oldest_work_that_is_not_over():
    pair = Pair()
    pair.left.post(WR_RDMA_WRITE)
    pair.carry()
    pair.left.post(WR_RDMA_WRITE)
    pair.left.post(WR_RDMA_WRITE)
    assert [each["status"] for each in pair.left.end(12)] == [WC_SUCCESS, 12, WC_WR_FLUSH_ERR]


def test_a_receive_posted_after_the_end_is_flushed_too():
    pair = Pair()
    pair.left.end()
    token = pair.left.receive()
    assert [each["token"] for each in pair.left.completions()] == [token]


def test_a_terminate_goes_out_behind_what_was_begun():
    rnic = Rnic()
    left = QueuePair(rnic, QpSpec())
    region = rnic.region(1000)
    left.post(WR_RDMA_WRITE, [region.piece()], remote_addr=0, rkey=1)
    left.post(WR_RDMA_WRITE, [region.piece()], remote_addr=0, rkey=1)
    first = left.data_to_send(100)
    left.ask(door.TERMINATE, 0, 0, 0)
    assert left.state == TERMINATE
    assert not left.ask(door.HAS_SENT_ALL)
    said = split(first + left.data_to_send())
    assert [each[1] & 15 for each in said] == [0, 7]
    assert left.ask(door.HAS_SENT_ALL)
    assert region.uses == 2  # The transport may still read it.
    statuses = [each["status"] for each in left.end()]
    assert statuses == [WC_SUCCESS, WC_WR_FLUSH_ERR]
    assert region.uses == 0


def test_both_sides_may_terminate_at_once():
    pair = Pair().open()
    for each in (pair.left, pair.right):
        each.ask(door.TERMINATE, 0, 0, 0)
    to_right, to_left = pair.left.data_to_send(), pair.right.data_to_send()
    assert len(to_right) == len(to_left) > 0
    pair.right.take(to_right)
    pair.left.take(to_left)
    assert pair.left.data_to_send() == b""
    assert (pair.left.state, pair.right.state) == (TERMINATE, TERMINATE)


def test_a_peers_terminate_reaches_the_other_side_as_sent():
    pair = Pair().open()
    pair.left.post(WR_RDMA_WRITE, [pair.left_rnic.region(8).piece()], remote_addr=0, rkey=9)
    pair.left.post(WR_SEND, flags=SEND_SIGNALED)
    pair.carry()
    assert pair.right.outcome == VIOLATION | 0x1100
    assert pair.left.state == ERROR
    assert int(pair.left.record["terminated"]) & 0xFFFF == 0x1100


def test_an_unfinished_terminate_is_waited_for():
    victim = Victim()
    data = fpdu(terminate(0, 2, 6))
    for at in range(len(data) - 1):
        assert victim.take(data[at : at + 1]) == 0
    assert victim.take(data[-1:]) != 0
