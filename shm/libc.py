"""The only module of this package that names libc: futex, eventfd writes, the monotonic clock.

Calls return a result or `-errno`, never an exception, and work the same from compiled code and
from Python. Each symbol is looked up at import, because a misspelt one would crash when called.
"""

import ctypes
import errno
import socket
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from shm.jit import JIT_DISABLED, nopython

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

SYS_FUTEX: Final = 202  # x86-64
SYS_PREADV2: Final = 327
RWF_NOWAIT: Final = 8
FUTEX_WAKE: Final = 1
FUTEX_WAIT_BITSET: Final = 9
FUTEX_BITSET_MATCH_ANY: Final = 0xFFFFFFFF
CLOCK_MONOTONIC: Final = 1

TMPFS_MAGIC: Final = 0x01021994  # statfs(2)

MSG_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
MSG_NOSIGNAL: Final = int(socket.MSG_NOSIGNAL)

ENOTSOCK: Final = errno.ENOTSOCK
EAGAIN: Final = errno.EAGAIN
EINTR: Final = errno.EINTR
EOPNOTSUPP: Final = errno.EOPNOTSUPP
ETIMEDOUT: Final = errno.ETIMEDOUT


def external(name: str, result: Any, *arguments: Any) -> Any:
    """Make a libc function callable from compiled code and, without the compiler, through ctypes.

    Raises ImportError for a name that the C library does not have.
    """
    if not hasattr(_LIBC, name):
        raise ImportError(f"the C library has no function {name}")
    if not JIT_DISABLED:
        return types.ExternalFunction(name, result(*arguments))
    function = getattr(_LIBC, name)
    widths = {types.int32: ctypes.c_int32, types.int64: ctypes.c_int64, types.intp: ctypes.c_int64}
    function.restype = widths.get(result)
    function.argtypes = [widths[argument] for argument in arguments]
    return function


_syscall = external("syscall", types.int64, *[types.int64] * 7)
_write = external("write", types.int64, types.int32, types.intp, types.int64)
_read = external("read", types.int64, types.int32, types.intp, types.int64)
_send = external("send", types.int64, types.int32, types.intp, types.int64, types.int32)
_errno_location = external("__errno_location", types.intp)


def _errno_reader() -> Any:
    if JIT_DISABLED:
        return ctypes.get_errno

    @intrinsic
    def read(typing_context: Any, location: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], ir.IntType(32).as_pointer())
            return builder.sext(builder.load(pointer), ir.IntType(64))

        return types.int64(types.intp), codegen

    @nopython
    def current() -> int:
        return read(_errno_location())  # type: ignore[call-arg]

    return current


_errno = _errno_reader()


def _stack_words(count: int) -> Any:
    """Make an intrinsic that reserves `count` int64 on the caller's stack and gives the address."""
    if JIT_DISABLED:
        kept: list[Any] = []  # ctypes memory lives as long as the list holds it

        def reserve_plain() -> int:
            kept.append((ctypes.c_int64 * count)())
            del kept[:-64]
            return ctypes.addressof(kept[-1])

        return reserve_plain

    @intrinsic
    def reserve(typing_context: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            words = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(64), count))
            return builder.ptrtoint(words, ir.IntType(64))

        return types.intp(), codegen

    return reserve


def _clock() -> Any:
    if JIT_DISABLED:
        import time

        return time.monotonic_ns

    @intrinsic
    def read_clock(typing_context: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            word, pair = ir.IntType(64), ir.ArrayType(ir.IntType(64), 2)
            spec = cgutils.alloca_once(builder, pair)
            kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32), pair.as_pointer()])
            function = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
            builder.call(function, [ir.Constant(ir.IntType(32), CLOCK_MONOTONIC), spec])
            value = builder.load(spec)
            seconds = builder.extract_value(value, 0)
            billion = ir.Constant(word, 1_000_000_000)
            return builder.add(builder.mul(seconds, billion), builder.extract_value(value, 1))

        return types.int64(), codegen

    return read_clock


_read_clock = _clock()
_two_words = _stack_words(2)
_three_words = _stack_words(3)
stack_words = _stack_words

