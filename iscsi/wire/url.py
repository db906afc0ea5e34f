"""iSCSI URLs in libiscsi's form: `iscsi://[user[%password]@]host[:port][/target[/lun]][?options]`.
Every refusal names the part that is wrong and what was expected; passwords never appear in one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote

from iscsi.wire.iser.registration import REGISTRATIONS
from iscsi.wire.names import DEFAULT_PORT, Portal, name_fault, parse_decimal, parse_host

SCHEMES: Final = ("iscsi", "iser")
MAX_LUN: Final = 16383
_FORM: Final = "iscsi://[user[%password]@]host[:port]/target-name/lun"
_DIGESTS: Final = ("none", "crc32c", "none_crc32c", "crc32c_none")
# Option name -> values it may take; None for free text. `iser` and bare flags have no value.
OPTIONS: Final[Mapping[str, tuple[str, ...] | None]] = MappingProxyType(
    {
        "target_user": None,
        "target_password": None,
        "header_digest": _DIGESTS,
        "data_digest": _DIGESTS,
        "auth": ("md5", "sha1", "sha-256", "sha3-256", "none"),
        "force_usn": ("0", "1"),
        "iser": ("", "0", "1"),
        "mpa_crc": ("0", "1"),
        "iser_hello": ("0", "1"),
        "registration": REGISTRATIONS,
    }
)
_CUT_PASSWORD: Final = (
    "'/' or '?' before '@': in a password write %2F or %3F, after ':' (user:password@host)"
)
_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^\[\]:]*))(?P<colon>:(?P<port>.*))?", re.DOTALL
)


class UrlError(ValueError):
    """The URL cannot be understood; the message says which part and what was expected."""


class TargetNameError(UrlError):
    """The URL names no target where one is needed, or its name is none."""


@dataclass(frozen=True, slots=True)
class IscsiUrl:
    """A parsed URL. `target` and `lun` are None where the URL names none (discovery)."""

    host: str
    port: int = DEFAULT_PORT
    target: str | None = None
    lun: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    scheme: str = "iscsi"

    @property
    def portal(self) -> Portal:
        """The address to connect to."""
        return Portal(self.host, self.port)

    @property
    def is_iser(self) -> bool:
        """True for iser:// and for the `iser` option."""
        return self.scheme == "iser" or self.options.get("iser", "0") != "0"

    def switch(self, name: str, default: bool) -> bool:
        """An option that is 0 or 1, or what is the case without it."""
        return self.options[name] == "1" if name in self.options else default

    def __str__(self) -> str:
        """The URL without credentials."""
        path = "" if self.target is None else f"/{self.target}"
        path += "" if self.lun is None else f"/{self.lun}"
        return f"{self.scheme}://{self.portal.address}{path}"


def parse_url(url: str) -> IscsiUrl:
    """Take a URL apart; UrlError for every kind of typo.

    The password may follow `%` (libiscsi's form) or `:`; percent escapes are decoded only in the
    second, where `%` is free to mean that.
    """
    if not url.isprintable():
        raise UrlError("the URL holds control characters")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in SCHEMES:
        # What stands there may be the front part of credentials, which no message may show.
        shown = f" {scheme!r}" if separator and scheme.isalnum() else " 'none'"
        raise UrlError(f"scheme{shown}: expected {_FORM} (or iser://)")
    rest, fragment_mark, _ = rest.partition("#")
    if fragment_mark:
        raise UrlError("'#' has no meaning in an iSCSI URL; write %23 in a password")
    location, _, query = rest.partition("?")
    # Only the authority may hold '@', and iSCSI names hold none before the first '/'.
    authority, _, path = location.partition("/")
    credentials, at, address = authority.rpartition("@")
    user, password = _parse_credentials(credentials) if at else (None, None)
    if "@" in path or (not at and "@" in rest and not _looks_like_address(authority)):
        raise UrlError(_CUT_PASSWORD)
    options = MappingProxyType(_parse_options(query))
    host, port = _parse_authority(address)
    target, lun = _parse_path(path)
    return IscsiUrl(host, port, target, lun, user, password, options, scheme.lower())


