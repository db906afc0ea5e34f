"""Targets and their logical units, as Python names them, and the table compiled code looks them up
in. Everything here changes in the server's thread only; `LogicalUnit.refresh_gate` says to compiled
code whether it may serve a unit.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from host.memory import Buffer
from iscsi.target.activity import Counts
from iscsi.target.backends import Backend, RamBackend, Usage
from iscsi.target.thresholds import Reached, Thresholds, exponent
from iscsi.wire.lun import LUN, LUN_SIZE, Unit, lun_at, write_lun
from iscsi.wire.names import name_fault
from iscsi.wire.scsi import MAX_LUN
from iscsi.wire.sense import Asc, Sense, SenseKey
from shm.view import address_of

if TYPE_CHECKING:
    from iscsi.target.lanes import Lane
    from iscsi.target.nexus import Nexus, Tasks
    from iscsi.target.scsi.command import Command, Reservation

BLOCK_SIZES: Final = (512, 4096)
MAX_TRANSFER: Final = 4 << 20  # bytes of one command that the cold code serves
OPTIMAL_TRANSFER: Final = 256 << 10
WRITE_SAME_MAX: Final = 1 << 30
VENDOR: Final = "PPE"
REVISION: Final = "0001"
# Units added later are served by compiled code up to this number, by the cold code beyond it.
TABLE_MIN: Final = 256
_NAA_LOCALLY_ASSIGNED: Final = 3 << 60


@dataclass(frozen=True, slots=True)
class Limits:
    """What VPD page B0 tells and the commands keep, in blocks; atomic writes need their lengths and
    places to be multiples of a grain, which libiscsi's suite wants to be 2 or more.
    """

    transfer: int
    optimal_transfer: int
    write_same: int
    compare_and_write: int = 255
    unmap: int = 0x100000
    unmap_descriptors: int = 256
    atomic: int = 256
    atomic_alignment: int = 2
    atomic_granularity: int = 2

    @classmethod
    def of(cls, block_size: int) -> "Limits":
        """The limits of a unit with this block size."""
        return cls(
            transfer=MAX_TRANSFER // block_size,
            optimal_transfer=OPTIMAL_TRANSFER // block_size,
            write_same=WRITE_SAME_MAX // block_size,
        )


class Reservations(Protocol):
    """What the rest of the target asks a unit's reservations."""

    def conflicts(self, command: "Command", kind: "Reservation") -> bool:
        """Whether this command ends with RESERVATION CONFLICT."""

    def restricts(self, nexus: "Nexus") -> bool:
        """Whether any READ or WRITE of this nexus may conflict."""

    def nexus_lost(self, nexus: "Nexus") -> None:
        """A session ended."""

    def nexus_ended(self, nexus: "Nexus") -> None:
        """Nothing of a lost session is worked on any more."""

    @property
    def is_being_left(self) -> bool:
        """Whether a lost session that had the unit to itself is still worked for."""

    def reset(self) -> None:
        """The unit was reset."""


class EnginePlaces(Protocol):
    """A target's units as engines know them that serve some by themselves."""

    def table_at(self, lane: "Lane") -> int:
        """The name of the table at a lane's engine."""

    def ask_counts(self) -> Callable[[], bool]:
        """Have it say what it served, for the entries of the target's table; whether it has."""

    def write(self, lun: int) -> None:
        """Have it know what has changed, before anything is answered."""

    def serves(self, lun: int) -> bool:
        """Whether it has this unit, be it open to its commands or not."""

    def fence(self, lun: int, blocks: tuple[int, int] | None = None) -> Callable[[], bool]:
        """Close a unit there until nothing is under way, or no WRITE of these blocks (first,
        count); whether that is over.
        """


