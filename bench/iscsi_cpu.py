"""What a read costs in CPU time when an engine drives the initiator's connection, and when the
initiator drives it itself; as fast as it goes, and at fixed rates.

The one rule: every process that works for the read is counted, with its empty polls; the clock of a
process runs in user and system mode alike. Host and total always stand together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from bench.cores import pinned
from bench.harness import Measurement, Ratio, Result, Run, ratio_of
from bench.iscsi_loads import (
    Shape,
    await_quiet,
    load_on,
    measurement_of,
    open_device,
    with_disturbance,
)
from bench.iscsi_peers import Engine, Process, Target
from bench.plan import Goal, Plan

SHAPE: Final = Shape(32, 4096)
OP: Final = "read"
HOST: Final = "client"  # this process, which has the initiator
WHOSE: Final = ("host", "total")
# What the engine does for the initiator, by the name in the keys.
VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "mover": {"placement": "datamover"},
    "mover_coalesce_1": {"placement": "datamover", "coalesce": 1},
    "stream": {"placement": "stream"},
    "one_engine": {"placement": "datamover"},
}
ONE_ENGINE: Final = "one_engine"  # the variant in which it is the target's engine as well
INLINE: Final = {"placement": "stream"}
RATES: Final[Mapping[str, float]] = {"max": 0, "20k": 20_000, "5k": 5_000}
# How the engine waits, and how the inline initiator does that it is compared with.
WAITS: Final = (("spin", "spin"), ("sleep", "sleep"), ("spin", "sleep"))
IDLES: Final = ("spin", "sleep")
# What stands for all of them under a short name: the datamover's split, all spinning, flat out.
HEADLINE: Final = ("mover", ("spin", "spin"), "max")
HOST_BOUND: Final = 0.7
TOTAL_BOUND: Final = 1.1
METHOD: Final = (
    "CPU per I/O: process clocks, empty polls included; loopback does the receiver's protocol work "
    "in the sender's system call. The target (engine) sleeps on core a; inline (stream), the "
    "initiator has core b; with an engine, that has core b and the initiator shares core a with "
    f"the target; {SHAPE.name} random reads",
    "mover: the engine frames PDUs, the host waits for half its queue depth or 100 µs; "
    "mover_coalesce_1: it wakes for each command; stream: the engine moves bytes; one_engine: as "
    "mover, and the target (engine) has the same engine, so that core b does the work of both ends",
    "fixed rates: commands fall due at equal intervals whatever is under way, and what is late is "
    "sent at once; the pairs of a ratio are of one round, in which every variant runs once between "
    "two runs inline",
    "wake-ups: voluntary context switches, per process",
)


def key(whose: str, variant: str, waits: tuple[str, str], rate: str) -> str:
    """Name of a ratio: an engine that waits so, over inline that waits so, at that rate."""
    engine, inline = waits
    return f"{whose}_cpu_{variant}_{engine}_over_inline_{inline}_{rate}"


def headline_key(whose: str) -> str:
    """The short name of a ratio that stands for all."""
    return f"{whose}_cpu_amp_over_inline"


def goals() -> Iterator[Goal]:
    """What the datamover's split is for."""
    for whose, bound in zip(WHOSE, (HOST_BOUND, TOTAL_BOUND), strict=True):
        for waits in WAITS[:2]:
            for rate in RATES:
                waiting = f"engine {waits[0]} / inline {waits[1]}"
                for variant, of in (("mover", ""), (ONE_ENGINE, ", of both ends")):
                    says = f"{whose} CPU per read at {rate}{of}: {waiting}"
                    yield Goal(key(whose, variant, waits, rate), "≤", bound, says)


def _waiting(idle: str) -> str:
    return "spinning" if idle == "spin" else "sleeping"


