"""Look at a raw address as an array of records.

Compiled functions take addresses, not arrays: an integer costs nothing to pass and carries no
reference count. They open a window where they need one and name the fields as usual:
`mine = producer_at(address)[0]; mine["position"] += 1`. A window is for memory that only the caller
writes; words that others write go through `shm.atomics`.
"""

import ctypes
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from shm.jit import JIT_DISABLED
from shm.layout import Record

Window = NDArray[np.void]
Opener = Callable[[int], Window]


def window(address: int, count: int, dtype: Any) -> NDArray[Any]:
    """Open `count` items at `address` from Python. The memory must outlive the array."""
    memory: Any = (ctypes.c_char * (np.dtype(dtype).itemsize * int(count))).from_address(
        int(address)
    )
    return np.frombuffer(memory, dtype)


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.intp), codegen


class _PlainWindow:
    """A window for code that runs uncompiled: its numbers behave as the compiler's do.

    Read, a field is a Python integer, so that arithmetic widens instead of overflowing in the
    field's own type; written, a number keeps the low bits that fit, as a machine's store does.
    """

    def __init__(self, array: Window) -> None:
        self._array = array

    def __getitem__(self, index: int) -> "_PlainRecord":
        return _PlainRecord(self._array[index])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._array, name)


class _PlainRecord:
    def __init__(self, record: Any) -> None:
        self._record = record

    def __getitem__(self, field: str) -> Any:
        value = self._record[field]
        return value.item() if isinstance(value, np.number) else value

    def __setitem__(self, field: str, value: Any) -> None:
        dtype = self._record.dtype[field]
        if dtype.kind in "iu" and isinstance(value, (int, np.integer)):
            bits = 8 * dtype.itemsize
            value = int(value) & ((1 << bits) - 1)
            if dtype.kind == "i" and value >> (bits - 1):
                value -= 1 << bits
        self._record[field] = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)


def opener(dtype: Record) -> Opener:
    """Make the function that opens one record of `dtype` at an address, in both worlds.

    From Python it is a plain NumPy view, so that nothing is compiled for the sake of set-up code.
    """

    def at(address: int) -> Window:
        return window(address, 1, dtype)

    if JIT_DISABLED:
        return cast(Opener, lambda address: _PlainWindow(at(address)))
    as_pointer: Any = _pointer

    @overload(at, strict=False)
    def _compiled(address: Any) -> Any:
        def open_window(address: int) -> Window:
            return carray(as_pointer(address), (1,), dtype)

        return open_window

    return at


def address_of(array: NDArray[Any]) -> int:
    """The address of an array's first byte. The caller keeps the array alive."""
    return int(array.ctypes.data)
