"""What each verb does over a stream: two software RNICs joined in memory."""

import errno
import itertools

import numpy as np
import pytest

from ppe.cycle.rnic.iwarp.core import immediate_32
from ppe.cycle.rnic.records import SGES_MAX, rq_at
from shm.jit import python_version
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    SEND_FENCE,
    SEND_INLINE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WC_BIND_MW,
    WC_COMP_SWAP,
    WC_FETCH_ADD,
    WC_IMMEDIATE,
    WC_LOCAL_INV,
    WC_RDMA_READ,
    WC_RDMA_WRITE,
    WC_RECV,
    WC_RECV_RDMA_WITH_IMM,
    WC_SEND,
    WC_SOLICITED,
    WC_SWAP,
    WC_UNSIGNALLED,
    WC_WITH_IMM,
    WC_WITH_INV,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_ATOMIC_SWAP,
    WR_BIND_MW,
    WR_IMMEDIATE,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_IMM,
    WR_SEND_WITH_INV,
)
from tests.ppe.rnic import core_door as door
from tests.ppe.rnic.joined import (
    CLIENT,
    DEPTH,
    PD,
    TOP,
    Pair,
    QueuePair,
    ReceiveQueue,
    Rnic,
    signed,
)

SIZES = [0, 1, 3, 8, 128, 129, 1000, 32768, 32769, 100_000]
STREAMS = [{}, {"crc": False}, {"markers": True}, {"mulpdu": 128, "markers": True}, {"mulpdu": 777}]


def stream_name(options):
    return "-".join(f"{name}={value}" for name, value in options.items()) or "default"


streams = pytest.mark.parametrize("options", STREAMS, ids=stream_name)


@pytest.fixture
def pair():
    return Pair().open()


def noise(size, seed=1):
    return np.random.default_rng(seed).bytes(size)


# --- moving data ---------------------------------------------------------------------------------


@streams
@pytest.mark.parametrize("size", SIZES)
def test_a_send_fills_the_buffer_that_was_posted(options, size):
    pair = Pair(**options)
    source = pair.left_rnic.region(size + 1, fill=noise(size + 1))
    target = pair.right_rnic.region(size + 64)
    pair.right.receive(target.piece())
    pair.left.post(WR_SEND, [source.piece(0, size)])
    assert pair.carry() == 0
    received = pair.right.completion()
    assert (received["opcode"], received["byte_len"]) == (WC_RECV, size)
    assert pair.left.completion()["opcode"] == WC_SEND
    assert target.bytes() == source.bytes(0, size) + bytes(64)


@streams
@pytest.mark.parametrize("size", SIZES)
def test_a_write_lands_where_it_was_aimed_and_nobody_is_told(options, size):
    pair = Pair(**options)
    source = pair.left_rnic.region(size + 1, fill=noise(size + 1))
    target = pair.right_rnic.region(size + 64, iova=TOP - size - 64)
    aim = {"remote_addr": target.iova + 32, "rkey": target.key}
    pair.left.post(WR_RDMA_WRITE, [source.piece(0, size)], **aim)
    assert pair.carry() == 0
    assert pair.left.completion()["opcode"] == WC_RDMA_WRITE
    assert pair.right.completions() == []
    assert target.bytes() == bytes(32) + source.bytes(0, size) + bytes(32)


@streams
@pytest.mark.parametrize("size", SIZES)
def test_a_read_brings_what_is_there(options, size):
    pair = Pair(**options)
    source = pair.right_rnic.region(size + 1, ACCESS_REMOTE_READ, fill=noise(size + 1))
    sink = pair.left_rnic.region(size + 64, ACCESS_LOCAL_WRITE)
    pair.left.post(WR_RDMA_READ, [sink.piece(32, size)], remote_addr=source.iova, rkey=source.key)
    assert pair.carry() == 0
    found = pair.left.completion()
    assert (found["opcode"], found["byte_len"]) == (WC_RDMA_READ, size)
    assert sink.bytes() == bytes(32) + source.bytes(0, size) + bytes(32)
    assert (source.uses, sink.uses) == (0, 0)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 509, 4096])
