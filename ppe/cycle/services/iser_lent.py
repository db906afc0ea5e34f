"""Memory that a verbs device has registered for one connection of the datamover: the connection's
block, and the regions of its client as they were when it began.

The one rule: the kernel registers, so the control plane writes the list before the engine has it,
and takes the memory back when the device has let go.
"""

from collections.abc import Sequence
from typing import Final

from shm.jit import nopython
from shm.layout import Field, record
from shm.view import opener, window

LENT: Final = record(Field("count", "<i8"), size=64)
PIECE: Final = record(
    Field("start", "<i8"),
    Field("end", "<i8"),
    Field("key", "<i8"),  # the engine's, in the domain of the queue pair
    Field("rkey", "<i8"),  # the peer's; 0: it has none
    size=64,
)
PIECES_MAX: Final = 64
LENT_SIZE: Final = LENT.itemsize + PIECES_MAX * PIECE.itemsize
lent_at = opener(LENT)
piece_at = opener(PIECE)
_HEAD: Final = LENT.itemsize
_SIZE: Final = PIECE.itemsize


@nopython
def piece_of(lent: int, address: int, length: int) -> int:
    """Address of the PIECE that holds all of some memory, or 0."""
    for which in range(lent_at(lent)[0]["count"]):
        place = lent + _HEAD + _SIZE * which
        piece = piece_at(place)[0]
        if piece["start"] <= address and length <= piece["end"] - address:
            return place
    return 0


def build_lent(address: int, pieces: Sequence[tuple[int, int, int, int]]) -> None:
    """Make the list in zeroed memory: start, length, key and rkey of each piece."""
    window(address, 1, LENT)[0]["count"] = len(pieces)
    rows = window(address + _HEAD, len(pieces), PIECE)
    for row, (start, length, key, rkey) in zip(rows, pieces, strict=True):
        row["start"], row["end"], row["key"], row["rkey"] = start, start + length, key, rkey
