"""Declare a record once; Python, compiled code and atomics all take it from there.

A record's size is written down beside its fields, so a layout cannot drift unseen; fields that
different writers own are put on different cache-line pairs.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Record = np.dtype[np.void]

CACHE_LINE: Final = 64
# The adjacent-line prefetcher moves lines in pairs, so two writers stay two lines apart.
WRITER_SPAN: Final = 2 * CACHE_LINE


@dataclass(frozen=True, slots=True)
class Field:
    """One named field; `own_span` starts it on cache lines that no earlier field touches."""

    name: str
    format: Any
    own_span: bool = False


def record(*fields: Field, size: int) -> Record:
    """Lay the fields out in order with natural alignment, in exactly `size` bytes.

    Raises ValueError when they do not fit or `size` is no multiple of 8.
    """
    offsets: list[int] = []
    end = 0
    for field in fields:
        item = np.dtype(field.format)
        align = WRITER_SPAN if field.own_span else item.alignment
        start = -(-end // align) * align
        offsets.append(start)
        end = start + item.itemsize
    if end > size or size % 8:
        raise ValueError(f"the fields take {end} bytes; {size} was declared")
    return np.dtype(
        {
            "names": [field.name for field in fields],
            "formats": [field.format for field in fields],
            "offsets": offsets,
            "itemsize": size,
        },
        align=True,
    )


def offset(dtype: Record, name: str) -> int:
    """Byte offset of a field: a compile-time constant for atomic access."""
    assert dtype.fields is not None
    return int(dtype.fields[name][1])


def describe(dtype: Record) -> str:
    """One line per field with offset and format: what golden tests and the layout hash read."""
    assert dtype.fields is not None
    rows = [f"{dtype.fields[name][1]} {name} {dtype.fields[name][0]}" for name in dtype.names or ()]
    return "\n".join([*rows, f"{dtype.itemsize} end"])


def layout_hash(records: Iterable[Record]) -> int:
    """A positive 63-bit number that changes whenever any of the layouts changes."""
    digest = hashlib.blake2b(digest_size=8)
    for dtype in records:
        digest.update(describe(dtype).encode())
    return int.from_bytes(digest.digest(), "little") >> 1
