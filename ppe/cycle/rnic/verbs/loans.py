"""What is lent to a device while a work request is under way: the operation that waits for it, and
the rows of the table of memory that its gather list names.

The device checks keys, too, but it knows nothing of who waits, ends a queue pair for a wrong one,
and gives memory back under work that needs it. The one rule: what a loan holds is let go of when
the device has said that it is over, or when the device can say nothing any more.
"""

import errno
from typing import Final

from ppe.cycle.rnic.memory import address_in, hold, let_go, local_row
from ppe.cycle.rnic.receive import MESSAGE_MAX
from ppe.cycle.rnic.records import SGE_SIZE, SGES_MAX, WR_SGES, mr_at, sge_at, wr_at
from shm.jit import nopython
from shm.layout import Field, offset, record
from shm.memory import load_64, store_64
from shm.view import opener, window

ENOMEM: Final = -errno.ENOMEM
EMSGSIZE: Final = -errno.EMSGSIZE

LOANS: Final = record(
    Field("free", "<i8"),  # addresses of loans, 0 for none: those that are not out,
    Field("first", "<i8"),  # and those that are, the oldest first
    Field("last", "<i8"),
    size=64,
)
LOAN: Final = record(
    Field("loans", "<i8"),
    Field("operation", "<i8"),
    Field("next", "<i8"),
    Field("previous", "<i8"),
    Field("count", "<i8"),
    Field("rows", f"({SGES_MAX},)<i8"),  # addresses of MR, 0 for a piece of no bytes
    size=128,
)
loans_at = opener(LOANS)
loan_at = opener(LOAN)
_ROWS: Final = offset(LOAN, "rows")


@nopython
def lend(loans: int, table: int, pd: int, wr: int, access: int) -> int:
    """Hold the memory of a work request for its operation (`token`), and name memory and token as
    the device does. 0; -ENOMEM: as many are out as can be; -EINVAL, -EACCES, -EFAULT, -EMSGSIZE for
    a gather list that cannot be, and nothing has changed.
    """
    mine, asked = loans_at(loans)[0], wr_at(wr)[0]
    out = mine["free"]
    if out == 0:
        return ENOMEM
    refused = _hold_all(out, table, pd, wr, access)
    if refused != 0:
        return refused
    loan = loan_at(out)[0]
    mine["free"] = loan["next"]
    loan["operation"] = asked["token"]
    loan["next"] = 0
    loan["previous"] = mine["last"]
    if mine["last"] == 0:
        mine["first"] = out
    else:
        loan_at(mine["last"])[0]["next"] = out
    mine["last"] = out
    asked["token"] = out
    return 0


@nopython
def _hold_all(loan: int, table: int, pd: int, wr: int, access: int) -> int:
    """Look up each piece before any is changed, then hold and translate them."""
    count, total = wr_at(wr)[0]["sge_count"], 0
    for which in range(count):
        sge = sge_at(wr + WR_SGES + SGE_SIZE * which)[0]
        row = 0
        if sge["length"] > 0:
            row = local_row(table, pd, sge["lkey"], sge["addr"], sge["length"], access)
        total += sge["length"]
        if row < 0 or total > MESSAGE_MAX:
            return row if row < 0 else EMSGSIZE
        store_64(loan + _ROWS + 8 * which, row)
    loan_at(loan)[0]["count"] = count
    for which in range(count):
        row = load_64(loan + _ROWS + 8 * which)
        hold(row)
        sge = sge_at(wr + WR_SGES + SGE_SIZE * which)[0]
        sge["addr"] = address_in(row, sge["addr"]) if row != 0 else 0
        sge["lkey"] = mr_at(row)[0]["lkey"] if row != 0 else 0
    return 0


@nopython
def give_back(loan: int) -> int:
    """The end of a loan: its operation."""
    mine = loan_at(loan)[0]
    loans = loans_at(mine["loans"])[0]
    for which in range(mine["count"]):
        let_go(load_64(loan + _ROWS + 8 * which))
    if mine["previous"] == 0:
        loans["first"] = mine["next"]
    else:
        loan_at(mine["previous"])[0]["next"] = mine["next"]
    if mine["next"] == 0:
        loans["last"] = mine["previous"]
    else:
        loan_at(mine["next"])[0]["previous"] = mine["previous"]
    mine["next"] = loans["free"]
    loans["free"] = loan
    return int(mine["operation"])


@nopython
def oldest(loans: int) -> int:
    """The loan that is out for the longest time, or 0."""
    return int(loans_at(loans)[0]["first"])


def loans_size(count: int) -> int:
    """Bytes of so many loans."""
    return LOANS.itemsize + LOAN.itemsize * count


def build_loans(address: int, count: int) -> int:
    """Make so many in `loans_size(count)` zeroed bytes; the address behind them."""
    first = address + LOANS.itemsize
    rows = window(first, count, LOAN)
    rows["loans"] = address
    rows["next"][:-1] = [first + LOAN.itemsize * (which + 1) for which in range(count - 1)]
    window(address, 1, LOANS)[0]["free"] = first
    return first + LOAN.itemsize * count