def test_pieces_are_gathered_and_scattered(direct, chunk):
    pair = Pair(mulpdu=700, markers=True)
    source = pair.left_rnic.region(3000, fill=noise(3000))
    target = pair.right_rnic.region(3000)
    cuts = [0, 1, 1, 300, 301, 1000, 1000, 2000, 2001, 2500, 3000]
    pieces = [source.piece(a, b - a) for a, b in itertools.pairwise(cuts)]
    holes = [target.piece(a, b - a) for a, b in ((5, 7), (7, 7), (100, 1500), (1600, 3000))]
    pair.right.receive(*holes)
    pair.left.post(WR_SEND, pieces[:9])  # 2500 bytes of nine pieces
    assert pair.carry(direct=direct, chunk=chunk) == 0
    assert pair.right.completion()["byte_len"] == 2500
    found = target.bytes(5, 2) + target.bytes(100, 1400) + target.bytes(1600, 1098)
    assert found == source.bytes(0, 2500)
    assert target.bytes(7, 93) == bytes(93)
    assert target.bytes(2698) == bytes(302)


def test_payload_goes_straight_to_its_place(pair):
    source, target = pair.left_rnic.region(65536, fill=noise(65536)), pair.right_rnic.region(65536)
    pair.left.post(WR_RDMA_WRITE, [source.piece()], remote_addr=target.iova, rkey=target.key)
    pair.carry()
    assert pair.right.placed >= 65536 - 8  # A header is short, and what follows it came with it.
    assert target.bytes() == source.bytes()


def test_payload_is_sent_from_where_it_lies(pair):
    source = pair.left_rnic.region(1000)
    pair.left.post(WR_SEND, [source.piece()])
    spans = []
    while length := pair.left.ask(door.NEXT_SPAN):
        spans.append((int(pair.left.record["span_address"]), length))
        pair.left.ask(door.TX_TAKE, length)
    assert (source.address, 1000) in spans
    assert len(spans) == 3


def test_a_small_message_is_one_span(pair):
    source = pair.left_rnic.region(128)
    pair.left.post(WR_SEND, [source.piece()])
    assert pair.left.ask(door.NEXT_SPAN) == 2 + 18 + 128 + 4


def test_inline_data_is_copied_when_it_is_posted(pair):
    target = pair.right_rnic.region(16)
    pair.right.receive(target.piece())
    text = bytearray(b"before")
    pair.left.post(WR_SEND, flags=SEND_INLINE | SEND_SIGNALED, inline=text)
    text[:] = b"after!"
    pair.carry()
    assert target.bytes(0, 6) == b"before"


# --- Sends that say more -------------------------------------------------------------------------


@pytest.mark.parametrize("solicited", [0, SEND_SOLICITED])
@pytest.mark.parametrize("opcode", [WR_SEND, WR_SEND_WITH_INV])
def test_a_send_asks_for_an_event_and_ends_an_stag(pair, opcode, solicited):
    lent = pair.right_rnic.region(64, ACCESS_REMOTE_READ)
    pair.right.receive()
    pair.left.post(opcode, flags=SEND_SIGNALED | solicited, invalidate_rkey=lent.key)
    assert pair.carry() == 0
    found = pair.right.completion()
    assert bool(found["flags"] & WC_SOLICITED) == bool(solicited)
    invalidated = opcode == WR_SEND_WITH_INV
    assert bool(found["flags"] & WC_WITH_INV) == invalidated
    assert found["invalidated_rkey"] == (lent.key if invalidated else 0)
    refused = pair.right_rnic.memory(door.INVALIDATE, lent.key, PD)
    assert refused == (-errno.EINVAL if invalidated else 0)


@pytest.mark.parametrize("value", [0, 1, 0x80000000, 0xFFFFFFFF, 0x12345678])
def test_32_bits_of_immediate_data_follow_a_write(pair, value):
    source, target = pair.left_rnic.region(500, fill=noise(500)), pair.right_rnic.region(500)
    pair.right.receive()
    aim = {"remote_addr": target.iova, "rkey": target.key}
    pair.left.post(WR_RDMA_WRITE_WITH_IMM, [source.piece()], imm=value, **aim)
    assert pair.carry() == 0
    assert pair.left.completion()["opcode"] == WC_RDMA_WRITE
    found = pair.right.completion()
    assert found["opcode"] == WC_RECV_RDMA_WITH_IMM
    assert found["flags"] == WC_WITH_IMM
    assert python_version(immediate_32)(found["imm"]) == value
    assert target.bytes() == source.bytes()


