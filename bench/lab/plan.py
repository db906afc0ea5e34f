"""The order in which an experiment's runs are made, and what each of them is.

The one rule: the same experiment, seed and machine give the same plan; a repeat holds every point
once, in an order of its own, so that a drift of the machine meets all points alike.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any, Final

from bench.lab import result_files
from bench.lab.partition import Machine
from bench.lab.points import Point
from bench.lab.result_files import NotResumable
from bench.lab.spec import Experiment, Timing

OVERHEAD_S: Final = 4.0  # of a run's processes, before one of them was timed


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run to be made. `refusal` says why the machine cannot, or is empty."""

    id: str
    order: int
    point: Point
    repeat: int
    seed: int
    refusal: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it stands in the plan."""
        return {
            "id": self.id,
            "point": self.point.to_json(),
            "repeat": self.repeat,
            "seed": self.seed,
            "refusal": self.refusal or None,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of one sweep, in order."""

    experiment: str
    seed: int
    timing: Timing
    runs: tuple[PlannedRun, ...]
    is_short: bool = False

    def seconds(self, runs: Sequence[PlannedRun], overhead_s: float = OVERHEAD_S) -> float:
        """How long these runs will take, about."""
        each = self.timing.warm_up_s + self.timing.measure_s + overhead_s
        return each * sum(not run.refusal for run in runs)

    def to_json(self) -> dict[str, Any]:
        """The plan's file."""
        return {
            "schema": result_files.SCHEMA,
            "experiment": self.experiment,
            "seed": self.seed,
            "repeats": self.timing.repeats,
            "warm_up_s": self.timing.warm_up_s,
            "measure_s": self.timing.measure_s,
            "short": self.is_short,
            "runs": [run.to_json() for run in self.runs],
        }

    @classmethod
    def from_directory(cls, directory: Path) -> "Plan":
        """The plan of a result set that was begun. Raises NotResumable."""
        found = result_files.read_plan(directory)
        try:
            timing = Timing(found["repeats"], found["warm_up_s"], found["measure_s"])
            runs = tuple(_planned(order, run) for order, run in enumerate(found["runs"]))
            return cls(found["experiment"], found["seed"], timing, runs, bool(found["short"]))
        except (KeyError, TypeError, ValueError) as error:
            raise NotResumable(
                f"the plan in {directory} is not one of this version: {error!r}",
                "go on with the version that began it, or begin anew in another folder",
            ) from error


def make(experiment: Experiment, machine: Machine, *, is_short: bool = False) -> Plan:
    """Plan an experiment. Raises ConfigError when it cannot run here."""
    candidates = experiment.candidates(machine)
    random, runs = Random(experiment.seed), list[PlannedRun]()
    for repeat in range(experiment.timing.repeats):
        order = list(candidates)
        random.shuffle(order)
        for one in order:
            number = len(runs)
            seed = _seed(experiment.seed, one.point, repeat)
            runs.append(PlannedRun(f"{number:04}", number, one.point, repeat, seed, one.refusal))
    return Plan(experiment.name, experiment.seed, experiment.timing, tuple(runs), is_short)


def _seed(seed: int, point: Point, repeat: int) -> int:
    """Of a run's addresses: the same for one point and repeat in whatever company it runs."""
    text = json.dumps([seed, point.to_json(), repeat], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & ((1 << 53) - 1) or 1


def _planned(order: int, run: Mapping[str, Any]) -> PlannedRun:
    given = run["point"]
    known: dict[str, Any] = {each.name: each.default for each in fields(Point)}
    values = {name: known[name] if given[name] is None else given[name] for name in known}
    return PlannedRun(
        run["id"], order, Point(**values), run["repeat"], run["seed"], run["refusal"] or ""
    )
