"""Building an engine: every table it will ever need, allocated once and locked if allowed."""

import contextlib
import errno
import mmap
import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ppe.cycle import guard, libc
from ppe.cycle.accounts import ENGINE_INFO, AccountsLayout, create_accounts
from ppe.cycle.readiness import poller
from ppe.cycle.readiness.epoll import EpollPoller
from ppe.cycle.readiness.uring import UringPoller, UringUnavailable
from ppe.cycle.records import (
    CHANNEL_ROW,
    ENDPOINT,
    ENGINE,
    IDLE_NAMES,
    NONE,
    OPERATION,
    REGION,
    SPANS_MAX,
    VECTOR_SIZE,
)
from shm.clock import cycles_per_ns
from shm.jit import entry
from shm.records import SLOTS_PER_OPERATION_MAX, WQE
from shm.view import address_of

MESSAGE_SIZE: Final = 64  # struct msghdr takes 56
SCRATCH_WORDS: Final = 16  # a POST or an EVENT of the datamover
STAGING_SIZE: Final = 256 << 10  # bytes of one receive call whose place is not known yet


@entry("int64(intp, int64)")
def _lock(address: int, size: int) -> int:
    return libc.lock_memory(address, size)


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of an engine's tables and how it shares itself out. Powers of two where said."""

    channels: int = 1024
    endpoints: int = 4096  # a power of two
    operations: int = 65536
    regions: int = 8192
    entries_per_pass: int = 64
    endpoints_per_client: int = 4096
    memory_regions: int = 16384  # registered with an RNIC

    def __post_init__(self) -> None:
        if self.endpoints & (self.endpoints - 1) or not 0 < self.endpoints <= 1 << 16:
            raise ValueError(f"endpoints must be a power of two up to 65536, not {self.endpoints}")
        for name in ("channels", "operations", "regions", "entries_per_pass", "memory_regions"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine behaves."""

    idle: str = "spin"
    readiness: str = "auto"
    park_after_us: int = 1_000
    sleep_after_us: int = 50
    hot_us: int = 30
    stall_ms: int = 10
    port_floor: int = 0


class EngineTables:
    """One engine's memory. Build it, and close it, in the thread that runs the cycle.

    Raises UringUnavailable when io_uring was demanded and is not to be had.
    """

    def __init__(self, limits: Limits, settings: Settings, number: int = 0) -> None:
        self.limits, self.settings = limits, settings
        self.layout = AccountsLayout(limits.channels, limits.endpoints)
        self.accounts = create_accounts(self.layout)
        self._kept: list[NDArray[Any]] = []
        self.engine = np.zeros(1, ENGINE)
        self.stop = np.zeros(8, np.int64)
        self._tables()
        self._lists()
        self._settings()
        self._accounts(number)
        self.poller = self._make_poller()
        self.poller_name = "io_uring" if isinstance(self.poller, UringPoller) else "epoll"
        state = self.engine[0]
        state["poller"] = self.poller.address
        state["poller_kind"] = poller.IO_URING if self.poller_name == "io_uring" else poller.EPOLL

    @property
    def address(self) -> int:
        """The ENGINE record, for compiled code."""
        return address_of(self.engine)

    def watch_descriptor(self) -> int:
        """The poller's own descriptor, readable when it has news. From the next pass on it has
        news of every endpoint.
        """
        self.engine[0]["observed"] = 1
        return self.poller.descriptor

    def _new(self, dtype: Any, count: int) -> NDArray[Any]:
        array = np.zeros(count, dtype)
        self._kept.append(array)
        return array

    def _tables(self) -> None:
        limits, state = self.limits, self.engine[0]
        rows = self._new(CHANNEL_ROW, limits.channels)
        rows["active_at"] = NONE
        endpoints = self._new(ENDPOINT, limits.endpoints)
        operations = self._new(OPERATION, limits.operations)
        regions = self._new(REGION, limits.regions)
        for table in (endpoints, operations, regions):
            table["next"] = np.arange(1, len(table) + 1)
            table["next"][-1] = NONE
        endpoints["generation"] = 1
        endpoints["descriptor"] = NONE
        regions["generation"] = 1
        for name, table in (
            ("channel", rows),
            ("endpoint", endpoints),
            ("operation", operations),
            ("region", regions),
        ):
            state[f"{name}s"], state[f"{name}_count"] = address_of(table), len(table)

    def _lists(self) -> None:
        limits, state = self.limits, self.engine[0]
        state["active"] = address_of(self._new(np.int32, limits.channels))
        state["dirty"] = address_of(self._new(np.int32, limits.channels))
        state["gathering"] = address_of(self._new(np.int32, limits.channels))
        state["receive_ready"] = address_of(self._new(np.int32, limits.endpoints))
        state["transmit_ready"] = address_of(self._new(np.int32, limits.endpoints))
        state["wqe"] = address_of(self._new(WQE, SLOTS_PER_OPERATION_MAX))
        state["vectors"] = address_of(self._new(np.uint8, SPANS_MAX * VECTOR_SIZE))
        state["message"] = address_of(self._new(np.uint8, MESSAGE_SIZE))
        state["post"] = address_of(self._new(np.int64, SCRATCH_WORDS))
        state["event"] = address_of(self._new(np.int64, SCRATCH_WORDS))

    def load_datamover(self) -> None:
        """Make the engine able to serve datamover endpoints. Before any is enabled; idempotent.

        Imported late: an engine that moves no iSCSI needs none of it.
        """
        from ppe.cycle.services import datamover

        state = self.engine[0]
        self._stage()
        state["datamover"] = datamover.serve.address

    def load_rdma(self) -> None:
        """Make the engine able to serve queue pairs. Before any object of them is made; idempotent.

        Imported late: an engine without queue pairs needs none of it.
        """
        from ppe.cycle.rnic import memory, records
        from ppe.cycle.services import rdma
        from ppe.cycle.services.rdma_records import RNIC

        state = self.engine[0]
        if state["rdma"] != 0:
            return
        self._stage()
        table = self._new(np.int64, memory.table_size(self.limits.memory_regions) // 8 + 1)
        memory.build_table(address_of(table), self.limits.memory_regions)
        rnic = self._new(RNIC, 1)
        rnic["table"] = address_of(table)
        rnic["wr"] = address_of(self._new(records.WR, 1))
        rnic["wc"] = address_of(self._new(records.WC, 1))
        state["rnic"] = address_of(rnic)
        state["rdma"] = rdma.serve.address

    def load_verbs(self) -> None:
        """Make the engine able to serve verbs devices, and poll them. Idempotent."""
        from ppe.cycle.services import verbs
        from ppe.cycle.services.rdma_records import rnic_at
        from ppe.cycle.services.verbs_orders import CQS_MAX

        state = self.engine[0]
        if state["verbs"] != 0:
            return
        self.load_rdma()
        rnic_at(int(state["rnic"]))[0]["cqs"] = address_of(self._new(np.int64, CQS_MAX))
        state["verbs"] = verbs.serve.address

    def load_iser(self) -> None:
        """Make the engine able to serve datamover endpoints on queue pairs. Idempotent."""
        from ppe.cycle.services import iser

        self.load_datamover()
        self.load_rdma()
        self.engine[0]["iser"] = iser.serve.address

    @property
    def memory_table(self) -> int:
        """Address of the MR_TABLE, once queue pairs can be served."""
        from ppe.cycle.services.rdma_records import rnic_at

        return int(rnic_at(int(self.engine[0]["rnic"]))[0]["table"])

    def _stage(self) -> None:
        state = self.engine[0]
        if state["staging"] == 0:
            state["staging_size"] = STAGING_SIZE
            state["staging"] = address_of(self._new(np.uint8, STAGING_SIZE))

    def _settings(self) -> None:
        limits, settings, state = self.limits, self.settings, self.engine[0]
        per_us = cycles_per_ns() * 1_000
        state["entries_per_pass"] = limits.entries_per_pass
        state["endpoints_per_client"] = limits.endpoints_per_client
        state["idle"] = IDLE_NAMES.index(settings.idle)
        state["park_after"] = int(settings.park_after_us * per_us)
        state["sleep_after"] = int(settings.sleep_after_us * per_us)
        state["hot"] = NONE
        state["hot_cycles"] = int(settings.hot_us * per_us)
        state["stall_cycles"] = int(settings.stall_ms * 1_000 * per_us)
        state["cycles_per_ms"] = int(1_000 * per_us)
        state["port_floor"] = settings.port_floor
        state["stop"] = address_of(self.stop)
        state["faults"] = guard.prepare()

    def _accounts(self, number: int) -> None:
        state, base = self.engine[0], self.accounts.address
        for field, part in (
            ("info", "info"),
            ("stages", "stages"),
            ("counters", "values"),
            ("errors", "errors"),
            ("durations", "durations"),
            ("channel_rows", "channels"),
            ("endpoint_rows", "endpoints"),
        ):
            state[field] = base + self.layout.parts()[part][0]
        info = self.layout.rows(self.accounts.array, "info", ENGINE_INFO)[0]
        info["engine"], info["pid"], info["cpu"] = number, os.getpid(), -1
        info["cycles_per_us"] = int(cycles_per_ns() * 1_000)

    def _make_poller(self) -> UringPoller | EpollPoller:
        if self.settings.readiness == "epoll":
            return EpollPoller()
        try:
            return UringPoller()
        except UringUnavailable:
            if self.settings.readiness == "io_uring":
                raise
            return EpollPoller()

    def lock_memory(self) -> str | None:
        """Lock the tables and accounts into memory. Return what to change if that is refused."""
        ranges = [(address_of(a), a.nbytes) for a in (*self._kept, self.engine, self.stop)]
        ranges.append((self.accounts.address, self.accounts.size))
        for address, size in ranges:
            start = address & ~(mmap.PAGESIZE - 1)
            length = address + size - start
            outcome = _lock(start, length)
            if outcome < 0:
                reason = errno.errorcode.get(-outcome, "?")
                needed = sum(s for _, s in ranges) >> 20
                return (
                    f"the engine's tables are not locked ({reason}): raise RLIMIT_MEMLOCK to "
                    f"{needed + 1} MiB or more (ulimit -l, LimitMEMLOCK=)"
                )
        return None

    def close(self) -> None:
        """Close the poller and drop the accounts."""
        with contextlib.suppress(OSError):
            self.poller.close()
        self.accounts.close()