@pytest.mark.parametrize("value", [0, 1, TOP - 1, 0x0123456789ABCDEF])
@pytest.mark.parametrize("solicited", [0, SEND_SOLICITED])
def test_eight_bytes_of_immediate_data_travel_alone(pair, value, solicited):
    target = pair.right_rnic.region(8)
    pair.right.receive(target.piece())
    pair.left.post(WR_IMMEDIATE, imm=value, flags=SEND_SIGNALED | solicited)
    assert pair.carry() == 0
    assert pair.left.completion()["opcode"] == WC_IMMEDIATE
    found = pair.right.completion()
    assert found["imm"] == signed(value)
    assert bool(found["flags"] & WC_SOLICITED) == bool(solicited)
    assert target.bytes() == bytes(8)


# --- atomics -------------------------------------------------------------------------------------


def atomic(pair, opcode, start, **values):
    """What an atomic returned, and what it left."""
    word, result = pair.right_rnic.region(16), pair.left_rnic.region(8)
    word.data[8:] = np.frombuffer((start % TOP).to_bytes(8, "little"), np.uint8)
    aim = {"remote_addr": word.iova + 8, "rkey": word.key}
    pair.left.post(opcode, [result.piece()], **aim, **values)
    assert pair.carry() == 0
    found = pair.left.completion()
    assert found["byte_len"] == 8
    names = {WC_FETCH_ADD, WC_COMP_SWAP, WC_SWAP}
    assert found["opcode"] in names
    assert word.bytes(0, 8) == bytes(8)
    return int.from_bytes(result.bytes(), "little"), int.from_bytes(word.bytes(8), "little")


@pytest.mark.parametrize(
    ("start", "add"), [(0, 0), (5, 7), (TOP - 1, 1), (1 << 63, 1 << 63), (3, TOP - 4)]
)
def test_fetch_and_add(pair, start, add):
    found = atomic(pair, WR_ATOMIC_FETCH_AND_ADD, start, compare_add=add)
    assert found == (start, (start + add) % TOP)


@pytest.mark.parametrize(
    ("mask", "start", "add", "left"),
    [
        (0x80, 0xFF, 0x01, 0x00),  # a carry stops at the top of its field
        (0x80, 0x17F, 0x01, 0x180),
        (1 << 63 | 1 << 31, 0xFFFFFFFF, 1, 0),
        (TOP - 1, 0b0110, 0b1100, 0b1010),  # fields of one bit: a sum without carries
    ],
)
def test_fetch_and_add_in_fields(pair, mask, start, add, left):
    values = {"compare_add": add, "compare_add_mask": mask, "masked": 1}
    assert atomic(pair, WR_ATOMIC_FETCH_AND_ADD, start, **values) == (start, left)


@pytest.mark.parametrize(("compare", "left"), [(5, 9), (4, 5)])
def test_compare_and_swap(pair, compare, left):
    found = atomic(pair, WR_ATOMIC_CMP_AND_SWP, 5, compare_add=compare, swap=9)
    assert found == (5, left)


@pytest.mark.parametrize(("compare", "left"), [(0xAB05, 0x12F9), (0xAB04, 0x1205)])
def test_compare_and_swap_under_masks(pair, compare, left):
    values = {"compare_add_mask": 0xFF, "swap_mask": 0xFC, "masked": 1}
    found = atomic(pair, WR_ATOMIC_CMP_AND_SWP, 0x1205, compare_add=compare, swap=0xFFF8, **values)
    assert found == (0x1205, left)


def test_swap(pair):
    assert atomic(pair, WR_ATOMIC_SWAP, TOP - 2, swap=9) == (TOP - 2, 9)
    values = {"swap": 0xAAAA, "swap_mask": 0xFF00, "masked": 1}
    assert atomic(pair, WR_ATOMIC_SWAP, 0x1234, **values) == (0x1234, 0xAA34)


# --- local work ----------------------------------------------------------------------------------


