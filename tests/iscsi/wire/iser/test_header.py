"""iSER's header against vectors written by hand from RFC 7145 §9 and from what is deployed, and the
private data of a connection request.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError
from iscsi.wire.iser.connecting import Features
from iscsi.wire.iser.header import (
    ISER_HEADER_LENGTH,
    Hello,
    HelloReply,
    IserHeader,
    decode,
    encode,
    encode_hello,
)

NOTHING = bytes.fromhex("10000000" + "00" * 24)
READ = bytes.fromhex("14000000" + "00000000" + "00" * 8 + "a1b2c3d4" + "00007f0011223344")
WRITE = bytes.fromhex("18000000" + "01020304" + "ffff880012345678" + "00000000" + "00" * 8)
BOTH = bytes.fromhex("1c000000" + "01020304" + "0000000000001000" + "0a0b0c0d" + "8000000000000000")
HELLO = bytes.fromhex("20aa0080" + "00" * 24)
REPLY = bytes.fromhex("30aa0010" + "00" * 24)
REFUSAL = bytes.fromhex("31a00000" + "00" * 24)

GOLDEN = [
    (NOTHING, IserHeader()),
    (READ, IserHeader(read_stag=0xA1B2C3D4, read_base=0x7F0011223344)),
    (WRITE, IserHeader(write_stag=0x01020304, write_base=0xFFFF880012345678)),
    (BOTH, IserHeader(0x01020304, 0x1000, 0x0A0B0C0D, 1 << 63)),
]
TAGS = st.integers(1, 0xFFFFFFFF) | st.just(0)
BASES = st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize(("raw", "header"), GOLDEN)
def test_a_header_is_what_deployed_peers_send(raw, header):
    assert encode(header) == raw
    assert decode(raw) == header


@pytest.mark.parametrize(
    ("raw", "hello"),
    [(HELLO, Hello(128)), (REPLY, HelloReply(16)), (REFUSAL, HelloReply(0, 10, 0, rejected=True))],
)
def test_a_hello_and_its_reply_name_versions_and_depth(raw, hello):
    assert encode_hello(hello) == raw
    assert decode(raw) == hello


@given(TAGS, BASES, TAGS, BASES)
def test_every_header_is_read_as_it_was_written(write_stag, write_base, read_stag, read_base):
    header = IserHeader(
        write_stag, write_base * bool(write_stag), read_stag, read_base * bool(read_stag)
    )
    raw = encode(header)
    assert len(raw) == ISER_HEADER_LENGTH
    assert decode(raw) == header


def test_what_lies_in_the_fields_of_a_tag_that_is_not_valid_means_nothing():
    assert decode(b"\x10" + READ[1:]) == IserHeader()


@pytest.mark.parametrize("raw", [READ, WRITE, BOTH])
def test_a_valid_bit_without_a_tag_is_refused(raw):
    with pytest.raises(RemoteProtocolError, match="no STag"):
        decode(raw[:4] + bytes(24))


@pytest.mark.parametrize("length", [0, 1, 12, 27])
def test_a_shorter_header_is_refused(length):
    with pytest.raises(RemoteProtocolError, match=f"{length} bytes"):
        decode(BOTH[:length])


@pytest.mark.parametrize("first", [0x00, 0x40, 0xF0])
def test_an_unknown_opcode_is_refused(first):
    with pytest.raises(RemoteProtocolError, match="opcode"):
        decode(bytes((first,)) + bytes(27))


def test_a_depth_that_does_not_fit_is_our_own_mistake():
    with pytest.raises(LocalProtocolError):
        encode_hello(Hello(0x10000))


@given(st.binary(max_size=64))
def test_reading_never_fails_in_another_way(data):
    try:
        decode(data)
    except RemoteProtocolError:
        return
    assert len(data) >= ISER_HEADER_LENGTH


@pytest.mark.parametrize(
    ("raw", "features"),
    [
        ("c0000000", Features()),
        ("80000000", Features(send_invalidate=True)),
        ("40000000", Features(zero_based=True)),
        ("00000000", Features(send_invalidate=True, zero_based=True)),
    ],
)
def test_private_data_has_a_bit_for_what_is_not_supported(raw, features):
    assert features.to_bytes() == bytes.fromhex(raw)
    assert Features.from_bytes(bytes.fromhex(raw)) == features


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_peer_that_says_nothing_can_do_nothing_of_it(length):
    assert Features.from_bytes(bytes(length)) == Features()


def test_padding_behind_private_data_is_not_looked_at():
    assert Features.from_bytes(bytes.fromhex("80000000") + b"\xff" * 60).send_invalidate


@given(st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_a_target_does_no_more_than_was_asked_for(invalidate, zero, asked, based):
    ours, theirs = Features(invalidate, zero), Features(asked, based)
    answer = ours.answer(theirs)
    assert answer.send_invalidate == (invalidate and asked)
    assert answer.zero_based == (zero and based)
