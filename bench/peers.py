"""Starting the other process of a benchmark and giving it orders.

It is started once and sleeps on a pipe while a reference runs. The one rule: it is spawned, never
forked, and gets shared memory by inherited descriptors alone.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

ANSWER_TIMEOUT_S: Final = 180  # a first order may compile
MODULE: Final = "bench.peer"


class PeerFailed(RuntimeError):
    """The other process ended, said nothing in time, or failed at its order."""


class Peer:
    """The other process. Give orders with `tell` and fetch each answer with `answer`. `module` is
    what it runs: one that calls `bench.peer.serve`.
    """

    def __init__(
        self,
        descriptors: Sequence[int] = (),
        module: str = MODULE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            (sys.executable, "-m", module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=tuple(descriptors),
            text=True,
            bufsize=1,
            env={**os.environ, **(environment or {})},
        )

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of the thread that does the work."""
        return self._process.pid

    def tell(self, order: str, **options: Any) -> None:
        """Send an order without waiting for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"order": order, **options}) + "\n")
        except BrokenPipeError as error:
            raise PeerFailed("the other process is gone") from error

    def answer(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """Wait for the answer to the oldest order. Raises PeerFailed."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise PeerFailed(
                "the other process ended" if ready else f"no answer within {timeout_s} s"
            )
        reply = json.loads(line)
        if "failed" in reply:
            raise PeerFailed(f"the other process failed: {reply['failed']}")
        return reply["done"]

    def ask(self, order: str, **options: Any) -> Any:
        """Send an order and wait for its answer."""
        self.tell(order, **options)
        return self.answer()

    def kill(self) -> None:
        """End it at once, whatever it does; `close` it afterwards."""
        self._process.kill()

    def close(self) -> None:
        """End it: by closing its stdin, and by killing it if that does not help."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process.stdout.close()


@contextlib.contextmanager
def peer(descriptors: Sequence[int] = ()) -> Iterator[Peer]:
    """Have another process for as long as the block lasts."""
    started = Peer(descriptors)
    try:
        yield started
    finally:
        started.close()
