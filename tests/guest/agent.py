"""The line to the agent in the guest: commands out, answers in.

A command's number is its token. Its answer may come after nobody waits for it any more; one rule:
what comes is taken in whole answers, and an answer to an earlier command is dropped.
"""

import base64
import select
import time
from dataclasses import dataclass

_GRACE_S = 10  # beyond a command's own limit, for the way there and back
_PIECE = 1 << 16
_HEAD_MAX = 64  # three numbers: what is longer without an end is no answer


@dataclass(frozen=True)
class Ran:
    """A command that ended in the guest: its exit status and all that it printed."""

    status: int
    output: str


class GuestFailed(AssertionError):
    """A guest that did not start, did not answer, or a command of which more was expected."""


class Agent:
    """The agent behind a connected `socket`, which it owns. `grace_s`: how much longer than its
    own limit a command's answer may take.
    """

    def __init__(self, socket, *, grace_s=_GRACE_S):
        self._socket = socket
        self._grace_s = grace_s
        self._number = 0
        self._received = bytearray()  # the beginning of an answer, kept until the rest is there

    def wait_until_ready(self, timeout):
        """Wait for what the agent says when it begins, as if to command 0."""
        self._answer(0, time.monotonic() + timeout)

    def run(self, command, timeout):
        """Run shell text and return what became of it. Raises GuestFailed without an answer."""
        self._number += 1
        encoded = base64.b64encode(command.encode()).decode()
        self._socket.sendall(f"{self._number} {timeout} {encoded}\n".encode())
        return self._answer(self._number, time.monotonic() + timeout + self._grace_s)

    def close(self):
        """Hang up."""
        self._socket.close()

    def _answer(self, number, deadline):
        while True:
            answered, ran = self._next(number, deadline)
            if answered == number:
                return ran
            if answered > number:
                raise GuestFailed(f"the guest answered {answered} instead of {number}")

    def _next(self, number, deadline):
        """Take the next answer from the line, whole: its number and what it says."""
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > _HEAD_MAX:
                raise GuestFailed(f"the guest says what is no answer: {bytes(self._received)!r}")
            self._receive(number, deadline)
        answered, status, length = map(int, self._received[:end].split())
        begin = end + 1
        while len(self._received) < begin + length:
            self._receive(number, deadline)
        text = self._received[begin : begin + length].decode(errors="replace")
        del self._received[: begin + length]
        return answered, Ran(status, text)

    def _receive(self, number, deadline):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._socket], [], [], left)[0]:
            raise GuestFailed(f"no answer in time to command {number}")
        piece = self._socket.recv(_PIECE)
        if not piece:
            raise GuestFailed("the guest hung up")
        self._received += piece
