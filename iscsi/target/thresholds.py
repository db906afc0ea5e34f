"""Logical block provisioning thresholds of a thin unit (SBC-3 §4.7.3.7, §6.5.9): what is compared
with how much room the unit takes, and which of them were crossed. No clock and no medium here:
whoever measures says what was found.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from iscsi.target.backends import Usage

DESCRIPTORS: Final = 4  # thresholds that a unit has place for
HEADER_LENGTH: Final = 16  # of the mode page, before its first descriptor
DESCRIPTOR_LENGTH: Final = 8
AVAILABLE: Final = 1  # THRESHOLD RESOURCE, as the log page numbers them
USED: Final = 2
_ENABLED: Final = 0x80
_INCREASING: Final = 0x01
# The bytes of a threshold set, at least: thresholds and counts are in these.
SET_SIZE: Final = 1 << 20
COUNT_MAX: Final = (1 << 32) - 1


def exponent(block_size: int, blocks: int) -> int:
    """THRESHOLD EXPONENT: a set has 2 to this power blocks, and fewer than 2^32 are the unit."""
    usual = (SET_SIZE // block_size).bit_length() - 1
    return max(usual, blocks.bit_length() - 32)


@dataclass(frozen=True, slots=True)
class Threshold:
    """One descriptor: `count` sets of a resource. The used one is watched as it grows, the
    available one as it shrinks; there are no others (SBC-3 table 7). `resource` 0: none.
    """

    resource: int = 0
    count: int = 0
    enabled: bool = False

    def encode(self) -> bytes:
        """Eight bytes of the mode page."""
        arming = _INCREASING if self.resource == USED else 0
        return bytes((_ENABLED * self.enabled | arming, self.resource, 0, 0)) + self.count.to_bytes(
            4, "big"
        )

    @classmethod
    def decode(cls, raw: bytes) -> "Threshold | None":
        """Read eight bytes; None for a combination that is reserved."""
        enabled, kind, resource = bool(raw[0] & _ENABLED), raw[0] & 0x7F, raw[1]
        found = cls(resource, int.from_bytes(raw[4:8], "big"), enabled)
        known = {USED: _INCREASING, AVAILABLE: 0}
        if resource in known:
            return found if kind == known[resource] else None
        return None if enabled or resource or kind else found


@dataclass(frozen=True, slots=True)
class Reached:
    """A threshold was crossed: the `offset` of its descriptor in the mode page."""

    offset: int
    threshold: Threshold
    usage: Usage


class Thresholds:
    """Those of one unit. `notifies`: LBPERE of the error recovery mode page."""

    def __init__(self, defaults: Iterable[Threshold] = ()) -> None:
        self.defaults = _filled(defaults)
        self.reset()

    def reset(self) -> None:
        """Back to the defaults, none of them reached so far (a logical unit reset)."""
        self.notifies = True
        self.descriptors = self.defaults
        self._armed = [True] * DESCRIPTORS

    def set(self, descriptors: Iterable[Threshold]) -> None:
        """Watch these. A new one that is past already is reported as soon as that is seen."""
        before, self.descriptors = self.descriptors, _filled(descriptors)
        for number, (old, new) in enumerate(zip(before, self.descriptors, strict=True)):
            self._armed[number] |= old != new

    def set_defaults(self, defaults: Iterable[Threshold]) -> None:
        """Watch what the operator wants, now and after a reset."""
        self.defaults = _filled(defaults)
        self.set(self.defaults)

    @property
    def is_watching(self) -> bool:
        """Whether anything could be reported."""
        return self.notifies and any(found.enabled for found in self.descriptors)

    def look(self, usage: Usage, set_size: int, size: int) -> list[Reached]:
        """What was reached since the last look. `set_size`, `size` of the unit: bytes."""
        found = []
        for number, each in enumerate(self.descriptors):
            if not each.enabled or not self._is_reached(number, usage, set_size, size):
                continue
            self._armed[number] = False
            if self.notifies:
                offset = HEADER_LENGTH + DESCRIPTOR_LENGTH * number
                found.append(Reached(offset, each, usage))
        return found

    def _is_reached(self, number: int, usage: Usage, set_size: int, size: int) -> bool:
        """Whether one has been crossed, half a set behind its count; it is armed again half a set
        before it. Where there is no room for half a set, at the end (which note c of the figures
        in SBC-3 §4.7.3.7.4 and 5 permits).
        """
        each = self.descriptors[number]
        low = each.count * set_size - set_size // 2
        high = low + set_size
        if each.resource == USED:
            self._armed[number] |= usage.used < low
            return self._armed[number] and usage.used >= min(high, size)
        self._armed[number] |= usage.available > high
        return self._armed[number] and usage.available <= max(low, 0)


def _filled(descriptors: Iterable[Threshold]) -> tuple[Threshold, ...]:
    found = tuple(descriptors)
    if len(found) > DESCRIPTORS:
        raise ValueError(f"{len(found)} thresholds: a unit has place for {DESCRIPTORS}")
    return found + (Threshold(),) * (DESCRIPTORS - len(found))


def warning(resource: int, size: int, set_size: int) -> Threshold:
    """The enabled threshold at this many bytes, in whole sets and never none of them."""
    return Threshold(resource, min(max(1, round(size / set_size)), COUNT_MAX), enabled=True)
