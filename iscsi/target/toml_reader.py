"""Reading tables of settings strictly: every key is asked for by name and kind, what nobody asked
for is a fault, and all faults are collected so that one run shows them all.
"""

import difflib
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from iscsi.target.toml_lines import Path, line_of
from ppe.config import parse_size
from ppe.errors import ConfigError

_MISSING: Final = object()
_UNSHOWN: Final = ("secret",)  # values that no message may show


class SettingsError(ConfigError):
    """Settings that cannot be; `faults` are all of them, each naming its line and key."""

    def __init__(self, faults: list[str]) -> None:
        several = [f"{len(faults)} faults:", *faults]
        super().__init__(faults[0] if len(faults) == 1 else "\n  ".join(several))
        self.faults = faults


class Faults:
    """The faults of one source of settings; `name` is the file, or what stands for it."""

    def __init__(self, name: str, lines: dict[Path, int]) -> None:
        self._name, self._lines = name, lines
        self._found: list[tuple[int, str]] = []

    @property
    def found(self) -> list[str]:
        """All of them, in the order of their lines."""
        return [text for _, text in sorted(self._found, key=lambda fault: fault[0])]

    def add(self, path: Path, what: str) -> None:
        """Note one."""
        line = line_of(self._lines, path)
        where = f"{self._name}:{line}" if line else self._name
        key = shown(path)
        self._found.append((line, f"{where}: {key}: {what}" if key else f"{where}: {what}"))

    def raise_if_any(self) -> None:
        """Raise SettingsError if there are some."""
        if self.found:
            raise SettingsError(self.found)

    def fail(self, path: Path, what: str) -> NoReturn:
        """Note one and raise them all."""
        self.add(path, what)
        raise SettingsError(self.found)


def shown(path: Path) -> str:
    """A path as people write it: `target[0].lun[1].size`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def parse_share(text: str, size: int) -> int:
    """Bytes of a share of `size`: "80%", or a size such as "10G". ValueError."""
    if not text.endswith("%"):
        return parse_size(text)
    percent = float(text[:-1])
    if not 0 < percent <= 100:
        raise ValueError(f"{text} is not within 0 and 100 %")
    return int(size * percent / 100)


class Table:
    """One table of settings. A getter gives the default where a key is missing or wrong."""

    def __init__(self, values: Any, faults: Faults, path: Path = ()) -> None:
        if not isinstance(values, dict):
            faults.fail(path, f"{values!r} is not a table")
        self._values: dict[str, Any] = {str(k).replace("-", "_"): v for k, v in values.items()}
        self._names = list(values)
        self._known: set[str] = set()
        self.faults, self.path = faults, path

    @property
    def contents(self) -> dict[str, Any]:
        """Everything in it, as it was read; for tables whose keys are not known by name."""
        return dict(self._values)

    def fault(self, key: str, what: str) -> None:
        """Note a fault of one key, or with "" of the table."""
        self.faults.add((*self.path, key) if key else self.path, what)

    def has(self, key: str) -> bool:
        """Whether the key is given."""
        self._known.add(key)
        return key in self._values

    def _take(self, key: str, kinds: tuple[type, ...], expected: str) -> Any:
        self._known.add(key)
        value = self._values.get(key, _MISSING)
        if value is _MISSING:
            return _MISSING
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            given = "this" if key in _UNSHOWN else repr(value)
            self.fault(key, f"{given} is not possible: expected {expected}")
            return _MISSING
        return value

    def text(self, key: str, default: str = "", *, required: bool = False) -> str:
        """A text that is not empty."""
        value = self._take(key, (str,), "a text in quotes")
        if value is _MISSING or not value:
            if required or value == "":
                self._missing(key, "a text in quotes")
            return default
        return str(value)

    def _missing(self, key: str, expected: str) -> None:
        if key not in self._values or self._values[key] == "":
            self.fault(key if key in self._values else "", f"{key} is missing: expected {expected}")

    def number(self, key: str, default: int, low: int, high: int, *, required: bool = False) -> int:
        """A whole number within [low, high]."""
        value = self._take(key, (int,), f"a whole number from {low} to {high}")
        if value is _MISSING:
            if required:
                self._missing(key, f"a whole number from {low} to {high}")
            return default
        if not low <= value <= high:
            self.fault(key, f"{value} is outside {low}..{high}")
            return default
        return int(value)

    def seconds(self, key: str, default: float) -> float:
        """A number of seconds, not negative."""
        value = self._take(key, (int, float), "seconds as a number")
        if value is _MISSING:
            return default
        if not 0 <= value <= 86400:
            self.fault(key, f"{value} is outside 0..86400 seconds")
            return default
        return float(value)

    def size(self, key: str, default: int = 0, *, required: bool = False) -> int:
        """Bytes: a number, or a text such as "10G"."""
        value = self._take(key, (int, str), 'a size such as "10G"')
        if value is _MISSING:
            if required:
                self._missing(key, 'a size such as "10G"')
            return default
        try:
            size = parse_size(str(value))
        except ValueError:
            size = 0
        if not 0 < size < 1 << 62:
            self.fault(key, f'{value!r} is no size: expected bytes, or a text such as "10G"')
            return default
        return size

    def share(self, key: str) -> str:
        """A share of something, as it is given: "80%", or a size. Empty where it is missing."""
        text = self.text(key)
        try:
            wrong = bool(text) and not parse_share(text, 100 << 20)
        except ValueError:
            wrong = True
        if wrong:
            self.fault(key, f'{text!r} is no share: expected "80%", or a size such as "10G"')
        return "" if wrong else text

    def switch(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._take(key, (bool,), "true or false")
        return default if value is _MISSING else bool(value)

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """One of some words."""
        value = self._take(key, (str,), " or ".join(choices))
        if value is _MISSING:
            return default
        if value not in choices:
            self.fault(key, f"{value!r} is none of {', '.join(choices)}{_near(value, choices)}")
            return default
        return str(value)

    def texts(self, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A list of texts."""
        value = self._take(key, (list,), "a list of texts")
        if value is _MISSING:
            return default
        if not all(isinstance(item, str) and item for item in value):
            self.fault(key, f"{value!r} is not possible: expected a list of texts")
            return default
        return tuple(value)

    def table(self, key: str) -> "Table":
        """A table within, empty where it is missing."""
        value = self._take(key, (dict,), f"a table: [{shown((*self.path, key))}]")
        return Table({} if value is _MISSING else value, self.faults, (*self.path, key))

    def tables(self, key: str) -> "Iterator[Table]":
        """The tables of an array `[[key]]`."""
        value = self._take(key, (list,), f"tables, each headed [[{key}]]")
        for number, item in enumerate([] if value is _MISSING else value):
            path = (*self.path, key, number)
            if isinstance(item, dict):
                yield Table(item, self.faults, path)
            else:
                self.faults.add(path, f"{item!r} is not a table")

    def named_tables(self) -> "Iterator[tuple[str, Table]]":
        """Every key as a table: for tables whose keys are names."""
        for name in self._names:
            self._known.add(name.replace("-", "_"))
            item = self._values[name.replace("-", "_")]
            path = (*self.path, name)
            if isinstance(item, dict):
                yield name, Table(item, self.faults, path)
            else:
                self.faults.add(path, f"{item!r} is not a table")

    def done(self) -> None:
        """Note every key that nobody asked for."""
        for key in self._values.keys() - self._known:
            self.fault(key, f"unknown key{_near(key, self._known)}")


def _near(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), 1, cutoff=0.5)
    if near:
        return f": did you mean {near[0]!r}?"
    return f"; known here: {', '.join(sorted(known))}" if known else ""
