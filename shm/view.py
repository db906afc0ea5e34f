"""Look at a raw address as an array of records.

Compiled functions take addresses, not arrays: an integer costs nothing to pass and carries no
reference count. They open a window where they need one and name the fields as usual:
`mine = producer_at(address)[0]; mine["position"] += 1`. A window is for memory that only the caller
writes; words that others write go through `shm.atomics`.
"""

import ctypes
from collections.abc import Callable
from typing import Any

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


def opener(dtype: Record) -> Opener:
    """Make the function that opens one record of `dtype` at an address, in both worlds.

    From Python it is a plain NumPy view, so that nothing is compiled for the sake of set-up code.
    """

    def at(address: int) -> Window:
        return window(address, 1, dtype)

    if JIT_DISABLED:
        return at
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
