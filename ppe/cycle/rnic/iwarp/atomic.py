"""Atomic Operations on 64-bit words of registered memory (RFC 7306 §5.1), indivisible for every
CPU and every other queue pair. The word is in the machine's byte order, as its programs see it.
"""

from ppe.cycle.rnic.iwarp.wire import (
    ATOMIC_COMPARE,
    ATOMIC_COMPARE_MASK,
    ATOMIC_DATA,
    ATOMIC_MASK,
    FETCH_ADD,
    SWAP,
)
from ppe.cycle.rnic.memory import wrap
from shm.atomics import compare_exchange, load_relaxed
from shm.jit import nopython
from shm.memory import load_64_be


@nopython
def masked_sum(one: int, other: int, mask: int) -> int:
    """Sum of two words as fields: each bit of `mask` is the top of one, where its carry ends."""
    below = ~mask
    carried = wrap((one & below) + (other & below))
    return carried ^ (one ^ other) & mask


@nopython
def masked_swap(there: int, data: int, mask: int) -> int:
    """What is there with the bits of `mask` taken from `data`."""
    return there & ~mask | data & mask


@nopython
def execute(header: int, what: int, address: int) -> int:
    """Do what an Atomic Request says to the aligned word at `address`; what was there before."""
    data, mask = load_64_be(header + ATOMIC_DATA), load_64_be(header + ATOMIC_MASK)
    while True:
        there = load_relaxed(address)
        if what == FETCH_ADD:
            wanted = masked_sum(there, data, mask)
        else:
            wanted = masked_swap(there, data, mask)
            if what != SWAP:
                compare = load_64_be(header + ATOMIC_COMPARE)
                if (there ^ compare) & load_64_be(header + ATOMIC_COMPARE_MASK) != 0:
                    wanted = there
        if compare_exchange(address, there, wanted) == there:
            return there
