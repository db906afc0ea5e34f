"""What compiled code knows of a backend that does not lie in memory: its descriptors, and whether
writes have to be durable. The backend owns the record; the server's thread alone changes it.
"""

from typing import Final

import numpy as np

from shm.layout import Field, record
from shm.view import address_of, opener

MEDIUM: Final = record(
    Field("kind", "<i8"),
    Field("size", "<i8"),  # bytes
    Field("buffered", "<i8"),  # a descriptor whose page cache is used
    Field("direct", "<i8"),  # the same file past the page cache, -1 if that is not wanted
    Field("write_through", "<i8"),  # 1: every write is durable
    Field("jobs", "<i8"),  # reads and writes that workers are doing
    Field("held", "<i8"),  # not 0: nothing new may begin, for so many reasons
    Field("waits", "<i8"),  # 1: the file system cannot write without waiting
    Field("reads", "<i8"),  # commands served
    Field("writes", "<i8"),
    Field("misses", "<i8"),  # reads that had to wait for the medium
    size=128,
)
medium_at = opener(MEDIUM)

FILE: Final = 1
NULL: Final = 2


class Medium:
    """The record of one backend."""

    def __init__(self, kind: int, size: int, buffered: int = -1, direct: int = -1) -> None:
        self._record = np.zeros(1, MEDIUM)
        mine = self._record[0]
        mine["kind"], mine["size"] = kind, size
        mine["buffered"], mine["direct"] = buffered, direct

    @property
    def address(self) -> int:
        """Where it lies."""
        return address_of(self._record)

    def set_write_through(self, enabled: bool) -> None:
        """Have every write be durable, or not."""
        self._record[0]["write_through"] = enabled

    def resize(self, size: int) -> None:
        """Nothing beyond `size` bytes is read or written any more."""
        self._record[0]["size"] = size

    @property
    def jobs(self) -> int:
        """Reads and writes that workers are doing."""
        return int(self._record[0]["jobs"])

    def hold(self, held: bool) -> None:
        """Let nothing new begin; or let it, once that was said as often as the other."""
        self._record[0]["held"] += 1 if held else -1

    @property
    def counts(self) -> dict[str, int]:
        """What compiled code has served."""
        return {name: int(self._record[0][name]) for name in ("reads", "writes", "misses")}
