"""Running a load (`iscsi.session.load`) on an open device and adding up what it cost.

CPU time is of this process, user and system, all threads; an engine in another process is accounted
for by whoever can see it.
"""

import resource
import secrets
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from iscsi.session import jobs, load
from iscsi.session.blockdev import BlockDevice
from iscsi.session.errors import SessionError
from iscsi.session.guard import TICK_NS
from iscsi.session.memory import aligned_zeros
from iscsi.session.outcome import error_of_job
from shm.histogram import Histogram
from shm.view import address_of

NEVER_NS: Final = 1 << 62
PREPARE_BYTES: Final = 256 << 10


class WrongData(SessionError):
    """A block that was read does not hold what was written there."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to do: `blocks` a command, `write_percent` of them writes, for `seconds` after
    `warm_up_s`, at `rate` a second (0: as fast as the queue depth allows). `verify` writes the
    whole span first, and checks every block read. `span_blocks` 0 is the whole device. `seed` makes
    random addresses the same every time (0: others each time).
    """

    blocks: int = 8
    seconds: float = 3.0
    warm_up_s: float = 0.3
    random: bool = False
    write_percent: int = 0
    verify: bool = False
    first_lba: int = 0
    span_blocks: int = 0
    rate: float = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.write_percent <= 100:
            raise ValueError(f"write_percent {self.write_percent} is outside 0..100")
        if self.blocks < 1 or self.seconds <= 0:
            raise ValueError("a load has at least one block a command and lasts a while")
        if not 0 <= self.rate <= 1e9:
            raise ValueError(f"rate {self.rate} is outside 0..1e9 commands a second")


@dataclass(slots=True)
class LoadResult:
    """What was done in `seconds`. `cpu_s` is this process's; `waits` are those that may sleep, and
    `wait_ends` says how often one ended for which reason. `behind` are commands that were due at a
    fixed rate and had not been sent at the end; `late_ns` is how long the oldest had been due.
    """

    seconds: float = 0.0
    reads: int = 0
    writes: int = 0
    bytes: int = 0
    verified_blocks: int = 0
    cpu_s: float = 0.0
    waits: int = 0
    sleeps: int = 0
    doorbells: int = 0
    wait_ends: dict[str, int] = field(default_factory=dict)
    behind: int = 0
    late_ns: int = 0
    read_latency: Histogram = field(default_factory=Histogram)
    write_latency: Histogram = field(default_factory=Histogram)

    @property
    def commands(self) -> int:
        """Commands that ended."""
        return self.reads + self.writes

    @property
    def iops(self) -> float:
        """Commands a second."""
        return self.commands / self.seconds if self.seconds else 0.0


