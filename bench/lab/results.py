"""Read a result set back: the runs of one experiment, each from its own file.

The one rule: a file that cannot be read as a run is named with its reason and left out, and never
keeps the others from being read. Keys this version does not know are kept and ignored.
"""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.harness import Latency
from ppe.errors import OperatorError

SCHEMA: Final = 1
STATUSES: Final = ("done", "refused", "failed")
SPEC_FILE: Final = "experiment.toml"
PLAN_FILE: Final = "plan.json"
RUNS_FOLDER: Final = "runs"
# What a reader cannot do without, and its type.
NEEDED: Final[Mapping[str, type]] = {
    "id": str,
    "experiment": str,
    "repeat": int,
    "point": dict,
    "status": str,
}
# What may be absent, but is of this type where it is there.
OPTIONAL: Final[Mapping[str, tuple[type, ...]]] = {
    "order": (int,),
    "measured": (dict,),
    "faults": (list,),
    **dict.fromkeys(("warm_up_s", "measured_s"), (int, float)),
}
WHOLE_MAX: Final = 1 << 64  # no counter of ours is wider, and a float holds it
SIGNIFICANT_BITS_MAX: Final = 52
# The fields that others follow from; the first two never follow from anything.
LEADERS: Final = ("placement", "transport", "operation")
SMP: Final = "inline"  # the placement in which the caller's own thread does the engine's work

Value = str | int | float | bool | None
Point = tuple[tuple[str, Value], ...]


class NoResults(OperatorError):
    """A folder holds nothing that can be read as a result set."""


class NotARun(ValueError):
    """A file is not a run this version can read; the message is the reason without the name."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that was left out, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Run:
    """One run as its file tells it; `raw` is the whole file."""

    raw: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The run's name within its set."""
        return str(self.raw["id"])

    @property
    def repeat(self) -> int:
        """Which of the repeats of its point this is; equal numbers ran next to each other."""
        return int(self.raw["repeat"])

    @property
    def status(self) -> str:
        """One of STATUSES."""
        return str(self.raw["status"])

    @property
    def point(self) -> dict[str, Value]:
        """The configuration, flat."""
        return dict(self.raw["point"])

    @cached_property
    def key(self) -> Point:
        """The point as something to group by."""
        return tuple(sorted(flat(self.raw["point"]).items()))

    @property
    def smp(self) -> bool:
        """Whether one symmetric thread did the engine's work itself."""
        return bool(self.raw["point"].get("placement") == SMP)

    def value(self, path: str) -> float | None:
        """The measured number at a dotted path, or None where there is none."""
        found: Any = self.raw.get("measured") or {}
        for name in path.split("."):
            if not isinstance(found, Mapping):
                return None
            found = found.get(name)
        if isinstance(found, bool) or not isinstance(found, int | float):
            return None
        return float(found) if math.isfinite(found) else None

    def part(self, name: str) -> dict[str, Any]:
        """The measured object of that name, empty where there is none."""
        found = (self.raw.get("measured") or {}).get(name)
        return dict(found) if isinstance(found, Mapping) else {}

    def layers(self) -> dict[str, float]:
        """Cycles of an operation by layer; a layer that was not measured is not there."""
        return {
            name: value
            for name in self.part("layers")
            if (value := self.value(f"layers.{name}")) is not None
        }

    def histogram(self) -> Latency | None:
        """The latency distribution; None where the run kept none. Raises NotARun when broken."""
        kept = self.part("latency_histogram")
        found = bins(kept) if kept else []
        if not any(n for _, _, n in found):
            return None
        binned = Latency.from_bins(found)
        least, mean, most = (self.value(f"latency_ns.{name}") for name in ("min", "mean", "max"))
        return replace(
            binned,
            min=binned.min if least is None else least,
            mean=binned.mean if mean is None else mean,
            max=binned.max if most is None else most,
        )

    def not_measured(self) -> dict[str, str]:
        """What this run could not measure, and why."""
        found = self.raw.get("not_measured")
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, Mapping) else {}


