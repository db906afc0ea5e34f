"""A point: everything that one run depends on, each field declared once with what it may be.

The one rule: a point that exists is possible as far as its own fields go; what a machine has no
cores for is for `bench.lab.partition` to say.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from bench.iscsi_peers import BLOCK, LUN_BYTES
from iscsi.session.options import DEPTH_MAX
from iscsi.wire.iser.registration import REGISTRATIONS
from ppe.config import parse_size
from ppe.errors import UsageError
from ppe.topology import parse_cpu_list

MIB: Final = 1 << 20
SESSIONS_MAX: Final = 64
DIGITS_MAX: Final = 5  # of a core's number
WORKLOAD: Final = "workload"
PLACES: Final = "partition"
INLINE: Final = "inline"
PLACEMENTS: Final = (INLINE, "stream", "datamover")
OPERATIONS: Final = ("read", "write", "mix")
IDLES: Final = ("spin", "yield", "sleep")
AUTO: Final = "auto"


class Impossible(ValueError):
    """Values of a point that do not go together; `key` is the field to change."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field may be: in which table of the file it stands, its kind and its bounds."""

    table: str
    help: str
    kind: str  # word, number, size, rate, switch or cores
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """What may be written, for a message."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return {
            "number": f"a whole number from {self.low} to {self.high}",
            "size": f'bytes from {self.low} to {self.high}, or a text such as "64K"',
            "rate": f"a number from {self.low} to {self.high}",
            "switch": "true or false",
            "cores": 'cores as a text such as "2" or "2,3" or "2-5", or "" for those that suit',
        }[self.kind]

    def read(self, value: Any) -> Any:
        """The value as a point holds it. Raises ValueError with what is allowed."""
        try:
            found = self._converted(value)
        except (ValueError, TypeError):
            raise ValueError(self._refusal(value)) from None
        return found

    def _converted(self, value: Any) -> Any:
        if self.kind == "switch":
            if isinstance(value, bool):
                return value
            raise TypeError
        if isinstance(value, bool) or not isinstance(value, self._types):
            raise TypeError
        if self.kind == "word" and value not in self.choices:
            raise ValueError
        if self.kind == "cores":
            return _cores_of(str(value))
        if self.kind == "size":
            value = parse_size(str(value))
        if self.kind in ("number", "size", "rate") and not self.low <= value <= self.high:
            raise ValueError
        return float(value) if self.kind == "rate" else value

    @property
    def _types(self) -> tuple[type, ...]:
        kinds: dict[str, tuple[type, ...]] = {
            "number": (int,),
            "size": (int, str),
            "rate": (int, float),
        }
        return kinds.get(self.kind, (str,))

    def _refusal(self, value: Any) -> str:
        near = difflib.get_close_matches(str(value), self.choices, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        return f"{value!r} is not possible: expected {self.allowed}{meant}"


def _cores_of(text: str) -> str:
    """A list of cores in one way of writing it. Raises ValueError, also for one of no cores."""
    if any(len(number) > DIGITS_MAX for number in re.findall(r"\d+", text)):
        raise ValueError
    found = sorted(parse_cpu_list(text)) if text else []
    if text and not found:
        raise ValueError
    return ",".join(map(str, found))


def _word(table: str, default: str, help: str, choices: tuple[str, ...]) -> Any:
    return field(default=default, metadata={"rule": Rule(table, help, "word", choices=choices)})


def _number(
    table: str, default: float, help: str, low: int, high: int, kind: str = "number"
) -> Any:
    return field(default=default, metadata={"rule": Rule(table, help, kind, low, high)})


def _switch(table: str, default: bool, help: str) -> Any:
    return field(default=default, metadata={"rule": Rule(table, help, "switch")})


def _cores(help: str) -> Any:
    return field(default="", metadata={"rule": Rule(PLACES, help, "cores")})


@dataclass(frozen=True, slots=True)
class Point:
    """What one run does (the table `workload`) and where (the table `partition`)."""

    placement: str = _word(
        WORKLOAD,
        "datamover",
        "who moves the initiator's data: its own threads (inline), an engine that moves bytes "
        "(stream), an engine that frames PDUs (datamover)",
        PLACEMENTS,
    )
    transport: str = _word(WORKLOAD, "tcp", "iSCSI over TCP, or iSER", ("tcp", "iser"))
    operation: str = _word(WORKLOAD, "read", "what the commands do", OPERATIONS)
    write_percent: int = _number(WORKLOAD, 0, "of a mix: how many of 100 are writes", 0, 100)
    block_bytes: int = _number(WORKLOAD, 4096, "bytes of a command", BLOCK, 4 * MIB, "size")
    depth: int = _number(WORKLOAD, 32, "commands outstanding in each session", 1, DEPTH_MAX)
    sessions: int = _number(WORKLOAD, 1, "sessions, a thread each", 1, SESSIONS_MAX)
    connections: int = _number(WORKLOAD, 1, "connections of a session: one", 1, 1)
    digests: str = _word(
        WORKLOAD,
        "none",
        "CRC32C of headers, data or both; over iSER both: MPA's CRC",
        ("none", "header", "data", "both"),
    )
    immediate_data: bool = _switch(WORKLOAD, True, "whether a write carries its first data")
    random: bool = _switch(WORKLOAD, True, "random addresses, or sequential ones")
    span_bytes: int = _number(
        WORKLOAD, 0, "the part of the LUN that is used (0: all of it)", 0, LUN_BYTES, "size"
    )
    rate_per_s: float = _number(
        WORKLOAD,
        0.0,
        "open loop: commands a second of all sessions together, latency from when each was due; "
        "0: closed loop",
        0,
        10**9,
        "rate",
    )
    wait_n: int = _number(
        WORKLOAD, 0, "completions a host waits for (0: half the depth)", 0, DEPTH_MAX
    )
    wait_us: int = _number(
        WORKLOAD, 100, "after which one completion is enough for it", 0, 1_000_000
    )
    wait_mode: str = _word(
        WORKLOAD,
        "sleep",
        "what a host without work does; with an engine, spin polls for a moment and then sleeps",
        ("sleep", "spin"),
    )
    registration: str = _word(
        WORKLOAD, AUTO, "how buffers are opened over iSER", (AUTO, *REGISTRATIONS)
    )
    idle: str = _word(PLACES, "spin", "what an engine without work does", IDLES)
    target: str = _word(
        PLACES,
        "engine",
        "the target: ours whose own engine serves READ and WRITE (engine), ours whose engine moves "
        "bytes and whose server does the rest (inline), or tgtd (tgt)",
        ("engine", "inline", "tgt"),
    )
    target_idle: str = _word(PLACES, "sleep", "what our target without work does", IDLES)
    engines: int = _number(PLACES, 1, "engines, a core each; none with inline", 0, 64)
    hosts: int = _number(PLACES, 1, "processes that have the sessions", 1, 64)
    target_on: str = _word(
        PLACES,
        AUTO,
        "the target's cores: its own, the hosts', the engines', any; auto: its own if there is one",
        (AUTO, "own", "host", "engine", "any"),
    )
    pinned: bool = _switch(PLACES, True, "hosts and target stay on a core each; engines always do")
    shared: bool = _switch(PLACES, False, "a core may have more than one of them")
    isolated: bool = _switch(PLACES, False, "engines want cores isolated from the scheduler")
    frequency_percent: int = _number(
        PLACES, 0, "the clock of all its cores, of 100 of their highest (0: as it is)", 0, 100
    )
    engine_cores: str = _cores("cores of the engines: there is one on each")
    host_cores: str = _cores("cores of the hosts")
    target_cores: str = _cores("cores of the target")

    def settled(self) -> "Point":
        """The same run in one way of writing it; what its placement has no use for is set back.

        Raises Impossible.
        """
        share = {"read": 0, "write": 100}.get(self.operation, self.write_percent or 50)
        found = replace(self, write_percent=share)
        if self.placement == INLINE:
            found = replace(found, engines=0, engine_cores="", idle=IDLES[0])
        elif self.engine_cores:
            found = replace(found, engines=len(self.engine_cores.split(",")))
        if found.wait_n and found.wait_n > found.depth:
            raise Impossible("wait_n", f"{found.wait_n} is more than the depth of {found.depth}")
        for key, is_wrong, why in _conflicts(found):
            if is_wrong:
                raise Impossible(key, why)
        return found

    def to_json(self) -> dict[str, Any]:
        """The point of a result file: what was left to the default of an engine is null."""
        found: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        found["rate_per_s"] = self.rate_per_s or None
        found["wait_n"] = self.wait_n or None
        found["registration"] = self.registration if self.transport == "iser" else None
        return found

    @property
    def span(self) -> int:
        """Bytes of the LUN that are used: whole commands."""
        return (self.span_bytes or LUN_BYTES) // self.block_bytes * self.block_bytes


def _conflicts(p: Point) -> tuple[tuple[str, bool, str], ...]:
    """What cannot be together: the field to change, whether it is so, and why."""
    named = len(p.host_cores.split(",")) if p.host_cores else 0
    over_rdma, is_inline = p.transport == "iser", p.placement == INLINE
    return (
        (
            "placement",
            over_rdma and p.placement == "stream",
            "over iSER there is no byte stream: an engine makes the PDUs; use inline or datamover",
        ),
        ("target", over_rdma and p.target == "tgt", "tgtd has no iSER here: use engine or inline"),
        ("digests", over_rdma and p.digests in ("header", "data"), "over iSER: none or both"),
        ("registration", not over_rdma and p.registration != AUTO, 'needs transport = "iser"'),
        (
            "wait_n",
            p.wait_n > 0 and p.placement == "stream",
            "over a byte stream an event is no command: use inline over iSER, or datamover",
        ),
        ("wait_n", p.wait_n > 0 and is_inline and not over_rdma, 'needs placement = "datamover"'),
        ("engines", not is_inline and p.engines == 0, f"{p.placement} needs an engine: at least 1"),
        ("block_bytes", p.block_bytes % BLOCK != 0, f"{p.block_bytes} is no multiple of {BLOCK}"),
        ("span_bytes", p.span == 0, f"{p.span_bytes} has no room for {p.block_bytes} bytes"),
        (
            "host_cores",
            named not in (0, p.hosts) and p.pinned,
            f"{named} cores for {p.hosts} hosts: pinned, each has one; or say pinned = false",
        ),
        ("hosts", p.hosts > p.sessions, f"{p.hosts} hosts share {p.sessions} sessions: each one"),
        (
            "write_percent",
            p.operation == "mix" and not 0 < p.write_percent < 100,
            f"{p.write_percent} makes no mix: 1 to 99",
        ),
        (
            "wait_mode",
            p.wait_mode == "spin" and p.sessions > p.hosts,
            f"{p.sessions} threads that spin in {p.hosts} hosts measure the scheduler: use sleep",
        ),
    )


RULES: Final[Mapping[str, Rule]] = {each.name: each.metadata["rule"] for each in fields(Point)}
TABLES: Final = (WORKLOAD, PLACES)


def names_of(table: str) -> list[str]:
    """The fields that stand in a table of the file."""
    return [name for name, rule in RULES.items() if rule.table == table]


def read_field(name: str, value: Any) -> Any:
    """One field's value. Raises UsageError for a field there is not, ValueError for the value."""
    if name not in RULES:
        raise UsageError(f"there is no field {name!r}", near(name))
    return RULES[name].read(value)


def near(name: str) -> str:
    """What a wrong field's name may have meant."""
    found = difflib.get_close_matches(name, RULES, 1)
    return f"did you mean {found[0]!r}?" if found else f"the fields are {', '.join(RULES)}"
