"""The tags by which an initiator's peer reaches its buffers, made and taken back as the strategy of
its session says: one for each command (`per-io`, or a memory window), one for each buffer, kept for
the next command (`cache`), or one for each region of the client's memory (`pool`).

The one rule: a tag that an open command named is never taken away by anything but that command.
"""

from typing import Final

from iscsi.wire.iser import initiator_tags
from iscsi.wire.iser.registration import REGISTRATIONS
from ppe.cycle.records import engine_at, region_at
from ppe.cycle.regions import region_of
from ppe.cycle.rnic import memory, windows
from ppe.cycle.rnic.records import mr_at
from ppe.cycle.services.iser_lent import piece_at, piece_of
from ppe.cycle.services.mover_records import KEPT_MAX, KEPT_SIZE, TAGS_HEAD, kept_at, tags_at
from shm.jit import nopython
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
)

PER_IO: Final = REGISTRATIONS.index("per-io")
WINDOW: Final = REGISTRATIONS.index("window")
CACHE: Final = REGISTRATIONS.index("cache")
POOL: Final = REGISTRATIONS.index("pool")
# What the peer calls the first byte of any tag's memory: it learns no address of ours.
TAG_BASE: Final = 1 << 32
BOTH_WAYS: Final = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE
# `acquire`'s third answer: whether the tag outlives its command.
ONCE: Final = False
KEPT_OPEN: Final = True


@nopython
def begin(tags: int, table: int, domain: int, qp: int, key: int, skew: int) -> None:
    """The connection begins; `key` opens all memory, `skew` apart from its addresses."""
    mine = tags_at(tags)[0]
    mine["table"], mine["domain"], mine["qp"] = table, domain, qp
    mine["key"], mine["skew"] = key, skew


@nopython
def acquire(
    engine: int, tags: int, address: int, length: int, access: int
) -> tuple[int, int, bool]:
    """A tag for a command's buffer, what the peer calls its first byte, and whether it is to be
    kept. The tag is 0 if the table of memory is full.
    """
    if tags_at(tags)[0]["lent"] != 0:
        return _lent(tags, address, length)
    strategy = tags_at(tags)[0]["strategy"]
    if strategy == WINDOW:
        return _bind(tags, address, length, access)
    if strategy == PER_IO:
        return _register(tags, address, length, access)
    kept = _find(tags, address, length, access)
    if kept == 0:
        tags_at(tags)[0]["misses"] += 1
        kept = _keep(engine, tags, address, length, access)
    else:
        tags_at(tags)[0]["hits"] += 1
    if kept == 0:
        tags_at(tags)[0]["bypasses"] += 1
        return _register(tags, address, length, access)
    found = kept_at(kept)[0]
    tags_at(tags)[0]["clock"] += 1
    found["used"] = tags_at(tags)[0]["clock"]
    return int(found["stag"]), int(TAG_BASE + address - found["start"]), KEPT_OPEN


@nopython
def release(tags: int, stag: int) -> None:
    """A tag was invalidated: its row is free again, a window is kept for the next command."""
    mine = tags_at(tags)[0]
    if mine["strategy"] == WINDOW and mine["count"] < KEPT_MAX:
        row = memory.find(mine["table"], stag)
        if row != 0 and mr_at(row)[0]["is_window"] and mr_at(row)[0]["pd"] == mine["domain"]:
            kept_at(_place(tags, mine["count"]))[0]["stag"] = stag
            mine["count"] += 1
            return
    memory.deregister(mine["table"], stag, mine["domain"])


@nopython
def forget(tags: int, start: int, end: int) -> int:
    """Memory between two addresses is about to go: close what is open there. 1 if a command still
    needs some of it.
    """
    mine = tags_at(tags)[0]
    if mine["strategy"] == WINDOW:
        return 0
    index = mine["count"] - 1
    while index >= 0:
        found = kept_at(_place(tags, index))[0]
        if found["start"] < end and start < found["end"]:
            if initiator_tags.names_tag(mine["iser"], found["stag"]):
                return 1
            _drop(tags, index)
        index -= 1
    return 0


# --- one for each command --------------------------------------------------------------------


@nopython
def _register(tags: int, address: int, length: int, access: int) -> tuple[int, int, bool]:
    mine = tags_at(tags)[0]
    domain = mine["domain"]
    stag = memory.register(mine["table"], domain, domain, address, length, TAG_BASE, access)
    return max(int(stag), 0), TAG_BASE, ONCE


