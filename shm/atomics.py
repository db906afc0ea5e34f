"""Atomic access to words that another thread or process may write at the same time.

Numba has no CPU atomics, and it hoists a plain load out of a polling loop, so every such word is
read and written here and nowhere else. On x86-64 acquire loads and release stores are plain moves;
only `fence` and the read-modify-writes cost (some ten nanoseconds).
"""

import ctypes
import time
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from shm.jit import JIT_DISABLED, nopython

I32, I64 = ir.IntType(32), ir.IntType(64)
_CTYPES: dict[int, Any] = {32: ctypes.c_int32, 64: ctypes.c_int64}
_NUMBA: dict[int, Any] = {32: types.int32, 64: types.int64}


def _pointer(builder: ir.IRBuilder, address: Any, width: int) -> Any:
    return builder.inttoptr(address, ir.IntType(width).as_pointer())


def _load(ordering: str, width: int = 64) -> Any:
    if JIT_DISABLED:
        word = _CTYPES[width]
        return lambda address: word.from_address(int(address)).value

    @intrinsic
    def load(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pointer = _pointer(builder, args[0], width)
            return builder.load_atomic(pointer, ordering=ordering, align=width // 8)

        return _NUMBA[width](types.intp), codegen

    return load


def _store(ordering: str, width: int = 64) -> Any:
    if JIT_DISABLED:
        word = _CTYPES[width]

        def store_plain(address: int, value: int) -> None:
            word.from_address(int(address)).value = int(value)

        return store_plain

    @intrinsic
    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pointer = _pointer(builder, args[0], width)
            builder.store_atomic(args[1], pointer, ordering=ordering, align=width // 8)
            return context.get_dummy_value()

        return types.void(types.intp, _NUMBA[width]), codegen

    return store


def _fetch_add(width: int) -> Any:
    if JIT_DISABLED:
        word = _CTYPES[width]

        def add_plain(address: int, value: int) -> int:
            cell = word.from_address(int(address))
            old = cell.value
            cell.value = old + int(value)
            return int(old)

        return add_plain

    @intrinsic
    def add(typing_context: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pointer = _pointer(builder, args[0], width)
            return builder.atomic_rmw("add", pointer, args[1], ordering="seq_cst")

        return _NUMBA[width](types.intp, _NUMBA[width]), codegen

    return add


def _compare_exchange() -> Any:
    if JIT_DISABLED:

        def exchange_plain(address: int, expected: int, value: int) -> int:
            cell = _CTYPES[64].from_address(int(address))
            old = cell.value
            if old == int(expected):
                cell.value = int(value)
            return int(old)

        return exchange_plain

    @intrinsic
    def exchange(typing_context: Any, address: Any, expected: Any, value: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pointer = _pointer(builder, args[0], 64)
            pair = builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst")
            return builder.extract_value(pair, 0)

        return types.int64(types.intp, types.int64, types.int64), codegen

    return exchange


def _fence() -> Any:
    if JIT_DISABLED:
        return lambda: None

    @intrinsic
    def full_fence(typing_context: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            builder.fence("seq_cst")
            return context.get_dummy_value()

        return types.void(), codegen

    return full_fence


def _cpu_intrinsic(name: str, result: Any, fallback: Callable[[], Any]) -> Any:
    if JIT_DISABLED:
        return fallback

    @intrinsic
    def call(typing_context: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            returns = ir.VoidType() if result is types.void else I64
            function_type = ir.FunctionType(returns, [])
            function = cgutils.get_or_insert_function(builder.module, function_type, name)
            value = builder.call(function, [])
            return context.get_dummy_value() if result is types.void else value

        return result(), codegen

    return call


_load_acquire, _load_relaxed = _load("acquire"), _load("monotonic")
_load_acquire_32 = _load("acquire", 32)
_store_release, _store_relaxed = _store("release"), _store("monotonic")
_add_64, _add_32 = _fetch_add(64), _fetch_add(32)
_exchange_64 = _compare_exchange()
_full_fence = _fence()
_pause = _cpu_intrinsic("llvm.x86.sse2.pause", types.void, lambda: None)
_cycles = _cpu_intrinsic("llvm.readcyclecounter", types.int64, time.perf_counter_ns)


# The wrappers are what the rest calls: LLVM inlines each to one instruction, and because they are
# compiled functions, the uncompiled body of a caller can call them too.
@nopython
def load_acquire(address: int) -> int:
    """Read an int64; nothing after it in program order moves before it."""
    return _load_acquire(address)  # type: ignore[no-any-return]


@nopython
def load_relaxed(address: int) -> int:
    """Read an int64 that another writer may change; no ordering of anything else."""
    return _load_relaxed(address)  # type: ignore[no-any-return]


@nopython
def load_acquire_32(address: int) -> int:
    """Read an int32 (a futex word); nothing after it moves before it."""
    return _load_acquire_32(address)  # type: ignore[no-any-return]


@nopython
def store_release(address: int, value: int) -> None:
    """Write an int64; nothing before it in program order moves after it."""
    _store_release(address, value)


@nopython
def store_relaxed(address: int, value: int) -> None:
    """Write an int64 that others may read; no ordering of anything else."""
    _store_relaxed(address, value)


@nopython
def fetch_add(address: int, value: int) -> int:
    """Add to an int64 in one indivisible step and return what was there; a full fence."""
    return _add_64(address, value)  # type: ignore[no-any-return]


@nopython
def fetch_add_32(address: int, value: int) -> int:
    """Add to an int32 in one indivisible step and return what was there; a full fence."""
    return _add_32(address, value)  # type: ignore[no-any-return]


@nopython
def compare_exchange(address: int, expected: int, value: int) -> int:
    """Write `value` if an int64 is `expected`, in one indivisible step, and return what was there;
    a full fence.
    """
    return _exchange_64(address, expected, value)  # type: ignore[no-any-return]


@nopython
def fence() -> None:
    """Full fence: no load after it is done before every store ahead of it is visible."""
    _full_fence()


@nopython
def pause() -> None:
    """Tell the core that this is a polling loop (x86 PAUSE)."""
    _pause()


@nopython
def cycles() -> int:
    """The time-stamp counter; see `shm.clock` for its rate."""
    return _cycles()  # type: ignore[no-any-return]
