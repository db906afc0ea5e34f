"""The io_uring poller: edges arrive in memory, and the kernel is entered only when it has some.

Set up with SINGLE_ISSUER, DEFER_TASKRUN and TASKRUN_FLAG (kernel 6.1): the kernel notes in the
submission ring's flags that it has completions to write, and writes them when we enter. So an idle
pass reads two words and makes no call. Each socket and bell is watched by one multishot POLL_ADD,
which reports edges until it is removed; a CQE without F_MORE has ended and is armed again.
"""

import ctypes
import errno
import mmap
import os
import struct
from typing import Final

import numpy as np

from ppe.cycle import libc
from ppe.cycle.readiness.events import TAG_IGNORED, tag_kind
from shm.atomics import load_acquire_32
from shm.jit import entry, nopython
from shm.layout import Field, record
from shm.libc import syscall
from shm.memory import (
    load_32,
    load_64,
    store_8,
    store_32,
    store_64,
    zero_bytes,
)
from shm.view import address_of, opener

URING: Final = record(
    Field("descriptor", "<i8"),
    Field("sq_head", "<i8"),  # addresses of 32-bit words
    Field("sq_tail", "<i8"),
    Field("sq_flags", "<i8"),
    Field("sqes", "<i8"),
    Field("sq_mask", "<i8"),
    Field("cq_head", "<i8"),
    Field("cq_tail", "<i8"),
    Field("cqes", "<i8"),
    Field("cq_mask", "<i8"),
    Field("pending", "<i8"),  # entries written but not submitted
    Field("enters", "<i8"),
    Field("argument", "<i8"),  # struct io_uring_getevents_arg, then its timespec
    size=128,
)
uring_at = opener(URING)

ENTRIES: Final = 256
COMPLETIONS: Final = 8192
SETUP_CQSIZE, SETUP_CLAMP = 1 << 3, 1 << 4
SETUP_TASKRUN_FLAG, SETUP_SINGLE_ISSUER, SETUP_DEFER_TASKRUN = 1 << 9, 1 << 12, 1 << 13
SETUP_FLAGS: Final = (
    SETUP_CQSIZE | SETUP_CLAMP | SETUP_TASKRUN_FLAG | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN
)
FEAT_SINGLE_MMAP, FEAT_EXT_ARG = 1 << 0, 1 << 8
OFF_SQES: Final = 0x10000000
SQ_CQ_OVERFLOW, SQ_TASKRUN = 1 << 1, 1 << 2
ENTER_GETEVENTS, ENTER_EXT_ARG = 1 << 0, 1 << 3
OP_POLL_ADD, OP_ASYNC_CANCEL = 6, 14
POLL_ADD_MULTI: Final = 1 << 0
CQE_F_MORE: Final = 1 << 1
SQE_SIZE, CQE_SIZE = 64, 16
PARAMS_SIZE: Final = 120


class UringUnavailable(OSError):
    """This kernel, or its configuration, does not offer what the poller needs."""


