"""CRC32C, the digest of iSCSI (RFC 7143 §13.1): reflected, initial and final value all ones.
Compiled code folds long runs (`crc32c_fold`) where the CPU can, uses its CRC instruction on three
pieces at a time where it has only that, else tables of eight bytes a step; the results are equal.
Stored on the wire as a little-endian word, which is the RFC's bit order for a reflected CRC.
"""

from typing import Any, Final

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from shm.crc32c_fold import POLYNOMIAL, lanes, make_fold, step_size
from shm.jit import JIT_DISABLED, entry, nopython
from shm.memory import copy_bytes, load_8, load_32, load_64
from shm.view import address_of

ONES: Final = 0xFFFFFFFF
# The instruction takes three cycles but a new one can start in each, so three CRCs are computed
# side by side. Joining them costs eight table look-ups: little beside 768 bytes, less beside 12288.
# Of memory that is in no cache, pieces of a page are read a quarter faster than half pages.
_SHORT: Final = 256
_LONG: Final = 4096
# What is copied at once before its CRC is computed: a third of a first-level cache.
_PIECE: Final = 3 * _LONG


def _after_zero_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
    return crc


def _slicing_tables() -> Any:
    """Entry [k][b] is the CRC register for byte b followed by k zero bytes."""
    tables = np.zeros((8, 256), np.int64)
    tables[0] = [_after_zero_byte(byte) for byte in range(256)]
    for k in range(1, 8):
        before = tables[k - 1]
        tables[k] = tables[0][before & 0xFF] ^ (before >> 8)
    return tables.reshape(-1)


def _apply(operator: list[int], crc: int) -> int:
    """A CRC register times a linear operator, given as what it makes of each single bit."""
    found = 0
    for bit, image in enumerate(operator):
        if crc >> bit & 1:
            found ^= image
    return found


def _advance_tables(length: int) -> Any:
    """Four tables, one per byte of a CRC register: what `length` (a power of two) zero bytes make
    of it.
    """
    operator = [_after_zero_byte(1 << bit) for bit in range(32)]
    for _ in range(length.bit_length() - 1):
        operator = [_apply(operator, image) for image in operator]
    rows = [_apply(operator, byte << 8 * place) for place in range(4) for byte in range(256)]
    return np.array(rows, np.int64)


_TABLES: Final = _slicing_tables()
_OVER_SHORT: Final = _advance_tables(_SHORT)
_OVER_LONG: Final = _advance_tables(_LONG)


def cpu_has_instruction() -> bool:
    """Whether compiled code may use SSE4.2. A cache built for `generic` may not."""
    if JIT_DISABLED:
        return False
    name = numba.config.CPU_NAME or "host"  # type: ignore[attr-defined]
    if name == "host":
        return bool(llvm.get_host_cpu_features().get("sse4.2", False))
    return str(name).startswith("x86-64-v")