def test_an_stag_is_invalidated_in_its_turn(pair):
    lent = pair.left_rnic.region(64)
    target = pair.right_rnic.region(64)
    aim = {"remote_addr": target.iova, "rkey": target.key}
    pair.left.post(WR_RDMA_READ, [lent.piece()], **aim)
    pair.left.post(WR_LOCAL_INV, invalidate_rkey=lent.key, flags=SEND_FENCE | SEND_SIGNALED)
    assert pair.carry() == 0
    opcodes = [each["opcode"] for each in pair.left.completions()]
    assert opcodes == [WC_RDMA_READ, WC_LOCAL_INV]
    assert pair.left.try_post(WR_SEND, [lent.piece()]) == -errno.EINVAL


def test_a_window_lends_part_of_a_region_to_one_stream(pair):
    region = pair.right_rnic.region(100, fill=noise(100))
    window = pair.right_rnic.memory(door.ALLOCATE_WINDOW, PD, CLIENT)
    asked = {"bind_window": window, "bind_lkey": region.key}
    asked |= {"bind_addr": region.iova + 10, "bind_length": 20, "bind_access": ACCESS_REMOTE_READ}
    pair.right.post(WR_BIND_MW, **asked)
    assert pair.carry() == 0
    bound = pair.right.completion()
    assert bound["opcode"] == WC_BIND_MW
    assert bound["imm"] != window
    sink = pair.left_rnic.region(20)
    aim = {"remote_addr": region.iova + 10, "rkey": bound["imm"]}
    pair.left.post(WR_RDMA_READ, [sink.piece()], **aim)
    assert pair.carry() == 0
    assert pair.left.completion()["byte_len"] == 20
    assert sink.bytes() == region.bytes(10, 20)
    assert pair.right_rnic.memory(door.DEREGISTER, region.key, CLIENT) == -errno.EBUSY
    assert pair.right_rnic.memory(door.INVALIDATE, bound["imm"], PD) == 0
    assert pair.right_rnic.memory(door.DEREGISTER, region.key, CLIENT) == 0


# --- order ---------------------------------------------------------------------------------------


def test_completions_come_in_the_order_of_the_queue(pair):
    source, target = pair.left_rnic.region(64), pair.right_rnic.region(64)
    aim = {"remote_addr": target.iova, "rkey": target.key}
    pair.right.receive(target.piece())
    tokens = [
        pair.left.post(WR_RDMA_READ, [source.piece()], **aim),
        pair.left.post(WR_SEND, [source.piece()]),
        pair.left.post(WR_ATOMIC_FETCH_AND_ADD, [source.piece(0, 8)], **aim),
        pair.left.post(WR_RDMA_WRITE, [source.piece()], **aim),
    ]
    to_right = pair.left.data_to_send()
    assert pair.left.completions() == []  # The Read is first, and is not answered yet.
    pair.right.take(to_right)
    pair.carry()
    assert [each["token"] for each in pair.left.completions()] == tokens


def test_a_fence_waits_for_reads_and_nothing_else_does(pair):
    source, target = pair.left_rnic.region(1000), pair.right_rnic.region(1000)
    aim = {"remote_addr": target.iova, "rkey": target.key}
    pair.left.post(WR_RDMA_READ, [source.piece()], **aim)
    pair.left.post(WR_RDMA_WRITE, [source.piece(0, 9)], **aim)
    pair.left.post(WR_RDMA_WRITE, [source.piece(0, 9)], flags=SEND_FENCE | SEND_SIGNALED, **aim)
    before = pair.left.data_to_send()
    assert len(before) == 52 + 32
    pair.right.take(before)
    pair.left.take(pair.right.data_to_send())
    assert len(pair.left.data_to_send()) == 32


def test_no_more_requests_are_outstanding_than_the_peer_takes():
    pair = Pair(ord=2, ird=2).open()
    sink, source = pair.left_rnic.region(64), pair.right_rnic.region(64)
    aim = {"remote_addr": source.iova, "rkey": source.key}
    for _ in range(4):
        pair.left.post(WR_RDMA_READ, [sink.piece(0, 8)], **aim)
    pair.left.post(WR_ATOMIC_FETCH_AND_ADD, [sink.piece(8, 8)], **aim)
    first = pair.left.data_to_send()
    assert len(first) == 2 * 52
    pair.right.take(first)
    pair.left.take(pair.right.data_to_send())
    assert len(pair.left.completions()) == 2
    assert pair.carry() == 0
    assert len(pair.left.completions()) == 3


