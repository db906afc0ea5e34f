"""Serial numbers of 32 bits that wrap (RFC 1982 as RFC 7143 §4.2.2 uses it), and command windows.
One rule: sequence numbers are never compared with `<`, only with the functions here.
"""

from typing import Final

from shm.jit import nopython

MASK: Final = 0xFFFFFFFF
HALF: Final = 1 << 31


@nopython
def add(sn: int, count: int) -> int:
    """The serial number `count` (may be negative) after `sn`."""
    return (sn + count) & MASK


@nopython
def distance(start: int, end: int) -> int:
    """How far `end` lies after `start`: -2^31 .. 2^31 - 1, negative if it lies before."""
    forward = (end - start) & MASK
    return forward - (MASK + 1) if forward >= HALF else forward


@nopython
def is_after(sn: int, other: int) -> bool:
    """Whether `sn` is later than `other`; numbers exactly half the circle apart are not."""
    forward = (sn - other) & MASK
    return 0 < forward < HALF


@nopython
def window_size(first: int, last: int) -> int:
    """Numbers in [first, last]; 0 for the closed window last = first - 1, and for nonsense."""
    size = (last - first + 1) & MASK
    return size if size < HALF else 0


@nopython
def in_window(sn: int, first: int, last: int) -> bool:
    """Whether `sn` lies in [first, last] (RFC 7143 §4.2.2.1: ExpCmdSN to MaxCmdSN)."""
    return ((sn - first) & MASK) < window_size(first, last)