@dataclass
class Results:
    """A result set: what was asked (`spec`), what was to run (`plan`), what ran (`runs`)."""

    directory: Path
    spec: Mapping[str, Any] = field(default_factory=dict)
    spec_text: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        if self.runs:
            return str(self.runs[0].raw["experiment"])
        return str(self.plan.get("experiment") or self.directory.name)

    @property
    def done(self) -> list[Run]:
        """The runs that measured something."""
        return [run for run in self.runs if run.status == "done"]

    @property
    def undone(self) -> list[Run]:
        """The runs that were refused or failed."""
        return [run for run in self.runs if run.status != "done"]

    def missing(self) -> list[str]:
        """The ids that the plan names and nobody has run, or whose file was left out."""
        there = {run.id for run in self.runs}
        planned = self.plan.get("runs")
        rows = planned if isinstance(planned, list) else []
        ids = [str(row["id"]) for row in rows if isinstance(row, Mapping) and "id" in row]
        return [name for name in ids if name not in there]

    def points(self) -> dict[Point, list[Run]]:
        """The measured runs by point, repeats together in their order.

        SMP comes first, the rest by size and name, field by field, whatever the order of the runs.
        """
        found: dict[Point, list[Run]] = {}
        for run in self.done:
            found.setdefault(run.key, []).append(run)
        for repeats in found.values():
            repeats.sort(key=lambda run: run.repeat)
        names = varying(self.done)

        def place(key: Point) -> list[tuple[str, float]]:
            values = dict(key)
            return [sortable(values.get(name)) for name in names]

        return {key: found[key] for key in sorted(found, key=place)}

    def varying(self) -> dict[str, list[Value]]:
        """The fields of which the runs hold more than one value, each with its values in order."""
        return varying(self.runs)

    def table(self) -> dict[str, NDArray[Any]]:
        """One row for each run, one column for each value; nested names are joined with dots.

        A number that a run lacks is NaN, a text or a switch None. Lists are text ("0,1");
        histograms are not here: see `Run.histogram`.
        """
        rows = [_row(run) for run in self.runs]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: _column([row.get(name) for row in rows]) for name in names}

    def pandas(self) -> Any:
        """The table as a pandas data frame. Raises OperatorError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise _no_library("pandas") from error
        return pandas.DataFrame(self.table())

    def polars(self) -> Any:
        """The table as a Polars data frame. Raises OperatorError without Polars."""
        try:
            import polars
        except ImportError as error:
            raise _no_library("polars") from error
        # Polars knows an absent value and does not want it as an object column.
        columns = {name: column.tolist() for name, column in self.table().items()}
        return polars.DataFrame(columns, strict=False)


def load(directory: Path | str) -> Results:
    """Read the result set in `directory`. Raises NoResults when it is none."""
    place = Path(directory)
    folder = place / RUNS_FOLDER
    if not folder.is_dir():
        raise NoResults(
            f"{place} is not a result set: it has no folder {RUNS_FOLDER!r}",
            "name the folder that `ppe experiment run` wrote",
        )
    found = Results(place)
    _read_spec(found)
    _read_plan(found)
    for path in sorted(folder.glob("*.json")):
        try:
            found.runs.append(_read_run(path))
        except NotARun as error:
            found.rejected.append(Rejected(f"{RUNS_FOLDER}/{path.name}", str(error)))
    _leave_out_strangers(found)
    if not found.runs:
        said = "; ".join(f"{r.file}: {r.reason}" for r in found.rejected) or "no run has finished"
        raise NoResults(
            f"{place} holds no run that can be read: {said}", "run the experiment again"
        )
    found.runs.sort(key=lambda run: (int(run.raw.get("order") or 0), run.id))
    return found


def load_all(directory: Path | str) -> tuple[list[Results], list[Rejected]]:
    """Read one result set, or each of those in the sub-folders, and name the sets left out.

    Raises NoResults when none can be read.
    """
    place = Path(directory)
    if (place / RUNS_FOLDER).is_dir():
        return [load(place)], []
    if not place.is_dir():
        raise NoResults(f"{place} is not a folder", "name a result set, or a folder of them")
    inside = sorted(path.parent for path in place.glob(f"*/{RUNS_FOLDER}") if path.is_dir())
    if not inside:
        raise NoResults(
            f"{place} holds no result set", "name the folder that `ppe experiment run` wrote"
        )
    found: list[Results] = []
    left_out: list[Rejected] = []
    for path in inside:
        try:
            found.append(load(path))
        except NoResults as error:
            left_out.append(Rejected(path.name, str(error)))
    if not found:
        raise NoResults(
            f"{place} holds no result set that can be read: {left_out[0].reason}",
            "run the experiments again",
        )
    return found, left_out


def bins(kept: Mapping[str, Any]) -> list[tuple[float, float, int]]:
    """The bins of a stored histogram as (low, high, count). Raises NotARun when they are broken.

    An edge is a pair, or only the low edge of a log-linear bin whose width its own octave and
    `significant_bits` give.
    """
    edges, counts = kept.get("edges_ns"), kept.get("counts")
    if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) != len(counts):
        raise NotARun("latency_histogram: edges_ns and counts are not as many")
    try:
        if edges and isinstance(edges[0], list):
            found = [(float(a), float(b), int(n)) for (a, b), n in zip(edges, counts, strict=True)]
        else:
            bits = int(kept["significant_bits"])
            if not 0 <= bits <= SIGNIFICANT_BITS_MAX:
                raise ValueError(f"significant_bits is {bits}")
            found = [
                (float(low), float(low) + _width(float(low), bits), int(n))
                for low, n in zip(edges, counts, strict=True)
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise NotARun(f"latency_histogram: {error!r}") from error
    lows = [low for low, _, _ in found]
    if not all(math.isfinite(edge) for low, high, _ in found for edge in (low, high)):
        raise NotARun("latency_histogram: an edge is not a finite number")
    if any(high <= low or n < 0 for low, high, n in found) or lows != sorted(set(lows)):
        raise NotARun("latency_histogram: the bins are not in order, or a count is negative")
    return found


def sortable(value: Value) -> tuple[str, float]:
    """What to sort a field's value by: numbers by size and before texts, SMP before all others."""
    if value is None or value == SMP:
        return "", -math.inf
    return ("", float(value)) if isinstance(value, int | float) else (value, 0.0)


