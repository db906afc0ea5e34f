"""Memory of datamover endpoints: made by the control plane for one connection after its login, the
engine's until the endpoint is over, then used for the next one of the same size.
"""

import secrets
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from iscsi.wire.lun import LUN
from iscsi.wire.mover_spec import INITIATOR, UNITS_MAX, MoverSpec
from ppe.cycle.control_port import ControlPort, EngineSilent
from ppe.cycle.services.mover_records import (
    INITIATOR_ROLE,
    MOVER,
    MOVER_OVER,
    MOVER_STATE,
    MOVER_WORDS,
    TARGET_ROLE,
)
from shm.atomics import load_acquire
from shm.jit import entry
from shm.view import address_of

LINE: Final = 64
KEPT_MAX: Final = 64  # blocks of connections that are over, kept for the next ones


@entry("int64(intp)")
def _state_of(mover: int) -> int:
    return load_acquire(mover + MOVER_STATE)


class Movers:
    """The datamover blocks of one engine. `limit`: bytes of all together; `client_limit`: of those
    that connections of one client use.
    """

    def __init__(self, port: ControlPort, limit: int, client_limit: int) -> None:
        self._port, self._limit, self._client_limit = port, limit, client_limit
        self._used: list[tuple[int, NDArray[Any]]] = []  # with its client
        self._kept: list[NDArray[Any]] = []
        self._tables: dict[tuple[int, int], NDArray[Any]] = {}
        self.bytes = 0

    def enable(
        self,
        client: int,
        channel: int,
        endpoint: int,
        spec: MoverSpec,
        home: tuple[int, int, int],
        words: int,
        pool: int = 0,
        table: int = 0,
    ) -> None:
        """Have the engine take a connection over. `words`: offset of MOVER_WORDS in the home block;
        `table`: what `make_table` gave, for a target whose units the engine serves.

        Raises ValueError for what cannot be, MemoryError beyond a limit, OSError when the engine
        refuses.
        """
        if words < 0 or (home[1] + words) % 8 or words > home[2] - MOVER_WORDS.itemsize:
            raise ValueError(f"the words at {words} do not lie in {home[2]} bytes")
        self._sweep()
        luns = self._luns_of(channel, table, spec)
        if spec.iser is None:
            self._port.tables.load_datamover()
        else:
            self._port.tables.load_iser()
        memory = self._take(client, MOVER.itemsize + spec.size + LINE)
        start = address_of(memory) + -address_of(memory) % LINE
        offset = start - address_of(memory)
        mover = memory[offset : offset + MOVER.itemsize].view(MOVER)[0]
        mover["role"] = INITIATOR_ROLE if spec.role == INITIATOR else TARGET_ROLE
        mover["conn"], mover["words"] = start + MOVER.itemsize, words
        mover["told"] = spec.window_word
        if spec.iser is not None:
            mover["iser"] = start + MOVER.itemsize + spec.iser_offset
            mover["skew"] = secrets.randbits(44) << 12
        try:
            spec.build(start + MOVER.itemsize, luns)
            self._port.enable_mover(channel, endpoint, start, home, pool, table)
        except EngineSilent:
            # It may still take over, and then it touches this memory.
            self._used.append((client, memory))
            raise
        except BaseException:
            self._give(memory)
            raise
        self._used.append((client, memory))

    def make_table(self, channel: int, count: int) -> int:
        """A table of `count` units that the engine serves itself: its id. Raises OSError."""
        if not 0 < count <= UNITS_MAX:
            raise ValueError(f"{count} units: 1 to {UNITS_MAX} are possible")
        self._port.tables.load_datamover()
        luns = np.zeros(count, LUN)
        luns["granularity"] = 1
        table = self._port.make_table(channel, address_of(luns), count)
        self._tables[channel, table] = luns
        return table

    def forget(self, channel: int) -> None:
        """A channel is gone, and all its endpoints with it."""
        for key in [key for key in self._tables if key[0] == channel]:
            del self._tables[key]

    def _luns_of(self, channel: int, table: int, spec: MoverSpec) -> int:
        """Address of a table's units. Raises ValueError for one that does not fit."""
        luns = self._tables.get((channel, table))
        if (0 if luns is None else len(luns)) != spec.units:
            raise ValueError(f"{spec.units} units, but table {table} has another number")
        return 0 if luns is None else address_of(luns)

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
            raise MemoryError(
                f"connections of datamovers would take more than {self._limit >> 20} MiB"
            )
        mine = sum(memory.nbytes for owner, memory in self._used if owner == client)
        if mine + size > self._client_limit:
            raise MemoryError(
                f"a client's connections of datamovers may take {self._client_limit >> 20} MiB of "
                f"the engine's memory, this one's take {mine / (1 << 20):.1f} and want "
                f"{size / (1 << 20):.1f} more: close some, or start the engine with "
                "--limit-client-mover-bytes"
            )

    def _give(self, memory: NDArray[Any]) -> None:
        if len(self._kept) < KEPT_MAX:
            self._kept.append(memory)
        else:
            self.bytes -= memory.nbytes

    def _sweep(self) -> None:
        """Take back what belonged to endpoints that are over."""
        running = []
        for client, memory in self._used:
            start = address_of(memory) + -address_of(memory) % LINE
            if _state_of(start) == MOVER_OVER:
                self._give(memory)
            else:
                running.append((client, memory))
        self._used = running
