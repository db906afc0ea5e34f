"""One face for both pollers. The kind is fixed when the engine starts."""

from typing import Final

from ppe.cycle.readiness import epoll, uring
from ppe.cycle.records import engine_at
from shm.jit import nopython

IO_URING: Final = 1
EPOLL: Final = 2


@nopython
def add(engine: int, descriptor: int, events: int, tag: int) -> int:
    """Watch a descriptor: every new edge of `events` is reported with `tag`. 0 or `-errno`."""
    mine = engine_at(engine)[0]
    if mine["poller_kind"] == IO_URING:
        return uring.add(mine["poller"], descriptor, events, tag)
    return epoll.add(mine["poller"], descriptor, events, tag)


@nopython
def remove(engine: int, descriptor: int, tag: int) -> int:
    """Watch it no more."""
    mine = engine_at(engine)[0]
    if mine["poller_kind"] == IO_URING:
        return uring.remove(mine["poller"], tag)
    return epoll.remove(mine["poller"], descriptor)


@nopython
def refresh(engine: int) -> int:
    """Enter the kernel if this pass should. Return the system calls made, 0 or 1."""
    mine = engine_at(engine)[0]
    if mine["poller_kind"] == IO_URING:
        if not uring.due(mine["poller"]):
            return 0
        uring.enter(mine["poller"], 0, 0)
        return 1
    if not epoll.due(mine["poller"]):
        return 0
    epoll.fetch(mine["poller"], 0)
    return 1


@nopython
def sleep(engine: int, timeout_ns: int) -> int:
    """Sleep until something watched has news or the time is over. Negative: `-errno` (-EINTR)."""
    mine = engine_at(engine)[0]
    if mine["poller_kind"] == IO_URING:
        return uring.enter(mine["poller"], 1, timeout_ns)
    return epoll.fetch(mine["poller"], (timeout_ns + 999_999) // 1_000_000)


@nopython
def take(engine: int) -> tuple[int, int]:
    """The next edge as (tag, mask), or (0, 0); a mask of 0 with a tag: watch it again."""
    mine = engine_at(engine)[0]
    if mine["poller_kind"] == IO_URING:
        return uring.take(mine["poller"])
    return epoll.take(mine["poller"])
