"""The distinct-error log: one record per kind of error, with how often and when.

A peer that fails a million times makes one line, not a million. One writer, in compiled code;
readers look at any time. The first word of a record is its code and is written last.
"""

from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from shm.atomics import load_acquire, load_relaxed, store_relaxed, store_release
from shm.jit import nopython
from shm.layout import Field, offset, record

ERROR: Final = record(
    Field("code", "<i8"),
    Field("detail", "<i8"),  # an errno, an opcode: what tells two errors of one code apart
    Field("count", "<i8"),
    Field("first_ns", "<i8"),  # CLOCK_MONOTONIC
    Field("last_ns", "<i8"),
    Field("last_context", "<i8"),  # the endpoint or client of the latest one
    size=64,
)
CAPACITY: Final = 128
ERROR_SIZE: Final = ERROR.itemsize
ERROR_LOG_SIZE: Final = CAPACITY * ERROR_SIZE
_CODE, _DETAIL = offset(ERROR, "code"), offset(ERROR, "detail")
_COUNT, _CONTEXT = offset(ERROR, "count"), offset(ERROR, "last_context")
_FIRST, _LAST = offset(ERROR, "first_ns"), offset(ERROR, "last_ns")


@nopython
def log_error(log: int, code: int, detail: int, context: int, now_ns: int) -> bool:
    """Count one error of kind (`code` > 0, `detail`). False when the log is full of other kinds."""
    for index in range(CAPACITY):
        entry = log + index * ERROR_SIZE
        there = load_relaxed(entry + _CODE)
        if there == 0:
            store_relaxed(entry + _DETAIL, detail)
            store_relaxed(entry + _FIRST, now_ns)
        elif there != code or load_relaxed(entry + _DETAIL) != detail:
            continue
        store_relaxed(entry + _COUNT, load_relaxed(entry + _COUNT) + 1)
        store_relaxed(entry + _LAST, now_ns)
        store_relaxed(entry + _CONTEXT, context)
        # SYNC POINT: a reader that sees the code sees the record; pairs with `read_errors`.
        store_release(entry + _CODE, code)
        return True
    return False


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """One kind of error as it stood when it was read."""

    code: int
    detail: int
    count: int
    first_ns: int
    last_ns: int
    last_context: int


def read_errors(memory: NDArray[Any]) -> list[ErrorRecord]:
    """Every record of a log (uint8 array of ERROR_LOG_SIZE), oldest kind first."""
    base = int(memory.ctypes.data)
    found = []
    for index in range(CAPACITY):
        entry = base + index * ERROR_SIZE
        # SYNC POINT: pairs with the release in `log_error`.
        code = load_acquire(entry + _CODE)
        if code == 0:
            break
        words = (_DETAIL, _COUNT, _FIRST, _LAST, _CONTEXT)
        found.append(ErrorRecord(code, *(load_relaxed(entry + word) for word in words)))
    return found
