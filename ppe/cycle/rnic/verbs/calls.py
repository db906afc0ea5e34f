"""Calling a device's functions through their addresses, from compiled code.

Three C signatures are all that posting and polling need. The address is a run-time value read from
the device's context, so compiled code is cached with no address in it. Whoever calls has made sure
(`pointers`) that there is a function.
"""

import ctypes
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from shm.jit import JIT_DISABLED, nopython

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_POINTER: Final = "p"
_LLVM: Final = {"p": _I64, "i": _I32}  # an address travels in the same register as an integer
_CTYPES: Final[dict[str, Any]] = {"p": ctypes.c_void_p, "i": ctypes.c_int}


def _as_c(builder: ir.IRBuilder, kind: str, value: Any) -> Any:
    return value if kind == _POINTER else builder.trunc(value, _I32)


def _caller_2(kinds: str) -> Any:
    if JIT_DISABLED:
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, *[_CTYPES[kind] for kind in kinds])
        return lambda function, a, b: prototype(int(function))(int(a), int(b))

    @intrinsic
    def call(typing_context: Any, function: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(_I32, [_LLVM[kind] for kind in kinds])
            given = [_as_c(builder, *pair) for pair in zip(kinds, args[1:], strict=True)]
            found = builder.call(builder.inttoptr(args[0], kind.as_pointer()), given)
            return builder.sext(found, _I64)

        return types.int64(types.intp, types.int64, types.int64), codegen

    return call


def _caller_3(kinds: str) -> Any:
    if JIT_DISABLED:
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, *[_CTYPES[kind] for kind in kinds])
        return lambda function, a, b, c: prototype(int(function))(int(a), int(b), int(c))

    @intrinsic
    def call(typing_context: Any, function: Any, a: Any, b: Any, c: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(_I32, [_LLVM[kind] for kind in kinds])
            given = [_as_c(builder, *pair) for pair in zip(kinds, args[1:], strict=True)]
            found = builder.call(builder.inttoptr(args[0], kind.as_pointer()), given)
            return builder.sext(found, _I64)

        return types.int64(types.intp, types.int64, types.int64, types.int64), codegen

    return call


_post, _poll, _notify = _caller_3("ppp"), _caller_3("pip"), _caller_2("pi")


@nopython
def call_post(function: int, queue: int, wr: int, bad_wr: int) -> int:
    """`int post(queue, struct wr *, struct wr **bad_wr)`: 0, or an errno of either sign."""
    return _post(function, queue, wr, bad_wr)  # type: ignore[no-any-return]


@nopython
def call_poll_cq(function: int, cq: int, count: int, wc: int) -> int:
    """`int poll_cq(cq, int count, struct ibv_wc *)`: how many completions came, or below 0."""
    return _poll(function, cq, count, wc)  # type: ignore[no-any-return]


@nopython
def call_req_notify_cq(function: int, cq: int, solicited_only: int) -> int:
    """`int req_notify_cq(cq, int solicited_only)`: 0, or an errno of either sign."""
    return _notify(function, cq, solicited_only)  # type: ignore[no-any-return]
