"""How one transfer over several pieces of memory becomes commands: each gets whole blocks and no
more runs than a command can name. Pieces the engine may touch are used where they lie; others, and
what cannot be cut at a block, go through a buffer. Nothing here moves or asks anything.
"""

import ctypes
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from iscsi.session.job_records import PART
from iscsi.wire.mover import VECTORS_MAX
from iscsi.wire.runs import RUN

COPY_BELOW: Final = 512  # bytes: a shorter piece costs more as a run of its own than as a copy
# The same where a command has one run only, so that a piece in place is a command of its own.
COPY_BELOW_ALONE: Final = 32 << 10


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the transfer that lie together. `in_place`: the engine may touch them."""

    address: int
    length: int
    in_place: bool


@dataclass(slots=True)
class Gather:
    """Some of a transfer's commands: PART and RUN records for the compiled code, which `place`
    makes, and what is to be copied between the pieces and a buffer of `bounce` bytes.
    """

    blocks: int = 0
    bounce: int = 0
    parts: NDArray[Any] = field(default_factory=lambda: np.zeros(0, PART))
    runs: NDArray[Any] = field(default_factory=lambda: np.zeros(0, RUN))
    _counts: list[tuple[int, int]] = field(default_factory=list)
    _found: list[tuple[int, int, bool]] = field(default_factory=list)  # address or offset, length
    _copies: list[tuple[int, int, int]] = field(default_factory=list)  # offset, address, length

    def add(self, pieces: Iterable[Piece], blocks: int) -> None:
        """Add one command over these pieces, which are `blocks` blocks in all."""
        before = len(self._found)
        for piece in pieces:
            if piece.in_place:
                self._found.append((piece.address, piece.length, True))
                continue
            self._copies.append((self.bounce, piece.address, piece.length))
            if len(self._found) > before and not self._found[-1][2]:
                start, length, _ = self._found.pop()
                self._found.append((start, length + piece.length, False))
            else:
                self._found.append((self.bounce, piece.length, False))
            self.bounce += piece.length
        self._counts.append((blocks, len(self._found) - before))
        self.blocks += blocks

    def place(self, base: int) -> None:
        """Make the records, with the buffer at `base`."""
        self.parts = np.array(self._counts, PART)
        lies = [(at if in_place else base + at, length) for at, length, in_place in self._found]
        self.runs = np.array(lies, RUN)

    def copy_in(self, base: int) -> None:
        """Copy what is to be written into the buffer at `base`."""
        for offset, address, length in self._copies:
            ctypes.memmove(base + offset, address, length)

    def copy_out(self, base: int) -> None:
        """Copy what was read to where it belongs."""
        for offset, address, length in self._copies:
            ctypes.memmove(address, base + offset, length)


def check_overlaps(pieces: Iterable[Piece]) -> None:
    """Raise ValueError if some byte would be read into twice."""
    end = 0
    for piece in sorted(pieces, key=lambda piece: piece.address):
        if piece.address < end:
            raise ValueError("two of the buffers overlap: each byte is to be read into once")
        end = piece.address + piece.length


def gathers(
    pieces: Iterable[Piece],
    block_size: int,
    per_command: int,
    bounce_size: int,
    most: int = VECTORS_MAX,
) -> Iterator[Gather]:
    """Cut a transfer over whole blocks into commands of up to `per_command` blocks and `most` runs.

    Each Gather takes a buffer of up to `bounce_size` bytes, a whole block or more.
    """
    rest = deque(pieces)
    if not all(piece.in_place for piece in rest):
        per_command = min(per_command, bounce_size // block_size)
    found = Gather()
    while rest:
        size = _reach(rest, per_command * block_size, most) // block_size * block_size
        taken = list(_take(rest, size or block_size))
        if not size:  # No end of a block lies within so many runs.
            taken = [Piece(piece.address, piece.length, False) for piece in taken]
        copied = sum(piece.length for piece in taken if not piece.in_place)
        if found.blocks and found.bounce + copied > bounce_size:
            yield found
            found = Gather()
        found.add(taken, (size or block_size) // block_size)
    if found.blocks:
        yield found


def _reach(pieces: Iterable[Piece], size: int, most: int) -> int:
    """How many bytes, up to `size`, the first `most` runs hold. Copied neighbours are one run."""
    covered, count, was_copied = 0, 0, False
    for piece in pieces:
        if piece.in_place or not was_copied:
            if count == most:
                return covered
            count += 1
        covered += piece.length
        was_copied = not piece.in_place
        if covered >= size:
            return size
    return covered


def _take(pieces: deque[Piece], size: int) -> Iterator[Piece]:
    """Take `size` bytes from the front, cutting the last piece."""
    while size:
        piece = pieces.popleft()
        length = min(piece.length, size)
        if length < piece.length:
            left = piece.length - length
            pieces.appendleft(Piece(piece.address + length, left, piece.in_place))
        yield Piece(piece.address, length, piece.in_place)
        size -= length
