"""Sequences of work in both directions, over streams cut anyhow, against a model that only knows
what the verbs manual promises: contents of memory, and completions once and in order.
"""

from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shm.verbs_numbers import (
    SEND_FLAGS,
    SEND_INLINE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WC_SOLICITED,
    WC_SUCCESS,
    WC_UNSIGNALLED,
    WC_WITH_INV,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_ATOMIC_SWAP,
    WR_IMMEDIATE,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_INV,
)
from tests.ppe.rnic.joined import TOP, Pair, signed

HEAP = 2048
BUFFER = 700
RECEIVES = 40
WORDS = 4
SENDING = (WR_SEND, WR_SEND_WITH_INV, WR_IMMEDIATE, WR_RDMA_WRITE_WITH_IMM)


class Side:
    """One end: memory that is only read, memory the peer writes, memory it fetches into."""

    def __init__(self, queue_pair, seed):
        rnic = queue_pair.rnic
        self.qp = queue_pair
        self.pattern = rnic.region(HEAP, fill=np.random.default_rng(seed).bytes(HEAP))
        self.heap = rnic.region(HEAP)
        self.sink = rnic.region(HEAP)
        self.words = rnic.region(8 * WORDS)
        self.results = rnic.region(8 * 64)
        self.buffers = rnic.region(BUFFER * RECEIVES)
        self.expected_heap, self.expected_sink = bytearray(HEAP), bytearray(HEAP)
        self.expected_words = [0] * WORDS
        self.expected_results = bytearray(8 * 64)
        self.expected_receives = []
        self.posted, self.done, self.received = [], [], []
        self.numbers = count()
        self.tokens = [
            queue_pair.receive(self.buffers.piece(BUFFER * which, BUFFER))
            for which in range(RECEIVES)
        ]

    def reap(self):
        for each in self.qp.completions():
            assert each["status"] == WC_SUCCESS
            (self.received if each["opcode"] >= 128 else self.done).append(each)


def pieces_of(region, cuts):
    """A gather list over pieces of a region, and the bytes they hold."""
    pieces = [region.piece(start, length) for start, length in cuts]
    return pieces, b"".join(region.bytes(start, length) for start, length in cuts)


def post(me, peer, what):
    """Post one thing, and note what it must bring about."""
    kind, cuts, aim, value, flags = what
    if kind in SENDING and len(peer.expected_receives) == RECEIVES:
        return
    if kind in (WR_LOCAL_INV, WR_SEND_WITH_INV):
        owner = me if kind == WR_LOCAL_INV else peer
        asked, pieces, data = {"invalidate_rkey": owner.qp.rnic.region(8).key}, [], b""
    elif kind in (WR_SEND, WR_RDMA_WRITE, WR_RDMA_WRITE_WITH_IMM):
        pieces, data = pieces_of(me.pattern, cuts)
        asked = {"remote_addr": peer.heap.iova + aim, "rkey": peer.heap.key, "imm": value}
        if flags & SEND_INLINE and len(data) <= 64:
            asked, pieces = asked | {"inline": data}, []
        else:
            flags &= ~SEND_INLINE
    else:
        pieces, asked, data = request(me, peer, kind, cuts, aim, value)
    if kind not in (WR_SEND, WR_RDMA_WRITE, WR_RDMA_WRITE_WITH_IMM):
        flags &= ~SEND_INLINE
    me.posted.append((me.qp.post(kind, pieces, flags=flags, **asked), flags))
    if kind in (WR_RDMA_WRITE, WR_RDMA_WRITE_WITH_IMM):
        peer.expected_heap[aim : aim + len(data)] = data
    if kind in SENDING:
        solicited = WC_SOLICITED if flags & SEND_SOLICITED else 0
        inverted = WC_WITH_INV if kind == WR_SEND_WITH_INV else 0
        immediate = {WR_IMMEDIATE: value, WR_RDMA_WRITE_WITH_IMM: (value & 0xFFFFFFFF) << 32}
        told = data if kind in (WR_SEND, WR_SEND_WITH_INV) else b""
        peer.expected_receives.append((told, solicited | inverted, immediate.get(kind, 0)))


