"""MPA's start-up frames: golden bytes, what both sides agree on, and every refusal by its name."""

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.verbs import mpa
from host.verbs.mpa import Frame, FrameReader, MpaError, Rejected, Rtr, Wishes

GOLDEN = {
    # As a kernel siw sends it: revision 2, IRD 128, ORD 1, four octets of the consumer's.
    "siw request": (
        Frame(crc=False, ird=128, ord=1, private_data=b"\xc0\0\0\0"),
        b"MPA ID Req Frame\x10\x02\x00\x08\x00\x80\x00\x01\xc0\x00\x00\x00",
    ),
    "request with everything": (
        Frame(markers=True, ird=3, ord=2, peer_to_peer=True, rtr=Rtr(7), private_data=b"ab"),
        b"MPA ID Req Frame\xd0\x02\x00\x06\xc0\x03\xc0\x02ab",
    ),
    "request of revision 1": (
        Frame(revision=1, enhanced=False),
        b"MPA ID Req Frame\x40\x01\x00\x00",
    ),
    "reply that chooses a write": (
        Frame(reply=True, ird=1, ord=1, peer_to_peer=True, rtr=Rtr.WRITE),
        b"MPA ID Rep Frame\x50\x02\x00\x04\x80\x01\x80\x01",
    ),
    "rejection": (
        Frame(reply=True, reject=True, private_data=b"no"),
        b"MPA ID Rep Frame\x70\x02\x00\x06\x00\x00\x00\x00no",
    ),
}


def read(data, reply=False):
    """Decode a whole frame."""
    return mpa.decode(data[:20], data[20:], reply)


@pytest.mark.parametrize("name", GOLDEN)
def test_frames_are_these_bytes_and_no_others(name):
    frame, data = GOLDEN[name]
    assert frame.encode() == data
    assert read(data, frame.reply) == frame


def header(key=mpa.REQUEST_KEY, flags=0, revision=2, length=0):
    return struct.pack(">16sBBH", key, flags, revision, length)


@pytest.mark.parametrize(
    ("data", "reply", "says", "code"),
    [
        (header(mpa.REPLY_KEY), False, "no MPA Request", 4),
        (header(mpa.REQUEST_KEY), True, "no MPA Reply", 4),
        (header(b"GET / HTTP/1.1\r\n"), False, "GET / HTTP", 4),
        (header(b"MPA ID Req Fram\0"), False, "no MPA Request", 4),
        (header(revision=0), False, "revision 0", 4),
        (header(revision=3), False, "revision 3", 4),
        (header(revision=255), False, "revision 255", 4),
        (header(length=513), False, "513 octets", 4),
        (header(length=65535), False, "65535 octets", 4),
        (header(mpa.REPLY_KEY, length=513), True, "513 octets", 4),
        (header(flags=mpa.REJECT), False, "bit that rejects", 4),
        (header(flags=mpa.ENHANCED, length=0), False, "in 0 octets", 4),
        (header(flags=mpa.ENHANCED, length=3), False, "in 3 octets", 4),
        (header(mpa.REPLY_KEY, flags=mpa.ENHANCED, length=3), True, "in 3 octets", 4),
        (header(flags=mpa.ENHANCED, length=4) + b"\x80\1\0\1", False, "peer-to-peer", 7),
        (header(mpa.REPLY_KEY, mpa.ENHANCED, 2, 4) + b"\x80\1\0\1", True, "peer-to-peer", 7),
    ],
)
def test_what_is_no_frame_is_refused_by_name(data, reply, says, code):
    with pytest.raises(MpaError, match=says) as refused:
        read(data, reply)
    assert refused.value.code == code


def test_the_header_alone_is_enough_to_refuse():
    reader = FrameReader(reply=False, now=0)
    with pytest.raises(MpaError, match="65535"):
        reader.receive(header(length=65535))


