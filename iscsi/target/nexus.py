"""An I_T nexus: who the initiator port is, and what waits for it at each unit of the target. Only
the server's thread changes it; compiled code sees one word per unit, which `refresh_gate` keeps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from iscsi.wire.lun import GATE_CLOSED, GATE_OPEN, GATE_READS_ONLY
from iscsi.wire.sense import Asc

if TYPE_CHECKING:
    from iscsi.target.units import LogicalUnit, Target

_ISCSI_WITH_ISID: Final = 0x45  # format code 01b, protocol identifier 5h
_NAME_ALIGNMENT: Final = 4
# A reset says more than what it resets: it takes the place of what waits (SAM-5 §5.14.2).
RESETS: Final[frozenset[int]] = frozenset(
    (Asc.POWER_ON_RESET, Asc.POWER_ON_OCCURRED, Asc.BUS_RESET_OCCURRED, Asc.DEVICE_RESET_OCCURRED)
)
_NEXUS_LOSS: Final = Asc.I_T_NEXUS_LOSS


class Attention(int):
    """A unit attention: ASC << 8 | ASCQ, and what its sense says in INFORMATION, if anything."""

    information: int | None = None

    @classmethod
    def of(cls, code: int, information: int | None) -> "Attention":
        """The attention of a code."""
        found = cls(code)
        found.information = information
        return found


_LUNS_CHANGED: Final = Attention(Asc.REPORTED_LUNS_CHANGED)


def transport_id(initiator_name: str, isid: int) -> bytes:
    """The TransportID of an iSCSI initiator port (SPC-4 §7.6.4.6, format code 01b)."""
    name = f"{initiator_name},i,0x{isid:012x}".encode() + b"\0"
    padded = max(20, -(-len(name) // _NAME_ALIGNMENT) * _NAME_ALIGNMENT)
    return bytes((_ISCSI_WITH_ISID, 0)) + padded.to_bytes(2, "big") + name.ljust(padded, b"\0")


class Tasks(Protocol):
    """What a nexus asks of its session's tasks."""

    def abort_lun(self, lun: int | None = None) -> int:
        """End those for one unit, or all of them."""

    def end_aborted(self, lun: int) -> int:
        """End those for one unit with TASK ABORTED."""

    def aborted_work(self, lun: int | None = None) -> int:
        """How many aborted ones somebody still works on."""

    @property
    def jobs(self) -> int:
        """How many somebody else works on, aborted ones included."""

    def half_written(self, lun: int, start: int, end: int) -> int:
        """WRITEs that have put a part of their data between two addresses."""

    def refuse_writes(self, lun: int, key: int, code: int) -> int:
        """End WRITEs whose data has not reached the medium."""


def relative_port(portal_group_tag: int) -> int:
    """The relative target port identifier of a portal group: its tag, or another number than 0."""
    return portal_group_tag or 0xFFFF


