"""How often a unit was read and written, and how many bytes went: compiled code counts in the
table's entry of each place a unit has, cold code adds to the same entry, and what a place that is
gone had counted stays with the unit. All in the server's thread.
"""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Counts:
    """READ-like and WRITE-like commands, and the bytes they moved."""

    reads: int = 0
    writes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0

    @classmethod
    def of(cls, entry: Any) -> "Counts":
        """Those of a LUN record."""
        return cls(*(int(entry[each.name]) for each in fields(cls)))

    @classmethod
    def one(cls, length: int, *, is_write: bool) -> "Counts":
        """One command that moved `length` bytes."""
        return cls(writes=1, written_bytes=length) if is_write else cls(1, 0, length)

    def __add__(self, other: "Counts") -> "Counts":
        """Both together."""
        return Counts(*(a + b for a, b in zip(self.numbers, other.numbers, strict=True)))

    def __sub__(self, other: "Counts") -> "Counts":
        """What came since `other` was counted."""
        return Counts(*(a - b for a, b in zip(self.numbers, other.numbers, strict=True)))

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """The four, in the order of the fields."""
        return self.reads, self.writes, self.read_bytes, self.written_bytes

    def write_to(self, entry: Any) -> None:
        """Put them into a LUN record."""
        for each, number in zip(fields(self), self.numbers, strict=True):
            entry[each.name] = number