class LogicalUnit:
    """A block device. `serial` and `naa` come from the target that first holds it, if not given.

    Raises ValueError for a block size other than 512 or 4096, or a size that is no multiple of it.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        block_size: int = 512,
        read_only: bool = False,
        removable: bool = False,
        serial: str | None = None,
        naa: int | None = None,
        vendor: str = VENDOR,
        product: str = "disk",
        revision: str = REVISION,
        physical_exponent: int | None = None,
        sanitize_min_seconds: float = 0.0,
        unmaps_any_block: bool = False,
        reservations_path: str | None = None,
    ) -> None:
        if block_size not in BLOCK_SIZES:
            raise ValueError(f"a block of {block_size} bytes: 512 and 4096 are possible")
        if backend.size == 0 or backend.size % block_size:
            raise ValueError(f"{backend.size} bytes are no whole number of blocks of {block_size}")
        self.backend, self.block_size = backend, block_size
        self.read_only, self.removable = read_only, removable
        self.serial, self.naa = serial or "", naa or 0
        self.vendor, self.product, self.revision = vendor, product, revision
        if physical_exponent is None:
            # At least 1 where there is something to unmap: thin provisioning has a grain.
            physical_exponent = max((4096 // block_size).bit_length() - 1, int(backend.is_thin))
        self.physical_exponent = physical_exponent
        self.limits = Limits.of(block_size)
        if not backend.memory:
            # What outlives a power failure cannot promise that a half is never seen.
            self.limits = replace(self.limits, atomic=0, atomic_alignment=0, atomic_granularity=0)
        self.sanitize_min_seconds = sanitize_min_seconds
        # WRITE SAME with UNMAP unmaps whatever block is sent, as some targets do. Reads are to
        # find that block (SBC-3 §5.38), so otherwise only zeros are left to unmapping.
        self.unmaps_any_block = unmaps_any_block
        self.reservations_path = reservations_path
        # Held by whoever reads and then writes the medium outside the server's thread.
        self.medium_lock = threading.RLock()
        # State that commands change.
        self.medium_present = True
        self.prevented_by: set[Nexus] = set()
        self.software_write_protect = False
        self.descriptor_sense = False
        self.task_aborted_status = False  # TAS: who loses tasks to another nexus is told for each
        self.reservations: Reservations = _reservations_of(self)
        # None in the normal state; else the sense of what keeps the medium away, for instance a
        # sanitize operation. The function is asked anew for each command.
        self.condition: Callable[[], Sense | None] | None = None
        # Commands that wait for the rest of WRITEs. Meanwhile further ones are done whole.
        self.awaiting_writes = 0
        # Whether what its last change of state forbids is over in an engine; absent without one.
        self.settled: Callable[[], bool] | None = None
        self.places: list[tuple[Target, int]] = []
        # Where nobody can tell how much room it takes, nothing can be said of it.
        self.thresholds = None if backend.usage() is None else Thresholds()
        self._elsewhere = Counts()  # counted, but in no place's entry any more
        self._counted_from = Counts()  # what LOG SELECT has set to zero

    @property
    def blocks(self) -> int:
        """Its size in blocks."""
        return self.backend.size // self.block_size

    @property
    def is_thin(self) -> bool:
        """Whether blocks can be unmapped."""
        return self.backend.is_thin

    @property
    def write_protected(self) -> bool:
        """Whether a command that writes is refused."""
        return self.read_only or self.software_write_protect or self.backend.is_read_only

    @property
    def record(self) -> Unit:
        """What compiled code needs to know of it."""
        return Unit(
            self.backend.memory,
            self.block_size,
            self.blocks,
            self.write_protected,
            self.backend.allocation,
            self.backend.granularity,
            0 if self.backend.medium is None else self.backend.medium.address,
        )

    def identify(self, name: str, lun: int) -> None:
        """Take serial number and NAA identifier from a place, unless there are some."""
        digest = hashlib.blake2b(f"{name}/{lun}".encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "big") >> 4
        self.naa = self.naa or _NAA_LOCALLY_ASSIGNED | number
        self.serial = self.serial or f"{self.naa & ~(0xF << 60):015x}"

    @property
    def is_normal(self) -> bool:
        """Whether nothing keeps compiled code from serving it; its sense is in fixed format."""
        if self.condition is not None or self.awaiting_writes:
            return False
        return self.medium_present and not self.descriptor_sense

    @property
    def is_served_by_engine(self) -> bool:
        """Whether commands reach its medium without this process being asked."""
        return any(
            target.engine is not None and target.engine.serves(lun) for target, lun in self.places
        )

    def fence(self, blocks: tuple[int, int] | None = None) -> Callable[[], bool]:
        """Have an engine end what it does here by itself, or its WRITEs of some blocks (first,
        count); whether it has. Meanwhile, and for as long as the unit is not in its normal state,
        all commands come to this process.
        """
        if blocks is not None:  # as a CDB says it: there may be no such blocks
            first = min(blocks[0], self.blocks)
            blocks = first, min(blocks[1], self.blocks - first)
        waits = [
            target.engine.fence(lun, blocks)
            for target, lun in self.places
            if target.engine is not None
        ]
        waits += [
            nexus.settled
            for target, _ in self.places
            for nexus in target.nexuses
            if nexus.settled is not None
        ]

        def is_over() -> bool:
            waits[:] = [each for each in waits if not each()]
            return not waits

        return is_over

    def settle(self) -> None:
        """Have `settled` say when what a change of state forbids is over."""
        has_engine = any(
            target.engine is not None or any(nexus.settled is not None for nexus in target.nexuses)
            for target, _ in self.places
        )
        self.settled = self.fence() if has_engine else None

    def refresh_gate(self) -> None:
        """Tell compiled code what may have changed: state, size and write protection."""
        for target, lun in self.places:
            target.write_place(lun, self)

    def refresh_nexuses(self) -> None:
        """Recompute the gate of every nexus, after its reservations changed."""
        for target, lun in self.places:
            for nexus in target.nexuses:
                nexus.refresh_gate(lun)

    def broadcast(
        self, code: int, except_nexus: "Nexus | None" = None, information: int | None = None
    ) -> None:
        """Raise a unit attention on every attached nexus but one."""
        for target, lun in self.places:
            for nexus in target.nexuses:
                if nexus is not except_nexus:
                    nexus.raise_attention(lun, code, information)

    # --- what it takes, and what it did ------------------------------------------------------

    @property
    def threshold_exponent(self) -> int:
        """2 to this power blocks are one threshold set; 0: it has no thresholds."""
        return 0 if self.thresholds is None else exponent(self.block_size, self.blocks)

    @property
    def threshold_set(self) -> int:
        """Bytes of a threshold set, for a unit that has thresholds."""
        return self.block_size << self.threshold_exponent

    def notice(self, usage: Usage) -> list[Reached]:
        """Compare how much room it takes with its thresholds, and tell every nexus which of them
        were reached (SBC-3 §4.7.3.7.6).
        """
        if self.thresholds is None:
            return []
        found = self.thresholds.look(usage, self.threshold_set, self.backend.size)
        for each in found:
            code = Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED
            self.broadcast(code, information=each.offset)
        return found

    def count(self, target: "Target", lun: int, done: Counts) -> None:
        """Count what cold code did for a place; compiled code counts for itself."""
        if lun >= target.table.size:
            self._elsewhere += done
            return
        entry = target.entry(lun)
        (Counts.of(entry) + done).write_to(entry)

    @property
    def counts(self) -> Counts:
        """What it did since LOG SELECT set that to zero, or since there is this object."""
        found = self._elsewhere
        for target, lun in self.places:
            if lun < target.table.size:
                found += Counts.of(target.entry(lun))
        return found - self._counted_from

    def forget_counts(self) -> None:
        """Have `counts` begin at zero. The numbers of each place go on: others read them too."""
        self._counted_from += self.counts

    def placed(self, target: "Target", lun: int) -> None:
        """Note that a target serves it."""
        self.places.append((target, lun))
        if lun < target.table.size:
            Counts().write_to(target.entry(lun))

    def displaced(self, target: "Target", lun: int) -> None:
        """Note that a target serves it no more."""
        self.places.remove((target, lun))
        if lun < target.table.size:
            self._elsewhere += Counts.of(target.entry(lun))

    def resize(self, size: int) -> None:
        """Change its size, in bytes, and tell everybody. Raises ValueError, OSError."""
        if size <= 0 or size % self.block_size:
            raise ValueError(f"{size} bytes are no whole number of blocks of {self.block_size}")
        self.backend.resize(size)
        self.refresh_gate()
        self.broadcast(Asc.CAPACITY_DATA_CHANGED)

    def _sessions(self) -> "Iterator[tuple[int, Tasks]]":
        """Whoever may have tasks here, and at which LUN."""
        for target, lun in self.places:
            for nexus in target.nexuses:
                if nexus.tasks is not None:
                    yield lun, nexus.tasks

    def is_half_written(self, first: int, count: int) -> bool:
        """Whether a WRITE is under way that has placed a part of its data in these blocks."""
        if not self.backend.memory or first >= self.blocks:
            return False
        start = self.backend.memory + first * self.block_size
        end = self.backend.memory + min(first + count, self.blocks) * self.block_size
        return any(tasks.half_written(lun, start, end) for lun, tasks in self._sessions())

    def refuse_writes(self, key: SenseKey, code: Asc) -> None:
        """End the WRITEs whose data has not reached the medium; what comes late is lost."""
        for lun, tasks in self._sessions():
            tasks.refuse_writes(lun, key, code)
        for target, _ in self.places:
            for nexus in target.nexuses:
                if nexus.wake is not None:
                    nexus.wake()

    def load(self, by: "Nexus | None" = None) -> None:
        """Put the medium in, and tell all but who asked that it may be another (SBC-3 §5.25)."""
        if not self.medium_present:
            self.medium_present = True
            self.broadcast(Asc.NOT_READY_TO_READY_CHANGE, by)
        self.refresh_gate()

    def eject(self) -> None:
        """Take the medium out; commands that need it are refused until `load`."""
        self.medium_present = False
        self.refresh_gate()
        self.settle()

    def reset(self) -> None:
        """A logical unit reset (SAM-5 §6.3.3): what commands set up returns to its default. What
        is under way on the medium and persistent reservations stay.
        """
        self.prevented_by.clear()
        self.software_write_protect = False
        self.descriptor_sense = False
        self.task_aborted_status = False
        if self.thresholds is not None:
            self.thresholds.reset()
        self.reservations.reset()
        self.refresh_gate()

    def nexus_lost(self, nexus: "Nexus") -> None:
        """A session ended: what it held is given back."""
        self.prevented_by.discard(nexus)
        self.reservations.nexus_lost(nexus)


def _reservations_of(unit: LogicalUnit) -> Reservations:
    # Imported late: the commands that change reservations import this module.
    from iscsi.target.scsi.pr_unit import UnitReservations

    return UnitReservations(unit)


class RamDisk(LogicalUnit):
    """A unit in memory. `buffer` comes from the engine's `alloc` and outlives the server."""

    def __init__(
        self,
        buffer: Buffer,
        block_size: int = 512,
        read_only: bool = False,
        *,
        thin: bool = False,
        granularity: int = 4096,
        removable: bool = False,
        physical_exponent: int | None = None,
        sanitize_min_seconds: float = 0.0,
        unmaps_any_block: bool = False,
    ) -> None:
        super().__init__(
            RamBackend(buffer, thin=thin, granularity=granularity),
            block_size=block_size,
            read_only=read_only,
            removable=removable,
            product="RAM disk",
            physical_exponent=physical_exponent,
            sanitize_min_seconds=sanitize_min_seconds,
            unmaps_any_block=unmaps_any_block,
        )
        self.buffer = buffer