class UringPoller:
    """The ring's memory and descriptor. Make it in the thread that will run the cycle."""

    def __init__(self) -> None:
        params = np.zeros(PARAMS_SIZE // 4, np.uint32)
        params[1], params[2] = COMPLETIONS, SETUP_FLAGS
        descriptor = _setup(ENTRIES, address_of(params))
        if descriptor < 0:
            raise UringUnavailable(-descriptor, f"io_uring_setup: {os.strerror(-descriptor)}")
        self._descriptor = descriptor
        features = int(params[5])
        if not features & FEAT_SINGLE_MMAP or not features & FEAT_EXT_ARG:
            os.close(descriptor)
            raise UringUnavailable(errno.ENOSYS, "io_uring lacks SINGLE_MMAP or EXT_ARG")
        self._map(params)

    def _map(self, params: np.typing.NDArray[np.uint32]) -> None:
        # struct io_sqring_offsets is at byte 40, struct io_cqring_offsets at byte 80.
        sq = dict(
            zip(
                ("head", "tail", "mask", "entries", "flags", "dropped", "array"),
                struct.unpack_from("<7I", params.tobytes(), 40),
                strict=True,
            )
        )
        cq = dict(
            zip(
                ("head", "tail", "mask", "entries", "overflow", "cqes"),
                struct.unpack_from("<6I", params.tobytes(), 80),
                strict=True,
            )
        )
        sq_entries, cq_entries = int(params[0]), int(params[1])
        size = max(sq["array"] + 4 * sq_entries, cq["cqes"] + CQE_SIZE * cq_entries)
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._ring = mmap.mmap(self._descriptor, size, flags=flags)
        self._sqes = mmap.mmap(
            self._descriptor, SQE_SIZE * sq_entries, flags=flags, offset=OFF_SQES
        )
        ring = ctypes.addressof(ctypes.c_char.from_buffer(self._ring))
        array = np.frombuffer(self._ring, np.uint32, sq_entries, sq["array"])
        array[:] = np.arange(sq_entries)  # entry i of the ring is always SQE i
        self._argument = np.zeros(8, np.int64)
        self._state = np.zeros(1, URING)
        state = self._state[0]
        state["descriptor"] = self._descriptor
        state["sq_head"], state["sq_tail"] = ring + sq["head"], ring + sq["tail"]
        state["sq_flags"] = ring + sq["flags"]
        state["sqes"] = ctypes.addressof(ctypes.c_char.from_buffer(self._sqes))
        state["sq_mask"], state["cq_mask"] = sq_entries - 1, cq_entries - 1
        state["cq_head"], state["cq_tail"] = ring + cq["head"], ring + cq["tail"]
        state["cqes"] = ring + cq["cqes"]
        state["argument"] = address_of(self._argument)

    @property
    def address(self) -> int:
        """The URING record, for compiled code."""
        return address_of(self._state)

    @property
    def descriptor(self) -> int:
        """The descriptor, which is readable when there are edges to fetch."""
        return self._descriptor

    def close(self) -> None:
        """Close the ring; the kernel drops every watch with it."""
        # Python's mappings hold a descriptor of their own, and the ring lives as long as they do.
        self._ring.close()
        self._sqes.close()
        os.close(self._descriptor)


@entry("int64(int64, intp)")
def _setup(entries: int, params: int) -> int:
    return syscall(libc.SYS_IO_URING_SETUP, entries, params, 0, 0, 0, 0)


@nopython
def _next_sqe(poller: int) -> int:
    """Address of a zeroed submission entry; submits first when the ring is full."""
    mine = uring_at(poller)[0]
    if mine["pending"] > mine["sq_mask"]:
        enter(poller, 0, 0)
    tail = load_32(mine["sq_tail"])
    sqe = mine["sqes"] + (tail & mine["sq_mask"]) * SQE_SIZE
    zero_bytes(sqe, SQE_SIZE)
    return int(sqe)


@nopython
def _push(poller: int) -> None:
    mine = uring_at(poller)[0]
    # The kernel reads the tail only inside io_uring_enter, which orders it for us.
    store_32(mine["sq_tail"], load_32(mine["sq_tail"]) + 1)
    mine["pending"] += 1


@nopython
def add(poller: int, descriptor: int, events: int, tag: int) -> int:
    """Report edges of `events` on `descriptor` with `tag`, from the next enter on. Return 0."""
    sqe = _next_sqe(poller)
    store_8(sqe, OP_POLL_ADD)
    store_32(sqe + 4, descriptor)
    store_32(sqe + 24, POLL_ADD_MULTI)
    store_32(sqe + 28, events)
    store_64(sqe + 32, tag)
    _push(poller)
    return 0


@nopython
def remove(poller: int, tag: int) -> int:
    """Report nothing more with `tag`. Submitted at once: the descriptor is about to be closed.

    Not POLL_REMOVE: it is refused (EALREADY) while an edge of this watch is on its way, and the
    watch that stays would hold the socket open, so that the peer never saw it close.
    """
    sqe = _next_sqe(poller)
    store_8(sqe, OP_ASYNC_CANCEL)
    store_32(sqe + 4, -1)
    store_64(sqe + 16, tag)
    store_64(sqe + 32, TAG_IGNORED << 48)
    _push(poller)
    return enter(poller, 0, 0)


@nopython
def enter(poller: int, wait_for: int, timeout_ns: int) -> int:
    """Submit, collect deferred completions, and with `wait_for` sleep until one is there."""
    mine = uring_at(poller)[0]
    mine["enters"] += 1
    argument, size, flags = 0, 0, ENTER_GETEVENTS
    if wait_for > 0:
        argument = mine["argument"]
        size = 24
        flags |= ENTER_EXT_ARG
        store_64(argument, 0)
        store_64(argument + 8, 0)
        store_64(argument + 16, argument + 24)
        store_64(argument + 24, timeout_ns // 1_000_000_000)
        store_64(argument + 32, timeout_ns % 1_000_000_000)
    done = libc.io_uring_enter(mine["descriptor"], mine["pending"], wait_for, flags, argument, size)
    if done > 0:
        mine["pending"] -= min(done, mine["pending"])
    return done


@nopython
def due(poller: int) -> bool:
    """Whether to enter the kernel: it has completions for us, or we have entries for it."""
    mine = uring_at(poller)[0]
    flags = load_acquire_32(mine["sq_flags"])
    return bool(mine["pending"] > 0 or flags & (SQ_TASKRUN | SQ_CQ_OVERFLOW) != 0)


@nopython
def take(poller: int) -> tuple[int, int]:
    """The next edge as (tag, mask), or (0, 0). A mask of 0 says: armed no more, add it again."""
    mine = uring_at(poller)[0]
    while True:
        head = load_32(mine["cq_head"])
        if head == load_acquire_32(mine["cq_tail"]) & 0xFFFFFFFF:
            return 0, 0
        cqe = mine["cqes"] + (head & mine["cq_mask"]) * CQE_SIZE
        tag = load_64(cqe)
        result = load_32(cqe + 8)
        flags = load_32(cqe + 12)
        store_32(mine["cq_head"], head + 1)
        if tag_kind(tag) == TAG_IGNORED or result >= 0x80000000:
            continue  # The answer to a removal, or a watch that ended with its socket.
        if flags & CQE_F_MORE == 0:
            return tag, 0
        return tag, result