def varying(runs: Sequence[Run]) -> dict[str, list[Value]]:
    """The fields in which these runs differ, each with its values: numbers by size, or as met."""
    values: dict[str, dict[Value, None]] = {}
    for run in runs:
        for name, value in flat(run.raw["point"]).items():
            values.setdefault(name, {})[value] = None
    found = {name: list(each) for name, each in values.items() if len(each) > 1}
    return {name: _in_order(each) for name, each in found.items()}


def telling(runs: Sequence[Run], by: str = "") -> dict[str, list[Value]]:
    """The fields that tell these runs apart, without those that follow from another.

    A field follows from the placement, the operation, the transport or `by` when each value of it
    goes with one value of the field alone: an inline run has no engine, a read writes nothing.
    """
    found = varying(runs)
    leaders = [name for name in (by, *LEADERS) if name in found]

    def follows(name: str) -> bool:
        if name == by or name in LEADERS[:2]:
            return False
        givers = [by] if name in LEADERS else leaders
        return any(_decides(runs, giver, name) for giver in givers if giver in found)

    return {name: values for name, values in found.items() if not follows(name)}


def _decides(runs: Sequence[Run], giver: str, name: str) -> bool:
    given: dict[Value, set[Value]] = {}
    for run in runs:
        point = flat(run.raw["point"])
        given.setdefault(point.get(giver), set()).add(point.get(name))
    return all(len(values) == 1 for values in given.values())


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Join nested names with dots; a list becomes text."""
    found: dict[str, Value] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        elif isinstance(value, list | tuple):
            found[f"{prefix}{name}"] = ",".join(str(item) for item in value)
        else:
            found[f"{prefix}{name}"] = value
    return found


def _in_order(values: list[Value]) -> list[Value]:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    rest = [v for v in values if v not in numbers]
    return [*rest, *sorted(numbers)] if numbers else values


def _width(low: float, bits: int) -> float:
    octave = math.floor(math.log2(low)) if low >= 1 else 0
    return float(max(1, 1 << max(0, octave - bits)))


def _read_run(path: Path) -> Run:
    """Read one file. Raises NotARun."""
    raw = _json(path)
    schema = raw.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        raise NotARun(f"schema is {schema!r}, this version reads {SCHEMA}")
    for name, kind in NEEDED.items():
        if not _is(raw.get(name), (kind,)):
            raise NotARun(f"{name!r} is {raw.get(name)!r}, not of type {kind.__name__}")
    for name, kinds in OPTIONAL.items():
        if raw.get(name) is not None and not _is(raw[name], kinds):
            words = " or ".join(kind.__name__ for kind in kinds)
            raise NotARun(f"{name!r} is {raw[name]!r}, not of type {words}")
    if raw["status"] not in STATUSES:
        raise NotARun(f"status is {raw['status']!r}, not one of {', '.join(STATUSES)}")
    if raw["status"] == "done" and not isinstance(raw.get("measured"), dict):
        raise NotARun("it is done and has nothing measured")
    run = Run(raw)
    run.histogram()
    return run


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    """Tell whether `value` is of one of these types; a switch is no number."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def _leave_out_strangers(found: Results) -> None:
    """Keep one experiment in a set, and one file for each id."""
    if not found.runs:
        return
    planned = found.plan.get("experiment")
    name = str(planned) if planned else str(found.runs[0].raw["experiment"])
    seen: set[str] = set()
    kept = []
    for run in found.runs:
        mine = str(run.raw["experiment"])
        if mine != name or run.id in seen:
            why = f"it belongs to {mine!r}" if mine != name else "its id has been read already"
            found.rejected.append(Rejected(f"{RUNS_FOLDER}/…{run.id}", why))
            continue
        seen.add(run.id)
        kept.append(run)
    found.runs = kept