def _instruction(symbol: str, width: int, data_width: int) -> Any:
    @intrinsic
    def step(typing_context: Any, crc: Any, data: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            word, item = ir.IntType(width), ir.IntType(data_width)
            declare: Any = cgutils.get_or_insert_function
            function = declare(builder.module, ir.FunctionType(word, [word, item]), symbol)
            crc, data = args
            if width < 64:
                crc = builder.trunc(crc, word)
            if data_width < 64:
                data = builder.trunc(data, item)
            result = builder.call(function, [crc, data])
            return result if width == 64 else builder.zext(result, ir.IntType(64))

        return types.int64(types.int64, types.int64), codegen

    return step


@nopython
def update_by_table(crc: int, address: int, length: int) -> int:
    """`update` without the instruction."""
    words_end = address + (length & ~7)
    for at in range(address, words_end, 8):
        low, high = crc ^ load_32(at), load_32(at + 4)
        crc = (
            _TABLES[7 * 256 + (low & 0xFF)]
            ^ _TABLES[6 * 256 + (low >> 8 & 0xFF)]
            ^ _TABLES[5 * 256 + (low >> 16 & 0xFF)]
            ^ _TABLES[4 * 256 + (low >> 24)]
            ^ _TABLES[3 * 256 + (high & 0xFF)]
            ^ _TABLES[2 * 256 + (high >> 8 & 0xFF)]
            ^ _TABLES[256 + (high >> 16 & 0xFF)]
            ^ _TABLES[high >> 24]
        )
    for at in range(words_end, address + length):
        crc = _TABLES[(crc ^ load_8(at)) & 0xFF] ^ (crc >> 8)
    return crc


def _make_update_by_instruction() -> Any:
    if not cpu_has_instruction():
        return update_by_table
    step_64 = _instruction("llvm.x86.sse42.crc32.64.64", 64, 64)
    step_8 = _instruction("llvm.x86.sse42.crc32.32.8", 32, 8)

    @nopython
    def over(crc: int, table: Any) -> int:
        return int(
            table[crc & 0xFF]
            ^ table[256 + (crc >> 8 & 0xFF)]
            ^ table[512 + (crc >> 16 & 0xFF)]
            ^ table[768 + (crc >> 24 & 0xFF)]
        )

    @nopython
    def by_three_short(crc: int, address: int) -> int:
        second, third = 0, 0
        for at in range(address, address + _SHORT, 8):
            crc = step_64(crc, load_64(at))
            second = step_64(second, load_64(at + _SHORT))
            third = step_64(third, load_64(at + 2 * _SHORT))
        crc = over(crc, _OVER_SHORT) ^ second
        return over(crc, _OVER_SHORT) ^ third

    @nopython
    def by_three_long(crc: int, address: int) -> int:
        second, third = 0, 0
        for at in range(address, address + _LONG, 8):
            crc = step_64(crc, load_64(at))
            second = step_64(second, load_64(at + _LONG))
            third = step_64(third, load_64(at + 2 * _LONG))
        crc = over(crc, _OVER_LONG) ^ second
        return over(crc, _OVER_LONG) ^ third

    @nopython
    def by_instruction(crc: int, address: int, length: int) -> int:
        end = address + length
        while end - address >= 3 * _LONG:
            crc = by_three_long(crc, address)
            address += 3 * _LONG
        while end - address >= 3 * _SHORT:
            crc = by_three_short(crc, address)
            address += 3 * _SHORT
        words_end = address + ((end - address) & ~7)
        for at in range(address, words_end, 8):
            crc = step_64(crc, load_64(at))
        for at in range(words_end, end):
            crc = step_8(crc, load_8(at))
        return crc

    return by_instruction


update_by_instruction = _make_update_by_instruction()


@nopython
def copy_in_pieces(crc: int, target: int, source: int, length: int) -> int:
    """`copy_and_update` without folding: the CRC of each piece while the cache has it."""
    at = 0
    while at < length:
        size = min(length - at, _PIECE)
        copy_bytes(target + at, source + at, size)
        crc = update_by_instruction(crc, target + at, size)
        at += size
    return crc


def _make_updates() -> tuple[Any, Any]:
    lane_count = lanes()
    if not (lane_count and cpu_has_instruction()):
        return update_by_instruction, copy_in_pieces
    fold, fold_copy = (make_fold(lane_count, copies=copies) for copies in (False, True))
    whole_steps = -step_size(lane_count)

    @nopython
    def by_fold(crc: int, address: int, length: int) -> int:
        size = length & whole_steps
        if size > 0:
            crc = fold(crc, address, address, size)
        return int(update_by_instruction(crc, address + size, length - size))

    @nopython
    def copy_by_fold(crc: int, target: int, source: int, length: int) -> int:
        size = length & whole_steps
        if size > 0:
            crc = fold_copy(crc, target, source, size)
        return copy_in_pieces(crc, target + size, source + size, length - size)

    return by_fold, copy_by_fold


_update, _copy_and_update = _make_updates()


@nopython
def update(crc: int, address: int, length: int) -> int:
    """Continue a CRC over `length` bytes. Starts from ONES; `finish` gives the value to store."""
    return int(_update(crc, address, length))


@nopython
def copy_and_update(crc: int, target: int, source: int, length: int) -> int:
    """Copy `length` bytes, which do not overlap, and continue a CRC over the copy.

    It is the copy's even if somebody else writes to `source` meanwhile.
    """
    return int(_copy_and_update(crc, target, source, length))


@nopython
def finish(crc: int) -> int:
    """The digest of a running CRC, as the word that is stored little-endian."""
    return crc ^ ONES


@entry("int64(intp, int64)")
def _digest(address: int, length: int) -> int:
    return finish(update(ONES, address, length))


@entry("int64(intp, int64)")
def _digest_by_table(address: int, length: int) -> int:
    return finish(update_by_table(ONES, address, length))


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """The CRC32C of a buffer, from Python."""
    array = np.frombuffer(data, np.uint8)
    return _digest(address_of(array), array.size) if array.size else 0


def crc32c_by_table(data: bytes | bytearray | memoryview) -> int:
    """`crc32c` as it is computed where the CPU has no instruction for it."""
    array = np.frombuffer(data, np.uint8)
    return _digest_by_table(address_of(array), array.size) if array.size else 0
