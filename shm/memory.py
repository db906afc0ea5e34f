"""Bytes and words at raw addresses: what has no record, such as payloads and wire headers.

These are ordinary loads and stores for memory that only one side writes at a time; they order
nothing. Network byte order is spelled `_be`.
"""

import ctypes
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from shm.jit import JIT_DISABLED, nopython

_CTYPES = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_int64}


def _loader(width: int, swap: bool) -> Any:
    if JIT_DISABLED:
        order: Any = "big" if swap else "little"
        return lambda address: int.from_bytes(
            ctypes.string_at(int(address), width // 8), order, signed=width == 64
        )

    @intrinsic
    def load(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], ir.IntType(width).as_pointer())
            value = builder.load(pointer, align=1)
            if swap:
                value = builder.bswap(value)
            return value if width == 64 else builder.zext(value, ir.IntType(64))

        return types.int64(types.intp), codegen

    return load


def _storer(width: int, swap: bool) -> Any:
    if JIT_DISABLED:
        order: Any = "big" if swap else "little"

        def store_plain(address: int, value: int) -> None:
            data = (int(value) & ((1 << width) - 1)).to_bytes(width // 8, order)
            ctypes.memmove(int(address), data, width // 8)

        return store_plain

    @intrinsic
    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], ir.IntType(width).as_pointer())
            data = args[1] if width == 64 else builder.trunc(args[1], ir.IntType(width))
            builder.store(builder.bswap(data) if swap else data, pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.intp, types.int64), codegen

    return store


def _mover() -> Any:
    if JIT_DISABLED:
        return lambda target, source, size: ctypes.memmove(int(target), int(source), int(size))

    @intrinsic
    def move(typing_context: Any, target: Any, source: Any, size: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            byte = ir.IntType(8).as_pointer()
            target, source = builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte)
            cgutils.raw_memmove(builder, target, source, args[2], 1)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.int64), codegen

    return move


def _filler() -> Any:
    if JIT_DISABLED:
        return lambda target, size: ctypes.memset(int(target), 0, int(size))

    @intrinsic
    def fill(typing_context: Any, target: Any, size: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
            cgutils.memset(builder, pointer, args[1], 0)
            return context.get_dummy_value()

        return types.void(types.intp, types.int64), codegen

    return fill


_load_8, _store_8 = _loader(8, False), _storer(8, False)
_load_64, _store_64 = _loader(64, False), _storer(64, False)
_load_32, _store_32 = _loader(32, False), _storer(32, False)
_load_16, _store_16 = _loader(16, False), _storer(16, False)
_load_16_be, _store_16_be = _loader(16, True), _storer(16, True)
_load_32_be, _store_32_be = _loader(32, True), _storer(32, True)
_load_64_be, _store_64_be = _loader(64, True), _storer(64, True)
_move, _fill = _mover(), _filler()


@nopython
def load_8(address: int) -> int:
    """Read one byte, 0..255."""
    return _load_8(address)  # type: ignore[no-any-return]


@nopython
def store_8(address: int, value: int) -> None:
    """Write the low byte of `value`."""
    _store_8(address, value)


@nopython
def load_16(address: int) -> int:
    """Read two bytes in the machine's order, 0..65535."""
    return _load_16(address)  # type: ignore[no-any-return]


@nopython
def store_16(address: int, value: int) -> None:
    """Write two bytes in the machine's order."""
    _store_16(address, value)


@nopython
def load_32(address: int) -> int:
    """Read four bytes in the machine's order, unsigned."""
    return _load_32(address)  # type: ignore[no-any-return]


@nopython
def store_32(address: int, value: int) -> None:
    """Write four bytes in the machine's order."""
    _store_32(address, value)


@nopython
def load_64(address: int) -> int:
    """Read eight bytes in the machine's order, signed."""
    return _load_64(address)  # type: ignore[no-any-return]


@nopython
def store_64(address: int, value: int) -> None:
    """Write eight bytes in the machine's order."""
    _store_64(address, value)


@nopython
def load_16_be(address: int) -> int:
    """Read two bytes in network order."""
    return _load_16_be(address)  # type: ignore[no-any-return]


@nopython
def store_16_be(address: int, value: int) -> None:
    """Write two bytes in network order."""
    _store_16_be(address, value)


@nopython
def load_24_be(address: int) -> int:
    """Read three bytes in network order (iSCSI's DataSegmentLength)."""
    return (_load_8(address) << 16) | _load_16_be(address + 1)  # type: ignore[no-any-return]


@nopython
def store_24_be(address: int, value: int) -> None:
    """Write three bytes in network order."""
    _store_8(address, value >> 16)
    _store_16_be(address + 1, value)


@nopython
def load_32_be(address: int) -> int:
    """Read four bytes in network order, unsigned."""
    return _load_32_be(address)  # type: ignore[no-any-return]


@nopython
def store_32_be(address: int, value: int) -> None:
    """Write four bytes in network order."""
    _store_32_be(address, value)


@nopython
def load_64_be(address: int) -> int:
    """Read eight bytes in network order, signed."""
    return _load_64_be(address)  # type: ignore[no-any-return]


@nopython
def store_64_be(address: int, value: int) -> None:
    """Write eight bytes in network order."""
    _store_64_be(address, value)


@nopython
def copy_bytes(target: int, source: int, size: int) -> None:
    """Copy `size` bytes; the areas may overlap."""
    _move(target, source, size)


@nopython
def zero_bytes(target: int, size: int) -> None:
    """Set `size` bytes to zero."""
    _fill(target, size)
