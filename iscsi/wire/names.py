"""iSCSI names and portal addresses (RFC 7143 §4.2.7, §13.8): checked once, here, for both roles.
A name or address taken from the wire is shown to people, so control characters never pass.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

DEFAULT_PORT: Final = 3260
MAX_NAME_LENGTH: Final = 223

_FORMATS: Final = re.compile(
    r"iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[^\s:]+(:.*)?|eui\.[0-9a-f]{16}|naa\.([0-9a-f]{16}){1,2}",
    re.IGNORECASE,
)
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._\-]*[A-Za-z0-9.])?")
_ADDRESS: Final = re.compile(
    r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^\[\]:,]*))(?::(?P<port>[^:,]*))?(?:,(?P<tag>[^:,]*))?"
)


@dataclass(frozen=True, slots=True)
class Portal:
    """One address of a target. `portal_group_tag` is None where the text named none."""

    host: str
    port: int = DEFAULT_PORT
    portal_group_tag: int | None = None

    def __str__(self) -> str:
        tag = "" if self.portal_group_tag is None else f",{self.portal_group_tag}"
        return f"{self.address}{tag}"

    @property
    def address(self) -> str:
        """`host:port`, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_printable(text: str) -> bool:
    """True if the text is non-empty and has neither control characters nor spaces."""
    return bool(text) and text.isprintable() and not any(c.isspace() for c in text)


def name_fault(name: str, *, strict: bool = True) -> str | None:
    """What is wrong with an iSCSI name, or None. `strict` also asks for iqn., eui. or naa. form;
    from the wire any printable name is taken, since targets in the field use such.
    """
    if not name:
        return "the name is empty"
    if len(name.encode(errors="replace")) > MAX_NAME_LENGTH:
        return f"the name is longer than {MAX_NAME_LENGTH} bytes"
    if not is_printable(name):
        return "the name holds a control character or a space"
    if strict and not _FORMATS.fullmatch(name):
        return "expected iqn.YYYY-MM.reversed.domain[:anything], eui.<16 hex> or naa.<16/32 hex>"
    return None


def parse_host(host: str, *, bracketed: bool) -> str | None:
    """The host as given, or None if it is no DNS name, IPv4 or (in brackets) IPv6 address."""
    if bracketed:
        address, percent, zone = host.partition("%")
        try:
            IPv6Address(address)
        except ValueError:
            return None
        return host if not percent or _HOST.fullmatch(zone) else None
    return host if len(host) <= 255 and _HOST.fullmatch(host) else None


def parse_decimal(text: str, low: int, high: int) -> int | None:
    """A decimal number of plain ASCII digits within [low, high], or None."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    return int(text) if low <= int(text) <= high else None


def parse_address(text: str) -> Portal | None:
    """`host[:port][,portal-group-tag]` as in TargetAddress; None if it is not of that form."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return None
    v6, port_text, tag_text = match["v6"], match["port"], match["tag"]
    host = parse_host(match["host"] if v6 is None else v6, bracketed=v6 is not None)
    port = DEFAULT_PORT if port_text is None else parse_decimal(port_text, 1, 65535)
    tag = None if tag_text is None else parse_decimal(tag_text, 0, 65535)
    if host is None or port is None or (tag is None and tag_text is not None):
        return None
    return Portal(host, port, tag)
