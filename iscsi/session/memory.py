"""Memory of a session that is not shared with the engine: records on a cache line of their own."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shm.view import address_of


def aligned_zeros(size: int, alignment: int = 64) -> NDArray[Any]:
    """`size` zero bytes at a multiple of `alignment`; the array keeps them alive."""
    raw = np.zeros(size + alignment, np.uint8)
    start = -address_of(raw) % alignment
    return raw[start : start + size]
