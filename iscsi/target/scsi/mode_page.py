"""What a mode page is to MODE SENSE and MODE SELECT, and where one begins and ends in their data
(SPC-4 §7.5.7): with a subpage code and two bytes of length, or with neither.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from iscsi.target.units import LogicalUnit

PageKey = tuple[int, int]  # page and subpage code
SUBPAGE: Final = 0x40  # SPF
_CODE: Final = 0x3F


def _always(_: object) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Page:
    """A mode page: its values now and by default, the bits MODE SELECT may change, and how. All of
    them are the whole page, with its header. `is_possible`: whether such values can be together;
    `offered`: whether a unit has the page.
    """

    current: Callable[[LogicalUnit], bytes]
    default: Callable[[LogicalUnit], bytes]
    changeable: Callable[[LogicalUnit], bytes]
    set: Callable[[LogicalUnit, bytes], None]
    is_possible: Callable[[bytes], bool] = _always
    offered: Callable[[LogicalUnit], bool] = _always


def key_of(raw: bytes) -> PageKey:
    """Which page this is. PS is reserved in MODE SELECT, and left out of account."""
    return raw[0] & _CODE, raw[1] if raw[0] & SUBPAGE else 0


def length_of(raw: bytes) -> int:
    """The bytes of the page that begins here; more than there are if its header is cut off."""
    if len(raw) < 2:
        return len(raw) + 1
    if not raw[0] & SUBPAGE:
        return 2 + raw[1]
    return 4 + int.from_bytes(raw[2:4], "big") if len(raw) >= 4 else len(raw) + 1