def test_reserved_bits_and_an_unknown_meaning_of_s_in_revision_1_are_ignored():
    asked = read(header(flags=0x0F | mpa.CRC, revision=2))
    assert asked == Frame(enhanced=False)
    old = read(header(flags=mpa.ENHANCED, revision=1, length=2) + b"hi")
    assert old == Frame(revision=1, crc=False, enhanced=False, private_data=b"hi")


def test_512_octets_are_the_most_that_can_be_said():
    full = Frame(revision=1, enhanced=False, private_data=bytes(512))
    assert read(full.encode()) == full
    with pytest.raises(ValueError, match="508 can be sent"):
        Frame(private_data=bytes(509)).encode()


@pytest.mark.parametrize("wrong", [{"ird": -1}, {"ord": 0x4000}, {"revision": 3}])
def test_what_cannot_be_said_is_not(wrong):
    with pytest.raises(ValueError, match=r"IRD|ORD|revision"):
        Frame(**wrong).encode()


@pytest.mark.parametrize(
    "wrong", [{"revision": 3}, {"ird": 0x3FFF}, {"ord": -1}, {"revision": 1, "rtr": Rtr.WRITE}]
)
def test_wishes_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=r"revision|IRD|ORD"):
        Wishes(**wrong)


# --- what both sides agree on ------------------------------------------------------------------


def joined(active, passive):
    """Have two sides agree; what each of them believes."""
    reply, ours = mpa.answer(read(mpa.request(active).encode()), passive)
    return mpa.agree(active, read(reply.encode(), reply=True)), ours


@pytest.mark.parametrize("active_crc", [False, True])
@pytest.mark.parametrize("passive_crc", [False, True])
def test_crc_is_on_in_both_directions_if_either_side_wants_it(active_crc, passive_crc):
    ours, theirs = joined(Wishes(crc=active_crc), Wishes(crc=passive_crc))
    assert ours.crc == theirs.crc == (active_crc or passive_crc)


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("passive", [False, True])
def test_markers_are_a_wish_of_each_receiver(active, passive):
    ours, theirs = joined(Wishes(markers=active), Wishes(markers=passive))
    assert (ours.markers_rx, ours.markers_tx) == (active, passive)
    assert (theirs.markers_rx, theirs.markers_tx) == (passive, active)


def test_each_side_has_no_more_reads_outstanding_than_the_other_serves():
    ours, theirs = joined(Wishes(ird=4, ord=100), Wishes(ird=7, ord=9))
    assert (ours.ird, ours.ord) == (4, 7)
    assert (theirs.ird, theirs.ord) == (7, 4)


def test_depths_that_are_not_negotiated_are_left_alone():
    asked = Frame(ird=mpa.NOT_NEGOTIATED, ord=mpa.NOT_NEGOTIATED)
    _, theirs = mpa.answer(asked, Wishes(ird=3, ord=5))
    assert (theirs.ird, theirs.ord) == (3, 5)
    reply = Frame(reply=True, ird=mpa.NOT_NEGOTIATED, ord=mpa.NOT_NEGOTIATED)
    ours = mpa.agree(Wishes(ird=3, ord=5), reply)
    assert (ours.ird, ours.ord) == (3, 5)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (Rtr.NONE, Rtr.NONE),
        (Rtr.SEND, Rtr.SEND),
        (Rtr.READ | Rtr.SEND, Rtr.READ),
        (Rtr(7), Rtr.WRITE),
    ],
)
def test_one_way_of_saying_ready_is_chosen_of_those_offered(offered, chosen):
    ours, theirs = joined(Wishes(rtr=offered), Wishes())
    assert ours.rtr == theirs.rtr == chosen


def test_private_data_comes_to_the_other_side():
    ours, theirs = joined(Wishes(private_data=b"from active"), Wishes(private_data=b"back"))
    assert (ours.private_data, theirs.private_data) == (b"back", b"from active")


