"""Segments: POSIX shared memory that is named only for the instant between creation and hand-over.

A segment is made exclusively under a random name with mode 0600 and unlinked at once; only then it
gets its size and every page, before anyone maps it, and its descriptor travels over a socket. So
nothing is left behind whoever dies, except an empty name in the few microseconds between two system
calls: engines `sweep` those away.
"""

import contextlib
import errno
import mmap
import os
import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import posix_ipc
from numpy.typing import NDArray

from shm.atomics import load_acquire, store_release
from shm.jit import entry
from shm.layout import offset
from shm.libc import is_in_memory
from shm.records import LAYOUT_HASH, MAGIC, SEGMENT_HEADER, VERSION

DIRECTORY: Final = Path("/dev/shm")
PREFIX: Final = "ppe-"
PAGE: Final = mmap.PAGESIZE
MAP_POPULATE: Final = 0x8000
MADV_DONTFORK: Final = 10

KIND_CHANNEL: Final = 1
KIND_REGION: Final = 2
KIND_COUNTERS: Final = 3


class SegmentError(OSError):
    """Shared memory could not be made or does not fit; the message names what to change."""


class LayoutMismatch(SegmentError):
    """The other side was built from other sources."""


def round_up(size: int, unit: int = PAGE) -> int:
    """The smallest multiple of `unit` that is at least `size`."""
    return -(-size // unit) * unit


@cache
def boot_id() -> int:
    """A number for this boot: CLOCK_MONOTONIC and pids of another boot mean nothing."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return int(text.replace("-", "")[:15], 16)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22), or None if it is gone.

    Together with the pid it names a process for good, since pids are used again.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text[text.rindex(")") + 2 :].split()[19])


@dataclass(slots=True)
class Segment:
    """A mapped segment. `array` is a uint8 window on all of it; it must not outlive `close`."""

    descriptor: int
    size: int
    memory: mmap.mmap
    array: NDArray[Any]

    @property
    def address(self) -> int:
        """Where it is mapped in this process."""
        return int(self.array.ctypes.data)

    def close(self) -> None:
        """Unmap and forget. Windows on the memory that still exist keep it mapped until they go."""
        self.array = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):
            self.memory.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _check_space(size: int) -> None:
    room = os.statvfs(DIRECTORY)
    free = room.f_bavail * room.f_frsize
    if size > free:
        raise SegmentError(
            errno.ENOSPC,
            f"{DIRECTORY} has {free >> 20} MiB free and {max(size >> 20, 1)} MiB are needed: "
            f"enlarge it (mount -o remount,size=... {DIRECTORY}) or ask for less",
        )


def create(size: int, kind: int = KIND_REGION, header: bool = False) -> Segment:
    """Make a zeroed segment of at least `size` bytes (whole pages), present in memory, unnamed.

    With `header`, it starts with a SEGMENT_HEADER whose version word is still to be written by
    `publish`. Raises SegmentError when /dev/shm is too small or full.
    """
    if size <= 0:
        raise SegmentError(errno.EINVAL, f"a segment of {size} bytes holds nothing")
    size = round_up(size)
    _check_space(size)
    name = f"/{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    shared = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=0)
    with contextlib.suppress(posix_ipc.ExistentialError):  # An engine to which our pid is unknown,
        posix_ipc.unlink_shared_memory(name)  # as in a container, may have swept it away.
    try:
        os.posix_fallocate(shared.fd, 0, size)
        segment = map_descriptor(shared.fd, size)
    except OSError as error:
        os.close(shared.fd)
        if error.errno == errno.ENOSPC:
            raise SegmentError(
                errno.ENOSPC, f"{DIRECTORY} ran full while {size >> 10} KiB were taken from it"
            ) from error
        raise
    if header:
        _write_header(segment, kind)
    return segment


def map_descriptor(descriptor: int, size: int, writable: bool = True) -> Segment:
    """Map `size` bytes of a segment and own its descriptor. The pages are faulted in.

    The mapping is not inherited over fork. Raises SegmentError if the segment is smaller or is no
    shared memory: a page of a file system that its sender serves might never arrive.
    """
    actual = os.fstat(descriptor).st_size
    if actual < size or size <= 0:
        raise SegmentError(errno.EINVAL, f"the segment has {actual} bytes, {size} were announced")
    if not is_in_memory(descriptor):
        raise SegmentError(errno.EINVAL, "the descriptor is not one of shared memory")
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        memory = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | MAP_POPULATE, prot=protection)
    except ValueError as error:  # it was made smaller since we looked
        raise SegmentError(errno.EINVAL, f"the segment shrank below {size} bytes") from error
    memory.madvise(MADV_DONTFORK)
    return Segment(descriptor, size, memory, np.frombuffer(memory, np.uint8))


def _write_header(segment: Segment, kind: int) -> None:
    header = segment.array[: SEGMENT_HEADER.itemsize].view(SEGMENT_HEADER)[0]
    header["magic"], header["layout"], header["size"] = MAGIC, LAYOUT_HASH, segment.size
    header["pid"], header["boot_id"] = os.getpid(), boot_id()
    header["start_time"] = start_time(os.getpid()) or 0
    header["kind"] = kind


@entry("void(intp, int64)")
def _publish_version(address: int, version: int) -> None:
    # SYNC POINT: whoever sees the version sees the whole header; pairs with `check_header`.
    store_release(address, version)


@entry("int64(intp)")
def _read_version(address: int) -> int:
    return load_acquire(address)


def publish(segment: Segment) -> None:
    """Declare a segment with a header complete."""
    _publish_version(segment.address + offset(SEGMENT_HEADER, "version"), VERSION)


def check_header(segment: Segment, kind: int) -> None:
    """Refuse a segment that another build, another boot or nobody finished.

    Raises LayoutMismatch or SegmentError saying which side to upgrade or restart.
    """
    version = _read_version(segment.address + offset(SEGMENT_HEADER, "version"))
    header = segment.array[: SEGMENT_HEADER.itemsize].view(SEGMENT_HEADER)[0]
    if version == 0 or int(header["magic"]) != MAGIC:
        raise SegmentError(errno.EPROTO, "the segment is unfinished or is not one of ours")
    if version != VERSION or int(header["layout"]) != LAYOUT_HASH:
        raise LayoutMismatch(
            errno.EPROTO,
            f"the other side's shared layout is version {version}, ours is {VERSION}: "
            "run both from the same release",
        )
    if int(header["boot_id"]) != boot_id() or int(header["kind"]) != kind:
        raise SegmentError(errno.EPROTO, "the segment belongs to something else or another boot")


def sweep() -> list[str]:
    """Unlink our names in /dev/shm whose process is gone. Return them."""
    gone = []
    for path in DIRECTORY.glob(f"{PREFIX}*"):
        pid = path.name[len(PREFIX) :].partition("-")[0]
        if pid.isdigit() and start_time(int(pid)) is None:
            with contextlib.suppress(OSError, posix_ipc.ExistentialError):
                posix_ipc.unlink_shared_memory(f"/{path.name}")
                gone.append(path.name)
    return gone
