"""What a read costs in CPU time when an engine drives the initiator's connection, and when the
initiator drives it itself.

The one rule: every process that works for the read is counted, with its empty polls; the clock of a
process runs in user and system mode alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from bench.cores import pinned
from bench.harness import Measurement, Result, interleave, ratio_of
from bench.iscsi_loads import Shape, await_quiet, load_on, measurement_of, with_disturbance
from bench.iscsi_peers import Engine, Process, Target
from bench.plan import Plan
from iscsi.session import blockdev

SHAPE: Final = Shape(32, 4096)
OP: Final = "read"
HOST: Final = "client"  # this process, which has the initiator


@dataclass(frozen=True, slots=True)
class Cpu:
    """The two placements on the plan's cores. The target sleeps, on core a, in both."""

    plan: Plan
    target: Target
    seconds: float
    quiet_s: float

    def inline(self, idle: str) -> Measurement:
        """The initiator alone on core b, the target alone on core a."""
        a, b = self.plan.a, self.plan.b
        waits = "spinning" if idle == "spin" else "sleeping"
        return self._run(
            f"inline:?idle={idle}",
            b,
            {},
            f"initiator inline on core {b}, {waits}; target on core {a}, {self.target.waits}",
        )

    def amp(self, engine: Engine) -> Measurement:
        """The engine alone on core b; initiator and target share core a."""
        a, b = self.plan.a, self.plan.b
        waits = "spinning" if engine.idle == "spin" else "sleeping"
        with engine.running(), engine.findable() as name:
            return self._run(
                name,
                a,
                {"engine": engine},
                f"engine on core {b}, {waits}; initiator (wait_n) and target "
                f"({self.target.waits}) on core {a}",
            )

    def _run(
        self, engine: str, core: int, others: Mapping[str, Process], placement: str
    ) -> Measurement:
        cores = (self.plan.a, self.plan.b)
        await_quiet(cores, self.quiet_s)
        ours = [self.target.process, *others.values()]
        return with_disturbance(lambda: self._read(engine, core, others, placement), cores, ours)

    def _read(
        self, engine: str, core: int, others: Mapping[str, Process], placement: str
    ) -> Measurement:
        process = self.target.process
        process.pin(self.plan.a)
        with (
            process.running(),
            pinned(core),
            blockdev.open(self.target.url, engine, queue_depth=SHAPE.depth) as device,
        ):
            result, details = load_on(
                device,
                OP,
                SHAPE,
                self.seconds,
                is_random=True,
                others={"target": process, **others},
            )
        kind = "inline" if engine.startswith("inline:") else "through an engine"
        found = measurement_of(f"{OP} {SHAPE.name} {kind}", placement, OP, result, details)
        return _as_host_cpu(found)


def _as_host_cpu(run: Measurement) -> Measurement:
    """The host's CPU time per command as the headline."""
    cost = run.details["cpu_us_per_io"]
    details = {**run.details, "iops": run.value, "total_cpu_us_per_io": sum(cost.values())}
    return replace(
        run, name=f"host CPU, {run.name}", value=cost[HOST], unit="µs/IO", details=details
    )


def _as_total_cpu(run: Measurement) -> Measurement:
    """The same run with the CPU time of all its processes as the headline."""
    name = run.name.replace("host CPU", "total CPU")
    return replace(run, name=name, value=run.details["total_cpu_us_per_io"], latency=None)


def measure(result: Result, cpu: Cpu, engines: Mapping[str, Engine]) -> None:
    """Add the ratios of host and total CPU: both engines over both ways to wait inline.

    Without a suffix a ratio compares the spinning engine with the initiator that sleeps.
    """
    for engine_idle, amp in (("spin", "amp"), ("sleep", "amp_sleep")):
        for idle, suffix in (("sleep", ""), ("spin", "_spin")):
            name = f"cpu_{amp}_over_inline{suffix}"
            cpu.plan.say(f"CPU per read: engine --idle {engine_idle} against inline, {idle}")
            runs, host = interleave(
                f"host_{name}",
                partial(cpu.amp, engines[engine_idle]),
                partial(cpu.inline, idle),
                cpu.plan.repeats,
            )
            totals = [_as_total_cpu(run) for run in runs]
            result.runs += [*runs, *totals]
            result.ratios += [host, ratio_of(f"total_{name}", totals[1::2], totals[0::2])]
