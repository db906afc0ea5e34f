"""Every setting of an engine, declared once: the flag, the TOML key, the range and the help text.

Flags win over the file, the file over the defaults; the result is frozen and already checked, so
nothing behind this module looks at a range again.
"""

import argparse
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from ppe.errors import ConfigError
from ppe.partition import AUTO, parse_wanted
from ppe.paths import DEFAULT_NAME, check_name

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
UNITS: Final = {"K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}


@dataclass(frozen=True, slots=True)
class Setting:
    """How one field is written outside: `low..high` for numbers, `choices` for words."""

    help: str
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()
    is_size: bool = False
    is_switch: bool = False

    @property
    def is_number(self) -> bool:
        """Tell whether the setting is a number with a range."""
        return self.high > 0


def _setting(default: Any, help: str, **kind: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(help, **kind)})


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine sets aside at its start, and what one client may ask for."""

    clients: int = _setting(1024, "clients attached at once", low=1, high=65535)
    channels: int = _setting(4096, "channels of all clients", low=1, high=65535)
    endpoints: int = _setting(4096, "endpoints of all clients", low=1, high=1 << 20)
    regions: int = _setting(4096, "memory regions of all clients", low=1, high=1 << 20)
    operations: int = _setting(65536, "operations in flight, of all clients", low=64, high=1 << 24)
    client_memory_bytes: int = _setting(
        GIB, "shared memory of one client", low=64 * KIB, high=1 << 44, is_size=True
    )
    client_connection_bytes: int = _setting(
        512 * MIB,
        "the engine's memory for one client's datamover connections, and for its queue pairs",
        low=64 * KIB,
        high=GIB,
        is_size=True,
    )
    entries_per_pass: int = _setting(
        64, "work entries taken from one channel in one pass", low=1, high=4096
    )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What `ppe up` was asked for. `cpu` is `auto` or a list of CPUs, one for each engine."""

    name: str = _setting(DEFAULT_NAME, "name that clients connect to")
    cpu: str = _setting(AUTO, "CPU to pin to, one for each engine: auto, 3 or 2,3")
    engines: int = _setting(1, "number of engines, one CPU each", low=1, high=64)
    idle: str = _setting(
        "spin", "what an engine without work does", choices=("spin", "yield", "sleep")
    )
    foreground: bool = _setting(False, "stay in this terminal", is_switch=True)
    cpu_target: str = _setting(
        "native", "processor to compile for", choices=("native", "x86-64-v2")
    )
    readiness: str = _setting(
        "auto", "how sockets announce data", choices=("auto", "io_uring", "epoll")
    )
    rdma_devices: str = _setting(
        "", "RDMA devices to open and poll for clients: rxe0 or mlx5_0,mlx5_1 (docs/VERBS.md)"
    )
    force: bool = _setting(
        False, "share a taken CPU, and spin on every CPU there is", is_switch=True
    )
    limits: Limits = field(default_factory=Limits)

    @property
    def rdma_device_names(self) -> tuple[str, ...]:
        """The names in `rdma_devices`, each once."""
        names = (name.strip() for name in self.rdma_devices.split(","))
        return tuple(dict.fromkeys(name for name in names if name))


def settings(section: type[EngineConfig] | type[Limits]) -> dict[str, Setting]:
    """Return `{field: Setting}` of EngineConfig or Limits."""
    return {f.name: f.metadata["setting"] for f in fields(section) if "setting" in f.metadata}


def flag(name: str, section: type[EngineConfig] | type[Limits] = EngineConfig) -> str:
    """Return the flag of a field: `--cpu-target`, `--limit-clients`."""
    prefix = "--limit-" if section is Limits else "--"
    return prefix + name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and a flag for every setting; flags not given leave no trace."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings as a TOML file")
    for section in (EngineConfig, Limits):
        title = "limits" if section is Limits else "engine"
        group = parser.add_argument_group(title)
        defaults = section()
        for name, setting in settings(section).items():
            default = getattr(defaults, name)
            options: dict[str, Any] = {"dest": _destination(section, name)}
            options["default"] = argparse.SUPPRESS
            if setting.is_switch:
                options |= {"action": "store_true", "help": setting.help}
            else:
                shown = _size_text(default) if setting.is_size else default
                metavar = "|".join(setting.choices) or ("N" if setting.is_number else "X")
                metavar = "SIZE" if setting.is_size else metavar
                options |= {"metavar": metavar, "help": f"{setting.help} (default: {shown})"}
            group.add_argument(flag(name, section), **options)