def _read_spec(found: Results) -> None:
    path = found.directory / SPEC_FILE
    try:
        found.spec_text = path.read_text()
        found.spec = tomllib.loads(found.spec_text)
    except FileNotFoundError:
        found.rejected.append(Rejected(SPEC_FILE, "it is not there"))
    except (OSError, ValueError) as error:
        found.rejected.append(Rejected(SPEC_FILE, f"{error}"))


def _read_plan(found: Results) -> None:
    path = found.directory / PLAN_FILE
    if not path.exists():
        found.rejected.append(Rejected(PLAN_FILE, "it is not there"))
        return
    try:
        plan = _json(path)
        if plan.get("schema") != SCHEMA:
            raise NotARun(f"schema is {plan.get('schema')!r}, this version reads {SCHEMA}")
        found.plan = plan
    except NotARun as error:
        found.rejected.append(Rejected(PLAN_FILE, str(error)))


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text("utf-8"), parse_int=_whole)
    except OSError as error:
        raise NotARun(error.strerror or "it cannot be read") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
        raise NotARun(f"not JSON: {error}") from error
    except RecursionError as error:
        raise NotARun("not JSON that we write: it is nested too deeply") from error
    if not isinstance(raw, dict):
        raise NotARun("not a JSON object")
    return raw


def _whole(digits: str) -> int:
    found = int(digits)
    if abs(found) > WHOLE_MAX:
        raise ValueError(f"a number of {len(digits)} digits")
    return found


def _row(run: Run) -> dict[str, Value]:
    """One run, flat; `point.` and `measured.` are left away, because they only say where."""
    raw = dict(run.raw)
    measured = dict(raw.pop("measured", None) or {})
    measured.pop("latency_histogram", None)
    faults = raw.pop("faults", None) or []
    row = flat({name: raw.pop(name) for name in ("id", "experiment", "repeat", "status")})
    row |= flat(raw.pop("point"))
    row |= {name: value for name, value in flat(measured).items() if name not in row}
    row |= {name: value for name, value in flat(raw).items() if name not in row}
    row["faults"] = len(faults)
    return row


def _column(values: list[Value]) -> NDArray[Any]:
    kinds = {type(value) for value in values if value is not None}
    whole = None not in values
    if kinds == {bool} and whole:
        return np.array(values, dtype=bool)
    if kinds == {int} and whole and all(abs(int(v or 0)) < 1 << 63 for v in values):
        return np.array(values, dtype=np.int64)
    if kinds and kinds <= {int, float}:
        numbers = [math.nan if value is None else float(value) for value in values]
        return np.array(numbers, dtype=np.float64)
    if kinds == {str} and whole:
        return np.array(values, dtype=np.str_)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _no_library(name: str) -> OperatorError:
    return OperatorError(
        f"{name} is not installed", f"pip install {name}, or use .table(), which needs only NumPy"
    )
