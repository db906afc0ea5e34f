"""One command whose data lies in several pieces of memory: over a byte stream and with the
initiator cut in two. What the target sees is one transfer, whatever the pieces are; no byte outside
them is touched, and gather lists that cannot be are refused with nothing begun.
"""

import ctypes
import errno
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from iscsi.wire import initiator as doors
from iscsi.wire import mover, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import port_at
from iscsi.wire.runs import RUN
from shm.view import address_of
from tests.iscsi.wire.full_feature import (
    BLOCK,
    READ,
    WRITE,
    Joined,
    examples,
    feed_placed,
    memory,
    pattern,
)
from tests.iscsi.wire.gather_doors import cut_out, more_places
from tests.iscsi.wire.split_initiator import EXTRA, Split, places_into
from tests.iscsi.wire.test_initiator_mover import assert_at_rest

SHORT = SessionParams(max_burst_length=4096, first_burst_length=1024, max_outstanding_r2t=3)
WRITES = [
    SHORT,
    replace(SHORT, immediate_data=False),
    replace(SHORT, initial_r2t=False),
    replace(SHORT, initial_r2t=False, immediate_data=False),
]
GAP = 0xA5
KINDS = [Joined, Split]


class Pieces:
    """Memory in pieces of these lengths, GAP bytes between them, and its RUN list."""

    def __init__(self, lengths, gap=7, order=None):
        count = len(lengths)
        self.array = np.full(sum(lengths) + gap * (count + 1), GAP, np.uint8)
        places, at = [0] * count, gap
        for index in order or range(count):
            places[index] = at
            at += lengths[index] + gap
        self.slices = [slice(at, at + n) for at, n in zip(places, lengths, strict=True)]
        self.runs = np.zeros(count, RUN)
        self.runs["address"] = [address_of(self.array) + at for at in places]
        self.runs["length"] = lengths
        self.size = sum(lengths)

    def fill(self, data):
        at = 0
        for piece in self.slices:
            length = piece.stop - piece.start
            self.array[piece] = data[at : at + length]
            at += length

    @property
    def data(self):
        return np.concatenate([self.array[piece] for piece in self.slices])

    @property
    def gaps_are_whole(self):
        mask = np.ones(self.array.size, bool)
        for piece in self.slices:
            mask[piece] = False
        return bool((self.array[mask] == GAP).all())


def submit(ends, pieces, lba, *, is_write, count=None, length=None):
    """Submit a READ or WRITE of pieces: its tag, or -errno."""
    blocks = pieces.size // BLOCK
    cdb = scsi.write_16(lba, blocks) if is_write else scsi.read_16(lba, blocks)
    array = np.frombuffer(cdb, np.uint8)
    ends.kept.append(pieces)
    return doors.submit_runs(
        ends.initiator.address,
        0,
        address_of(array),
        WRITE if is_write else READ,
        pieces.size if length is None else length,
        address_of(pieces.runs),
        len(pieces.runs) if count is None else count,
        0,
    )


def cut_into(total, cuts):
    """The lengths between sorted cuts of a total."""
    edges = [0, *sorted(cuts), total]
    return [end - start for start, end in pairwise(edges)]


def stepwise(step):
    return lambda stream: [stream[at : at + step] for at in range(0, len(stream), step)]


@settings(max_examples=examples(120), deadline=None)
@given(data=st.data(), session=st.sampled_from(WRITES), kind=st.sampled_from(KINDS))
def test_any_pieces_are_written_and_read_as_one_transfer(data, session, kind):
    digests = data.draw(st.tuples(st.booleans(), st.booleans()))
    connection = ConnectionParams(
        max_recv_data_segment_length=data.draw(st.sampled_from([512, 1000, 8192])),
        header_digest=digests[0],
        data_digest=digests[1],
    )
    ends = kind(session, connection)
    blocks = data.draw(st.integers(1, 40))
    total = blocks * BLOCK
    edges = st.lists(st.integers(1, total - 1), unique=True, max_size=mover.VECTORS_MAX - 1)
    out = Pieces(cut_into(total, data.draw(edges)))
    lengths = cut_into(total, data.draw(edges))
    back = Pieces(lengths, order=data.draw(st.permutations(range(len(lengths)))))
    wanted = pattern(total, blocks)
    out.fill(wanted)
    cut = stepwise(data.draw(st.integers(1, 5000)))
    assert submit(ends, out, 3, is_write=True) >= 0
    done = ends.one(cut)
    assert (done.result, done.status, done.residual) == (0, 0, 0)
    assert np.array_equal(ends.ram[3 * BLOCK : 3 * BLOCK + total], wanted)
    assert submit(ends, back, 3, is_write=False) >= 0
    done = ends.one(cut)
    assert (done.result, done.status, done.received) == (0, 0, total)
    assert np.array_equal(back.data, wanted)
    assert back.gaps_are_whole, "a byte beside the pieces was touched"
    if kind is Split:
        assert_at_rest(ends)