def test_revision_1_has_private_data_and_no_depths():
    ours, theirs = joined(Wishes(revision=1, private_data=b"x", ord=9), Wishes(ord=8))
    assert (ours.revision, theirs.revision) == (1, 1)
    assert (ours.ord, theirs.ord) == (9, 8)
    assert theirs.private_data == b"x"


def test_a_rejection_says_why():
    reply = mpa.rejection(read(mpa.request(Wishes()).encode()), b"full").encode()
    with pytest.raises(Rejected) as rejected:
        mpa.agree(Wishes(), read(reply, reply=True))
    assert rejected.value.private_data == b"full"


GOOD_REPLY = Frame(reply=True, ird=16, ord=16)


@pytest.mark.parametrize(
    ("change", "says", "code"),
    [
        ({"revision": 1, "enhanced": False}, "answers a Request of revision 2 with 1", 4),
        ({"enhanced": False}, "leaves out IRD and ORD", 4),
        ({"ord": 17}, "17 outstanding reads, 16", 6),
        ({"peer_to_peer": True, "rtr": Rtr.SEND}, "chose", 7),
        ({"peer_to_peer": True, "rtr": Rtr.WRITE | Rtr.READ}, "chose", 7),
    ],
)
def test_a_reply_that_does_not_answer_our_request_is_refused(change, says, code):
    wishes = Wishes(rtr=Rtr.WRITE | Rtr.READ)
    assert mpa.agree(wishes, GOOD_REPLY).ord == 16
    with pytest.raises(MpaError, match=says) as refused:
        mpa.agree(wishes, dataclasses.replace(GOOD_REPLY, **change))
    assert refused.value.code == code


# --- reading -------------------------------------------------------------------------------------


@given(st.data())
def test_a_frame_may_come_in_pieces_and_nothing_behind_it_is_asked_for(data):
    frame = Frame(private_data=data.draw(st.binary(max_size=64)), ird=5)
    raw = frame.encode()
    reader = FrameReader(reply=False, now=0)
    done = 0
    while reader.frame is None:
        assert 0 < reader.wanted <= len(raw) - done
        size = data.draw(st.integers(1, reader.wanted))
        reader.receive(raw[done : done + size])
        done += size
    assert (done, reader.wanted, reader.frame) == (len(raw), 0, frame)


def test_more_than_was_wanted_is_the_callers_mistake():
    with pytest.raises(ValueError, match="20 were wanted"):
        FrameReader(reply=False, now=0).receive(bytes(21))


@pytest.mark.parametrize(("reply", "seconds"), [(False, 5), (True, 10)])
def test_a_peer_that_takes_too_long_is_given_up(reply, seconds):
    reader = FrameReader(reply, now=100)
    assert reader.deadline == 100 + seconds
    reader.check(now=100 + seconds - 0.001)
    with pytest.raises(MpaError, match="in time") as late:
        reader.check(now=100 + seconds)
    assert late.value.code == mpa.LOCAL_CATASTROPHIC


def test_a_frame_that_is_there_is_never_late():
    reader = FrameReader(reply=False, now=0)
    reader.receive(Frame(revision=1, enhanced=False).encode())
    reader.check(now=1e9)


@given(st.binary(min_size=20, max_size=20), st.booleans())
def test_any_twenty_bytes_are_a_header_or_refused(data, reply):
    try:
        length = mpa.body_length(data, reply)
    except MpaError:
        return
    assert 0 <= length <= 512


@given(
    st.integers(0, 255), st.integers(1, 2), st.binary(max_size=16), st.booleans()
)  # fmt: skip
def test_what_is_decoded_says_the_same_again(flags, revision, body, reply):
    key = mpa.REPLY_KEY if reply else mpa.REQUEST_KEY
    try:
        frame = mpa.decode(header(key, flags, revision, len(body)), body, reply)
    except MpaError:
        return
    assert mpa.decode(frame.encode()[:20], frame.encode()[20:], reply) == frame
