"""Words for the fields of a point and for their values, as people read them.

The one rule: a field nobody named here is shown by its own name, so a user's field is never lost.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

FIELDS: Final[Mapping[str, str]] = {
    "block_bytes": "block size",
    "span_bytes": "span",
    "depth": "queue depth",
    "write_percent": "share of writes (%)",
    "rate_per_s": "offered rate (1/s)",
    "wait_n": "N of wait_n",
    "wait_us": "min_wait (µs)",
    "wait_mode": "host waits by",
    "idle": "idle engine",
    "target_idle": "idle target",
    "target_on": "target on cores",
    "engine_cores": "engines on cores",
    "host_cores": "hosts on cores",
    "target_cores": "target on core",
    "operation": "operation",
    "placement": "placement",
    "transport": "transport",
    "digests": "digests",
    "registration": "registration",
    "sessions": "sessions",
    "connections": "connections",
    "engines": "engines",
    "hosts": "hosts",
    "target": "target",
    "immediate_data": "immediate data",
    "random": "random access",
}
PLAIN: Final = frozenset({"placement", "operation", "transport", "block_bytes"})
KIB: Final = 1024


def field(name: str) -> str:
    """The field in words."""
    return FIELDS.get(name, name)


def value(name: str, found: Any) -> str:
    """A value of a field in words: sizes in KiB, the SMP placement by that name."""
    if name.endswith("_bytes") and isinstance(found, int):
        return size(found)
    if name == "placement":
        return "SMP (inline)" if found == "inline" else f"AMP ({found})"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if found is None:
        return "—"
    if isinstance(found, float):
        return f"{found:,.6g}"
    if isinstance(found, int):
        return f"{found:,}"
    return str(found)


def size(count: int) -> str:
    """A number of bytes: "512 B", "8 KiB", "1 MiB"."""
    for unit, name in ((KIB * KIB, "MiB"), (KIB, "KiB")):
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count:,} B"


def point(fields: Mapping[str, Any], names: Iterable[str]) -> str:
    """The named fields of a point on one line; what explains itself goes without its name.

    A field without a value is left away: it had no part in that run.
    """
    words = []
    for name in names:
        if fields.get(name) is not None:
            shown = value(name, fields[name])
            head, _, unit = field(name).removesuffix(")").partition(" (")
            words.append(shown if name in PLAIN else f"{head} {shown} {unit}".rstrip())
    return ", ".join(words)


def number(found: float | None) -> str:
    """Three significant digits, with separators; a dash for what is not there."""
    if found is None:
        return "—"
    if found == 0:
        return "0"
    if abs(found) >= 100:
        return f"{found:,.0f}"
    if abs(found) < 0.001:
        return f"{found:.2e}"
    digits = 2 if abs(found) < 10 else 1
    return f"{found:,.{max(digits, 3 if abs(found) < 1 else digits)}f}"
