"""Memory windows: part of a region lent under an STag of its own (ibv_bind_mw(3), type 2). A window
is a row of the table; bound, it belongs to one queue pair and keeps its region registered.
"""

from typing import Final

from ppe.cycle.rnic.memory import (
    EACCES,
    EINVAL,
    ENOMEM,
    NONE,
    address_in,
    find,
    local_row,
    new_stag,
    row_of,
    take_row,
)
from ppe.cycle.rnic.records import MR_INVALID, MR_SIZE, MR_VALID, mr_at, mr_table_at
from shm.jit import nopython
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_REMOTE,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_WRITE,
)

_WRITING: Final = ACCESS_REMOTE_WRITE | ACCESS_REMOTE_ATOMIC


@nopython
def allocate(table: int, pd: int, client: int) -> int:
    """STag of a new window on nothing; -EINVAL, or -ENOMEM: the table is full."""
    if pd <= 0:
        return EINVAL
    index = take_row(table)
    if index == NONE:
        return ENOMEM
    row = mr_at(row_of(table, index))[0]
    row["state"], row["is_window"] = MR_INVALID, 1
    row["pd"], row["client"] = pd, client
    row["address"], row["length"], row["iova"], row["access"] = 0, 0, 0, 0
    row["qp"], row["parent"], row["uses"] = 0, 0, 0
    return new_stag(table, index)


@nopython
def bind(
    table: int, pd: int, qp: int, stag: int, lkey: int, iova: int, length: int, access: int
) -> int:
    """New STag of a window that is bound to nothing, now on `length` bytes at `iova` of a region.

    -EINVAL: there is no such window, it is bound, or the rights are none that windows give;
    -EACCES: of another domain, or the region permits no such window; -EFAULT: out of its bounds.
    """
    address = find(table, stag)
    if address == 0 or mr_at(address)[0]["is_window"] == 0:
        return EINVAL
    row = mr_at(address)[0]
    if row["state"] != MR_INVALID or row["uses"] != 0 or length <= 0:
        return EINVAL
    if access & ~ACCESS_REMOTE or access & ACCESS_REMOTE == 0:
        return EINVAL
    if row["pd"] != pd:
        return EACCES
    needed = ACCESS_MW_BIND
    if access & _WRITING:
        needed |= ACCESS_LOCAL_WRITE
    parent = local_row(table, pd, lkey, iova, length, needed)
    if parent < 0:
        return parent
    row["state"], row["access"], row["qp"] = MR_VALID, access, qp
    row["address"], row["length"], row["iova"] = address_in(parent, iova), length, iova
    row["parent"] = parent
    mr_at(parent)[0]["uses"] += 1
    return new_stag(table, (address - mr_table_at(table)[0]["rows"]) // MR_SIZE)
