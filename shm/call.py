"""Calling a compiled function through its address, from compiled code.

How the host's wait runs an inline engine's cycle without importing it: the address travels in a
record, and one compiled wait serves both placements.
"""

import ctypes
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from shm.jit import JIT_DISABLED, nopython

_I64 = ir.IntType(64)


def _caller() -> Any:
    if JIT_DISABLED:
        prototype = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)
        return lambda function, a, b, c, d: prototype(int(function))(int(a), int(b), int(c), int(d))

    @intrinsic
    def call(typing_context: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(_I64, [_I64] * 4)
            return builder.call(builder.inttoptr(args[0], kind.as_pointer()), list(args[1:]))

        return types.int64(types.intp, *[types.int64] * 4), codegen

    return call


_call = _caller()


@nopython
def call_address(function: int, a: int, b: int, c: int, d: int) -> int:
    """Call `int64 function(int64, int64, int64, int64)` (a `jit.callback`) at an address."""
    return _call(function, a, b, c, d)  # type: ignore[no-any-return]
