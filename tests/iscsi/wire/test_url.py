"""URLs: what is understood, and what each typo is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.wire.names import Portal
from iscsi.wire.url import IscsiUrl, UrlError, parse_url

IQN = "iqn.2026-01.example:disk"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"iscsi://host/{IQN}/1", IscsiUrl("host", 3260, IQN, 1)),
        (f"iscsi://10.0.0.1:3261/{IQN}/0/", IscsiUrl("10.0.0.1", 3261, IQN, 0)),
        (f"iscsi://[fe80::1]:3261/{IQN}/7", IscsiUrl("fe80::1", 3261, IQN, 7)),
        (f"iscsi://[::1]/{IQN}", IscsiUrl("::1", 3260, IQN)),
        ("iscsi://host:3261", IscsiUrl("host", 3261)),
        ("ISCSI://host/", IscsiUrl("host")),
        (f"iser://host/{IQN}/1", IscsiUrl("host", 3260, IQN, 1, scheme="iser")),
        (f"iscsi://me%pa:ss@host/{IQN}/1", IscsiUrl("host", 3260, IQN, 1, "me", "pa:ss")),
        (f"iscsi://me:p%40ss@host/{IQN}/1", IscsiUrl("host", 3260, IQN, 1, "me", "p@ss")),
        (f"iscsi://me%p%40@host/{IQN}/1", IscsiUrl("host", 3260, IQN, 1, "me", "p%40")),
        (f"iscsi://me%p@ss@host/{IQN}/1", IscsiUrl("host", 3260, IQN, 1, "me", "p@ss")),
        (f"iscsi://me@host/{IQN}/1", IscsiUrl("host", 3260, IQN, 1, "me")),
        (
            f"iscsi://host/{IQN}/1?header_digest=CRC32C&target_user=a&target_password=b%26c&iser",
            IscsiUrl(
                "host",
                3260,
                IQN,
                1,
                options={
                    "header_digest": "crc32c",
                    "target_user": "a",
                    "target_password": "b&c",
                    "iser": "",
                },
            ),
        ),
    ],
)
def test_a_url_is_taken_apart(url, expected):
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "scheme 'none': expected iscsi://"),
        ("host/iqn", "scheme 'none'"),
        ("http://host", "scheme 'http'"),
        ("iscsi:/host", "scheme 'none'"),
        ("iscsi://", "host is missing"),
        (f"iscsi:///{IQN}/0", "host is missing"),
        ("iscsi://host:", "port ''"),
        ("iscsi://host:0", "1 to 65535"),
        ("iscsi://host:70000", "1 to 65535"),
        ("iscsi://host:3260x", "port '3260x'"),
        ("iscsi://::1/x", r"brackets: \[::1\]"),
        ("iscsi://fe80::1:3260", "brackets"),
        ("iscsi://[::1", "host"),
        ("iscsi://[zz]:3260", "IPv6 address in the brackets"),
        ("iscsi://ho st", "DNS name"),
        ("iscsi://@host", "no user name"),
        ("iscsi://%secret@host", "no user name"),
        ("iscsi://host/iqn:2026-01.example/0", r"target .* expected iqn\.YYYY-MM"),
        ("iscsi://host//0", "the name is empty"),
        (f"iscsi://host/{IQN}/x", "LUN 'x': expected a number"),
        (f"iscsi://host/{IQN}/-1", "LUN '-1'"),
        (f"iscsi://host/{IQN}/16384", "0 to 16383"),
        (f"iscsi://host/{IQN}/0/1", "nothing after"),
        (f"iscsi://host/{IQN}/0?digest=none", "option 'digest': expected one of"),
        (f"iscsi://host/{IQN}/0?header_digest=md5", "none, crc32c"),
        (f"iscsi://host/{IQN}/0?iser&iser", "given twice"),
        (f"iscsi://host/{IQN}/0?target_user", "needs a value"),
        (f"iscsi://host/{IQN}/0#1", "'#'"),
    ],
)
def test_a_typo_is_told_what_was_expected(url, told):
    with pytest.raises(UrlError, match=told):
        parse_url(url)


def test_passwords_are_shown_nowhere():
    url = parse_url(f"iscsi://me%hunter2@host/{IQN}/1?target_user=t&target_password=hunter3")
    assert "hunter" not in repr(url) + str(url)
    assert str(url) == f"iscsi://host:3260/{IQN}/1"
    typos = [
        "me%hunter2@host:0",
        "%hunter2@host",
        "me%hunter2@[::",
        "me%hunter/2@h",
        "me:hunter?@h",
    ]
    for typo in (f"iscsi://{rest}" for rest in typos):
        with pytest.raises(UrlError) as caught:
            parse_url(typo)
        assert "hunter" not in str(caught.value)


CUT = st.text(st.sampled_from("/?#&%@:=[]+ 0"), min_size=1, max_size=4)


@given(st.sampled_from(["me%", "me:", "", "me:3260/"]), st.lists(CUT, min_size=1, max_size=3))
def test_no_password_is_shown_however_it_is_cut(front, pieces):
    password = "hunter" + "hunter".join(pieces) + "hunter"
    path = f"host/{IQN}/0"
    forms = [
        f"iscsi://{front}{password}@{path}",
        f"{front}{password}@iscsi://{path}",
        f"iscsi://me%x@{path}?target_user=t&target_password={password}",
    ]
    for url in forms:
        try:
            shown = repr(parse_url(url))
        except UrlError as error:
            shown = str(error)
        if not front and url is forms[0]:
            continue  # Without a user the text before '@' is one.
        assert "hunter" not in shown, shown


def test_what_is_on_or_off_over_rdma_is_said_by_0_or_1():
    url = parse_url(f"iser://h/{IQN}/0?mpa_crc=0&iser_hello=1")
    assert [url.switch("mpa_crc", True), url.switch("iser_hello", False)] == [False, True]
    assert parse_url(f"iser://h/{IQN}/0").switch("mpa_crc", True)
    with pytest.raises(UrlError, match="mpa_crc='maybe': expected one of 0, 1"):
        parse_url(f"iser://h/{IQN}/0?mpa_crc=maybe")


def test_iser_is_asked_for_by_scheme_or_option():
    urls = [f"iser://h/{IQN}/0", f"iscsi://h/{IQN}/0?iser", f"iscsi://h/{IQN}/0?iser=0"]
    assert [parse_url(url).is_iser for url in urls] == [True, True, False]
    assert parse_url("iscsi://[::1]:9").portal == Portal("::1", 9)


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_a_url_error(rest):
    try:
        url = parse_url("iscsi://" + rest)
    except UrlError:
        return
    assert url.host
    assert 0 < url.port < 65536


@pytest.mark.parametrize("text", ["iscsi://use%secret:1/iqn.x/0", "iscsi://u%secret::1]:3/iqn.x/0"])
def test_credentials_that_lost_their_at_sign_are_not_shown(text):
    with pytest.raises(UrlError) as caught:
        parse_url(text)
    assert "secret" not in str(caught.value)


def test_control_characters_are_refused_unshown():
    with pytest.raises(UrlError, match="holds control characters"):
        parse_url("iscsi://host\x1b[2J/iqn.x/0")
