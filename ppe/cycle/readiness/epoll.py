"""The epoll poller: edge-triggered, asked every k passes because asking is a system call."""

import select
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ppe.cycle import libc
from ppe.cycle.readiness.events import TAG_IGNORED
from shm.jit import nopython
from shm.layout import Field, record
from shm.memory import load_32, load_64
from shm.view import address_of, opener

EPOLL: Final = record(
    Field("descriptor", "<i8"),
    Field("events", "<i8"),  # address of packed struct epoll_event[EVENTS]
    Field("count", "<i8"),  # fetched
    Field("next", "<i8"),  # to be handed out
    Field("passes", "<i8"),
    Field("every", "<i8"),
    size=64,
)
EVENTS: Final = 256
EVENT_SIZE: Final = 12
# Between 8 and 64 the loopback round trip did not change measurably; see docs/decisions.
EVERY: Final = 16
ADD, DELETE = 1, 2  # EPOLL_CTL_ADD, EPOLL_CTL_DEL
EDGE: Final = 1 << 31

epoll_at = opener(EPOLL)


class EpollPoller:
    """The poller's memory and descriptor; made in any thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll(EVENTS)
        self._events: NDArray[Any] = np.zeros(EVENTS * EVENT_SIZE, np.uint8)
        self._state = np.zeros(1, EPOLL)
        self._state[0]["descriptor"] = self._epoll.fileno()
        self._state[0]["events"] = address_of(self._events)
        self._state[0]["every"] = EVERY

    @property
    def address(self) -> int:
        """The EPOLL record, for compiled code."""
        return address_of(self._state)

    @property
    def descriptor(self) -> int:
        """The descriptor, which is readable when there are edges to fetch."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Give the descriptor back."""
        self._epoll.close()


@nopython
def add(poller: int, descriptor: int, events: int, tag: int) -> int:
    """Report edges of `events` on `descriptor` with `tag`. Return 0 or `-errno`."""
    return libc.epoll_control(
        epoll_at(poller)[0]["descriptor"], ADD, descriptor, events | EDGE, tag
    )


@nopython
def remove(poller: int, descriptor: int) -> int:
    """Report nothing more of `descriptor`; events already fetched may still be handed out."""
    return libc.epoll_control(epoll_at(poller)[0]["descriptor"], DELETE, descriptor, 0, TAG_IGNORED)


@nopython
def fetch(poller: int, timeout_ms: int) -> int:
    """Ask the kernel. Return how many events were fetched, or `-errno`."""
    mine = epoll_at(poller)[0]
    mine["next"] = 0
    mine["count"] = 0
    got = libc.epoll_wait(mine["descriptor"], mine["events"], EVENTS, timeout_ms)
    if got > 0:
        mine["count"] = got
    return got


@nopython
def due(poller: int) -> bool:
    """Whether this pass is one that asks the kernel."""
    mine = epoll_at(poller)[0]
    mine["passes"] += 1
    return bool(mine["passes"] % mine["every"] == 0)


@nopython
def take(poller: int) -> tuple[int, int]:
    """The next fetched event as (tag, mask), or (0, 0)."""
    mine = epoll_at(poller)[0]
    if mine["next"] >= mine["count"]:
        return 0, 0
    event = mine["events"] + mine["next"] * EVENT_SIZE
    mine["next"] += 1
    return load_64(event + 4), load_32(event)