@dataclass(frozen=True, slots=True)
class Cpu:
    """The placements on the plan's cores. The target sleeps, on core a, in all of them; `behind`
    are those whose connections the engine has, by how it waits.
    """

    plan: Plan
    target: Target
    behind: Mapping[str, Target]
    seconds: float
    quiet_s: float

    def inline(self, idle: str, rate: str) -> Measurement:
        """The initiator alone on core b, the target alone on core a."""
        a, b = self.plan.a, self.plan.b
        return self._run(
            self.target,
            (f"inline:?idle={idle}", INLINE, rate),
            b,
            {},
            f"inline (stream) on core {b}, {_waiting(idle)}; "
            f"target on core {a}, {self.target.waits}",
        )

    def amp(self, engine: Engine, variant: str, rate: str) -> Measurement:
        """The engine alone on core b; initiator and target share core a."""
        a, b = self.plan.a, self.plan.b
        is_both = variant == ONE_ENGINE
        target = self.behind[engine.idle] if is_both else self.target
        with engine.running(), engine.findable() as name:
            return self._run(
                target,
                (name, VARIANTS[variant], rate),
                a,
                {"engine": engine},
                f"engine ({variant}) on core {b}, {_waiting(engine.idle)}; initiator (wait_n) and "
                f"target ({'through the same engine' if is_both else target.waits}) on core {a}",
            )

    def _run(
        self,
        target: Target,
        what: tuple[str, Mapping[str, Any], str],
        core: int,
        others: Mapping[str, Process],
        placement: str,
    ) -> Measurement:
        cores = (self.plan.a, self.plan.b)
        await_quiet(cores, self.quiet_s)
        ours = [target.process, *others.values()]
        return with_disturbance(
            lambda: self._read(target, what, core, others, placement), cores, ours
        )

    def _read(
        self,
        target: Target,
        what: tuple[str, Mapping[str, Any], str],
        core: int,
        others: Mapping[str, Process],
        placement: str,
    ) -> Measurement:
        (engine, options, rate), process = what, target.process
        process.pin(self.plan.a)
        with (
            process.running(),
            pinned(core),
            open_device(target, engine, SHAPE, **options) as device,
        ):
            result, details = load_on(
                device,
                OP,
                SHAPE,
                self.seconds,
                is_random=True,
                others={"target": process, **others},
                rate=RATES[rate],
            )
        kind = "through an engine" if others else "inline"
        name = f"{OP} {SHAPE.name} at {rate} {kind}"
        return _as_host_cpu(measurement_of(name, placement, OP, result, details))


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
    # What explains it stands with the host's figure.
    return replace(
        run, name=name, value=run.details["total_cpu_us_per_io"], latency=None, details={}
    )


def measure(result: Result, cpu: Cpu, engines: Mapping[str, Engine]) -> None:
    """Add the ratios of host and total CPU, at every rate."""
    for rate in RATES:
        cpu.plan.say(f"CPU per read at {rate}: through an engine against inline")
        inline = {idle: partial(cpu.inline, idle, rate) for idle in IDLES}
        amps = {
            (variant, idle): partial(cpu.amp, engines[idle], variant, rate)
            for idle in IDLES
            for variant in VARIANTS
        }
        references, ours = rounds(inline, amps, cpu.plan.repeats)
        for run in [one for runs in (*references.values(), *ours.values()) for one in runs]:
            result.runs += [run, _as_total_cpu(run)]
        for variant in VARIANTS:
            for waits in WAITS:
                mine, theirs = ours[variant, waits[0]], references[waits[1]]
                both = _both(variant, waits, rate, mine, theirs)
                result.ratios += both
                if (variant, waits, rate) == HEADLINE:
                    named = zip(WHOSE, both, strict=True)
                    result.ratios += [
                        replace(ratio, name=headline_key(whose)) for whose, ratio in named
                    ]


def rounds(
    references: Mapping[str, Run], ours: Mapping[tuple[str, str], Run], repeats: int
) -> tuple[dict[str, list[Measurement]], dict[tuple[str, str], list[Measurement]]]:
    """Run everything in turn: references, ours, references, ours, ..., references."""
    theirs: dict[str, list[Measurement]] = {name: [] for name in references}
    mine: dict[tuple[str, str], list[Measurement]] = {name: [] for name in ours}
    for _ in range(repeats):
        for name, run in references.items():
            theirs[name].append(run())
        for what, run in ours.items():
            mine[what].append(run())
    for name, run in references.items():
        theirs[name].append(run())
    return theirs, mine


def _both(
    variant: str,
    waits: tuple[str, str],
    rate: str,
    mine: list[Measurement],
    theirs: list[Measurement],
) -> list[Ratio]:
    """The ratios of host and of total CPU."""
    return [
        ratio_of(key("host", variant, waits, rate), mine, theirs),
        ratio_of(
            key("total", variant, waits, rate),
            [_as_total_cpu(run) for run in mine],
            [_as_total_cpu(run) for run in theirs],
        ),
    ]
