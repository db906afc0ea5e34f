"""The only module of the engine that names libc: sockets, epoll, io_uring, yielding.

Every function returns a result or `-errno`. Sockets are made non-blocking and close-on-exec.
"""

import errno
import socket
from typing import Final

from numba import types

from shm.jit import nopython
from shm.libc import external, last_errno, stack_words, syscall
from shm.memory import load_32, load_64, store_32, store_64, zero_bytes

SYS_IO_URING_ENTER: Final = 426
SYS_IO_URING_SETUP: Final = 425
SYS_ACCEPT4: Final = 288

AF_INET: Final = int(socket.AF_INET)
AF_INET6: Final = int(socket.AF_INET6)
STREAM_FLAGS: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
ACCEPT_FLAGS: Final = int(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
MSG_FLAGS: Final = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
MSG_MORE: Final = int(socket.MSG_MORE)
SHUT_WR: Final = int(socket.SHUT_WR)
SOL_SOCKET: Final = int(socket.SOL_SOCKET)
SO_ERROR: Final = int(socket.SO_ERROR)
SO_REUSEADDR: Final = int(socket.SO_REUSEADDR)
SO_REUSEPORT: Final = int(socket.SO_REUSEPORT)
IPPROTO_TCP: Final = int(socket.IPPROTO_TCP)
TCP_NODELAY: Final = int(socket.TCP_NODELAY)
IPPROTO_IPV6: Final = int(socket.IPPROTO_IPV6)
IPV6_V6ONLY: Final = int(socket.IPV6_V6ONLY)

PROT_READ_WRITE: Final = 3
MAP_PRIVATE: Final = 0x02
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
MAP_FIXED_NOREPLACE: Final = 0x100000

EAGAIN: Final = errno.EAGAIN
EINPROGRESS: Final = errno.EINPROGRESS
EINTR: Final = errno.EINTR
EFAULT: Final = errno.EFAULT

_I32, _I64, _PTR = types.int32, types.int64, types.intp
_socket = external("socket", _I32, _I32, _I32, _I32)
_connect = external("connect", _I32, _I32, _PTR, _I32)
_bind = external("bind", _I32, _I32, _PTR, _I32)
_listen = external("listen", _I32, _I32, _I32)
_shutdown = external("shutdown", _I32, _I32, _I32)
_close = external("close", _I32, _I32)
_setsockopt = external("setsockopt", _I32, _I32, _I32, _I32, _PTR, _I32)
_getsockopt = external("getsockopt", _I32, _I32, _I32, _I32, _PTR, _PTR)
_getsockname = external("getsockname", _I32, _I32, _PTR, _PTR)
_recvmsg = external("recvmsg", _I64, _I32, _PTR, _I32)
_sendmsg = external("sendmsg", _I64, _I32, _PTR, _I32)
_recv = external("recv", _I64, _I32, _PTR, _I64, _I32)
_read = external("read", _I64, _I32, _PTR, _I64)
_send = external("send", _I64, _I32, _PTR, _I64, _I32)
_epoll_ctl = external("epoll_ctl", _I32, _I32, _I32, _I32, _PTR)
_epoll_wait = external("epoll_wait", _I32, _I32, _PTR, _I32, _I32)
_mmap = external("mmap", _I64, _PTR, _I64, _I32, _I32, _I32, _I64)
_mlock = external("mlock", _I32, _PTR, _I64)
_signal = external("signal", _I64, _I32, _I64)
_sigaction = external("sigaction", _I32, _I32, _PTR, _PTR)
_sched_yield = external("sched_yield", _I32)

_four_words = stack_words(4)
_eight_words = stack_words(8)


@nopython
def _result(value: int) -> int:
    return -last_errno() if value < 0 else value


@nopython
def open_stream(family: int) -> int:
    """A non-blocking TCP socket without Nagle's delay. Return its descriptor or `-errno`."""
    descriptor = _result(_socket(family, STREAM_FLAGS, 0))
    if descriptor >= 0:
        set_option(descriptor, IPPROTO_TCP, TCP_NODELAY, 1)
    return descriptor


@nopython
def set_option(descriptor: int, level: int, name: int, value: int) -> int:
    """setsockopt(2) with an int."""
    word = _four_words()
    store_32(word, value)
    return _result(_setsockopt(descriptor, level, name, word, 4))


@nopython
def socket_error(descriptor: int) -> int:
    """The pending error of a socket as `-errno`, 0 for none; reading it clears it."""
    words = _four_words()
    store_64(words, 0)
    store_32(words + 8, 4)
    if _getsockopt(descriptor, SOL_SOCKET, SO_ERROR, words, words + 8) < 0:
        return -last_errno()
    return -load_32(words)


@nopython
def connect(descriptor: int, address: int, size: int) -> int:
    """connect(2): 0, -EINPROGRESS, or another `-errno`."""
    return _result(_connect(descriptor, address, size))


@nopython
def bind_and_listen(descriptor: int, address: int, size: int, backlog: int) -> int:
    """bind(2) then listen(2): 0 or `-errno`."""
    outcome = _result(_bind(descriptor, address, size))
    if outcome < 0:
        return outcome
    return _result(_listen(descriptor, backlog))


@nopython
def bound_port(descriptor: int) -> int:
    """The local port of a socket, or `-errno`."""
    words = _eight_words()
    zero_bytes(words, 64)
    store_32(words + 56, 28)
    if _getsockname(descriptor, words, words + 56) < 0:
        return -last_errno()
    port = (load_32(words) >> 16) & 0xFFFF
    return ((port & 0xFF) << 8) | (port >> 8)


@nopython
def accept(descriptor: int, address: int, size_at: int) -> int:
    """accept4(2), non-blocking; the peer is written at `address` (28 bytes)."""
    store_32(size_at, 28)
    return syscall(SYS_ACCEPT4, descriptor, address, size_at, ACCEPT_FLAGS, 0, 0)


@nopython
def receive_message(descriptor: int, message: int) -> int:
    """recvmsg(2) into the spans of a prepared msghdr: bytes, 0 at the end, or `-errno`."""
    return _result(_recvmsg(descriptor, message, MSG_FLAGS))


@nopython
def send_message(descriptor: int, message: int, more: bool) -> int:
    """sendmsg(2) from the spans of a prepared msghdr: bytes or `-errno`."""
    return _result(_sendmsg(descriptor, message, MSG_FLAGS | (MSG_MORE if more else 0)))


@nopython
def receive_bytes(descriptor: int, address: int, length: int) -> int:
    """recv(2) into one span; cheaper than recvmsg."""
    return _result(_recv(descriptor, address, length, MSG_FLAGS))


@nopython
def read_bytes(descriptor: int, address: int, length: int) -> int:
    """read(2), of what is no socket."""
    return _result(_read(descriptor, address, length))


@nopython
def send_bytes(descriptor: int, address: int, length: int, more: bool) -> int:
    """send(2) from one span; cheaper than sendmsg."""
    return _result(_send(descriptor, address, length, MSG_FLAGS | (MSG_MORE if more else 0)))


@nopython
def half_close(descriptor: int) -> int:
    """shutdown(2) of the sending direction."""
    return _result(_shutdown(descriptor, SHUT_WR))


@nopython
def close(descriptor: int) -> int:
    """close(2)."""
    return _result(_close(descriptor))


@nopython
def epoll_control(poller: int, operation: int, descriptor: int, events: int, tag: int) -> int:
    """epoll_ctl(2) with 64 bits of user data."""
    event = _four_words()  # struct epoll_event is packed on x86-64: events at 0, data at 4
    store_32(event, events)
    store_64(event + 4, tag)
    return _result(_epoll_ctl(poller, operation, descriptor, event))


@nopython
def epoll_wait(poller: int, events: int, count: int, timeout_ms: int) -> int:
    """epoll_wait(2): how many events were written, or `-errno`."""
    return _result(_epoll_wait(poller, events, count, timeout_ms))


@nopython
def io_uring_enter(ring: int, submit: int, wait_for: int, flags: int, arg: int, size: int) -> int:
    """io_uring_enter(2): entries submitted, or `-errno`."""
    return syscall(SYS_IO_URING_ENTER, ring, submit, wait_for, flags, arg, size)


@nopython
def yield_cpu() -> None:
    """sched_yield(2)."""
    _sched_yield()


@nopython
def map_zeros(address: int, size: int, exclusive: bool) -> int:
    """Map anonymous zero pages at a fixed address, replacing what is there unless `exclusive`."""
    placement = MAP_FIXED_NOREPLACE if exclusive else MAP_FIXED
    got = _mmap(address, size, PROT_READ_WRITE, placement | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    return -last_errno() if got == -1 else got


@nopython
def lock_memory(address: int, size: int) -> int:
    """mlock(2): 0 or `-errno`."""
    return _result(_mlock(address, size))


@nopython
def default_signal(number: int) -> None:
    """Let the kernel do with a signal what it does by default."""
    _signal(number, 0)


@nopython
def set_signal_action(number: int, action: int) -> int:
    """sigaction(2) with a prepared struct sigaction."""
    return _result(_sigaction(number, action, 0))


@nopython
def fill_message(message: int, vectors: int, count: int) -> None:
    """Prepare a struct msghdr for `count` iovecs and nothing else."""
    zero_bytes(message, 56)
    store_64(message + 16, vectors)
    store_64(message + 24, count)


@nopython
def fill_vector(vectors: int, index: int, address: int, length: int) -> None:
    """Write one struct iovec."""
    store_64(vectors + 16 * index, address)
    store_64(vectors + 16 * index + 8, length)


@nopython
def vector_length(vectors: int, index: int) -> int:
    """Length of one struct iovec."""
    return load_64(vectors + 16 * index + 8)