@pytest.mark.parametrize("digest", [False, True])
def test_received_to_their_place_the_pieces_are_asked_for_one_by_one(digest):
    ends = Joined(SHORT, ConnectionParams(max_recv_data_segment_length=8192, data_digest=digest))
    ends.ram[:] = pattern(ends.ram.size)
    back = Pieces([1000, 24, 3000, 1, 71])
    submit(ends, back, 0, is_write=False)
    ends.target.receive(ends.initiator.data_to_send())
    stream = ends.target.data_to_send()
    assert feed_placed(doors.rx_bytes, ends.initiator.address, stream) == 0
    (done,) = ends.initiator.completions()
    assert done.received == 4096
    assert np.array_equal(back.data, ends.ram[:4096])
    assert back.gaps_are_whole


@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize("room", [1, 3, 64])
def test_the_places_of_all_pieces_are_known_before_their_data_comes(digest, room):
    """So that one call of a transport fills them: as often as there is room for so many."""
    ends = Joined(SHORT, ConnectionParams(max_recv_data_segment_length=2048, data_digest=digest))
    ends.ram[:] = pattern(ends.ram.size)
    back = Pieces([1000, 24, 3000, 1, 71])
    submit(ends, back, 0, is_write=False)
    ends.target.receive(ends.initiator.data_to_send())
    stream, at = ends.target.data_to_send(), 0
    conn = ends.initiator.address
    port = port_at(conn)[0]
    places = np.zeros(64, RUN)
    counts = []
    while at < len(stream):
        rows = [(int(port["want_address"]), int(port["want_length"]))]
        if port["rx_more"] > 0:
            count = more_places(conn, address_of(places), room)
            rows += [(int(row["address"]), int(row["length"])) for row in places[:count]]
            counts.append(count)
        for address, length in rows:  # As the kernel does: into all of them, before we look.
            ctypes.memmove(address, stream[at : at + length], length)
            at += length
        for address, length in rows:
            assert int(port["want_address"]) == address
            assert doors.rx_bytes(conn, address, length) == 0
    assert counts == [min(room, 2)] * 2, "each PDU reaches into three pieces"
    (done,) = ends.initiator.completions()
    assert (done.status, done.received) == (0, 4096)
    assert np.array_equal(back.data, ends.ram[:4096])
    assert back.gaps_are_whole


@settings(max_examples=examples(300), deadline=None)
@given(data=st.data())
def test_a_list_cut_out_of_a_list_names_the_same_bytes_in_the_same_order(data):
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=9))
    pieces = Pieces(lengths)
    offset = data.draw(st.integers(0, pieces.size - 1))
    length = data.draw(st.integers(1, pieces.size - offset))
    room = data.draw(st.integers(1, 12))
    found = np.zeros(room, RUN)
    count, covered = np.zeros(1, np.int64), np.zeros(1, np.int64)
    cut_out(address_of(pieces.runs), len(lengths), offset, length, address_of(found), room,
            address_of(count), address_of(covered))  # fmt: skip
    rows = found[: int(count[0])]
    assert (rows["length"] > 0).all()
    assert rows["length"].sum() == covered[0]
    assert covered[0] == length or (len(rows) == room and covered[0] < length)
    wanted = [a + i for a, n in pieces.runs.tolist() for i in range(n)]
    wanted = wanted[offset : offset + int(covered[0])]
    assert [a + i for a, n in rows.tolist() for i in range(n)] == wanted