class Load:
    """A load on an open device, whose queue depth it uses. `close` gives its memory back."""

    def __init__(self, device: BlockDevice, plan: LoadPlan) -> None:
        self.device, self.plan = device, plan
        span = plan.span_blocks or device.block_count - plan.first_lba
        device.geometry.check(plan.first_lba, max(span, 1))
        if span < plan.blocks:
            raise ValueError(f"{plan.blocks} blocks a command do not fit in {span} blocks")
        self._depth = device.session.core.options.queue_depth
        self._memory = aligned_zeros(load.LOAD.itemsize)
        self._slots = aligned_zeros(load.SLOT_SIZE * self._depth)
        self._free = np.arange(self._depth, dtype=np.int32)
        self._failure = aligned_zeros(jobs.JOB_SIZE)
        self._size = plan.blocks * device.block_size
        self._buffer = device.alloc(self._size * self._depth)
        self._random = plan.seed or secrets.randbits(60)
        self._places = span // plan.blocks

    @property
    def _state(self) -> Any:
        return load.load_at(address_of(self._memory))[0]

    def run(self) -> LoadResult:
        """Prepare, warm up, measure. Raises the first failure, or WrongData."""
        if self.plan.verify:
            self._fill(write_percent=100, is_random=False, limit=self._places)
            self._go(NEVER_NS)
            self._fill(write_percent=0, is_random=False, limit=self._places)
            self._go(NEVER_NS)
        if self.plan.warm_up_s > 0:
            self._fill()
            self._go(int(self.plan.warm_up_s * 1e9))
        result = LoadResult()
        self._fill(result=result)
        return self._measure(result)

    def _fill(
        self,
        result: LoadResult | None = None,
        *,
        write_percent: int | None = None,
        is_random: bool | None = None,
        limit: int = -1,
    ) -> None:
        """Write the LOAD record for one phase."""
        plan, core = self.plan, self.device.session.core
        self._latencies = result or LoadResult()
        state = self._state
        self._memory[:] = 0
        self._failure[:] = 0
        self._free[:] = np.arange(self._depth, dtype=np.int32)
        values: dict[str, int] = {
            "worker": core.worker.address,
            "lun": core.lun_field - (1 << 64) if core.lun_field >> 63 else core.lun_field,
            "block_size": self.device.block_size,
            "blocks": plan.blocks,
            "first_lba": plan.first_lba,
            "places": self._places,
            "is_random": int(plan.random if is_random is None else is_random),
            "write_percent": plan.write_percent if write_percent is None else write_percent,
            "verify": int(plan.verify),
            "state": self._random,
            "left": limit,
            "slots": address_of(self._slots),
            "free": address_of(self._free),
            "free_count": self._depth,
            "read_latency": self._latencies.read_latency.address,
            "write_latency": self._latencies.write_latency.address,
            "failure": address_of(self._failure),
            # Preparing is never slowed down.
            "interval_ns": round(1e9 / plan.rate) if plan.rate and limit < 0 else 0,
            "due_ns": monotonic_ns(),
        }
        for name, value in values.items():
            state[name] = value
        slots: NDArray[Any] = self._slots.view(load.SLOT)
        slots["number"] = np.arange(self._depth)
        slots["address"] = self._buffer.address + self._size * np.arange(self._depth)

    def _go(self, duration_ns: int) -> None:
        """Run the phase; interruptions end it when its open commands have ended."""
        session = self.device.session
        core, here = session.core, address_of(self._memory)
        end = min(monotonic_ns() + duration_ns, NEVER_NS)
        core.worker.adopt_load(lambda: load.settle_load(here))
        try:
            session.drive(lambda deadline, tick: load.run_load(here, end, deadline, tick))
        except KeyboardInterrupt:
            self._state["left"] = 0
            if core.lost is None and core.down is None:
                soon = monotonic_ns() + TICK_NS * 10
                load.run_load(here, 0, soon, soon)
            core.break_off(SessionError("the load was interrupted"))
            raise
        finally:
            core.worker.end_load()
        self._random = int(self._state["state"])
        self._check()

    def _check(self) -> None:
        state = self._state
        if state["failed"]:
            error = error_of_job(address_of(self._failure), self.device.session.core.lost)
            raise error or SessionError("a command failed")
        if state["bad_blocks"]:
            raise WrongData(
                f"block {int(state['first_bad_lba'])} does not hold what was written there "
                f"({int(state['bad_blocks'])} commands brought wrong data)"
            )

    def _measure(self, result: LoadResult) -> LoadResult:
        core = self.device.session.core
        before, waits = core.channel.counts, core.worker.hot("waits")
        ends = core.worker.wait_ends
        usage, start = resource.getrusage(resource.RUSAGE_SELF), monotonic_ns()
        stop = start + int(self.plan.seconds * 1e9)
        self._go(stop - start)
        end, after = monotonic_ns(), resource.getrusage(resource.RUSAGE_SELF)
        state = self._state
        result.seconds = (end - start) / 1e9
        result.reads, result.writes = int(state["reads"]), int(state["writes"])
        result.bytes = result.commands * self._size
        result.verified_blocks = result.reads * self.plan.blocks if self.plan.verify else 0
        result.cpu_s = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
        result.waits = core.worker.hot("waits") - waits
        counts = core.channel.counts
        result.sleeps = counts["sleeps"] - before["sleeps"]
        result.doorbells = counts["doorbells"] - before["doorbells"]
        found = core.worker.wait_ends
        result.wait_ends = {name: found[name] - ends[name] for name in found}
        if interval := int(state["interval_ns"]):
            # Of what fell due before the time was over: those who wait for their answers wait too.
            result.late_ns = max(stop - int(state["due_ns"]), 0)
            result.behind = -(-result.late_ns // interval)
        return result

    def close(self) -> None:
        """Give the buffers back. The device must have no command of this load under way."""
        self._buffer.free()