@nopython
def _bind(tags: int, address: int, length: int, access: int) -> tuple[int, int, bool]:
    """Bind an idle window, or a new one, to the buffer."""
    mine = tags_at(tags)[0]
    if mine["count"] > 0:
        mine["count"] -= 1
        stag = kept_at(_place(tags, mine["count"]))[0]["stag"]
        mine["hits"] += 1
    else:
        stag = windows.allocate(mine["table"], mine["domain"], mine["domain"])
        mine["misses"] += 1
    if stag <= 0:
        return 0, 0, ONCE
    base = memory.wrap(address + mine["skew"])
    bound = windows.bind(
        mine["table"],
        mine["domain"],
        mine["qp"],
        stag,
        mine["key"],
        base,
        length,
        access & ACCESS_REMOTE,
    )
    if bound < 0:
        memory.deregister(mine["table"], stag, mine["domain"])
        return 0, 0, ONCE
    return int(bound), base, ONCE


@nopython
def _lent(tags: int, address: int, length: int) -> tuple[int, int, bool]:
    """The tag of the region that a verbs device has registered; peers use the engine's address."""
    piece = piece_of(tags_at(tags)[0]["lent"], address, length)
    if piece == 0:
        return 0, 0, ONCE
    tags_at(tags)[0]["hits"] += 1
    return int(piece_at(piece)[0]["rkey"]), address, KEPT_OPEN


# --- those that are kept ---------------------------------------------------------------------


@nopython
def _place(tags: int, index: int) -> int:
    return tags + TAGS_HEAD + KEPT_SIZE * index


@nopython
def _find(tags: int, address: int, length: int, access: int) -> int:
    """Address of a KEPT that opens a buffer with these rights; 0: there is none."""
    for index in range(tags_at(tags)[0]["count"]):
        found = kept_at(_place(tags, index))[0]
        is_inside = found["start"] <= address and address + length <= found["end"]
        if is_inside and found["access"] & access == access:
            return _place(tags, index)
    return 0


@nopython
def _keep(engine: int, tags: int, address: int, length: int, access: int) -> int:
    """Open a buffer, or the region that it lies in, to stay open. 0: there is no room."""
    mine = tags_at(tags)[0]
    start, size, rights = address, length, access
    if mine["strategy"] == POOL:
        start, size = _region_around(engine, address, length)
        rights = BOTH_WAYS
    if size == 0 or (mine["count"] == KEPT_MAX and not _make_room(tags)):
        return 0
    domain = mine["domain"]
    stag = memory.register(mine["table"], domain, domain, start, size, TAG_BASE, rights)
    if stag <= 0:
        return 0
    place = _place(tags, mine["count"])
    kept = kept_at(place)[0]
    kept["stag"], kept["access"] = stag, rights
    kept["start"], kept["end"] = start, start + size
    mine["count"] += 1
    return place


@nopython
def _region_around(engine: int, address: int, length: int) -> tuple[int, int]:
    """Address and size of the region that a checked buffer lies in."""
    for index in range(engine_at(engine)[0]["region_count"]):
        region = region_at(region_of(engine, index))[0]
        start, size = region["address"], region["size"]
        if start != 0 and start <= address and address + length <= start + size:
            return int(start), int(size)
    return 0, 0


@nopython
def _make_room(tags: int) -> bool:
    """Close the tag that was not used for longest, of those that no command names."""
    mine = tags_at(tags)[0]
    oldest = -1
    for index in range(mine["count"]):
        found = kept_at(_place(tags, index))[0]
        is_older = oldest < 0 or found["used"] < kept_at(_place(tags, oldest))[0]["used"]
        if is_older and not initiator_tags.names_tag(mine["iser"], found["stag"]):
            oldest = index
    if oldest < 0:
        return False
    mine["evictions"] += 1
    _drop(tags, oldest)
    return True


@nopython
def _drop(tags: int, index: int) -> None:
    """Close a kept tag; the last one takes its place."""
    mine = tags_at(tags)[0]
    kept, last = kept_at(_place(tags, index))[0], kept_at(_place(tags, mine["count"] - 1))[0]
    memory.deregister(mine["table"], kept["stag"], mine["domain"])
    kept["stag"], kept["access"], kept["used"] = last["stag"], last["access"], last["used"]
    kept["start"], kept["end"] = last["start"], last["end"]
    mine["count"] -= 1
