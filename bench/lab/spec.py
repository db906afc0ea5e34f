"""An experiment as it is written down: a TOML file read strictly, or the same from Python.

The one rule: every fault of a file is found before anything runs, and names its line, its key and
what is allowed.
"""

import dataclasses
import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from bench.lab import points
from bench.lab.partition import Machine, divide
from bench.lab.points import TABLES, Impossible, Point
from iscsi.target.toml_lines import key_lines
from iscsi.target.toml_reader import Faults, Table
from ppe.errors import ConfigError, UsageError
from ppe.paths import check_name

REPEATS_MAX: Final = 1000
SECONDS_MAX: Final = 3600.0
RUNS_MAX: Final = 9999  # an id has four digits
REFUSE, SKIP = "refuse", "skip"


@dataclass(frozen=True, slots=True)
class Timing:
    """How often and how long each point runs."""

    repeats: int = 5
    warm_up_s: float = 0.5
    measure_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Short:
    """What an experiment is when there is little time: other timing, fewer values."""

    timing: Timing
    fixed: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    together: Sequence[Mapping[str, Sequence[Any]]] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One point of an experiment, and why it cannot run on this machine (or "")."""

    point: Point
    refusal: str = ""


@dataclass(frozen=True)
class Experiment:
    """What is asked, and the points that answer it.

    `fixed` are fields of every point. `sweep` crosses: each value of each field with each of the
    others. A table of `together` zips: its first values go together, its second ones, ...
    `impossible` says what a point that this machine has no cores for does: "refuse" the whole
    experiment, or be recorded as refused and "skip"ped.
    """

    name: str
    title: str = ""
    question: str = ""
    timing: Timing = field(default_factory=Timing)
    seed: int = 1
    impossible: str = REFUSE
    fixed: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    together: Sequence[Mapping[str, Sequence[Any]]] = ()
    short: Short | None = None
    text: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.impossible not in (REFUSE, SKIP):
            raise ConfigError(f"impossible={self.impossible!r}", f"use {REFUSE} or {SKIP}")
        for name, values in _fields(self):
            for value in values:
                try:
                    points.read_field(name, value)
                except ValueError as error:
                    raise ConfigError(f"{self.name}: {name}: {error}") from error

    @classmethod
    def from_toml(cls, path: "str | Path") -> "Experiment":
        """Read a file. Raises ConfigError with every fault in it."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"cannot read {path}: {reason}", "name a TOML file") from error
        return cls.from_text(text, str(path), default_name=path.stem)

    @classmethod
    def from_text(
        cls, text: str, file: str = "experiment", *, default_name: str = "experiment"
    ) -> "Experiment":
        """The same from the text of a file, called `file` in messages."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{file} is not TOML: {error}", "correct that line") from error
        return _Reader(values, Faults(file, key_lines(text))).experiment(text, default_name)

    def shortened(self) -> "Experiment":
        """The short form. Raises UsageError when there is none."""
        if self.short is None:
            raise UsageError(f"{self.name} has no short form", "give its file a table [short]")
        short = self.short
        swept = {**self.sweep, **short.sweep}
        fixed = {**self.fixed, **short.fixed}
        return replace(
            self,
            timing=short.timing,
            fixed=fixed,
            sweep={name: values for name, values in swept.items() if name not in short.fixed},
            together=short.together or self.together,
            short=None,
            text="",  # That is of the long form.
        )

    def candidates(self, machine: Machine) -> list[Candidate]:
        """Every different point, in the order of the file.

        Raises ConfigError for one that cannot be (with `impossible = "skip"`: only if none can).
        """
        found: dict[Point, Candidate] = {}
        for values in self._combinations():
            try:
                point = _point(values)
                refusal = ""
            except Impossible as error:
                raise ConfigError(f"{self._where(error.key)}: {error}", _at(values)) from error
            try:
                divide(point, machine)
            except Impossible as error:
                if self.impossible == REFUSE:
                    raise ConfigError(f"{self._where(error.key)}: {error}", _at(values)) from error
                refusal = f"{error.key}: {error}"
            found.setdefault(point, Candidate(point, refusal))
        if all(candidate.refusal for candidate in found.values()):
            first = next(iter(found.values()))
            raise ConfigError(f"{self.name}: no point can run here: {first.refusal}")
        if len(found) * self.timing.repeats > RUNS_MAX:
            raise ConfigError(
                f"{self.name}: {len(found)} points, {self.timing.repeats} times each, are more "
                f"than {RUNS_MAX} runs",
                "sweep over fewer values",
            )
        return list(found.values())

    def _where(self, key: str) -> str:
        """The field to change, and its line in the file where there is one."""
        lines = key_lines(self.text)
        paths: list[tuple[str | int, ...]] = [("sweep", key), (points.RULES[key].table, key)]
        paths += [("together", number, key) for number in range(len(self.together))]
        found = [lines[path] for path in paths if path in lines]
        return f"{self.name}, line {found[0]}: {key}" if found else f"{self.name}: {key}"

    def _combinations(self) -> Iterator[dict[str, Any]]:
        axes: list[list[dict[str, Any]]] = [
            [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
            for table in self.together
        ]
        axes += [[{name: value} for value in values] for name, values in self.sweep.items()]
        for chosen in itertools.product(*axes):
            merged = dict(self.fixed)
            for values in chosen:
                merged |= values
            yield merged

    def to_toml(self) -> str:
        """The file: as it was read, or as it would be written."""
        return self.text or _written(self)


def _point(values: Mapping[str, Any]) -> Point:
    return Point(
        **{name: points.RULES[name].read(value) for name, value in values.items()}
    ).settled()


def _at(values: Mapping[str, Any]) -> str:
    return "at " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def _fields(experiment: Experiment) -> Iterator[tuple[str, Sequence[Any]]]:
    yield from ((name, [value]) for name, value in experiment.fixed.items())
    yield from experiment.sweep.items()
    for table in experiment.together:
        if len({len(values) for values in table.values()}) > 1:
            raise ConfigError(f"{experiment.name}: lists that go together differ in length")
        yield from table.items()


class _Reader:
    """Reads one file's tables; faults are collected."""

    def __init__(self, values: Any, faults: Faults) -> None:
        self._faults = faults
        self._top = Table(values, faults)

    def experiment(self, text: str, default_name: str) -> Experiment:
        """Read everything. Raises ConfigError with all that is wrong."""
        top = self._top
        name = top.text("name", default_name)
        try:
            check_name(name)
        except UsageError as error:
            top.fault("name", error.message)
        timing = self._timing(top, Timing())
        found: dict[str, Any] = {
            "title": top.text("title"),
            "question": top.text("question"),
            "seed": top.number("seed", 1, 0, 2**53),
            "impossible": top.choice("impossible", REFUSE, (REFUSE, SKIP)),
            "fixed": self._fixed(top),
            "sweep": self._lists(top.table("sweep")),
            "together": self._together(top),
        }
        short = self._short(top, timing) if top.has("short") else None
        self._check_once(found)
        top.done()
        self._faults.raise_if_any()
        return Experiment(name, timing=timing, short=short, text=text, **found)

    def _timing(self, table: Table, usual: Timing) -> Timing:
        found = Timing(
            table.number("repeats", usual.repeats, 1, REPEATS_MAX),
            table.seconds("warm_up_s", usual.warm_up_s),
            table.seconds("measure_s", usual.measure_s),
        )
        if not 0 < found.measure_s <= SECONDS_MAX:
            table.fault("measure_s", f"{found.measure_s:g} is outside 0.01..{SECONDS_MAX:g}")
        return found

    def _short(self, top: Table, timing: Timing) -> Short:
        table = top.table("short")
        found = Short(
            self._timing(table, timing),
            self._fixed(table),
            self._lists(table.table("sweep")),
            self._together(table),
        )
        table.done()
        return found

    def _fixed(self, table: Table) -> dict[str, Any]:
        """The fields of every point, from their tables."""
        found: dict[str, Any] = {}
        for name in TABLES:
            values = _raw(table, name)
            table.table(name)  # Says if it is no table.
            for key, value in values.items():
                path = (*table.path, name, key)
                rule = points.RULES.get(key)
                if rule is None or rule.table != name:
                    self._unknown(path, key, name)
                else:
                    found |= self._checked(path, key, value)
        return found

    def _unknown(self, path: tuple[str | int, ...], key: str, table: str) -> None:
        rule = points.RULES.get(key)
        hint = f"it stands in [{rule.table}]" if rule else points.near(key)
        self._faults.add(path, f"unknown key in [{table}]; {hint}")

    def _checked(self, path: tuple[str | int, ...], key: str, value: Any) -> dict[str, Any]:
        try:
            return {key: points.RULES[key].read(value)}
        except ValueError as error:
            self._faults.add(path, str(error))
            return {}

    def _lists(self, table: Table) -> dict[str, list[Any]]:
        """Fields with the values they take in turn."""
        found: dict[str, list[Any]] = {}
        for key, values in table.contents.items():
            table.has(key)
            path = (*table.path, key)
            if key not in points.RULES:
                self._faults.add(path, f"unknown key; {points.near(key)}")
            elif not isinstance(values, list) or not values:
                allowed = points.RULES[key].allowed
                self._faults.add(path, f"{values!r} is no list: expected [...] of {allowed}")
            else:
                read = [self._checked(path, key, value) for value in values]
                found[key] = [one[key] for one in read if one]
        return found

    def _together(self, table: Table) -> list[dict[str, list[Any]]]:
        found = []
        for part in table.tables("together"):
            lists = self._lists(part)
            lengths = {key: len(values) for key, values in lists.items()}
            if len(set(lengths.values())) > 1:
                said = ", ".join(f"{key} has {count}" for key, count in lengths.items())
                part.fault("", f"lists that go together are equally long: {said}")
            if lists:
                found.append(lists)
        return found

    def _check_once(self, found: Mapping[str, Any]) -> None:
        """A field has one place: fixed, swept or in one table of `together`."""
        seen: dict[str, str] = {}
        places = [("sweep", found["sweep"])]
        places += [(f"together[{i}]", table) for i, table in enumerate(found["together"])]
        for place, fields in places:
            for key in fields:
                if key in seen or key in found["fixed"]:
                    other = seen.get(key) or points.RULES[key].table
                    path = ("sweep", key) if place == "sweep" else ("together", key)
                    self._faults.add(path, f"it is given twice: in {place} and in {other}")
                seen[key] = place


def _raw(table: Table, name: str) -> dict[str, Any]:
    values = table.contents.get(name)
    return dict(values) if isinstance(values, dict) else {}


def _written(experiment: Experiment) -> str:
    """An experiment made in Python as the file it could have been."""
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key in ("name", "title", "question", "seed", "impossible")
        if (value := getattr(experiment, key)) != ""
    ]
    lines += [f"{k} = {json.dumps(v)}" for k, v in dataclasses.asdict(experiment.timing).items()]
    for table in TABLES:
        names = [name for name in points.names_of(table) if name in experiment.fixed]
        if names:
            lines += ["", f"[{table}]"]
            lines += [f"{name} = {json.dumps(experiment.fixed[name])}" for name in names]
    tables = [("[sweep]", experiment.sweep)] if experiment.sweep else []
    tables += [("[[together]]", table) for table in experiment.together]
    for head, values in tables:
        lines += ["", head]
        lines += [f"{name} = {json.dumps(list(found))}" for name, found in values.items()]
    return "\n".join(lines) + "\n"