@pytest.mark.parametrize("session", WRITES)
def test_bursts_end_where_they_would_however_the_data_is_cut(session):
    """RFC 7143 §11.7.2, §13.13: F ends a burst, and only that; offsets go on, DataSN counts."""
    ends = Joined(session, ConnectionParams(max_recv_data_segment_length=8192))
    out = Pieces([100, 1000, 4096, 3000, 12, 8176])
    out.fill(pattern(out.size))
    submit(ends, out, 0, is_write=True)
    assert ends.one().status == 0
    (command, immediate), *rest = ends.sent_by_initiator()
    assert len(immediate) == (100 if session.immediate_data else 0)
    unsolicited = not session.initial_r2t
    assert bool(command.final) is session.initial_r2t
    edges = np.cumsum(out.runs["length"])
    position, number, first = len(immediate), 0, unsolicited
    burst = position if unsolicited else 0
    for header, data in rest:
        assert header.opcode is Opcode.DATA_OUT
        assert (header.buffer_offset, header.data_sn) == (position, number)
        position, burst, number = position + len(data), burst + len(data), number + 1
        assert position in edges or header.final
        if header.final:
            if first:
                assert burst == 1024, "unsolicited data goes up to FirstBurstLength"
            assert burst <= (1024 if first else 4096)
            burst, number, first = 0, 0, False
    assert position == out.size
    assert np.array_equal(ends.ram[: out.size], out.data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_that_ends_short_fills_the_first_pieces(kind):
    """The device has less than the buffer: residual underflow (RFC 7143 §11.4.5.1)."""
    ends = kind(SHORT)
    ends.ram[:] = pattern(ends.ram.size)
    back = Pieces([300, 300, 1448])
    cdb = np.frombuffer(scsi.read_16(0, 1), np.uint8)
    doors.submit_runs(
        ends.initiator.address, 0, address_of(cdb), READ, back.size, address_of(back.runs), 3, 0
    )
    done = ends.one()
    assert (done.status, done.received, done.residual) == (0, BLOCK, back.size - BLOCK)
    assert np.array_equal(back.data[:BLOCK], ends.ram[:BLOCK])
    assert (back.data[BLOCK:] == GAP).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_cancelled_amid_its_pieces_ends_once_and_the_next_works(kind):
    ends = kind(SHORT, ConnectionParams(max_recv_data_segment_length=8192))
    ends.ram[:] = pattern(ends.ram.size)
    lower = ends.lower if kind is Split else ends.initiator
    back = Pieces([1500, 700, 1896])
    tag = submit(ends, back, 0, is_write=False)
    if kind is Split:
        ends.post_all()
        ends.deliver()
    ends.target.receive(lower.data_to_send())
    stream = ends.target.data_to_send()
    lower.receive(stream[:1000])
    ends.initiator.cancel(tag)
    if kind is Split:
        ends.post_all()
        ends.deliver()
    assert list(ends.initiator.completions()) == []
    lower.receive(stream[1000:])
    if kind is Split:
        ends.tell()
        ends.take()
    (done,) = ends.initiator.completions()
    assert done.result == -errno.ECANCELED
    assert back.gaps_are_whole
    again = np.zeros(4096, np.uint8)
    ends.read(0, 8, again)
    assert ends.one().status == 0
    assert np.array_equal(again, ends.ram[:4096])


# --- what cannot be ---------------------------------------------------------------------------


def refused_lists():
    """Gather lists of 4 KiB that are wrong: what is wrong, and how many entries are named."""
    good = [1024] * 4

    def changed(index, name, value):
        pieces = Pieces(good)
        pieces.runs[name][index] = value
        return pieces

    yield "nothing in an entry", changed(1, "length", 0), 4
    yield "less than nothing", changed(1, "length", -1024), 4
    yield "too little", changed(3, "length", 1023), 4
    yield "too much", changed(3, "length", 1025), 4
    yield "more than a word", changed(0, "length", 2**63 - 1), 4
    yield "no entries", Pieces(good), 0
    yield "less than none", Pieces(good), -1
    yield "too many", Pieces([1] * 65 + [4031]), 66
    overlapping = Pieces(good)
    overlapping.runs["address"][2] = overlapping.runs["address"][0] + 1023
    yield "the same byte twice", overlapping, 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pieces", "count"), [row[1:] for row in refused_lists()],
                         ids=[row[0] for row in refused_lists()])  # fmt: skip
def test_lists_that_cannot_be_are_refused_and_nothing_is_begun(kind, pieces, count):
    ends = kind(SHORT)
    assert submit(ends, pieces, 0, is_write=False, count=count, length=4096) == -errno.EINVAL
    assert ends.initiator.data_to_send() == b""
    back = np.zeros(BLOCK, np.uint8)
    ends.read(0, 1, back)
    assert ends.one().status == 0


def test_the_same_memory_may_be_written_twice():
    ends = Joined(SHORT)
    out = Pieces([1024, 1024])
    out.runs["address"][1] = out.runs["address"][0]
    out.fill(pattern(2048))
    assert submit(ends, out, 0, is_write=True) >= 0
    assert ends.one().status == 0
    assert np.array_equal(ends.ram[1024:2048], ends.ram[:1024])


def post_of(ends, pieces, **changes):
    """What a session posts for a READ of 4 KiB in these pieces, changed."""
    tag = submit(ends, pieces, 0, is_write=False)
    assert tag >= 0
    ends.post_all()
    return {**ends.posts.pop(), **changes}


