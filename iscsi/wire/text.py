"""key=value text of Login and Text PDUs (RFC 7143 §6.1): encoding, decoding with limits, and the
C bit that lets one text span several PDUs. Memory held for an unfinished text is bounded.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError

Pair = tuple[str, str]

MAX_KEY_LENGTH: Final = 63
MAX_VALUE_LENGTH: Final = 255
MAX_TEXT_LENGTH: Final = 64 * 1024  # one login text over all its PDUs; far above any seen

NOT_UNDERSTOOD: Final = "NotUnderstood"
IRRELEVANT: Final = "Irrelevant"
REJECT: Final = "Reject"
REFUSALS: Final = (NOT_UNDERSTOOD, IRRELEVANT, REJECT)  # answers that settle no value
NONE: Final = "None"
YES: Final = "Yes"
NO: Final = "No"

# A capital first (RFC 7143 §6.1), but for iSCSIProtocolLevel and iSERHelloRequired.
_KEY: Final = re.compile(r"i?[A-Z][A-Za-z0-9.\-+@_#]*")


def _default_limit(key: str) -> int:
    return MAX_VALUE_LENGTH


def encode(pairs: Iterable[Pair]) -> bytes:
    """Each pair as `key=value` and a NUL. LocalProtocolError for what could not be read back."""
    out = bytearray()
    for key, value in pairs:
        if len(key) > MAX_KEY_LENGTH or not _KEY.fullmatch(key):
            raise LocalProtocolError(f"not a text key: {key!r}")
        if "\0" in value:
            raise LocalProtocolError(f"the value of {key} holds a NUL")
        out += f"{key}={value}\0".encode()
    return bytes(out)


def decode(
    data: bytes | bytearray | memoryview, value_limit: Callable[[str], int] = _default_limit
) -> list[Pair]:
    """The pairs of one complete text, in order, duplicates kept.

    RemoteProtocolError for a missing '=' or final NUL, a key that is malformed or longer than
    63 bytes, a value longer than `value_limit(key)` bytes, or bytes that are not UTF-8.
    Trailing NULs are ignored: some peers count the padding into DataSegmentLength.
    """
    raw = bytes(data)
    if not raw.strip(b"\0"):
        return []
    if raw[-1]:
        raise RemoteProtocolError("the last key=value pair has no final NUL")
    return [_decode_pair(item, value_limit) for item in raw.rstrip(b"\0").split(b"\0")]


def _decode_pair(item: bytes, value_limit: Callable[[str], int]) -> Pair:
    raw_key, equals, raw_value = item.partition(b"=")
    if not equals:
        raise RemoteProtocolError(f"text without '=': {item[:MAX_KEY_LENGTH]!r}")
    if len(raw_key) > MAX_KEY_LENGTH:
        raise RemoteProtocolError(f"key of {len(raw_key)} bytes; {MAX_KEY_LENGTH} are allowed")
    try:
        key, value = raw_key.decode("ascii"), raw_value.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"text that is not UTF-8 in {raw_key!r}") from None
    if not _KEY.fullmatch(key):
        raise RemoteProtocolError(f"malformed key {key!r}")
    if len(raw_value) > value_limit(key):
        raise RemoteProtocolError(
            f"value of {key} has {len(raw_value)} bytes; {value_limit(key)} are allowed"
        )
    return key, value


def split(data: bytes, limit: int) -> Iterator[tuple[bytes, bool]]:
    """Cut a text into data segments of at most `limit` bytes, each with its C bit.

    An empty text is one empty segment. A pair may be cut anywhere (RFC 7143 §6.2).
    """
    if limit < 1:
        raise LocalProtocolError(f"a data segment holds at least one byte, not {limit}")
    start = 0
    while len(data) - start > limit:
        yield data[start : start + limit], True
        start += limit
    yield data[start:], False


class Accumulator:
    """Joins the data segments of one text; holds at most `max_length` bytes."""

    __slots__ = ("_max_length", "_parts")

    def __init__(self, max_length: int = MAX_TEXT_LENGTH) -> None:
        self._max_length = max_length
        self._parts = bytearray()

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, data: bytes | bytearray | memoryview, *, continued: bool) -> bytes | None:
        """Take one segment; the whole text when `continued` (the C bit) is clear, else None.

        RemoteProtocolError for a text above the bound, or a C bit on an empty segment, with
        which a peer could keep an exchange going for ever.
        """
        if len(self._parts) + len(data) > self._max_length:
            raise RemoteProtocolError(f"text longer than {self._max_length} bytes")
        if continued and not len(data):
            raise RemoteProtocolError("the C bit is set on a PDU without text")
        self._parts += data
        if continued:
            return None
        whole = bytes(self._parts)
        self._parts.clear()
        return whole