class Target:
    """One iSCSI target node and its units by LUN number.

    Raises ValueError for a name that is no iSCSI name, or a number a unit cannot have.
    """

    def __init__(
        self, name: str, units: Mapping[int, LogicalUnit], alias: str | None = None
    ) -> None:
        fault = name_fault(name)
        if fault:
            raise ValueError(f"target name {name!r}: {fault}")
        self.name, self.alias = name, alias
        self.units: dict[int, LogicalUnit] = {}
        self.nexuses: list[Nexus] = []
        self.engine: EnginePlaces | None = None
        # The tags of the portal groups that lead to it, for REPORT TARGET PORT GROUPS.
        self.portal_groups: Callable[[], Iterable[int]] = tuple
        for number in units:
            _check_number(number)
        self.table = np.zeros(max(TABLE_MIN, max(units, default=0) + 1), LUN)
        for number, unit in units.items():
            self._place(number, unit)

    def add_unit(self, lun: int, unit: LogicalUnit) -> None:
        """Serve one more unit, and tell everybody. Raises ValueError."""
        _check_number(lun)
        if lun in self.units:
            raise ValueError(f"LUN {lun} is taken")
        self._place(lun, unit)
        self._luns_changed(except_lun=lun)
        for nexus in self.nexuses:
            nexus.raise_attention(lun, Asc.POWER_ON_RESET)

    def remove_unit(self, lun: int) -> LogicalUnit:
        """Serve a unit no more, and tell everybody. The caller has ended its tasks. KeyError."""
        unit = self.units.pop(lun)
        unit.displaced(self, lun)
        self.write_place(lun, None)
        for nexus in self.nexuses:
            nexus.forget(lun)
            unit.nexus_lost(nexus)
        self._luns_changed()
        return unit

    def write_place(self, lun: int, unit: LogicalUnit | None) -> None:
        """Write a unit's entry of the table, if it has one."""
        if lun < self.table.size:
            address = address_of(self.table) + LUN_SIZE * lun
            record = None if unit is None else unit.record
            write_lun(address, record, int(unit is not None and not unit.is_normal))
            if self.engine is not None:
                self.engine.write(lun)

    def entry(self, lun: int) -> Any:
        """The record of a place that the table has."""
        return lun_at(address_of(self.table) + LUN_SIZE * lun)[0]

    def _place(self, lun: int, unit: LogicalUnit) -> None:
        self.units[lun] = unit
        unit.placed(self, lun)
        unit.identify(self.name, lun)
        self.write_place(lun, unit)

    def _luns_changed(self, except_lun: int | None = None) -> None:
        for nexus in self.nexuses:
            for lun in self.units:
                if lun != except_lun:
                    nexus.raise_attention(lun, Asc.REPORTED_LUNS_CHANGED)


def _check_number(lun: int) -> None:
    if not 0 <= lun <= MAX_LUN:
        raise ValueError(f"LUN {lun} is outside 0..{MAX_LUN}")


def require_own_files(units: Iterable[LogicalUnit]) -> None:
    """ValueError if two units, or data and reservations, are kept in one file. A backend's own lock
    sees its data only, and reservations replace their file.
    """
    owners: dict[Path, LogicalUnit | Backend] = {}
    for unit in units:
        kept: list[tuple[str | Path | None, LogicalUnit | Backend]] = [
            (unit.reservations_path, unit),
            (getattr(unit.backend, "path", None), unit.backend),
        ]
        for path, owner in kept:
            if path is not None and owners.setdefault(Path(path).resolve(), owner) is not owner:
                raise ValueError(f"{path}: two units, or data and reservations, share this file")


def by_name(targets: Iterable[Target]) -> dict[str, Target]:
    """The targets by name; ValueError if two have the same one, or there is none."""
    found: dict[str, Target] = {}
    for target in targets:
        if target.name in found:
            raise ValueError(f"two targets are called {target.name}")
        found[target.name] = target
    if not found:
        raise ValueError("a server needs a target")
    return found
