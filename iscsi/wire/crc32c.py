"""CRC32C, the digest of iSCSI (RFC 7143 §13.1): reflected, initial and final value all ones.
Compiled code uses the CPU's instruction where there is one, else a table; the results are equal.
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

from shm.jit import JIT_DISABLED, entry, nopython
from shm.memory import load_8, load_64
from shm.view import address_of

ONES: Final = 0xFFFFFFFF
_POLYNOMIAL: Final = 0x82F63B78  # 0x1EDC6F41 with its bits reversed


def _make_table() -> Any:
    table = np.zeros(256, np.int64)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        table[byte] = crc
    return table


_TABLE: Final = _make_table()


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
    for at in range(address, address + length):
        crc = _TABLE[(crc ^ load_8(at)) & 0xFF] ^ (crc >> 8)
    return crc


def _make_update() -> Any:
    if not cpu_has_instruction():
        return update_by_table
    step_64 = _instruction("llvm.x86.sse42.crc32.64.64", 64, 64)
    step_8 = _instruction("llvm.x86.sse42.crc32.32.8", 32, 8)

    @nopython
    def by_instruction(crc: int, address: int, length: int) -> int:
        words_end = address + (length & ~7)
        for at in range(address, words_end, 8):
            crc = step_64(crc, load_64(at))
        for at in range(words_end, address + length):
            crc = step_8(crc, load_8(at))
        return crc

    return by_instruction


_update = _make_update()


@nopython
def update(crc: int, address: int, length: int) -> int:
    """Continue a CRC over `length` bytes. Starts from ONES; `finish` gives the value to store."""
    return int(_update(crc, address, length))


@nopython
def finish(crc: int) -> int:
    """The digest of a running CRC, as the word that is stored little-endian."""
    return crc ^ ONES


@entry("int64(intp, int64)")
def _digest(address: int, length: int) -> int:
    return finish(update(ONES, address, length))


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """The CRC32C of a buffer, from Python."""
    array = np.frombuffer(data, np.uint8)
    return _digest(address_of(array), array.size) if array.size else 0
