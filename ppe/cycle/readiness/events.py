"""The vocabulary of readiness: poll(2) masks and the tags that say whose edge it is."""

import select
from typing import Final

from shm.jit import nopython

READ: Final = int(select.EPOLLIN)
WRITE: Final = int(select.EPOLLOUT)
HANGUP: Final = int(select.EPOLLRDHUP)
BROKEN: Final = int(select.EPOLLERR | select.EPOLLHUP)

TAG_ENDPOINT: Final = 1
TAG_DOORBELL: Final = 2  # a channel's
TAG_IGNORED: Final = 3


@nopython
def make_tag(kind: int, generation: int, index: int) -> int:
    """Pack what is watched: kind in bits 48.., generation in 24..47, index in 0..23."""
    return (kind << 48) | (generation << 24) | index


@nopython
def tag_kind(tag: int) -> int:
    """What sort of thing has news."""
    return tag >> 48


@nopython
def tag_generation(tag: int) -> int:
    """Generation of the row at the time it was watched."""
    return (tag >> 24) & 0xFFFFFF


@nopython
def tag_index(tag: int) -> int:
    """Row of the thing that has news."""
    return tag & 0xFFFFFF
