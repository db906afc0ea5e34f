"""SendTargets in both roles, and the names and addresses in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.wire import discovery, text
from iscsi.wire.discovery import DiscoveredTarget
from iscsi.wire.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from iscsi.wire.names import Portal, name_fault, parse_address
from tests.iscsi.wire.captured import TEXT_REQUEST, TEXT_RESPONSE

HOSTS = st.one_of(
    st.ip_addresses().map(str), st.from_regex(r"[a-z][a-z0-9\-]{0,20}[a-z0-9]", fullmatch=True)
)
PORTALS = st.builds(Portal, HOSTS, st.integers(1, 65535), st.none() | st.integers(0, 65535))
TARGETS = st.lists(
    st.builds(
        DiscoveredTarget,
        st.integers(0, 10**6).map("iqn.2026-01.example:{}".format),
        st.lists(PORTALS, max_size=4, unique=True).map(tuple),
    ),
    max_size=6,
    unique_by=lambda target: target.name,
)


@given(TARGETS)
def test_what_a_target_lists_an_initiator_finds(targets):
    assert discovery.parse_response(discovery.build_response(targets)) == targets


def test_tgts_answer_is_understood():
    found = discovery.parse_response(TEXT_RESPONSE[48:])
    assert found == [DiscoveredTarget("iqn.2026-01.example:disk", (Portal("127.0.0.1", 41595, 1),))]


def test_libiscsis_question_is_understood():
    assert discovery.parse_request(text.decode(TEXT_REQUEST[48:])) == "All"
    assert discovery.build_request() == TEXT_REQUEST[48:]
    assert discovery.parse_request([("X-a", "1")]) is None


def test_records_of_one_target_are_joined():
    raw = b"TargetName=a\0TargetName=b\0TargetName=a\0TargetAddress=h:1,2\0TargetAddress=h:1,2\0"
    assert discovery.parse_response(raw) == [
        DiscoveredTarget("a", (Portal("h", 1, 2),)),
        DiscoveredTarget("b"),
    ]


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"TargetName=iqn\x1b[2J\0", "control character"),
        (b"TargetName=a\nb\0", "control character"),
        ("TargetName=a\u202eb\0".encode(), "control character"),
        (b"TargetName=\0", "empty"),
        (b"TargetName=" + b"n" * 224 + b"\0", "longer than 223"),
        (b"TargetAddress=h:1,1\0", "before any TargetName"),
        (b"TargetName=a\0TargetAddress=h\x07:1\0", "malformed TargetAddress"),
        (b"TargetName=a\0TargetAddress=::1:3260,1\0", "malformed TargetAddress"),
        (b"TargetName=a\0TargetAddress=h:0\0", "malformed TargetAddress"),
        (b"TargetName=a\0TargetAddress=h:3260,70000\0", "malformed TargetAddress"),
        (b"TargetName=a\0TargetAddress=\0", "malformed TargetAddress"),
    ],
)
def test_a_record_not_fit_to_print_is_refused(raw, complaint):
    with pytest.raises(RemoteProtocolError, match=complaint):
        discovery.parse_response(raw)


def test_the_number_of_targets_and_portals_is_bounded():
    many = discovery.build_response(DiscoveredTarget(f"t{i}") for i in range(10_000))
    assert len(discovery.parse_response(many)) == 10_000
    with pytest.raises(RemoteProtocolError, match="more than 9999 targets"):
        discovery.parse_response(many, max_targets=9_999)
    portals = tuple(Portal("h", port) for port in range(1, discovery.MAX_PORTALS + 2))
    with pytest.raises(RemoteProtocolError, match="portals"):
        discovery.parse_response(discovery.build_response([DiscoveredTarget("t", portals)]))


def test_a_list_of_many_targets_spans_pdus():
    whole = discovery.build_response(DiscoveredTarget(f"t{i}") for i in range(1000))
    accumulator = discovery.accumulator()
    parts = [accumulator.add(d, continued=more) for d, more in text.split(whole, 8192)]
    assert parts[:-1] == [None] * (len(parts) - 1)
    assert parts[-1] == whole


def test_a_target_with_an_unprintable_name_is_not_listed():
    with pytest.raises(LocalProtocolError, match="control character"):
        discovery.build_response([DiscoveredTarget("a b")])


@given(st.binary(max_size=120))
def test_any_bytes_are_targets_or_refused(raw):
    try:
        found = discovery.parse_response(b"TargetName=t\0TargetAddress=" + raw + b"\0")
    except ProtocolError:
        return
    assert all(target.name.isprintable() for target in found)


@pytest.mark.parametrize(
    ("written", "portal"),
    [
        ("10.0.0.1", Portal("10.0.0.1")),
        ("disk.example:3261,2", Portal("disk.example", 3261, 2)),
        ("[fe80::1%eth0]:3260,1", Portal("fe80::1%eth0", 3260, 1)),
        ("[::1]", Portal("::1")),
        ("[::g]", None),
        ("[1.2.3.4]", None),
        ("host:", None),
        ("host,", None),
        ("-host", None),
        ("host:٣", None),
        ("h" * 300, None),
    ],
)
def test_addresses_are_taken_apart(written, portal):
    assert parse_address(written) == portal
    if portal:
        assert parse_address(str(portal)) == portal


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("iqn.2026-01.example:disk", True),
        ("iqn.2026-01.com.example", True),
        ("eui.0123456789abcdef", True),
        ("naa.0123456789ABCDEF0123456789ABCDEF", True),
        ("iqn.2026-13.example:disk", False),
        ("iqn:2026-01.example", False),
        ("eui.0123", False),
        ("naa.0123456789abcdef01", False),
        ("disk", False),
    ],
)
def test_names_of_the_three_forms_pass(name, good):
    assert (name_fault(name) is None) == good
    assert name_fault(name, strict=False) is None
