"""The table of registered memory: every reference to memory of a client is checked here, and only
what a row says may be touched. One STag names a region for both sides (lkey == rkey), and neither
its handle nor its key can be guessed from other STags. Bounds are compared, never summed up.
"""

import errno
import hashlib
import secrets
from typing import Final

import numpy as np

from ppe.cycle.rnic.records import (
    MR,
    MR_INVALID,
    MR_SIZE,
    MR_TABLE,
    MR_TABLE_SECRETS,
    MR_VALID,
    mr_at,
    mr_table_at,
)
from shm.jit import nopython
from shm.memory import load_32
from shm.verbs_numbers import (
    ACCESS_HUGETLB,
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_ON_DEMAND,
    ACCESS_RELAXED_ORDERING,
    ACCESS_REMOTE,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_WRITE,
)
from shm.view import window

EINVAL: Final = -errno.EINVAL
ENOENT: Final = -errno.ENOENT
EACCES: Final = -errno.EACCES
EBUSY: Final = -errno.EBUSY
ENOMEM: Final = -errno.ENOMEM
EOPNOTSUPP: Final = -errno.EOPNOTSUPP

# Why a peer may not touch memory: layer 0, type 1 of a Terminate and its code (RFC 5040 §4.8).
# Whoever asks on behalf of DDP translates it (`wire.as_ddp`).
INVALID_STAG: Final = 0x0100
BASE_OR_BOUNDS: Final = 0x0101
ACCESS_RIGHTS: Final = 0x0102
NOT_ASSOCIATED: Final = 0x0103
TO_WRAP: Final = 0x0104

NONE: Final = -1
SECRET_SIZE: Final = 32
HANDLE_BITS: Final = 24
_HALF_BITS: Final = 12
_HALF: Final = (1 << _HALF_BITS) - 1
_ROUNDS: Final = 4
ROWS_MAX: Final = 1 << 20  # leaves four bits of generation in a handle
LENGTH_MAX: Final = 1 << 62
_WORD: Final = 0xFFFFFFFF
_LOW_63: Final = (1 << 63) - 1
_SIGN: Final = -(1 << 63)
_REGION_ACCESS: Final = (
    ACCESS_LOCAL_WRITE | ACCESS_REMOTE | ACCESS_MW_BIND | ACCESS_HUGETLB | ACCESS_RELAXED_ORDERING
)
_WRITING: Final = ACCESS_REMOTE_WRITE | ACCESS_REMOTE_ATOMIC


@nopython
def wrap(number: int) -> int:
    """`number` modulo 2^64 as a signed word: what compiled arithmetic gives by itself."""
    return (number & _LOW_63) + (number >> 63 & 1) * _SIGN


# --- STags -----------------------------------------------------------------------------------


@nopython
def _secret(table: int, which: int) -> int:
    return load_32(table + MR_TABLE_SECRETS + 4 * which)


@nopython
def _round(table: int, which: int, half: int) -> int:
    """The function of one Feistel round: 12 bits of `half` mixed with a secret."""
    mixed = (half ^ _secret(table, which)) * 0x9E3779B1 & _WORD
    mixed = (mixed ^ mixed >> 15) * 0x85EBCA77 & _WORD
    return (mixed ^ mixed >> 13) & _HALF


@nopython
def handle_of(table: int, number: int) -> int:
    """A 24-bit number as a 24-bit handle: a bijection that only this table knows."""
    left, right = number >> _HALF_BITS, number & _HALF
    for which in range(_ROUNDS):
        left, right = right, left ^ _round(table, which, right)
    return left << _HALF_BITS | right


@nopython
def number_of(table: int, handle: int) -> int:
    """What `handle_of` made a handle of."""
    left, right = handle >> _HALF_BITS, handle & _HALF
    for which in range(_ROUNDS - 1, -1, -1):
        left, right = right ^ _round(table, which, left), left
    return left << _HALF_BITS | right