def load(args: argparse.Namespace) -> EngineConfig:
    """Build the checked configuration from parsed flags and the file that `--config` names.

    Raises ConfigError, which names the flag or the file's key. `--cpu 2,3` alone means two engines.
    """
    path: Path | None = getattr(args, "config", None)
    engine_values, limit_values = _read_file(path) if path else ({}, {})
    engine_values |= _from_flags(args, EngineConfig)
    limit_values |= _from_flags(args, Limits)
    config = replace(EngineConfig(), **engine_values, limits=replace(Limits(), **limit_values))
    check_name(config.name)
    named = parse_wanted(config.cpu)
    if named is not None and "engines" not in engine_values:
        config = replace(config, engines=len(named))
    if named is not None and len(named) != config.engines:
        raise ConfigError(
            f"--cpu {config.cpu} names {len(named)} CPUs for --engines {config.engines}",
            f"make it --engines {len(named)}, or name {config.engines} CPUs",
        )
    return config


def parse_size(text: str) -> int:
    """Return bytes from `4096`, `64K`, `256M`, `2G` or `1GiB`; raise ValueError otherwise."""
    digits = text.strip().upper().removesuffix("B").removesuffix("I")
    factor = UNITS.get(digits[-1:], 1)
    if factor > 1:
        digits = digits[:-1]
    if not (digits.isascii() and digits.isdecimal()):
        raise ValueError(f"{text!r} is no size: a whole number, then K, M, G, T or nothing")
    return int(digits) * factor


def _from_flags(
    args: argparse.Namespace, section: type[EngineConfig] | type[Limits]
) -> dict[str, Any]:
    given = vars(args)
    return {
        name: _checked(setting, given[_destination(section, name)], flag(name, section))
        for name, setting in settings(section).items()
        if _destination(section, name) in given
    }


def _destination(section: type[EngineConfig] | type[Limits], name: str) -> str:
    return f"limit_{name}" if section is Limits else name


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", "pass another file with --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", "correct that line") from error
    limits = table.pop("limits", {})
    if not isinstance(limits, dict):
        raise ConfigError(f"{path}: 'limits' is not a table", "write [limits] above its keys")
    return _from_table(table, EngineConfig, path), _from_table(limits, Limits, path)


def _from_table(
    table: Mapping[str, Any], section: type[EngineConfig] | type[Limits], path: Path
) -> dict[str, Any]:
    known = settings(section)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"{path}: unknown key {key!r}",
                f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}",
            )
        values[name] = _checked(known[name], value, f"{key!r} in {path} ({flag(name, section)})")
    return values


def _checked(setting: Setting, value: Any, where: str) -> Any:
    if setting.is_switch:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{where} is {value!r}", "write true or false")
    if isinstance(value, bool | float):
        raise ConfigError(f"{where} is {value!r}", _expected(setting))
    if setting.is_number:
        return _checked_number(setting, value, where)
    if isinstance(value, list):  # cpu = [2, 3]
        value = ",".join(map(str, value))
    if setting.choices and value not in setting.choices:
        raise ConfigError(f"{where} is {value!r}", _expected(setting, str(value)))
    return str(value)


def _checked_number(setting: Setting, value: Any, where: str) -> int:
    try:
        number = parse_size(str(value)) if setting.is_size else int(str(value))
    except ValueError:
        raise ConfigError(f"{where} is {value!r}", _expected(setting)) from None
    if not setting.low <= number <= setting.high:
        raise ConfigError(f"{where} is {value}", _expected(setting))
    return number


def _expected(setting: Setting, given: str = "") -> str:
    if setting.choices:
        near = difflib.get_close_matches(given, setting.choices, 1)
        return f"use {', '.join(setting.choices)}" + (f"; did you mean {near[0]}?" if near else "")
    if setting.is_size:
        return f"use {_size_text(setting.low)} to {_size_text(setting.high)}, such as 256M"
    if setting.is_number:
        return f"use a whole number from {setting.low} to {setting.high}"
    return f"expected: {setting.help}"


def _size_text(size: int) -> str:
    for unit, factor in reversed(UNITS.items()):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
