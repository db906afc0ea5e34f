"""CRC32C of long runs by carry-less multiplication: four vectors walk the data in order, each
multiplied by a power of x that carries it over what lies between, so memory is read as a stream.
Whole steps only; the same pass can leave a copy behind, and the CRC is then that of the copy.
"""

from typing import Any, Final

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from shm.jit import JIT_DISABLED

POLYNOMIAL: Final = 0x82F63B78  # 0x1EDC6F41 with its bits reversed
_LANE_BITS: Final = 128
_VECTORS: Final = 4  # as many as hide the latency of a multiplication; eight are not faster
_WORD: Final = ir.IntType(64)
_LOW_BY_LOW: Final = 0x00  # which halves of a lane and of its constants are multiplied
_HIGH_BY_HIGH: Final = 0x11


def _has(feature: str) -> bool:
    """Whether compiled code may use this, which the compiler takes from the host or is told."""
    config: Any = numba.config
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    is_host = config.CPU_NAME in (None, "", "host")
    return bool(is_host and llvm.get_host_cpu_features().get(feature, False))


def lanes() -> int:
    """Lanes of 128 bits in a vector: 4 or 2, or 0 if the CPU has no such instruction.

    One lane (PCLMULQDQ) is slower than three CRC instructions side by side.
    """
    if JIT_DISABLED or not numba.config.ENABLE_AVX:  # type: ignore[attr-defined]
        return 0
    if not (_has("vpclmulqdq") and _has("avx2") and _has("sse4.2")):
        return 0
    return 4 if _has("avx512f") else 2


def step_size(lane_count: int) -> int:
    """Bytes of which the length must be a multiple, and at least one."""
    return _VECTORS * lane_count * _LANE_BITS // 8


def _power_of_x(exponent: int) -> int:
    """x to this power modulo the polynomial, its bits reversed."""
    value = 1 << 31
    for _ in range(exponent):
        value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
    return value


def _carrying(bits: int, lane_count: int) -> ir.Constant:
    """What carries each lane over `bits` of data: for its first half, which is further from the
    end, and for its second. A product of reversed factors lies one bit too low, hence the shift.
    """
    pair = [_power_of_x(bits + 32) << 1, _power_of_x(bits - 32) << 1]
    return ir.Constant(ir.VectorType(_WORD, 2 * lane_count), pair * lane_count)


class _Builder:
    """Emits the pieces of one fold."""

    def __init__(self, builder: ir.IRBuilder, lane_count: int) -> None:
        self.ir = builder
        self.lane_count = lane_count
        self.vector = ir.VectorType(_WORD, 2 * lane_count)
        self.size = lane_count * _LANE_BITS // 8
        suffix = {2: ".256", 4: ".512"}[lane_count]
        declare: Any = cgutils.get_or_insert_function
        kind = ir.FunctionType(self.vector, [self.vector, self.vector, ir.IntType(8)])
        self.multiply = declare(builder.module, kind, "llvm.x86.pclmulqdq" + suffix)
        kind = ir.FunctionType(_WORD, [_WORD, _WORD])
        self.crc_step = declare(builder.module, kind, "llvm.x86.sse42.crc32.64.64")

    def _pointer(self, address: Any, place: int) -> Any:
        at = self.ir.add(address, _WORD(place * self.size))
        return self.ir.inttoptr(at, self.vector.as_pointer())

    def take(self, source: Any, target: Any, place: int) -> Any:
        """Load a vector, and store it at `target` if that is not None."""
        value = self.ir.load(self._pointer(source, place), align=1)
        if target is not None:
            self.ir.store(value, self._pointer(target, place), align=1)
        return value

    def with_crc(self, value: Any, crc: Any) -> Any:
        """A CRC so far is added to the first bytes of what follows it."""
        zeros = ir.Constant(self.vector, [0] * 2 * self.lane_count)
        return self.ir.xor(value, self.ir.insert_element(zeros, crc, ir.IntType(32)(0)))

    def carry(self, value: Any, constant: Any, following: Any) -> Any:
        """`value` carried to where `following` lies, and both in one."""
        halves = [
            self.ir.call(self.multiply, [value, constant, ir.IntType(8)(which)])
            for which in (_LOW_BY_LOW, _HIGH_BY_HIGH)
        ]
        return self.ir.xor(self.ir.xor(*halves), following)

    def reduce(self, value: Any) -> Any:
        """The CRC of a vector's bytes."""
        crc = _WORD(0)
        for word in range(2 * self.lane_count):
            item = self.ir.extract_element(value, ir.IntType(32)(word))
            crc = self.ir.call(self.crc_step, [crc, item])
        return crc


def make_fold(lane_count: int, *, copies: bool) -> Any:
    """`fold(crc, target, source, length)`: continue a CRC over whole steps at `source`.

    `copies`: leave them at `target` too, which must not overlap; else `target` is ignored.
    """
    step = step_size(lane_count)

    @intrinsic
    def fold(typing_context: Any, crc: Any, target: Any, source: Any, length: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            crc, target, source, length = args
            emit = _Builder(builder, lane_count)
            over_step, over_vector = (
                _carrying(bits, lane_count) for bits in (8 * step, 8 * emit.size)
            )
            sums = []
            for place in range(_VECTORS):
                value = emit.take(source, target if copies else None, place)
                sums.append(cgutils.alloca_once(builder, emit.vector))
                builder.store(value if place else emit.with_crc(value, crc), sums[place])
            loop: Any = cgutils.for_range_slice
            with loop(builder, _WORD(step), length, _WORD(step), _WORD) as (offset, _):
                at = builder.add(source, offset)
                to = builder.add(target, offset) if copies else None
                for place, held in enumerate(sums):
                    value = emit.take(at, to, place)
                    builder.store(emit.carry(builder.load(held), over_step, value), held)
            total = builder.load(sums[0])
            for held in sums[1:]:
                total = emit.carry(total, over_vector, builder.load(held))
            return emit.reduce(total)

        return types.int64(types.int64, types.intp, types.intp, types.int64), codegen

    return fold