HOSTILE = [
    {"more5": 4095},
    {"more5": 4097},
    {"more5": 0},
    {"more5": -1},
    {"more5": 1 << 32},
    {"length": 4096},
    {"more4": -1},
    {"more4": -(1 << 63)},
    {"more4": 1 << 40},
    {"arg2": READ | 65 << mover.VECTOR_SHIFT},
    {"arg2": READ | 4095 << mover.VECTOR_SHIFT},
    {"arg2": READ | 1 << mover.VECTOR_SHIFT},
    {"arg2": READ | WRITE | 2 << mover.VECTOR_SHIFT},
    {"arg2": 2 << mover.VECTOR_SHIFT},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_the_engine_refuses_what_a_hostile_session_says_of_its_list(changes):
    ends = Split(SHORT)
    good = post_of(ends, Pieces([2048, 2048]))
    assert ends.ask({**good, **changes}) == -errno.EINVAL
    assert ends.lower.data_to_send() == b"", "a refused command was sent"
    assert ends.ask(good) > 0, "the same tag is still free"


WRONG_ENTRIES = [
    [(0, 2048), (2047, 2048)],
    [(0, 4096), (5000, 0)],
    [(0, 8192), (9000, -4096)],
    [(0, 1 << 62), (0, 4096)],
]


@pytest.mark.parametrize("entries", WRONG_ENTRIES)
def test_the_engine_refuses_entries_that_cannot_be(entries):
    ends = Split(SHORT)
    pieces = Pieces([2048, 2048])
    good = post_of(ends, pieces)
    start = good["more4"]
    vectors = ends.home[start : start + 2 * mover.VECTOR.itemsize].view(mover.VECTOR)
    before = vectors.copy()
    for row, (place, length) in zip(vectors, entries, strict=True):
        row["offset"], row["length"] = int(pieces.runs["address"][0]) + place, length
    assert ends.ask(good) == -errno.EINVAL
    vectors[:] = before
    assert ends.ask(good) > 0


def test_the_engine_keeps_its_own_list():
    """What the session writes into its home afterwards changes nothing."""
    ends = Split(SHORT)
    ends.ram[:] = pattern(ends.ram.size)
    pieces = Pieces([1000, 3096])
    good = post_of(ends, pieces)
    assert ends.ask(good) > 0
    ends.home[good["more4"] : good["more4"] + 48] = 0xFF
    ends.run()
    assert np.array_equal(pieces.data, ends.ram[:4096])
    assert pieces.gaps_are_whole


def test_memory_of_an_open_list_is_in_use_and_no_longer_when_it_is_over():
    ends = Split(SHORT)
    pieces = Pieces([1000, 3096], gap=64)
    good = post_of(ends, pieces)
    lower = ends.lower.address
    address = int(pieces.runs["address"][1])
    assert not places_into(lower, address, address + 1)
    ends.ask(good)
    assert places_into(lower, address, address + 1)
    assert places_into(lower, address - 4096, address + 1)
    assert places_into(lower, address + 3095, address + 8192)
    assert not places_into(lower, address - 64, address)
    assert not places_into(lower, address + 3096, address + 3100)
    ends.run()
    assert not places_into(lower, address - 4096, address + 8192)


@settings(max_examples=examples(200), deadline=None)
@given(data=st.data())
def test_any_list_is_refused_or_read_and_never_crosses_its_entries(data):
    ends = Split(SHORT)
    ends.ram[:] = pattern(ends.ram.size)
    area = np.full(20000, GAP, np.uint8)
    rows = data.draw(st.lists(st.tuples(st.integers(0, 9000), st.integers(-1, 9000)), min_size=1,
                              max_size=6))  # fmt: skip
    good = post_of(ends, Pieces([2048, 2048]))
    vectors = memory(EXTRA)[: len(rows) * 24].view(mover.VECTOR)
    vectors["offset"] = [address_of(area) + at for at, _ in rows]
    vectors["length"] = [length for _, length in rows]
    place = ends.home.size - EXTRA
    ends.home[place : place + vectors.nbytes] = vectors.view(np.uint8)
    total = data.draw(st.sampled_from([sum(length for _, length in rows), 4096]))
    assume(total != 0)
    changes = {"more4": place, "more5": total, "arg2": READ | len(rows) << mover.VECTOR_SHIFT}
    if ends.ask({**good, **changes}) < 0:
        assert (area == GAP).all()
        return
    ends.run()
    mask, received = np.ones(area.size, bool), 0
    for at, length in rows:
        size = min(length, 4096 - received)
        assert np.array_equal(area[at : at + size], ends.ram[received : received + size])
        mask[at : at + size] = False
        received += size
    assert (area[mask] == GAP).all()
