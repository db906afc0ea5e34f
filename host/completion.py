"""Completions as Python sees them: what became of one operation, and why a wait ended."""

from typing import Any, NamedTuple

from host.errors import error_of
from shm.channel import COVERED, UNSOLICITED
from shm.operations import OPCODE_NAMES, unpack_peer


class Completion(NamedTuple):
    """What became of one operation. `status` is 0 or -errno, `length` the bytes moved."""

    opcode: int
    endpoint: int
    user_data: int
    status: int
    length: int
    flags: int
    arg0: int
    arg1: int
    arg2: int

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.status == 0

    @property
    def unsolicited(self) -> bool:
        """Whether nobody posted for it."""
        return bool(self.flags & UNSOLICITED)

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of an accepted connection's peer."""
        return unpack_peer(self.arg0, self.arg1, self.arg2)

    def check(self) -> "Completion":
        """Return itself, or raise the exception that its status stands for."""
        if self.status < 0:
            raise error_of(self.status, OPCODE_NAMES.get(self.opcode, str(self.opcode)))
        return self


class WaitResult(NamedTuple):
    """`ready` completions can be polled; `reason` is why the wait ended, by name."""

    ready: int
    reason: str


def completion_of(row: tuple[Any, ...]) -> Completion:
    """A row of an array of CQE as a Completion."""
    # The order of shm.records.CQE's fields.
    _, opcode, _, flags, endpoint, user_data, status, length, _, _, arg0, arg1, arg2 = row
    return Completion(
        opcode, endpoint, user_data, status, length, flags & ~COVERED, arg0, arg1, arg2
    )