@nopython
def _turn(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _WORD


@nopython
def _random_word(table: int) -> int:
    """The next of a sequence of words nobody can predict: HalfSipHash of a counter."""
    mine = mr_table_at(table)[0]
    count = mine["registrations"]
    mine["registrations"] = count + 1
    v0, v1 = _secret(table, 4), _secret(table, 5)
    v2, v3 = _secret(table, 6) ^ 0x6C796765, _secret(table, 7) ^ 0x74656462
    v3 ^= count & _WORD
    for turn in range(6):
        if turn == 2:
            v0 ^= count & _WORD
            v2 ^= 0xFF
        v0 = (v0 + v1) & _WORD
        v1 = _turn(v1, 5) ^ v0
        v0 = _turn(v0, 16)
        v2 = (v2 + v3) & _WORD
        v3 = _turn(v3, 8) ^ v2
        v0 = (v0 + v3) & _WORD
        v3 = _turn(v3, 7) ^ v0
        v2 = (v2 + v1) & _WORD
        v1 = _turn(v1, 13) ^ v2
        v2 = _turn(v2, 16)
    return int(v1 ^ v3)


@nopython
def row_of(table: int, index: int) -> int:
    """Address of a row."""
    return int(mr_table_at(table)[0]["rows"] + MR_SIZE * index)


@nopython
def new_stag(table: int, index: int) -> int:
    """Give a row a name that it did not have before, and return it; never 0."""
    row = mr_at(row_of(table, index))[0]
    bits = mr_table_at(table)[0]["row_bits"]
    stag = 0
    while stag == 0:
        row["generation"] = (row["generation"] + 1) & ((1 << (HANDLE_BITS - bits)) - 1)
        handle = handle_of(table, row["generation"] << bits | index)
        stag = handle << 8 | _random_word(table) & 0xFF
    row["stag"] = stag
    return int(stag)


@nopython
def find(table: int, stag: int) -> int:
    """Address of the row that an STag names, valid or not; 0 if there is none."""
    mine = mr_table_at(table)[0]
    index = number_of(table, stag >> 8 & 0xFFFFFF) & ((1 << mine["row_bits"]) - 1)
    if stag <= 0 or index >= mine["capacity"]:
        return 0
    address = row_of(table, index)
    return address if mr_at(address)[0]["stag"] == stag else 0


# --- registering -----------------------------------------------------------------------------


@nopython
def check_access(access: int) -> int:
    """0, -EOPNOTSUPP for paging on demand, -EINVAL for rights that cannot be given together."""
    if access & ACCESS_ON_DEMAND:
        return EOPNOTSUPP
    if access < 0 or access & ~_REGION_ACCESS:
        return EINVAL
    # ibv_reg_mr(3): who lets others write must be able to write.
    if access & _WRITING and not access & ACCESS_LOCAL_WRITE:
        return EINVAL
    return 0


@nopython
def take_row(table: int) -> int:
    """Index of a free row, now taken; -1 when there is none."""
    mine = mr_table_at(table)[0]
    index = mine["free"]
    if index != NONE:
        mine["free"] = mr_at(row_of(table, index))[0]["next"]
        mine["used"] += 1
    return int(index)


@nopython
def register(
    table: int, pd: int, client: int, address: int, length: int, iova: int, access: int
) -> int:
    """STag of `length` bytes at `address`, which their owner calls `iova` (any 64 bits).

    -EINVAL: nonsense; -EOPNOTSUPP: on demand; -ENOMEM: the table is full. Whether the client may
    lend that memory at all is the caller's to check.
    """
    if address <= 0 or length <= 0 or length > LENGTH_MAX or pd <= 0:
        return EINVAL
    if iova < 0 and iova + length > 0:
        return EINVAL  # It would reach beyond the last address there is.
    refused = check_access(access)
    if refused != 0:
        return refused
    index = take_row(table)
    if index == NONE:
        return ENOMEM
    row = mr_at(row_of(table, index))[0]
    row["state"] = MR_VALID
    row["pd"], row["client"] = pd, client
    row["address"], row["length"], row["iova"] = address, length, iova
    row["access"] = access
    row["qp"], row["parent"], row["is_window"], row["uses"] = 0, 0, 0, 0
    row["lkey"], row["handle"] = 0, 0
    return new_stag(table, index)


@nopython
def free_row(table: int, address: int) -> None:
    """Forget a row; its window on a region no longer keeps that."""
    mine, row = mr_table_at(table)[0], mr_at(address)[0]
    if row["parent"] != 0:
        mr_at(row["parent"])[0]["uses"] -= 1
    row["stag"], row["state"], row["parent"] = 0, 0, 0
    row["next"] = mine["free"]
    mine["free"] = (address - mine["rows"]) // MR_SIZE
    mine["used"] -= 1


@nopython
def deregister(table: int, stag: int, client: int) -> int:
    """0; -EINVAL: the client has no such memory; -EBUSY: work or a window still needs it."""
    address = find(table, stag)
    if address == 0 or mr_at(address)[0]["client"] != client:
        return EINVAL
    if mr_at(address)[0]["uses"] != 0:
        return EBUSY
    free_row(table, address)
    return 0


@nopython
def remove_client(table: int, client: int) -> int:
    """Forget what a client registered; how much is left because it is still in use."""
    left = 0
    for windows in range(1, -1, -1):  # Windows first: they keep their regions.
        left = 0
        for index in range(mr_table_at(table)[0]["capacity"]):
            address = row_of(table, index)
            row = mr_at(address)[0]
            if row["stag"] == 0 or row["client"] != client:
                continue
            if row["uses"] == 0 and row["is_window"] >= windows:
                free_row(table, address)
            else:
                left += 1
    return left


@nopython
def is_within(table: int, pd: int, start: int, end: int) -> bool:
    """Whether anything is registered in a domain between two addresses."""
    for index in range(mr_table_at(table)[0]["capacity"]):
        row = mr_at(row_of(table, index))[0]
        if row["stag"] == 0 or row["pd"] != pd:
            continue
        if row["address"] < end and start < row["address"] + row["length"]:
            return True
    return False


# --- invalidating ----------------------------------------------------------------------------


@nopython
def _make_invalid(address: int) -> None:
    row = mr_at(address)[0]
    row["state"] = MR_INVALID
    if row["parent"] != 0:
        mr_at(row["parent"])[0]["uses"] -= 1
        row["parent"] = 0


@nopython
def invalidate(table: int, stag: int, pd: int) -> int:
    """End all use of an STag at its owner's wish: 0; -EINVAL: none; -EACCES: of another domain.

    Its memory is kept until `deregister`, so that what is under way ends harmlessly.
    """
    address = find(table, stag)
    if address == 0 or mr_at(address)[0]["state"] != MR_VALID:
        return EINVAL
    if mr_at(address)[0]["pd"] != pd:
        return EACCES
    _make_invalid(address)
    return 0


@nopython
def invalidate_for_peer(table: int, stag: int, pd: int, qp: int) -> int:
    """`invalidate` at a peer's wish (Send with Invalidate), who may end only what was lent to it:
    -EACCES too if the STag gives no remote right, or belongs to another queue pair.
    """
    address = find(table, stag)
    if address == 0 or mr_at(address)[0]["state"] != MR_VALID:
        return EINVAL
    row = mr_at(address)[0]
    if row["pd"] != pd or not row["access"] & ACCESS_REMOTE:
        return EACCES
    if row["qp"] != 0 and row["qp"] != qp:
        return EACCES
    _make_invalid(address)
    return 0


@nopython
def renew(table: int, stag: int, pd: int, access: int) -> int:
    """A new STag for a region that was invalidated, with these rights (fast registration).

    -EINVAL: it is none, or valid still; -EACCES: of another domain; -EBUSY: work under way needs
    it as it was.
    """
    address = find(table, stag)
    if address == 0 or mr_at(address)[0]["state"] != MR_INVALID:
        return EINVAL
    row = mr_at(address)[0]
    if row["pd"] != pd:
        return EACCES
    if row["is_window"] != 0 or check_access(access) != 0:
        return EINVAL
    if row["uses"] != 0:
        return EBUSY
    row["state"], row["access"] = MR_VALID, access
    return new_stag(table, (address - mr_table_at(table)[0]["rows"]) // MR_SIZE)


# --- looking up ------------------------------------------------------------------------------


@nopython
def _offset_in(row: int, iova: int, length: int) -> int:
    """Where `length` bytes at `iova` begin in a row's memory, or -1 if any is outside."""
    mine = mr_at(row)[0]
    offset = wrap(iova - mine["iova"])
    if offset < 0 or offset > mine["length"] or length > mine["length"] - offset:
        return -1
    return int(offset)


@nopython
def local_row(table: int, pd: int, lkey: int, iova: int, length: int, access: int) -> int:
    """Address of the row that lets its owner use `length` bytes at `iova`; or -EINVAL (no such
    key, or windows, which are for peers), -EACCES (domain or rights), -EFAULT (bounds).
    """
    row = find(table, lkey)
    if row == 0 or mr_at(row)[0]["state"] != MR_VALID or mr_at(row)[0]["is_window"] != 0:
        return EINVAL
    mine = mr_at(row)[0]
    if mine["pd"] != pd or mine["access"] & access != access:
        return EACCES
    return row if _offset_in(row, iova, length) >= 0 else -errno.EFAULT


@nopython
def address_in(row: int, iova: int) -> int:
    """Where the engine sees the byte `iova` of a row that was checked."""
    mine = mr_at(row)[0]
    return int(mine["address"] + wrap(iova - mine["iova"]))


@nopython
def local(table: int, pd: int, lkey: int, iova: int, length: int, access: int) -> int:
    """Address of local memory of a client, or 0 if it may not be used so."""
    row = local_row(table, pd, lkey, iova, length, access)
    return address_in(row, iova) if row > 0 else 0


@nopython
def remote_row(table: int, pd: int, qp: int, stag: int, to: int, length: int, access: int) -> int:
    """Address of the row that lets the peer of `qp` use `length` bytes at `to` (64 bits); or minus
    the reason: INVALID_STAG, NOT_ASSOCIATED, ACCESS_RIGHTS, TO_WRAP or BASE_OR_BOUNDS.
    """
    row = find(table, stag)
    if row == 0 or mr_at(row)[0]["state"] != MR_VALID:
        return -INVALID_STAG
    mine = mr_at(row)[0]
    if mine["parent"] != 0 and mr_at(mine["parent"])[0]["state"] != MR_VALID:
        return -INVALID_STAG  # A window shows nothing of a region that was invalidated.
    if mine["pd"] != pd or (mine["qp"] != 0 and mine["qp"] != qp):
        return -NOT_ASSOCIATED
    if mine["access"] & access != access:
        return -ACCESS_RIGHTS
    if to < 0 and to + length > 0:
        return -TO_WRAP
    return row if _offset_in(row, to, length) >= 0 else -BASE_OR_BOUNDS


@nopython
def remote(table: int, pd: int, qp: int, stag: int, to: int, length: int, access: int) -> int:
    """Address of memory that the peer of `qp` names, or minus the reason why not."""
    row = remote_row(table, pd, qp, stag, to, length, access)
    return address_in(row, to) if row > 0 else row


@nopython
def keeper_of(row: int) -> int:
    """The row to `hold` for the memory of a row: a window may end before what goes through it."""
    parent = mr_at(row)[0]["parent"]
    return int(parent if parent != 0 else row)


@nopython
def hold(row: int) -> None:
    """Keep a row's memory for work that is under way; 0 is no row."""
    if row != 0:
        mr_at(row)[0]["uses"] += 1


@nopython
def let_go(row: int) -> None:
    """The end of `hold`."""
    if row != 0:
        mr_at(row)[0]["uses"] -= 1


# --- building --------------------------------------------------------------------------------


def table_size(capacity: int) -> int:
    """Bytes of a table of so many rows. Raises ValueError if there cannot be so many."""
    if not 1 <= capacity <= ROWS_MAX:
        raise ValueError(f"{capacity} memory regions are outside 1..{ROWS_MAX}")
    return MR_TABLE.itemsize + 32 + MR_SIZE * capacity


def build_table(address: int, capacity: int, secret: bytes | None = None) -> None:
    """Make an empty table in `table_size` zeroed bytes; `secret`: SECRET_SIZE bytes, else
    random ones.
    """
    mine = mr_table_at(address)[0]
    mine["rows"] = address + MR_TABLE.itemsize + 32
    mine["capacity"], mine["row_bits"] = capacity, max(1, (capacity - 1).bit_length())
    mine["free"] = 0
    secret = secret or secrets.token_bytes(SECRET_SIZE)
    window(address + MR_TABLE_SECRETS, 8, "<u4")[:] = np.frombuffer(secret, "<u4")
    rows = window(int(mine["rows"]), capacity, MR)
    rows["next"] = np.arange(1, capacity + 1)
    rows["next"][-1] = NONE
    # Generations start anywhere, so that the first STags of a row tell nothing.
    rows["generation"] = np.frombuffer(hashlib.shake_128(secret).digest(capacity), np.uint8) & 0xF
