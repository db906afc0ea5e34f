"""key=value text, its limits, and texts that span PDUs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.wire import text
from iscsi.wire.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from tests.iscsi.wire.captured import LOGIN_REQUEST

KEYS = st.from_regex(r"[A-Z][A-Za-z0-9.\-+_]{0,62}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
PAIRS = st.lists(st.tuples(KEYS, VALUES), max_size=8)


@given(PAIRS)
def test_what_is_encoded_is_decoded(pairs):
    assert text.decode(text.encode(pairs)) == pairs


def test_text_of_libiscsi_is_read_in_order():
    pairs = text.decode(LOGIN_REQUEST[48 : 48 + 395])
    assert pairs[:2] == [
        ("InitiatorName", "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-ls"),
        ("SessionType", "Discovery"),
    ]
    assert len(pairs) == 18


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"InitiatorName\0", "without '='"),
        (b"A=1\0\0B=2\0", "without '='"),
        (b"A=1", "no final NUL"),
        (b"=1\0", "malformed key"),
        (b"a=1\0", "malformed key"),
        (b"A b=1\0", "malformed key"),
        (b"K" * 64 + b"=1\0", "key of 64 bytes"),
        (b"K=" + b"v" * 256 + b"\0", "256 bytes"),
        (b"K=\xff\xfe\0", "UTF-8"),
        (b"\xc3\x84=1\0", "UTF-8"),
    ],
)
def test_malformed_text_is_the_peers_fault(raw, complaint):
    with pytest.raises(RemoteProtocolError, match=complaint):
        text.decode(raw)


def test_longest_key_and_value_pass():
    pair = ("K" * 63, "v" * 255)
    assert text.decode(text.encode([pair])) == [pair]


def test_a_declared_key_may_have_a_longer_value():
    raw = text.encode([("CHAP_C", "0x" + "ab" * 1024)])
    assert len(text.decode(raw, lambda key: 2050)[0][1]) == 2050


def test_padding_counted_into_the_length_is_forgiven():
    assert text.decode(b"A=1\0\0\0\0") == [("A", "1")]
    assert text.decode(b"\0\0\0\0") == []
    assert text.decode(b"") == []


@pytest.mark.parametrize("pair", [("", "1"), ("K" * 64, "1"), ("K=", "1"), ("K", "a\0b")])
def test_what_could_not_be_read_back_is_not_encoded(pair):
    with pytest.raises(LocalProtocolError):
        text.encode([pair])


@given(PAIRS, st.integers(1, 50))
def test_a_split_text_is_joined_again(pairs, limit):
    accumulator, whole = text.Accumulator(), None
    segments = list(text.split(text.encode(pairs), limit))
    assert all(len(data) <= limit for data, _ in segments)
    assert [continued for _, continued in segments] == [True] * (len(segments) - 1) + [False]
    for data, continued in segments:
        assert whole is None
        whole = accumulator.add(data, continued=continued)
    assert text.decode(whole) == pairs
    assert len(accumulator) == 0


def test_an_endless_text_is_cut_off_at_the_bound():
    accumulator = text.Accumulator(max_length=100)
    accumulator.add(bytes(60), continued=True)
    with pytest.raises(RemoteProtocolError, match="longer than 100"):
        accumulator.add(bytes(60), continued=True)
    assert len(accumulator) == 60


def test_c_bit_without_text_is_refused():
    with pytest.raises(RemoteProtocolError, match="C bit"):
        text.Accumulator().add(b"", continued=True)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(raw):
    try:
        pairs = text.decode(raw)
    except ProtocolError:
        return
    assert text.decode(text.encode(pairs)) == pairs