@dataclass(eq=False)
class Nexus:
    """One I_T nexus. `write_word(lun, value)` tells compiled code; it is absent in tests."""

    initiator_name: str = ""
    isid: int = 0
    portal_group_tag: int = 1
    relative_port: int = 0  # by default the tag: a portal group is a target port (RFC 7143 §4.4)
    read_only: bool = False  # this initiator may read only, whatever the unit says
    protocol_level: int = 1  # iSCSIProtocolLevel: from 2 on it may ask RFC 7144's functions
    target: "Target | None" = None
    write_word: Callable[[int, int], None] | None = None
    tasks: Tasks | None = None  # until the session's memory is given back
    wake: Callable[[], None] | None = None  # have what was answered sent
    # Whether an engine has ended and shut what it was told to; absent where there is none.
    settled: Callable[[], bool] | None = None
    _waiting: dict[int, list[Attention]] = field(default_factory=dict)
    _left: list["LogicalUnit"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.relative_port = self.relative_port or relative_port(self.portal_group_tag)

    @property
    def transport_id(self) -> bytes:
        """The initiator port's TransportID."""
        return transport_id(self.initiator_name, self.isid)

    def raise_attention(self, lun: int, code: int, information: int | None = None) -> None:
        """Have the next command for a LUN answered with a unit attention (SAM-5 §5.14)."""
        waiting = self._waiting.setdefault(lun, [])
        if any(found == code and found.information == information for found in waiting):
            return
        if code in RESETS:
            waiting.clear()
        waiting.append(Attention.of(code, information))
        self.refresh_gate(lun)

    def pending(self, lun: int | None) -> Attention | None:
        """The unit attention that is reported next, which stays."""
        waiting = self._waiting.get(lun) if lun is not None else None
        return waiting[0] if waiting else None

    def attentions(self, lun: int) -> int:
        """How many unit attentions wait."""
        return len(self._waiting.get(lun, ()))

    def take_attention(self, lun: int | None) -> Attention | None:
        """The unit attention that is reported next, once."""
        if lun is None or not self._waiting.get(lun):
            return None
        code = self._waiting[lun].pop(0)
        self.refresh_gate(lun)
        return code

    def luns_reported(self) -> None:
        """The list of units was read: what said that it changed is no news any more."""
        for lun, waiting in self._waiting.items():
            if _LUNS_CHANGED in waiting:
                waiting.remove(_LUNS_CHANGED)
                self.refresh_gate(lun)

    def abort_tasks(self, lun: int | None = None) -> None:
        """End this nexus' tasks at one unit, or at all, because of what another nexus did: without
        a response, or with TASK ABORTED where the unit's TAS says so (SAM-5 §5.6).
        """
        unit = None if self.target is None or lun is None else self.target.units.get(lun)
        if self.tasks is None:
            return
        if lun is not None and unit is not None and unit.task_aborted_status:
            self.tasks.end_aborted(lun)
        else:
            self.tasks.abort_lun(lun)
        if self.wake is not None:
            self.wake()

    def aborted_work(self, lun: int | None = None) -> int:
        """On how many of those somebody still works: they may still reach the medium."""
        return 0 if self.tasks is None else self.tasks.aborted_work(lun)

    @property
    def jobs(self) -> int:
        """Commands that somebody else works on, aborted ones included."""
        return 0 if self.tasks is None else self.tasks.jobs

    def forget(self, lun: int) -> None:
        """Drop what waits at a unit that is gone."""
        self._waiting.pop(lun, None)
        self.refresh_gate(lun)

    def refresh_gate(self, lun: int) -> None:
        """Tell compiled code whether it may serve this nexus' READ and WRITE of a unit."""
        if self.write_word is None:
            return
        unit = None if self.target is None else self.target.units.get(lun)
        restricted = unit is not None and unit.reservations.restricts(self)
        gate = GATE_READS_ONLY if self.read_only else GATE_OPEN
        if self._waiting.get(lun) or restricted:
            gate = GATE_CLOSED
        self.write_word(lun, gate)

    def attach(self, target: "Target", write_word: Callable[[int, int], None] | None) -> None:
        """Begin: the target's units know of this nexus from now on."""
        self.target, self.write_word = target, write_word
        target.nexuses.append(self)
        for lun in target.units:
            self.refresh_gate(lun)

    def detach(self) -> None:
        """I_T nexus loss (SAM-5 §6.3.4): what it held at the units is given back. Idempotent."""
        target, self.target, self.write_word = self.target, None, None
        if target is None:
            return
        target.nexuses.remove(self)
        self._left = list(target.units.values())
        for unit in self._left:
            unit.nexus_lost(self)

    def end(self) -> None:
        """Nothing of its commands is worked on any more: neither here nor by an engine."""
        self.detach()
        self.tasks = None
        units, self._left = self._left, []
        for unit in units:
            unit.reservations.nexus_ended(self)
