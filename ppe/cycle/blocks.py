"""Memory of connections whose protocol the engine runs: made by the control plane for one of them,
the engine's until that is over, then used for the next one of the same size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ppe.cycle.control_port import EngineSilent
from shm.view import address_of

LINE: Final = 64
KEPT_MAX: Final = 64  # blocks of connections that are over, kept for the next ones


def _start_of(memory: NDArray[Any]) -> int:
    return address_of(memory) + -address_of(memory) % LINE


class Blocks:
    """The blocks of one engine for one kind of connections. `what`: how messages call these;
    `is_over(address)`: whether the engine has let go of a block; `limit`: bytes of all together;
    `client_limit`: of those that one client's connections use.
    """

    def __init__(
        self, what: str, is_over: Callable[[int], bool], limit: int, client_limit: int
    ) -> None:
        self._what, self._is_over = what, is_over
        self._limit, self._client_limit = limit, client_limit
        self._used: list[tuple[int, NDArray[Any]]] = []  # with its client
        self._kept: list[NDArray[Any]] = []
        self.bytes = 0  # of all, those that are kept among them

    @contextmanager
    def block(self, client: int, size: int) -> Iterator[int]:
        """Address of `size` zeroed bytes, on a cache line of their own, to be filled in and handed
        to the engine inside the `with`. If the engine refuses they are free again; if it does not
        answer they are not, since it may still take over. Raises MemoryError beyond a limit.
        """
        self._sweep()
        memory = self._take(client, size + LINE)
        try:
            yield _start_of(memory)
        except EngineSilent:
            self._used.append((client, memory))
            raise
        except BaseException:
            self._give(memory)
            raise
        self._used.append((client, memory))

    def _take(self, client: int, size: int) -> NDArray[Any]:
        self._check(client, size)
        for place, memory in enumerate(self._kept):
            if memory.nbytes == size:
                del self._kept[place]
                memory[:] = 0
                return memory
        while self.bytes + size > self._limit:  # What is kept stands in nobody's way.
            self.bytes -= self._kept.pop(0).nbytes
        self.bytes += size
        return np.zeros(size, np.uint8)

    def _check(self, client: int, size: int) -> None:
        """Raise MemoryError if `size` bytes more in use were too many."""
        if sum(memory.nbytes for _, memory in self._used) + size > self._limit:
            raise MemoryError(f"{self._what} would take more than {self._limit >> 20} MiB")
        mine = sum(memory.nbytes for owner, memory in self._used if owner == client)
        if mine + size > self._client_limit:
            raise MemoryError(
                f"a client's {self._what} may take {self._client_limit >> 20} MiB of the engine's "
                f"memory, this one's take {mine / (1 << 20):.1f} and want {size / (1 << 20):.1f} "
                "more: close some, or start the engine with --limit-client-connection-bytes"
            )

    def _give(self, memory: NDArray[Any]) -> None:
        if len(self._kept) < KEPT_MAX:
            self._kept.append(memory)
        else:
            self.bytes -= memory.nbytes

    def _sweep(self) -> None:
        """Take back what belonged to connections that are over."""
        running = []
        for client, memory in self._used:
            if self._is_over(_start_of(memory)):
                self._give(memory)
            else:
                running.append((client, memory))
        self._used = running