def test_answers_and_own_work_take_turns():
    pair = Pair(mulpdu=1018).open()
    left, right = pair.left_rnic.region(4000), pair.right_rnic.region(4000)
    for _ in range(2):
        pair.left.post(WR_RDMA_READ, [left.piece()], remote_addr=right.iova, rkey=right.key)
    for _ in range(2):
        pair.right.post(WR_RDMA_WRITE, [right.piece()], remote_addr=left.iova, rkey=left.key)
    pair.right.take(pair.left.data_to_send())
    kinds, data = [], pair.right.data_to_send()
    while data:
        kinds.append(data[3] & 15)
        length = int.from_bytes(data[:2], "big")
        data = data[(2 + length + 3 & ~3) + 4 :]
    messages = [kind for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] != kind]
    assert messages in ([2, 0, 2, 0], [0, 2, 0, 2])


def test_unsignalled_work_gives_its_token_back_unseen(pair):
    source = pair.left_rnic.region(8)
    pair.right.receive()
    token = pair.left.post(WR_SEND, [source.piece(0, 0)], flags=0)
    pair.carry()
    found = pair.left.completion()
    assert (found["token"], found["flags"]) == (token, WC_UNSIGNALLED)


# --- what is refused when it is posted -----------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "refusal"),
    [
        ({"opcode": WR_SEND_WITH_IMM}, errno.EOPNOTSUPP),
        ({"opcode": 99}, errno.EINVAL),
        ({"opcode": -1}, errno.EINVAL),
        ({"opcode": WR_SEND, "flags": 1 << 4}, errno.EINVAL),
        ({"opcode": WR_SEND, "sge_count": SGES_MAX + 1}, errno.EINVAL),
        ({"opcode": WR_SEND, "sge_count": -1}, errno.EINVAL),
        ({"opcode": WR_SEND_WITH_INV, "invalidate_rkey": 0}, errno.EINVAL),
        ({"opcode": WR_LOCAL_INV, "invalidate_rkey": 0}, errno.EINVAL),
        ({"opcode": WR_SEND, "flags": SEND_INLINE, "inline": bytes(65)}, errno.EINVAL),
        ({"opcode": WR_RDMA_READ, "flags": SEND_INLINE, "inline": b"1"}, errno.EINVAL),
        ({"opcode": WR_ATOMIC_SWAP}, errno.EINVAL),
    ],
)
def test_nonsense_is_refused_and_leaves_no_trace(pair, values, refusal):
    assert pair.left.try_post(values.pop("opcode"), **values) == -refusal
    assert pair.left.data_to_send() == b""
    assert pair.left.completions() == []


@pytest.mark.parametrize(
    ("opcode", "changed", "refusal"),
    [
        (WR_SEND, {"key": 1}, errno.EINVAL),
        (WR_SEND, {"length": 65}, errno.EFAULT),
        (WR_SEND, {"start": -1}, errno.EFAULT),
        (WR_RDMA_READ, {}, errno.EACCES),  # the sink may not be written
        (WR_ATOMIC_FETCH_AND_ADD, {"length": 7}, errno.EINVAL),
    ],
)
def test_memory_is_checked_when_it_is_posted(pair, opcode, changed, refusal):
    region = pair.left_rnic.region(64, ACCESS_REMOTE_READ)
    piece = (
        region.iova + changed.get("start", 0),
        changed.get("length", 64),
        changed.get("key", region.key),
    )
    good = pair.left_rnic.region(8)
    pieces = [piece] if opcode != WR_SEND else [good.piece(), piece]
    assert pair.left.try_post(opcode, pieces) == -refusal
    assert (good.uses, region.uses) == (0, 0)


def test_another_domains_memory_is_refused(pair):
    other = pair.left_rnic.region(64, pd=PD + 1)
    assert pair.left.try_post(WR_SEND, [other.piece()]) == -errno.EACCES
    assert pair.left.rq.post(other.piece()) == -errno.EACCES


def test_a_receive_needs_memory_that_may_be_written(pair):
    source = pair.left_rnic.region(64, ACCESS_REMOTE_READ)
    assert pair.left.rq.post(source.piece()) == -errno.EACCES


