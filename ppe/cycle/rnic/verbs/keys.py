"""A small table from 32-bit keys (queue pair numbers, rkeys) to addresses, for compiled code.

Open addressing with linear probing; a removal moves what follows, so there are no gravestones. The
one rule: at most half of the rows are used, so a look-up always ends.
"""

import errno
from typing import Final

from ppe.cycle.rnic.verbs.records import KEY_ROW_SIZE, KEYS, key_row_at, keys_at
from shm.jit import entry, nopython
from shm.view import window

EEXIST: Final = -errno.EEXIST
ENOENT: Final = -errno.ENOENT
ENOMEM: Final = -errno.ENOMEM
_SPREAD: Final = 0x9E3779B1  # 2^32 over the golden ratio: neighbours end up far apart
_WORD: Final = 0xFFFFFFFF


def keys_size(entries: int) -> int:
    """Bytes of a table for so many entries."""
    return KEYS.itemsize + KEY_ROW_SIZE * _capacity(entries)


def build_keys(address: int, entries: int) -> int:
    """Make an empty table in zeroed memory of `keys_size(entries)`; its address."""
    table = window(address, 1, KEYS)[0]
    table["rows"] = address + KEYS.itemsize
    table["capacity"] = _capacity(entries)
    return address


def _capacity(entries: int) -> int:
    return int(1 << max(1, (2 * entries - 1).bit_length()))


@nopython
def _home(key: int, capacity: int) -> int:
    return ((key * _SPREAD & _WORD) >> 8) & (capacity - 1)


@nopython
def _row(table: int, index: int) -> int:
    own = keys_at(table)[0]
    return own["rows"] + (index & (own["capacity"] - 1)) * KEY_ROW_SIZE  # type: ignore[no-any-return]


@nopython
def _index(table: int, key: int) -> int:
    """Where the key is, or the free row where it would be."""
    index = _home(key, keys_at(table)[0]["capacity"])
    while True:
        found = key_row_at(_row(table, index))[0]["key"]
        if found == 0 or found == key + 1:
            return index
        index += 1


@nopython
def get(table: int, key: int) -> int:
    """The value of a key, or 0."""
    row = key_row_at(_row(table, _index(table, key)))[0]
    return row["value"] if row["key"] else 0


@nopython
def put(table: int, key: int, value: int) -> int:
    """Enter a key: 0, -EEXIST if it is there, -ENOMEM if the table is half full."""
    own = keys_at(table)[0]
    row = key_row_at(_row(table, _index(table, key)))[0]
    if row["key"]:
        return EEXIST
    if 2 * (own["used"] + 1) > own["capacity"]:
        return ENOMEM
    row["key"] = key + 1
    row["value"] = value
    own["used"] += 1
    return 0


@nopython
def remove(table: int, key: int) -> int:
    """Take a key out: 0, or -ENOENT."""
    own = keys_at(table)[0]
    hole = _index(table, key)
    if key_row_at(_row(table, hole))[0]["key"] == 0:
        return ENOENT
    own["used"] -= 1
    mask = own["capacity"] - 1
    index = hole
    while True:
        index += 1
        row = key_row_at(_row(table, index))[0]
        if row["key"] == 0:
            break
        # It may move to the hole unless its home lies behind the hole.
        home = _home(row["key"] - 1, own["capacity"])
        if ((index - home) & mask) >= ((index - hole) & mask):
            target = key_row_at(_row(table, hole))[0]
            target["key"] = row["key"]
            target["value"] = row["value"]
            hole = index
    last = key_row_at(_row(table, hole))[0]
    last["key"] = 0
    last["value"] = 0
    return 0


@entry("int64(intp, int64, int64)")
def enter(table: int, key: int, value: int) -> int:
    """`put` for Python."""
    return put(table, key, value)


@entry("int64(intp, int64)")
def leave(table: int, key: int) -> int:
    """`remove` for Python."""
    return remove(table, key)