if not JIT_DISABLED:

    @intrinsic
    def _poke(typing_context: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            builder.store(args[1], builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
            return context.get_dummy_value()

        return types.void(types.intp, types.int64), codegen

    _put: Any = _poke
else:

    def _put(address: int, value: int) -> None:
        ctypes.c_int64.from_address(int(address)).value = int(value)


@nopython
def monotonic_ns() -> int:
    """CLOCK_MONOTONIC in nanoseconds: the same clock in every process of this machine."""
    return _read_clock()  # type: ignore[no-any-return]


@nopython
def last_errno() -> int:
    """The errno of this thread's last libc call; read it in the same function as the call."""
    return _errno()  # type: ignore[no-any-return]


@nopython
def syscall(number: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int:
    """Make a system call that glibc does not wrap. Return its result or `-errno`."""
    result = _syscall(number, a, b, c, d, e, f)
    if result == -1:
        return -last_errno()
    return result  # type: ignore[no-any-return]


@nopython
def futex_wait(address: int, expected: int, deadline_ns: int) -> int:
    """Sleep while the int32 at `address` equals `expected`, until the absolute deadline.

    Works across processes (not FUTEX_PRIVATE). Returns 0 when woken, else -EAGAIN (the word had
    changed), -ETIMEDOUT or -EINTR; a wake-up may be spurious.
    """
    spec = _two_words()
    _put(spec, deadline_ns // 1_000_000_000)
    _put(spec + 8, deadline_ns % 1_000_000_000)
    wanted = expected & 0xFFFFFFFF
    return syscall(SYS_FUTEX, address, FUTEX_WAIT_BITSET, wanted, spec, 0, FUTEX_BITSET_MATCH_ANY)


@nopython
def futex_wake(address: int, count: int) -> int:
    """Wake up to `count` sleepers of the futex word. Return how many were woken."""
    return syscall(SYS_FUTEX, address, FUTEX_WAKE, count, 0, 0, 0)


@nopython
def eventfd_signal(descriptor: int) -> int:
    """Add one to an eventfd. Return 8, or `-errno` (a full counter is as good as signalled)."""
    value = _two_words()
    _put(value, 1)
    result = _write(descriptor, value, 8)
    if result < 0:
        return -last_errno()
    return result  # type: ignore[no-any-return]


@nopython
def wake_signal(descriptor: int) -> int:
    """Make a waiter's descriptor readable without ever blocking. Return bytes, or `-errno`.

    An engine gives its clients one end of a socket pair: whoever shares an eventfd could make it
    full and blocking and so stop the engine, but MSG_DONTWAIT holds whatever the flags are. A full
    socket is as good as a signalled one. Anything that is no socket gets an eventfd's write.
    """
    value = _two_words()
    _put(value, 1)
    result = _send(descriptor, value, 8, MSG_DONTWAIT | MSG_NOSIGNAL)
    if result >= 0:
        return result  # type: ignore[no-any-return]
    if last_errno() == ENOTSOCK:
        return eventfd_signal(descriptor)
    return -last_errno()


@nopython
def eventfd_drain(descriptor: int) -> int:
    """Reset an eventfd, never waiting. Return 8, or -EAGAIN when it was not signalled.

    O_NONBLOCK is not relied on: it belongs to the open file, which the other side shares and can
    switch back, and an engine must not sleep because a client did.
    """
    vector = _three_words()  # a struct iovec and the word it points to
    _put(vector, vector + 16)
    _put(vector + 8, 8)
    result = syscall(SYS_PREADV2, descriptor, vector, 1, -1, 0, RWF_NOWAIT)
    if result == -EOPNOTSUPP:  # a kernel before 5.8
        result = _read(descriptor, vector + 16, 8)
        if result < 0:
            return -last_errno()
    return result


def is_in_memory(descriptor: int) -> bool:
    """Whether a file lies in tmpfs (shared memory or a memfd): its pages come without waiting."""
    about = (ctypes.c_int64 * 32)()  # struct statfs has 120 bytes; the first word is its type
    if _LIBC.fstatfs(descriptor, about) != 0:
        raise OSError(ctypes.get_errno(), "fstatfs")
    return int(about[0]) == TMPFS_MAGIC