def request(me, peer, kind, cuts, aim, value):
    """A Read, an atomic, or immediate data."""
    if kind == WR_IMMEDIATE:
        return [], {"imm": value}, b""
    if kind == WR_RDMA_READ:
        start, length = cuts[0]
        me.expected_sink[aim : aim + length] = peer.pattern.bytes(start, length)
        asked = {"remote_addr": peer.pattern.iova + start, "rkey": peer.pattern.key}
        return [me.sink.piece(aim, length)], asked, b""
    number, which = next(me.numbers), aim % WORDS
    there = peer.expected_words[which]
    me.expected_results[8 * number : 8 * number + 8] = there.to_bytes(8, "little")
    compare = there if value % 2 else value
    if kind == WR_ATOMIC_FETCH_AND_ADD:
        peer.expected_words[which] = (there + value) % TOP
    elif kind == WR_ATOMIC_SWAP or compare == there:
        peer.expected_words[which] = aim
    asked = {"remote_addr": peer.words.iova + 8 * which, "rkey": peer.words.key}
    asked["compare_add"] = value if kind == WR_ATOMIC_FETCH_AND_ADD else compare
    return [me.results.piece(8 * number, 8)], asked | {"swap": aim}, b""


def check(side):
    """Everything posted is over, once and in order, and all memory is as it must be."""
    side.reap()
    assert [each["token"] for each in side.done] == [token for token, _ in side.posted]
    unsignalled = [not each["flags"] & WC_UNSIGNALLED for each in side.done]
    assert unsignalled == [bool(flags & SEND_SIGNALED) for _, flags in side.posted]
    assert side.heap.bytes() == bytes(side.expected_heap)
    assert side.sink.bytes() == bytes(side.expected_sink)
    assert side.words.bytes() == b"".join(w.to_bytes(8, "little") for w in side.expected_words)
    assert side.results.bytes() == bytes(side.expected_results)
    tokens = side.tokens[: len(side.expected_receives)]
    assert [each["token"] for each in side.received] == tokens
    for which, (data, flags, immediate) in enumerate(side.expected_receives):
        found = side.received[which]
        assert side.buffers.bytes(BUFFER * which, found["byte_len"]) == data
        assert found["flags"] & (WC_SOLICITED | WC_WITH_INV) == flags
        assert found["imm"] == signed(immediate)
    for region in (side.pattern, side.heap, side.sink, side.words, side.results):
        assert region.uses == 0


spans = st.tuples(st.integers(0, HEAP - 1), st.integers(0, 230)).map(
    lambda cut: (cut[0], min(cut[1], HEAP - cut[0]))
)
works = st.tuples(
    st.sampled_from(
        [
            WR_SEND,
            WR_SEND_WITH_INV,
            WR_RDMA_WRITE,
            WR_RDMA_WRITE_WITH_IMM,
            WR_RDMA_READ,
            WR_ATOMIC_FETCH_AND_ADD,
            WR_ATOMIC_CMP_AND_SWP,
            WR_ATOMIC_SWAP,
            WR_IMMEDIATE,
            WR_LOCAL_INV,
        ]
    ),
    st.lists(spans, min_size=1, max_size=3),
    st.integers(0, HEAP - 700),
    st.integers(0, TOP - 1),
    st.integers(0, SEND_FLAGS),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("post"), st.booleans(), works),
        st.tuples(st.just("carry"), st.booleans(), st.integers(1, 400)),
        st.tuples(st.just("reap"), st.booleans(), st.none()),
    ),
    max_size=40,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=steps,
    options=st.fixed_dictionaries(
        {
            "crc": st.booleans(),
            "markers": st.booleans(),
            "mulpdu": st.sampled_from([128, 200, 1000, 32786]),
            "ord": st.sampled_from([1, 2, 16]),
        }
    ),
    direct=st.booleans(),
)
def test_any_sequence_of_work_does_what_the_manual_says(steps, options, direct):
    pair = Pair(ird=options["ord"], **options).open()
    sides = Side(pair.left, 1), Side(pair.right, 2)
    for what, leftwards, how in steps:
        me, peer = (sides[0], sides[1]) if leftwards else (sides[1], sides[0])
        if what == "post":
            post(me, peer, how)
        elif what == "carry":
            assert peer.qp.take(me.qp.data_to_send(how), direct=direct) == 0
        else:
            me.reap()
    assert pair.carry(direct=direct) == 0
    for side in sides:
        check(side)
