"""The mode pages of a unit with provisioning thresholds: Logical Block Provisioning (SBC-3 §6.5.9)
with its descriptors, and Read-Write Error Recovery (SBC-3 §6.5.10), of which only LBPERE, whether
thresholds are reported, can be changed. It is on by default: who sets a threshold wants to know.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from iscsi.target.scsi.mode_page import SUBPAGE, Page, PageKey
from iscsi.target.thresholds import (
    DESCRIPTOR_LENGTH,
    DESCRIPTORS,
    HEADER_LENGTH,
    Threshold,
    Thresholds,
)
from iscsi.target.units import LogicalUnit
from iscsi.wire.scsi_data import ModePage

PROVISIONING: Final[PageKey] = (ModePage.INFORMATIONAL_EXCEPTIONS, 0x02)
RECOVERY: Final[PageKey] = (ModePage.READ_WRITE_ERROR_RECOVERY, 0)
_LBPERE: Final = 0x80
_LBPERE_AT: Final = 7
# ENABLED and the arming's only bit; the two resources; the count.
_CHANGEABLE: Final = bytes((0x81, 0x03, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF))


def _thresholds(unit: LogicalUnit) -> Thresholds:
    assert unit.thresholds is not None, "only units that have thresholds have these pages"
    return unit.thresholds


def _provisioning(descriptors: Iterable[bytes]) -> bytes:
    """SITUA is 0: every nexus is told."""
    code, subpage = PROVISIONING
    length = HEADER_LENGTH - 4 + DESCRIPTOR_LENGTH * DESCRIPTORS
    head = bytes((SUBPAGE | code, subpage)) + length.to_bytes(2, "big")
    return head.ljust(HEADER_LENGTH, b"\0") + b"".join(descriptors)


def _descriptors(page: bytes) -> list[Threshold | None]:
    ends = range(HEADER_LENGTH, len(page), DESCRIPTOR_LENGTH)
    return [Threshold.decode(page[at : at + DESCRIPTOR_LENGTH]) for at in ends]


def _set_provisioning(unit: LogicalUnit, page: bytes) -> None:
    _thresholds(unit).set(found for found in _descriptors(page) if found is not None)


def _recovery(notifies: bool) -> bytes:
    """No retries and no limit on their time: a backend says at once what it can do."""
    page = bytearray(12)
    page[0], page[1] = RECOVERY[0], len(page) - 2
    page[_LBPERE_AT] = _LBPERE * notifies
    return bytes(page)


def _set_recovery(unit: LogicalUnit, page: bytes) -> None:
    _thresholds(unit).notifies = bool(page[_LBPERE_AT] & _LBPERE)


def _offered(unit: LogicalUnit) -> bool:
    return unit.thresholds is not None


PAGES: Final[Mapping[PageKey, Page]] = {
    RECOVERY: Page(
        lambda unit: _recovery(_thresholds(unit).notifies),
        lambda unit: _recovery(notifies=True),
        lambda unit: _recovery(notifies=True),
        _set_recovery,
        offered=_offered,
    ),
    PROVISIONING: Page(
        lambda unit: _provisioning(each.encode() for each in _thresholds(unit).descriptors),
        lambda unit: _provisioning(each.encode() for each in _thresholds(unit).defaults),
        lambda unit: _provisioning([_CHANGEABLE] * DESCRIPTORS),
        _set_provisioning,
        is_possible=lambda page: None not in _descriptors(page),
        offered=_offered,
    ),
}