def test_a_message_of_four_gibibytes_is_refused(pair):
    region = pair.left_rnic.region(64)
    huge = pair.left_rnic.memory(
        door.REGISTER, PD, CLIENT, region.address, 1 << 33, 0, ACCESS_LOCAL_WRITE
    )
    pieces = [(0, 0xFFFFFFFF, huge), (0, 1, huge)]
    assert pair.left.try_post(WR_SEND, pieces) == -errno.EMSGSIZE
    assert pair.left.rq.post(*pieces) == -errno.EMSGSIZE


@pytest.mark.parametrize(
    "opcode",
    [
        WR_ATOMIC_FETCH_AND_ADD,
        WR_ATOMIC_CMP_AND_SWP,
        WR_ATOMIC_SWAP,
        WR_IMMEDIATE,
        WR_RDMA_WRITE_WITH_IMM,
    ],
)
def test_extensions_are_refused_to_a_peer_without_them(opcode):
    pair = Pair(extensions=False)
    word = pair.left_rnic.region(8)
    assert pair.left.try_post(opcode, [word.piece()]) == -errno.EOPNOTSUPP


def test_requests_are_refused_to_a_peer_that_takes_none():
    pair = Pair(ord=0)
    sink = pair.left_rnic.region(8)
    assert pair.left.try_post(WR_RDMA_READ, [sink.piece()]) == -errno.EINVAL


def test_full_queues_say_so_and_have_room_again():
    pair = Pair(sq_depth=3)
    for _ in range(3):
        pair.left.post(WR_RDMA_WRITE)
    assert pair.left.try_post(WR_RDMA_WRITE) == -errno.ENOMEM
    pair.carry()
    assert pair.left.try_post(WR_RDMA_WRITE) == -errno.ENOMEM  # until completions are taken
    assert len(pair.left.completions()) == 3
    assert pair.left.try_post(WR_RDMA_WRITE) == 0
    for _ in range(DEPTH):
        assert pair.right.rq.post() == 0
    assert pair.right.rq.post() == -errno.ENOMEM


# --- shared receive queues -----------------------------------------------------------------------


def shared_pair():
    """Two streams into one RNIC with one receive queue."""
    target = Rnic()
    shared = ReceiveQueue(target, 4, shared=True)
    pairs = [Pair(right_rnic=target) for _ in range(2)]
    for number, pair in enumerate(pairs):
        pair.right = QueuePair(target, pair.right.spec, number=10 + number, rq=shared)
    return target, shared, pairs


def test_streams_share_a_receive_queue():
    target, shared, pairs = shared_pair()
    buffers = [target.region(2000) for _ in range(3)]
    for token, buffer in enumerate(buffers):
        assert shared.post(buffer.piece(), token=token) == 0
    text = pairs[0].left_rnic.region(1500, fill=b"a" * 1500)
    other = pairs[1].left_rnic.region(5, fill=b"b" * 5)
    pairs[0].left.post(WR_SEND, [text.piece()])
    pairs[1].left.post(WR_SEND, [other.piece()])
    data = pairs[0].left.data_to_send()
    pairs[0].right.take(data[:100])  # The first message has its buffer and is not complete.
    pairs[1].carry()
    assert pairs[1].right.completion()["token"] == 1
    pairs[0].right.take(data[100:])
    assert pairs[0].right.completion()["token"] == 0
    assert buffers[0].bytes(0, 1500) == b"a" * 1500
    assert buffers[1].bytes(0, 5) == b"b" * 5
    assert pairs[0].right.end() == []  # What is posted is for the other stream still.
    pairs[1].left.post(WR_SEND)
    pairs[1].carry()
    assert pairs[1].right.completion()["token"] == 2


def test_a_shared_queue_that_runs_low_says_so_once():
    _, shared, pairs = shared_pair()
    record = rq_at(shared.address)[0]
    record["limit"] = 2
    for _ in range(3):
        assert shared.post() == 0
    for expected in ((2, 0), (0, 1)):
        pairs[0].left.post(WR_SEND)
        pairs[0].carry()
        assert (int(record["limit"]), int(record["limit_reached"])) == expected