def _parse_credentials(text: str) -> tuple[str, str | None]:
    colon = text.find(":")
    percent = text.find("%")
    if colon >= 0 and (percent < 0 or colon < percent):
        user, _, password = text.partition(":")
        return _required_user(unquote(user)), unquote(password)
    user, mark, rest = text.partition("%")
    return _required_user(user), rest if mark else None


def _required_user(user: str) -> str:
    if not user:
        raise UrlError("there is no user name before '@': expected user[%password]@host")
    return user


def _parse_authority(text: str) -> tuple[str, int]:
    if not text:
        raise UrlError(f"the host is missing: expected {_FORM}")
    match = _AUTHORITY.fullmatch(text)
    if "%" in text and not text.startswith("["):  # credentials that lost their '@': not shown
        raise UrlError("'%' without '@': expected user%password@host, or [IPv6%zone]")
    if match is None:
        if text.count(":") > 1 and "[" not in text:
            raise UrlError(f"an IPv6 host needs brackets: [{text}] or [{text}]:{DEFAULT_PORT}")
        raise UrlError(f"host {text!r}: expected a name, an IPv4 address or [IPv6], then [:port]")
    v6 = match["v6"]
    if v6 is None and (match["port"] or "").count(":"):
        raise UrlError(f"an IPv6 host needs brackets: [{text}] or [{text}]:{DEFAULT_PORT}")
    host = parse_host(match["host"] if v6 is None else v6, bracketed=v6 is not None)
    if host is None:
        kind = "a DNS name or IPv4 address" if v6 is None else "an IPv6 address in the brackets"
        raise UrlError(f"host {text!r}: expected {kind}")
    if match["colon"] is None:
        return host, DEFAULT_PORT
    port = parse_decimal(match["port"], 1, 65535)
    if port is None:
        raise UrlError(f"port {match['port']!r}: expected a number from 1 to 65535")
    return host, port


def _looks_like_address(text: str) -> bool:
    """False for what may be the front part of credentials, which no message may show."""
    try:
        _parse_authority(text)
    except UrlError:
        return False
    return True


def _parse_path(path: str) -> tuple[str | None, int | None]:
    parts = path.split("/")
    if parts[-1] == "":
        parts.pop()  # one trailing slash is forgiven
    if not parts:
        return None, None
    fault = name_fault(parts[0])
    if fault:
        raise TargetNameError(f"target {parts[0]!r}: {fault}")
    if len(parts) > 2:
        raise UrlError(f"path {'/' + path!r}: expected /target-name/lun and nothing after")
    if len(parts) == 1:
        return parts[0], None
    lun = parse_decimal(parts[1], 0, MAX_LUN)
    if lun is None:
        raise UrlError(f"LUN {parts[1]!r}: expected a number from 0 to {MAX_LUN}")
    return parts[0], lun


def _parse_options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        name, equals, raw = item.partition("=")
        if name not in OPTIONS:
            # A password that was cut at its '?' or '&' may stand here.
            if "@" in query:
                raise UrlError(_CUT_PASSWORD)
            if "target_password" in options:
                raise UrlError("what follows target_password= is no option: write & as %26 in it")
            raise UrlError(f"option {name!r}: expected one of {', '.join(OPTIONS)}")
        if name in options:
            raise UrlError(f"option {name!r} is given twice")
        value, allowed = unquote(raw), OPTIONS[name]
        if allowed is not None and value.lower() not in allowed:
            wanted = ", ".join(filter(None, allowed))
            raise UrlError(f"option {name}={value!r}: expected one of {wanted}")
        if allowed is None and not (equals and value):
            raise UrlError(f"option {name!r} needs a value")
        options[name] = value.lower() if allowed is not None else value
    return options
