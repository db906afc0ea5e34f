"""One engine: a thread pinned to its CPU that runs the duty cycle and nothing else.

The thread builds its own tables (io_uring wants one issuer), says that it is ready, and enters
compiled code, which it leaves only when the stop word is set. The control plane talks to it through
`port` alone.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns

from ppe.config import EngineConfig
from ppe.cycle.accounts import ENGINE_INFO
from ppe.cycle.control_port import ControlPort
from ppe.cycle.cycle import run
from ppe.cycle.movers import Movers
from ppe.cycle.rnics import Rnics
from ppe.cycle.tables import EngineTables, Limits, Settings
from ppe.partition import affinity_lost, pin_thread
from shm.records import NEVER

START_SECONDS = 30
MOVERS_BYTES_MAX = 1 << 30  # for the datamover connections of all clients
RNICS_BYTES_MAX = 1 << 30  # for their queue pairs


@dataclass(slots=True)
class Started:
    """What became of a starting engine thread."""

    error: BaseException | None = None
    lock_complaint: str | None = None


class EngineThread:
    """An engine's thread and its control port. `start` returns when the cycle is about to run."""

    def __init__(self, number: int, cpu: int, config: EngineConfig, port_floor: int) -> None:
        self.number, self.cpu = number, cpu
        self.tid = 0
        limits = config.limits
        self._limits = Limits(
            channels=min(limits.channels, 65535),
            endpoints=1 << (limits.endpoints - 1).bit_length(),
            operations=limits.operations,
            regions=limits.regions,
            entries_per_pass=limits.entries_per_pass,
            endpoints_per_client=limits.endpoints,
        )
        self._client_connection_bytes = limits.client_connection_bytes
        self._rdma_devices = config.rdma_device_names
        self._settings = Settings(
            idle=config.idle, readiness=config.readiness, port_floor=port_floor
        )
        self._ready = threading.Event()
        self._started = Started()
        self._thread = threading.Thread(target=self._main, name=f"ppe-engine-{number}")
        self.tables: EngineTables
        self.port: ControlPort
        self.movers: Movers
        self.rnics: Rnics

    def start(self) -> str | None:
        """Start the thread. Return a complaint about memory locking, if any; raises what it did."""
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            raise TimeoutError(f"engine {self.number} did not start within {START_SECONDS} s")
        if self._started.error is not None:
            raise self._started.error
        return self._started.lock_complaint

    def _main(self) -> None:
        try:
            pin_thread(self.cpu)
            self.tid = threading.get_native_id()
            self.tables = EngineTables(self._limits, self._settings, self.number)
            self.tables.load_datamover()
            self.port = ControlPort(self.tables, inline=False)
            self.rnics = Rnics(
                self.port, RNICS_BYTES_MAX, self._client_connection_bytes, self._rdma_devices
            )
            self.movers = Movers(
                self.port, MOVERS_BYTES_MAX, self._client_connection_bytes, self.rnics
            )
            self.port.start()
            self._started.lock_complaint = self.tables.lock_memory()
            info = self.tables.layout.rows(self.tables.accounts.array, "info", ENGINE_INFO)[0]
            info["cpu"], info["thread"], info["started_ns"] = self.cpu, self.tid, monotonic_ns()
        except BaseException as error:
            self._started.error = error
            self._ready.set()
            return
        self._ready.set()
        run(self.tables.address, 0, 1, NEVER)

    @property
    def is_alive(self) -> bool:
        """Whether the cycle runs."""
        return self._thread.is_alive()

    def affinity_complaint(self) -> str | None:
        """What happened to the thread's pinning, or None while it is as it was."""
        return affinity_lost(self.tid, self.cpu)

    def stop(self) -> None:
        """End the cycle and join the thread; clients were detached before."""
        if not self._thread.is_alive():
            return
        # One that starts late would run for ever: there is nothing yet that could stop it.
        if self._ready.wait(START_SECONDS) and self._started.error is None:
            self.rnics.close()
            self.tables.stop[0] = 1
            self.port.wake()
            self._thread.join()
            self.port.close()
            self.tables.close()


def port_floor() -> int:
    """Lowest port that clients without privilege may bind, when the engine itself is privileged."""
    if os.geteuid() != 0:
        return 0
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except OSError:
        return 1024
